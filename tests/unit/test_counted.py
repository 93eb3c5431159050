"""Memory and operations of programs, counted from shapes."""

import jax
import jax.numpy as jnp

from data_pipeline.autoencoders import abstract_autoencoder
from shortcut_tpu.compiled.counted import count

HIGHEST = jax.lax.Precision.HIGHEST


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_count_once_for_each_pass():
    def product(x, w):
        return jnp.matmul(x, w, precision=HIGHEST)

    assert count(product, array(8, 16), array(16, 4)).flops == 6 * 2 * 8 * 16 * 4
    assert count(jnp.matmul, array(8, 16), array(16, 4)).flops == 2 * 8 * 16 * 4
    turns = count(
        lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], array(8, 8), array(5, 8, 8)
    )
    assert turns.flops == 5 * 2 * 8**3


def test_what_is_used_no_more_takes_no_memory():
    """a, then b beside it, then c beside b: two arrays at once, and what is made of an argument."""

    def chain(x):
        return jnp.exp(jnp.sin(jnp.cos(x)))

    assert count(chain, array(1000)).live_bytes == 2 * 4000
    assert count(lambda x: jnp.cos(x) + jnp.sin(x) * jnp.exp(x), array(1000)).live_bytes == 4 * 4000


def test_a_published_decoder():
    """Stable Diffusion's: 1.24e12 operations for an image of 256x256 by hand, six times.

    By hand: 2 x 9 x channels in x channels out x pixels over all convolutions of 3x3.
    """
    autoencoder = abstract_autoencoder("sd-vae-ft-mse", 4)
    found = count(autoencoder.decode_with, autoencoder.decoder_weights, array(1, 32, 32, 4))
    convolutions = [
        (32, 4, 512, 1),
        (32, 512, 512, 10),
        (64, 512, 512, 7),
        (128, 512, 512, 1),
        (128, 512, 256, 1),
        (128, 256, 256, 5),
        (256, 256, 256, 1),
        (256, 256, 128, 1),
        (256, 128, 128, 5),
        (256, 128, 3, 1),
    ]
    by_hand = sum(18 * side**2 * ins * outs * many for side, ins, outs, many in convolutions)
    assert 1 < found.flops / (6 * by_hand) < 1.1
    # Three maps of 256 channels, 64 MiB each, and no more than a few.
    assert 2 < found.live_bytes / (256 * 256 * 256 * 4) < 8
