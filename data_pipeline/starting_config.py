"""Writes a config to start from, for records that were just encoded, on the machine at hand.

The network is small enough to be trained here: its size follows from the latents', the number of
steps from a budget of time, and the time of a step from its matrix products and from how fast this
machine multiplies matrices of that size. Nothing is trained for that; `shortcut_tpu.train` says
after its first steps what they really take.

Usage:
    plan = plan_for(manifest)
    write(Path("photos.py"), plan, manifest, output="data/photos", autoencoder="identity")
"""

import dataclasses
import math
import os
from pathlib import Path
import textwrap
import time

from data_pipeline.atomic_files import write_output
from data_pipeline.manifest import Manifest

# Seconds of training: on processors what a coffee takes, on accelerators a working day.
_CPU_BUDGET, _BUDGET = 360.0, 8 * 3600.0
_FEWEST_STEPS, _MOST_STEPS = 400, 400_000
# Passes through the network in a step, in forward ones: three of all rows for the gradient, two of
# the half of them that are targets of shortcut's larger steps.
_PASSES = 4.0
# How much longer a step takes than its products alone: on two cores 4.7 to 6.5 times (28x28, 49
# tokens, 128 wide); what it is on accelerators is assumed.
_CPU_OVERHEAD, _OVERHEAD = 5.0, 3.0
# On two cores a step of 49 tokens takes a second.
_CPU_TOKENS, _TOKENS = 16, 256
_MEASURED_SECONDS = 1.0
# Pixel vectors of more numbers have covariances of gigabytes.
_MOST_PIXELS = 32 * 32 * 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network and its training.

    Attributes:
        patch_size, width, depth, num_heads: of a DiT.
        batch_size: rows a step.
        num_steps: training steps.
        step_seconds: what a step is expected to take.
        machine: what it was estimated for.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    batch_size: int
    num_steps: int
    step_seconds: float
    machine: str

    @property
    def seconds(self) -> float:
        """What the training is expected to take, without compiling and evaluations."""
        return self.num_steps * self.step_seconds


def plan_for(manifest: Manifest) -> Plan:
    """A network and a number of steps for square latents on this machine's devices."""
    import jax

    device = jax.local_devices()[0]
    side, _, channels = manifest.latent_shape
    is_pixels = manifest.autoencoder["name"] == "identity"
    if device.platform == "cpu":
        patch = _patch(side, smallest=4 if is_pixels else 2, most_tokens=_CPU_TOKENS)
        width, depth, heads, batch, budget = 128, 4, 4, 64, _CPU_BUDGET
        machine, overhead = f"{os.cpu_count()} processor cores", _CPU_OVERHEAD
    else:
        patch = _patch(side, smallest=2, most_tokens=_TOKENS)
        width, depth, heads, batch, budget = 384, 12, 6, 256, _BUDGET
        machine, overhead = f"{jax.device_count()} {device.device_kind}", _OVERHEAD
    tokens = (side // patch) ** 2
    speed = _products_per_second(batch * tokens, width) * jax.device_count()
    flops = batch * _PASSES * forward_flops(tokens, width, depth, patch**2 * channels)
    seconds = overhead * flops / speed
    steps = _round(min(max(budget / seconds, _FEWEST_STEPS), _MOST_STEPS))
    return Plan(patch, width, depth, heads, batch, steps, seconds, machine)


def _patch(side: int, smallest: int, most_tokens: int) -> int:
    """The smallest side of a patch that divides the latent's and leaves few enough tokens."""
    sides = [p for p in range(1, side + 1) if side % p == 0]
    enough = [p for p in sides if p >= smallest and (side // p) ** 2 <= most_tokens]
    return min(enough, default=side)


def forward_flops(tokens: int, width: int, depth: int, patch_values: int) -> float:
    """Operations in a DiT's products for one image, two for each weight and token, and attention.

    A block has 4 W^2 weights in attention, 8 W^2 in its MLP, and 6 W^2 that modulate it once an
    image (Peebles and Xie, arXiv 2212.09748, section 3.2); t and the step size are embedded by
    256 W + W^2 weights each.
    """
    block = tokens * (24 * width**2 + 4 * tokens * width) + 12 * width**2
    conditions = 2 * (2 * 256 * width + 2 * width**2) + 4 * width**2
    return depth * block + conditions + 4 * tokens * patch_values * width


def _products_per_second(rows: int, width: int) -> float:
    """Operations a second of a product as large as those of an MLP, on one device.

    As many as there is time for count, so that whatever else the machine does counts, too.
    """
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    left, right = jnp.ones((rows, width), dtype), jnp.ones((width, 4 * width), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(left, right).block_until_ready()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _MEASURED_SECONDS:
        product(left, right).block_until_ready()
        count += 1
    return count * 2 * rows * width * 4 * width / (time.perf_counter() - started)


def _round(steps: float) -> int:
    """To two digits, so that it reads as the estimate it is."""
    unit = 10 ** max(math.floor(math.log10(steps)) - 1, 0)
    return round(steps / unit) * unit


def write(path: Path, plan: Plan, manifest: Manifest, output: str, autoencoder: str) -> None:
    """Writes the config.

    Args:
        path: the file, which `--config` then names.
        plan: the network and its training.
        manifest: of the records.
        output: their folder.
        autoencoder: that made them, NAME or NAME:WEIGHTS.

    Raises:
        UserError: it cannot be written.
    """
    write_output(path, text(plan, manifest, output, autoencoder).encode())


def text(plan: Plan, manifest: Manifest, output: str, autoencoder: str) -> str:
    """The config as Python."""
    side, _, channels = manifest.latent_shape
    image = manifest.autoencoder["image_shape"]
    half = plan.num_steps // 2
    about = textwrap.fill(
        f"{manifest.num_records} pictures of {image[0]}x{image[1]} in {manifest.num_classes} "
        f"class(es). {plan.num_steps} steps are about {plan.seconds / 60:.0f} minutes on "
        f"{plan.machine}, {plan.step_seconds * 1e3:.0f} ms a step: estimated from the speed of a "
        "matrix product, not measured. More steps and a wider network are what it lacks first.",
        width=96,
    )
    lines = [
        "config.batch_size = " + repr(plan.batch_size),
        f"config.data.update(path={output!r}, autoencoder={autoencoder!r})",
        f"config.data.update(image_size={side}, channels={channels},"
        f" num_classes={manifest.num_classes})",
        f"config.model.update(patch_size={plan.patch_size}, width={plan.width},"
        f" depth={plan.depth}, num_heads={plan.num_heads})",
        *(["config.model.dtype = 'float32'"] if "processor" in plan.machine else []),
        "common.leave_out_guidance(config)",
        "config.objective.shortcut.bootstrap_share = 0.5",
        # Other latents reach further than those of the SD VAE that the bound is for.
        *(["config.objective.shortcut.clip = 10.0"] if autoencoder != "identity" else []),
        "config.emas.update(target=0.95, evaluation=0.995)",
        "config.optimizer.update(learning_rate=2e-3, schedule='cosine', weight_decay=0.01)",
        f"config.optimizer.warmup_steps = {plan.num_steps // 10}",
        f"config.train.num_steps = {plan.num_steps}",
        f"config.train.log_every_steps = {max(plan.num_steps // 20, 1)}",
        f"config.checkpoint.every_steps = {half}",
        *_evaluation(half, math.prod(image), min(manifest.num_records, 1000)),
        "return config",
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return (
        f'"""Written by data_pipeline.encode_latents.\n\n{about}\n"""\n\n'
        "from configs import common\n\n\n"
        f"def get_config():\n    config = common.get_config()\n{body}\n"
    )


def _evaluation(every: int, pixels: int, samples: int) -> list[str]:
    if pixels > _MOST_PIXELS:
        # Their distances need a network's weights, which are not everyone's.
        return [
            f"config.evaluation.update(every_steps=0, sheet_every_steps={max(every // 4, 1)})",
            "config.evaluation.update(steps=(1, 4), batch_size=100)",
        ]
    return [
        f"config.evaluation.update(every_steps={every}, sheet_every_steps={max(every // 4, 1)})",
        "config.evaluation.protocol = 'fd_pixel'",
        f"config.evaluation.update(steps=(1, 4), num_samples={max(samples, 2)}, batch_size=100)",
    ]
