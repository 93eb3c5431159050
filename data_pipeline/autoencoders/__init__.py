"""Autoencoders by name; `base.Autoencoder` is their interface.

Usage:
    autoencoder = load_autoencoder("sd-vae-ft-mse:DIR")  # NAME or NAME:WEIGHTS
    mean, std = autoencoder.encode(images)  # stored; the model sees mean * autoencoder.scale
    images = autoencoder.decode(latents / autoencoder.scale)
"""

import functools
import importlib.util

from data_pipeline.autoencoders import kl, layers, tiny
from data_pipeline.autoencoders.base import Array, Autoencoder
from data_pipeline.autoencoders.identity import Identity
from data_pipeline.autoencoders.kl import CONFIG_FILE, WEIGHTS_FILE, load_kl
from data_pipeline.autoencoders.kl_config import KLConfig
from data_pipeline.autoencoders.tiny import VARIANTS, load_tiny
from data_pipeline.autoencoders.va_vae import load_va_vae
from data_pipeline.errors import UserError

__all__ = ["Array", "Autoencoder", "abstract_autoencoder", "load_autoencoder"]

# Where the models that have a name of their own are published; others are `kl:DIR`.
_KL_REPOSITORIES = {
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema",
}
_VA_VAE = "va-vae"
_NAMES = ("identity", *_KL_REPOSITORIES, "kl", _VA_VAE, *VARIANTS)


def load_autoencoder(spec: str) -> Autoencoder:
    """Makes the autoencoder that `NAME` or `NAME:WEIGHTS` names.

    | NAME | WEIGHTS, a folder, local or `gs://` |
    |---|---|
    | identity | none |
    | sd-vae-ft-mse, sd-vae-ft-ema, kl | config.json and diffusion_pytorch_model.safetensors |
    | va-vae | none: the authors' .pt file itself |
    | taesd, taesdxl, taesd3, taef1, taef2 | NAME_encoder.pth and NAME_decoder.pth |

    Without WEIGHTS, the two that have a name of their own among the second are fetched from the
    Hugging Face hub, if the package huggingface_hub is installed.

    Raises:
        UserError: the name is unknown; weights are missing, damaged or another network's; or some
            are given to an autoencoder that has none.
    """
    name, _, weights = spec.partition(":")
    name = _known(name)
    if name == "identity":
        if weights:
            raise UserError(f"autoencoder {name} takes no weights, but {weights!r} was given")
        return Identity()
    if name in VARIANTS:
        if not weights:
            raise UserError(
                f"autoencoder {name} needs its weights: give {name}:DIR, a folder with"
                f" {name}_encoder.pth and {name}_decoder.pth"
            )
        return load_tiny(name, weights)
    if name == _VA_VAE:
        if not weights:
            raise UserError(f"autoencoder {name} needs its weights: give {name}:FILE.pt")
        return load_va_vae(name, weights)
    return load_kl(name, weights or _from_hub(name))


@functools.cache
def abstract_autoencoder(spec: str, latent_channels: int) -> Autoencoder:
    """The autoencoder that a spec names, of its published shape, without its weights.

    It has shapes where another has arrays: `decode_with` can be compiled, and nothing computed.

    Args:
        spec: as of `load_autoencoder`; its WEIGHTS are not looked at.
        latent_channels: of a latent, for a member of the second kind.

    Raises:
        UserError: the name is unknown.
    """
    name = _known(spec.partition(":")[0])
    if name == "identity":
        return Identity()
    if name in VARIANTS:
        encoder, decoder = map(layers.abstract, tiny.weight_shapes(VARIANTS[name]))
        return tiny.TinyAutoencoder(name, "", VARIANTS[name], encoder, decoder)
    published = name != _VA_VAE
    config = KLConfig.published(latent_channels) if published else KLConfig.va_vae()
    return kl.AutoencoderKL(name, "", config, layers.abstract(kl.weight_shapes(config)))


def _known(name: str) -> str:
    if name not in _NAMES:
        raise UserError(f"unknown autoencoder {name!r}; the known ones are {', '.join(_NAMES)}")
    return name


def _from_hub(name: str) -> str:
    """The folder into which the hub's client has fetched a published model."""
    repository = _KL_REPOSITORIES.get(name)
    if repository is None or importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"autoencoder {name} needs its weights: give {name}:DIR, a folder with {CONFIG_FILE}"
            f" and {WEIGHTS_FILE}"
        )
    import huggingface_hub  # Optional; nothing else needs it.

    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
        )
    # The client's errors are of many kinds, by what of the network failed.
    except Exception as error:
        raise UserError(
            f"{repository}: cannot be fetched ({error}); give {name}:DIR, a folder with"
            f" {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from None
    return str(folder)
