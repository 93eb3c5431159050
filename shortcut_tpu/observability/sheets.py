"""Pictures of a run: sheets of samples, and the distance over the number of steps.

Usage:
  Image.fromarray(sheet(images, columns=10)).save("sheet.png")
"""

from collections.abc import Mapping
import math

import numpy as np

_SMALLEST_TILE = 48
_GAP = 2


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, H, W, C] uint8 in rows of `columns` on white -> [H', W', 3] uint8.

    Tiny images are enlarged by a whole factor, so that their pixels can be seen.
    """
    factor = math.ceil(_SMALLEST_TILE / images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    if images.shape[-1] == 1:
        images = images.repeat(3, axis=-1)
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    page = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        page[top : top + height, left : left + width] = image
    return page


def distance_figure(metric: str, distances: Mapping[int, float]) -> np.ndarray:
    """Distance over the number of steps, both logarithmic -> [H, W, 3] uint8."""
    return methods_figure(metric, {"": distances})


def methods_figure(metric: str, methods: Mapping[str, Mapping[int, float]]) -> np.ndarray:
    """The same with a line for each method by name -> [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (5, 3.5) if len(methods) == 1 else (8, 5)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps: list[int] = []
    for index, (name, distances) in enumerate(methods.items()):
        steps = sorted({*steps, *distances})
        style = "-" if index < 10 else "--"
        axes.plot(list(distances), list(distances.values()), style, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if len(methods) > 1:
        figure.legend(loc="outside right upper")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
