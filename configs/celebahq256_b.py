"""CelebA-HQ 256x256, unconditional DiT-B/2, shortcut objective: the paper's Table 1 row.

  python -m shortcut_tpu.train --config=celebahq256_b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host

The paper reports FID-50k 6.9 / 13.8 / 20.5 at 128 / 4 / 1 steps. This code has not been trained on
CelebA-HQ yet: the figures are the paper's.
"""

from configs import common, imagenet256_b


def get_config():
    config = imagenet256_b.get_config()
    config.batch_size = 64

    config.data.path = "data/celebahq256"
    config.data.num_records = 30_000
    # Unconditional: one class, never dropped and never guided.
    config.data.num_classes = 1
    common.leave_out_guidance(config)
    # As the authors scored: nobody offers statistics of CelebA-HQ, `reference_stats` makes them.
    config.evaluation.protocol = "official"

    config.model.update(common.DIT_SIZES["B"])
    config.train.num_steps = 400_000
    return config
