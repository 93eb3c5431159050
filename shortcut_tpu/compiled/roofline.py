"""The least time of a step by its products, its memory traffic and its transfers.

Usage:
  roofline = Roofline.of(flops, hbm_bytes, collectives, topology, mesh)
  print(roofline.bound_by, roofline.seconds, roofline.mfu(model_flops))
"""

from collections.abc import Iterable
import dataclasses

from jax.sharding import Mesh
import numpy as np

from shortcut_tpu.compiled.collectives import DCN, Collective
from shortcut_tpu.pod.topologies import Chip, Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a step spends at the least with each part of a chip, were the others free.

    Peaks are the chips' published ones, collectives run on rings over all links of their axes, and
    all parts work at the same time: no run is faster.

    Attributes:
      mxu: matrix products.
      hbm: memory traffic.
      ici: transfers between the chips of a slice.
      dcn: transfers between slices.
    """

    chip: Chip
    mxu: float
    hbm: float
    ici: float
    dcn: float

    @classmethod
    def of(
        cls,
        flops: float,
        hbm_bytes: float,
        collectives: Iterable[Collective],
        topology: Topology,
        mesh: Mesh,
    ) -> "Roofline":
        """The times of a program of one chip that does so many operations and transfers."""
        chip = topology.chip
        ici = dcn = 0.0
        for collective in collectives:
            seconds = transfer_seconds(collective, chip, mesh)
            if collective.axis == DCN:
                dcn += seconds
            else:
                ici += seconds
        return cls(chip, flops / chip.bf16_flops, hbm_bytes / chip.hbm_bandwidth, ici, dcn)

    @property
    def times(self) -> dict[str, float]:
        return {"mxu": self.mxu, "hbm": self.hbm, "ici": self.ici, "dcn": self.dcn}

    @property
    def seconds(self) -> float:
        """The longest of the times."""
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        return max(self.times, key=self.times.__getitem__)

    def mfu(self, model_flops_per_chip: float) -> float:
        """The model FLOP utilisation that no run can exceed."""
        return model_flops_per_chip / self.chip.bf16_flops / self.seconds


def transfer_seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    """How long all executions of a collective take at the least."""
    if collective.axis == DCN:
        return collective.wire_bytes / chip.dcn_bandwidth
    links = num_links(mesh, collective.axis.split("+"))
    if collective.op == "collective-permute":
        links = 1
    return collective.wire_bytes / (links * chip.link_bandwidth)


def num_links(mesh: Mesh, axes: Iterable[str]) -> int:
    """Links of a chip over which a ring along these mesh axes can send.

    Two for each dimension of the torus along which the members lie, one where only two do.
    """
    names = set(axes)
    index = tuple(slice(None) if name in names else 0 for name in mesh.axis_names)
    members = np.atleast_1d(mesh.devices[index]).flat
    coordinates = np.array([device.coords for device in members])
    extents = [len(np.unique(column)) for column in coordinates.T]
    return max(sum(min(extent - 1, 2) for extent in extents), 1)
