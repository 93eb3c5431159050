"""The limits of config values.

Usage:
  config.batch_size = Key(256, Whole(1))
  Whole(1, 9).admits(0), str(Whole(1, 9))   # False, "a whole number from 1 to 9"
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any, Protocol


class Limit(Protocol):
    """A set of values; `str` names it in words that can follow "may be"."""

    def admits(self, value: Any) -> bool:
        """Whether the value is one of them, of whatever type it is."""
        ...


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config: its default, and what else it may be."""

    default: Any
    limit: Limit


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `low` to `high`; steps and sizes are int32 on a device."""

    low: int
    high: int = 2**31 - 1

    def admits(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {_power(self.high)}"


def _power(number: int) -> str:
    """One less than a power of two as such."""
    return str(number) if number < 2**20 else f"2^{number.bit_length()} - 1"


@dataclasses.dataclass(frozen=True)
class Real:
    """Finite numbers from `low` to `high`; with `above` and `below` the ends are not among them."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def admits(self, value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            number = float(value)
        except OverflowError:
            return False
        return (
            math.isfinite(number)
            and (self.low < number if self.above else self.low <= number)
            and (number < self.high if self.below else number <= self.high)
        )

    def __str__(self) -> str:
        if self.high < math.inf:
            ends = f"{'(' if self.above else '['}{self.low:g}, {self.high:g}"
            return f"a number in {ends}{')' if self.below else ']'}"
        if self.low > -math.inf:
            return f"a finite number {'above' if self.above else 'of at least'} {self.low:g}"
        return "a finite number"


@dataclasses.dataclass(frozen=True)
class Share:
    """Unit fractions 1, 1/2, 1/3, ...: every n-th row of a batch makes up this share of it."""

    def admits(self, value: Any) -> bool:
        inside = Real(0, 1, above=True).admits(value) and math.isfinite(1 / value)
        return inside and abs(1 / value - round(1 / value)) < 1e-6

    def __str__(self) -> str:
        return "a unit fraction 1, 1/2, 1/3, ..."


@dataclasses.dataclass(frozen=True)
class ShareOrRest:
    """Unit fractions, and one less a unit fraction: every n-th row, or all but every n-th."""

    def admits(self, value: Any) -> bool:
        inside = Real(0, 1, above=True).admits(value)
        return inside and (Share().admits(value) or Share().admits(1 - value))

    def __str__(self) -> str:
        return "1/n or 1 - 1/n: 1, 1/2, 1/3, 2/3, 1/4, 3/4, ..."


@dataclasses.dataclass(frozen=True)
class PowerOfTwo:
    """2, 4, 8, ...: what can be halved down to 1."""

    def admits(self, value: Any) -> bool:
        return Whole(2).admits(value) and not value & (value - 1)

    def __str__(self) -> str:
        return "a power of two above 1"


class OneOf:
    """Some values and no others."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def admits(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.choices)

    def __str__(self) -> str:
        return ", ".join(str(choice) if choice != "" else '""' for choice in self.choices)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def admits(self, value: Any) -> bool:
        return type(value) is bool

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Text:
    """Text of one line that matches a pattern as a whole."""

    pattern: str = ".*"
    meaning: str = "text of one line"

    def admits(self, value: Any) -> bool:
        one_line = isinstance(value, str) and value.isprintable()
        return one_line and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.meaning


@dataclasses.dataclass(frozen=True)
class Either:
    """What one of two limits admits."""

    first: Limit
    second: Limit

    def admits(self, value: Any) -> bool:
        return self.first.admits(value) or self.second.admits(value)

    def __str__(self) -> str:
        return f"{self.first} or {self.second}"


@dataclasses.dataclass(frozen=True)
class Several:
    """A list of values, from `least` to `most` of them; JSON has lists where Python has tuples."""

    each: Limit
    least: int = 0
    most: int | None = None

    def admits(self, value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) < self.least:
            return False
        return (self.most is None or len(value) <= self.most) and all(map(self.each.admits, value))

    def __str__(self) -> str:
        if self.least == self.most:
            count = f"{self.least} values"
        else:
            count = f"{self.least} or more values" if self.least else "any number of values"
        return f"{count}, each {self.each}"


@dataclasses.dataclass(frozen=True)
class Named:
    """Keys of whatever names a config chooses, each with a value of its own."""

    each: Limit

    def admits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(map(self.each.admits, value.values()))

    def __str__(self) -> str:
        return f"by names of one's own, each {self.each}"
