"""ImageNet 256x256, a DiT of 3.0 billion parameters: too large for one chip.

  python -m shortcut_tpu.preflight --config=imagenet256_3b --topology=v5p-128    # or v6e-256
  python -m shortcut_tpu.train --config=imagenet256_3b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host

Parameters, moments and averages lie over all chips, and each layer's weights are gathered when a
pass comes to it. `--config.mesh.gather=step` gathers all before the first, in bfloat16: 6 GiB, and
as much for the averages that make targets; it moves two fifths less and is slower
(docs/results/pods.md). AdamW's moments take 22.7 GiB over all chips, with
`--config.optimizer.mu_dtype=bfloat16` 17.0; Adafactor's 5.7 with it, and 0.03 with
`--config.optimizer.b1=0`, which keeps no first moment.
Nothing of this size has been trained with this code: there is no result to expect.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 1024

    config.data.path = "data/imagenet256"
    config.data.num_records = 1_281_167
    config.data.autoencoder = "sd-vae-ft-mse"

    # Heads of 128 fill the lanes of a TPU's registers.
    config.model.update({"width": 2048, "depth": 40, "num_heads": 16})
    config.model.remat = "dots"
    config.mesh.fsdp = -1

    config.objective.shortcut.guidance = 1.5
    config.evaluation.protocol = "adm"
    # Only the finest step has seen the null label.
    config.evaluation.guidance = "128:1.5"
    config.optimizer.warmup_steps = 10_000
    config.train.num_steps = 800_000
    return config
