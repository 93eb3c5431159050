"""Pictures of a run: sheets of samples, and the distance over the number of steps.

Usage:
  Image.fromarray(sheet(images, columns=10)).save("sheet.png")
"""

from collections.abc import Mapping, Sequence
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shortcut_tpu.observability.charts import short, ticks

_SMALLEST_TILE = 48
_GAP = 2
_NAME_MARGIN = 8


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, H, W, C] uint8 in rows of `columns` on white -> [H', W', 3] uint8.

    Tiny images are enlarged by a whole factor, so that their pixels can be seen.
    """
    images = _visible(images)
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


def beside(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of images [N, H, W, C] uint8, their names before them -> [H', W', 3] uint8.

    For what the same noises become at several step counts.
    """
    names, images = list(rows), np.concatenate(list(rows.values()))
    page = sheet(images, columns=len(images) // len(rows))
    height = _visible(images[:1]).shape[1]
    return np.concatenate([_names(names, height), page], axis=1)


def _names(names: Sequence[str], height: int) -> np.ndarray:
    """A white column with a name beside each row of tiles of this height."""
    font = ImageFont.load_default(size=max(14, height // 12))
    width = math.ceil(max(font.getlength(name) for name in names)) + 3 * _NAME_MARGIN
    column = Image.new("RGB", (width, len(names) * (height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(column)
    for index, name in enumerate(names):
        middle = _GAP + index * (height + _GAP) + height // 2
        draw.text((width - _NAME_MARGIN, middle), name, "black", font, anchor="rm")
    return np.asarray(column)


def _visible(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] as [N, H', W', 3], enlarged by a whole factor where they are tiny.

    Of latents that stand for pixels, the first three channels.
    """
    factor = math.ceil(_SMALLEST_TILE / images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def distance_figure(metric: str, distances: Mapping[int, float]) -> np.ndarray:
    """Distance over the number of steps, both logarithmic -> [H, W, 3] uint8."""
    return methods_figure(metric, {"": distances})


def methods_figure(metric: str, methods: Mapping[str, Mapping[int, float]]) -> np.ndarray:
    """The same with a line for each method by name -> [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (4, 2.8) if len(methods) == 1 else (8, 5)
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
    rounds = ticks(*axes.get_ylim(), log=True)
    axes.set_yticks(rounds, [short(value) for value in rounds])
    axes.minorticks_off()
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if len(methods) > 1:
        figure.legend(loc="outside right upper")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
