"""TPU pods by name, as the compiler knows them.

Usage:
  topology = Topology.parse("v5e-256")
  mesh = make_mesh(shape, topology.devices())
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import re

import jax
from jax.experimental import topologies

from data_pipeline.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU.

    Attributes:
      hbm_gib: memory of a chip that a program may use.
      cores_in_name: whether the number in a pod's name counts tensor cores, two a chip.
      three_dimensional: whether pods are three-dimensional tori.
    """

    hbm_gib: float
    cores_in_name: bool
    three_dimensional: bool


CHIPS = {
    "v4": Chip(hbm_gib=32, cores_in_name=True, three_dimensional=True),
    "v5e": Chip(hbm_gib=15.75, cores_in_name=False, three_dimensional=False),
    "v5p": Chip(hbm_gib=95, cores_in_name=True, three_dimensional=True),
    "v6e": Chip(hbm_gib=31.25, cores_in_name=False, three_dimensional=False),
}

_ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod.

    Attributes:
      name: such as v5e-256.
      generation: a key of CHIPS.
      grid: chips along each axis of the torus.
    """

    name: str
    generation: str
    grid: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """The slice of a name like v5e-256 or v5p-128.

        Raises:
          UserError: there is no such generation or size.
        """
        match = re.fullmatch(r"(v\w+)-(\d+)", name)
        generation = _ALIASES.get(match[1], match[1]) if match else None
        if match is None or generation not in CHIPS:
            known = ", ".join(f"{generation}-N" for generation in CHIPS)
            raise UserError(f"--topology={name}: not one of {known}")
        chip = CHIPS[generation]
        size = int(match[2])
        chips, odd = divmod(size, 2) if chip.cores_in_name else (size, 0)
        # Slices are powers of two here; other shapes exist, but no name tells which.
        if odd or chips < 1 or chips & (chips - 1):
            raise UserError(
                f"--topology={name}: {size} is not a size of {generation}; sizes are powers of two"
                + (", in cores, two a chip" if chip.cores_in_name else "")
            )
        return cls(name, generation, _grid(chips, 3 if chip.three_dimensional else 2))

    @property
    def chips(self) -> int:
        count = 1
        for side in self.grid:
            count *= side
        return count

    @property
    def hbm_bytes(self) -> int:
        """Memory of one chip that a program may use."""
        return int(CHIPS[self.generation].hbm_gib * GIB)

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
        options = {"chip_config_name": "megacore"} if self.generation == "v4" else {}
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
