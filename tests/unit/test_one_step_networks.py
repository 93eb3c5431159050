"""The networks that are no DiT, against their equations written out in float64 numpy."""

from collections.abc import Iterator
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.models import NETWORKS, Model, configure, koopman
from shortcut_tpu.models.embeddings import sincos_2d
from shortcut_tpu.models.transformer import Dropout

WIDTH, HEADS, PATCH = 8, 2, 2
KEY = jax.random.key(1)
OPTIONS = {
    "patch_size": PATCH,
    "width": WIDTH,
    "depth": 2,
    "num_heads": HEADS,
    "dtype": "float32",
    "equilibrium": {"injection_depth": 2, "equilibrium_depth": 2, "iterations": 3},
    "koopman": {"code_channels": 3},
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def made(name: str) -> tuple[Model, Any, np.ndarray, np.ndarray]:
    """A network, noise for its weights, and four images [4, 4, 4, 1] with labels."""
    model = NETWORKS[name](configure(name, OPTIONS, image_size=4, channels=1, num_classes=5))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)
    return model, params, rng.normal(size=(4, 4, 4, 1)), np.array([0, 3, 5, 1])


def norm(h: np.ndarray) -> np.ndarray:
    h = h - h.mean(-1, keepdims=True)
    return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6)


def dense(h: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    return h @ p["kernel"].astype(float) + p.get("bias", 0.0)


def tokens_of(x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """Patches of 2 x 2, embedded, each with its place."""
    rows = [x[:, i : i + 2, j : j + 2].reshape(len(x), -1) for i in (0, 2) for j in (0, 2)]
    return dense(np.stack(rows, 1), p) + sincos_2d(WIDTH, 2)


def image_of(tokens: np.ndarray) -> np.ndarray:
    patches = tokens.reshape(len(tokens), 2, 2, 2, 2)
    images = [np.block([[p[i, j] for j in (0, 1)] for i in (0, 1)]) for p in patches]
    return np.stack(images)[..., None]


def block(h: np.ndarray, p: Any, layer: int, extra: np.ndarray | float = 0.0) -> np.ndarray:
    """h += Attention(LN h), queries, keys and values with `extra`; h += MLP(LN h)."""
    p = jax.tree.map(lambda a: np.asarray(a[layer], float), p)
    weights = {k: v.reshape(WIDTH, -1) if k == "kernel" else v.ravel() for k, v in p["qkv"].items()}
    qkv = dense(norm(h), weights).reshape(*h.shape[:2], 3, HEADS, WIDTH // HEADS) + extra
    attended = np.zeros((*h.shape[:2], HEADS, WIDTH // HEADS))
    for head in range(HEADS):
        q, k, v = (qkv[:, :, i, head] for i in range(3))
        logits = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH // HEADS))
        attended[:, :, head] = logits / logits.sum(-1, keepdims=True) @ v
    out = p["attention_out"]
    h = h + attended.reshape(h.shape) @ out["kernel"].reshape(WIDTH, WIDTH) + out["bias"]
    hidden = dense(norm(h), p["mlp_in"])
    gelu = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    return h + dense(gelu, p["mlp_out"])


def assert_close(ours: Any, exact: np.ndarray) -> None:
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-5 * np.abs(exact).max())


def test_get() -> None:
    """Each of three iterates of z <- f(z, u(x), c_y) from z = 0, decoded."""
    model, p, x, labels = made("equilibrium")
    label = p["label_embed"]["embedding"][labels].reshape(4, 1, 3, HEADS, -1)
    h = tokens_of(x, p["patch_embed"])
    for layer in (0, 1):
        h = block(h, p["injection_blocks"], layer, label)
    injected = np.einsum("bnd,dlqhk->lbnqhk", h, p["inject"]["kernel"])
    z, exact = np.zeros_like(h), []
    for _ in range(3):
        for layer in (0, 1):
            z = block(z, p["equilibrium_blocks"], layer, injected[layer] + label)
        exact.append(image_of(dense(norm(z), p["project"])))
    zero = jnp.zeros(4)
    assert_close(jax.jit(model.apply)(p, x, zero, zero, labels), np.concatenate(exact, -1))


def test_get_injects_by_one_matrix() -> None:
    """Xavier over [D, 3 D depth], one matrix as in the official code: 2 / (D + 3 D depth)."""
    options = OPTIONS | {"width": 64, "equilibrium": {"equilibrium_depth": 3, "iterations": 1}}
    config = configure("equilibrium", options, image_size=4, channels=1, num_classes=5)
    model = NETWORKS["equilibrium"](config)
    kernel = jax.jit(model.init)(jax.random.key(0))["inject"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / (64 + 3 * 64 * 3), rel=0.03)


def told(tokens: np.ndarray, p: Any, labels: np.ndarray) -> np.ndarray:
    """A part of the Koopman network on tokens with their places: both blocks, told the label."""
    label = p["label_embed"]["embedding"][labels].reshape(4, 1, 3, HEADS, -1)
    for layer in (0, 1):
        tokens = block(tokens, p["blocks"], layer, label)
    return dense(norm(tokens), p["project"])


def encoded(x: np.ndarray, p: Any, labels: np.ndarray) -> np.ndarray:
    return told(tokens_of(x, p["embed"]), p, labels).reshape(4, -1)


def decoded(code: np.ndarray, p: Any, labels: np.ndarray) -> np.ndarray:
    tokens = dense(code.reshape(4, 4, 3), p["embed"]) + sincos_2d(WIDTH, 2)
    return image_of(told(tokens, p, labels))


def operator(p: Any) -> np.ndarray:
    """K = Re(P diag(lambda) Q), rows of P's two parts of length 1, |lambda| = exp(-exp(nu))."""
    out, into = (np.asarray(p[name], float) for name in ("out", "into"))
    out = out / np.linalg.norm(out, axis=-1, keepdims=True)
    eigenvalues = np.exp(-np.exp(p["log_decay"]) + 1j * np.exp(p["log_phase"].astype(float)))
    return ((out[0] + 1j * out[1]) @ np.diag(eigenvalues) @ (into[0] + 1j * into[1])).real


def test_koopman() -> None:
    """z_0 = E_0(z_1, y), z_p = K E_T(x_0, y) + c_y, what D makes of both and of y."""
    model, p, x0, labels = made("koopman")
    x1 = x0[::-1] ** 2
    code = encoded(x1, p["data_encoder"], labels)
    start = encoded(x0, p["noise_encoder"], labels)
    pushed = start @ operator(p["operator"]).T + p["label_embed"]["embedding"][labels]
    exact = (code, pushed, *(decoded(z, p["decoder"], labels) for z in (code, pushed)))
    parts = jax.jit(model.parts, static_argnums=(5, 6))(p, x0, x1, labels, KEY, 0.0, 0.0)
    for ours, theirs in zip(parts, exact, strict=True):
        assert_close(ours, theirs)
    sample = jax.jit(model.apply)(p, x0, jnp.zeros(4), jnp.ones(4), labels)
    assert_close(sample, exact[3])


def test_koopman_codes_are_noised_before_they_are_pushed_or_decoded() -> None:
    """z_p - K z_T - c_y = s K n, so of variance s^2 |K_j|^2; what is compared of z_0 has none."""
    model, p, x0, labels = made("koopman")
    x0, labels = np.tile(x0, (500, 1, 1, 1)), np.tile(labels, 500)
    parts = jax.jit(model.parts, static_argnums=6)
    quiet, loud = (parts(p, x0, x0, labels, KEY, noise, 0.0) for noise in (0.0, 0.4))
    np.testing.assert_array_equal(quiet.code, loud.code)
    assert not np.allclose(quiet.of_code, loud.of_code)
    expected = 0.16 * np.square(operator(p["operator"])).sum(1)
    np.testing.assert_allclose(np.var(loud.pushed - quiet.pushed, axis=0), expected, rtol=0.15)


def test_koopman_drops_out_while_it_trains() -> None:
    """E[h m / (1 - p)] = h, m = 0 in a share p: of 40,000, within 5 standard errors."""
    rate, h = 0.1, jnp.full(40_000, 3.0)
    dropped = Dropout(KEY, rate)(h)
    np.testing.assert_allclose(np.unique(dropped), [0.0, 3.0 / (1 - rate)], rtol=1e-12)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(rate, abs=5 * 0.3 / 200)
    model, p, x0, labels = made("koopman")
    parts = jax.jit(model.parts, static_argnums=6)
    some, others = (parts(p, x0, x0, labels, jax.random.key(n), 0.0, rate) for n in (1, 2))
    for one, another in zip(some, others, strict=True):
        assert not np.allclose(one, another)


def test_koopman_operator_starts_as_the_official_one() -> None:
    """Entries of variance 1 / (2 M), for E|P|^2 = 2/M, E|Q|^2 = 1/M, and E|lambda|^2 = 1/2.

    lambda is uniform over the unit disc: |lambda|^2 uniform in [0, 1], and its phase in [0, 2 pi].
    """
    size = 192
    p = nnx.to_pure_dict(nnx.state(koopman.Operator(size, rngs=nnx.Rngs(0))))
    assert operator(p).var() == pytest.approx(1 / (2 * size), rel=0.05)
    squares = np.sort(np.exp(-2 * np.exp(p["log_decay"])))
    phases = np.sort(np.exp(p["log_phase"])) / (2 * math.pi)
    for found in (squares, phases):
        # Kolmogorov's distance of so many uniform draws is under this in 99 of 100 cases.
        assert np.abs(found - (np.arange(size) + 0.5) / size).max() < 1.63 / math.sqrt(size)
