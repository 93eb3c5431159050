"""TPU pods by name, as the compiler knows them.

Usage:
  topology = Topology.parse("v5e-256")
  mesh = make_mesh(shape, topology.devices())
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import re
from typing import Any

import jax
from jax.experimental import topologies

from data_pipeline.errors import UserError
from shortcut_tpu.pod.partitioning import count_slices

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU.

    Attributes:
      hbm_gib: memory of a chip that a program may use, as the compiler has it.
      cores_in_name: whether the number in a pod's name counts tensor cores, two a chip.
      dimensions: of the torus that a pod is.
      bf16_flops: peak operations a second in bfloat16 products.
      clock: cycles a second.
      mxu_side: rows and columns of a unit that multiplies matrices.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second of one link between neighbours, one way; there are two links
        for each dimension of the torus.
      dcn_bandwidth: bytes a second that a chip sends to other slices, its share of the host's.
    """

    hbm_gib: float
    cores_in_name: bool
    dimensions: int
    bf16_flops: float
    clock: float
    mxu_side: int
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float


# Peaks from the system architecture pages of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), where
# the bandwidth between chips counts all links both ways; DCN shares from "How to Scale Your Model"
# (jax-ml.github.io/scaling-book), chapter 2, as are the clocks: the peak over what all units do in
# a cycle, 2 side^2 operations each; v4 and v5p (two cores) have eight of them, v5e and v6e four.
CHIPS = {
    "v4": Chip(30.75, True, 3, 275e12, 1.05e9, 128, 1200e9, 45e9, 6.25e9),
    "v5e": Chip(15.75, False, 2, 197e12, 1.5e9, 128, 819e9, 50e9, 3.125e9),
    "v5p": Chip(95, True, 3, 459e12, 1.75e9, 128, 2765e9, 100e9, 6.25e9),
    "v6e": Chip(31.25, False, 2, 918e12, 1.75e9, 256, 1640e9, 100e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A TPU VM.

    Attributes:
      chips: attached to it.
      memory_gb: gigabytes (10^9 bytes) of its own memory.
    """

    chips: int
    memory_gb: int

    @property
    def memory_bytes(self) -> int:
        return self.memory_gb * 10**9


# From the tables of VM types in cloud.google.com/tpu/docs/v5e and in
# cloud.google.com/kubernetes-engine/docs/concepts/tpus (ct4p-, ct5lp-, ct5p-, ct6e-), by
# generation; a pod of more chips than the largest has is made of those with four.
MACHINES = {
    "v4": (Machine(4, 407),),
    "v5e": (Machine(1, 48), Machine(4, 192), Machine(8, 384)),
    "v5p": (Machine(4, 448),),
    "v6e": (Machine(1, 176), Machine(4, 720), Machine(8, 1440)),
}

_ALIASES = {"v5litepod": "v5e"}

# A generation by what JAX calls its devices; the runtime has had two names for some.
_DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a JAX device of this kind is, or None where no peaks are published here."""
    generation = _DEVICE_KINDS.get(device_kind)
    return CHIPS[generation] if generation else None


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod, or several equal ones that a data centre network joins.

    Attributes:
      name: such as v5e-256 or 2x v5e-256.
      generation: a key of CHIPS.
      grid: chips along each axis of the torus of one slice.
      slices: how many there are.
    """

    name: str
    generation: str
    grid: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """The pod of a name like v5e-256, v5p-128 or, of two slices, 2x v5e-256.

        Raises:
          UserError: there is no such generation or size.
        """
        match = re.fullmatch(r"(?:([1-9]\d*)x ?)?(v\w+)-(\d+)", name)
        generation = _ALIASES.get(match[2], match[2]) if match else None
        if match is None or generation not in CHIPS:
            known = ", ".join(f"{generation}-N" for generation in CHIPS)
            raise UserError(f"--topology={name}: not one of {known}, or several slices as 2x v5e-N")
        chip = CHIPS[generation]
        size = int(match[3])
        chips, odd = divmod(size, 2) if chip.cores_in_name else (size, 0)
        # Slices are powers of two here; other shapes exist, but no name tells which.
        if odd or chips < 1 or chips & (chips - 1):
            raise UserError(
                f"--topology={name}: {size} is not a size of {generation}; sizes are powers of two"
                + (", in cores, two a chip" if chip.cores_in_name else "")
            )
        return cls(name, generation, _grid(chips, chip.dimensions), int(match[1] or 1))

    @classmethod
    def of_devices(cls, devices: Sequence[Any]) -> "Topology | None":
        """The pod that these devices are, or None where their chip has no published peaks here."""
        generation = _DEVICE_KINDS.get(devices[0].device_kind)
        if generation is None:
            return None
        slices = count_slices(devices)
        chips = len(devices) // slices
        cores = 2 if CHIPS[generation].cores_in_name else 1
        first = getattr(devices[0], "slice_index", 0)
        places = [d.coords for d in devices if getattr(d, "slice_index", 0) == first]
        # Devices of a flat torus have a third coordinate, too.
        along = list(zip(*places, strict=True))[: CHIPS[generation].dimensions]
        grid = tuple(len({*axis}) for axis in along)
        name = f"{generation}-{chips * cores}"
        return cls(f"{slices}x {name}" if slices > 1 else name, generation, grid, slices)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """In all slices together."""
        count = self.slices
        for side in self.grid:
            count *= side
        return count

    @property
    def machine(self) -> Machine:
        """The VM that its hosts are."""
        kinds = MACHINES[self.generation]
        in_slice = self.chips // self.slices
        alone = (kind for kind in kinds if kind.chips >= in_slice)
        return next(alone, None) or next(kind for kind in kinds if kind.chips == 4)

    @property
    def hosts(self) -> int:
        """VMs of all slices together."""
        return max(self.chips // self.slices // self.machine.chips, 1) * self.slices

    @property
    def hbm_bytes(self) -> int:
        """Memory of one chip that a program may use."""
        return int(self.chip.hbm_gib * GIB)

    def devices(self) -> Sequence[jax.Device]:
        """Devices to compile for, one a chip.

        Raises:
          UserError: libtpu is not installed or does not know the slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                "libtpu, the TPU compiler, is not installed; launch/setup_venv.sh tpu installs it"
            )
        # Without "megacore" a v4 chip is two devices of half the memory.
        options: dict[str, Any] = (
            {"chip_config_name": "megacore"} if self.generation == "v4" else {}
        )
        if self.slices > 1:
            options["num_slices"] = self.slices
        shape = "x".join(map(str, self.grid))
        try:
            return topologies.get_topology_desc(
                f"{self.generation}:{shape}", platform="tpu", **options
            ).devices
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.name}: {str(error).splitlines()[0]}") from None


def _grid(chips: int, dimensions: int) -> tuple[int, ...]:
    """The most cubic grid of a power of two of chips, the longest side last."""
    sides = [1] * dimensions
    axis = dimensions - 1
    while chips > 1:
        sides[axis] *= 2
        chips //= 2
        axis = (axis - 1) % dimensions
    return tuple(sorted(sides))
