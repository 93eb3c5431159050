"""3786 emoji of 64x64 pixels in ten categories, latent, class-conditional: a small ImageNet.

  launch/setup_venv.sh evaluation
  npm pack emoji-datasource-google@16.0.0
  python -m data_pipeline.emoji --package=emoji-datasource-google-16.0.0.tgz \\
      --output=data/emoji-images
  ./launch/local_pod.sh --config=emoji --config.data.autoencoder=taef2:WEIGHTS

WEIGHTS is a folder with taef2_encoder.pth and taef2_decoder.pth. The latents are 8x8x32, of unit
variance once scaled. Three of five pictures are people; classes have from 5 to 2261 pictures.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 128

    config.data.path = "data/emoji"
    config.data.source = "imagefolder:data/emoji-images"
    config.data.source_flags = ("--image_size=64", "--flips")
    config.data.autoencoder = "taef2:weights/taef2"
    config.data.image_size = 8
    config.data.channels = 32
    config.data.num_classes = 10

    # 16 tokens of 128 values: four times as fast as patches of 1.
    config.model.patch_size = 2
    config.model.width = 192
    config.model.depth = 4
    config.model.num_heads = 6
    config.model.dtype = "float32"

    common.leave_out_guidance(config)
    config.objective.shortcut.bootstrap_share = 0.5
    # Latents reach 8 standard deviations, further than those of the SD VAE that the bound is for.
    config.objective.shortcut.clip = 10.0
    config.emas.target = 0.95
    config.emas.evaluation = 0.995

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 250
    config.optimizer.weight_decay = 0.01

    config.train.num_steps = 3_000
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 0
    config.evaluation.steps = (1, 4, 128)
    config.evaluation.protocol = "fd_efficientnet"
    # Classes as unequal as the pictures' own, which the distance is to.
    config.evaluation.class_balance = "data"
    config.evaluation.num_samples = 2_000
    config.evaluation.batch_size = 100
    return config
