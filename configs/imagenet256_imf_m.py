"""ImageNet 256x256, iMF-M/2: improved MeanFlow with its own network.

  python -m shortcut_tpu.train --config=imagenet256_imf_m --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host
  python -m shortcut_tpu.convert --from=imf --weights=iMF-M-2 --config=imagenet256_imf_m \\
      --workdir=runs/imf_m                             # the released weights, docs/weights.md

174M parameters sample; 57M more train the second output. Published (arXiv 2512.02012): FID-50k
2.27 at one step, and 2.27 by the authors' code. Of the length of training that code tells B/2's
alone, which this has too. This code has not been trained on ImageNet yet: the figures are the
paper's.
"""

from configs import imagenet256_imf_b


def get_config():
    config = imagenet256_imf_b.get_config()
    config.model.update(width=768, depth=24, num_heads=12)
    # What the released weights are sampled with.
    config.objective.improved_meanflow.update(sample_guidance=10.5, sample_interval=(0.4, 0.6))
    return config
