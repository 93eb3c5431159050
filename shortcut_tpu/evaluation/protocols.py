"""Protocols: everything between decoded images and a number that papers compare.

| protocol | network | resize to 299 | pixels | labels | as in |
|---|---|---|---|---|---|
| `adm` | Inception | TensorFlow 1's bilinear | uint8 | random | ADM's evaluator; its scripts |
| `official` | Inception | bilinear, not antialiased | floats | random | kvfrans/shortcut-models |
| `jax-fid` | Inception | bilinear, antialiased | uint8 | balanced | jax-fid; iMeanFlow's labels |
| `fd_dinov2` | DINOv2 ViT-L/14 | Pillow's bicubic, 224 | uint8 | balanced | dgm-eval |
| `fd_efficientnet` | EfficientNet-Lite0 | bilinear, antialiased, 224 | floats | balanced | here |
| `fd_pixel` | none | none | floats | balanced | here |

Usage:
  protocol = get_protocol("adm")
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.resize import RESIZES, cut_off

Network = Literal["inception", "dinov2", "efficientnet", "pixels"]
Balance = Literal["balanced", "random", "data"]
_INCEPTION = ("fid", "sfid", "inception_score", "precision", "recall")
_EFFICIENTNET = ("fd_efficientnet", "precision", "recall")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to score samples.

    Attributes:
      name: by which it is chosen and reported.
      network: whose features are compared. Only Inception's make a distance called FID.
      distances: those it has, the main one first.
      balance: `balanced` gives each class as many samples as any other, `random` draws labels
        evenly, `data` draws them as often as the records have them.
      resize: a key of RESIZES, or None to leave images as they are.
      size: the side of the network's input.
      grey: decoded images are rounded to bytes b first, as they are when written to files, and
        are (b - grey) / grey for the network; None keeps floats.
      num_samples: without which a number is not this protocol's; None where there is no convention.
    """

    name: str
    network: Network
    distances: tuple[str, ...]
    balance: Balance
    resize: str | None = None
    size: int | None = None
    grey: float | None = None
    num_samples: int | None = None

    @property
    def metric(self) -> str:
        """The main distance."""
        return self.distances[0]

    def prepare(self, images: jax.Array) -> jax.Array:
        """Decoded images [n, H, W, C] in about [-1, 1] to the network's input, in [-1, 1]."""
        images = images.astype(jnp.float32)
        if self.network != "pixels" and images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        if self.grey:
            images = to_bytes(images)
        if self.resize and self.size:
            images = RESIZES[self.resize](images, self.size)
        if self.grey:
            return (images - self.grey) / self.grey
        return jnp.clip(images, -1, 1)


def to_bytes(images: jax.Array) -> jax.Array:
    """Images in about [-1, 1] to whole numbers 0 .. 255, as floats: 127.5 x + 128, cut off."""
    return cut_off(jnp.clip(images * 127.5 + 128, 0, 255))


_ALL = (
    Protocol("adm", "inception", _INCEPTION, "random", "tensorflow1", 299, 128, 50_000),
    Protocol("official", "inception", _INCEPTION, "random", "bilinear", 299, None, 50_000),
    Protocol("jax-fid", "inception", _INCEPTION, "balanced", "antialiased", 299, 127.5, 50_000),
    Protocol("fd_dinov2", "dinov2", ("fd_dinov2",), "balanced", "pillow", 224, 127.5, 50_000),
    Protocol("fd_efficientnet", "efficientnet", _EFFICIENTNET, "balanced", "antialiased", 224),
    Protocol("fd_pixel", "pixels", ("fd_pixel",), "balanced"),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def get_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
      UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
