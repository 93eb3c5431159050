"""Reads lists of files and their classes.

One file a line, `NAME CLASS`, apart by a tab, a comma, a semicolon or blanks. Where a character
separates, fields may be quoted, and a header line may name the columns. With blanks all that
follows the name is the class. Names may lack their extension, or have their folder before them.
UTF-8, with or without a mark, or UTF-16 with one. ILSVRC's `LOC_val_solution.csv` is such a list:
of its PredictionString the first word counts.

Usage:
    read_labels(path, ["a.png", "b.png"], "val")    # {"a.png": "polar bear", "b.png": "ant"}
"""

import codecs
from collections.abc import Iterator, Sequence
import csv
import io
import unicodedata

from etils import epath

from data_pipeline.atomic_files import failures
from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable

_SEPARATORS = ("\t", ",", ";")
_BLANK = " "
_NAME_COLUMNS = (
    *("imageid", "image_id", "image", "img", "file", "filename", "file_name", "filepath", "path"),
    *("image_path", "file_path", "name", "id", "image_name"),
)
_CLASS_COLUMNS = (
    *("class_name", "classname", "label_name", "class", "label", "labels", "category", "target"),
    *("class_id", "label_id", "species", "breed", "predictionstring"),
)
_PREDICTIONS = "predictionstring"
_Line = tuple[int, list[str]]


def read_labels(path: epath.Path, images: Sequence[str], folder: str) -> dict[str, str]:
    """The class of every image.

    Args:
        path: the list.
        images: the names of the files in the folder.
        folder: its own name, which may stand before theirs.

    Raises:
        UserError: the list cannot be read or understood, names a file that is not there, lacks one
            that is, or gives one two classes.
    """
    text = _text(path)
    known = _known(images, folder)
    separator = max(
        (_BLANK, *_SEPARATORS),
        key=lambda one: _understood(_lines(text, one), known),
    )
    lines = _lines(text, separator)
    header = [field.lower() for field in lines[0][1]] if lines else []
    if set(lines[0][1] if lines else ()) & set(known) or not set(header) & set(_NAME_COLUMNS):
        header = []
    found: Iterator[tuple[int, str, str]]
    if separator == _BLANK:
        found = (_words(path, *line, known) for line in lines[bool(header) :])
    else:
        found = _columns(path, lines[bool(header) :], header)
    classes: dict[str, str] = {}
    for number, name, class_name in found:
        if name not in known:
            raise UserError(f"{path}: line {number} names {name}, which is not in the folder")
        if not class_name:
            raise UserError(f"{path}: line {number} gives {name} no class")
        if classes.setdefault(known[name], class_name) != class_name:
            raise UserError(f"{path}: line {number} gives {name} a second class")
    missing = sorted(set(images) - set(classes))
    if missing:
        raise UserError(f"{path}: does not list {missing[0]} ({len(missing)} of {len(images)})")
    return classes


def _text(path: epath.Path) -> str:
    try:
        content = path.read_bytes()
    except failures() as error:
        raise unreadable(path, error) from None
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeError:
        raise UserError(f"{path}: is no UTF-8 text; save it as UTF-8") from None
    # A name may be encoded in two ways, of which a list has one and a disk the other.
    return unicodedata.normalize("NFC", text)


def _known(images: Sequence[str], folder: str) -> dict[str, str]:
    """The images by all that a list may call them."""
    stems: dict[str, list[str]] = {}
    for name in images:
        stems.setdefault(name.rpartition(".")[0], []).append(name)
    known = {stem: names[0] for stem, names in stems.items() if stem and len(names) == 1}
    known |= {name: name for name in images}
    before = ("./", f"{folder}/", f"./{folder}/")
    known |= {f"{prefix}{called}": name for called, name in known.items() for prefix in before}
    return {unicodedata.normalize("NFC", called): name for called, name in known.items()}


def _understood(lines: list[_Line], known: dict[str, str]) -> tuple[int, int]:
    """How many lines name a file, and how many have several fields."""
    return (
        sum(any(field in known for field in fields) for _, fields in lines),
        sum(len(fields) > 1 for _, fields in lines),
    )


def _lines(text: str, separator: str) -> list[_Line]:
    """The fields of each line that is not empty, with its number."""
    if separator == _BLANK and not text.lstrip().startswith('"'):
        split = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
        return [line for line in split if line[1]]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    lines = []
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if any(stripped):
                lines.append((reader.line_num, stripped))
    except csv.Error:
        return []  # With another separator it may be none.
    return lines


def _words(
    path: epath.Path, number: int, fields: list[str], known: dict[str, str]
) -> tuple[int, str, str]:
    """Name and class of a line of words; of names with blanks the longest that there is."""
    for end in range(len(fields) - 1, 0, -1):
        if (name := " ".join(fields[:end])) in known:
            return number, name, " ".join(fields[end:]).strip()
    if len(fields) < 2:
        raise UserError(f"{path}: line {number} is not `NAME CLASS`")
    return number, fields[0], " ".join(fields[1:])


def _columns(
    path: epath.Path, lines: list[_Line], header: list[str]
) -> Iterator[tuple[int, str, str]]:
    """Name and class of each line of fields."""
    name_at, class_at, width = 0, 1, len(header) or 2
    if header:
        name_at = header.index(next(column for column in _NAME_COLUMNS if column in header))
        columns = [column for column in _CLASS_COLUMNS if column in header]
        if not columns and width != 2:
            raise UserError(f"{path}: none of the columns {', '.join(header)} is `class`")
        class_at = header.index(columns[0]) if columns else 1 - name_at
    predictions = bool(header) and header[class_at] == _PREDICTIONS
    for number, fields in lines:
        if len(fields) < 2:
            raise UserError(f"{path}: line {number} is not `NAME CLASS`")
        if len(fields) != width:
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, not {width}; name them in a"
                " first line such as file,class, and quote what holds a separator"
            )
        words = fields[class_at].split()
        yield number, fields[name_at], words[0] if predictions and words else fields[class_at]
