"""Stops a run after too many updates in a row that are not finite.

The jitted step leaves such updates out by itself; see `train_step`.
"""

import dataclasses
import json

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipeline.atomic_files import write_text
from data_pipeline.errors import UserError
from data_pipeline.loader import record_indices
from shortcut_tpu.cli.console import say
from shortcut_tpu.objectives import Metrics
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.train_state import TrainState

_SHOWN = 8


class Diverged(UserError):
    """A run whose updates are finite no longer, which is the method's doing and not the user's."""


def look_at_first(step: int, metrics: Metrics, max_skipped: int) -> None:
    """Says at once where the first step of a start was not finite; later ones are said when logged.

    Args:
      step: the step just made.
      metrics: its, unreduced.
      max_skipped: how many of them in a row are borne.
    """
    if metrics["skipped_in_row"] > 0:
        say(
            f"step {step}: loss {float(metrics['loss']):g}, gradient norm "
            f"{float(metrics['grad_norm']):g}: not finite, so this update is left out; more than "
            f"train.max_skipped={max_skipped} in a row stop the run"
        )


def stop(
    step: int,
    state: TrainState,
    config: ConfigDict,
    num_records: int,
    workdir: epath.Path,
    checkpoints: Checkpoints,
) -> None:
    """Saves the state before the first of the skipped updates and names their records.

    Args:
      step: the step just made.
      state: the state after it; skipped updates changed nothing in it but the counts.
      num_records: records of the data set.

    Raises:
      Diverged: always.
    """
    in_row = int(state.skipped_in_row)
    before = step - in_row
    made, skipped = (jnp.int32(count) for count in (before, int(state.skipped) - in_row))
    counts = {"step": made, "skipped": skipped, "skipped_in_row": jnp.int32(0)}
    # From the host's values to arrays that all processes share.
    shared = jax.jit(lambda: counts, out_shardings=state.step.sharding)()
    checkpoints.save(before, dataclasses.replace(state, **shared))
    checkpoints.wait()

    blamed = range(before + 1, before + 1 + min(in_row, config.train.max_skipped + 1))
    rows = (0, config.batch_size)
    records = {
        made: record_indices(config.seed, made - 1, rows, config.batch_size, num_records).tolist()
        for made in blamed
    }
    path = workdir / f"skipped-{before + 1}.json"
    if jax.process_index() == 0:
        write_text(path, json.dumps({"records_by_step": records}) + "\n")
    shown = ", ".join(map(str, records[before + 1][:_SHOWN]))
    raise Diverged(
        f"loss or gradients were not finite in {len(blamed)} steps in a row from step "
        f"{before + 1}, train.max_skipped is {config.train.max_skipped}; the first had records "
        f"{shown}, ... (all: {path}); the state before is checkpoint {before}"
    )
