"""Draws the latents of a training step from stored means and deviations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The model sees (latent - shift) * scale; each is one number, or one a channel."""

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, data: ConfigDict, autoencoder_scale: float) -> "Scaling":
        """Of `config.data`: by the autoencoder's constant, or to mean 0 and std 1 by channel.

        Where the config is to take its means and standard deviations from a manifest and has not
        yet, these are 0 and 1, enough for shapes.
        """
        if not data.standardize:
            return cls(scale=(autoencoder_scale,))
        unknown = not has_statistics(data)
        mean = (0.0,) * data.channels if unknown else tuple(data.latent_mean)
        std = (1.0,) * data.channels if unknown else tuple(data.latent_std)
        return cls(mean, tuple(1 / s for s in std))

    def seen(self, latents: jax.Array) -> jax.Array:
        """[B, ..., C] as stored -> as the model sees them."""
        return (latents - jnp.asarray(self.shift)) * jnp.asarray(self.scale)

    def stored(self, latents: jax.Array) -> jax.Array:
        """[B, ..., C] as the model sees or makes them -> as an autoencoder decodes them."""
        return latents / jnp.asarray(self.scale) + jnp.asarray(self.shift)


def has_statistics(data: ConfigDict) -> bool:
    """Whether `config.data` has the statistics that it asks for."""
    return not data.standardize or len(data.latent_std) > 0


def with_statistics(config: ConfigDict) -> ConfigDict:
    """The config with the mean and standard deviation of each channel of its latents.

    They are of the records under `data.path`. As it is where it asks for none or has its own.

    Raises:
      UserError: the manifest has no such statistics, or a channel does not vary.
    """
    if has_statistics(config.data):
        return config
    records = config.data.path
    found = Manifest.load(records).channel_statistics
    if found is None:
        raise UserError(
            f"{records}: its manifest has no statistics by channel, which data.standardize needs: "
            "encode the images again into another folder, or give --config.data.latent_mean and "
            "--config.data.latent_std"
        )
    mean, std = found
    if not all(0 < s < math.inf for s in std):
        raise UserError(f"{records}: standard deviations by channel are {std}: cannot standardize")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.latent_mean, config.data.latent_std = mean, std
    return config


def sample_latents(batch: dict[str, jax.Array], key: jax.Array, scaling: Scaling) -> jax.Array:
    """Draws a flip and a sample of the autoencoder's posterior for each row.

    Args:
      batch: `mean` [B, H, W, C]; `std` too unless the autoencoder is deterministic; `mean_flipped`
        and `std_flipped` where the records hold the mirrored images as well.
      key: the step's key for this purpose.
      scaling: what makes latents of about unit variance (0.18215 for the SD VAE).

    Returns:
      [B, H, W, C] float32.
    """
    flip_key, noise_key = jax.random.split(key)
    mean, std = batch["mean"], batch.get("std")
    if "mean_flipped" in batch:
        flip = jax.random.bernoulli(flip_key, 0.5, mean.shape[:1])[:, None, None, None]
        mean = jnp.where(flip, batch["mean_flipped"], mean)
        std = None if std is None else jnp.where(flip, batch["std_flipped"], std)
    latents = mean.astype(jnp.float32)
    if std is not None:
        latents += std.astype(jnp.float32) * jax.random.normal(noise_key, latents.shape)
    return scaling.seen(latents)
