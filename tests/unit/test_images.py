"""Pictures arrive as the papers' own code would make them, and odd files as a person sees them."""

import io
from pathlib import Path
import struct

import numpy as np
from PIL import Image
import pytest

from data_pipeline.images import RESIZES, Preprocessing, RejectedImageError
from tests.golden.odd_images import odd_images

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "resizes.npz")


@pytest.mark.parametrize("name", odd_images())
def test_adm_is_the_resize_of_its_authors(name):
    """Golden: ADM's center_crop_arr."""
    ours = RESIZES["adm"](Image.fromarray(odd_images()[name]), 64)
    assert np.array_equal(ours, GOLDEN[f"adm/{name}"])


@pytest.mark.parametrize("name", odd_images())
def test_official_is_the_resize_of_its_authors(name):
    """Golden: shortcut-models' deserialization_fn, by TensorFlow."""
    ours = RESIZES["official"](Image.fromarray(odd_images()[name]), 256)
    assert (ours.shape, ours.dtype) == ((256, 256, 3), np.float32)
    np.testing.assert_allclose(ours[::16, ::16], GOLDEN[f"official/{name}"], atol=2e-6)


def test_they_differ():
    image = Image.fromarray(odd_images()["300x451"])
    adm = RESIZES["adm"](image, 64) / 127.5 - 1
    assert np.abs(adm - RESIZES["official"](image, 64)).max() > 0.01


@pytest.mark.parametrize("name", odd_images())
def test_official_at_other_sizes(name):
    """JAX's antialiased resize is another implementation of the same filter."""
    import jax

    pixels = odd_images()[name].astype(np.float32)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    expected = jax.image.resize(square, (24, 24, 3), "linear", antialias=True) / 127.5 - 1
    ours = RESIZES["official"](Image.fromarray(odd_images()[name]), 24)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


PICTURE = odd_images()["64x64"]


def file(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def seen(data: bytes) -> np.ndarray:
    """What the preprocessing makes of a picture that has its size already."""
    return Preprocessing("adm", 64)(data).astype(int)


def test_grey_palette_and_16_bits():
    grey = Image.fromarray(PICTURE[..., 0])
    expected = np.repeat(PICTURE[..., :1], 3, -1)
    assert np.array_equal(seen(file(grey)), expected)
    wide = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    assert np.array_equal(seen(file(wide)), expected)
    assert np.array_equal(seen(file(wide, "TIFF")), expected)
    palette = Image.fromarray(PICTURE).quantize(8)
    assert np.array_equal(seen(file(palette, "GIF")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(("alpha", "weight"), [(0, 0.0), (255, 1.0), (128, 128 / 255)])
def test_transparent_pixels_lie_on_white(alpha, weight):
    image = Image.fromarray(np.dstack([PICTURE, np.full((64, 64), alpha, np.uint8)]))
    expected = weight * PICTURE + (1 - weight) * 255
    assert np.abs(seen(file(image)) - expected).max() <= 1
    assert np.abs(seen(file(image, "WEBP", lossless=True, exact=True)) - expected).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (64, 64), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (seen(file(image, "GIF", transparency=1)) == 255).all()
    assert (seen(file(image, "GIF")) == (40, 50, 60)).all()


def test_cmyk_is_not_inverted():
    image = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    red, green, blue = seen(file(image, "JPEG", quality=95))[32, 32]
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(orientation):
    """Each tells how the stored picture is turned; all show the same one."""
    undo = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }.get(orientation, lambda a: a)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(PICTURE)))
    assert np.array_equal(seen(file(stored, exif=exif)), PICTURE)


def test_damaged_exif_leaves_the_picture():
    data = file(Image.fromarray(PICTURE), exif=b"Exif\0\0II*\0" + struct.pack("<I", 2**31))
    assert np.array_equal(seen(data), PICTURE)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    data = file(frames[0], form, save_all=True, append_images=frames[1:])
    red, green, blue = seen(data)[32, 32]
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am no image", "no image of a known format"),
        (file(Image.fromarray(PICTURE), "PPM"), "no image of a known format"),
        (file(Image.fromarray(PICTURE))[:2000], "damaged"),
        (file(Image.fromarray(PICTURE), "JPEG")[:900], "damaged: .*truncated"),
        (file(Image.new("F", (64, 64)), "TIFF"), "mode F have no known range"),
        (file(Image.new("1", (20000, 7000))), "20000x7000 pixels are more than"),
        (file(Image.new("1", (40000, 5000))), "damaged: .*bomb"),
        (file(Image.new("L", (1, 40000))), "too long a strip"),
    ],
)
def test_what_is_rejected(data, reason):
    with pytest.raises(RejectedImageError, match=reason):
        Preprocessing("adm", 64)(data)
