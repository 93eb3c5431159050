"""One run to a workdir, changes that are named, hangs that end, updates that are left out."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys
import time
import types

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from configs import digits
from data_pipeline.errors import UserError
from data_pipeline.loader import record_indices
from data_pipeline.manifest import Manifest
from data_pipeline.records import LatentReader, write_shard
from shortcut_tpu.cli.config import differences
from shortcut_tpu.objectives import Objective
from shortcut_tpu.runs import skipping
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.workdir import check_config, claimed
from shortcut_tpu.train import train
from shortcut_tpu.training.latents import Scaling
from shortcut_tpu.training.train_state import TrainState
from shortcut_tpu.training.train_step import make_train_step
from tests.multihost import pods

ROOT = Path(__file__).parents[2]


def test_the_second_run_on_a_workdir_refuses(tmp_path):
    workdir = epath.Path(tmp_path)
    refused = pytest.raises(UserError, match=rf"another run .* \(process {os.getpid()}\)")
    with claimed(workdir), refused, claimed(workdir):
        pass
    with claimed(workdir):
        pass


def test_changes_are_named_one_by_one():
    config = digits.get_config()
    before = json.loads(json.dumps(config.to_dict()))
    assert differences(before, config) == []
    config.batch_size = 64
    config.evaluation.steps = (1, 2)
    del before["emas"]["target"]
    changes = [
        "batch_size: 256 -> 64",
        "emas.target: 'absent' -> 0.8",
        "evaluation.steps: [1, 4, 32] -> [1, 2]",
    ]
    assert differences(before, config) == changes
    # A comparison's runs are without the keys of other methods.
    del before["objective"]["koopman"], config.objective.koopman
    assert differences(before, config) == changes
    with pytest.raises(UserError, match=r"batch_size: 256 -> 64; .*--allow_config_change"):
        check_config(before, config, allow_change=False)
    check_config(before, config, allow_change=True)


def test_a_run_may_be_made_longer_but_not_shorter(capfd):
    """A method whose stages are shares of the training would find itself in an earlier one."""
    config = digits.get_config()
    before = json.loads(json.dumps(config.to_dict()))
    config.train.num_steps *= 2
    check_config(before, config, allow_change=False)
    line = "train.num_steps: 2000 -> 4000: the same run goes on"
    assert capfd.readouterr().out == f"{line}; its cosine learning rate is now over 4000 steps\n"
    config.batch_size = 64
    with pytest.raises(UserError, match=r"checkpoint: batch_size: 256 -> 64\. Give"):
        check_config(before, config, allow_change=False)
    config.batch_size, config.train.num_steps = 256, 1999
    with pytest.raises(UserError, match=r"num_steps: 2000 -> 1999"):
        check_config(before, config, allow_change=False)
    for name, scheduled in (("shortcut", False), ("progressive_distillation", True)):
        config.objective.name, config.train.num_steps = name, 4000
        same = before | {"objective": before["objective"] | {"name": name}}
        with pytest.raises(UserError) if scheduled else contextlib.nullcontext():
            check_config(same, config, allow_change=False)


def test_a_hang_ends_with_the_stacks():
    code = """
import threading
from shortcut_tpu.observability.watchdog import Watchdog
def waits_for_ever(lock):
    lock.acquire()
with Watchdog(0.5):
    lock = threading.Lock()
    lock.acquire()
    waits_for_ever(lock)
"""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert time.monotonic() - started < 20
    assert "waits_for_ever" in ended.stderr


def test_a_compiler_may_take_longer_than_a_step():
    """By JAX's own events: between them a program is at the compiler."""
    code = """
import time, jax
from shortcut_tpu.observability.watchdog import Watchdog
jax.jit(lambda x: x + 1).lower(1.0).compile()
with Watchdog(1):
    lowered = jax.jit(lambda x: x + 2).lower(1.0)
    time.sleep(2)
    print("still here", flush=True)
    lowered.compile()
    time.sleep(2)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "still here\n")


def make_step(max_skipped: int):
    """A step whose gradient is the mean of the batch, and its first state."""
    model = types.SimpleNamespace(init=lambda key: {"w": jnp.ones(3)}, apply=None, null_label=10)

    class Mean(Objective):
        name = "mean"

        def loss(self, inputs):
            loss = (inputs.params["w"] * inputs.x1.mean()).sum()
            return loss, {}

    optimizer, decays = optax.adam(0.1), {"evaluation": 0.9}
    step = make_train_step(
        model,
        Mean(),
        optimizer,
        decays,
        scaling=Scaling(),
        seed=0,
        row_shards=1,
        num_steps=100,
        max_skipped=max_skipped,
    )
    return jax.jit(step), TrainState.create(jax.random.key(0), model, optimizer, decays)


def batch(value: float) -> dict[str, jax.Array]:
    return {"mean": jnp.full((4, 2, 2, 1), value), "label": jnp.zeros(4, jnp.int32)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_left_out_and_counted(bad):
    step, state = make_step(max_skipped=5)
    good, _ = step(state, batch(1.0))
    skipped, metrics = step(good, batch(bad))
    expected = dataclasses.replace(
        good, step=good.step + 1, skipped=jnp.int32(1), skipped_in_row=jnp.int32(1)
    )
    jax.tree.map(np.testing.assert_array_equal, skipped, expected)
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 1)
    after, metrics = step(skipped, batch(1.0))
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (1, 0)
    assert not np.array_equal(after.params["w"], good.params["w"])


def test_a_first_step_that_is_not_finite_is_said_at_once(capsys):
    step, state = make_step(max_skipped=5)
    for value, said in ((1.0, ""), (np.nan, "step 1: loss nan, gradient norm nan: not finite")):
        _, metrics = step(state, batch(value))
        skipping.look_at_first(1, metrics, 5)
        out = capsys.readouterr().out
        assert said in out and bool(out) == bool(said)


def test_too_many_in_a_row_hold_the_state_until_the_loop_looks():
    step, state = make_step(max_skipped=1)
    held = state
    for value in (np.nan, np.nan, 1.0):
        held, _ = step(held, batch(value))
    assert int(held.skipped_in_row) == 3
    np.testing.assert_array_equal(held.params["w"], state.params["w"])


def small_run(data: Path) -> ConfigDict:
    """Sixteen steps, of which only the last is logged, that one bad update stops."""
    config = digits.get_config()
    config.update(
        ConfigDict(
            {
                "batch_size": 8,
                "data": {"path": str(data)},
                "model": {"width": 16, "depth": 1, "num_heads": 1, "unroll": 1},
                "objective": {"name": "flow_matching"},
                "train": {"num_steps": 16, "log_every_steps": 16, "max_skipped": 0},
                "checkpoint": {"every_steps": 100},
                "evaluation": {"every_steps": 0},
            }
        )
    )
    return config


def test_the_run_stops_with_the_records_and_the_state_before(tmp_path):
    data, workdir = tmp_path / "digits", epath.Path(tmp_path / "run")
    pods.make_records(data)
    bad_record = 17
    poison(data, bad_record, np.nan)
    config = small_run(data)
    (bad,) = [
        step
        for step in range(1, 17)
        if bad_record in record_indices(config.seed, step - 1, (0, 8), 8, 64)
    ][:1]
    says = f"from step {bad}, .*the state before is checkpoint {bad - 1}"
    with pytest.raises(UserError, match=says):
        train(config, workdir)
    blamed = json.loads((workdir / f"skipped-{bad}.json").read_text())["records_by_step"]
    assert bad_record in blamed[str(bad)]
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.newest() == bad - 1


def test_a_run_whose_first_loss_is_not_finite_says_so_at_once(tmp_path, capsys):
    """Not at the first log or save, which may be hours later."""
    data, workdir = tmp_path / "digits", epath.Path(tmp_path / "run")
    pods.make_records(data)
    # What float16 makes of latents beyond its range.
    poison(data, np.arange(64), np.inf)
    with pytest.raises(UserError, match=r"not finite .* from step 1, .* is checkpoint 0"):
        train(small_run(data), workdir)
    said = capsys.readouterr().out
    assert "step 1: loss nan, gradient norm nan: not finite" in said


def poison(data: Path, index: int | np.ndarray, value: float) -> None:
    """Makes the data set 64 records long, some of them of one value."""
    reader = LatentReader(data)
    fields = reader.read(np.arange(64))
    records = np.zeros(64, reader.manifest.record_dtype)
    for name, values in fields.items():
        records[name] = values
    records["mean"][index] = value
    shard = write_shard(data / "poisoned.array_record", records)
    manifest: Manifest = dataclasses.replace(reader.manifest, shards=(shard,), num_records=64)
    manifest.save(data)
