"""The optimizer of a config and its learning-rate schedule.

Usage:
  optimizer = make_optimizer(config)      # optax: init and update
  rate = make_schedule(config)(step)
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax
from optax import contrib

from shortcut_tpu.models import Params
from shortcut_tpu.pod import partitioning

# Muon's matrices: for the first pattern found in a weight's path, the axes that are the matrix's
# inputs and outputs; all others, such as the layer's, are a stack of matrices. What is in no line,
# embeddings, biases and the first and last layer, is moved by Adam with Nesterov's momentum.
_MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    # [layer, in, q or k or v, head, head_dim]
    (r"/qkv/kernel", (1,), (3, 4)),
    # [layer, head, head_dim, out]
    (r"/attention_out/kernel", (1, 2), (3,)),
    # [layer, in, shift or scale or gate, out]
    (r"blocks/modulation/kernel", (1,), (3,)),
    (r"/(mlp_in|mlp_out|down)/kernel", (1,), (2,)),
    # [layer, in, gate or up, out]
    (r"/gate_up/kernel", (1,), (3,)),
)
# The size of Muon's updates, root of the mean square, as multiples of the rate: Adam's by
# experience, so that rate and decay mean the same for both ("Muon is Scalable for LLM Training",
# arXiv 2502.16982, equation 4).
_MUON_RMS = 0.2


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or to zero linearly or by a cosine.

    Raises:
      ValueError: `optimizer.schedule` is none of these.
    """
    optim = config.optimizer
    rate, steps = optim.learning_rate, max(config.train.num_steps - optim.warmup_steps, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
    }
    if optim.schedule not in schedules:
        raise ValueError(f"optimizer.schedule={optim.schedule!r} is none of {', '.join(schedules)}")
    warmup = optax.linear_schedule(0.0, rate, optim.warmup_steps)
    return optax.join_schedules([warmup, schedules[optim.schedule]()], [optim.warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer, with decoupled weight decay on all parameters and clipped gradients.

    Raises:
      ValueError: `optimizer.name` is none of `adamw`, `adafactor` and `muon`.
    """
    optim, schedule = config.optimizer, make_schedule(config)
    adam = {"b1": optim.b1, "b2": optim.b2}
    if optim.name == "adamw":
        moved = optax.adamw(
            schedule, **adam, weight_decay=optim.weight_decay, mu_dtype=optim.mu_dtype
        )
    elif optim.name == "adafactor":
        moved = _adafactor(optim, schedule)
    elif optim.name == "muon":
        moved = contrib.muon(
            schedule,
            beta=optim.momentum,
            weight_decay=optim.weight_decay,
            mu_dtype=optim.mu_dtype,
            adam_weight_decay=optim.weight_decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=_MUON_RMS,
            **{f"adam_{name}": value for name, value in adam.items()},
        )
    else:
        raise ValueError(f"optimizer.name={optim.name!r} is none of adamw, adafactor, muon")
    if not optim.clip_norm:
        return moved
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), moved)


def _adafactor(optim: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Second moments as an outer product of two vectors, and a first moment unless b1 is 0.

    Source: "Adafactor" (arXiv 1804.04235, algorithm 4) as "Scaling Vision Transformers" (arXiv
    2106.04560, section 3.3) trains with it: rates are not relative to the weights' size, and the
    second moments' decay 1 - t^-0.8 ends at b2. Their layers have matrices of their own; the root
    mean square of an update is kept to 1 over all layers of a stack together.
    """

    def decay(step: Any, power: Any) -> jax.Array:
        return jnp.minimum(1 - (step + 1.0) ** -power, optim.b2)

    momentum = optax.ema(optim.b1, debias=False, accumulator_dtype=optim.mu_dtype)
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=decay),
        optax.clip_by_block_rms(1.0),
        momentum if optim.b1 else optax.identity(),
        optax.add_decayed_weights(optim.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def matrices(params: Params) -> Any:
    """For each parameter the axes of the matrices that Muon orthogonalises, or None."""

    def axes(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        name = "/" + partitioning.path_name(path)
        for pattern, inputs, outputs in _MATRICES:
            if re.search(pattern, name) and leaf.ndim > max(outputs):
                return contrib.MuonDimensionNumbers(inputs, outputs)
        return None

    return jax.tree_util.tree_map_with_path(axes, params)
