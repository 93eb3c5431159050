"""Protocols prepare images as their evaluators do, and refuse what they cannot measure."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.features import POOL, load_features
from shortcut_tpu.evaluation.protocols import PROTOCOLS, get_protocol, to_bytes
from shortcut_tpu.evaluation.resize import RESIZES, tensorflow1


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 11), (12, 9, 5), (6, 6, 6)])
def test_tensorflow_1_reads_pixels_at_their_corners(height, width, size):
    """r(i, j) is the image at (i H / s, j W / s), linear between pixels, constant beyond."""
    image = np.random.default_rng(0).normal(size=(height, width))
    expected = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            rows = image[[top, bottom]] * np.array([[1 - (y - top)], [y - top]])
            expected[i, j] = (rows[:, [left, right]] @ [1 - (x - left), x - left]).sum()
    found = tensorflow1(jnp.asarray(image[None, ..., None], jnp.float32), size)
    np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-5, atol=1e-5)


def test_tensorflow_1_counts_places_in_float32():
    """256 to 299 by compat.v1.image.resize_bilinear of TensorFlow 2.21, of columns 0, 255, 0, ...

    With places in float64 each of these is off by 2.2e-3.
    """
    columns = 255 * (jnp.arange(256) % 2)[None, None, :, None] * jnp.ones((1, 2, 1, 1))
    expected = {217: 52.8785706, 228: 201.2731932, 239: 160.3321838, 261: 136.4570618}
    found = tensorflow1(columns, 299)[0, 0, :, 0]
    np.testing.assert_allclose(found[np.array(list(expected))], list(expected.values()), atol=1e-4)


def test_the_other_resizes_read_at_centres():
    ramp = jnp.arange(8.0)[None, None, :, None] * jnp.ones((1, 8, 1, 1))
    # Halved, pixels lie between two old ones; antialiasing takes in their neighbours as well.
    np.testing.assert_allclose(RESIZES["bilinear"](ramp, 4)[0, 0, :, 0], [0.5, 2.5, 4.5, 6.5])
    spike = jnp.zeros((1, 8, 8, 1)).at[0, :, 0].set(1)
    plain, smooth = (RESIZES[name](spike, 2)[0, 0, 0, 0] for name in ("bilinear", "antialiased"))
    assert (float(plain), float(smooth) > 0) == (0, True)


def test_bytes_are_those_of_dits_sampling_script():
    """clamp(127.5 x + 128, 0, 255) cut off; a byte that was read comes out as itself."""
    values = np.array([-2.0, -1.0, -0.9961, 0.0, 0.5, 1.0, 3.0])
    expected = np.clip(127.5 * values + 128, 0, 255).astype(np.uint8)
    assert to_bytes(jnp.asarray(values)).tolist() == expected.tolist()
    every = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(to_bytes(jnp.asarray(every / 127.5 - 1)), every)


def test_what_the_network_sees():
    images = jnp.full((1, 4, 4, 3), 0.301)
    found = {name: protocol.prepare(images) for name, protocol in PROTOCOLS.items()}
    byte = np.floor(127.5 * 0.301 + 128)
    for name, value, side in (
        ("adm", (byte - 128) / 128, 299),
        ("official", 0.301, 299),
        ("jax-fid", byte / 127.5 - 1, 299),
        ("fd_dinov2", byte / 127.5 - 1, 224),
        ("fd_efficientnet", 0.301, 224),
        ("fd_pixel", 0.301, 4),
    ):
        assert found[name].shape == (1, side, side, 3)
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert get_protocol("adm").prepare(jnp.zeros((1, 8, 8, 1))).shape == (1, 299, 299, 3)


def test_only_inception_makes_a_fid():
    for protocol in PROTOCOLS.values():
        assert ("fid" in protocol.distances) == (protocol.network == "inception")
    features = load_features(get_protocol("fd_pixel"))
    out = features.compute({}, jnp.full((2, 3, 3, 1), 7.0))
    assert out[POOL].tolist() == [[1.0] * 9] * 2
    assert features.sizes((3, 3, 1)) == {POOL: 9}


@pytest.mark.parametrize(
    ("protocol", "features", "message"),
    [
        ("adm", "", "needs Inception's weights: --features=inception:FILE"),
        ("adm", "efficientnet", "protocol adm measures on inception"),
        ("fd_pixel", "pixels:file", "pixels have no weights"),
    ],
)
def test_features_that_do_not_fit_are_refused(protocol, features, message):
    with pytest.raises(UserError, match=message):
        load_features(get_protocol(protocol), features)
