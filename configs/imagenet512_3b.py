"""ImageNet 512x512, a DiT of 3.0 billion parameters over 1024 patches.

  python -m shortcut_tpu.preflight --config=imagenet512_3b --topology=v5p-128    # or v6e-256
  python -m shortcut_tpu.train --config=imagenet512_3b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host

Laid out as imagenet256_3b. Nothing of this size has been trained with this code: there is no result
to expect.
"""

from configs import imagenet256_3b


def get_config():
    config = imagenet256_3b.get_config()
    config.data.path = "data/imagenet512"
    config.data.image_size = 64
    return config
