"""Image files in folders.

A folder with folders in it, such as ILSVRC's train folder, has one class a folder, its name the
class's, in sorted order; files lie at any depth below. A flat folder, such as ILSVRC's val, has its
classes in a list: `labels.txt` or `labels.csv` in it, or a file anywhere, one `NAME CLASS` or
`NAME,CLASS` a line. More columns may follow, and names may lack their extension, so that the
`LOC_val_solution.csv` that comes with ILSVRC is such a list. A flat folder without a list is one
class. Every file that is not hidden counts as an image: one that is none shows up as rejected, and
is not passed over.

Usage:
    source = ImageFolderSource("ILSVRC/train")
    source = ImageFolderSource("ILSVRC/val", labels="ILSVRC/LOC_val_solution.csv")
    source.read_encoded(0, 2)  # n01440764/n01440764_10026.JPEG, ...
"""

from collections.abc import Iterator
import concurrent.futures
import os
import re

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.sources.base import UNLABELED, EncodedImage, digest_of, reason
from data_pipeline.whole_files import in_bucket

_LABELS = ("labels.txt", "labels.csv")
_CSV_TITLE = "ImageId"  # How LOC_val_solution.csv begins.

# So many images, evenly spread, have their sizes in the digest: all of ImageNet's would be a
# million requests where they lie in a bucket.
_SIZES_IN_DIGEST = 1000

_READERS = 16  # Files in flight for one call; a request to a bucket takes tens of milliseconds.


class ImageFolderSource:
    """The images below a folder, local or gs://, by class and then by name."""

    def __init__(self, path: str, labels: str | None = None, *, unlabeled: bool = False):
        """Lists the files.

        Args:
            path: the folder.
            labels: a list of names and classes, for a flat folder.
            unlabeled: whether all files below the folder are of one class.

        Raises:
            UserError: the folder is missing or empty, or the list does not fit its files.
        """
        self._root = epath.Path(path).expanduser()
        self._remote = in_bucket(self._root)
        self.name = f"imagefolder:{self._root.name}"
        try:
            if not self._root.is_dir():
                raise UserError(f"{path}: no such folder")
            visible = sorted(p for p in self._root.iterdir() if not p.name.startswith("."))
            folders = [p for p in visible if p.is_dir()]
            if unlabeled:
                names = sorted(set(_files_below(self._root)) - set(_LABELS))
                labelled = [(name, 0) for name in names]
                self.class_names: tuple[str, ...] = (UNLABELED,)
                if not labelled:
                    raise UserError(f"{path}: holds no files")
            elif folders:
                if labels:
                    raise UserError(f"{path}: has class folders, so --labels has no meaning")
                labelled = _list_class_folders(folders)
                self.class_names = tuple(folder.name for folder in folders)
                self._refuse_stray_images(visible)
            else:
                names = [p.name for p in visible]
                labelled, self.class_names = _list_flat(self._root, names, labels)
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path}: cannot be listed: {reason(error)}") from None
        self._names = [name for name, _ in labelled]
        self._labels = np.array([label for _, label in labelled], np.int32)
        self.digest = digest_of(self._fingerprint())

    def __len__(self) -> int:
        return len(self._names)

    def read_encoded(self, start: int, stop: int) -> list[EncodedImage]:
        """See `base.EncodedSource.read_encoded`."""
        names, labels = self._names[start:stop], self._labels[start:stop].tolist()
        if self._remote:
            with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
                contents = list(readers.map(self._read, names))
        else:
            contents = [self._read(name) for name in names]
        return [
            EncodedImage(data, label, name)
            for data, label, name in zip(contents, labels, names, strict=True)
        ]

    def _read(self, name: str) -> bytes:
        path = self._root / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {reason(error)}") from None

    def _refuse_stray_images(self, visible: list[epath.Path]) -> None:
        for path in visible:
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
                raise UserError(f"{path}: an image beside class folders: which class is it of?")

    def _fingerprint(self) -> Iterator[object]:
        yield self.class_names
        yield from zip(self._names, self._labels.tolist(), strict=True)
        sample = np.unique(np.linspace(0, len(self) - 1, _SIZES_IN_DIGEST).astype(int))
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(self._size, sample.tolist())

    def _size(self, index: int) -> int:
        path = self._root / self._names[index]
        try:
            return path.stat().length
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {reason(error)}") from None


def _list_class_folders(folders: list[epath.Path]) -> list[tuple[str, int]]:
    """(name, label) of all files of all classes."""
    labelled = []
    for label, folder in enumerate(folders):
        names = sorted(_files_below(folder))
        if not names:
            raise UserError(f"{folder}: no files in this class folder")
        labelled += [(f"{folder.name}/{name}", label) for name in names]
    return labelled


def _files_below(folder: epath.Path) -> Iterator[str]:
    """The paths, relative to a folder, of the files below it that are not hidden."""
    prefix = len(os.fspath(folder).rstrip("/")) + 1
    for parent, inner, files in folder.walk():
        inner[:] = [name for name in inner if not name.startswith(".")]
        within = os.fspath(parent)[prefix:]
        for name in files:
            if not name.startswith("."):
                yield f"{within}/{name}" if within else name


def _list_flat(
    root: epath.Path, names: list[str], labels: str | None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """(name, label) of all files of a flat folder, by class and name, and the class names."""
    beside = [name for name in _LABELS if name in names]
    images = [name for name in names if name not in beside]
    if not images:
        raise UserError(f"{root}: holds no files")
    if not labels and not beside:
        return [(name, 0) for name in images], (UNLABELED,)
    if len(beside) + bool(labels) > 1:
        raise UserError(f"{root}: has more than one list of classes: {', '.join(beside)}, --labels")
    path = epath.Path(labels).expanduser() if labels else root / beside[0]
    classes = _read_classes(path, images)
    missing = sorted(set(images) - set(classes))
    if missing:
        raise UserError(f"{path}: does not list {missing[0]}")
    # Numbers sort as numbers, so that class 10 does not come before class 2.
    numeric = all(name.isdecimal() for name in classes.values())
    class_names = sorted(set(classes.values()), key=(lambda n: (int(n), n)) if numeric else None)
    numbers = {name: number for number, name in enumerate(class_names)}
    order = sorted((numbers[classes[name]], name) for name in images)
    return [(name, number) for number, name in order], tuple(class_names)


def _read_classes(path: epath.Path, images: list[str]) -> dict[str, str]:
    """The class of every image that a list names."""
    names = {name: name for name in images} | {name.rpartition(".")[0]: name for name in images}
    classes: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    for number, line in enumerate(lines, start=1):
        parts = [part for part in re.split(r"[,\s]+", line.strip()) if part]
        if not parts or parts[0] == _CSV_TITLE:
            continue
        if len(parts) < 2:
            raise UserError(f"{path}: line {number} is not `NAME CLASS`")
        if parts[0] not in names:
            raise UserError(f"{path}: line {number} names {parts[0]}, which is not in the folder")
        if names[parts[0]] in classes:
            raise UserError(f"{path}: line {number} gives {parts[0]} a second class")
        classes[names[parts[0]]] = parts[1]
    return classes
