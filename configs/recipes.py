"""The published training recipe of each method.

A config whose file starts from `recipes.get_config()`, in place of `common.get_config()`, takes the
recipe of the method that it is started with: `--config=imagenet256_b
--config.objective.name=meanflow` is MeanFlow's B/2 as published. The recipe lies between the
defaults of common.py and what the file says, and the command line above both: a key that somebody
has set stays set. `--config.objective.recipe=METHOD` takes another method's in its place.

Recipes are for class-conditional ImageNet 256x256 in latents. `compare` takes from them all but the
batch and the number of steps, which are the same for all methods.

Usage, in a config file:
  from configs import recipes

  def get_config():
      config = recipes.get_config()
      config.data.path = "data/imagenet256"
      return config
"""

from collections.abc import Iterator
import contextlib
import contextvars
from typing import Any

from ml_collections import ConfigDict

from configs import common

Recipe = dict[str, Any]

# Shortcut models (arXiv 2410.12557, Table 3) and the baselines of its Table 1, in one codebase. One
# average serves targets and evaluation. Samples of 128 steps are guided and others are not, as by
# the official evaluation: with fewer steps Shortcut has guidance in its targets, and rows that are
# told a larger step never lose their label.
_SHORTCUT: Recipe = {
    "batch_size": 256,
    "train.num_steps": 800_000,
    "model.faithful": True,
    "model.dtype": "bfloat16",
    "optimizer.learning_rate": 1e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.1,
    "emas": {"evaluation": 0.999},
    "evaluation.guidance": "128:1.5",
}
# Their students never see the null label, so their samples cannot be guided.
_UNGUIDED: Recipe = _SHORTCUT | {"evaluation.guidance": "1"}

# MeanFlow (arXiv 2505.13447, Table 4; official code): 240 epochs of whole batches. Guidance is in
# the target, 0.2 / (1 - 0.92) = 2.5.
_MEANFLOW: Recipe = {
    "batch_size": 256,
    "train.num_steps": 240 * (1_281_167 // 256),
    "model.faithful": False,
    "model.dtype": "float32",
    "optimizer.learning_rate": 1e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 0.0,
    "emas": {"evaluation": 0.9999},
    "evaluation.guidance": "1",
}

# Distillation from pairs that a teacher makes in 128 steps, which its recipe guides.
_PAIR_STEPS: Recipe = {"comparison.pair_steps": 128}
# The networks of these are their own.
_PAIRS: Recipe = _PAIR_STEPS | {
    "batch_size": 128,
    "model.dtype": "float32",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.0,
    "emas": {"evaluation": 0.9999},
    "evaluation.guidance": "1",
}

RECIPES: dict[str, Recipe] = {
    "shortcut": _SHORTCUT
    | {
        "objective.shortcut.bootstrap_share": 0.25,
        "objective.shortcut.guidance": 1.5,
        "objective.shortcut.label_dropout": 0.1,
        "objective.shortcut.target_ema": "evaluation",
    },
    "flow_matching": _SHORTCUT | {"objective.flow_matching.label_dropout": 0.1},
    "diffusion": _SHORTCUT | {"objective.diffusion.label_dropout": 0.1},
    "consistency_training": _UNGUIDED | {"objective.consistency_training.target_ema": "evaluation"},
    "live_reflow": _SHORTCUT
    | {"objective.live_reflow.guidance": 1.5, "objective.live_reflow.label_dropout": 0.1},
    "progressive_distillation": _UNGUIDED
    | {
        "objective.progressive_distillation.guidance": 1.5,
        "objective.progressive_distillation.target_ema": "evaluation",
    },
    "consistency_distillation": _UNGUIDED
    | {"objective.consistency_distillation.target_ema": "evaluation"},
    "reflow": _SHORTCUT | _PAIR_STEPS | {"objective.reflow.label_dropout": 0.1},
    # arXiv 2401.08639 and its official code.
    "get": _PAIRS | {"optimizer.learning_rate": 1e-4, "objective.equilibrium.iterate_decay": 0.8},
    # arXiv 2505.13358 and its official code.
    "koopman": _PAIRS
    | {
        "optimizer.learning_rate": 3e-4,
        "objective.koopman.latent_noise": 0.4,
        "objective.koopman.dropout": 0.1,
    },
    "meanflow": _MEANFLOW
    | {
        "objective.meanflow.interval_share": 0.25,
        "objective.meanflow.time_mean": -0.4,
        "objective.meanflow.time_std": 1.0,
        "objective.meanflow.guidance": 0.2,
        "objective.meanflow.guidance_mix": 0.92,
        "objective.meanflow.label_dropout": 0.1,
        "objective.meanflow.weight_power": 1.0,
    },
    # arXiv 2512.02012 and its official code's training: 640 epochs of 1024 rows, 10 of them to warm
    # up; strength and times of samples are those of its released B/2.
    "improved_meanflow": _MEANFLOW
    | {
        "batch_size": 1024,
        "train.num_steps": 640 * (1_281_167 // 1024),
        "optimizer.warmup_steps": 10 * (1_281_167 // 1024),
        "data.standardize": True,
        "objective.improved_meanflow.interval_share": 0.5,
        "objective.improved_meanflow.time_mean": -0.4,
        "objective.improved_meanflow.time_std": 1.0,
        "objective.improved_meanflow.max_guidance": 8.0,
        "objective.improved_meanflow.sample_guidance": 8.0,
        "objective.improved_meanflow.sample_interval": (0.35, 0.6),
        "objective.improved_meanflow.label_dropout": 0.1,
        "objective.improved_meanflow.weight_power": 1.0,
    },
    # arXiv 2510.20771 and its official code's guided B/2: as MeanFlow, its gradients clipped.
    "alpha_flow": _MEANFLOW
    | {
        "optimizer.clip_norm": 16.0,
        "objective.alpha_flow.interval_share": 0.75,
        "objective.alpha_flow.guidance": 1.0,
        "objective.alpha_flow.guidance_mix": 0.5,
        "objective.alpha_flow.label_dropout": 0.1,
    },
    # arXiv 2507.16884; no recipe of its own is known here: MeanFlow's.
    "split_meanflow": _MEANFLOW
    | {
        "objective.split_meanflow.guidance": 0.2,
        "objective.split_meanflow.guidance_mix": 0.92,
        "objective.split_meanflow.label_dropout": 0.1,
    },
    # iSM: averages and strengths are its paper's, the rest is Shortcut's, from which it starts.
    "improved_shortcut": _UNGUIDED
    | {
        "model.faithful": False,
        "emas": {"evaluation": 0.9999, "target": 0.95},
        "objective.improved_shortcut.target_ema": "target",
        "objective.improved_shortcut.max_guidance": 4.5,
        "objective.improved_shortcut.guidance_interval": (0.3, 1.0),
        "objective.improved_shortcut.label_dropout": 0.1,
    },
    # arXiv 2604.28190 and its official code's iMF: 100 epochs of 1250 steps, 5 of them to warm up.
    "fd_loss": {
        "batch_size": 1024,
        "train.num_steps": 125_000,
        "model.faithful": False,
        "model.dtype": "float32",
        "data.standardize": True,
        "optimizer.learning_rate": 1e-6,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 6_250,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.0,
        "emas": {"evaluation": 0.999},
        "objective.fd_loss.generator": "improved_meanflow",
        "objective.fd_loss.protocols": ("adm",),
        "objective.fd_loss.decay": 0.999,
        "objective.fd_loss.epsilon": 0.01,
        "evaluation.guidance": "1",
    },
    # arXiv 2507.03738 and its official code; its network is LightningDiT on VA-VAE's latents.
    "flow_anchored": {
        "batch_size": 1024,
        "train.num_steps": 400 * (1_281_167 // 1024),
        "model.faithful": False,
        "model.dtype": "bfloat16",
        "optimizer.learning_rate": 1e-4,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.999,
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 1.0,
        "power_emas.widths": (0.2,),
        "evaluation.guidance": "1",
        "objective.flow_anchored.guidance": 1.75,
    },
    # HOMO has no recipe for images: Shortcut's.
    "high_order": _SHORTCUT | {"objective.high_order.target_ema": "evaluation"},
}

_chosen = contextvars.ContextVar("method whose recipe is taken", default="shortcut")


@contextlib.contextmanager
def choosing(method: str) -> Iterator[None]:
    """Within, `get_config` takes the recipe of this method; "" is the default."""
    token = _chosen.set(method or "shortcut")
    try:
        yield
    finally:
        _chosen.reset(token)


def values(method: str) -> Recipe:
    """A method's recipe by key, such as ("optimizer.b2", 0.95); nothing for an unknown one."""
    flat: Recipe = {}
    for key, value in RECIPES.get(method, {}).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": part for name, part in value.items()})
        else:
            flat[key] = value
    return flat


def get_config() -> ConfigDict:
    """The defaults, and on them the recipe of the method that the run is started with."""
    config, method = common.get_config(), _chosen.get()
    config.objective.update({"name": method, "recipe": method})
    if "emas" in RECIPES.get(method, {}):
        config.emas = ConfigDict()
    config.update_from_flattened_dict(values(method))
    return config
