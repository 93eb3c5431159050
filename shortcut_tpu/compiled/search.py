"""Searches the layout with the least estimated time for each image on a pod.

Usage:
  rows = list(search(config, Topology.parse("v5e-256"), known={}, say=print))
  print(best(rows)["changed"])
"""

from collections.abc import Iterator, Mapping
import math
import time
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.compiled.cycles import ATTENTION, COPIES, STACKS
from shortcut_tpu.compiled.matrix import Row, Say, compiled
from shortcut_tpu.models.flash_attention import LANES
from shortcut_tpu.models.stacks import REMAT_POLICIES
from shortcut_tpu.pod.topologies import Topology

# By how much the time an image must fall for a change to be worth making.
_WORTH = 0.99
# An axis whose kinds take less than this share of the time is not walked.
_SHARE = 0.03
_UNROLLS = (2, 4)
BATCH = "batch_size"


def search(
    config: ConfigDict, topology: Topology, known: Mapping[str, Row], say: Say
) -> Iterator[Row]:
    """Changes one key after another and keeps what lowers the time an image.

    The keys are walked once, in the order in which they matter: when and over how many chips
    weights lie in parts, what the backward pass recomputes, attention, layers out of line; and at
    last the batch, doubled while that pays. An estimate counts a Pallas kernel at its limit, so
    `pallas` must be confirmed by a run.

    Args:
      config: of the run, where the search starts.
      topology: the pod.
      known: rows of a run before, by their `key`; they are not compiled again.
      say: called with a line for each row.

    Yields:
      A row for each point: the figures of the program, `changed`, the keys that differ from the
      config's, and `kept`, whether it was the best until then.
    """

    def tried(changed: dict[str, Any], before: Row | None) -> Row:
        started = time.monotonic()
        point = config.copy_and_resolve_references()
        with point.unlocked():
            point.update_from_flattened_dict(changed)
        row = compiled(point, topology.name, "train", 1, known)
        kept = before is None or seconds_a_row(row) < _WORTH * seconds_a_row(before)
        took = "known" if row.get("key") in known else f"{time.monotonic() - started:.0f} s"
        say(f"{named(changed)}: {_told(row)}{', kept' if kept and before else ''} ({took})")
        return row | {"changed": changed, "kept": kept}

    best_row = tried({}, None)
    yield best_row
    for key in ("mesh.gather", "mesh.fsdp", "model.remat", "model.attention", "model.unroll"):
        for value in _values(key, config, best_row):
            row = tried(best_row["changed"] | {key: value}, best_row)
            yield row
            best_row = row if row["kept"] else best_row
    while best_row["fits"]:
        row = tried(best_row["changed"] | {BATCH: 2 * best_row["batch_size"]}, best_row)
        yield row
        if not row["kept"]:
            return
        best_row = row


def best(rows: list[Row], *, same_batch: bool = False) -> Row:
    """The row of the least time an image, of all batches or of the first row's.

    Raises:
      UserError: none fits.
    """
    of_these = [row for row in rows if BATCH not in row["changed"] or not same_batch]
    found = min(of_these, key=seconds_a_row)
    if not found["fits"]:
        raise UserError(
            f"no layout of this batch fits on {found['topology']}; try a smaller batch_size or a "
            "larger pod"
        )
    return found


def seconds_a_row(row: Row) -> float:
    """Estimated time an image of one chip; infinite of what does not fit."""
    if not row["fits"]:
        return math.inf
    seconds: float = row["estimated_seconds"] / row["batch_size"] * row["chips"]
    return seconds


def named(changed: Mapping[str, Any]) -> str:
    """The changes as they would be typed."""
    return " ".join(f"--config.{key}={value}" for key, value in changed.items()) or "as it is"


def _values(key: str, config: ConfigDict, row: Row) -> list[Any]:
    """What to try for a key, by what the best row so far spends its time with."""
    mesh, model = config.mesh, config.model
    fsdp = row["mesh"]["fsdp"] if "mesh" in row else mesh.fsdp
    if key == "mesh.gather":
        return [kind for kind in ("layer", "step") if kind != mesh.gather] if fsdp != 1 else []
    if key == "mesh.fsdp":
        smaller = [fsdp // 4] if fsdp >= 16 else []
        return [*smaller, *([1] if fsdp > 1 else [-1])]
    if key == "model.remat":
        return [policy for policy in REMAT_POLICIES if policy != model.remat]
    if key == "model.attention":
        tokens = _tokens(config)
        kernel = "kernels" in row and bool(row["kernels"])
        if tokens % LANES or _share(row, ATTENTION) < _SHARE:
            return []
        return ["xla" if kernel else "pallas"]
    if _share(row, STACKS, COPIES) < _SHARE:
        return []
    return [turns for turns in _UNROLLS if turns != model.unroll and model.depth % turns == 0]


def _tokens(config: ConfigDict) -> int:
    if config.data.horizon:
        return int(config.data.horizon) // int(config.model.patch_size)
    return (int(config.data.image_size) // int(config.model.patch_size)) ** 2


def _share(row: Row, *kinds: str) -> float:
    """Of the cycles, those of some kinds; all of a program that could not be compiled."""
    if "cycles_by_kind" not in row:
        return 1.0
    spent = sum(row["cycles_by_kind"].get(kind, 0) for kind in kinds)
    return spent / row["estimated_cycles"]


def _told(row: Row) -> str:
    if not row["fits"]:
        return f"does not fit: {row.get('reason') or 'too much HBM'}"
    return (
        f"{1e3 * row['estimated_seconds']:.4g} ms, {1e3 * seconds_a_row(row):.3g} ms an image and "
        f"chip, MFU {row['estimated_mfu']:.0%}"
    )
