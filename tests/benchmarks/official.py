"""Our shortcut step beside one made of the official repository's network and targets.

Both have the official network, the same batch and dtype, a share of 1/8, no guidance and one
average of the weights, on one device. The official code is imported from a clone and nothing of it
is kept; its step lives inside its main function, so what surrounds network and targets here is
ours, and does the same.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
from pathlib import Path
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from shortcut_tpu.training.flops import count_flops
from tests.benchmarks.comparison import Bar, Comparison, Options, Skipped, in_turns
from tests.benchmarks.small import Run, abstract_batch, random_batch, small_config

SHARE = 0.125


def import_official(clone: Path) -> tuple[dict[str, ModuleType], type]:
    """The modules of network and targets, and the class of the train state."""
    from tests.golden import make_official_goldens

    try:
        modules = make_official_goldens.import_official(clone)
        from utils.train_state import TrainStateEma
    except ModuleNotFoundError as error:
        raise Skipped(f"the official code of {clone} needs {error.name}") from None
    return modules, TrainStateEma


class Official:
    """The official network, targets and train state under a config of ours."""

    def __init__(self, clone: Path, config: ConfigDict, guidance: float = 1.0):
        self.modules, self._train_state = import_official(clone)
        self.config = config
        model, optimizer, data = config.model, config.optimizer, config.data
        dropout = config.objective.shortcut.label_dropout
        self.network = self.modules["model"].DiT(
            patch_size=model.patch_size,
            hidden_size=model.width,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            out_channels=data.channels,
            class_dropout_prob=dropout,
            num_classes=data.num_classes,
            dtype=jnp.dtype(model.dtype),
        )
        self._flags = SimpleNamespace(
            batch_size=config.batch_size,
            dataset_name="imagenet256",
            model={
                "bootstrap_every": round(1 / SHARE),
                "bootstrap_ema": 1,
                "bootstrap_cfg": int(guidance != 1),
                "bootstrap_dt_bias": 0,
                "cfg_scale": guidance,
                "class_dropout_prob": dropout,
                "denoise_timesteps": config.objective.shortcut.finest_steps,
                "num_classes": data.num_classes,
            },
        )
        self._adam = optax.adamw(
            optimizer.learning_rate, optimizer.b1, optimizer.b2, weight_decay=optimizer.weight_decay
        )

    def create(self) -> Any:
        """A fresh train state."""
        key, data = jax.random.PRNGKey(self.config.seed), self.config.data
        image, zeros = jnp.zeros((1, data.image_size, data.image_size, data.channels)), jnp.zeros(1)
        params = self.network.init(key, image, zeros, zeros, jnp.zeros(1, jnp.int32))["params"]
        return self._train_state.create(self.network, params, rng=key, tx=self._adam)

    def step(self, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        """(state, (loss, norms)), as the official main function has it."""
        key, targets_key, dropout_key = jax.random.split(state.rng, 3)
        xt, target, *conditions, _ = self.modules["targets_shortcut"].get_targets(
            self._flags, targets_key, state, images, labels
        )

        def loss(params: Any) -> jax.Array:
            rngs = {"dropout": dropout_key}
            v = state.call_model(xt, *conditions, train=True, rngs=rngs, params=params)
            return jnp.mean(jnp.square(v - target))

        value, gradients = jax.value_and_grad(loss)(state.params)
        updates, opt_state = self._adam.update(gradients, state.opt_state, state.params)
        state = state.replace(
            rng=key,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        norms = [optax.global_norm(tree) for tree in (gradients, updates, state.params)]
        return state.update_ema(self.config.emas.evaluation), (value, norms)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The official network prints shapes whenever it is traced."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def official_step(clone: Path, config: ConfigDict) -> tuple[Any, Callable[[Any], Any], int]:
    """A fresh official state, the jitted step on one batch, and its operations in products."""
    official = Official(clone, config)
    batch = random_batch(config)
    images, labels = jnp.asarray(batch["mean"]), jnp.asarray(batch["label"])

    def step(state: Any) -> Any:
        return official.step(state, images, labels)

    with quiet():
        state = jax.jit(official.create)()
        return state, jax.jit(step).lower(state).compile(), count_flops(step, state)


def measure(options: Options) -> list[Comparison]:
    if options.official is None:
        raise Skipped("give --official=CLONE of github.com/kvfrans/shortcut-models")
    config = (options.config or small_config()).copy_and_resolve_references()
    with config.unlocked():
        config.objective.shortcut.update({"bootstrap_share": SHARE, "guidance": 1.0})
    run = Run(config, jax.devices()[:1])
    state, compiled, their_flops = official_step(options.official, config)

    # A round takes about a second, and two steps at least.
    steps = max(2, round(1 / run.seconds_a_step(2)))

    def official() -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(steps):
            state, _ = compiled(state)
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / steps

    official()
    ours, other = in_turns(lambda: run.seconds_a_step(steps), official, options.rounds)
    our_flops = count_flops(run.experiment.train_step, run.state, abstract_batch(run.experiment))
    name = "our step over the official one, k = 1/8"
    return [
        Comparison(f"{name}, FLOPs", "FLOPs", [our_flops], [their_flops], Bar(high=1.02)),
        Comparison(f"{name}, time", "s", ours, other, Bar(high=1.05)),
    ]
