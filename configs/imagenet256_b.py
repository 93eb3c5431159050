"""ImageNet 256x256, DiT-B/2: the paper's Table 1 row, or another method as its own paper trains it.

  python -m shortcut_tpu.train --config=imagenet256_b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host
  python -m shortcut_tpu.train --config=imagenet256_b --config.objective.name=meanflow \\
      --workdir=gs://BUCKET/MEANFLOW --config.evaluation.every_steps=0

Optimizer, averages, numerics, guidance, batch and length are the method's, configs/recipes.py. Of
Shortcut the paper reports FID-50k 15.5 / 28.3 / 40.3 at 128 / 4 / 1 steps. This code has not been
trained on ImageNet yet: the figures are the paper's.
"""

from configs import common, recipes


def get_config():
    config = recipes.get_config()

    config.data.path = "data/imagenet256"
    config.data.num_records = 1_281_167
    config.data.autoencoder = "sd-vae-ft-mse"

    config.model.update(common.DIT_SIZES["B"])
    config.model.remat = "dots"
    # Each chip holds a part of the weights, moments and averages: with few rows a chip their memory
    # traffic would take longer than gathering the weights in each layer.
    config.mesh.fsdp = -1

    # The distance that other ImageNet models are compared by: ADM's evaluator. Its two files are
    # named on the command line: evaluation.features and evaluation.reference.
    config.evaluation.protocol = "adm"
    return config
