"""Crops and resizes one image file to the square that the autoencoder takes.

Any form is read that Pillow knows by a mark in the file, AVIF among them, and HEIC where
pillow-heif is installed. What is odd but clear is handled: grey and 16-bit grey, CMYK and palettes
become RGB; transparent pixels lie on white; EXIF's orientation is applied; of an animation the
first frame counts; metadata, however large or damaged, decide about nothing. What is no picture
raises RejectedImageError; where the system fails, its own error passes through.

Usage:
    preprocess = Preprocessing("adm", 256)
    pixels = preprocess(Path("n01440764_10026.JPEG").read_bytes())  # [256, 256, 3] uint8
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

# EPS is a program, and Pillow has Ghostscript run it.
_PROGRAMS = ("EPS",)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_PNG_MARK = b"\x89PNG\r\n\x1a\n"
# How the files of pictures end, where a file may be something else.
SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "heic", "heif", "gif", "bmp", "tif"),
    *("tiff", "jp2", "ppm", "pgm"),
)

# A few bytes can claim any size; this many take 400 MB as RGB.
MAX_PIXELS = 1 << 27


class RejectedImageError(Exception):
    """An image that cannot be used; the message says why."""


def _adm(image: Image.Image, size: int) -> np.ndarray:
    """ADM's resize (arXiv 2105.05233): halved by means while twice too large, then bicubic."""
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    if width * height > MAX_PIXELS:
        raise RejectedImageError(f"{image.width}x{image.height} pixels are too long a strip")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _official(image: Image.Image, size: int) -> np.ndarray:
    """The shortcut authors' resize (arXiv 2410.12557): crop first, antialiased bilinear, floats.

    It does not round to bytes, so neither must this.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    channels = [
        Image.fromarray(pixels[:, :, channel]).resize((size, size), Image.Resampling.BILINEAR)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1) / 127.5 - 1


# What fits an RGB image into [size, size, 3]: uint8, or float32 in [-1, 1].
RESIZES: dict[str, Callable[[Image.Image, int], np.ndarray]] = {"adm": _adm, "official": _official}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Decodes and fits an image.

    Attributes:
        name: `adm` (halving, bicubic, centre crop; what the field's FIDs are measured on) or
            `official` (centre crop, antialiased bilinear; what the shortcut authors trained on).
        size: the side of the result, in pixels.
        channels: 3, or 1 where all pictures are grey.
    """

    name: str
    size: int
    channels: int = 3

    @property
    def dtype(self) -> np.dtype:
        """The type of the result: uint8, or float32 in [-1, 1]."""
        return np.dtype(np.uint8 if self.name == "adm" else np.float32)

    def __call__(self, data: bytes) -> np.ndarray:
        """The picture in an image file.

        Args:
            data: the file's content.

        Returns:
            [size, size, channels] of `dtype`.

        Raises:
            RejectedImageError: it is no image, damaged, or of a kind that is not known here.
            OSError: with an errno, or MemoryError: the system failed, and the image may be sound.
        """
        if not data:
            raise RejectedImageError("empty file")
        try:
            # Pillow warns of oddities that do not keep it from reading the picture.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RESIZES[self.name](_decode(data), self.size)[..., : self.channels]
        except (RejectedImageError, MemoryError):
            raise
        # Pillow's parsers raise almost anything on damaged files.
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise RejectedImageError(_why(error, data)) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """What Pillow can read here and tells from other files by how it begins."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    # Those without a check of their own would take a damaged file of another form for theirs.
    known = (name for name, (_, check) in Image.OPEN.items() if check is not None)
    return tuple(name for name in known if name not in _PROGRAMS)


def _loaded(data: bytes) -> Image.Image:
    """The decoded image in a file; if it cannot be read, without its metadata."""
    problem: Exception | None = None
    for content in (data, *_without_metadata(data)):
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=_formats())
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise RejectedImageError(
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}"
                )
            image.load()
        except (RejectedImageError, Image.DecompressionBombError, MemoryError):
            raise
        except Exception as error:
            problem = problem or error
        else:
            return image
    assert problem is not None
    raise problem


def _without_metadata(data: bytes) -> list[bytes]:
    """The file with its orientation but no other metadata, and with none at all."""
    if data.startswith(_PNG_MARK):
        return [_png_of(data, kept) for kept in ((b"tRNS", b"eXIf"), (b"tRNS",))]
    if data.startswith(b"\xff\xd8"):
        return [_jpeg_of(data, kept) for kept in ((0xE0, 0xE1, 0xEE), (0xE0, 0xEE), (0xEE,))]
    return []


def _png_of(data: bytes, kept: tuple[bytes, ...]) -> bytes:
    """A PNG with its critical chunks, whose names begin in upper case, and some others."""
    place, parts = len(_PNG_MARK), [_PNG_MARK]
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + size
        if kind in kept or not kind[0] & 0x20:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _jpeg_of(data: bytes, kept: tuple[int, ...]) -> bytes:
    """A JPEG without comments, and of its application segments with some only."""
    place, parts = 2, [data[:2]]
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        marker, size = struct.unpack_from(">xBH", data, place)
        if marker in kept or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(data[place : place + 2 + size])
        place += 2 + size
    return b"".join([*parts, data[place:]])


def _decode(data: bytes) -> Image.Image:
    """The upright RGB image in a file."""
    image = _loaded(data)
    # A damaged EXIF block, whatever Pillow raises over it, leaves the picture as it is.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255.
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise RejectedImageError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _why(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            return "HEIC, which is read where pillow-heif is installed: pip install pillow-heif"
        return "no image of a known format"
    text = " ".join(str(error).split())[:200]
    return f"damaged: {text or type(error).__name__}"
