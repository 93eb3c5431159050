"""Averages of the weights whose length grows with the training, and any length after the run.

Source: "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, arXiv 2312.02696,
section 3 and appendix C). The average of exponent g weighs the weights of step tau at step t by

    p(tau) = (g + 1) tau^g / t^(g + 1),     theta_t <- b_t theta_(t-1) + (1 - b_t) params,
    b_t = (1 - 1/t)^(g + 1),

and is named by its width, the standard deviation of p over t. Averages of other widths are linear
combinations of those that were kept, by least squares on their profiles.

Usage:
  exponent(0.05)                                       # 16.97
  combination([(0.05, 100), (0.1, 100), ...], (0.07, 400))    # a factor for each kept average
"""

from collections.abc import Sequence
import dataclasses
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.errors import UserError

# Of a width: that of a constant profile is 1 / sqrt(12).
LARGEST = 0.28
_PREFIX = "power:"


@dataclasses.dataclass(frozen=True)
class PowerAverage:
    """The average of a width.

    Attributes:
      width: the profile's standard deviation over the training so far, in (0, 0.28].
    """

    width: float

    @classmethod
    def parse(cls, name: str) -> "PowerAverage | None":
        """That of a name such as power:0.05; None for another kind of name.

        Raises:
          UserError: the width is none.
        """
        if not name.startswith(_PREFIX):
            return None
        text = name.removeprefix(_PREFIX)
        width = float(text) if re.fullmatch(r"0?\.\d+", text) else 0.0
        if not 0 < width <= LARGEST:
            raise UserError(f"{name}: the width may be a number in (0, {LARGEST}], as power:0.07")
        return cls(width)

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.width:g}"

    def share(self, step: jax.Array) -> jax.Array:
        """1 - b_t of the update to step t, from 1 on, to all digits where it is small."""
        return -jnp.expm1((exponent(self.width) + 1) * jnp.log1p(-1 / step))


def kept(config: ConfigDict) -> list[PowerAverage]:
    """The power averages that a run keeps."""
    return [PowerAverage(width) for width in config.power_emas.widths]


def averages(config: ConfigDict) -> dict[str, float | PowerAverage]:
    """All averages of a run by name: decays, and power averages."""
    return config.emas.to_dict() | {average.name: average for average in kept(config)}


def exponent(width: float) -> float:
    """g of the profile whose standard deviation is `width`: the positive root of

    (g + 1) / ((g + 2)^2 (g + 3)) = width^2.
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def combination(kept: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> np.ndarray:
    """Factors [n] that make of n averages the wanted one, or the nearest to it that there is.

    Args:
      kept: widths and steps.
      wanted: width and step.
    """
    powers, steps = np.array([(exponent(width), step) for width, step in [*kept, wanted]]).T
    inner = _inner(powers[:, None], steps[:, None], powers, steps)
    return np.linalg.lstsq(inner[:-1, :-1], inner[:-1, -1], rcond=None)[0]


def _inner(ga: np.ndarray, ta: np.ndarray, gb: np.ndarray, tb: np.ndarray) -> np.ndarray:
    """The integral of the product of two profiles, over the steps that both have."""
    ratio = np.minimum(ta / tb, tb / ta) ** np.where(ta < tb, gb, ga)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * ratio / np.maximum(ta, tb)
