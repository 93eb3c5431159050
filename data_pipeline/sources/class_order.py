"""The order of a source's classes, which gives them their numbers.

A list that comes with a data set decides: `classes.txt` or TFDS's `label.labels.txt` beside the
images, a class a line. Without one, classes that are numbered are in the order of their numbers,
and others by name.

Usage:
    names = read_class_list(folder) or ordered({"10", "2"})    # ("2", "10")
"""

from collections.abc import Iterable, Sequence
import re

from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures
from data_pipeline.errors import UserError
from data_pipeline.system_errors import reason

CLASS_LISTS = ("classes.txt", "label.labels.txt")
_NUMBERED = re.compile(r"(.*?)(\d+)")
_SPLITS = re.compile(r"(train|training|val|valid|validation|dev|test|testing|eval)(20\d\d)?", re.I)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order; 10 comes after 2, and class10 after class2."""
    distinct = sorted(set(names))
    parts = [_NUMBERED.fullmatch(name) for name in distinct]
    if len({found[1] for found in parts if found}) == 1 and all(parts):
        return tuple(sorted(distinct, key=lambda name: int(re.findall(r"\d+", name)[-1])))
    return tuple(distinct)


def read_class_list(folder: epath.Path) -> tuple[str, ...] | None:
    """The class names in a folder's list, by label; None where it has none.

    Raises:
        UserError: it cannot be read, holds no names, or one twice.
    """
    for path in (folder / name for name in CLASS_LISTS):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            continue
        except failures(UnicodeError) as error:
            raise UserError(f"{path}: cannot be read: {reason(error)}") from None
        names = tuple(line.strip() for line in text.splitlines())
        while names and not names[-1]:
            names = names[:-1]
        if not names:
            raise UserError(f"{path}: holds no class names")
        for number, name in enumerate(names, start=1):
            if not name or name in names[: number - 1]:
                raise UserError(
                    f"{path}: line {number} names {'a class twice' if name else 'none'}"
                )
        return names
    return None


def numbered(
    labels: Sequence[int] | np.ndarray, names: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    """Class names for labels that are numbers: a list's, or 0, 1, ... up to the largest.

    Raises:
        UserError: a label is none of the list's.
    """
    largest = int(max(labels))
    if names is None:
        return tuple(str(label) for label in range(largest + 1))
    if largest >= len(names):
        raise UserError(f"{where}: label {largest} is not one of {len(names)} classes")
    return names


def is_split(name: str) -> bool:
    """Whether a folder's name is that of a part of a data set, such as train or val2017."""
    return _SPLITS.fullmatch(name) is not None


def refuse_mixed_splits(pattern: str, paths: Iterable[epath.Path]) -> None:
    """Raises a UserError where files of one set are of several parts, such as train and val."""
    found = {
        word.lower() for path in paths for word in re.split(r"[-_.]", path.name) if is_split(word)
    }
    if len(found) > 1:
        raise UserError(
            f"{pattern}: holds the splits {', '.join(sorted(found))}; name one by a pattern"
        )
