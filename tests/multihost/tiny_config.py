"""The digits with a network so small that compiling it is what takes time."""

from configs import digits


def get_config():
    config = digits.get_config()
    config.batch_size = 32
    config.model.width = 32
    config.model.depth = 1
    config.model.num_heads = 2
    config.model.unroll = 1
    config.optimizer.warmup_steps = 4
    config.train.num_steps = 16
    config.train.log_every_steps = 1
    config.checkpoint.every_steps = 4
    config.evaluation.every_steps = 0
    return config
