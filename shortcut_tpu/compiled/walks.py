"""Whole runs of configs on pods as rows of a table, see `matrix` and `whole_run`.

Usage:
  rows = list(matrix(configs, PODS, functools.partial(walked, known=known), known, say=print))
  print(markdown(rows, COLUMNS), markdown(train_steps(rows)), sep="\n\n")
"""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import importlib.metadata
import json
from pathlib import Path

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME as MANIFEST
from shortcut_tpu.compiled.matrix import Columns, Row
from shortcut_tpu.compiled.whole_run import TRAIN_STEP, walk
from shortcut_tpu.pod.topologies import Topology
from shortcut_tpu.training.input import records_of

_GIB = 2**30
_CODE = ("shortcut_tpu", "data_pipeline")


def walked(config: ConfigDict, pod: str, known: Mapping[str, Row]) -> Row:
    """What `walk` finds, with the `key` that it is known by.

    A run that cannot be laid out there does not fit, and has its `reason`.

    Args:
      config: of the run.
      pod: its name.
      known: rows by key, whose runs are not walked again.
    """
    key = fingerprint(config, pod)
    if key in known:
        return known[key]
    try:
        found = walk(config, Topology.parse(pod), say=lambda line: None, known=known)
    except UserError as error:
        found = {"topology": pod, "fits": False, "reason": str(error)}
    return found | {"key": key}


def fingerprint(config: ConfigDict, pod: str) -> str:
    """A digest of all that a walk depends on: config, records, pod, compiler, and all code."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), default=str, sort_keys=True).encode())
    for text in (pod, *map(importlib.metadata.version, ("libtpu", "jax", "jaxlib", "flax"))):
        digest.update(text.encode())
    root = Path(__file__).parents[2]
    code = (path for folder in _CODE for path in sorted((root / folder).rglob("*.py")))
    for path in (Path(records_of(config)) / MANIFEST, *code):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def train_steps(rows: Iterable[Row]) -> Iterator[Row]:
    """The train steps of whole runs, as rows of `matrix.compiled`; only of runs that got so far."""
    for row in rows:
        if TRAIN_STEP in row.get("programs", {}):
            yield {"config": row["config"]} | row["programs"][TRAIN_STEP]


def _cells(row: Row) -> list[str]:
    if not row["fits"]:
        return [""] * (len(COLUMNS.head) - 2)
    fullest = max(row["acts"], key=lambda act: act["chip_bytes"] or 0)
    chip, host = row["chip_capacity_bytes"] / _GIB, row["host_capacity_bytes"] / _GIB
    evaluation = row["evaluation_seconds"]
    return [
        f"{fullest['chip_bytes'] / _GIB:.2f} of {chip:g}, {fullest['name']}",
        f"{row['host_bytes'] / _GIB:.1f} of {host:.0f}",
        f"{row['kept_bytes'] / _GIB:.1f}",
        f"{evaluation:.1f} s" if evaluation else "",
        f"{row['seconds']:.0f} s",
    ]


COLUMNS = Columns(
    (
        "config",
        "pod",
        "a chip at most, GiB",
        "a host, GiB",
        "bucket, GiB",
        "an evaluation",
        "checked in",
    ),
    _cells,
    fits=2,
)
