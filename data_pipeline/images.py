"""One image file to one square picture of the size that the autoencoder takes.

What is odd but clear is handled: grey and 16-bit grey, CMYK and palettes become RGB; transparent
pixels lie on white; EXIF's orientation is applied; of an animation the first frame counts. What is
no picture raises RejectedImageError.

Usage:
    preprocess = Preprocessing("adm", 256)
    pixels = preprocess(Path("n01440764_10026.JPEG").read_bytes())  # [256, 256, 3] uint8
"""

from collections.abc import Callable
import contextlib
import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Pillow can read forty more, most of them by parsers that few have looked at.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

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
    """

    name: str
    size: int

    @property
    def dtype(self) -> np.dtype:
        """The type of the result: uint8, or float32 in [-1, 1]."""
        return np.dtype(np.uint8 if self.name == "adm" else np.float32)

    def __call__(self, data: bytes) -> np.ndarray:
        """The picture in an image file.

        Args:
            data: the file's content.

        Returns:
            [size, size, 3] of `dtype`.

        Raises:
            RejectedImageError: it is no image, damaged, or of a kind that is not known here.
        """
        if not data:
            raise RejectedImageError("empty file")
        try:
            # Pillow warns of oddities that do not keep it from reading the picture.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RESIZES[self.name](_decode(data), self.size)
        except RejectedImageError:
            raise
        # Pillow's parsers raise almost anything on damaged files.
        except Exception as error:
            raise RejectedImageError(_why(error)) from None


def _decode(data: bytes) -> Image.Image:
    """The upright RGB image in a file."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise RejectedImageError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
    image.load()
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


def _why(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image of a known format"
    text = " ".join(str(error).split())[:200]
    return f"damaged: {text or type(error).__name__}"
