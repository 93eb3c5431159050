"""Tar shards in the WebDataset form: files that share a name up to its first dot are one sample.

A sample is an image (.jpg, .jpeg, .png or .webp) and its label: a .cls file with a number, or a
.json file whose `label` or `cls` is one. Other files are left alone. The archives are never
unpacked: their headers are read once, and each image where it lies.

Usage:
    source = WebDatasetSource("shards/train-{000000..001281}.tar")
"""

import itertools
import json
import tarfile
from typing import IO

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.sources.base import (
    MAX_LABEL,
    EncodedImage,
    digest_of,
    expand,
    numbered_classes,
    reason,
)

_IMAGES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512
_MAX_LABEL_BYTES = 1 << 20


class WebDatasetSource:
    """The samples of tar shards, in the order of the shards and within them."""

    def __init__(self, pattern: str):
        """Reads the shards' headers and labels.

        Raises:
            UserError: a shard is missing, truncated or damaged, or a sample lacks its image or
                its label.
        """
        self._paths = expand(pattern)
        self.name = f"webdataset:{pattern.rpartition('/')[2]}"
        # Arrays, since a million tuples would take ten times the memory.
        shards, names, rows = [], [], []
        for number, path in enumerate(self._paths):
            for name, row in _index_shard(path):
                shards.append(number)
                names.append(name)
                rows.append(row)
        if not names:
            raise UserError(f"{pattern}: no samples")
        self._shards = np.array(shards, np.int32)
        self._names = names
        self._rows = np.array(rows, np.int64)  # offset, size, label
        self.class_names = numbered_classes(self._rows[:, 2])
        content = zip(names, self._rows[:, 1:].tolist(), strict=True)
        self.digest = digest_of(itertools.chain((len(self._paths),), content))

    def __len__(self) -> int:
        return len(self._names)

    def read_encoded(self, start: int, stop: int) -> list[EncodedImage]:
        """See `base.EncodedSource.read_encoded`."""
        images = []
        for shard, group in itertools.groupby(range(start, stop), key=self._shards.__getitem__):
            path = self._paths[shard]
            try:
                with path.open("rb") as file:
                    images += [self._read(file, index) for index in group]
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {reason(error)}") from None
        return images

    def _read(self, file: IO[bytes], index: int) -> EncodedImage:
        offset, size, label = self._rows[index].tolist()
        file.seek(offset)
        return EncodedImage(file.read(size), label, self._names[index])


def _index_shard(path: epath.Path) -> list[tuple[str, tuple[int, int, int]]]:
    """Name, and offset, size and label, of every sample of a shard."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with path.open("rb") as file:
            for member in _members(path, file):
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isreg() or not stem:
                    continue
                files = samples.setdefault(folder + slash + stem, {})
                if extension.lower() in files:
                    raise UserError(f"{path}: holds {member.name} twice")
                files[extension.lower()] = member
            return [_sample(path, file, key, files) for key, files in samples.items()]
    except (OSError, ValueError, OverflowError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a readable tar archive: {reason(error)}") from None


def _members(path: epath.Path, file: IO[bytes]) -> list[tarfile.TarInfo]:
    """The members of an archive, once it is sure that these are all.

    tarfile takes a damaged or truncated header for the end of the archive, and says nothing.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = archive.getmembers()
        file.seek(archive.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(
                f"{path}: damaged or truncated after {len(members)} files: what follows is neither"
                " a file nor the end mark of a tar archive"
            )
        size = file.seek(0, 2)
    for member in members:
        if member.issparse() or member.offset_data + member.size > size:
            raise UserError(f"{path}: {member.name} is sparse or runs over the archive's end")
    return members


def _sample(
    path: epath.Path, file: IO[bytes], key: str, files: dict[str, tarfile.TarInfo]
) -> tuple[str, tuple[int, int, int]]:
    """Name, and offset, size and label, of one sample."""
    images = [files[extension] for extension in _IMAGES if extension in files]
    if len(images) != 1:
        raise UserError(f"{path}: sample {key} has {len(images)} images, it needs one")
    label = None
    for extension in ("cls", "json"):
        if extension not in files or label is not None:
            continue
        member = files[extension]
        if member.size > _MAX_LABEL_BYTES:
            raise UserError(f"{path}: {member.name} has {member.size} bytes, too many for a label")
        file.seek(member.offset_data)
        label = _label(file.read(member.size), extension)
    if label is None:
        raise UserError(
            f"{path}: sample {key} has no label: no .cls file with a number from 0 to"
            f" {MAX_LABEL - 1} and no .json file whose `label` or `cls` is one"
        )
    return images[0].name, (images[0].offset_data, images[0].size, label)


def _label(content: bytes, extension: str) -> int | None:
    """The label in a .cls or .json file, or None."""
    try:
        if extension == "cls":
            value = int(content.decode("ascii"))
        else:
            fields = json.loads(content)
            value = fields.get("label", fields.get("cls"))
    except (AttributeError, ValueError, RecursionError):
        return None
    return value if type(value) is int and 0 <= value < MAX_LABEL else None
