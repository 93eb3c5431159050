"""The list of images that a folder of records lacks: `rejected.jsonl`, an object a line.

Usage:
    write_rejected(folder, rejected, temporary)
    check_rejected(folder, rejected, max_rejected=0)
    read_rejected(folder)
"""

from collections.abc import Sequence
import json
from pathlib import Path

from etils import epath

from data_pipeline.atomic_files import failures, put
from data_pipeline.decoding import Rejected
from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable

REJECTED_FILE = "rejected.jsonl"


def write_rejected(folder: epath.Path, rejected: Sequence[Rejected], temporary: Path) -> None:
    """Writes the list; without any image there is no such file.

    Args:
        folder: of the records, on a disk or in a bucket.
        rejected: the images.
        temporary: where the file is written before it gets its place.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / REJECTED_FILE
    try:
        if not rejected:
            path.unlink(missing_ok=True)
            return
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(f"{json.dumps(vars(image))}\n" for image in rejected))
        put(temporary, path)
    except failures() as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def check_rejected(folder: epath.Path, rejected: Sequence[Rejected], max_rejected: int) -> None:
    """Raises a UserError where more images were rejected than may be."""
    if len(rejected) > max_rejected:
        first = rejected[0]
        raise UserError(
            f"{len(rejected)} image(s) rejected so far, the first {first.name} ({first.reason});"
            f" all are in {folder / REJECTED_FILE}; --max_rejected={max_rejected} allows no more"
        )


def read_rejected(folder: epath.Path) -> list[Rejected]:
    """The images that `rejected.jsonl` lists.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / REJECTED_FILE
    try:
        return [Rejected(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except failures(TypeError, ValueError) as error:
        raise unreadable(path, error) from None
