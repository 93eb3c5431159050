"""Tries every part of a long run once before its first step, so that it fails early.

Three steps, a save, a restore and a batch of every evaluation, at full size and with the programs
of the run, which are not compiled again. Nothing remains: the run's state comes from the seed, and
the folder WORKDIR/rehearsal is deleted.

Usage:
  with the workdir claimed, and before there is a state:
    rehearse(experiment, evaluation, records, workdir, alive=watchdog.alive)
"""

from collections.abc import Callable, Iterator
import contextlib

from etils import epath
import jax
from jax.experimental import multihost_utils

from data_pipeline.errors import UserError
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.periodic import PeriodicEvaluation
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.starting import initial_state
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import global_batches
from shortcut_tpu.training.train_state import TrainState

_STEPS = 3
_FOLDER = "rehearsal"


def by_default() -> bool:
    """Whether a run here is one that is paid for: on several hosts with TPUs."""
    return jax.process_count() > 1 and jax.default_backend() == "tpu"


def rehearse(
    experiment: Experiment,
    evaluation: PeriodicEvaluation,
    records: epath.PathLike,
    workdir: epath.Path,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Tries every part of the run once, on all hosts.

    Args:
      experiment: that of the run.
      evaluation: that of the run; it keeps what it compiles and reads.
      records: the local folder of records.
      workdir: that of the run; it has a folder `rehearsal` meanwhile.
      alive: called after each part.

    Raises:
      UserError: a part does not work here; the message names it. Other errors, such as a lost
        host, are named and raised.
    """
    folder = workdir / _FOLDER
    _remove(folder)
    try:
        with _act("the first state"):
            state = initial_state(experiment)
        alive()
        with _act(f"the first {_STEPS} steps"):
            state = _steps(experiment, state, records)
        alive()
        state = _save_and_restore(experiment, state, folder)
        alive()
        planned = experiment.config.evaluation
        if planned.every_steps or planned.sheet_every_steps:
            for n in evaluation.step_counts:
                with _act(f"an evaluation at {n} step{'s' if n > 1 else ''}"):
                    evaluation.first_batch(state.emas["evaluation"], n)
                alive()
    finally:
        _remove(folder)
    say("rehearsed: every part of the run works here")


def _steps(experiment: Experiment, state: TrainState, records: epath.PathLike) -> TrainState:
    config = experiment.config
    num_steps = min(_STEPS, config.train.num_steps)
    with global_batches(
        config, records, experiment.mesh, start_step=0, num_steps=num_steps
    ) as batches:
        for batch in batches:
            state, metrics = experiment.train_step(state, batch, experiment.judges)
            jax.block_until_ready(experiment.summarize(metrics))
    return state


def _save_and_restore(experiment: Experiment, state: TrainState, folder: epath.Path) -> TrainState:
    """What comes back; `state` is gone."""
    with Checkpoints(folder / "checkpoints", keep=1, config=experiment.config) as checkpoints:
        with _act("a save"):
            checkpoints.save(_STEPS, state)
            checkpoints.wait()
            if checkpoints.failures:
                raise UserError("the checkpoint could not be written; the line above says why")
        with _act("a restore"):
            if checkpoints.newest() != _STEPS:
                raise UserError(f"{folder}: the checkpoint that was written is not there")
            # The first one goes with its memory: no run has two.
            for leaf in jax.tree.leaves(state):
                leaf.delete()
            restored: TrainState = checkpoints.restore(experiment.abstract_state, _STEPS)
    return restored


@contextlib.contextmanager
def _act(name: str) -> Iterator[None]:
    """Names what fails in it."""
    try:
        yield
    except Exception as error:
        line = str(error).partition("\n")[0] or type(error).__name__
        said = f"the rehearsal failed at {name}: {line}"
        if isinstance(error, UserError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(said) from error
        say(said)
        raise


def _remove(folder: epath.Path) -> None:
    """Removes what a rehearsal has written, this one or one that was killed."""
    if jax.process_index() == 0 and folder.exists():
        folder.rmtree()
    multihost_utils.sync_global_devices("rehearsal")
