"""DINOv2's vision transformers, on whose class token FD-DINOv2 is computed.

"DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193), patches of 14,
without registers. Weights go by the names and in the layout of the `transformers` package, as in
`facebook/dinov2-large`'s model.safetensors. The size, from ViT-S to ViT-g, is seen in the shapes.

FD-DINOv2 (arXiv 2306.04675) is of ViT-L/14 at 224 pixels. The weights know positions of 37 x 37
patches. The authors' code takes those of 16 x 16 from them with a step of 37 / 16.1, and so does
this; `transformers` takes 37 / 16, whose features differ a little.

Usage:
  weights = load_dinov2("model.safetensors")
  features = run(network, weights.tensors, images)   # [n, 224, 224, 3] in [-1, 1] to [n, 1024]
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import re
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import layers as layers_lib
from data_pipeline.autoencoders.layers import Layers, Shape
from data_pipeline.autoencoders.weights import fitted, read_safetensors
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.resize import cubic

IMAGE_SIZE = 224
_PATCH = 14
_HEAD = 64
_EPSILON = 1e-6
# Of ImageNet's images in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Of the cubic that torch interpolates with, and what is added to a grid's side.
_CUBIC = -0.75
_OFFSET = 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """What tells the networks of the family apart.

    Attributes:
      width: of a token, 64 for each head.
      depth: blocks.
      positions: those of patches that the weights hold, a square number.
      gated: whether the MLPs are gated, as in ViT-g.
    """

    width: int
    depth: int
    positions: int = 37**2
    gated: bool = False

    @classmethod
    def of(cls, weights: Mapping[str, Any]) -> "Size":
        """The size of some weights, by their names and shapes; a KeyError if they are no DINOv2."""
        _, tokens, width = weights["embeddings.position_embeddings"].shape
        blocks = {match[1] for match in map(_BLOCK.match, weights) if match}
        gated = any(name.endswith(".mlp.weights_in.weight") for name in weights)
        return cls(width, len(blocks), tokens - 1, gated)


_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")
LARGE = Size(width=1024, depth=24)


@dataclasses.dataclass(frozen=True, eq=False)
class DINOv2Weights:
    """Weights of `network`.

    Attributes:
      tensors: float32, by name.
      digest: the file's SHA-256.
      size: of the network.
    """

    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    digest: str
    size: Size


def network(size: Size, layers: Layers, images: jax.Array) -> jax.Array:
    """Images [n, H, W, 3] in [-1, 1], sides multiples of 14, to class tokens [n, width]."""
    x = (images * 0.5 + 0.5 - jnp.asarray(_MEAN)) / jnp.asarray(_STD)
    embeddings = layers.at("embeddings")
    patches = embeddings.at("patch_embeddings", "projection").conv(
        x, size.width, size=_PATCH, stride=_PATCH, padding=(0, 0)
    )
    n, rows, columns, _ = patches.shape
    learned = embeddings.weight("position_embeddings", (1, 1 + size.positions, size.width))
    token = embeddings.weight("cls_token", (1, 1, size.width)) + learned[:, :1]
    patches += _positions(learned[0, 1:], rows, columns)
    x = jnp.concatenate([jnp.repeat(token, n, 0), patches.reshape(n, -1, size.width)], axis=1)
    for index in range(size.depth):
        x = _block(size, layers.at("encoder", "layer", index), x)
    return layers.at("layernorm").layer_norm(x[:, 0], _EPSILON)


def _positions(learned: jax.Array, rows: int, columns: int) -> jax.Array:
    """Learned positions [M * M, width], interpolated for a grid [rows, columns, width]."""
    side = math.isqrt(len(learned))
    grid = learned.reshape(side, side, -1)
    if (rows, columns) == (side, side):
        return grid
    down, across = (jnp.asarray(_cubic_weights(side, count)) for count in (rows, columns))
    return jnp.einsum("rh,cw,hwd->rcd", down, across, grid, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def _cubic_weights(side: int, count: int) -> np.ndarray:
    """[count, side]: what each of `count` places takes of the old ones, beyond the end the last."""
    place = (np.arange(count) + 0.5) * side / (count + _OFFSET) - 0.5
    weights = np.zeros((count, side), np.float32)
    for offset in (-1, 0, 1, 2):
        taken = np.floor(place) + offset
        index = np.clip(taken, 0, side - 1).astype(int)
        np.add.at(weights, (np.arange(count), index), cubic(place - taken, _CUBIC))
    return weights


def _block(size: Size, layers: Layers, x: jax.Array) -> jax.Array:
    hidden = _attention(size, layers.at("attention"), layers.at("norm1").layer_norm(x, _EPSILON))
    x = x + layers.at("layer_scale1").weight("lambda1", (size.width,)) * hidden
    hidden = _mlp(size, layers.at("mlp"), layers.at("norm2").layer_norm(x, _EPSILON))
    return x + layers.at("layer_scale2").weight("lambda1", (size.width,)) * hidden


def _attention(size: Size, layers: Layers, x: jax.Array) -> jax.Array:
    n, tokens, width = x.shape

    def heads(name: str) -> jax.Array:
        made = layers.at("attention", name).linear(x, width)
        return made.reshape(n, tokens, -1, _HEAD).swapaxes(1, 2).reshape(-1, tokens, _HEAD)

    out = layers_lib.attention(heads("query"), heads("key"), heads("value"))
    out = out.reshape(n, -1, tokens, _HEAD).swapaxes(1, 2).reshape(n, tokens, width)
    return layers.at("output", "dense").linear(out, width)


def _mlp(size: Size, layers: Layers, x: jax.Array) -> jax.Array:
    if not size.gated:
        hidden = layers.at("fc1").linear(x, 4 * size.width)
        return layers.at("fc2").linear(jax.nn.gelu(hidden, approximate=False), size.width)
    # Two thirds of four times the width, in whole eights.
    inner = (4 * size.width * 2 // 3 + 7) // 8 * 8
    gate, value = jnp.split(layers.at("weights_in").linear(x, 2 * inner), 2, axis=-1)
    return layers.at("weights_out").linear(jax.nn.silu(gate) * value, size.width)


def weight_shapes(size: Size = LARGE) -> dict[str, Shape]:
    """The shapes of all weights by name."""
    made = functools.partial(network, size)
    return layers_lib.shapes_of(made, (1, IMAGE_SIZE, IMAGE_SIZE, 3))


def load_dinov2(path: epath.PathLike) -> DINOv2Weights:
    """Loads a model.safetensors.

    Args:
      path: local or `gs://`.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    tensors, digest = read_safetensors(path)
    # What stands for patches that training hides.
    tensors.pop("embeddings.mask_token", None)
    try:
        size = Size.of(tensors)
    except (KeyError, ValueError):
        raise UserError(
            f"{path}: holds no DINOv2 as `transformers` names it, such as facebook/dinov2-large's "
            "model.safetensors"
        ) from None
    if size.width % _HEAD or math.isqrt(size.positions) ** 2 != size.positions:
        raise UserError(
            f"{path}: its tokens have {size.width} numbers and {size.positions} positions; DINOv2's"
            f" have a multiple of {_HEAD} and a square"
        )
    return DINOv2Weights(fitted(path, tensors, weight_shapes(size)), digest, size)
