"""Reads trees of arrays from a pickle without running code.

A pickle can name any function and have it called. The reader here knows the names that trees of
numpy and JAX arrays need and gives inert stand-ins for them; an optimizer's state becomes plain
tuples. All other names are refused.

Usage:
  tree = read_pickle("checkpoint.pkl")    # {"params": {"Dense_0": {"kernel": array, ...}}, ...}
"""

import math
import os
import pickle
import re
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.stand_ins import Call, Namespace, plain_names, unknown
from data_pipeline.system_errors import unreadable

_NUMBERS = re.compile(r"(b1|[iu][1248]|f[248])")
_ORDERS = ("<", ">", "=", "|")


class _DType:
    """A dtype, as its pickle describes it."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any):
        if name != "bfloat16" and not (isinstance(name, str) and _NUMBERS.fullmatch(name)):
            raise UserError(f"holds an array of {name!r:.40}, not of numbers")
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in _ORDERS:
            raise ValueError("a dtype is not described as numpy does")
        self.order = state[1]

    def make(self) -> np.dtype[Any]:
        if self.name == "bfloat16":
            return np.dtype(jnp.bfloat16)
        return np.dtype(self.order.replace("|", "=") + self.name)


class _Array:
    """An array, filled by its pickle and checked when it is made."""

    __slots__ = ("content",)

    def __init__(self, *content: Any):
        self.content = content

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.content = (data, dtype, shape, "F" if fortran else "C")

    def make(self) -> np.ndarray:
        data, dtype, shape, order = self.content
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
            raise ValueError("an array is not described as numpy does")
        if not all(isinstance(size, int) and size >= 0 for size in shape) or order not in "CF":
            raise ValueError("an array has no shape")
        made = dtype.make()
        if len(data) != made.itemsize * math.prod(shape):
            raise ValueError("an array's bytes are not as many as its shape says")
        return np.frombuffer(data, made).reshape(shape, order=order)


def _jax_array(make: Any, arguments: Any, state: Any, _: Any) -> _Array:
    array = make(*arguments)
    if not isinstance(array, _Array):
        raise ValueError("an array is not described as JAX does")
    array.__setstate__(state)
    return array


def _scalar(dtype: Any, data: Any) -> _Array:
    return _Array(data, dtype, (), "C")


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What each known name becomes, made anew for each file."""
    names = plain_names() | {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): Call(_DType),
        ("ml_dtypes", "bfloat16"): "bfloat16",
        ("jax._src.array", "_reconstruct_array"): Call(_jax_array),
        ("flax.core.frozen_dict", "FrozenDict"): Call(lambda tree: tree),
        ("collections", "OrderedDict"): Call(dict),
        ("__builtin__", "bytes"): Call(lambda: b""),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = Call(lambda *_: _Array())
        names[f"{core}.multiarray", "scalar"] = Call(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = Call(_Array)
    return names


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any):
        super().__init__(file)
        self._names = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module.partition(".")[0] == "optax":

            class State(tuple):
                """The state of an optimizer: its fields, without their names."""

                __slots__ = ()

                def __new__(cls, *fields: Any) -> "State":
                    return tuple.__new__(cls, fields)

            return State
        raise unknown(module, name)


def _made(tree: Any) -> Any:
    """A tree with its arrays made, of dicts, lists, tuples, numbers and texts only."""
    if isinstance(tree, _Array):
        return tree.make()
    if isinstance(tree, Namespace):
        return _made(tree.values)
    if isinstance(tree, dict):
        return {key: _made(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_made(value) for value in tree)
    if isinstance(tree, list):
        return [_made(value) for value in tree]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise UserError(f"holds a {type(tree).__name__}, which weights have no need of")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads a pickled tree of arrays.

    Args:
      path: the file, local or `gs://`.

    Returns:
      Nested dicts, lists and tuples of numpy arrays, read-only, numbers and texts.

    Raises:
      UserError: the file is missing, truncated or damaged, holds anything else, or names code.
    """
    try:
        with epath.Path(path).open("rb") as file:
            return _made(_Unpickler(file).load())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from None
    # A damaged pickle, which the unpickler follows blindly, can end in almost any exception.
    except Exception as error:
        raise UserError(
            f"{path}: is damaged, or no pickled weights ({error or type(error).__name__})"
        ) from None
