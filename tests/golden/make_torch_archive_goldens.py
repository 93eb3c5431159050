"""Writes small files with `torch.save`, in both of its forms, for the reader's tests.

Usage:
    $ python tests/golden/make_torch_archive_goldens.py  # where torch is installed
"""

from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def main() -> None:
    """Saves every type the reader knows, a shared storage, and tensors that are not contiguous."""
    shared = torch.arange(24, dtype=torch.float32)
    tensors = {
        "contiguous": shared.reshape(2, 3, 4),
        "permuted": shared.reshape(2, 3, 4).permute(2, 0, 1),
        "sliced": shared.reshape(4, 6)[1:, ::2],
        "expanded": torch.tensor([7.0]).expand(3, 2),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(5, dtype=torch.int64),
        "half": torch.tensor([0.5, -65504.0], dtype=torch.float16),
        "bfloat16": torch.tensor([1.5, 3.0e38], dtype=torch.bfloat16),
        "double": torch.tensor([1.0 / 3.0], dtype=torch.float64),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
    }
    torch.save(tensors, FOLDER / "torch_zip.pth")
    torch.save(tensors, FOLDER / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    # A module's state_dict is an OrderedDict that carries versions of the module beside it.
    torch.save(torch.nn.BatchNorm2d(3).state_dict(), FOLDER / "torch_module.pth")


if __name__ == "__main__":
    main()
