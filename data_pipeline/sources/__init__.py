"""Labelled images, by `KIND` or `KIND:PATH`.

Usage:
    source = open_source("digits")               # scikit-learn's digits
    source = open_source("npz:images.npz")       # a numpy archive with `images` and `labels`
    images, labels = source.read(0, 256)         # [256, H, W, C] float32 in [-1, 1], [256] int32

    source = open_source("imagefolder:ILSVRC/train")
    source.read_encoded(0, 256)                  # bytes of image files, with labels and names
"""

from collections.abc import Callable

from data_pipeline.errors import UserError
from data_pipeline.sources.arrayrecord import ArrayRecordSource
from data_pipeline.sources.arrays import ArraySource, open_digits, open_npz
from data_pipeline.sources.base import EncodedImage, EncodedSource, Source
from data_pipeline.sources.imagefolder import ImageFolderSource
from data_pipeline.sources.parquet import ParquetSource
from data_pipeline.sources.webdataset import WebDatasetSource

__all__ = ["ArraySource", "EncodedImage", "EncodedSource", "Source", "open_source"]

_KINDS: dict[str, Callable[[str], Source | EncodedSource]] = {
    "digits": open_digits,
    "npz": open_npz,
    "imagefolder": ImageFolderSource,
    "webdataset": WebDatasetSource,
    "parquet": ParquetSource,
    "arrayrecord": ArrayRecordSource,
}


def open_source(spec: str, labels: str | None = None) -> Source | EncodedSource:
    """Opens the source that `KIND` or `KIND:PATH` names.

    Args:
        spec: the kind and the path.
        labels: a list of names and classes, for a flat folder of images.

    Raises:
        UserError: the kind is unknown, or the path does not hold what the kind expects.
    """
    kind, _, path = spec.partition(":")
    if kind not in _KINDS:
        raise UserError(f"unknown source kind {kind!r}; the known ones are {', '.join(_KINDS)}")
    if not path and kind != "digits":
        raise UserError(f"source {kind} needs a path: --source={kind}:PATH")
    if labels and kind != "imagefolder":
        raise UserError(f"--labels is for image folders; source {kind} has its own")
    return ImageFolderSource(path, labels) if labels else _KINDS[kind](path)
