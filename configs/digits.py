"""8x8 handwritten digits, class-conditional: the whole job in minutes on a laptop.

./launch/local_pod.sh --config=digits
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 128

    config.data.path = "data/digits"
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10

    config.model.width = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.dtype = "float32"
    config.model.unroll = 4

    # Ten classes and no guidance: nothing needs the null label.
    for name in common.get_objectives():
        for key, none in (("label_dropout", 0.0), ("max_guidance", 1.0)):
            if key in config.objective[name]:
                config.objective[name][key] = none
    # Each level learns from the average of the level below, seven levels up: a lag of ten steps
    # lets a run of thousands of steps reach the top.
    config.emas.target = 0.9

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500

    config.train.num_steps = 5_000
    config.checkpoint.every_steps = 1_000
    config.evaluation.every_steps = 2_500
    config.evaluation.num_samples = 2_000
    config.evaluation.batch_size = 500
    return config
