"""Reads tensors from the files of `torch.save`, without torch and without running code.

Such a file is a pickle that says what goes where, with the tensors' bytes beside it: in a zip
archive, or, before torch 1.6, behind the pickle in the same file. A pickle can name any function
and have it called, so the reader here knows the few names that tensors and plain data need, gives
inert stand-ins for them, and refuses all others.

Usage:
    weights = read_torch_archive("taef2_encoder.pth")  # {"0.weight": [64, 3, 3, 3] float16, ...}
    checkpoint = read_torch_checkpoint("0400000.pt")   # of a training: {model, ema, opt, args}
    checkpoint.taken, checkpoint.weights, checkpoint.arguments    # "ema", {...}, {"model": ...}
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
import dataclasses
import os
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple, TypeVar
import zipfile

from etils import epath
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.stand_ins import Call, Namespace, plain_names, unknown
from data_pipeline.system_errors import unreadable

R = TypeVar("R")

_DTYPES = {
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}

# What may hold the weights of a training's checkpoint, the best first.
_WEIGHTS = ("ema", "ema_state_dict", "model_ema", "model", "state_dict", "model_state_dict")
# What wrappers of modules put before every name.
_PREFIXES = ("module.", "_orig_mod.")

# What a file of the older form begins with, as pickled numbers: its mark and its version.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class _Storage(NamedTuple):
    """A run of numbers in the file, which one or more tensors look at."""

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor yet to be read: where it lies in its storage, counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for torch's function of that name. Slotted: a pickle cannot write attributes to it."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        counts = (*shape, *strides, offset)
        if (
            not isinstance(storage, _Storage)
            or not all(isinstance(count, int) and count >= 0 for count in counts)
            or len(shape) != len(strides)
        ):
            raise ValueError("a tensor is not described as torch does")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _named() -> dict[tuple[str, str], Any]:
    """Stand-ins for the names of plain data, made anew for each file."""
    number = Call(lambda *_: None)  # Of numpy: the weights are torch's, and need none.
    names = plain_names() | {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): Call(lambda *_: {}),
        ("torch", "Size"): tuple,
        ("torch", "device"): Call(lambda *parts: ":".join(map(str, parts))),
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch._utils", "_rebuild_parameter"): Call(lambda data, *_: data),
        ("pathlib", "PosixPath"): Call(lambda *parts: "/".join(map(str, parts))),
        ("numpy", "dtype"): Call(lambda *_: _Ignored()),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "scalar"] = number
    return names


class _Ignored:
    """Takes a state, and keeps nothing of it."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Reads the structure of the file; every name but those of tensors and plain data is refused.

    What it makes are tuples, texts and numbers: nothing with methods that a pickle could call.
    """

    def __init__(self, file: Any):
        super().__init__(file)
        self._names = _named()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module == "torch" and name in _DTYPES:
            return name
        raise unknown(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, size, *view = pid
        if (
            tag != "storage"
            or kind not in _DTYPES
            or not isinstance(key, str)
            or not isinstance(size, int)
            or any(view)
        ):
            raise ValueError("a storage is not described as torch does")
        return _Storage(kind, key, size)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a training wrote.

    Attributes:
        weights: tensors by name.
        taken: under what name they lay; "" where the file holds nothing else.
        arguments: what the training was told, as far as it is plain.
    """

    weights: dict[str, np.ndarray]
    taken: str
    arguments: dict[str, Any]


def read_torch_archive(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors, such as a module's `state_dict`, that `torch.save` wrote.

    Args:
        path: the file, local or `gs://`.

    Returns:
        The tensors by name, in the file's order, with their shapes, strides and types (bfloat16 as
        `jnp.bfloat16`). Read-only; tensors that share a storage share memory.

    Raises:
        UserError: the file is missing, truncated, damaged, compressed or big-endian, holds anything
            but tensors by name, or names code.
    """
    return _read(path, _materialise)


def read_torch_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a dictionary of tensors, or of a training's checkpoint the average of its weights.

    Of a checkpoint that holds no average the weights themselves are taken; the optimizer's state is
    left alone.

    Raises:
        UserError: as `read_torch_archive`; or there are no weights.
    """

    def made(content: Any, read_storage: Callable[[_Storage], bytes]) -> Checkpoint:
        taken, arguments = "", {}
        if isinstance(content, dict) and not all(isinstance(v, _Tensor) for v in content.values()):
            taken = next((name for name in _WEIGHTS if isinstance(content.get(name), dict)), "")
            if not taken:
                found = ", ".join(f"{name!s:.40}" for name in content)
                raise UserError(f"holds {found}, and none of {', '.join(_WEIGHTS)}")
            told = content.get("args")
            arguments = told.values if isinstance(told, Namespace) else {}
            content = content[taken]
        weights = _materialise(content, read_storage)
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in weights):
                weights = {name.removeprefix(prefix): array for name, array in weights.items()}
        return Checkpoint(weights, taken, arguments)

    return _read(path, made)


def _read(path: str | os.PathLike[str], made: Callable[[Any, Callable[[_Storage], bytes]], R]) -> R:
    try:
        with epath.Path(path).open("rb") as file:
            if zipfile.is_zipfile(file):
                file.seek(0)
                content, read_storage = _open_archive(file)
            else:
                file.seek(0)
                content, read_storage = _open_legacy(file)
            return made(content, read_storage)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from None
    # A damaged pickle, which the unpickler follows blindly, can end in almost any exception.
    except Exception as error:
        raise UserError(
            f"{path}: is damaged, or not weights that torch saved ({error or type(error).__name__})"
        ) from None


def _open_archive(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    """The structure in a zip archive, and what reads a storage from it."""
    archive = zipfile.ZipFile(file)
    roots = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError("is a zip archive, but not one that torch saved")

    def read(name: str) -> bytes:
        member = archive.getinfo(roots[0] + name)
        # torch compresses nothing; a small file that unpacks to a huge one is none of its.
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name} in it is compressed, which torch never does")
        return archive.read(member)

    if f"{roots[0]}byteorder" in archive.namelist() and read("byteorder") != b"little":
        raise UserError("was saved on a big-endian machine; only little-endian files are read")
    with archive.open(roots[0] + "data.pkl") as pickled:
        read("data.pkl")  # Refuses a compressed one, and checks its checksum before it is followed.
        content = _Unpickler(pickled).load()
    return content, lambda storage: read(f"data/{storage.key}")


def _open_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    """The structure in a file of the older form, and what gives a storage that follows it."""
    magic = _Unpickler(file).load()
    if magic != _LEGACY_MAGIC:
        raise UserError("is not a file that torch saved")
    version, system = _Unpickler(file).load(), _Unpickler(file).load()
    if version != _LEGACY_VERSION or not system["little_endian"]:
        raise UserError("is of a version or byte order that is not read")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    kinds = {tensor.storage.key: tensor.storage for tensor in _within(content)}
    found: dict[str, bytes] = {}
    for key in _Unpickler(file).load():
        (size,) = struct.unpack("<q", file.read(8))
        found[key] = file.read(size * _DTYPES[kinds[key].kind].itemsize)
    return content, lambda storage: found[storage.key]


def _within(content: Any) -> Iterator[_Tensor]:
    """All tensors of a structure."""
    if isinstance(content, _Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _within(value)


def _tensors(content: Any) -> dict[str, _Tensor]:
    """The structure, if it is one of tensors by name."""
    if not isinstance(content, dict) or not content:
        raise UserError("holds no dictionary of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise UserError(f"holds under {name!r:.60} something other than a tensor")
    return dict(content)


def _materialise(content: Any, read_storage: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """The tensors of a structure as arrays."""
    storages: dict[_Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in _tensors(content).items():
        storage = tensor.storage
        if storage not in storages:
            raw, dtype = read_storage(storage), _DTYPES[storage.kind]
            if len(raw) != storage.size * dtype.itemsize:
                raise UserError(
                    f"tensor {name} is truncated: {len(raw)} bytes of"
                    f" {storage.size * dtype.itemsize}"
                )
            storages[storage] = np.frombuffer(raw, dtype)
        arrays[name] = _view(name, storages[storage], tensor)
    return arrays


def _view(name: str, flat: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """What a tensor sees of its storage."""
    last = tensor.offset + sum(
        (count - 1) * stride for count, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if 0 not in tensor.shape and last >= len(flat):
        raise UserError(f"tensor {name} reaches beyond its storage")
    if 0 in tensor.shape:
        return np.empty(tensor.shape, flat.dtype)
    return np.lib.stride_tricks.as_strided(
        flat[tensor.offset :],
        tensor.shape,
        [stride * flat.itemsize for stride in tensor.strides],
        writeable=False,
    )
