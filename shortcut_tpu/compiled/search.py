"""The largest batch and the least recomputation with which a config's step fits a pod.

Usage:
  found = search(config, Topology.parse("v5e-256"), say=print)
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.compiled.analysis import analyse
from shortcut_tpu.models.dit import REMAT_POLICIES
from shortcut_tpu.objectives import make_objective
from shortcut_tpu.topologies import Topology

# How far below the estimate is looked when it does not fit.
_BACK_OFF = (1.0, 0.9, 0.75, 0.5)
Say = Callable[[str], None]


def search(config: ConfigDict, topology: Topology, say: Say) -> dict[str, Any]:
    """Compiles the step with each remat policy at growing batches.

    Memory grows linearly in the rows, so two compiles give an estimate and a third confirms it; a
    batch that is named has been compiled, and one larger by a tenth need not fit.

    Args:
      config: of the run.
      topology: the pod.
      say: called with a line for each compile.

    Returns:
      `policies`: for each remat policy the figures of the largest batch found, None where none
      fits. `least_remat`: the first policy with which the config's own batch fits, or None.

    Raises:
      UserError: the config is not valid on so many chips.
    """
    policies: dict[str, dict[str, Any] | None] = {}
    least: str | None = None
    for remat in REMAT_POLICIES:
        if least is None and _compiled(config, topology, remat, config.batch_size, say)["fits"]:
            least = remat
        policies[remat] = _largest(config, topology, remat, say)
    return {"topology": topology.name, "policies": policies, "least_remat": least}


def _largest(config: ConfigDict, topology: Topology, remat: str, say: Say) -> dict[str, Any] | None:
    """Figures of the largest batch that fits with this policy."""
    stride = make_objective(config.objective.to_dict()).row_stride
    unit = stride * topology.chips // max(config.mesh.tensor, 1)
    small = _compiled(config, topology, remat, unit, say)
    if not small["fits"]:
        return None
    double = _compiled(config, topology, remat, 2 * unit, say)
    if not double["fits"]:
        return small
    used = double["hbm_bytes_per_chip"]
    growth = max(used - small["hbm_bytes_per_chip"], 1)
    units = 2 + (topology.hbm_bytes - used) // growth
    for share in _BACK_OFF:
        tried = int(units * share)
        if tried <= 2:
            break
        figures = _compiled(config, topology, remat, tried * unit, say)
        if figures["fits"]:
            return figures
    return double


def _compiled(
    config: ConfigDict, topology: Topology, remat: str, batch_size: int, say: Say
) -> dict[str, Any]:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.model.remat = remat
        changed.batch_size = batch_size
    figures = analyse(changed, topology)
    if "hbm_bytes_per_chip" in figures:
        used = f"{figures['hbm_bytes_per_chip'] / 2**30:.2f} GiB a chip"
    else:
        used = figures["reason"]
    fits = "fits" if figures["fits"] else "does not fit"
    say(f"remat {remat}, batch {batch_size}: {fits}, {used}")
    return figures


def require_one(found: dict[str, Any]) -> None:
    """Raises a UserError where no batch fits with any policy."""
    if not any(found["policies"].values()):
        raise UserError(f"no batch fits on {found['topology']}; try mesh.fsdp or a larger pod")
