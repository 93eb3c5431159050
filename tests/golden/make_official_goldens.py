"""Remakes the golden files that hold what the official shortcut-models code computes.

The files let `tests/unit/test_official_parity.py` compare this package with the official network,
targets and initialisation without the official code at hand. Nothing of that code is kept here: it
is imported from a clone (https://github.com/kvfrans/shortcut-models). The interpreter needs jax,
flax and einops.

Usage:
  git clone https://github.com/kvfrans/shortcut-models ../shortcut-models
  python tests/golden/make_official_goldens.py --official=../shortcut-models --output=tests/golden
"""

import argparse
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import importlib
import io
from pathlib import Path
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import flax
import jax
from jax._src import core
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.seeded_weights import seeded_weights

Arrays = dict[str, np.ndarray]
Velocity = Callable[..., jax.Array]

CLASSES = 10
FINEST_STEPS = 128
FINEST_LEVEL = 7
CLIP = 4.0

FORWARD_SHAPE = (8, 8, 4)
FORWARD_NETWORK = {"hidden_size": 48, "depth": 3, "num_heads": 4}
TARGET_SHAPE = (8, 8, 1)
TARGET_NETWORK = {"hidden_size": 32, "depth": 2, "num_heads": 4}
TARGET_IMAGES = 128
INITIAL_SHAPE = (8, 8, 4)
INITIAL_NETWORK = {"hidden_size": 64, "depth": 2, "num_heads": 4}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Hyperparameters under which the official targets are recorded."""

    name: str
    batch: int
    bootstrap_every: int
    bootstrap_ema: int = 1
    bootstrap_cfg: int = 0
    cfg_scale: float = 1.0
    class_dropout_prob: float = 0.1

    def flags(self) -> SimpleNamespace:
        """What the official code reads of its command line."""
        model = dataclasses.asdict(self) | {
            "denoise_timesteps": FINEST_STEPS,
            "num_classes": CLASSES,
            "bootstrap_dt_bias": 0,
        }
        return SimpleNamespace(batch_size=self.batch, model=model, dataset_name="celebahq256")


SHORTCUT_SETTINGS = (
    Setting("ema", batch=128, bootstrap_every=4),
    Setting(
        "guided",
        batch=128,
        bootstrap_every=8,
        bootstrap_cfg=1,
        cfg_scale=1.5,
        class_dropout_prob=0.3,
    ),
    Setting("few_rows", batch=16, bootstrap_every=4),
    Setting("few_rows_guided", batch=16, bootstrap_every=4, bootstrap_cfg=1, cfg_scale=1.5),
    Setting("online", batch=64, bootstrap_every=4, bootstrap_ema=0),
)
NAIVE_SETTING = Setting("naive", batch=32, bootstrap_every=1, class_dropout_prob=0.3)
REFLOW_SETTINGS = (
    Setting("live_reflow", batch=32, bootstrap_every=4),
    Setting("live_reflow_guided", batch=32, bootstrap_every=4, cfg_scale=1.5),
)
# Steps of several stages, of a training of so many steps, for the methods that have stages.
STAGE_STEPS = (3, 350, 699)
MAX_STEPS = 700


def import_official(clone: Path) -> dict[str, ModuleType]:
    """The official modules of the model and of the targets, by the last part of their name.

    Two names that the code was written against are put back first.
    """
    for owner, name, value in ((core, "as_named_shape", tuple), (jax, "tree_map", jax.tree.map)):
        if not hasattr(owner, name):
            setattr(owner, name, value)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(clone))
    names = (
        "model",
        "targets_shortcut",
        "baselines.targets_naive",
        "baselines.targets_consistency_training",
        "baselines.targets_livereflow",
        "baselines.targets_progressive",
        "baselines.targets_consistency_distillation",
    )
    return {name.rpartition(".")[2]: importlib.import_module(name) for name in names}


def commit_of(clone: Path) -> str:
    """The clone's commit hash; raises RuntimeError if its files differ from that commit."""
    git = ["git", "-C", str(clone)]
    if subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode:
        raise RuntimeError(f"{clone} is not an unchanged clone")
    run = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return run.stdout.strip()


class Official:
    """The official network as functions of weights."""

    def __init__(self, module: ModuleType, shape: tuple[int, ...], network: Mapping[str, int]):
        common = {
            "patch_size": 2,
            "mlp_ratio": 4.0,
            "out_channels": shape[-1],
            "class_dropout_prob": 0.1,
            "num_classes": CLASSES,
            "dtype": jnp.float32,
        }
        self._dit = {
            ignore: module.DiT(**common, **network, ignore_dt=ignore) for ignore in (False, True)
        }
        self._example = (
            jnp.zeros((1, *shape)),
            jnp.zeros(1),
            jnp.zeros(1),
            jnp.zeros(1, dtype=jnp.int32),
        )

    def init(self, key: jax.Array) -> Arrays:
        """Fresh weights by path."""
        params = self._dit[False].init(key, *self._example)["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return {path: np.asarray(leaf) for path, leaf in sorted(flat.items())}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: leaf.shape for path, leaf in self.init(jax.random.PRNGKey(0)).items()}

    def apply(self, weights: Arrays, *inputs: Any, ignore_dt: bool = False) -> jax.Array:
        params = flax.traverse_util.unflatten_dict(weights, sep="/")
        return self._dit[ignore_dt].apply({"params": params}, *inputs, train=False)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Names and shapes as two arrays of strings, the shapes as "48,192"."""
    return {
        "paths": np.array(list(shapes)),
        "shapes": np.array([",".join(map(str, shape)) for shape in shapes.values()]),
    }


def forward_goldens(module: ModuleType) -> Arrays:
    """One batch through the official network; every level and every label occur."""
    network = Official(module, FORWARD_SHAPE, FORWARD_NETWORK)
    shapes = network.shapes()
    weights = seeded_weights(shapes, salt="online")
    rng = np.random.default_rng(0)
    rows = 24
    inputs = {
        "x": rng.normal(size=(rows, *FORWARD_SHAPE)).astype(np.float32),
        "t": rng.uniform(size=rows).astype(np.float32),
        "level": rng.permutation(np.arange(rows) % (FINEST_LEVEL + 1)).astype(np.float32),
        "labels": rng.permutation(np.arange(rows) % (CLASSES + 1)).astype(np.int32),
    }
    inputs["t"][:2] = 0.0, 1.0 - 1.0 / FINEST_STEPS
    outputs = {
        "v": network.apply(weights, *inputs.values()),
        "v_ignore_dt": network.apply(weights, *inputs.values(), ignore_dt=True),
    }
    return describe(shapes) | inputs | {name: np.asarray(v) for name, v in outputs.items()}


class Recorder:
    """The part of a train state that the official targets use; notes the inputs of each call."""

    def __init__(
        self,
        network: Official,
        online: Arrays,
        ema: Arrays,
        step: int = 0,
        ignore_dt: bool = False,
    ):
        self.calls: list[tuple[np.ndarray, ...]] = []
        self.step = step
        self._ignore_dt = ignore_dt
        self.call_model = self._note(network, online)
        self.call_model_ema = self._note(network, ema)

    def _note(self, network: Official, weights: Arrays) -> Velocity:
        def call(*inputs: jax.Array, train: bool) -> jax.Array:
            assert not train
            self.calls.append(tuple(np.asarray(a) for a in inputs))
            return network.apply(weights, *inputs, ignore_dt=self._ignore_dt)

        return call


def target_goldens(shortcut: ModuleType, naive: ModuleType, model: ModuleType) -> Arrays:
    """Official targets, with the data, noise, time and level behind each row.

    `image_rows` says which of the shared `images`, `labels` and `noise` a row was made of.
    """
    network = Official(model, TARGET_SHAPE, TARGET_NETWORK)
    shapes = network.shapes()
    online, ema = (seeded_weights(shapes, salt=salt) for salt in ("online", "ema"))
    key = jax.random.PRNGKey(7)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(TARGET_IMAGES, *TARGET_SHAPE)).astype(np.float32) * 1.5
    labels = rng.integers(CLASSES, size=TARGET_IMAGES).astype(np.int32)
    noise = np.asarray(jax.random.normal(jax.random.split(key, 3)[2], images.shape))
    goldens = describe(shapes) | {"images": images, "labels": labels, "noise": noise}

    for setting in (*SHORTCUT_SETTINGS, NAIVE_SETTING):
        module = naive if setting is NAIVE_SETTING else shortcut
        state = Recorder(network, online, ema)
        batch = setting.batch
        xt, v, t, level, row_labels, _ = module.get_targets(
            setting.flags(), key, state, jnp.asarray(images[:batch]), jnp.asarray(labels[:batch])
        )
        bootstrap = 0 if setting is NAIVE_SETTING else batch // setting.bootstrap_every
        image_rows = np.concatenate([np.arange(bootstrap), np.arange(batch - bootstrap)])
        rows = {
            "image_rows": image_rows.astype(np.int32),
            "t": np.asarray(t),
            "level": np.asarray(level, dtype=np.float32),
            "row_labels": np.asarray(row_labels, dtype=np.int32),
            "x_t": np.asarray(xt),
            "v_t": np.asarray(v),
        }
        check_rows(setting, key, rows, images, noise, labels, bootstrap)
        if bootstrap:
            check_bootstrap(setting, rows, state, bootstrap)
            # Against the online weights: the official loss is the mean of this over the rows.
            error = network.apply(online, xt, t, level, row_labels) - v
            rows["row_loss"] = np.asarray(jnp.mean(jnp.square(error), axis=(1, 2, 3)))
        hyper = {
            "bootstrap_every": setting.bootstrap_every,
            "bootstrap_rows": bootstrap,
            "guidance": setting.cfg_scale,
            "uses_ema": bool(setting.bootstrap_ema),
        }
        rows |= {name: np.array(value) for name, value in hyper.items()}
        goldens |= {f"{setting.name}/{name}": value for name, value in rows.items()}
    return goldens


def check_rows(
    setting: Setting,
    key: jax.Array,
    rows: Arrays,
    images: np.ndarray,
    noise: np.ndarray,
    labels: np.ndarray,
    bootstrap: int,
) -> None:
    """Asserts that the recorded noise, images and times are those that the official code used."""
    batch = setting.batch
    _, time_key, noise_key = jax.random.split(key, 3)

    # The same key draws both kinds of rows; a longer draw starts with the shorter one.
    for count in (bootstrap, batch):
        drawn = jax.random.normal(noise_key, (count, *images.shape[1:]))
        np.testing.assert_array_equal(drawn, noise[:count])
    grid = np.exp2(rows["level"])
    boot_t = jax.random.randint(time_key, (bootstrap,), 0, grid[:bootstrap].astype(np.int32))
    flow_t = jax.random.randint(time_key, (batch,), 0, FINEST_STEPS)
    t = np.concatenate([boot_t, flow_t[: batch - bootstrap]]) / grid
    np.testing.assert_array_equal(rows["t"], t.astype(np.float32))

    x0, x1 = noise[rows["image_rows"]], images[rows["image_rows"]]
    wide = jnp.asarray(rows["t"])[:, None, None, None]
    np.testing.assert_array_equal(rows["x_t"], (1 - (1 - 1e-5) * wide) * x0 + wide * x1)
    flow_v = (jnp.asarray(x1) - (1 - 1e-5) * x0)[bootstrap:]
    np.testing.assert_array_equal(rows["v_t"][bootstrap:], flow_v)
    kept = rows["row_labels"] == labels[rows["image_rows"]]
    assert kept[:bootstrap].all()
    assert (rows["row_labels"][~kept] == CLASSES).all()
    assert (rows["level"][bootstrap:] == FINEST_LEVEL).all()


def check_bootstrap(setting: Setting, rows: Arrays, state: Recorder, bootstrap: int) -> None:
    """Asserts that the recorded rows exercise both clips and the guidance."""
    first, second = state.calls
    guided = bootstrap // FINEST_LEVEL if setting.bootstrap_cfg else 0
    assert len(first[0]) == len(second[0]) == bootstrap + guided
    assert (rows["level"][:guided] == FINEST_LEVEL - 1).all()
    assert (first[3][bootstrap:] == CLASSES).all()
    clipped = {"x'": second[0], "v": rows["v_t"][:bootstrap]}
    shares = {name: float(np.mean(np.abs(a) == CLIP)) for name, a in clipped.items()}
    report = ", ".join(f"{share:.1%} of {name}" for name, share in shares.items())
    counts = f"{bootstrap} bootstrap rows, {guided} guided"
    print(f"{setting.name}: {counts}; clipped {report}", file=sys.stderr)
    for name, array in clipped.items():
        if bootstrap > FINEST_LEVEL:
            assert np.abs(array).max() == CLIP, f"{setting.name}: {name} is never clipped"
        assert shares[name] < 0.2, f"{setting.name}: {name} is clipped too often to compare"


def baseline_goldens(modules: Mapping[str, ModuleType]) -> Arrays:
    """Official targets of the baselines that learn from themselves or from a teacher."""
    network = Official(modules["model"], TARGET_SHAPE, TARGET_NETWORK)
    shapes = network.shapes()
    online, ema = (seeded_weights(shapes, salt=salt) for salt in ("online", "ema"))
    key = jax.random.PRNGKey(11)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(32, *TARGET_SHAPE)).astype(np.float32)
    labels = rng.integers(CLASSES, size=32).astype(np.int32)
    goldens = describe(shapes) | {"images": images, "labels": labels}

    def record(name: str, targets: tuple[Any, ...], noise: jax.Array, **more: Any) -> None:
        xt, v, t, level, row_labels, _ = targets
        rows = {"x_t": xt, "v_t": v, "t": t, "level": level, "row_labels": row_labels}
        rows |= {"noise": noise} | more
        goldens.update({f"{name}/{field}": np.asarray(value) for field, value in rows.items()})

    for setting in REFLOW_SETTINGS:
        state = Recorder(network, online, ema)
        targets = modules["targets_livereflow"].get_targets(
            setting.flags(), key, state, jnp.asarray(images), jnp.asarray(labels)
        )
        assert len(state.calls) == 8
        noise = jax.random.normal(jax.random.split(key, 3)[2], images.shape)
        record(
            setting.name,
            targets,
            noise,
            reflow_rows=setting.batch // setting.bootstrap_every,
            guidance=setting.cfg_scale,
        )
    teacher = Recorder(network, online, seeded_weights(shapes, salt="teacher"), ignore_dt=True)
    for step in STAGE_STEPS:
        state = Recorder(network, online, ema, step=step, ignore_dt=True)
        noise = jax.random.normal(jax.random.split(key, 2)[1], images.shape)
        flags = Setting("staged", batch=32, bootstrap_every=1, bootstrap_cfg=1, cfg_scale=1.5)
        official = flags.flags()
        official.max_steps = MAX_STEPS
        rows = (jnp.asarray(images), jnp.asarray(labels))
        for name, states in (
            ("consistency_training", (state,)),
            ("progressive", (state, teacher)),
            ("consistency_distillation", (state, teacher)),
        ):
            targets = modules[f"targets_{name}"].get_targets(official, key, *states, *rows)
            record(f"{name}_{step}", targets, noise, step=step, max_steps=MAX_STEPS)
    return goldens


def initialisation_goldens(module: ModuleType) -> Arrays:
    """Statistics of every parameter after the official initialisation."""
    weights = Official(module, INITIAL_SHAPE, INITIAL_NETWORK).init(jax.random.PRNGKey(0))
    statistics = {
        name: np.array([reduce(leaf.astype(np.float64)) for leaf in weights.values()])
        for name, reduce in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max))
    }
    return describe({path: leaf.shape for path, leaf in weights.items()}) | statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="clone of shortcut-models")
    parser.add_argument("--output", type=Path, required=True, help="folder of the golden files")
    arguments = parser.parse_args()

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    commit = commit_of(arguments.official)
    modules = import_official(arguments.official)
    model = modules["model"]
    # The official network prints shapes whenever it is called.
    with contextlib.redirect_stdout(io.StringIO()):
        goldens = {
            "official_dit": forward_goldens(model),
            "official_shortcut_targets": target_goldens(
                modules["targets_shortcut"], modules["targets_naive"], model
            ),
            "official_baseline_targets": baseline_goldens(modules),
            "official_initialisation": initialisation_goldens(model),
        }
    for name, arrays in goldens.items():
        path = arguments.output / f"{name}.npz"
        contents: dict[str, Any] = {"commit": np.array(commit)} | arrays
        np.savez_compressed(path, **contents)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
