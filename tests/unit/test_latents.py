"""Draws from stored posteriors."""

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.training.latents import sample_latents

KEY = jax.random.key(0)
MEAN = jnp.arange(4096 * 4, dtype=jnp.float16).reshape(4096, 2, 2, 1) / 4096


def test_deterministic_latents_are_only_scaled():
    found = sample_latents({"mean": MEAN}, KEY, 0.5)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, MEAN.astype(jnp.float32) * 0.5)


def test_samples_have_the_posteriors_moments():
    """z = (mean + std e) scale with e ~ N(0, 1)."""
    std = jnp.full_like(MEAN, 0.25)
    z = sample_latents({"mean": MEAN, "std": std}, KEY, 2.0)
    e = (z / 2 - MEAN.astype(jnp.float32)) / 0.25
    assert abs(float(e.mean())) < 0.03
    assert abs(float(e.std()) - 1) < 0.03


def test_half_of_the_rows_are_mirrored_each_with_its_own_std():
    batch = {
        "mean": MEAN,
        "mean_flipped": MEAN + 100,
        "std": jnp.zeros_like(MEAN),
        "std_flipped": jnp.ones_like(MEAN),
    }
    z = sample_latents(batch, KEY, 1.0)
    flipped = z[:, 0, 0, 0] > 50
    assert 0.45 < float(flipped.mean()) < 0.55
    np.testing.assert_array_equal(z[~flipped], MEAN[~flipped].astype(jnp.float32))
    assert 0.9 < float((z - 100 - MEAN)[flipped].std()) < 1.1
