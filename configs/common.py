"""Every key of a config, with its meaning, default and limits.

Usage, in a config file:
  from configs import common

  def get_config():
      config = common.get_config()
      config.model.update(common.DIT_SIZES["B"])
      return config
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import hyperparameters
from configs.limits import (
    Either,
    Flag,
    Key,
    Limit,
    Named,
    OneOf,
    Real,
    Several,
    Text,
    Whole,
)

# DiT sizes (arXiv 2212.09748, Table 1); the patch size is a choice of its own.
DIT_SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}


# Decays of averages and moments, and devices along an axis of the mesh.
DECAY = Real(0, 1, below=True)
AXIS = Either(OneOf(-1), Whole(1))
GUIDANCE = Text(
    r"(\d+:)?[\d.e+-]+(,(\d+:)?[\d.e+-]+)*", "STRENGTH or STEPS:STRENGTH, comma-separated"
)


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
    return _defaults(_keys())


def get_objectives() -> ConfigDict:
    """The defaults of every objective's hyperparameters, under its name."""
    return _defaults(hyperparameters.keys())


def get_limits() -> dict[str, Limit]:
    """What each key may be, such as {"train.num_steps": Whole(1)}."""
    return dict(_limits(_keys()))


def _defaults(keys: ConfigDict) -> ConfigDict:
    return ConfigDict(
        {
            name: _defaults(key) if isinstance(key, ConfigDict) else key.default
            for name, key in keys.items()
        }
    )


def _limits(keys: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Limit]]:
    for name, key in keys.items():
        if isinstance(key, ConfigDict):
            yield from _limits(key, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", key.limit


def _keys() -> ConfigDict:
    """Every key of a config; a comment is about the keys below it, up to the next one."""
    config = ConfigDict()

    # Weights, data order, noise and times are functions of (seed, step, row) and nothing else.
    # Of a seed JAX keeps 32 bits.
    config.seed = Key(0, Whole(0, 2**32 - 1))
    # Global batch: rows a step over all hosts together.
    config.batch_size = Key(256, Whole(1))

    config.data = ConfigDict()
    # Folder of latent records, made by `python -m data_pipeline.encode_latents`; or gs://.
    config.data.path = Key("", Text())
    # Where each machine copies the records to when it starts, to read them fast. Empty: /dev/shm
    # for records in a bucket; others are read where they are.
    config.data.stage = Key("", Text())
    # What encode_latents reads to make them, KIND:PATH; a rehearsal makes missing records from it.
    config.data.source = Key("", Text())
    # Its other flags, such as --image_size=256; the autoencoder is the config's.
    config.data.source_flags = Key((), Several(Text()))
    # Folder of a teacher's noises and samples, made by `python -m shortcut_tpu.generate_pairs`, for
    # objectives that train on them; meanflow, alpha_flow and split_meanflow do so where they are
    # named. Distances are to the records of `path` all the same.
    config.data.pairs = Key("", Text())
    # How many records there are, for `preflight` where the records are not; 0 where nobody knows.
    config.data.num_records = Key(0, Whole(0))
    # Shape of a latent, [side, side, channels]; the records must agree.
    config.data.image_size = Key(32, Whole(1))
    config.data.channels = Key(4, Whole(1))
    config.data.num_classes = Key(1000, Whole(0))
    # Of a policy's records: they hold chunks of so many actions of `channels` numbers each in place
    # of latents, and observations of so many numbers in place of labels; 0 for latents.
    config.data.horizon = Key(0, Whole(0))
    config.data.observation_size = Key(0, Whole(0))
    # The simulated task that demonstrations are of and policies are rolled out in, a name of
    # data_pipeline/tasks; a rehearsal makes missing records from it. "" for latents.
    config.data.task = Key("", OneOf("", "pusht_toy"))
    # The autoencoder that made the latents and decodes samples, NAME or NAME:WEIGHTS.
    config.data.autoencoder = Key("identity", Text())
    # Whether the model sees each channel of the latents with mean 0 and standard deviation 1 over
    # the records. False: latents times their autoencoder's scale.
    config.data.standardize = Key(False, Flag())
    # Those means and standard deviations of stored latents, one a channel. Empty: the manifest's,
    # which a run writes into its config when it starts.
    config.data.latent_mean = Key((), Several(Real()))
    config.data.latent_std = Key((), Several(Real(0, above=True)))
    # Threads that read batches ahead, and how many batches they keep ready.
    config.data.num_threads = Key(2, Whole(1))
    config.data.prefetch = Key(8, Whole(1))
    # Damaged records that each process may do without, a neighbour standing in; one more stops it.
    config.data.max_corrupt = Key(0, Whole(0))

    config.model = ConfigDict()
    # dit or in_context for latents, policy for actions; the objectives get and koopman bring
    # networks of their own. in_context is iMF's: conditions are tokens beside the patches, blocks
    # have RMS norms, gated MLPs (mlp_ratio 8/3 costs what 4 does), rotary positions, normed queries
    # and keys.
    config.model.network = Key(
        "dit", OneOf("dit", "in_context", "policy", "equilibrium", "koopman")
    )
    # A multiple of num_heads and of 4; blocks; heads; the side of a patch, which divides the
    # latent's; the width of the MLP over `width`. DIT_SIZES has the usual ones.
    config.model.width = Key(DIT_SIZES["B"]["width"], Whole(4))
    config.model.depth = Key(DIT_SIZES["B"]["depth"], Whole(1))
    config.model.num_heads = Key(DIT_SIZES["B"]["num_heads"], Whole(1))
    config.model.patch_size = Key(2, Whole(1))
    config.model.mlp_ratio = Key(4.0, Real(0, above=True))
    # True: the official network's numerics (unscaled t and level in the embeddings, attention
    # logits over head_dim, Xavier modulation). False: t x 1000, level x 100, 1/sqrt(head_dim),
    # adaLN-Zero.
    config.model.faithful = Key(False, Flag())
    # Compute dtype, bfloat16 or float32; parameters are float32 always.
    config.model.dtype = Key("bfloat16", OneOf("bfloat16", "float32"))
    # Compute dtype of the pass that takes derivatives in x and the times, which the targets of
    # MeanFlow, iMF, alpha-Flow and HOMO hold: bfloat16 has them 0.9 % off.
    config.model.tangent_dtype = Key("float32", OneOf("float32", "bfloat16"))
    # What the backward pass recomputes: none, dots (what lies between matrix products, and the
    # weights of attention) or full. On an accelerator dots is faster than none, too: what it keeps
    # is a third, and memory is slower than products.
    config.model.remat = Key("none", OneOf("none", "dots", "full"))
    # How attention is computed: by xla; by pallas, TPU kernels (JAX's splash attention, and one of
    # our own for forward-mode derivatives) that keep no logits in memory; or auto, by pallas on a
    # TPU from 1024 tokens on, which is 512x512 pixels. Elsewhere pallas is for tests, and slow. No
    # TPU has run the kernels yet.
    config.model.attention = Key("auto", OneOf("auto", "xla", "pallas"))
    # Layers that each turn of the scan over layers computes; -1 goes by the platform: 1 on a TPU,
    # and on a CPU, whose compiler fuses layers that are written out into each other and computes
    # much of them several times; all on a GPU, where a scan costs a quarter of the step.
    config.model.unroll = Key(-1, AXIS)
    config.model.dit = ConfigDict()
    # The last blocks that are told the time where a step ends, t + d, while the others are told t
    # (decoupled MeanFlow, 8 of 28 for XL); 0: all blocks are told t and the step size d.
    config.model.dit.decoupled_depth = Key(0, Whole(0))
    # A network that is no DiT has shapes of its own.
    config.model.in_context = ConfigDict()
    # For objectives with two outputs: the last blocks that each of them has to itself, of `depth`.
    config.model.in_context.aux_head_depth = Key(8, Whole(0))
    # Rotary positions along the whole sequence, or of the patches by row and column.
    config.model.in_context.rotary = Key("sequence", OneOf("sequence", "patches"))
    config.model.equilibrium = ConfigDict()
    # Blocks that work on the noise once (they stand in for `depth`), blocks that are iterated, with
    # the same weights in each iteration, the width of their MLP over `width`, and how often.
    config.model.equilibrium.injection_depth = Key(6, Whole(1))
    config.model.equilibrium.equilibrium_depth = Key(3, Whole(1))
    config.model.equilibrium.equilibrium_mlp_ratio = Key(8.0, Real(0, above=True))
    config.model.equilibrium.iterations = Key(6, Whole(1))
    config.model.koopman = ConfigDict()
    # Numbers that a patch is encoded into; the operator is a matrix over those of all patches.
    # `depth` counts for each of the two encoders and the decoder.
    config.model.koopman.code_channels = Key(8, Whole(1))

    config.objective = ConfigDict()
    # Which of the objectives below trains; each has its own keys, explained in its file.
    config.objective.name = Key("shortcut", OneOf(*hyperparameters.OBJECTIVES))
    # Whose published recipe of optimizer, averages, numerics and guidance lies below the config's
    # own choices, configs/recipes.py; by default its own. Empty: this config takes none.
    config.objective.recipe = Key("", OneOf("", *hyperparameters.OBJECTIVES))
    config.objective.update(hyperparameters.keys())

    config.teacher = ConfigDict()
    # The run whose weights an objective with a teacher starts from and distills.
    config.teacher.workdir = Key("", Text())
    # Its checkpoint, -1 for the newest, and which average of its weights.
    config.teacher.step = Key(-1, Whole(-1))
    config.teacher.ema = Key("evaluation", Text())

    config.init_from = ConfigDict()
    # What a new run starts from, also `train --init_from`: the workdir of a run, of whatever
    # objective, image size or number of classes, or a .safetensors file of `convert`. A run that
    # resumes keeps what it has started from. Its checkpoint, -1 for the newest, and which average
    # of its weights, "" for the trained ones; a file has one of each.
    config.init_from.path = Key("", Text())
    config.init_from.step = Key(-1, Whole(-1))
    config.init_from.ema = Key("evaluation", Text())

    config.optimizer = ConfigDict()
    # adamw, which is Adam where weight_decay is 0; muon, which orthogonalises the updates of the
    # blocks' matrices and leaves all other parameters to adamw; or adafactor, whose second moments
    # are two vectors a matrix, next to no memory. The rate means about the same for all.
    config.optimizer.name = Key("adamw", OneOf("adamw", "muon", "adafactor"))
    # The rate warms up linearly, then stays constant, or decays to zero: constant, cosine, linear.
    config.optimizer.learning_rate = Key(1e-4, Real(0, above=True))
    config.optimizer.schedule = Key("constant", OneOf("constant", "cosine", "linear"))
    config.optimizer.warmup_steps = Key(0, Whole(0))
    # Decays of Adam's moments; adafactor keeps no first moment where b1 is 0.
    config.optimizer.b1 = Key(0.9, DECAY)
    config.optimizer.b2 = Key(0.999, DECAY)
    # Of muon's matrices.
    config.optimizer.momentum = Key(0.95, DECAY)
    # float32 or bfloat16, in which the first moments are kept: half their memory.
    config.optimizer.mu_dtype = Key("float32", OneOf("float32", "bfloat16"))
    # Gradients whose norm over all parameters is larger are scaled down to it; 0 for never.
    config.optimizer.clip_norm = Key(0.0, Real(0))
    # Decoupled, on all parameters.
    config.optimizer.weight_decay = Key(0.1, Real(0))

    # Decay of each average of the weights, by name. Evaluation and sampling use "evaluation";
    # objectives name theirs.
    config.emas = Key({"evaluation": 0.999, "target": 0.999}, Named(DECAY))

    config.power_emas = ConfigDict()
    # Widths of power-function averages, whose length grows with the training (EDM2): the standard
    # deviation of their weights over the training so far. With two, such as 0.05 and 0.1, `--ema`
    # of other commands makes those of other widths afterwards, such as power:0.07.
    config.power_emas.widths = Key((), Several(Real(0, 0.28, above=True)))
    # For that they are saved so many times over the training, each as large as the weights.
    config.power_emas.snapshots = Key(16, Whole(1))

    config.mesh = ConfigDict()
    # Devices along each axis; -1 chooses, and of fsdp as many as can be. Rows of a batch are split
    # over data x fsdp in whole strides, weights over fsdp x tensor. Where a batch has fewer strides
    # than there are devices, those along `stride` share one: each trains its part of the rows, all
    # compute the targets. Where that is not enough, the rest go to tensor.
    config.mesh.data = Key(-1, AXIS)
    config.mesh.fsdp = Key(1, AXIS)
    config.mesh.stride = Key(-1, AXIS)
    config.mesh.tensor = Key(-1, AXIS)
    # When weights are gathered over fsdp: in each pass by "layer", for the least memory, or once a
    # "step" and for all passes, which moves less. A TPU lays stacks that were gathered whole out so
    # that taking a layer from them costs more than the gathers saved.
    config.mesh.gather = Key("layer", OneOf("layer", "step"))

    config.train = ConfigDict()
    config.train.num_steps = Key(400_000, Whole(1))
    # Parts in which a batch is taken through the network, so that only one part's activations are
    # in memory: the same rows, draws and gradients, for one forward pass more. Each device's rows
    # must be a multiple of it.
    config.train.accumulate = Key(1, Whole(1))
    # Steps between lines on the console and points in TensorBoard.
    config.train.log_every_steps = Key(100, Whole(1))
    # Updates with a loss or gradient that is not finite are left out and counted; more than this
    # many in a row stop the run.
    config.train.max_skipped = Key(10, Whole(0))
    # A process that does not finish a step or a batch of an evaluation in so many seconds, or the
    # compilation of a program in four times as many, writes its stacks and ends, to be started
    # again; 0 for never.
    config.train.hang_seconds = Key(1800, Real(0))
    # Folder, local or gs://, where compiled programs are kept, so that a restart need not compile
    # them again; "" for none. All hosts read it and the first one writes, so a pod shares one.
    # `preflight` with the same key writes the step into it; docs/runs.md says what that is worth.
    config.train.compile_cache = Key("", Text())
    # Project of Weights & Biases that gets curves and sheets as well (extra `wandb`); "" for none.
    # With WANDB_MODE=offline they stay in WORKDIR/wandb until `wandb sync`.
    config.train.wandb = Key("", Text())

    config.checkpoint = ConfigDict()
    # Steps between saves, which go on beside training; the last step is saved too. 0 for never.
    config.checkpoint.every_steps = Key(5_000, Whole(0))
    # The newest ones to keep.
    config.checkpoint.keep = Key(3, Whole(1))

    config.evaluation = ConfigDict()
    # Steps between evaluations while training; 0 for never.
    config.evaluation.every_steps = Key(50_000, Whole(0))
    # Steps between sheets of samples without distances, which are drawn with each evaluation; 0 for
    # never.
    config.evaluation.sheet_every_steps = Key(0, Whole(0))
    # Step counts to sample at.
    config.evaluation.steps = Key((1, 4, 128), Several(Whole(1), least=1))
    config.evaluation.num_samples = Key(50_000, Whole(2))
    # Samples a program run, over all devices.
    config.evaluation.batch_size = Key(256, Whole(1))
    # What is measured, and how: adm, official or jax-fid (FID by Inception), fd_efficientnet, or
    # fd_pixel, the Frechet distance of decoded pixels; `shortcut_tpu/evaluation/protocols.py`.
    config.evaluation.protocol = Key("fd_pixel", OneOf(*hyperparameters.PROTOCOLS))
    # Its network's weights, NAME:FILE, such as inception:FILE; empty where a package carries them.
    config.evaluation.features = Key("", Text())
    # Statistics of real images, an npz; empty for the run's own records, decoded.
    config.evaluation.reference = Key("", Text())
    # Classes of samples: balanced, random, or data, as often as the records have them; empty for
    # the protocol's.
    config.evaluation.class_balance = Key("", OneOf("", "balanced", "random", "data"))
    # Classifier-free guidance while sampling: a strength for all step counts, such as 1.5, or for
    # some, such as 128:1.5 or 2,128:1.5 for 1.5 at 128 steps and 2 at all others; 1 for none. A
    # text, in a file too.
    config.evaluation.guidance = Key("1", Either(GUIDANCE, Real(0)))
    # The times in which samples are guided, start and end; 0 is noise and 1 is data.
    config.evaluation.guidance_interval = Key((0.0, 1.0), Several(Real(0, 1), 2, 2))

    config.comparison = ConfigDict()
    # `compare` trains each method for so many steps, its teacher's included; 0 for train.num_steps.
    config.comparison.num_steps = Key(0, Whole(0))
    # Pairs that a teacher makes for the methods that train on them, and its steps for one.
    config.comparison.num_pairs = Key(50_000, Whole(1))
    config.comparison.pair_steps = Key(128, Whole(1))
    # The optimizer's peak rate for methods that do not learn at the config's: the name under which
    # a method's hyperparameters stand, and the rate.
    config.comparison.learning_rates = Key({}, Named(Real(0, above=True)))
    return config
