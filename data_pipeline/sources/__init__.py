"""Sources of labelled images, by `KIND` or `KIND:PATH`.

Usage:
    source = open_source("digits")               # scikit-learn's digits
    source = open_source("npz:images.npz")       # a numpy archive with `images` and `labels`
    images, labels = source.read(0, 256)         # [256, H, W, C] float32 in [-1, 1], [256] int32

    source = open_source("imagefolder:ILSVRC/train")
    source.read_encoded(0, 256)                  # bytes of image files, with labels and names
"""

from collections.abc import Callable
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.sources.arrayrecord import ArrayRecordSource
from data_pipeline.sources.arrays import ArraySource, open_digits, open_npz
from data_pipeline.sources.base import EncodedImage, EncodedSource, Source
from data_pipeline.sources.columns import USUAL, Columns
from data_pipeline.sources.imagefolder import ImageFolderSource
from data_pipeline.sources.parquet import ParquetSource
from data_pipeline.sources.webdataset import WebDatasetSource

__all__ = ["ArraySource", "Columns", "EncodedImage", "EncodedSource", "Source", "open_source"]

_ARRAYS: dict[str, Callable[[str], Source]] = {"digits": open_digits, "npz": open_npz}
_FILES: dict[str, Callable[..., EncodedSource]] = {
    "imagefolder": ImageFolderSource,
    "webdataset": WebDatasetSource,
    "parquet": ParquetSource,
    "arrayrecord": ArrayRecordSource,
}


def open_source(
    spec: str,
    labels: str | None = None,
    *,
    unlabeled: bool = False,
    columns: Columns | None = None,
) -> Source | EncodedSource:
    """Opens the source that `KIND` or `KIND:PATH` names.

    Args:
        spec: the kind and the path.
        labels: a list of names and classes, for a flat folder of images.
        unlabeled: whether all images are of one class, whatever labels there are.
        columns: the names of image and label in tars, parquet files and ArrayRecord files.

    Raises:
        UserError: the kind is unknown, or the path does not hold what the kind expects.
    """
    kind, _, path = spec.partition(":")
    kinds = (*_ARRAYS, *_FILES)
    if kind not in kinds:
        raise UserError(f"unknown source kind {kind!r}; the known ones are {', '.join(kinds)}")
    if not path and kind != "digits":
        raise UserError(f"source {kind} needs a path: --source={kind}:PATH")
    if labels and (kind != "imagefolder" or unlabeled):
        raise UserError("--labels is for image folders, and not with --unlabeled")
    if kind in _FILES:
        if columns not in (None, USUAL) and kind == "imagefolder":
            raise UserError("--image_column and --label_column are not for folders")
        options: dict[str, Any] = {"labels": labels} if labels else {}
        if columns and kind != "imagefolder":
            options["columns"] = columns
        return _FILES[kind](path, unlabeled=unlabeled, **options)
    if unlabeled:
        raise UserError(f"--unlabeled is for image files; source {kind} holds arrays")
    return _ARRAYS[kind](path)
