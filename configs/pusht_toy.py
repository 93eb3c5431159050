"""A policy that pushes a block to a goal, learned from demonstrations.

./launch/local_pod.sh --config=pusht_toy

Expect success in 0.95 of the episodes at 1 and 4 steps and in 0.99 at 100; flow matching has 0.36
at 1 step and 1.00 at the others.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 256

    config.data.path = "data/pusht_toy"
    config.data.task = "pusht_toy"
    config.data.horizon = 16
    config.data.channels = 2
    config.data.observation_size = 8
    config.data.num_classes = 0

    config.model.network = "policy"
    # All of a chunk is one token: the task needs no attention, and four cost three times as much.
    config.model.patch_size = 16
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.dtype = "float32"

    common.leave_out_guidance(config)
    # Noise does not show in the few numbers of a chunk.
    config.objective.improved_meanflow.told_time = True
    config.objective.shortcut.bootstrap_share = 0.5
    config.emas.target = 0.9
    config.emas.evaluation = 0.99

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 250
    config.optimizer.weight_decay = 0.01

    config.train.num_steps = 2_000
    config.checkpoint.every_steps = 500
    # Policies have no distances; `python -m shortcut_tpu.rollout` scores them.
    config.evaluation.every_steps = 0
    return config
