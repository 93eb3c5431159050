"""Draws sheets of samples, and the distance over the number of sampling steps.

Usage:
  page = sheet(images, columns=10, row_names=["goldfish", "tench"])
  write_output("sheet.png", to_png(page))
"""

from collections.abc import Mapping, Sequence
import io
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shortcut_tpu.observability.charts import short, ticks

_SMALLEST_TILE = 64
_GAP = 2
_BETWEEN_BLOCKS = 14
_MARGIN = 8
_TEXT_SIZE = 13
_LINE = _TEXT_SIZE + 4


def to_png(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] or [H, W, 1] uint8 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, "png")
    return content.getvalue()


def sheet(
    images: np.ndarray,
    columns: int,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    captions: Sequence[str] = (),
    blocks: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Images [N, H, W, C] uint8 in rows of `columns` on white -> [H', W', 3] uint8.

    Tiny images are enlarged by a whole factor, so that their pixels can be seen.

    Args:
      images: one after another, row by row.
      columns: images in a row.
      row_names: what is written before each row; may have several lines.
      column_names: what is written above each column; cut to its width.
      captions: what is written below each image; cut to its width.
      blocks: columns set apart from the others, from the left: what is written above each block,
        and how many columns it has.
    """
    images = _visible(images)
    count, height, width, _ = images.shape
    font = ImageFont.load_default(size=_TEXT_SIZE)
    tile = height + (_LINE if captions else 0) + _GAP
    names = math.ceil(max((_width(font, name) for name in row_names), default=-2 * _MARGIN))
    left = names + 2 * _MARGIN + _GAP
    top = _GAP + _LINE * (bool(column_names) + bool(blocks))
    starts = _starts(left, width + _GAP, columns, blocks or {})
    size = (starts[-1] + width + _GAP, top + math.ceil(count / columns) * tile)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)

    def centred(text: str, x: float, y: float, room: float) -> None:
        while text and font.getlength(text) > room:
            text = text[:-1]
        draw.text((x, y), text, "black", font, anchor="mm")

    for index, image in enumerate(images):
        x, y = starts[index % columns], top + index // columns * tile
        page.paste(Image.fromarray(image), (x, y))
        if captions:
            centred(captions[index], x + width // 2, y + height + _LINE // 2, width)
    for index, name in enumerate(row_names):
        at = (_MARGIN + names, top + index * tile + height // 2)
        draw.multiline_text(at, name, "black", font, anchor="rm", align="right")
    for x, name in zip(starts, column_names, strict=False):
        centred(name, x + width // 2, top - _LINE // 2, width)
    first = 0
    for name, wide in (blocks or {}).items():
        x, end = starts[first], starts[first + wide - 1] + width
        centred(name, (x + end) // 2, _GAP + _LINE // 2, end - x)
        first += wide
    return np.asarray(page)


def _starts(left: int, step: int, columns: int, blocks: Mapping[str, int]) -> list[int]:
    """Where each column begins, in pixels."""
    ends = set(itertools.accumulate(blocks.values()))
    places, x = [], left
    for column in range(columns):
        x += _BETWEEN_BLOCKS if column in ends else 0
        places.append(x)
        x += step
    return places


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, name: str) -> float:
    return max(font.getlength(line) for line in name.split("\n"))


def _visible(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] as [N, H', W', 3], enlarged by a whole factor where they are tiny.

    Of latents that stand for pixels, the first three channels.
    """
    factor = math.ceil(_SMALLEST_TILE / images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def beside(*pages: np.ndarray) -> np.ndarray:
    """Pictures [H, W, 3] uint8 from left to right on white, their upper edges level."""
    height = max(len(page) for page in pages)
    return np.concatenate(
        [
            np.pad(page, ((0, height - len(page)), (0, 0), (0, 0)), constant_values=255)
            for page in pages
        ],
        axis=1,
    )


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
