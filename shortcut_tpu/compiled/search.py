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

# How far below an estimate is looked when it does not fit, how many times the last batch the next
# may be, and by how much a next one must be larger to be worth a compile.
_BACK_OFF = (0.9, 0.75, 0.5)
_STRIDE = 8
_CLOSE = 1.1
Say = Callable[[str], None]


def search(config: ConfigDict, topology: Topology, say: Say) -> dict[str, Any]:
    """Compiles the step with each remat policy at growing batches.

    Memory grows about linearly in the rows, so two compiles give an estimate and the next confirms
    it. A batch that is named has been compiled; one larger by a tenth or two need not fit.

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
    best = _compiled(config, topology, remat, unit, say)
    if not best["fits"]:
        return None
    held, tried = 1, 2
    while True:
        figures = _compiled(config, topology, remat, tried * unit, say)
        if not figures["fits"]:
            break
        growth = (figures["hbm_bytes_per_chip"] - best["hbm_bytes_per_chip"]) / (tried - held)
        left = topology.hbm_bytes - figures["hbm_bytes_per_chip"]
        best, held = figures, tried
        # While rows hardly show beside the state the estimate is wild.
        tried = min(held + int(left / growth) if growth > 0 else _STRIDE * held, _STRIDE * held)
        if tried <= _CLOSE * held:
            return best
    for share in _BACK_OFF:
        if int(tried * share) > held:
            figures = _compiled(config, topology, remat, int(tried * share) * unit, say)
            if figures["fits"]:
                return figures
    return best


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
