"""Hyperparameters of every objective, with what its paper trains it with and what it may be.

They stand in a config as `config.objective.NAME.KEY`; `common.py` has all other keys.
"""

from ml_collections import ConfigDict

from configs.limits import (
    Flag,
    Key,
    OneOf,
    PowerOfTwo,
    Real,
    Several,
    Share,
    ShareOrRest,
    Text,
    Whole,
)

# Variances of a diffusion.
BETA = Real(0, 1, above=True, below=True)
# What can train.
OBJECTIVES = (
    *("flow_matching", "diffusion", "shortcut", "consistency_training", "live_reflow"),
    *("progressive_distillation", "consistency_distillation", "reflow", "get", "koopman"),
    *("meanflow", "improved_meanflow", "alpha_flow", "split_meanflow", "improved_shortcut"),
    *("high_order", "flow_anchored", "fd_loss"),
)
# What can be measured.
PROTOCOLS = ("adm", "official", "jax-fid", "fd_dinov2", "fd_efficientnet", "fd_pixel")


def keys() -> ConfigDict:
    """Hyperparameters of every objective, under its name, with its paper's values.

    The same key means the same everywhere:
      finest_steps: M, a power of two; the finest step size is 1/M.
      *_share: share of rows of a kind, strided through the batch: 1/n, and interval_share 1 - 1/n,
        too.
      guidance: w of the guidance that is in the target; 1 for none.
      guidance_interval: the times that are guided, start and end, 0 for noise and 1 for data.
      max_guidance: the network is told a guidance strength, drawn from 1 up to this; 1 for none.
      sample_guidance: the strength that samples are then conditioned on.
      sample_interval: the times in which they are conditioned to be guided, start and end.
      label_dropout: share of rows that lose their label; of the MeanFlow family, only flow rows.
      target_ema: name of the average in `emas` that makes targets; "" for the trained weights.
      clip: bound on states and targets that the model makes itself; 0 for none.
      sigma_min: noise left on the path at t = 1; 1e-5 in the official code, 0 in the papers.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)).
      weight_epsilon, weight_power: squares are divided by (themselves + epsilon)^power.
    """
    return ConfigDict(
        {
            "flow_matching": {
                "finest_steps": Key(128, PowerOfTwo()),
                "label_dropout": Key(0.1, Real(0, 1)),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "diffusion": {
                # Linear betas over so many steps.
                "diffusion_steps": Key(1000, Whole(1)),
                "beta_first": Key(1e-4, BETA),
                "beta_last": Key(0.02, BETA),
                "label_dropout": Key(0.1, Real(0, 1)),
            },
            "shortcut": {
                "finest_steps": Key(128, PowerOfTwo()),
                # Paper 1/4, official code 1/8.
                "bootstrap_share": Key(0.25, Share()),
                # Rows left over after an equal deal to the levels: "rotate" through the levels by
                # step, or all to the "coarsest" as in the official code.
                "level_remainder": Key("rotate", OneOf("rotate", "coarsest")),
                "clip": Key(4.0, Real(0)),
                # In the target of the finest bootstrap level only.
                "guidance": Key(1.0, Real(0)),
                # On flow rows only.
                "label_dropout": Key(0.1, Real(0, 1)),
                "target_ema": Key("target", Text()),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "consistency_training": {
                "finest_steps": Key(128, PowerOfTwo()),
                "target_ema": Key("target", Text()),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "live_reflow": {
                "finest_steps": Key(128, PowerOfTwo()),
                "reflow_share": Key(0.125, Share()),
                # Euler steps that make a pair of noise and sample.
                "teacher_steps": Key(8, Whole(1)),
                # While pairs are made.
                "guidance": Key(1.0, Real(0)),
                # On flow rows only.
                "label_dropout": Key(0.1, Real(0, 1)),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "progressive_distillation": {
                "finest_steps": Key(128, PowerOfTwo()),
                "clip": Key(4.0, Real(0)),
                # Of the teacher, in the first stage only.
                "guidance": Key(1.0, Real(0)),
                "target_ema": Key("target", Text(".+", "the name of an average")),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "consistency_distillation": {
                "finest_steps": Key(128, PowerOfTwo()),
                "clip": Key(4.0, Real(0)),
                "target_ema": Key("target", Text()),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "reflow": {
                "finest_steps": Key(128, PowerOfTwo()),
                "label_dropout": Key(0.1, Real(0, 1)),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            # Of the method `get`; a key of that name would hide a method of ConfigDict.
            "equilibrium": {
                # The weight of an iterate in the loss over that of the next one.
                "iterate_decay": Key(0.8, Real(0, 1, above=True)),
            },
            "koopman": {
                # Standard deviation of what is added to the codes while training.
                "latent_noise": Key(0.4, Real(0)),
                # Share of the hidden activations of each MLP that a training step leaves out.
                "dropout": Key(0.1, Real(0, 1, below=True)),
                # Of the distance of codes, the reconstruction of data, and that from noise.
                "latent_weight": Key(1.0, Real(0)),
                "reconstruction_weight": Key(1.0, Real(0)),
                "push_weight": Key(1.0, Real(0)),
            },
            "meanflow": {
                # Rows with an interval of positive length.
                "interval_share": Key(0.25, ShareOrRest()),
                "time_mean": Key(-0.4, Real()),
                "time_std": Key(1.0, Real(0, above=True)),
                "guidance": Key(1.0, Real(0)),
                # k of w v + (1-w-k) u_null + k u; the effective guidance is w / (1-k).
                "guidance_mix": Key(0.0, Real(0, 1, below=True)),
                "guidance_interval": Key((0.0, 1.0), Several(Real(0, 1), 2, 2)),
                "label_dropout": Key(0.1, Real(0, 1)),
                "weight_epsilon": Key(0.01, Real(0, above=True)),
                "weight_power": Key(1.0, Real(0)),
                # Short intervals weigh more at first, and all alike in the end.
                "short_first": Key(False, Flag()),
                # Above 0, times and intervals for the straight paths of data.pairs: times have the
                # density exp(a t) + exp(a (1 - t)), lengths are sigmoid(N(mean, std)).
                "time_exponent": Key(0.0, Real(0)),
            },
            "improved_meanflow": {
                "interval_share": Key(0.5, ShareOrRest()),
                "time_mean": Key(-0.4, Real()),
                "time_std": Key(1.0, Real(0, above=True)),
                "max_guidance": Key(8.0, Real(1)),
                # Of the interval in which a row is guided: start is uniform in [0, latest_start],
                # end in [earliest_end, 1].
                "latest_start": Key(0.5, Real(0, 1)),
                "earliest_end": Key(0.5, Real(0, 1)),
                "sample_guidance": Key(1.0, Real(1)),
                "sample_interval": Key((0.0, 1.0), Several(Real(0, 1), 2, 2)),
                # Whether the network is told t, too; for actions, in which noise does not show.
                "told_time": Key(False, Flag()),
                "label_dropout": Key(0.1, Real(0, 1)),
                "weight_epsilon": Key(0.01, Real(0, above=True)),
                "weight_power": Key(1.0, Real(0)),
            },
            "alpha_flow": {
                "interval_share": Key(0.5, ShareOrRest()),
                "time_mean": Key(-0.4, Real()),
                "time_std": Key(1.0, Real(0, above=True)),
                # Alpha falls from 1 to 0 between these shares of the training, in a sigmoid of this
                # steepness; within `clamp` of an end it is that end.
                "schedule_start": Key(0.0, Real(0, 1)),
                "schedule_end": Key(1.0, Real(0, 1)),
                "schedule_gamma": Key(25.0, Real(0, above=True)),
                "clamp": Key(0.005, Real(0, 0.5, below=True)),
                "clip": Key(4.0, Real(0)),
                "guidance": Key(1.0, Real(0)),
                "guidance_mix": Key(0.0, Real(0, 1, below=True)),
                "guidance_interval": Key((0.0, 1.0), Several(Real(0, 1), 2, 2)),
                # Of the rows at guided times.
                "label_dropout": Key(0.1, Real(0, 1)),
                "weight_epsilon": Key(1e-3, Real(0, above=True)),
                # Samples in up to so many steps come from consistency steps, others from Euler's.
                "consistency_steps": Key(2, Whole(0)),
            },
            "split_meanflow": {
                "interval_share": Key(0.5, ShareOrRest()),
                "time_mean": Key(-0.4, Real()),
                "time_std": Key(1.0, Real(0, above=True)),
                "target_ema": Key("", Text()),
                "guidance": Key(1.0, Real(0)),
                "guidance_mix": Key(0.0, Real(0, 1, below=True)),
                "guidance_interval": Key((0.0, 1.0), Several(Real(0, 1), 2, 2)),
                "label_dropout": Key(0.1, Real(0, 1)),
            },
            "improved_shortcut": {
                "finest_steps": Key(128, PowerOfTwo()),
                "bootstrap_share": Key(0.25, Share()),
                "clip": Key(4.0, Real(0)),
                "max_guidance": Key(4.5, Real(1)),
                "guidance_interval": Key((0.3, 1.0), Several(Real(0, 1), 2, 2)),
                "sample_guidance": Key(1.0, Real(1)),
                # On flow rows only.
                "label_dropout": Key(0.1, Real(0, 1)),
                "target_ema": Key("target", Text()),
                "sigma_min": Key(1e-5, Real(0, 1, below=True)),
            },
            "high_order": {
                "finest_steps": Key(128, PowerOfTwo()),
                "bootstrap_share": Key(0.25, Share()),
                # The path from noise to data, smoothstep or variance_preserving.
                "curve": Key("smoothstep", OneOf("smoothstep", "variance_preserving")),
                # What the second head learns: the acceleration of the flow, or that of the path to
                # a row's own data, which is the paper's.
                "acceleration": Key("flow", OneOf("flow", "path")),
                # Of the acceleration's error; at 1 equal relative errors of velocity and
                # acceleration count the same.
                "acceleration_weight": Key(1.0, Real(0, above=True)),
                "clip": Key(4.0, Real(0)),
                # On flow rows only.
                "label_dropout": Key(0.1, Real(0, 1)),
                "target_ema": Key("target", Text()),
            },
            # Post-training: the run starts from weights, --init_from.
            "fd_loss": {
                # The objective that those were trained by, with its own keys here: its network,
                # conditions and one-step sampler.
                "generator": Key("shortcut", OneOf(*OBJECTIVES[:-1])),
                # What is trained on, as names of evaluation.protocol; then as evaluation.features
                # and evaluation.reference of each, or none where all have "" there.
                "protocols": Key(("fd_pixel",), Several(OneOf(*PROTOCOLS), least=1)),
                "features": Key((), Several(Text())),
                "references": Key((), Several(Text())),
                # Of the generated moments' average.
                "decay": Key(0.999, Real(0, 1, below=True)),
                # A distance is divided by itself and this.
                "epsilon": Key(0.01, Real(0, above=True)),
            },
            "flow_anchored": {
                # Times are 1 - (2/pi) arctan(exp(N(-mean, std))).
                "time_mean": Key(0.8, Real()),
                "time_std": Key(1.6, Real(0, above=True)),
                # Of the teacher.
                "guidance": Key(1.0, Real(0)),
                "guidance_interval": Key((0.125, 1.0), Several(Real(0, 1), 2, 2)),
                # Of a step to the data from time t, 1 - t^relaxation of its error is corrected.
                "relaxation": Key(0.5, Real(0, above=True)),
                # Bound on that error.
                "clip": Key(1.0, Real(0)),
                "weight_epsilon": Key(1e-3, Real(0, above=True)),
                "weight_power": Key(0.5, Real(0)),
                # On all rows.
                "label_dropout": Key(0.1, Real(0, 1)),
                # Samples in up to so many steps come from consistency steps, others from Euler's.
                "consistency_steps": Key(4, Whole(0)),
            },
        }
    )
