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
    return config
