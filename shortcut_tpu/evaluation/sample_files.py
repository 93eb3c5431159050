"""Files of samples in the form of ADM's evaluator: an npz with `arr_0`, uint8 [N, H, W, C].

Images are read and written batch by batch: 50,000 of 256x256 are 10 GB.

Usage:
  with SampleReader("samples.npz") as samples:
    for batch in samples.batches(256):
      ...
  writer = SampleWriter("samples.npz", (50_000, 256, 256, 3))
  writer.put(0, images)
  writer.finish()
"""

from collections.abc import Iterator
import os
from pathlib import Path
import zipfile

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.system_errors import raise_if_system

_ARRAY = "arr_0.npy"
_CHUNK = 1 << 24


class SampleReader:
    """The images of a file, in their order."""

    def __init__(self, path: str | os.PathLike[str]):
        """Opens a file and reads what it holds, but no image yet.

        Raises:
          UserError: it is missing or damaged, or holds other than uint8 images as `arr_0`.
        """
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(_ARRAY)
            version = np.lib.format.read_magic(self._file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            self.shape, fortran, dtype = read(self._file)
        except KeyError:
            raise UserError(f"{path}: holds no array `arr_0` of images") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise_if_system(path, error)
            raise UserError(f"{path}: not a readable npz archive: {error}") from None
        if dtype != np.uint8 or fortran or len(self.shape) != 4 or not self.shape[0]:
            raise UserError(f"{path}: arr_0 is {dtype} {self.shape}, it needs uint8 [N, H, W, C]")

    def __enter__(self) -> "SampleReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()

    def __len__(self) -> int:
        return int(self.shape[0])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Images [n, H, W, C] uint8, n = `size` but for the last.

        Raises:
          UserError: the file ends early or is damaged.
        """
        image = int(np.prod(self.shape[1:]))
        for start in range(0, len(self), size):
            count = min(size, len(self) - start)
            try:
                content = self._file.read(count * image)
            except (OSError, EOFError, zipfile.BadZipFile) as error:
                raise_if_system(self._path, error)
                raise UserError(f"{self._path}: is damaged: {error}") from None
            if len(content) != count * image:
                raise UserError(f"{self._path}: ends within image {start + len(content) // image}")
            yield np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])


class SampleWriter:
    """Images written one batch after the other; the file appears whole or not at all."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, ...],
        key: str = "",
        *,
        writes: bool = True,
    ):
        """Opens what an earlier process left of the file, or a new one.

        Args:
          path: the npz file, on a local disk.
          shape: [N, H, W, C] of all images.
          key: equal where the same images are written.
          writes: False on hosts that only take part in making the images.

        Raises:
          UserError: the file cannot be written.
        """
        self._path = Path(path)
        self._part = self._path.with_name(f"{self._path.name}.{key[:8]}.part")
        self._shape = shape
        self.new = False
        if not writes:
            return
        size = int(np.prod(shape))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._part.exists() and self._part.stat().st_size == size
            self.images = np.memmap(self._part, np.uint8, "r+" if kept else "w+", shape=shape)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        self.new = not kept

    def put(self, start: int, images: np.ndarray) -> None:
        """Writes images [n, H, W, C] uint8 from `start` on."""
        self.images[start : start + len(images)] = images

    def flush(self) -> None:
        """Returns when all that was put is on disk."""
        self.images.flush()

    def finish(self) -> None:
        """Makes the npz file of the images."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        try:
            with (
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
                archive.open(_ARRAY, "w", force_zip64=True) as file,
            ):
                header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
                np.lib.format.write_array_header_1_0(file, header)
                flat = self.images.reshape(-1)
                for start in range(0, len(flat), _CHUNK):
                    file.write(flat[start : start + _CHUNK].tobytes())
            os.replace(temporary, self._path)
            self._part.unlink()
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
