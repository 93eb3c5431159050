"""Exports the sampler by `jax.export`: a folder that needs only jax and numpy.

  FOLDER/sampler_N.jax    the program of N steps, for cpu, cuda and tpu, any number of samples
  FOLDER/weights.npz      its weights
  FOLDER/card.json        the config, and how to call it

Usage, where this package is not:
  weights = dict(np.load("FOLDER/weights.npz"))
  sampler = jax.export.deserialize(open("FOLDER/sampler_1.jax", "rb").read())
  images = sampler.call(weights, np.uint32(seed), np.arange(8, dtype=np.uint32), labels)
"""

from collections.abc import Sequence
import functools
import io
from typing import Any

from etils import epath
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from data_pipeline.atomic_files import write_json, write_output
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.generator import Generator
from shortcut_tpu.runs.loading import Run
from shortcut_tpu.runs.tensors import card, named, nested
from shortcut_tpu.sampling.guidance import Guidance

PLATFORMS = ("cpu", "cuda", "tpu")
_SEPARATOR = "/"
_CALL = (
    "call(weights by name, seed uint32, indices [B] uint32, labels [B] int32) -> images "
    "[B, H, W, C] float32 in [-1, 1]"
)


def export_sampler(run: Run, num_steps: int) -> bytes:
    """The program of so many steps, serialized.

    Sample i is the function of (seed, i) that `sample` draws.
    """
    weights = named(run.params, _SEPARATOR)
    guidance = Guidance.of(run.experiment.config.evaluation)

    def sampler(
        weights: dict[str, jax.Array], seed: jax.Array, indices: jax.Array, labels: jax.Array
    ) -> jax.Array:
        generator = Generator(run.experiment, run.autoencoder, guidance=guidance, seed=seed)
        x1 = generator.latents(nested(weights, _SEPARATOR), indices, labels, num_steps)
        return jnp.asarray(run.autoencoder.decode(run.experiment.scaling.stored(x1)))

    (batch,) = jax.export.symbolic_shape("batch")
    shape = functools.partial(jax.ShapeDtypeStruct)
    arguments: tuple[Any, ...] = (
        {name: shape(array.shape, array.dtype) for name, array in weights.items()},
        shape((), jnp.uint32),
        shape((batch,), jnp.uint32),
        shape((batch,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(sampler), platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def write_artifact(folder: epath.Path, run: Run, ema: str, steps: Sequence[int]) -> None:
    """Writes the folder.

    Raises:
      UserError: it holds something else, or a file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; give another --output")
    content = io.BytesIO()
    np.savez(content, **named(run.params, _SEPARATOR))  # type: ignore[arg-type]
    write_output(folder / "weights.npz", content.getvalue())
    for num_steps in steps:
        write_output(folder / f"sampler_{num_steps}.jax", export_sampler(run, num_steps))
    more = {"call": _CALL, "jax": jax.__version__, "platforms": PLATFORMS, "steps": list(steps)}
    write_json(folder / "card.json", card(run, ema) | more)
