"""ImageNet 256x256, iMF-B/2: improved MeanFlow with its own network.

  python -m shortcut_tpu.train --config=imagenet256_imf_b --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host
  python -m shortcut_tpu.convert --from=imf --weights=iMF-B-2 --config=imagenet256_imf_b \\
      --workdir=runs/imf_b                             # the released weights, docs/weights.md

89M parameters sample; 57M more train the second output. Published (arXiv 2512.02012): FID-50k 3.39
at one step, 3.37 by the authors' code. This code has not been trained on ImageNet yet: the figures
are the paper's.
"""

from configs import imagenet256_b


def get_config():
    config = imagenet256_b.get_config()
    config.objective.name = "improved_meanflow"
    config.model.network = "in_context"
    # A gated MLP of this ratio has the weights of a plain one of 4.
    config.model.mlp_ratio = 8 / 3
    return config
