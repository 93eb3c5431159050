"""Every key of a config, documented once, with the defaults that a run starts from.

Usage, in a config file:
  from configs import common

  def get_config():
      config = common.get_config()
      config.model.update(common.DIT_SIZES["B"])
      return config
"""

from ml_collections import ConfigDict

# DiT sizes (arXiv 2212.09748, Table 1); the patch size is a choice of its own.
DIT_SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}


def leave_out_guidance(config: ConfigDict) -> None:
    """Trains and samples on labels alone: nothing then needs the null label."""
    without = {
        "label_dropout": 0.0,
        "guidance": 1.0,
        "guidance_mix": 0.0,
        "max_guidance": 1.0,
        "sample_guidance": 1.0,
    }
    for name in get_objectives():
        keys = config.objective[name]
        keys.update({key: none for key, none in without.items() if key in keys})
    config.evaluation.guidance = "1"


def get_config() -> ConfigDict:
    """The defaults: the paper's where it has one."""
    config = ConfigDict()

    # Weights, data order, noise and times are functions of (seed, step, row) and nothing else.
    config.seed = 0
    # Global batch: rows a step over all hosts together.
    config.batch_size = 256

    config.data = ConfigDict()
    # Folder of latent records, made by `python -m data_pipeline.encode_latents`; or gs://.
    config.data.path = ""
    # Where each machine copies the records to when it starts, to read them fast. Empty: /dev/shm
    # for records in a bucket; others are read where they are.
    config.data.stage = ""
    # What encode_latents reads to make them, KIND:PATH; a rehearsal makes missing records from it.
    config.data.source = ""
    # Its other flags, such as --image_size=256; the autoencoder is the config's.
    config.data.source_flags = ()
    # Folder of a teacher's noises and samples, made by `python -m shortcut_tpu.generate_pairs`, for
    # objectives that train on them. Distances are to the records of `path` all the same.
    config.data.pairs = ""
    # Shape of a latent, [side, side, channels]; the records must agree.
    config.data.image_size = 32
    config.data.channels = 4
    config.data.num_classes = 1000
    # Of a policy's records: they hold chunks of so many actions of `channels` numbers each in place
    # of latents, and observations of so many numbers in place of labels; 0 for latents.
    config.data.horizon = 0
    config.data.observation_size = 0
    # The simulated task that demonstrations are of and policies are rolled out in, a name of
    # data_pipeline/tasks; a rehearsal makes missing records from it. "" for latents.
    config.data.task = ""
    # The autoencoder that made the latents and decodes samples, NAME or NAME:WEIGHTS.
    config.data.autoencoder = "identity"
    # Threads that read batches ahead, and how many batches they keep ready.
    config.data.num_threads = 2
    config.data.prefetch = 8
    # Damaged records that each process may do without, a neighbour standing in; one more stops it.
    config.data.max_corrupt = 0

    config.model = ConfigDict()
    # dit for latents, policy for actions; the objectives get and koopman bring networks of their
    # own.
    config.model.network = "dit"
    config.model.update(DIT_SIZES["B"])
    config.model.patch_size = 2
    config.model.mlp_ratio = 4.0
    # True: the official network's numerics (unscaled t and level in the embeddings, attention
    # logits over head_dim, Xavier modulation). False: t x 1000, level x 100, 1/sqrt(head_dim),
    # adaLN-Zero.
    config.model.faithful = False
    # Compute dtype, bfloat16 or float32; parameters are float32 always.
    config.model.dtype = "bfloat16"
    # What the backward pass recomputes: none, dots (what lies between matrix products, and the
    # weights of attention) or full. On an accelerator dots is faster than none, too: what it keeps
    # is a third, and memory is slower than products.
    config.model.remat = "none"
    # How attention is computed: by xla; by pallas, TPU kernels (JAX's splash attention, and one of
    # our own for forward-mode derivatives) that keep no logits in memory; or auto, by pallas on a
    # TPU from 1024 tokens on, which is 512x512 pixels. Elsewhere pallas is for tests, and slow. No
    # TPU has run the kernels yet.
    config.model.attention = "auto"
    # Layers compiled out of line in each turn of the scan over layers: more compile time, fewer
    # copies; it pays for shallow networks.
    config.model.unroll = 1
    # A network that is no DiT has shapes of its own.
    config.model.equilibrium = ConfigDict()
    # Blocks that work on the noise once (they stand in for `depth`), blocks that are iterated, with
    # the same weights in each iteration, the width of their MLP over `width`, and how often.
    config.model.equilibrium.injection_depth = 6
    config.model.equilibrium.equilibrium_depth = 3
    config.model.equilibrium.equilibrium_mlp_ratio = 8.0
    config.model.equilibrium.iterations = 6
    config.model.koopman = ConfigDict()
    # Numbers that a patch is encoded into; the operator is a full matrix over those of all patches.
    # `depth` counts for each of the two encoders and the decoder.
    config.model.koopman.code_channels = 8

    config.objective = ConfigDict()
    # Which of the objectives below trains; each has its own keys, explained in its file.
    config.objective.name = "shortcut"
    # Whose published recipe of optimizer, averages, numerics and guidance lies below the config's
    # own choices, configs/recipes.py; by default its own. Empty: this config takes none.
    config.objective.recipe = ""
    config.objective.update(get_objectives())

    config.teacher = ConfigDict()
    # The run whose weights an objective with a teacher starts from and distills.
    config.teacher.workdir = ""
    # Its checkpoint, -1 for the newest, and which average of its weights.
    config.teacher.step = -1
    config.teacher.ema = "evaluation"

    config.optimizer = ConfigDict()
    # adamw; or muon, which orthogonalises the updates of the blocks' matrices and leaves all other
    # parameters to adamw. The rate means about the same for both.
    config.optimizer.name = "adamw"
    # The rate warms up linearly, then stays constant, or decays to zero: constant, cosine, linear.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    # Decays of Adam's moments.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    # Of muon's matrices.
    config.optimizer.momentum = 0.95
    # float32 or bfloat16, in which the first moments are kept: half their memory.
    config.optimizer.mu_dtype = "float32"
    # Gradients whose norm over all parameters is larger are scaled down to it; 0 for never.
    config.optimizer.clip_norm = 0.0
    # Decoupled, on all parameters.
    config.optimizer.weight_decay = 0.1

    # Decay of each average of the weights, by name. Evaluation and sampling use "evaluation";
    # objectives name theirs.
    config.emas = ConfigDict({"evaluation": 0.999, "target": 0.999})

    config.mesh = ConfigDict()
    # Devices along each axis; -1 chooses, and of fsdp as many as can be. Rows of a batch are split
    # over data x fsdp in whole strides, weights over fsdp x tensor. Where a batch has fewer strides
    # than there are devices, those along `stride` share one: each trains its part of the rows, all
    # compute the targets. Where that is not enough, the rest go to tensor.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.stride = -1
    config.mesh.tensor = -1
    # When weights are gathered over fsdp: in each pass by "layer", for the least memory, or once a
    # "step" and for all passes, which moves less.
    config.mesh.gather = "layer"

    config.train = ConfigDict()
    config.train.num_steps = 400_000
    # Steps between lines on the console and points in TensorBoard.
    config.train.log_every_steps = 100
    # Updates with a loss or gradient that is not finite are left out and counted; more than this
    # many in a row stop the run.
    config.train.max_skipped = 10
    # A process that does not finish a step, a compilation or a batch of an evaluation in so many
    # seconds writes its stacks and ends, to be started again; 0 for never.
    config.train.hang_seconds = 1800
    # Folder, local or gs://, where compiled programs are kept, so that a restart need not compile
    # them again; "" for none. All hosts read it and the first one writes, so a pod shares one.
    # `preflight` with the same key writes the step into it; docs/runs.md says what that is worth.
    config.train.compile_cache = ""

    config.checkpoint = ConfigDict()
    # Steps between saves, which go on beside training; the last step is saved too. 0 for never.
    config.checkpoint.every_steps = 5_000
    # The newest ones to keep.
    config.checkpoint.keep = 3

    config.evaluation = ConfigDict()
    # Steps between evaluations while training; 0 for never.
    config.evaluation.every_steps = 50_000
    # Step counts to sample at.
    config.evaluation.steps = (1, 4, 128)
    config.evaluation.num_samples = 50_000
    # Samples a program run, over all devices.
    config.evaluation.batch_size = 256
    # What is measured, and how: adm, official or jax-fid (FID by Inception), fd_efficientnet, or
    # fd_pixel, the Frechet distance of decoded pixels; `shortcut_tpu/evaluation/protocols.py`.
    config.evaluation.protocol = "fd_pixel"
    # Its network's weights, NAME:FILE, such as inception:FILE; empty where a package carries them.
    config.evaluation.features = ""
    # Statistics of real images, an npz; empty for the run's own records, decoded.
    config.evaluation.reference = ""
    # Classes of samples: balanced, random, or data, as often as the records have them; empty for
    # the protocol's.
    config.evaluation.class_balance = ""
    # Classifier-free guidance while sampling: a strength for all step counts, such as 1.5, or for
    # some, such as 128:1.5 or 2,128:1.5 for 1.5 at 128 steps and 2 at all others; 1 for none.
    config.evaluation.guidance = "1"
    # The times in which samples are guided, start and end; 0 is noise and 1 is data.
    config.evaluation.guidance_interval = (0.0, 1.0)

    config.comparison = ConfigDict()
    # `compare` trains each method for so many steps, its teacher's included; 0 for train.num_steps.
    config.comparison.num_steps = 0
    # Pairs that a teacher makes for the methods that train on them, and its steps for one.
    config.comparison.num_pairs = 50_000
    config.comparison.pair_steps = 32
    # The optimizer's peak rate for methods that do not learn at the config's: the name under which
    # a method's hyperparameters stand, and the rate.
    config.comparison.learning_rates = ConfigDict()
    return config


def get_objectives() -> ConfigDict:
    """Hyperparameters of every objective, under its name, with its paper's values.

    The same key means the same everywhere:
      finest_steps: M, a power of two; the finest step size is 1/M.
      *_share: share of rows of a kind, a unit fraction, strided through the batch.
      guidance: w of the guidance that is in the target; 1 for none.
      max_guidance: the network is told a guidance strength, drawn from 1 up to this; 1 for none.
      sample_guidance: the strength that samples are then conditioned on.
      label_dropout: share of rows that lose their label.
      target_ema: name of the average in `emas` that makes targets; "" for the trained weights.
      clip: bound on states and targets that the model makes itself; 0 for none.
      sigma_min: noise left on the path at t = 1; 1e-5 in the official code, 0 in the papers.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)).
      weight_epsilon, weight_power: squares are divided by (themselves + epsilon)^power.
    """
    return ConfigDict(
        {
            "flow_matching": {"finest_steps": 128, "label_dropout": 0.1, "sigma_min": 1e-5},
            "diffusion": {
                # Linear betas over so many steps.
                "diffusion_steps": 1000,
                "beta_first": 1e-4,
                "beta_last": 0.02,
                "label_dropout": 0.1,
            },
            "shortcut": {
                "finest_steps": 128,
                # Paper 1/4, official code 1/8.
                "bootstrap_share": 0.25,
                # Rows left over after an equal deal to the levels: "rotate" through the levels by
                # step, or all to the "coarsest" as in the official code.
                "level_remainder": "rotate",
                "clip": 4.0,
                # In the target of the finest bootstrap level only.
                "guidance": 1.0,
                # On flow rows only.
                "label_dropout": 0.1,
                "target_ema": "target",
                "sigma_min": 1e-5,
            },
            "consistency_training": {
                "finest_steps": 128,
                "target_ema": "target",
                "sigma_min": 1e-5,
            },
            "live_reflow": {
                "finest_steps": 128,
                "reflow_share": 0.125,
                # Euler steps that make a pair of noise and sample.
                "teacher_steps": 8,
                # While pairs are made.
                "guidance": 1.0,
                # On flow rows only.
                "label_dropout": 0.1,
                "sigma_min": 1e-5,
            },
            "progressive_distillation": {
                "finest_steps": 128,
                "clip": 4.0,
                # Of the teacher, in the first stage only.
                "guidance": 1.0,
                "target_ema": "target",
                "sigma_min": 1e-5,
            },
            "consistency_distillation": {
                "finest_steps": 128,
                "clip": 4.0,
                "target_ema": "target",
                "sigma_min": 1e-5,
            },
            "reflow": {},
            # Of the method `get`; a key of that name would hide a method of ConfigDict.
            "equilibrium": {
                # The weight of an iterate in the loss over that of the next one.
                "iterate_decay": 0.8,
            },
            "koopman": {
                # Standard deviation of what is added to the codes while training.
                "latent_noise": 0.4,
                # Of the distance of codes, the reconstruction of data, and that from noise.
                "latent_weight": 1.0,
                "reconstruction_weight": 1.0,
                "push_weight": 1.0,
            },
            "meanflow": {
                # Rows with an interval of positive length.
                "interval_share": 0.25,
                "time_mean": -0.4,
                "time_std": 1.0,
                "guidance": 1.0,
                # k of w v + (1-w-k) u_null + k u; the effective guidance is w / (1-k).
                "guidance_mix": 0.0,
                "label_dropout": 0.1,
                "weight_epsilon": 0.01,
                "weight_power": 1.0,
            },
            "improved_meanflow": {
                "interval_share": 0.5,
                "time_mean": -0.4,
                "time_std": 1.0,
                "max_guidance": 8.0,
                "sample_guidance": 1.0,
                "label_dropout": 0.1,
                "weight_epsilon": 0.01,
                "weight_power": 1.0,
            },
            "alpha_flow": {
                "interval_share": 0.5,
                "time_mean": -0.4,
                "time_std": 1.0,
                # Alpha falls from 1 to 0 between these shares of the training, in a sigmoid of this
                # steepness; within `clamp` of an end it is that end.
                "schedule_start": 0.0,
                "schedule_end": 1.0,
                "schedule_gamma": 25.0,
                "clamp": 0.005,
                "clip": 4.0,
                "guidance": 1.0,
                "guidance_mix": 0.0,
                "label_dropout": 0.1,
                "weight_epsilon": 1e-3,
            },
            "split_meanflow": {
                "interval_share": 0.5,
                "time_mean": -0.4,
                "time_std": 1.0,
                "target_ema": "",
                "label_dropout": 0.1,
            },
            "improved_shortcut": {
                "finest_steps": 128,
                "bootstrap_share": 0.25,
                "clip": 4.0,
                "max_guidance": 8.0,
                "sample_guidance": 1.0,
                # On flow rows only.
                "label_dropout": 0.1,
                "target_ema": "target",
                "sigma_min": 1e-5,
            },
            "high_order": {
                "finest_steps": 128,
                "bootstrap_share": 0.25,
                # The path from noise to data, smoothstep or variance_preserving.
                "curve": "smoothstep",
                # Of the acceleration's error; at 1 equal relative errors of velocity and
                # acceleration count the same.
                "acceleration_weight": 1.0,
                "clip": 4.0,
                # On flow rows only.
                "label_dropout": 0.1,
                "target_ema": "target",
            },
        }
    )
