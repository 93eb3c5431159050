"""Configs and pods in one table, as preflight finds them.

Usage:
  for row in matrix(config_names, PODS, "train", 1):
      print(markdown_row(row))
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.compiled.analysis import analyse
from shortcut_tpu.topologies import Topology

PODS = ("v5e-256", "v6e-256", "v5p-128", "v4-64")
HEADER = (
    "| config | pod | batch | mesh (data, fsdp, stride, tensor) | HBM a chip, GiB "
    "| moved, GiB | of what must | bound by | MFU at most |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_GIB = 2**30


def matrix(
    configs: Iterable[tuple[str, ConfigDict]], pods: Iterable[str], program: str, steps: int
) -> Iterator[dict[str, Any]]:
    """Figures of each config on each pod; `reason` says why one cannot run there."""
    pods = tuple(pods)
    for name, config in configs:
        for pod in pods:
            try:
                figures = analyse(config, Topology.parse(pod), program, steps)
            except UserError as error:
                figures = {"topology": pod, "fits": False, "reason": str(error)}
            yield {"config": name} | figures


def markdown_row(row: dict[str, Any]) -> str:
    """A row of the table whose head is HEADER."""
    cells = [row["config"], row["topology"]]
    if "hbm_bytes_per_chip" not in row:
        return "| " + " | ".join([*cells, row["reason"]]) + " |" + " |" * 6
    used, capacity = row["hbm_bytes_per_chip"] / _GIB, row["hbm_capacity_bytes"] / _GIB
    ratio = row["collective_bytes_ratio"]
    cells += [
        str(row["batch_size"]),
        ", ".join(str(size) for size in row["mesh"].values()),
        f"{used:.2f} of {capacity:g}" + ("" if row["fits"] else ": does not fit"),
        f"{row['collective_bytes'] / _GIB:.2f}",
        f"{ratio:.3f} x" if ratio else "-",
        row["bound_by"].upper(),
        f"{100 * row['mfu_bound']:.0f} %",
    ]
    return "| " + " | ".join(cells) + " |"
