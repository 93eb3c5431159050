"""Arrays of a numpy archive that anybody may have made: never a pickle, and nothing but arrays.

Usage:
    arrays = read_npz("images.npz", ("images", "labels"))    # those of them that it holds
"""

from collections.abc import Collection
import os

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.system_errors import raise_if_system


def read_npz(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads some arrays of an archive.

    Args:
        path: the file, local or `gs://`.
        names: of the arrays; the others are not read.

    Returns:
        Those of them that are there, by name.

    Raises:
        UserError: the file is missing or damaged, or one of them is no array.
    """
    try:
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files if name in names}
    # A damaged archive, of which zipfile and numpy believe every word, can end in almost any.
    except Exception as error:
        raise_if_system(path, error)
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable npz archive: {reason}") from None
    for name, array in found.items():
        # numpy gives the bytes of a member that is none.
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: not a readable npz archive: {name} is no array")
    return found
