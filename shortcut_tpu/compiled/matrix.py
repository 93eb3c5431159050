"""The table of `preflight --all`: configs and pods.

Usage:
  known = read_rows("pods.json")                         # of a run before, which may have died
  step = functools.partial(compiled, program="train", steps=1, known=known)
  rows = list(matrix(configs, PODS, step, known, say=print))
  print(markdown(rows))
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import time
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.compiled.analysis import Candidate, examine
from shortcut_tpu.pod.topologies import Topology

Row = dict[str, Any]
Say = Callable[[str], None]
PODS = ("v5e-256", "v6e-256", "v5p-128", "v4-64")
HEAD = (
    "config",
    "pod",
    "batch",
    "data, fsdp, stride, tensor",
    "HBM a chip, GiB",
    "moved, of what must",
    "at least, by",
    "MFU at most",
    "estimate",
    "MFU by it",
)
# What a row has no room for, by the hundred lines a row.
_LONG = ("config", "dearest", "cycles_by_function")
_GIB = 2**30


def matrix(
    configs: Sequence[tuple[str, ConfigDict]],
    pods: Sequence[str],
    figures: Callable[[ConfigDict, str], Row],
    known: Mapping[str, Row],
    say: Say,
) -> Iterator[Row]:
    """Figures of each config on each pod; `reason` says why one cannot run there.

    Args:
      configs: with their names.
      pods: their names.
      figures: of a config on a pod, such as `compiled` or `walks.walked`.
      known: rows of a run before, by their `key`, that `figures` takes as they are.
      say: called with a line for each row.
    """
    total = len(configs) * len(pods)
    pairs = ((name, config, pod) for name, config in configs for pod in pods)
    for number, (name, config, pod) in enumerate(pairs, 1):
        started = time.monotonic()
        row = {"config": name} | figures(config, pod)
        took = "known" if row.get("key") in known else f"{time.monotonic() - started:.0f} s"
        said = row.get("reason") or (_memory(row) if "hbm_bytes_per_chip" in row else "fits")
        say(f"{number}/{total} {name} on {pod}: {said} ({took})")
        yield row


def compiled(
    config: ConfigDict, pod: str, program: str, steps: int, known: Mapping[str, Row]
) -> Row:
    """Figures of a config's program on a pod, and the `key`, its fingerprint, that it is known by.

    What cannot be laid out there does not fit, and has its `reason`.

    Args:
      config: of the run.
      pod: its name.
      program: one of PROGRAMS.
      steps: of the sampler.
      known: rows by key, that are not compiled again.
    """
    try:
        topology = Topology.parse(pod)
        candidate = Candidate.make(config, topology.devices(), program, steps)
    except UserError as error:
        return {"topology": pod, "fits": False, "reason": str(error)}
    return examined(candidate, topology, known)


def examined(candidate: Candidate, topology: Topology, known: Mapping[str, Row]) -> Row:
    """As `examine`, with the `key`, and without what a row has no room for.

    Args:
      candidate: a program, whose devices are the topology's.
      topology: the pod.
      known: rows by key, of programs or of whole runs; their programs are not compiled again.
    """
    key = candidate.fingerprint(topology)
    programs = (program for row in known.values() for program in row.get("programs", {}).values())
    of_runs = {program["key"]: program for program in programs}
    figures = known.get(key) or of_runs.get(key) or examine(candidate, topology)
    return {name: figure for name, figure in figures.items() if name not in _LONG} | {"key": key}


def read_rows(path: str | None) -> dict[str, Row]:
    """Rows that an earlier run wrote into this file, by key; none where there are none."""
    try:
        rows = json.loads(Path(path or "").read_text())["rows"]
        return {row["key"]: row for row in rows if "key" in row}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a table says of a row.

    Attributes:
      head: of all columns; the first two are the config's and the pod's.
      cells: of all but the first two.
      fits: which column says so where a row does not fit.
    """

    head: tuple[str, ...]
    cells: Callable[[Row], list[str]]
    fits: int


def markdown(rows: Iterable[Row], columns: Columns | None = None) -> str:
    """The table, aligned, and below it why some do not fit; of `compiled` unless told otherwise."""
    columns = columns or Columns(HEAD, _cells, HEAD.index("HBM a chip, GiB"))
    lines, notes = [list(columns.head)], list[str]()
    for row in rows:
        cells = [row["config"], row["topology"], *columns.cells(row)]
        if "reason" in row:
            notes.append(f"{len(notes) + 1}: {row['config']} on {row['topology']}: {row['reason']}")
            cells[columns.fits] = f"does not fit: {len(notes)}"
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    table = [
        f"| {' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True))} |"
        for cells in lines
    ]
    return "\n".join([*table, *([""] if notes else []), *notes])


def _cells(row: Row) -> list[str]:
    """All but the first two."""
    batch, mesh = str(row.get("batch_size", "")), row.get("mesh", {})
    cells = [batch, ", ".join(str(size) for size in mesh.values())]
    if "hbm_bytes_per_chip" not in row:
        return [*cells, *[""] * (len(HEAD) - 4)]
    ratio = row["collective_bytes_ratio"]
    moved = f"{row['collective_bytes'] / _GIB:.2f} GiB"
    return [
        *cells,
        _memory(row),
        f"{moved}, {ratio:.3f} x" if ratio else moved,
        f"{1e3 * max(row['roofline_seconds'].values()):.3g} ms, {row['bound_by'].upper()}",
        f"{100 * row['mfu_bound']:.0f} %",
        *(
            (f"{1e3 * row['estimated_seconds']:.3g} ms", f"{100 * row['estimated_mfu']:.0f} %")
            if "estimated_seconds" in row
            else ("", "")
        ),
    ]


def _memory(row: Row) -> str:
    used, capacity = row["hbm_bytes_per_chip"] / _GIB, row["hbm_capacity_bytes"] / _GIB
    return f"{used:.2f} {'of' if row['fits'] else '>'} {capacity:g}"
