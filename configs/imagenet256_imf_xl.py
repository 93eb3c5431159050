"""ImageNet 256x256, iMF-XL/2: improved MeanFlow with its own network.

  python -m shortcut_tpu.train --config=imagenet256_imf_xl --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:WEIGHTS \\
      --config.evaluation.reference=STATS.npz          # every host
  python -m shortcut_tpu.convert --from=imf --weights=iMF-XL-2 --config=imagenet256_imf_xl \\
      --workdir=runs/imf_xl                            # the released weights, docs/weights.md

610M parameters sample; 101M more train the second output. Published (arXiv 2512.02012): FID-50k
1.72 at one step, and 1.70 by the authors' code; 1.54 and 1.53 at two, told sample_guidance=4 and
sample_interval=(0.36,0.64). Of the length of training that code tells B/2's alone, which this has
too. This code has not been trained on ImageNet yet: the figures are the paper's.
"""

from configs import imagenet256_imf_b


def get_config():
    config = imagenet256_imf_b.get_config()
    config.model.update(width=1024, depth=48, num_heads=16)
    # What the released weights are sampled with.
    config.objective.improved_meanflow.update(sample_guidance=8.0, sample_interval=(0.38, 0.58))
    return config
