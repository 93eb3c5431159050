"""Remakes the golden files of the weights that `shortcut_tpu.convert` reads.

Each holds a small network's weights in the file format of its repository, what that repository's
code computes from them, and samples from loops written here. Nothing of the repositories is kept:
they are imported from clones. The part `official` needs jax, flax, optax and einops; the part
`torch` needs torch and timm.

Usage:
  python tests/golden/make_conversion_goldens.py official --clone=../shortcut-models \\
      --output=tests/golden
  python tests/golden/make_conversion_goldens.py torch --clone=../DiT --sit=../SiT \\
      --output=tests/golden
"""

import argparse
import contextlib
import importlib.util
import io
from pathlib import Path
import pickle
import sys
from types import ModuleType

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CLASSES = 3
SIDE, CHANNELS = 4, 2
WIDTH, DEPTH, HEADS, PATCH = 12, 2, 3, 2
ROWS = 4
STEPS = (1, 4)


def inputs() -> dict[str, np.ndarray]:
    """Rows of noise, times and labels, the null label among them."""
    rng = np.random.default_rng(5)
    return {
        "x": rng.normal(size=(ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32),
        "t": rng.integers(0, 1000, size=ROWS).astype(np.float32) / 1000,
        "labels": np.array([0, 1, 2, CLASSES], np.int32),
    }


def official(clone: Path, output: Path) -> None:
    """A checkpoint as the official training writes it, after one update of random gradients."""
    import flax
    import jax
    from jax._src import core
    import jax.numpy as jnp
    import optax

    for owner, name, value in ((core, "as_named_shape", tuple), (jax, "tree_map", jax.tree.map)):
        if not hasattr(owner, name):
            setattr(owner, name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    sys.path.insert(0, str(clone))
    from model import DiT
    from utils.train_state import TrainStateEma

    rng = np.random.default_rng(7)
    network = DiT(
        patch_size=PATCH,
        hidden_size=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=4.0,
        out_channels=CHANNELS,
        class_dropout_prob=0.1,
        num_classes=CLASSES,
        dtype=jnp.float32,
    )
    given = inputs()
    arguments = [jnp.asarray(given["x"]), jnp.zeros(ROWS), jnp.zeros(ROWS), given["labels"]]
    params = network.init(jax.random.PRNGKey(0), *arguments)["params"]

    def random(leaf: jax.Array) -> np.ndarray:
        scale = 1.3 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return (rng.normal(size=leaf.shape) * scale).astype(np.float32)

    params = jax.tree.map(random, params)
    tx = optax.chain(optax.adamw(1e-3, weight_decay=0.1))
    state = TrainStateEma.create(network, flax.core.freeze(params), jax.random.PRNGKey(1), tx=tx)
    updates, opt_state = tx.update(
        jax.tree.map(random, state.params), state.opt_state, state.params
    )
    # Apart from the weights, so that taking one for the other shows.
    average = jax.tree.map(lambda leaf: leaf + 0.05 * random(leaf), state.params)
    state = state.replace(
        step=1234,
        params=optax.apply_updates(state.params, updates),
        params_ema=average,
        opt_state=opt_state,
    )
    # What the repository's Checkpoint pickles, of a state that was gathered onto the host.
    content = {"train_state": jax.tree.map(np.asarray, state).save(), "_timestamp": 0.0}
    path = output / "official_checkpoint.pickle"
    path.write_bytes(pickle.dumps(content, protocol=4))

    outputs = {}
    level = jnp.asarray(np.array([0, 3, 7, 5], np.float32))
    for name, weights in (("online", state.params), ("average", state.params_ema)):
        v = network.apply({"params": weights}, given["x"], given["t"], level, given["labels"])
        outputs[f"v_{name}"] = np.asarray(v)
    for steps in STEPS:
        x = jnp.asarray(given["x"])
        for index in range(steps):
            t, dt = jnp.full(ROWS, index / steps), jnp.full(ROWS, np.log2(steps))
            v = network.apply({"params": state.params_ema}, x, t, dt, given["labels"])
            x = x + v / steps
        outputs[f"samples_{steps}"] = np.asarray(x)
    np.savez_compressed(output / "official_checkpoint.npz", **given, level=level, **outputs)


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch(clone: Path, sit_clone: Path, output: Path) -> None:
    """One state dict, which is a DiT's and a SiT's, and what either makes of it."""
    import torch

    sys.path.insert(0, str(clone))
    from diffusion import create_diffusion

    dit_module = load(clone / "models.py", "dit_models")
    sit_module = load(sit_clone / "models.py", "sit_models")
    torch.manual_seed(0)
    sizes = {
        "input_size": SIDE,
        "patch_size": PATCH,
        "in_channels": CHANNELS,
        "hidden_size": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": CLASSES,
    }
    dit, sit = dit_module.DiT(**sizes).eval(), sit_module.SiT(**sizes).eval()
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if name != "pos_embed":
                scale = 1.3 / np.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
                parameter.copy_(torch.randn(parameter.shape) * scale)
    torch.save(dit.state_dict(), output / "torch_dit.pt")
    sit.load_state_dict(dit.state_dict())

    given = inputs()
    x0, labels = torch.from_numpy(given["x"]).permute(0, 3, 1, 2), torch.from_numpy(given["labels"])
    timesteps = np.array([0, 7, 500, 999])
    abar = np.concatenate([[1.0], create_diffusion("").alphas_cumprod])

    def channels_last(x: torch.Tensor) -> np.ndarray:
        return x.permute(0, 2, 3, 1).numpy().astype(np.float32)

    with torch.no_grad():
        outputs = {
            "epsilon": channels_last(dit(x0, torch.from_numpy(timesteps), labels)[:, :CHANNELS]),
            "velocity": channels_last(sit(x0, torch.from_numpy(given["t"]), labels)),
        }
        for steps in STEPS:
            x = x0
            for index in range(steps):
                t = torch.full((ROWS,), index / steps)
                x = x + sit(x, t, labels) / steps
            outputs[f"sit_samples_{steps}"] = channels_last(x)
            x = x0.double()
            for index in range(steps):
                before, after = 1000 - 1000 * index // steps, 1000 - 1000 * (index + 1) // steps
                k = torch.full((ROWS,), before - 1)
                noise = dit(x.float(), k, labels)[:, :CHANNELS].double()
                data = (x - np.sqrt(1 - abar[before]) * noise) / np.sqrt(abar[before])
                x = np.sqrt(abar[after]) * data + np.sqrt(1 - abar[after]) * noise
            outputs[f"dit_samples_{steps}"] = channels_last(x)
    np.savez_compressed(output / "torch_dit.npz", **given, timesteps=timesteps, **outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("official", "torch"))
    parser.add_argument("--clone", type=Path, required=True, help="clone of the repository")
    parser.add_argument("--sit", type=Path, help="clone of SiT, for the part torch")
    parser.add_argument("--output", type=Path, required=True, help="folder of the golden files")
    arguments = parser.parse_args()
    # The official network prints shapes whenever it is called.
    with contextlib.redirect_stdout(io.StringIO()):
        if arguments.part == "official":
            official(arguments.clone.resolve(), arguments.output)
        else:
            torch(arguments.clone.resolve(), arguments.sit.resolve(), arguments.output)


if __name__ == "__main__":
    main()
