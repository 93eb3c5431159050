"""Line charts as inline SVG, styled by the page's style sheet.

Usage:
  svg = chart("loss", [Line("run a", [(0, 1.0), (100, 0.5)], 0)], x_label="step")
"""

from collections.abc import Sequence
import dataclasses
import html
import math

NUM_COLORS = 6

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 38
_MOST_MARKS = 12
_MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart: points (x, y) in the order of x, and the number of its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] = (),
) -> str:
    """An SVG element with axes, grid and lines; points can be read by hovering.

    Lines of more than 400 points are drawn as the means of equal runs of neighbours.
    """
    lines = [dataclasses.replace(line, points=_thinned(line.points)) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log_y = log_y and min(ys) > 0
    x_axis = _Axis(xs, _LEFT, _WIDTH - _RIGHT, log_x)
    y_axis = _Axis(ys, _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for tick in ticks(y_axis.low, y_axis.high, log_y):
        y = y_axis.place(tick)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    bottom = _HEIGHT - _BOTTOM
    for tick in x_ticks or ticks(x_axis.low, x_axis.high, log_x):
        x = x_axis.place(tick)
        parts.append(f'<path class="rule" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(tick)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    marks = max(len(line.points) for line in lines) <= _MOST_MARKS
    for line in lines:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        style = f"line c{line.color % NUM_COLORS}" + (" dashed" if line.color >= NUM_COLORS else "")
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        name = html.escape(line.name)
        parts.append(f'<polyline class="{style}" points="{path}"><title>{name}</title></polyline>')
        if marks:
            for (x, y), (value_x, value_y) in zip(places, line.points, strict=True):
                parts.append(
                    f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
                    f"{name}: {value_y:.4g} at {value_x:g}</title></circle>"
                )
    return "".join([*parts, "</svg>"])


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


class _Axis:
    """Values to places along an axis, linear or logarithmic."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool):
        self._log = log
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
        # Room beyond the outermost values, but none below zero for what starts there.
        if log:
            room = (high / low) ** 0.04
            low, high = low / room, high * room
        else:
            room = (high - low) * 0.04
            low, high = low - room * (low != 0), high + room
        self.low, self.high = low, high
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self._log else v for v in (self.low, self.high, value))
        return self._start + (value - low) / (high - low) * (self._end - self._start)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values in a range: 1, 2 or 5 by a power of ten."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1,), (1, 2, 5)):
            found = [f * 10.0**n for n in decades for f in factors]
            found = [v for v in found if low <= v <= high]
            if len(found) >= 3:
                return found
        # Less than a decade: equal steps, which come to lie at unequal distances.
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= max(f for f in (1, 2, 5) if (high - low) / (step * f) >= 3 or f == 1)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: float) -> str:
    """A number in a few characters, such as 0.02, 1.5k or 800k."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def in_steps(count: int) -> str:
    """A number of sampling steps: `1 step`, `4 steps`."""
    return f"{count} step{'s' * (count > 1)}"
