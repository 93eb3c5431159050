"""Draws the latents of a training step from stored means and deviations."""

import jax
import jax.numpy as jnp


def sample_latents(batch: dict[str, jax.Array], key: jax.Array, scale: float) -> jax.Array:
    """Draws a flip and a sample of the autoencoder's posterior for each row.

    Args:
      batch: `mean` [B, H, W, C]; `std` too unless the autoencoder is deterministic; `mean_flipped`
        and `std_flipped` where the records hold the mirrored images as well.
      key: the step's key for this purpose.
      scale: the factor that makes latents of about unit variance (0.18215 for the SD VAE).

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
    return latents * scale
