"""Tar shards in WebDataset's form: files with the same name up to the first dot are one sample.

A sample is an image (.jpg, .png, .webp and so on) and its label: a .cls file with a number, or a
.json file whose `label` or `cls` is one; `columns` has the other usual keys. Other files are left
alone. Class names come from a list beside the shards. The archives are never unpacked: their
headers are read once, and each image where it lies.

Usage:
    source = WebDatasetSource("shards/train-{000000..001281}.tar")
"""

import itertools
import json
import tarfile
from typing import IO, Any

from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures
from data_pipeline.errors import UserError
from data_pipeline.images import SUFFIXES
from data_pipeline.sources.base import MAX_LABEL, UNLABELED, EncodedImage, digest_of, expand
from data_pipeline.sources.class_order import numbered, read_class_list
from data_pipeline.sources.columns import LABELS, USUAL, Columns, pick
from data_pipeline.system_errors import reason, unreadable

_BLOCK = 512
_MAX_LABEL_BYTES = 1 << 20


class WebDatasetSource:
    """The samples of tar shards, in the order of the shards and within them."""

    def __init__(self, pattern: str, *, unlabeled: bool = False, columns: Columns = USUAL):
        """Reads the shards' headers and labels.

        Args:
            pattern: the shards, or their folder; see `base.expand`.
            unlabeled: whether labels are left alone, and all samples are of one class.
            columns: the endings of the images' files; the ending of the labels' or a key of .json.

        Raises:
            UserError: a shard is missing, truncated or damaged, or a sample lacks its image or
                its label.
        """
        self._paths = expand(pattern, ".tar")
        self.name = f"webdataset:{pattern.rpartition('/')[2]}"
        # Arrays, since a million tuples would take ten times the memory.
        shards, names, rows = [], [], []
        for number, path in enumerate(self._paths):
            for name, row in _index_shard(path, unlabeled, columns):
                shards.append(number)
                names.append(name)
                rows.append(row)
        if not names:
            raise UserError(f"{pattern}: no samples")
        self._shards = np.array(shards, np.int32)
        self._names = names
        self._rows = np.array(rows, np.int64)  # offset, size, label
        listed = (UNLABELED,) if unlabeled else read_class_list(self._paths[0].parent)
        self.class_names = numbered(self._rows[:, 2], listed, pattern)
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
            except failures() as error:
                raise unreadable(path, error) from None
        return images

    def _read(self, file: IO[bytes], index: int) -> EncodedImage:
        offset, size, label = self._rows[index].tolist()
        file.seek(offset)
        return EncodedImage(file.read(size), label, self._names[index])


def _index_shard(
    path: epath.Path, unlabeled: bool, columns: Columns
) -> list[tuple[str, tuple[int, int, int]]]:
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
            return [
                (image.name, (image.offset_data, image.size, label))
                for key, files in samples.items()
                for image in [_image(path, key, files, columns.image)]
                for label in [0 if unlabeled else _label_of(path, file, key, files, columns.label)]
            ]
    except failures(MemoryError) as error:
        raise unreadable(path, error) from None
    except (ValueError, OverflowError, tarfile.TarError) as error:
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


def _image(
    path: epath.Path, key: str, files: dict[str, tarfile.TarInfo], given: str
) -> tarfile.TarInfo:
    """The one image of a sample."""
    endings = (given.lower(),) if given else SUFFIXES
    images = [files[ending] for ending in endings if ending in files]
    if len(images) != 1:
        raise UserError(
            f"{path}: sample {key} has {len(images)} images, it needs one; its files end in"
            f" {', '.join(sorted(files))}; --image_column names the images' ending"
        )
    return images[0]


def _label_of(
    path: epath.Path, file: IO[bytes], key: str, files: dict[str, tarfile.TarInfo], given: str
) -> int:
    """The label of a sample."""
    for ending in dict.fromkeys((given.lower() or "cls", "json")):
        if ending not in files:
            continue
        member = files[ending]
        if member.size > _MAX_LABEL_BYTES:
            raise UserError(f"{path}: {member.name} has {member.size} bytes, too many for a label")
        file.seek(member.offset_data)
        content = file.read(member.size)
        if ending == "json" and given.lower() != "json":
            value = _in_json(f"{path}: {member.name}", content, given)
        else:
            value = _number(content)
        if type(value) is int and 0 <= value < MAX_LABEL:
            return value
    raise UserError(
        f"{path}: sample {key} has no label: no .{given or 'cls'} file with a number from 0 to"
        f" {MAX_LABEL - 1} and no .json file whose `{given or 'label'}` is one; see --label_column"
        " and --unlabeled"
    )


def _number(content: bytes) -> int | None:
    try:
        return int(content.decode("ascii"))
    except ValueError:
        return None


def _in_json(where: str, content: bytes, given: str) -> Any:
    """The label in a .json file, or None."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    numbers = [key for key in fields if type(fields[key]) is int] if type(fields) is dict else []
    if not set(numbers) & ({given} if given else set(LABELS)):
        return None
    return fields[pick(numbers, LABELS, given, "label", where)]
