"""Pictures arrive as the papers' own code would make them, and odd files as a person sees them."""

import io
from pathlib import Path
import struct
import sys
import types
import zlib

import numpy as np
from PIL import Image, ImageFile
import pytest

from data_pipeline import images
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


@pytest.mark.parametrize("name", ["643x597", "31x29"])
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


def chunks(data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks behind its header."""
    made = b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in more
    )
    return data[:33] + made + data[33:]


PROFILE = b"icc\0\0" + zlib.compress(bytes(64 << 20))
TEXT = b"Comment\0\0" + zlib.compress(bytes(4 << 20))
SEGMENT = b"\xff\xe2\xff\xffICC_PROFILE\0\x01\xff" + bytes(65519)


@pytest.mark.parametrize(
    "more",
    [
        [(b"iCCP", PROFILE)],
        [(b"zTXt", TEXT)] * 30,
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 << 20)))],
        [(b"pHYs", b"x"), (b"gAMA", b""), (b"cHRM", b"1")],
    ],
)
def test_metadata_of_a_png_decide_about_nothing(more):
    """Pillow refuses the picture over each of them but the last."""
    data = chunks(file(Image.fromarray(PICTURE)), *more)
    assert np.array_equal(seen(data), PICTURE)
    turned = Image.Exif()
    turned[0x0112] = 3
    stored = Image.fromarray(np.ascontiguousarray(PICTURE[::-1, ::-1]))
    assert np.array_equal(seen(chunks(file(stored, exif=turned), *more)), PICTURE)
    alpha = Image.fromarray(np.dstack([PICTURE, np.zeros((64, 64), np.uint8)]))
    assert (seen(chunks(file(alpha), *more)) == 255).all()


@pytest.mark.parametrize(
    "segment",
    [
        SEGMENT * 9,
        b"\xff\xe2\x00\x08MPF\0II" * 2,
        b"\xff\xed\x00\x14Photoshop 3.0\0" + b"8B",
        b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff",
        b"\xff\xfe\x00\x05\xff\xff\xff",
    ],
)
def test_metadata_of_a_jpeg_decide_about_nothing(segment):
    plain = file(Image.fromarray(PICTURE), "JPEG", quality=95)
    assert np.array_equal(seen(plain[:2] + segment + plain[2:]), seen(plain))


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "PPM", "ICO", "PCX", "SGI", "DDS"])
def test_other_forms_of_pillow_are_read(form):
    options = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(form, {})
    data = file(Image.fromarray(PICTURE), form, **options)
    assert np.abs(seen(data) - PICTURE).max() <= (40 if form == "AVIF" else 0)
    assert np.abs(seen(data) - PICTURE).mean() < 3


def test_heic_is_read_through_its_plugin(monkeypatch):
    """A stand-in for pillow-heif, which registers a form of its own."""

    class Opened(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._mode, self._size = "RGB", (64, 64)

        def load(self):
            self.im = Image.fromarray(PICTURE).im
            return super(ImageFile.ImageFile, self).load()

    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    plugin = types.SimpleNamespace(
        register_heif_opener=lambda: Image.register_open(
            "HEIF", Opened, lambda data: data[4:8] == b"ftyp"
        )
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setitem(Image.OPEN, "HEIF", None)
    images._formats.cache_clear()
    try:
        assert np.array_equal(seen(heic), PICTURE)
    finally:
        images._formats.cache_clear()


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
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (file(Image.fromarray(PICTURE), "TGA"), "no image of a known format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
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
