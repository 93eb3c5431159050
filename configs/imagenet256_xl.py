"""ImageNet 256x256, DiT-XL/2, shortcut objective: the paper's largest run.

  python -m shortcut_tpu.train --config=imagenet256_xl --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256

The paper reports FID-50k 3.8 / 7.8 / 10.6 at 128 / 4 / 1 steps. This code has not been trained on
ImageNet yet: the figures are the paper's.
"""

from configs import common, imagenet256_b


def get_config():
    config = imagenet256_b.get_config()
    config.model.update(common.DIT_SIZES["XL"])
    # What the recipes of MeanFlow and alpha-Flow have otherwise at this size: no guidance next to
    # the noise, and alpha-Flow's own strength, rows and schedule, 600k to 1M of 1.2M steps.
    config.objective.meanflow.guidance_interval = (0.25, 1.0)
    config.objective.alpha_flow.update(
        guidance=0.2, guidance_mix=0.92, guidance_interval=(0.25, 1.0), interval_share=0.5
    )
    config.objective.alpha_flow.update(schedule_start=0.5, schedule_end=5 / 6)
    return config
