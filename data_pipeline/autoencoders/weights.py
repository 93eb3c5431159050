"""Reads weights from the user's files and checks names and shapes; identified by SHA-256.

Usage:
    tensors, digest = read_safetensors("DIR/diffusion_pytorch_model.safetensors")
    weights = fitted(path, tensors, {"conv_in.weight": (128, 3, 3, 3), ...})
"""

from collections.abc import Iterable, Mapping
import hashlib

from etils import epath
import jax.numpy as jnp
import numpy as np
import safetensors

from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable

_CHUNK = 1 << 22
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}


def sha256(paths: Iterable[epath.PathLike]) -> str:
    """The SHA-256 of files, one after the other as if they were one, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with epath.Path(path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise unreadable(path, error) from None
    return digest.hexdigest()


def read_safetensors(path: epath.PathLike) -> tuple[dict[str, np.ndarray], str]:
    """Reads a `.safetensors` file.

    Args:
        path: the file, local or `gs://`.

    Returns:
        The floating-point tensors by name, and the file's SHA-256 in hexadecimal.

    Raises:
        UserError: the file is missing, truncated or damaged, or holds other types of numbers.
    """
    try:
        # In one go: a second reading, for the digest, would fetch a gs:// file twice.
        content = epath.Path(path).read_bytes()
        tensors = {}
        for name, entry in safetensors.deserialize(content):
            if entry["dtype"] not in _DTYPES:
                raise UserError(f"{path}: tensor {name} is of type {entry['dtype']}, not floating")
            flat = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is truncated, damaged or no safetensors file: {error}") from None
    return tensors, hashlib.sha256(content).hexdigest()


def fitted(
    path: epath.PathLike, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Tensors as float32, if they are exactly those that a network needs.

    Args:
        path: where they are from, for messages.
        tensors: by name.
        shapes: what the network needs, by name.

    Raises:
        UserError: names the first tensor that is missing, of another shape, or too many.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"{path}: tensor {name} is missing")
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: tensor {name} has the shape {tensors[name].shape}, the network needs"
                f" {shape}"
            )
    for name in tensors:
        if name not in shapes:
            raise UserError(f"{path}: tensor {name} has no place in the network")
    return {name: np.asarray(tensors[name], np.float32) for name in shapes}
