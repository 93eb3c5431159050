"""ImageNet 256x256, DiT-B/2, shortcut objective: the paper's Table 1 row.

  python -m shortcut_tpu.train --config=imagenet256_b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host

The paper reports FID-50k 15.5 / 28.3 / 40.3 at 128 / 4 / 1 steps. This code has not been trained on
ImageNet yet: the figures are the paper's.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 256

    config.data.path = "data/imagenet256"
    config.data.autoencoder = "sd-vae-ft-mse"

    config.model.update(common.DIT_SIZES["B"])
    config.model.faithful = True
    config.model.remat = "dots"
    # Each chip holds a part of the weights, moments and averages: with few rows a chip their memory
    # traffic would take longer than gathering the weights in each layer.
    config.mesh.fsdp = -1

    config.objective.shortcut.guidance = 1.5
    # One average serves targets and evaluation, as in the paper.
    config.objective.shortcut.target_ema = "evaluation"
    config.emas = {"evaluation": 0.999}

    # The distance that other ImageNet models are compared by: ADM's evaluator. Its two files are
    # named on the command line: evaluation.features and evaluation.reference.
    config.evaluation.protocol = "adm"
    # The paper's figures of 128 steps are guided; only the finest step has seen the null label.
    config.evaluation.guidance = "128:1.5"

    config.train.num_steps = 800_000
    return config
