"""Remakes `resizes.npz`: what ADM's and the shortcut authors' own code makes of odd images.

Nothing of their code is kept here: it is imported from clones of
https://github.com/openai/guided-diffusion and https://github.com/kvfrans/shortcut-models. The
interpreter needs tensorflow and pillow; stand-ins take the place of what the two import beside.

Usage:
    python tests/golden/make_resize_goldens.py --adm=CLONE --official=CLONE --output=tests/golden
"""

import argparse
import importlib
from pathlib import Path
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.odd_images import odd_images

ADM_SIZE = 64
# The authors' code knows no other size; so many pixels apart are enough to keep.
OFFICIAL_STRIDE = 16


def adm(clone: Path, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, members in {
        "blobfile": (),
        "mpi4py": ("MPI",),
        "torch": (),
        "torch.utils": (),
        "torch.utils.data": ("DataLoader", "Dataset"),
    }.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, object)
        sys.modules[name] = module
    sys.path.insert(0, str(clone))
    crop = importlib.import_module("guided_diffusion.image_datasets").center_crop_arr
    return {name: crop(Image.fromarray(pixels), ADM_SIZE) for name, pixels in images.items()}


def official(clone: Path, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def load(*_: object, **__: object) -> tf.data.Dataset:
        signature = {
            "image": tf.TensorSpec((None, None, 3), tf.uint8),
            "label": tf.TensorSpec((), tf.int64),
        }
        items = [{"image": pixels, "label": 0} for pixels in images.values()]
        return tf.data.Dataset.from_generator(lambda: iter(items), output_signature=signature)

    stand_in = ModuleType("tensorflow_datasets")
    vars(stand_in).update(
        load=load,
        split_for_jax_process=lambda *_, **__: None,
        as_numpy=lambda dataset: dataset.as_numpy_iterator(),
    )
    sys.modules["tensorflow_datasets"] = stand_in
    sys.modules.setdefault("jax", SimpleNamespace())  # type: ignore[arg-type]
    sys.path.insert(0, str(clone))
    datasets = importlib.import_module("utils.datasets")
    # Of all its ways of reading, the one that neither shuffles nor flips.
    batches = datasets.get_dataset("imagenet256", len(images), is_train=False, debug_overfit=True)
    pixels, _ = next(batches)
    return {
        name: image[::OFFICIAL_STRIDE, ::OFFICIAL_STRIDE]
        for name, image in zip(images, pixels, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("adm", "official", "output"):
        parser.add_argument(f"--{flag}", type=Path, required=True)
    values = parser.parse_args()
    images = odd_images()
    arrays = {f"adm/{name}": pixels for name, pixels in adm(values.adm, images).items()}
    arrays |= {f"official/{name}": x for name, x in official(values.official, images).items()}
    np.savez_compressed(values.output / "resizes.npz", **arrays)


if __name__ == "__main__":
    main()
