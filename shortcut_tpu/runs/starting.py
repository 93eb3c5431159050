"""The state that a new run starts from: fresh, or of a teacher's or another run's weights.

Usage:
  config = with_origin(config, workdir)             # a resumed run's own, whatever is asked for now
  state = initial_state(experiment, tell=say)
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.console import say
from shortcut_tpu.models import Params
from shortcut_tpu.objectives.base import TEACHER
from shortcut_tpu.pod import partitioning
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.snapshots import require_average, restore_average
from shortcut_tpu.runs.tensors import read_tensors
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.fine_tuning import Adoption
from shortcut_tpu.training.parts import make_parts
from shortcut_tpu.training.train_state import TrainState

_FILE = ".safetensors"


def initial_state(
    experiment: Experiment, tell: Callable[..., None] = lambda *lines: None
) -> TrainState:
    """A fresh state, of the weights of a teacher or of `config.init_from` where there are such.

    Where there are both, the teacher teaches a student that starts from the other.

    Args:
      experiment: of the new run.
      tell: is given the lines on what was taken from `config.init_from`.

    Raises:
      UserError: what is named is not there or does not fit, or what is needed is not named.
    """
    if experiment.objective.needs_judges and not experiment.config.init_from.path:
        raise UserError(
            f"{experiment.objective.name} trains on from weights: --init_from=DIR of a run"
        )
    state = experiment.init_state()
    if experiment.objective.needs_teacher:
        params, _ = _adopted(experiment, _teacher(experiment), state)
        state = _all_of(state, params, but=())
    init = experiment.config.init_from
    if init.path:
        asked = Asked("init_from", init.path, init.step, init.ema)
        params, lines = _adopted(experiment, asked, state)
        state = _all_of(state, params, but=(TEACHER,))
        tell(*lines)
    return state


def with_origin(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config with the `init_from` that the run in a workdir has started with, if it has.

    What is asked for now counts for a new run alone; that something else is asked for is said.
    """
    resumes = checksums.finished(workdir / "checkpoints")
    if not resumes or not (workdir / config_lib.CONFIG_FILE).exists():
        return config
    before, asked = config_lib.restore(workdir).init_from, config.init_from
    if asked.path:
        start = f"started from {before.path}" if before.path else "did not start from weights"
        say(f"init_from={asked.path} is ignored: {workdir} resumes; it {start}")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.init_from.update(before)
    return config


def _all_of(state: TrainState, params: Params, but: tuple[str, ...]) -> TrainState:
    """The state with these weights as its own and as all averages but some; buffers are its own."""

    def start(like: Any) -> Any:
        return jax.tree.map(lambda a, b: jax.device_put(jnp.copy(a), b.sharding), params, like)

    emas = {name: ema if name in but else start(ema) for name, ema in state.emas.items()}
    return dataclasses.replace(state, params=start(state.params), emas=emas)


# -------------------------------------------------------------------- weights of other runs
class Asked(NamedTuple):
    """What the config asks for, by `init_from` or `teacher`: its name is `flag`."""

    flag: str
    path: str
    step: int
    ema: str


def _teacher(experiment: Experiment) -> Asked:
    objective, teacher = experiment.objective, experiment.config.teacher
    if not teacher.workdir:
        raise UserError(f"{objective.name} needs a teacher: --config.teacher.workdir=DIR of a run")
    return Asked("teacher.workdir", teacher.workdir, teacher.step, teacher.ema)


class Source(NamedTuple):
    """Weights on the new run's mesh, and the run that they are of."""

    config: ConfigDict
    step: int
    average: str
    params: Params


def _adopted(experiment: Experiment, asked: Asked, state: TrainState) -> tuple[Params, list[str]]:
    """Another run's weights as those of the new network, and lines on them."""
    config, named = experiment.config, f"{asked.flag}={asked.path}"
    source = read_weights(asked, experiment.mesh)
    adoption = Adoption(named, make_parts(source.config), make_parts(config))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state.params)
    # Hosts' processors need not round alike.
    embedders = multihost_utils.broadcast_one_to_all(adoption.embedders(source.params))
    adopt = jax.jit(adoption, out_shardings=shardings)
    params = adopt(source.params, state.params, embedders)
    lines = [
        f"started from {asked.path}: {source.config.objective.name}, step {source.step}, "
        f"{source.average}",
        *adoption.lines(),
    ]
    theirs, ours = ((c.data.autoencoder, c.data.standardize) for c in (source.config, config))
    if theirs != ours:
        words = [f"{name}{', standardized' * standard}" for name, standard in (theirs, ours)]
        lines.append(f"  other latents    there {words[0]}, here {words[1]}")
    return params, lines


def read_weights(asked: Asked, mesh: Mesh) -> Source:
    """Reads what is asked for; every device reads what it will hold."""
    path = epath.Path(asked.path)
    if path.suffix == _FILE:
        config, step, arrays = read_tensors(path)
        shardings = partitioning.state_shardings(mesh, arrays)

        def place(array: np.ndarray, sharding: Any) -> jax.Array:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return Source(config, step, "as exported", jax.tree.map(place, arrays, shardings))
    config = config_lib.restore(path)
    if asked.ema:
        require_average(config, asked.ema, f"{asked.flag.partition('.')[0]}.ema")
    parts = make_parts(config)
    shapes = jax.eval_shape(parts.network(parts.network_config).init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        partitioning.state_shardings(mesh, shapes),
    )
    wanted = None if asked.step < 0 else asked.step
    if asked.ema:
        step, params = restore_average(path, config, abstract, asked.ema, wanted)
        return Source(config, step, f"average {asked.ema}", params)
    with Checkpoints(path / "checkpoints") as checkpoints:
        step, part = checkpoints.restore_part({"params": abstract}, wanted)
    return Source(config, step, "trained weights", part["params"])
