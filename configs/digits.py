"""8x8 handwritten digits, class-conditional: a whole run in minutes on a laptop.

./launch/local_pod.sh --config=digits

Expect FD-pixel of about 0.29 at 1 step, 0.14 at 4 and 0.10 at 128; docs/results/digits.md has
the seeds.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.batch_size = 256

    config.data.path = "data/digits"
    config.data.source = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10

    # Patches of 4 and twice the width cost what patches of 2 and a width of 64 cost, learn better,
    # and are larger products for the processor.
    config.model.patch_size = 4
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.dtype = "float32"
    # A layer computed twice costs a processor less than its activations written and read.
    config.model.remat = "full"

    common.leave_out_guidance(config)
    # Half the rows climb the levels; each level learns from the average of the level below, seven
    # levels up: a lag of five steps lets a run of two thousand steps reach the top.
    config.objective.shortcut.bootstrap_share = 0.5
    config.emas.target = 0.8
    # The rate decays to zero, so a short average is as smooth and less behind.
    config.emas.evaluation = 0.99

    config.optimizer.learning_rate = 6e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 250
    config.optimizer.weight_decay = 0.01

    config.train.num_steps = 2_000
    # Sixteen methods in an hour on two cores.
    config.comparison.num_steps = 800
    config.comparison.num_pairs = 20_000
    # The paper's 128 would cost four times the training.
    config.comparison.pair_steps = 32
    # At the config's rate a student that starts from its teacher loses what that knew, and `get`
    # does not learn.
    config.comparison.learning_rates.progressive_distillation = 1e-3
    config.comparison.learning_rates.consistency_distillation = 1e-3
    config.comparison.learning_rates.reflow = 1e-3
    config.comparison.learning_rates.equilibrium = 1e-3
    # Two blocks on the noise and six turns of one cost about what two DiTs of this depth do.
    config.model.equilibrium.update({"injection_depth": 2, "equilibrium_depth": 1})
    config.model.equilibrium.equilibrium_mlp_ratio = 4.0
    config.model.koopman.code_channels = 32
    config.checkpoint.every_steps = 500
    config.evaluation.every_steps = 1_000
    # Drawn by the programs of evaluations: each takes seconds.
    config.evaluation.sheet_every_steps = 500
    config.evaluation.steps = (1, 4, 32)
    config.evaluation.num_samples = 2_000
    config.evaluation.batch_size = 500
    return config
