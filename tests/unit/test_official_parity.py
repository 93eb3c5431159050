"""Agreement with the official shortcut-models code, against golden files that it made.

`tests/golden/make_official_goldens.py` remakes the files. The weights are not in them: both sides
seed each from its official name.
"""

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.models import DiT, DiTConfig
from shortcut_tpu.objectives import (
    ConsistencyDistillation,
    ConsistencyTraining,
    Inputs,
    LiveReflow,
    ProgressiveDistillation,
    Shortcut,
    base,
)
from tests.golden.seeded_weights import seeded_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLASSES = 10
FINEST_LEVEL = 7
SIGMA_MIN = 1e-5
TOLERANCE = 1e-5
SETTINGS = ("ema", "guided", "few_rows", "few_rows_guided", "online")
# Predicts a loss variance that the official loss does not use.
UNUSED = ["Embed_0/embedding"]

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _exact_matmuls() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def load(name: str) -> Arrays:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


@functools.cache
def make_model(side: int, channels: int, width: int, depth: int) -> DiT:
    """Ours as the official network; all golden files are of 4 heads and patches of 2."""
    return DiT(
        DiTConfig(
            image_size=side,
            channels=channels,
            patch_size=2,
            width=width,
            depth=depth,
            num_heads=4,
            num_classes=CLASSES,
            mlp_ratio=4.0,
            finest_level=FINEST_LEVEL,
            faithful=True,
            dtype="float32",
        )
    )


def official_views(params: Mapping[str, Any], config: DiTConfig) -> Arrays:
    """Our parameters, numpy arrays, as views by official name and in official shape."""
    width, patch = config.width, config.patch_size
    views: Arrays = {}

    def linear(name: str, layer: Mapping[str, np.ndarray], *where: Any) -> None:
        """`where` indexes the kernel's axes after the first, and the bias."""
        kernel = layer["kernel"][(slice(None), *where)]
        bias = layer["bias"][where]
        views[f"{name}/kernel"] = kernel.reshape(-1, bias.size)
        views[f"{name}/bias"] = bias.reshape(-1)

    embed = params["patch_embed"]
    views["PatchEmbed_0/Conv_0/kernel"] = embed["kernel"].reshape(patch, patch, -1, width)
    views["PatchEmbed_0/Conv_0/bias"] = embed["bias"]
    for index, scalar in enumerate(("time_embed", "step_embed")):
        linear(f"TimestepEmbedder_{index}/Dense_0", params[scalar]["hidden"])
        linear(f"TimestepEmbedder_{index}/Dense_1", params[scalar]["out"])
    views["LabelEmbedder_0/Embed_0/embedding"] = params["label_embed"]["embedding"]
    for index in range(config.depth):
        block = jax.tree.map(lambda stacked, index=index: stacked[index], params["blocks"])
        name = f"DiTBlock_{index}"
        linear(f"{name}/Dense_0", block["modulation"])
        # The official order is key, query, value; ours is query, key, value.
        linear(f"{name}/Dense_1", block["qkv"], 1)
        linear(f"{name}/Dense_2", block["qkv"], 0)
        linear(f"{name}/Dense_3", block["qkv"], 2)
        linear(f"{name}/Dense_4", block["attention_out"])
        linear(f"{name}/MlpBlock_0/Dense_0", block["mlp_in"])
        linear(f"{name}/MlpBlock_0/Dense_1", block["mlp_out"])
    linear("FinalLayer_0/Dense_0", params["final"]["modulation"])
    linear("FinalLayer_0/Dense_1", params["final"]["project"])
    return views


def official_shapes(golden: Arrays) -> dict[str, tuple[int, ...]]:
    return {
        str(path): tuple(int(size) for size in str(shape).split(","))
        for path, shape in zip(golden["paths"], golden["shapes"], strict=True)
    }


def seeded_params(model: DiT, golden: Arrays, salt: str) -> Any:
    """Our parameters with the weights that the official network had when the golden was made."""
    weights = seeded_weights(official_shapes(golden), salt)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), abstract)
    views = official_views(params, model.config)
    assert sorted([*views, *UNUSED]) == sorted(weights)
    for path, view in views.items():
        assert view.shape == weights[path].shape, path
        view[...] = weights[path]
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(params))
    return jax.tree.map(jnp.asarray, params)


def assert_agrees(ours: Any, official: np.ndarray) -> None:
    """Largest difference below TOLERANCE times the official root mean square, itself not tiny."""
    scale = np.sqrt(np.mean(np.square(official)))
    assert scale > 0.5
    error = np.max(np.abs(np.asarray(ours) - official)) / scale
    assert error < TOLERANCE, f"relative error {error:.1e}"


@pytest.mark.parametrize("output", ["v", "v_ignore_dt"])
def test_network(output: str) -> None:
    """s(x_t, t, d, y) is the official network's output at level log2(1/d), null label included.

    Its `ignore_dt`, the condition of the flow-matching baseline, is our step size 1 on all rows.
    """
    golden = load("official_dit")
    model = make_model(side=8, channels=4, width=48, depth=3)
    params = seeded_params(model, golden, "online")
    level = golden["level"] if output == "v" else np.zeros_like(golden["level"])
    inputs = [jnp.asarray(a) for a in (golden["x"], golden["t"], 2.0**-level, golden["labels"])]
    assert set(golden["labels"]) == set(range(model.null_label + 1))
    assert_agrees(jax.jit(model.apply)(params, *inputs), golden[output])


class TargetCase:
    """The official targets under one setting, beside our objective and inputs for the same."""

    def __init__(self, setting: str, row_shards: int = 1):
        golden = load("official_shortcut_targets")
        prefix = f"{setting}/"
        self.rows = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
        self.bootstrap = int(self.rows["bootstrap_rows"])
        self.x0 = jnp.asarray(golden["noise"][self.rows["image_rows"]])
        self.x1 = jnp.asarray(golden["images"][self.rows["image_rows"]])
        self.labels = golden["labels"][self.rows["image_rows"]]
        self.model = make_model(side=8, channels=1, width=32, depth=2)
        self.objective = Shortcut(
            finest_steps=2**FINEST_LEVEL,
            bootstrap_share=1 / int(self.rows["bootstrap_every"]),
            level_remainder="coarsest",
            clip=4.0,
            guidance=float(self.rows["guidance"]),
            target_ema="target" if self.rows["uses_ema"] else "",
            sigma_min=SIGMA_MIN,
        )
        self.inputs = Inputs(
            apply=jax.jit(self.model.apply),
            params=seeded_params(self.model, golden, "online"),
            emas={"target": seeded_params(self.model, golden, "ema")},
            x1=self.x1,
            labels=jnp.asarray(self.labels),
            null_label=self.model.null_label,
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
            num_steps=1,
            row_shards=row_shards,
        )

    def order(self) -> np.ndarray:
        """Official row numbers in the order of our bootstrap rows: equal levels in equal places.

        The official rows lie finest level first, ours strided.
        """
        ours = np.asarray(self.objective.levels(self.bootstrap, 0))
        official = self.rows["level"][: self.bootstrap]
        order = np.empty(self.bootstrap, int)
        order[np.argsort(-ours, kind="stable")] = np.argsort(-official, kind="stable")
        return order


@pytest.mark.parametrize("setting", SETTINGS)
def test_levels(setting: str) -> None:
    """n // 7 bootstrap rows on each level 6 .. 0 and the remainder on level 0."""
    case = TargetCase(setting)
    official = case.rows["level"]
    ours = case.objective.levels(case.bootstrap, 0)
    np.testing.assert_array_equal(np.sort(ours), np.sort(official[: case.bootstrap]))
    np.testing.assert_array_equal(official[case.bootstrap :], case.objective.num_levels)


@pytest.mark.parametrize(
    ("setting", "row_shards"),
    [*((setting, 1) for setting in SETTINGS), ("guided", 2), ("guided", 4), ("guided", 8)],
)
def test_bootstrap_targets(setting: str, row_shards: int) -> None:
    """The target of s(x_t, t, 2d) is clip[(s(x_t, t, d) + s(x', t+d, d)) / 2].

    x' = clip[x_t + d s(x_t, t, d)]; both clips at 4, both evaluations with the averaged weights if
    there are any; v_null + w (v - v_null) in both, on level-6 rows only. On how many devices the
    rows lie changes nothing.
    """
    case = TargetCase(setting, row_shards)
    order = case.order()
    xt, t, level, labels = (
        jnp.asarray(case.rows[name][order]) for name in ("x_t", "t", "level", "row_labels")
    )
    targets = jax.jit(functools.partial(case.objective.targets, case.inputs))(xt, t, level, labels)
    assert_agrees(targets, case.rows["v_t"][order])


@pytest.mark.parametrize("setting", [*SETTINGS, "naive"])
def test_path(setting: str) -> None:
    """x_t = (1 - (1 - 1e-5) t) x_0 + t x_1 on all rows.

    Its velocity x_1 - (1 - 1e-5) x_0, not clipped, is the target of the flow rows.
    """
    case = TargetCase(setting)
    flow = slice(case.bootstrap, None)
    t = jnp.asarray(case.rows["t"])
    assert_agrees(base.path(case.x0, case.x1, t, SIGMA_MIN), case.rows["x_t"])
    velocity = base.path_velocity(case.x0, case.x1, SIGMA_MIN)
    assert_agrees(velocity[flow], case.rows["v_t"][flow])


@pytest.mark.parametrize("setting", SETTINGS)
def test_row_losses(setting: str) -> None:
    """A row's loss is the mean square of s(x_t, t, d, y) - target, flow rows at d = 1/128."""
    case = TargetCase(setting)
    xt, t, level, labels = (
        jnp.asarray(case.rows[name]) for name in ("x_t", "t", "level", "row_labels")
    )
    v = case.inputs.apply(case.inputs.params, xt, t, 2.0**-level, labels)
    assert_agrees(base.mean_square(v - case.rows["v_t"]), case.rows["row_loss"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_null_label_rows(setting: str) -> None:
    """No label is dropped on bootstrap rows; a dropped one becomes the label after the last."""
    case = TargetCase(setting)
    dropped = case.rows["row_labels"] != case.labels
    assert not dropped[: case.bootstrap].any()
    assert set(case.rows["row_labels"][dropped]) <= {case.model.null_label}


def baseline(name: str) -> tuple[Arrays, Inputs]:
    """Official rows of a baseline, and our inputs for the same."""
    golden = load("official_baseline_targets")
    model = make_model(side=8, channels=1, width=32, depth=2)
    prefix = f"{name}/"
    rows = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    inputs = Inputs(
        apply=jax.jit(model.apply),
        params=seeded_params(model, golden, "online"),
        emas={
            "target": seeded_params(model, golden, "ema"),
            "teacher": seeded_params(model, golden, "teacher"),
        },
        x1=jnp.asarray(golden["images"]),
        labels=jnp.asarray(golden["labels"]),
        null_label=model.null_label,
        key=jax.random.key(0),
        step=jnp.asarray(int(rows.get("step", 0))),
        num_steps=int(rows.get("max_steps", 1)),
    )
    return rows, inputs


@pytest.mark.parametrize(("step", "bins"), [(3, 1), (350, 8), (699, 64)])
def test_consistency_training(step: int, bins: int) -> None:
    """v = (x_{t+h} + (1 - t - h) v_ema(x_{t+h}, t + h) - x_t) / (1 - t), 1/h = 2^stage.

    Times lie on the grid of the stage; labels are kept; the network ignores the step size.
    """
    rows, inputs = baseline(f"consistency_training_{step}")
    objective = ConsistencyTraining()
    assert float(objective.bins(inputs.step, inputs.num_steps)) == 2.0 ** rows["level"] == bins
    assert (rows["t"] * bins % 1 == 0).all()
    np.testing.assert_array_equal(rows["row_labels"], inputs.labels)
    x0, t = jnp.asarray(rows["noise"]), jnp.asarray(rows["t"])
    assert_agrees(base.path(x0, inputs.x1, t, SIGMA_MIN), rows["x_t"])
    assert_agrees(objective.targets(inputs, x0, t, t + 1 / bins), rows["v_t"])


@pytest.mark.parametrize(("step", "level"), [(3, 6), (350, 3), (699, 0)])
def test_progressive_distillation(step: int, level: int) -> None:
    """Two half steps of the teacher, guided in the first stage; t a multiple of 2^-level."""
    rows, inputs = baseline(f"progressive_{step}")
    objective = ProgressiveDistillation(guidance=1.5)
    stage = objective.stage(inputs.step, inputs.num_steps)
    assert (rows["level"] == level).all()
    assert objective.num_stages - 1 - int(stage) == level
    assert (rows["t"] * 2**level % 1 == 0).all()
    x0, t = jnp.asarray(rows["noise"]), jnp.asarray(rows["t"])
    xt = base.path(x0, inputs.x1, t, SIGMA_MIN)
    assert_agrees(xt, rows["x_t"])
    assert_agrees(objective.targets(inputs, xt, t, inputs.labels, stage), rows["v_t"])


def test_consistency_distillation() -> None:
    """The teacher steps by 1/128, the student's average predicts the data from there."""
    rows, inputs = baseline("consistency_distillation_3")
    x0, t = jnp.asarray(rows["noise"]), jnp.asarray(rows["t"])
    xt = base.path(x0, inputs.x1, t, SIGMA_MIN)
    assert_agrees(xt, rows["x_t"])
    assert (rows["t"] * 128 % 1 == 0).all()
    targets = ConsistencyDistillation().targets(inputs, xt, t, inputs.labels)
    assert_agrees(targets, rows["v_t"])


@pytest.mark.parametrize("name", ["live_reflow", "live_reflow_guided"])
def test_live_reflow(name: str) -> None:
    """Reflow rows: noise to the end of eight guided Euler steps of the online network, at level 0.

    Flow rows: the data, at level 7. Labels are dropped on flow rows only.
    """
    rows, inputs = baseline(name)
    reflow, x0 = int(rows["reflow_rows"]), jnp.asarray(rows["noise"])
    objective = LiveReflow(reflow_share=reflow / 32, guidance=float(rows["guidance"]))
    z0, t = x0[:reflow], jnp.asarray(rows["t"])
    z1 = objective.generate(inputs, z0, inputs.labels[:reflow])
    assert_agrees(z1 - z0, rows["v_t"][:reflow])
    assert_agrees(base.path(z0, z1, t[:reflow], SIGMA_MIN), rows["x_t"][:reflow])

    flow_x0, flow_x1 = x0[:-reflow], inputs.x1[:-reflow]
    assert_agrees(base.path(flow_x0, flow_x1, t[reflow:], SIGMA_MIN), rows["x_t"][reflow:])
    assert_agrees(base.path_velocity(flow_x0, flow_x1, SIGMA_MIN), rows["v_t"][reflow:])
    assert (rows["level"] == np.where(np.arange(32) < reflow, 0, FINEST_LEVEL)).all()
    np.testing.assert_array_equal(rows["row_labels"][:reflow], inputs.labels[:reflow])


def test_initialisation() -> None:
    """Xavier uniform for all kernels, normal(0.02) in the embeddings, zero final layer and biases.

    Query, key and value are Xavier each for itself; the blocks' modulation is Xavier, not zero.
    """
    golden = load("official_initialisation")
    model = make_model(side=8, channels=4, width=64, depth=2)
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(1)))
    views = official_views(params, model.config)
    shapes = official_shapes(golden)
    assert sorted([*views, *UNUSED]) == sorted(shapes)
    for index, (path, shape) in enumerate(shapes.items()):
        if path in UNUSED:
            continue
        ours = views[path].astype(np.float64)
        mean, std, low, high = (golden[name][index] for name in ("mean", "std", "min", "max"))
        assert ours.shape == shape, path
        if std == 0:
            assert mean == 0, path
            assert not ours.any(), path
            continue
        # Five standard errors of the difference of two samples' statistics.
        error = 5.0 * np.sqrt(2.0 / ours.size) * std
        assert abs(ours.mean() - mean) < error, path
        assert abs(ours.std() - std) < error / np.sqrt(2.0), path
        # Uniform samples end at sqrt(3) standard deviations, normal ones far beyond.
        spread = 0.03 if high < 1.9 * std else 0.4
        assert ours.max() == pytest.approx(high, rel=spread), path
        assert ours.min() == pytest.approx(low, rel=spread), path
