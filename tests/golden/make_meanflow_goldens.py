"""Remakes the golden files of MeanFlow's and improved MeanFlow's official code.

Of each repository (https://github.com/Gsunshine/meanflow, https://github.com/Lyy-iiis/imeanflow): a
small network's checkpoint as its own training writes it, zipped as the published ones are, and what
its own network, sampler and loss make of it. Nothing of the repositories is kept: they are imported
from clones. The interpreter needs the versions that their install.sh names: jax 0.4.27, flax 0.8,
optax, orbax-checkpoint 0.6.4, ml_collections and pillow. What only data and metrics need is
left out.

Usage:
  python tests/golden/make_meanflow_goldens.py meanflow --clone=../meanflow --output=tests/golden
  python tests/golden/make_meanflow_goldens.py imf --clone=../imeanflow --output=tests/golden
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
import re
import sys
import tempfile
from typing import Any
from unittest import mock
import zipfile

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

CLASSES = 3
SIDE, CHANNELS = 4, 4
WIDTH, HEADS, PATCH = 8, 2, 2
ROWS = 4
STEPS = (1, 4)
STEP = 1234
# Neither the networks nor their checkpoints need these.
LEFT_OUT = (
    *("clu", "wandb", "utils.input_pipeline", "utils.fid_util", "utils.sample_util"),
    *("utils.vae_util", "utils.vis_util"),
)

Arrays = dict[str, Any]


def inputs() -> Arrays:
    """Rows of noise, official times and step sizes, and labels, the null label among them."""
    rng = np.random.default_rng(5)
    t = rng.integers(500, 1000, size=ROWS).astype(np.float32) / 1000
    return {
        "x": rng.normal(size=(ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32),
        "t": t,
        "h": np.array([0, 0.25, 0.5, 0.4], np.float32),
        "labels": np.array([0, 1, 2, CLASSES], np.int32),
    }


def random(rng: np.random.Generator, scale: float, leaf: jax.Array) -> np.ndarray:
    """In place of fresh weights, which make zeros; of few digits, so that files are small."""
    deviation = 1.3 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
    values = scale * deviation * rng.normal(size=leaf.shape)
    return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float32)


def trained(create_train_state: Callable[..., Any], config: Any, model: Any, rate: Any) -> Any:
    """The official train state, as if it had been trained: an average apart from the weights."""
    state = create_train_state(jax.random.PRNGKey(0), config, model, SIDE, rate)
    rng = np.random.default_rng(7)
    weights = jax.tree.map(partial(random, rng, 1.0), state.params)
    # The scales of norms are about 1.
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + np.float32("norm" in jax.tree_util.keystr(path)), weights
    )
    average = jax.tree.map(lambda leaf: leaf + random(rng, 0.1, leaf), weights)
    return state.replace(step=STEP, params=weights, ema_params=average)


def save(save_checkpoint: Callable[..., None], state: Any, path: Path) -> None:
    """The checkpoint that the official code writes, zipped."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(flax.jax_utils.replicate(state), folder)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(Path(folder).rglob("*")):
                archive.write(file, file.relative_to(folder))


def samples(model: Any, params: Any, given: Arrays, steps: int, *more: Any) -> jax.Array:
    """The official sampler's steps from the given noise."""
    times, x = jnp.linspace(1.0, 0.0, steps + 1), given["x"]
    for index in range(steps):
        x = model.apply(
            {"params": params},
            *(x, given["labels"], index, times, *more),
            method=model.sample_one_step,
            rngs={"gen": jax.random.PRNGKey(0)},
        )
    return x


def meanflow(output: Path) -> None:
    from meanflow import MeanFlow
    from models import models_dit
    import train
    from utils.ckpt_util import save_checkpoint

    models_dit.Small = partial(
        models_dit.DiT,
        input_size=SIDE,
        patch_size=PATCH,
        in_channels=CHANNELS,
        hidden_size=WIDTH,
        depth=2,
        num_heads=HEADS,
        num_classes=CLASSES,
    )
    model = MeanFlow(model_str="Small", model_config={}, num_classes=CLASSES)
    config = ml_collections.ConfigDict({"training": {"adam_b2": 0.95}})
    state = trained(train.create_train_state, config, model, 1e-4)
    save(save_checkpoint, state, output / "meanflow_checkpoint.zip")

    given, outputs = inputs(), {}
    for name, params in (("online", state.params), ("average", state.ema_params)):
        outputs[f"u_{name}"] = model.apply(
            {"params": params},
            *(given["x"], given["t"], given["h"], given["labels"], False),
            method=model.u_fn,
            rngs={"gen": jax.random.PRNGKey(0)},
        )
    for steps in STEPS:
        outputs[f"samples_{steps}"] = samples(model, state.ema_params, given, steps)
    np.savez_compressed(output / "meanflow_checkpoint.npz", **given, **outputs)


def imf(output: Path) -> None:
    import imf
    from models import imfDiT
    from utils.ckpt_util import save_checkpoint
    from utils.trainstate_util import create_train_state

    # The code was written against these names.
    jax.tree_map, jax.tree_leaves = jax.tree.map, jax.tree.leaves
    imfDiT.Small = partial(
        imfDiT.imfDiT,
        input_size=SIDE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        depth=3,
        num_heads=HEADS,
        aux_head_depth=1,
    )
    config = ml_collections.ConfigDict({"training": {"adam_b2": 0.95}})
    settings = {"model_str": "Small", "num_classes": CLASSES}
    model, sampler = imf.iMeanFlow(**settings), imf.iMeanFlow(**settings, eval=True)
    state = trained(create_train_state, config, model, 1e-4)
    save(save_checkpoint, state, output / "imf_checkpoint.zip")
    # What is published to be sampled from has no blocks for v.
    without = trained(create_train_state, config, sampler, 1e-4)
    names = flax.traverse_util.flatten_dict(without.params["net"], sep="/")
    plain = [re.sub("_flax_(linear|embedding)/", "", name) for name in names]
    given, outputs = inputs(), {"inference_names": np.array(sorted(plain))}
    told = {
        "omega": np.array([1, 2.5, 8, 4], np.float32),
        "t_min": np.array([0, 0.1, 0.5, 0.3], np.float32),
        "t_max": np.array([1, 0.6, 0.7, 0.9], np.float32),
    }
    for name, params in (("online", state.params), ("average", state.ema_params)):
        arguments = (given["x"], given["t"], given["h"], *told.values(), given["labels"])
        u, v = model.apply({"params": params}, *arguments, method=model.u_fn)
        outputs |= {f"u_{name}": u, f"v_{name}": v}
    # Guidance and interval of the released B/2, and those of M/2 beyond the strengths in training.
    for name, asked in (("b", (8.0, 0.4, 0.65)), ("m", (10.5, 0.4, 0.6))):
        for steps in STEPS:
            made = samples(model, state.ema_params, given, steps, *asked)
            outputs[f"samples_{name}_{steps}"] = made
    np.savez_compressed(output / "imf_checkpoint.npz", **given, **told, **outputs)
    np.savez_compressed(output / "imf_loss.npz", **loss_rows(imf.iMeanFlow, settings, state.params))


def loss_rows(base: Any, settings: Arrays, params: Any) -> Arrays:
    """The official loss of each row by itself, with draws that are given, and its gradients.

    Rows are of both kinds and guided within and outside their intervals; two lost their label.
    """
    rng, rows = np.random.default_rng(3), 16
    flow = np.arange(rows) % 2 == 1
    ends = np.sort(rng.uniform(size=(rows, 2)).astype(np.float32), axis=1)
    draws = {
        "images": rng.normal(size=(rows, SIDE, SIDE, CHANNELS)).astype(np.float32),
        "classes": rng.integers(CLASSES, size=rows).astype(np.int32),
        "t": ends[:, 1],
        "r": np.where(flow, ends[:, 1], ends[:, 0]),
        "omega": np.exp(rng.uniform(size=rows) * np.log(8)).astype(np.float32),
        "t_min": np.where(flow, 0, rng.uniform(0, 0.5, rows)).astype(np.float32),
        "t_max": np.where(flow, 1, rng.uniform(0.5, 1, rows)).astype(np.float32),
        "dropped": np.isin(np.arange(rows), [3, 9]),
    }
    inside = (draws["t"] >= draws["t_min"]) & (draws["t"] <= draws["t_max"])
    assert 2 < inside[~flow].sum() < 6 and draws["dropped"][flow].sum() == 2

    class Told(base):
        """The official method, told what it would draw, of one row."""

        row: Any = None

        def draw(self, name: str) -> jax.Array:
            return jnp.asarray(self.row[name]).reshape(1, 1, 1, 1)

        def make_rng(self, name: str) -> jax.Array:
            return self.row["key"]

        def sample_tr(self, bz: int) -> Any:
            return self.draw("t"), self.draw("r"), self.draw("t") == self.draw("r")

        def sample_cfg_scale(self, bz: int, s_max: float = 7.0) -> Any:
            return self.draw("omega")

        def sample_cfg_interval(self, bz: int, fm_mask: Any = None) -> Any:
            return self.draw("t_min"), self.draw("t_max")

        def cond_drop(self, v_t: Any, v_g: Any, labels: Any) -> Any:
            dropped = self.row["dropped"]
            return jnp.where(dropped, CLASSES, labels), jnp.where(dropped, v_t, v_g)

    @jax.jit
    def loss_of(params: Any, row: Arrays) -> Any:
        def loss(params: Any) -> Any:
            model = Told(**settings, row=flax.core.freeze(row))
            arguments = (row["images"][None], row["classes"][None])
            return model.apply({"params": params}, *arguments, method=model.forward)

        return jax.value_and_grad(loss, has_aux=True)(params)

    recorded: dict[str, list[Any]] = {"noise": [], "loss": [], "loss_u": [], "loss_v": []}
    total = jax.tree.map(jnp.zeros_like, params)
    for index in range(rows):
        row = {name: value[index] for name, value in draws.items()}
        row["key"] = jax.random.PRNGKey(index)
        (_, parts), grads = loss_of(params, row)
        total = jax.tree.map(lambda sum, leaf: sum + leaf / rows, total, grads)
        recorded["noise"].append(jax.random.normal(row["key"], row["images"].shape))
        for name, value in parts.items():
            recorded[name].append(value)
    names = (
        *("shared_blocks_0/attn/q_proj", "shared_blocks_1/mlp/w1", "u_heads_0/mlp/w2"),
        *("v_heads_0/attn/out_proj", "omega_embedder/mlp/layers_2"),
    )
    flat = flax.traverse_util.flatten_dict(total["net"], sep="/")
    grads = {f"grad/{name}": flat[f"{name}/_flax_linear/kernel"] for name in names}
    return draws | {name: np.stack(values) for name, values in recorded.items()} | grads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("meanflow", "imf"))
    parser.add_argument("--clone", type=Path, required=True, help="clone of the repository")
    parser.add_argument("--output", type=Path, required=True, help="folder of the golden files")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    sys.path.insert(0, str(arguments.clone.resolve()))
    sys.modules.update({name: mock.MagicMock() for name in LEFT_OUT})
    {"meanflow": meanflow, "imf": imf}[arguments.part](arguments.output)


if __name__ == "__main__":
    main()
