"""Classifier-free guidance of samples: how strong, at which step counts and in which times.

Usage:
  guidance = Guidance.parse("1,128:1.5", interval=(0.0, 1.0))
  guidance.at(128), guidance.at(4)   # 1.5, 1.0
"""

from collections.abc import Iterable, Sequence
import dataclasses

from ml_collections import ConfigDict

from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Guidance:
    """A strength for each number of sampling steps; 1 is none.

    A model that learned to take large steps may know the null label at its finest step only: then
    only samples of so many steps can be guided.

    Attributes:
      strength: of step counts that `by_steps` does not name.
      by_steps: (step count, strength) pairs.
      interval: the times (start, end) in which samples are guided, 0 for noise and 1 for data;
        outside of it the strength is 1 ("Applying Guidance in a Limited Interval", arXiv
        2404.07724).
    """

    strength: float = 1.0
    by_steps: tuple[tuple[int, float], ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def parse(cls, text: str | float, interval: Sequence[float] = (0.0, 1.0)) -> "Guidance":
        """Reads `1.5`, a strength for all step counts, `128:1.5`, for one, or `2,64:1.5,128:1`.

        Raises:
          UserError: it is neither, or the interval does not lie in [0, 1].
        """
        try:
            start, end = map(float, interval)
            parts = [part.rpartition(":") for part in str(text).split(",")]
            others = [float(value) for steps, _, value in parts if not steps]
            named = tuple((int(steps), float(value)) for steps, _, value in parts if steps)
        except ValueError:
            raise UserError(
                f"guidance {text!r} is neither a strength like 1.5 nor STEPS:STRENGTH like 128:1.5"
            ) from None
        strengths = [*others, *(value for _, value in named)]
        if len(others) > 1 or len(dict(named)) < len(named):
            raise UserError(f"guidance {text!r} names a step count twice")
        if not all(0 <= value < float("inf") for value in strengths):
            raise UserError(f"guidance {text!r} has a strength that is not in [0, inf)")
        if not all(steps > 0 for steps, _ in named):
            raise UserError(f"guidance {text!r} names a step count below 1")
        if not 0 <= start < end <= 1:
            raise UserError(f"guidance interval {start}, {end}: not 0 <= start < end <= 1")
        return cls(others[0] if others else 1.0, named, (start, end))

    @classmethod
    def of(cls, evaluation: ConfigDict) -> "Guidance":
        """What a config's `evaluation` says.

        Raises:
          UserError: see `parse`.
        """
        return cls.parse(evaluation.guidance, evaluation.guidance_interval)

    def at(self, num_steps: int) -> float:
        """The strength for samples of so many steps."""
        return dict(self.by_steps).get(num_steps, self.strength)

    def describe(self, steps: Iterable[int]) -> dict[str, float]:
        """The strength by step count, as JSON has it."""
        return {str(num_steps): self.at(num_steps) for num_steps in steps}

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join([f"{self.strength:g}", *(f"{n}:{value:g}" for n, value in self.by_steps)])


NO_GUIDANCE = Guidance()
