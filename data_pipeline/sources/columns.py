"""Finds a sample's image and label among its columns, features or files.

Usage:
    pick(schema.names, IMAGES, "", "image", path)     # "img"
"""

from collections.abc import Iterable, Sequence
import dataclasses

from data_pipeline.errors import UserError

IMAGES = ("image", "img", "images", "photo", "jpg", "jpeg", "png", "webp", "image_bytes")
LABELS = ("label", "labels", "cls", "class", "target", "fine_label", "class_id", "label_id")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names that a user gives; "" for one of the usual ones.

    Attributes:
        image: of the images.
        label: of the labels.
    """

    image: str = ""
    label: str = ""


USUAL = Columns()


def pick(there: Iterable[str], usual: Sequence[str], given: str, what: str, where: object) -> str:
    """The name of a column.

    Args:
        there: the names that there are.
        usual: those it usually has.
        given: what the user said, or "".
        what: image or label, which flags are named after.
        where: the file, for messages.

    Raises:
        UserError: there is none, or more than one.
    """
    names = list(there)
    found = [name for name in ((given,) if given else usual) if name in names]
    if len(found) == 1:
        return found[0]
    problem = f"{' or '.join(found)} may be the {what}" if found else f"none is a usual {what}"
    if given:
        problem = f"--{what}_column={given} is none of them"
    raise UserError(
        f"{where}: the columns are {', '.join(names)[:200]}: {problem}; name it by"
        f" --{what}_column" + (" (see --unlabeled)" if what == "label" else "")
    )
