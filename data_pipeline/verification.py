"""Verifies a folder of records: every byte and every record.

Usage:
    manifest = verify_records("DIR")
"""

import os

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.progress import progress_bar
from data_pipeline.records import LatentReader, verify
from data_pipeline.rejects import REJECTED_FILE, read_rejected

_BATCH = 1024


def verify_records(
    directory: str | os.PathLike[str], copy: str | os.PathLike[str] = ""
) -> Manifest:
    """Compares every shard with its checksum, then reads and decodes every record.

    Args:
        directory: the folder.
        copy: of a folder in a bucket, where its records have been copied to.

    Returns:
        The manifest.

    Raises:
        UserError: names the first shard or record that is missing, differs, is not finite, or has
            a label without a class; or the list of rejected images where it is not complete.
    """
    copy = copy or directory
    manifest = verify(copy)
    reader = LatentReader(copy)
    with progress_bar("records", len(reader)) as advance:
        for start in range(0, len(reader), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(reader)))
            for name, values in reader.read(indices).items():
                if name == "label":
                    good = (values >= 0) & (values < manifest.num_classes)
                else:
                    good = np.isfinite(values).reshape(len(indices), -1).all(1)
                if not good.all():
                    bad = indices[~good][0]
                    raise UserError(f"{directory}: the {name} of record {bad} is out of range")
            advance(len(indices))
    listed, rejected = (
        len(read_rejected(epath.Path(directory))),
        manifest.preprocessing.get("rejected"),
    )
    if rejected is not None and listed != rejected:
        raise UserError(
            f"{epath.Path(directory) / REJECTED_FILE}: lists {listed} images, the manifest counts"
            f" {rejected}"
        )
    return manifest
