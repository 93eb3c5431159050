"""Nested dictionaries of numpy arrays from a pickle, without running what the pickle names.

A pickle can name any function and have it called. The reader here knows the names by which numpy
stores an array, gives stand-ins for them that do nothing but check and keep what they are told, and
refuses all others.

Usage:
  weights = read_numpy_pickle("inception_v3_weights_fid.pickle")  # {"fc": {"kernel": array, ...}}
"""

from collections import OrderedDict
import math
import pickle
from typing import Any

from etils import epath
import numpy as np

from data_pipeline.errors import UserError

_KINDS = frozenset(f"{kind}{size}" for kind in "fiu" for size in (2, 4, 8)) | {"i1", "u1", "b1"}


class _Dtype:
    """Stands for numpy.dtype: a kind and, set later, a byte order."""

    __slots__ = ("dtype",)

    def __init__(self, kind: Any, *_: Any):
        if kind not in _KINDS:
            raise ValueError(f"an array is of type {kind!r:.20}")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        _version, order, *others = state
        if order not in ("<", ">", "|", "=") or any(other is not None for other in others[:3]):
            raise ValueError("an array's type is not described as numpy does")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array that is yet to be filled."""

    __slots__ = ("array",)

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.array = _fill(content, dtype, shape, "F" if fortran else "C")


class _FromBuffer:
    """Stands for numpy's function of that name, by which newer pickles fill an array at once."""

    __slots__ = ()

    def __call__(self, content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        result = _Array()
        result.array = _fill(content, dtype, shape, order)
        return result


class _Encode:
    """Stands for _codecs.encode, by which old pickles write bytes as text."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes are not described as Python does")
        return text.encode("latin1")


def _fill(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if (
        not isinstance(content, (bytes, bytearray))
        or not isinstance(dtype, _Dtype)
        or not isinstance(shape, tuple)
        or not all(isinstance(side, int) and side >= 0 for side in shape)
        or order not in ("C", "F")
    ):
        raise ValueError("an array is not described as numpy does")
    if len(content) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    native = np.frombuffer(content, dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return native.reshape(shape, order=order)


# numpy renamed its innermost package; pickles of both ages are about.
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Encode(),
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _core in ("core", "_core"):
    _NAMES[f"numpy.{_core}.multiarray", "_reconstruct"] = _Array
    _NAMES[f"numpy.{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries, texts, numbers and the stand-ins above, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UserError(f"names {module}.{name}, which weights have no need of; it is not read")
        return _NAMES[module, name]


def read_numpy_pickle(path: epath.PathLike) -> dict[str, Any]:
    """Reads a pickled dictionary whose leaves are numpy arrays.

    Args:
      path: the file, local or `gs://`.

    Returns:
      Arrays by name, in dictionaries by name, as in the file.

    Raises:
      UserError: the file is missing or damaged, holds something else, or names code.
    """
    try:
        with epath.Path(path).open("rb") as file:
            content = _Unpickler(file).load()
        return _plain(content, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    # A damaged pickle, which the unpickler follows blindly, can end in almost any exception.
    except Exception as error:
        raise UserError(
            f"{path}: is damaged, or no pickle of numpy arrays ({error or type(error).__name__})"
        ) from None


def _plain(content: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"holds no dictionary of arrays{place and f' at {place:.60}'}")
    result: dict[str, Any] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"holds an entry {name!r:.60}, which is no name")
        if isinstance(value, _Array) and value.array is not None:
            result[name] = value.array
        else:
            result[name] = _plain(value, f"{place}/{name}".lstrip("/"))
    return result
