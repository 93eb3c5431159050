"""Autoencoders by name; `base.Autoencoder` holds their contract.

Usage:
    autoencoder = load_autoencoder("identity")  # NAME or NAME:WEIGHTS
    mean, std = autoencoder.encode(images)      # stored; the model sees mean * autoencoder.scale
    images = autoencoder.decode(latents / autoencoder.scale)
"""

from data_pipeline.autoencoders.base import Array, Autoencoder
from data_pipeline.autoencoders.identity import Identity
from data_pipeline.errors import UserError

__all__ = ["Array", "Autoencoder", "load_autoencoder"]

_NAMES = ("identity",)


def load_autoencoder(spec: str) -> Autoencoder:
    """Makes the autoencoder that `NAME` or `NAME:WEIGHTS` names.

    Raises:
        UserError: the name is unknown, or weights are given to one that has none.
    """
    name, _, weights = spec.partition(":")
    if name not in _NAMES:
        raise UserError(f"unknown autoencoder {name!r}; the known ones are {', '.join(_NAMES)}")
    if weights:
        raise UserError(f"autoencoder {name} takes no weights, but {weights!r} was given")
    return Identity()
