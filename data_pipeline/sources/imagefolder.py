"""Image files in folders.

A folder with folders in it, such as ILSVRC's train folder, has one class a folder, its name the
class's; `class_order` has their order, and files lie at any depth below. A flat folder, such as
ILSVRC's val, has its classes in a list: `labels.txt` or `labels.csv` in it, or a file anywhere; see
`label_lists`. A flat folder without a list is one class. Links are followed. Every file that is not
hidden counts as an image: one that is none shows up as rejected, and is not passed over.

Usage:
    source = ImageFolderSource("ILSVRC/train")
    source = ImageFolderSource("ILSVRC/val", labels="ILSVRC/LOC_val_solution.csv")
    source.read_encoded(0, 2)  # n01440764/n01440764_10026.JPEG, ...
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import os
import unicodedata

from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures, in_bucket
from data_pipeline.errors import UserError
from data_pipeline.images import SUFFIXES
from data_pipeline.sources.base import UNLABELED, EncodedImage, digest_of
from data_pipeline.sources.class_order import CLASS_LISTS, is_split, ordered, read_class_list
from data_pipeline.sources.label_lists import read_labels
from data_pipeline.system_errors import reason, unreadable

_LABELS = ("labels.txt", "labels.csv")

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
        self._root = epath.Path(path)
        self._remote = in_bucket(self._root)
        self.name = f"imagefolder:{self._root.name}"
        try:
            if not self._root.is_dir():
                raise UserError(f"{path}: no such folder")
            visible = sorted(p for p in self._root.iterdir() if not p.name.startswith("."))
            folders = [p for p in visible if p.is_dir()]
            listed = read_class_list(self._root)
            _refuse_splits(path, folders, listed)
            if unlabeled:
                names = sorted({*_files_below(self._root)} - {*_LABELS, *CLASS_LISTS})
                labelled = [(name, 0) for name in names]
                self.class_names: tuple[str, ...] = (UNLABELED,)
                if not labelled:
                    raise UserError(f"{path}: holds no files")
            elif folders:
                if labels:
                    raise UserError(f"{path}: has class folders, so --labels has no meaning")
                self._refuse_stray_images(visible)
                self.class_names = listed or ordered(folder.name for folder in folders)
                labelled = _list_class_folders(folders, self.class_names)
            else:
                names = [p.name for p in visible]
                labelled, self.class_names = _list_flat(self._root, names, labels, listed)
        except failures(UnicodeError) as error:
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
        except failures() as error:
            raise unreadable(path, error) from None

    def _refuse_stray_images(self, visible: list[epath.Path]) -> None:
        for path in visible:
            if not path.exists():
                raise UserError(f"{path}: a link to nothing")
            if path.suffix.lower().removeprefix(".") in SUFFIXES:
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
        except failures() as error:
            raise unreadable(path, error) from None


def _refuse_splits(
    path: str, folders: Sequence[epath.Path], listed: tuple[str, ...] | None
) -> None:
    """Raises a UserError where the folders are parts of a data set, and no classes."""
    names = [folder.name for folder in folders]
    if names and not listed and all(map(is_split, names)):
        given = " or ".join(f"imagefolder:{path.rstrip('/')}/{name}" for name in names)
        raise UserError(f"{path}: {', '.join(names)} are no classes; give {given}")


def _list_class_folders(
    folders: list[epath.Path], class_names: tuple[str, ...]
) -> list[tuple[str, int]]:
    """(name, label) of all files of all classes."""
    labels = {name: label for label, name in enumerate(class_names)}
    alike: dict[str, str] = {}
    for name in class_names:
        # As a copy from one system to another may leave them.
        if (other := alike.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise UserError(f"{other} and {name} are one name in two encodings; merge the folders")
    labelled = []
    for folder in folders:
        if folder.name not in labels:
            raise UserError(f"{folder}: is not in the list of classes beside it")
        names = sorted(_files_below(folder))
        if not names:
            raise UserError(f"{folder}: no files in this class folder")
        labelled += [(f"{folder.name}/{name}", labels[folder.name]) for name in names]
    return sorted(labelled, key=lambda image: image[1])


def _files_below(folder: epath.Path) -> Iterator[str]:
    """The paths, relative to a folder, of the files below it that are not hidden."""
    prefix = len(os.fspath(folder).rstrip("/")) + 1
    for parent, inner, files in folder.walk() if in_bucket(folder) else _walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        within = os.fspath(parent)[prefix:]
        for name in files:
            if not name.startswith("."):
                yield f"{within}/{name}" if within else name


def _walk(folder: epath.Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, through links; what cannot be listed and what leads in a circle is an error."""

    def fail(error: OSError) -> None:
        raise unreadable(error.filename, error)

    above: dict[str, set[tuple[int, int]]] = {}
    for parent, inner, files in os.walk(folder, followlinks=True, onerror=fail):
        found = os.stat(parent)
        identity = (found.st_dev, found.st_ino)
        outer = above.get(os.path.dirname(parent), set())
        if identity in outer:
            raise UserError(f"{parent}: a link that leads in a circle")
        above[parent] = {*outer, identity}
        yield parent, inner, files


def _list_flat(
    root: epath.Path, names: list[str], labels: str | None, listed: tuple[str, ...] | None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """(name, label) of all files of a flat folder, by class and name, and the class names."""
    beside = [name for name in _LABELS if name in names]
    lists = [*beside, *CLASS_LISTS]
    if labels and epath.Path(labels).resolve().parent == root.resolve():
        lists.append(epath.Path(labels).name)
    images = [name for name in names if name not in lists]
    if not images:
        raise UserError(f"{root}: holds no files")
    if not labels and not beside:
        return [(name, 0) for name in images], (UNLABELED,)
    if len(beside) + bool(labels) > 1:
        raise UserError(f"{root}: has more than one list of classes: {', '.join(beside)}, --labels")
    path = epath.Path(labels) if labels else root / beside[0]
    classes = read_labels(path, images, root.name)
    class_names = listed or ordered(classes.values())
    numbers = {name: number for number, name in enumerate(class_names)}
    if (
        listed
        and all(name.isdecimal() for name in classes.values())
        and not all(name in numbers for name in classes.values())
    ):
        numbers = {str(number): number for number in range(len(listed))}
    for name in images:
        if classes[name] not in numbers:
            raise UserError(f"{path}: {name} is of {classes[name]}, which the class list lacks")
    order = sorted((numbers[classes[name]], name) for name in images)
    return [(name, number) for number, name in order], tuple(class_names)
