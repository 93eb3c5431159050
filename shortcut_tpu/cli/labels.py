"""Parses labels given by number, by class name or as null, and names labels.

Usage:
  parse_labels("3,goldfish,null", config.data)    # [3, 1, 1000]
  label_names([3, 1, 1000], config.data)          # ["tiger shark", "goldfish", "no label"]
"""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest

_MOST = 20


def parse_labels(text: str | None, data: Mapping[str, Any]) -> list[int]:
    """Labels of a flag like 3,goldfish,null; the first 20 if it was not given.

    A number is a label. Where the records' classes are numbers themselves, such as 1 .. 10, it may
    be meant as a name: if both could be, it must be written label:3 or class:3. A name is a class
    name of the records, or, as in ImageNet's `goldfish, Carassius auratus`, one of its parts; case
    does not count.

    Args:
      text: the flag's value.
      data: the config's `data`: num_classes and path.

    Raises:
      UserError: one is no label of the run, or the records that would tell are not here.
    """
    num_classes = data["num_classes"]
    if text is None:
        return list(range(min(num_classes, _MOST)))
    parts = [part.strip() for part in text.split(",")]
    names: dict[str, list[int]] = {}
    if not all(part.removeprefix("label:").isdecimal() or part == "null" for part in parts):
        names = _by_name(text, data["path"])
    labels = []
    for part in parts:
        kind, _, rest = part.rpartition(":")
        if kind == "label" and rest.isdecimal():
            found = [int(rest)]
        elif part.isdecimal():
            found = _number(int(part), data["path"])
        else:
            found = names.get((rest if kind == "class" else part).lower(), [])
        if part == "null":
            found = [num_classes]
        elif len(found) == 1 and found[0] >= num_classes:
            found = []
        if len(found) != 1:
            raise UserError(f"--labels: {part!r} {_problem(part, found, names, num_classes)}")
        labels += found
    return labels


def label_names(labels: Iterable[int], data: Mapping[str, Any]) -> list[str]:
    """The names of labels for people: `class 3` where the records that know better are not here.

    Of names like ImageNet's `goldfish, Carassius auratus` the first.

    Args:
      labels: in 0 .. num_classes, which stands for none.
      data: the config's `data`: num_classes and path.
    """
    try:
        class_names = Manifest.load(data["path"]).class_names
    except UserError:
        class_names = ()
    named = {label: name.split(",")[0].strip() for label, name in enumerate(class_names)}
    named[data["num_classes"]] = "no label"
    return [named.get(int(label)) or f"class {label}" for label in labels]


def _number(label: int, path: str) -> list[int]:
    """The labels that a number may stand for."""
    try:
        class_names = Manifest.load(path).class_names
    except UserError:
        return [label]  # Without the records nothing else is known.
    if not all(name.isdecimal() for name in class_names):
        return [label]
    named = {number for number, name in enumerate(class_names) if int(name) == label}
    return sorted(named | {label for _ in class_names[label : label + 1]}) or [label]


def _by_name(text: str, path: str) -> dict[str, list[int]]:
    """The labels that a name may stand for."""
    try:
        class_names = Manifest.load(path).class_names
    except UserError as error:
        raise UserError(
            f"--labels={text}: the records that know class names cannot be read ({error}); give "
            "numbers"
        ) from None
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for label, class_name in enumerate(class_names):
        whole.setdefault(class_name.lower(), []).append(label)
        for part in {part.strip().lower() for part in class_name.split(",")}:
            parts.setdefault(part, []).append(label)
    return parts | whole


def _problem(part: str, found: list[int], names: dict[str, list[int]], num_classes: int) -> str:
    if found:
        return f"may be any of {', '.join(map(str, found))}; give label:{found[0]} or class:NAME"
    near = difflib.get_close_matches(part.lower(), names, n=1)
    hint = f"; the nearest class is {near[0]!r}" if near else ""
    return f"is not a label in 0 .. {num_classes - 1}{hint}"
