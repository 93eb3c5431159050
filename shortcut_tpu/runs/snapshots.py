"""Keeps power-function averages over a training, and makes averages of any width of them.

They lie in WORKDIR/averages/snapshots/STEP, checkpoints that hold nothing else.

Usage:
  snapshots = Snapshots(workdir, config)                         # where a run trains
  if snapshots.due(step):
      snapshots.save(step, state.emas)
  snapshots.close()                                              # by all hosts together
  step, params = restore_average(workdir, config, abstract, "power:0.07")    # afterwards
"""

from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.models import Params
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.power_averages import PowerAverage, averages, combination, kept


class Snapshots:
    """Saves the power averages of a run at steps that are spread evenly over it.

    A longer training spreads its own; those that are there stay.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict):
        """Opens the folder, if the run has such averages."""
        count, steps = config.power_emas.snapshots, config.train.num_steps
        self._names = [average.name for average in kept(config)]
        self._every, self._last = max(1, steps // count), steps
        self._folder = _folder(workdir)
        self._checkpoints: Checkpoints | None = None
        if self._names:
            # A longer training has as many again.
            self._checkpoints = Checkpoints(self._folder, 2 * count + 2, config)
            # Sets aside what a kill has left of one.
            self._checkpoints.newest()

    def due(self, step: int) -> bool:
        """Whether the averages of this step are kept."""
        return bool(self._names) and (step % self._every == 0 or step == self._last)

    def save(self, step: int, emas: dict[str, Params]) -> None:
        """Starts the save of a step, unless an earlier start of the run has done it."""
        assert self._checkpoints is not None
        if step not in distributed.from_first(checksums.finished(self._folder)):
            self._checkpoints.save(step, {"emas": {name: emas[name] for name in self._names}})

    def close(self) -> None:
        """Waits for the save that was started."""
        if self._checkpoints is not None:
            self._checkpoints.close()


def _folder(workdir: epath.Path) -> epath.Path:
    return workdir / "averages" / "snapshots"


def require_average(config: ConfigDict, name: str, flag: str) -> None:
    """Refuses the name of an average that a run neither has nor can make.

    Args:
      config: of the run.
      name: such as "evaluation" or "power:0.07".
      flag: what it was given by, such as "--ema".

    Raises:
      UserError: the message names those that there are.
    """
    try:
        power = PowerAverage.parse(name)
    except UserError as error:
        raise UserError(f"{flag}={error}") from None
    have = averages(config)
    if power is not None and name not in have and not kept(config):
        raise UserError(
            f"{flag}={name}: the run has kept no power averages, as "
            "--config.power_emas.widths=0.05,0.1 lets it"
        )
    if power is None and name not in have:
        raise UserError(f"{flag}={name} is none of this run's {', '.join(sorted(have))}")


def restore_average(
    workdir: epath.Path, config: ConfigDict, abstract: Params, name: str, step: int | None = None
) -> tuple[int, Params]:
    """An average of a run's weights.

    A power average that was not kept is the best combination of those that were, from the start up
    to the checkpoint.

    Args:
      workdir: of the run.
      config: of the run.
      abstract: the weights' ShapeDtypeStructs with shardings.
      name: admitted by `require_average`.
      step: which checkpoint; the newest if None.

    Returns:
      The step and the weights.

    Raises:
      UserError: there is no such checkpoint.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        if name in averages(config):
            found, part = checkpoints.restore_part({"emas": {name: abstract}}, step)
            return found, part["emas"][name]
        have = kept(config)
        wanted = {"emas": {average.name: abstract for average in have}}
        found, part = checkpoints.restore_part(wanted, step)
    folder = _folder(workdir)
    earlier = [s for s in distributed.from_first(checksums.finished(folder)) if s < found]
    power = PowerAverage.parse(name)
    assert power is not None
    factors = iter(
        combination(
            [(average.width, s) for s in (found, *earlier) for average in have],
            (power.width, found),
        )
    )
    total = _sum(None, part, factors)
    for s in earlier:
        with Checkpoints(folder) as snapshots:
            total = _sum(total, snapshots.restore_part(wanted, s)[1], factors)
    return found, total


def _sum(total: Params | None, part: Any, factors: Any) -> Params:
    """The sum so far and the averages of a step, each times the next of the factors."""
    for average in part["emas"].values():
        factor = next(factors)
        scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, average)
        total = scaled if total is None else jax.tree.map(lambda a, b: a + b, total, scaled)
    return total
