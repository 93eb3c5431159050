"""Shapes in annotations are checked in every test: conftest.py installs the check."""

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import pytest

from shortcut_tpu.models.attention import attention
from shortcut_tpu.models.dit import modulate


def test_a_wrong_shape_is_an_error_that_names_the_dimension() -> None:
    """One shift for two rows would be broadcast without a word."""
    x, vectors = jnp.zeros((2, 3, 8)), jnp.zeros((2, 8))
    assert modulate(x, vectors, vectors).shape == x.shape
    with pytest.raises(TypeCheckError, match=r"(?s)parameter 'shift'.*\nB=2\n"):
        jax.eval_shape(modulate, x, jnp.zeros((1, 8)), vectors)


def test_a_wrong_rank_is_an_error() -> None:
    flat = jnp.zeros((2, 3, 8))
    with pytest.raises(TypeCheckError, match="parameter 'query'"):
        attention(flat, flat, flat, scale=1.0)
