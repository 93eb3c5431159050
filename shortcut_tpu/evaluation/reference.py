"""Statistics of real images, computed, saved and loaded.

| file | holds |
|---|---|
| ADM's | `mu`, `sigma`, `mu_s`, `sigma_s`, and images `arr_0` for precision and recall |
| the official code's | `mu`, `sigma` |
| `reference_stats`' | the same moments, `vectors` in place of the images, and `about` |

Usage:
  reference = load_reference("stats.npz", features)
"""

import dataclasses
import functools
import hashlib
import io
import json
from typing import Any
import zipfile

from etils import epath
import numpy as np

from data_pipeline.atomic_files import write_output
from data_pipeline.errors import UserError
from data_pipeline.npz_files import read_npz
from data_pipeline.system_errors import unreadable
from shortcut_tpu.evaluation.distances import Gaussian, Moments
from shortcut_tpu.evaluation.features import Features

# What of a file is read here; its images are read one batch after the other.
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "vectors", "about")


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What is known of the real images.

    Attributes:
      pool: moments of the vectors that the main distance is between.
      spatial: moments of the sFID's.
      vectors: [R, F] float32 of some of the images, for precision and recall.
      source: where it is from, for people.
      images: how many images the moments are of; None where a file does not say.
    """

    pool: Moments
    spatial: Moments | None = None
    vectors: np.ndarray | None = None
    source: str = ""
    images: int | None = None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers: equal wherever they are stored."""
        content = hashlib.sha256()
        for moments in (self.pool, self.spatial):
            for array in (moments.mean, moments.covariance) if moments else ():
                content.update(np.ascontiguousarray(array, "<f8").data)
        if self.vectors is not None:
            content.update(np.ascontiguousarray(self.vectors, "<f4").data)
        return content.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"source": self.source, "images": self.images, "digest": self.digest}


def save_reference(path: epath.PathLike, reference: Reference, features: Features) -> None:
    """Writes an npz file that `load_reference` reads, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    about = {
        "protocol": features.protocol.name,
        "weights": features.digest,
        "images": reference.images,
        "source": reference.source,
    }
    arrays = {
        "mu": reference.pool.mean,
        "sigma": reference.pool.covariance,
        "about": np.array(json.dumps(about)),
    }
    if reference.spatial is not None:
        arrays["mu_s"] = reference.spatial.mean
        arrays["sigma_s"] = reference.spatial.covariance
    if reference.vectors is not None:
        arrays["vectors"] = np.asarray(reference.vectors, np.float32)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_output(path, content.getvalue())


def load_reference(path: epath.PathLike, features: Features, length: int) -> Reference:
    """Reads statistics that fit a protocol's features.

    Args:
      path: an npz file of one of the forms above, local or `gs://`.
      features: what samples will be measured by.
      length: of a vector.

    Raises:
      UserError: the file is missing or damaged, holds no statistics, or was made by another
        protocol or other weights.
    """
    arrays = read_npz(path, _ARRAYS)
    if "mu" not in arrays or "sigma" not in arrays:
        raise UserError(
            f"{path}: holds no `mu` and `sigma`; make them with python -m"
            " shortcut_tpu.reference_stats"
        )
    about = _about(path, arrays, features)
    pool = _moments(path, arrays, "mu", "sigma", length)
    spatial = None
    if "mu_s" in arrays and "sigma_s" in arrays:
        spatial = _moments(path, arrays, "mu_s", "sigma_s", arrays["mu_s"].size)
    vectors = arrays.get("vectors")
    if vectors is not None and (vectors.dtype != np.float32 or vectors.shape[1:] != (length,)):
        raise UserError(
            f"{path}: vectors is {vectors.dtype} {vectors.shape}, it needs float32 [n, {length}]"
        )
    name = epath.Path(path).name
    return Reference(pool, spatial, vectors, about.get("source") or name, about.get("images"))


def _about(
    path: epath.PathLike, arrays: dict[str, np.ndarray], features: Features
) -> dict[str, Any]:
    """What a file of ours says of itself; nothing for others'."""
    if "about" not in arrays:
        return {}
    try:
        about: dict[str, Any] = json.loads(str(arrays["about"]))
        protocol, weights = about["protocol"], str(about["weights"] or "")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: its `about` does not say what it was made by") from None
    if protocol != features.protocol.name:
        raise UserError(f"{path}: made for protocol {protocol}, not {features.protocol.name}")
    if weights and weights != features.digest:
        raise UserError(
            f"{path}: made with weights {weights[:8]}, --features has {features.digest[:8]}"
        )
    return about


def _moments(
    path: epath.PathLike, arrays: dict[str, np.ndarray], mean: str, covariance: str, length: int
) -> Gaussian:
    for name, shape in ((mean, (length,)), (covariance, (length, length))):
        array = arrays[name]
        floats = np.issubdtype(array.dtype, np.floating)
        if array.shape != shape or not floats or not np.isfinite(array).all():
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, it needs finite floats {shape}"
            )
    return Gaussian(*(np.asarray(arrays[name], np.float64) for name in (mean, covariance)))


def holds_statistics(path: epath.PathLike) -> bool:
    """Whether an npz file has `mu` and `sigma`.

    Raises:
      UserError: the file is missing or damaged.
    """
    return {"mu", "sigma"} <= set(_names(path))


def holds_images(path: epath.PathLike) -> bool:
    """Whether an npz file has images besides statistics, as ADM's has.

    Raises:
      UserError: the file is missing or damaged.
    """
    return "arr_0" in _names(path)


def _names(path: epath.PathLike) -> list[str]:
    try:
        with epath.Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except OSError as error:
        raise unreadable(path, error) from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a readable npz archive: {error}") from None
