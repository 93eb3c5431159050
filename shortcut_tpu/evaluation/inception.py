"""The Inception network of 2015-12-05, on whose features a FID is computed.

"Rethinking the Inception Architecture" (arXiv 1512.00567) in the version of TensorFlow's
`classify_image_graph_def.pb`. It differs from the later Inception v3: average pools leave out
padding, the last block pools by maximum, and there are 1008 classes. Weights go by the names and in
the layout of the `pytorch-fid` package.

Usage:
  out = run(network, weights, images)  # images [n, 299, 299, 3] in [-1, 1]
  out.pool, out.spatial, out.logits    # [n, 2048], [n, 17 * 17 * 7], [n, 1008]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import layers as layers_lib
from data_pipeline.autoencoders.layers import Layers, Shape

IMAGE_SIZE = 299
POOL_FEATURES = 2048
CLASSES = 1008
# ADM's evaluator takes the first channels of mixed_6/conv for its sFID.
_SPATIAL_CHANNELS = 7
_SPATIAL_SIDE = 17
SPATIAL_FEATURES = _SPATIAL_SIDE**2 * _SPATIAL_CHANNELS
_EPSILON = 1e-3
_VALID = (0, 0)


class Activations(NamedTuple):
    """What the distances need of the network.

    Attributes:
      pool: [n, 2048], averaged over the last feature map (pool_3).
      spatial: [n, 289 * 7], seven channels of the 17x17 map mixed_6/conv, in row-major order.
      logits: [n, 1008] of the classifier.
      unbiased_logits: the same without the bias, which the Inception Score leaves out.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array
    unbiased_logits: jax.Array


def network(layers: Layers, images: jax.Array) -> Activations:
    """Images [n, 299, 299, 3] in [-1, 1] to what the distances need; other sizes pass too."""
    x = _conv(layers.at("Conv2d_1a_3x3"), images, 32, 3, stride=2, padding=_VALID)
    x = _conv(layers.at("Conv2d_2a_3x3"), x, 32, 3, padding=_VALID)
    x = _max_pool(_conv(layers.at("Conv2d_2b_3x3"), x, 64, 3))
    x = _conv(layers.at("Conv2d_3b_1x1"), x, 80, 1)
    x = _max_pool(_conv(layers.at("Conv2d_4a_3x3"), x, 192, 3, padding=_VALID))
    for name, pool_channels in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = _block_35(layers.at(f"Mixed_{name}"), x, pool_channels)
    x = _reduce_35(layers.at("Mixed_6a"), x)
    x = _block_17(layers.at("Mixed_6b"), x, 128)
    x = _block_17(layers.at("Mixed_6c"), x, 160)
    spatial = _conv(layers.at("Mixed_6d", "branch1x1"), x, 192, 1)[..., :_SPATIAL_CHANNELS]
    x = _block_17(layers.at("Mixed_6d"), x, 160)
    x = _block_17(layers.at("Mixed_6e"), x, 192)
    x = _reduce_17(layers.at("Mixed_7a"), x)
    x = _block_8(layers.at("Mixed_7b"), x, _average_pool(x))
    x = _block_8(layers.at("Mixed_7c"), x, _max_pool(x, stride=1, padding="SAME"))
    pool = x.mean((1, 2))
    head = layers.at("fc")
    return Activations(
        pool=pool,
        spatial=spatial.reshape(len(spatial), -1),
        logits=head.linear(pool, CLASSES),
        unbiased_logits=head.linear(pool, CLASSES, bias=False),
    )


def weight_shapes() -> dict[str, Shape]:
    """The shapes of all weights by name."""
    return layers_lib.shapes_of(network, (1, IMAGE_SIZE, IMAGE_SIZE, 3))


def _conv(
    layers: Layers,
    x: jax.Array,
    outputs: int,
    size: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
) -> jax.Array:
    """Convolution, batch normalisation, ReLU."""
    x = layers.at("conv").conv(x, outputs, size=size, stride=stride, padding=padding, bias=False)
    return jax.nn.relu(layers.at("bn").batch_norm(x, _EPSILON))


def _max_pool(x: jax.Array, *, stride: int = 2, padding: str = "VALID") -> jax.Array:
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """Means over 3x3 neighbourhoods, of those pixels that lie in the image."""

    def add(array: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(array, 0.0, jax.lax.add, (1, 3, 3, 1), (1,) * 4, "SAME")

    # The counts are known beforehand, so that the compiled program need not find them again.
    rows, columns = (_neighbours(side) for side in x.shape[1:3])
    return add(x) / (rows[:, None] * columns)[None, :, :, None]


def _neighbours(side: int) -> np.ndarray:
    """How many of three neighbours in a row of `side` pixels there are, by pixel."""
    place = np.arange(side)
    return (np.minimum(place + 1, side - 1) - np.maximum(place - 1, 0) + 1).astype(np.float32)


def _block_35(layers: Layers, x: jax.Array, pool_channels: int) -> jax.Array:
    one = _conv(layers.at("branch1x1"), x, 64, 1)
    five = _conv(layers.at("branch5x5_1"), x, 48, 1)
    five = _conv(layers.at("branch5x5_2"), five, 64, 5)
    three = _conv(layers.at("branch3x3dbl_1"), x, 64, 1)
    three = _conv(layers.at("branch3x3dbl_2"), three, 96, 3)
    three = _conv(layers.at("branch3x3dbl_3"), three, 96, 3)
    pool = _conv(layers.at("branch_pool"), _average_pool(x), pool_channels, 1)
    return jnp.concatenate((one, five, three, pool), -1)


def _reduce_35(layers: Layers, x: jax.Array) -> jax.Array:
    three = _conv(layers.at("branch3x3"), x, 384, 3, stride=2, padding=_VALID)
    double = _conv(layers.at("branch3x3dbl_1"), x, 64, 1)
    double = _conv(layers.at("branch3x3dbl_2"), double, 96, 3)
    double = _conv(layers.at("branch3x3dbl_3"), double, 96, 3, stride=2, padding=_VALID)
    return jnp.concatenate((three, double, _max_pool(x)), -1)


def _block_17(layers: Layers, x: jax.Array, width: int) -> jax.Array:
    one = _conv(layers.at("branch1x1"), x, 192, 1)
    seven = _conv(layers.at("branch7x7_1"), x, width, 1)
    seven = _conv(layers.at("branch7x7_2"), seven, width, (1, 7))
    seven = _conv(layers.at("branch7x7_3"), seven, 192, (7, 1))
    double = _conv(layers.at("branch7x7dbl_1"), x, width, 1)
    double = _conv(layers.at("branch7x7dbl_2"), double, width, (7, 1))
    double = _conv(layers.at("branch7x7dbl_3"), double, width, (1, 7))
    double = _conv(layers.at("branch7x7dbl_4"), double, width, (7, 1))
    double = _conv(layers.at("branch7x7dbl_5"), double, 192, (1, 7))
    pool = _conv(layers.at("branch_pool"), _average_pool(x), 192, 1)
    return jnp.concatenate((one, seven, double, pool), -1)


def _reduce_17(layers: Layers, x: jax.Array) -> jax.Array:
    three = _conv(layers.at("branch3x3_1"), x, 192, 1)
    three = _conv(layers.at("branch3x3_2"), three, 320, 3, stride=2, padding=_VALID)
    seven = _conv(layers.at("branch7x7x3_1"), x, 192, 1)
    seven = _conv(layers.at("branch7x7x3_2"), seven, 192, (1, 7))
    seven = _conv(layers.at("branch7x7x3_3"), seven, 192, (7, 1))
    seven = _conv(layers.at("branch7x7x3_4"), seven, 192, 3, stride=2, padding=_VALID)
    return jnp.concatenate((three, seven, _max_pool(x)), -1)


def _block_8(layers: Layers, x: jax.Array, pooled: jax.Array) -> jax.Array:
    one = _conv(layers.at("branch1x1"), x, 320, 1)
    three = _conv(layers.at("branch3x3_1"), x, 384, 1)
    three_a = _conv(layers.at("branch3x3_2a"), three, 384, (1, 3))
    three_b = _conv(layers.at("branch3x3_2b"), three, 384, (3, 1))
    double = _conv(layers.at("branch3x3dbl_1"), x, 448, 1)
    double = _conv(layers.at("branch3x3dbl_2"), double, 384, 3)
    double_a = _conv(layers.at("branch3x3dbl_3a"), double, 384, (1, 3))
    double_b = _conv(layers.at("branch3x3dbl_3b"), double, 384, (3, 1))
    pool = _conv(layers.at("branch_pool"), pooled, 192, 1)
    return jnp.concatenate((one, three_a, three_b, double_a, double_b, pool), -1)
