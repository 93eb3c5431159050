"""Stand-ins for all that an ImageNet run needs and only its user has, to rehearse it whole.

  python -m tests.end_to_end.imagenet_files DIR

Writes DIR/images, sixteen crops of scikit-learn's photographs in four class folders; DIR/vae, a
narrow AutoencoderKL of Stable Diffusion's shape in diffusers' layout; and DIR/inception.pth,
Inception in pytorch-fid's. Both have random weights: the distances mean nothing, all else is as it
will be.
"""

import json
from pathlib import Path
import sys
import zipfile

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

from data_pipeline.autoencoders import kl
from data_pipeline.autoencoders.kl_config import KLConfig
from shortcut_tpu.evaluation import inception
from tests.golden.torch_weights import KL_CONFIGS, inception_weights, torch_weights

_CLASSES, _CROP = 4, 256


def write_images(folder: Path, count: int) -> None:
    """`count` crops, dealt to the classes."""
    photos, rng = load_sample_images().images, np.random.default_rng(0)
    for index in range(count):
        photo, kind = photos[index % len(photos)], folder / f"class_{index % _CLASSES}"
        kind.mkdir(parents=True, exist_ok=True)
        top, left = (rng.integers(0, size - _CROP + 1) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + _CROP, left : left + _CROP]).save(kind / f"{index}.png")


def write_autoencoder(folder: Path) -> None:
    """As Stable Diffusion's, three halvings of the side, an eighth as wide or less."""
    folder.mkdir(parents=True)
    config = KL_CONFIGS["kl4"] | {
        "block_out_channels": [16, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    (folder / kl.CONFIG_FILE).write_text(json.dumps(config))
    shapes = kl.weight_shapes(KLConfig.load(folder / kl.CONFIG_FILE))
    save_file(torch_weights(shapes), folder / kl.WEIGHTS_FILE)


def write_state_dict(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """What torch.save writes of float32 tensors, by torch's own format of archives."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        entries = b""
        for key, (name, tensor) in enumerate(tensors.items()):
            strides = np.array(tensor.strides) // tensor.itemsize
            storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(key))
            storage += _text("cpu") + _number(tensor.size) + b"tQ"
            entries += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
            entries += _number(0) + _numbers(tensor.shape) + _numbers(strides) + b"\x89}tRs"
            file.writestr(f"archive/data/{key}", np.ascontiguousarray(tensor, "<f4").tobytes())
        file.writestr("archive/data.pkl", b"\x80\x02}" + entries + b".")


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _number(value: int) -> bytes:
    return b"J" + int(value).to_bytes(4, "little", signed=True)


def _numbers(values: np.ndarray | tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"


def write(folder: Path, count: int = 16) -> None:
    """All of it."""
    write_images(folder / "images", count)
    write_autoencoder(folder / "vae")
    write_state_dict(folder / "inception.pth", inception_weights(inception.weight_shapes()))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
