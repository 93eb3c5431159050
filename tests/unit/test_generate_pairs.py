"""A teacher's pairs: what they hold, and that broken runs end with an unbroken one's bytes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader, verify
from launch.local_pod import run_on_hosts
from shortcut_tpu import generate_pairs
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.evaluation.generator import sample_noise
from shortcut_tpu.evaluation.labels import balanced_labels
from shortcut_tpu.generate_pairs import FIRST_PAIR, Asked
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.loading import Run, load_run
from shortcut_tpu.train import train
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import check_data, records_of

ASKED = Asked(num_pairs=50, steps=3, shard_records=16)


@pytest.fixture(scope="module")
def config(digits_path: Path) -> ConfigDict:
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        config.data.path = str(digits_path)
        config.batch_size = 32
        config.objective.name = "flow_matching"
        config.model.update({"width": 16, "depth": 1, "num_heads": 2, "unroll": 1})
        config.train.num_steps = 2
        # Blocks of eight rows: batches that no shard of sixteen and two holds a whole number of.
        config.evaluation.update({"every_steps": 0, "batch_size": 12})
    return config


@pytest.fixture(scope="module")
def workdir(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A run whose weights are noise: fresh ones predict no velocity."""
    workdir = epath.Path(tmp_path_factory.mktemp("teacher"))
    state = Experiment.from_config(config, jax.devices()).init_state()
    rng = np.random.default_rng(0)

    def noise(leaf: jax.Array) -> jax.Array:
        return jax.device_put(rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), leaf.sharding)

    state = dataclasses.replace(state, emas=jax.tree.map(noise, state.emas))
    with Checkpoints(workdir / "checkpoints", keep=1, config=config) as checkpoints:
        checkpoints.save(2, state)
    config_lib.save(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def run(workdir: epath.Path) -> Run:
    return load_run(workdir)


@pytest.fixture(scope="module")
def whole(workdir: epath.Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("pairs")
    _, made = generate_pairs.generate(workdir, run, output, ASKED)
    assert made == 50
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_records(run: Run, whole: Path) -> None:
    """Noise 2^31 + i of the run's seed, the teacher's Euler steps from it, labels in turn."""
    manifest = verify(whole)
    assert manifest.holds_pairs and len(manifest.shards) == 4
    made = manifest.preprocessing
    assert (made["objective"], made["steps"], made["ema"]) == ("flow_matching", 3, "evaluation")
    pairs = LatentReader(whole).read(range(50))
    np.testing.assert_array_equal(pairs["label"], balanced_labels(50, 10))
    indices = FIRST_PAIR + np.arange(50, dtype=np.uint32)
    noise = sample_noise(0, indices, (8, 8, 1)).astype(np.float16)
    np.testing.assert_array_equal(pairs["noise"], noise)

    x = jnp.asarray(pairs["noise"], jnp.float32)
    apply = jax.jit(run.experiment.model.apply)
    params = jax.device_get(run.params)
    for t in (0.0, 1 / 3, 2 / 3):
        x = x + apply(params, x, jnp.full(50, t), jnp.ones(50), pairs["label"]) / 3
    assert np.abs(x - pairs["noise"]).mean() > 0.1
    # Half a step of float16.
    np.testing.assert_allclose(pairs["mean"], x, rtol=2**-10, atol=1e-3)


def test_noises_are_of_no_evaluation() -> None:
    """An evaluation's samples are numbered from 0, and there are fewer than 2^31 of them."""
    samples = np.asarray(sample_noise(0, np.arange(4096, dtype=np.uint32), (2,)))
    pairs = sample_noise(0, FIRST_PAIR + np.arange(4096, dtype=np.uint32), (2,))
    assert not np.isin(np.asarray(pairs).view(np.uint64), samples.view(np.uint64)).any()


def test_broken_run_goes_on(
    workdir: epath.Path, run: Run, whole: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two shards, then a full disk: only the others are made, to the same bytes."""
    output, written = tmp_path / "pairs", []
    write = generate_pairs.ResumableFolder.write

    def failing(self: Any, number: int, records: np.ndarray, rejected: Any) -> None:
        if len(written) == 2:
            raise UserError("no space left")
        written.append(number)
        write(self, number, records, rejected)

    monkeypatch.setattr(generate_pairs.ResumableFolder, "write", failing)
    with pytest.raises(UserError, match="no space"):
        generate_pairs.generate(workdir, run, output, ASKED)
    assert not (output / "manifest.json").exists()
    monkeypatch.undo()
    _, made = generate_pairs.generate(workdir, run, output, ASKED)
    assert made == 50 - 2 * 16
    assert content(output) == content(whole)
    assert generate_pairs.generate(workdir, run, output, ASKED)[1] == 0

    damaged = next(output.glob("shard-00001*"))
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"damaged")
    assert generate_pairs.generate(workdir, run, output, ASKED)[1] == 16
    assert content(output) == content(whole)
    with pytest.raises(UserError, match="steps is 3 there and 4 now"):
        generate_pairs.generate(workdir, run, output, dataclasses.replace(ASKED, steps=4))


def test_a_teacher_that_is_not_finite(workdir: epath.Path, run: Run, tmp_path: Path) -> None:
    broken = dataclasses.replace(run, params=jax.tree.map(lambda a: a * jnp.nan, run.params))
    with pytest.raises(UserError, match="not a finite float16"):
        generate_pairs.generate(workdir, broken, tmp_path, ASKED)


def test_two_hosts(workdir: epath.Path, whole: Path, tmp_path: Path) -> None:
    """Each makes its shards; together they are those of one process, but for the order of sums."""
    arguments = (
        "shortcut_tpu.generate_pairs",
        f"--workdir={workdir}",
        f"--output={tmp_path / 'pairs'}",
        "--num_pairs=50",
        "--steps=3",
        "--shard_records=16",
    )
    run_on_hosts(arguments, 2, 1, tmp_path / "logs")
    verify(tmp_path / "pairs")
    ours, theirs = (LatentReader(path).read(range(50)) for path in (tmp_path / "pairs", whole))
    for name in ("noise", "label"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=2**-9, atol=2e-3)
    one, two = (json.loads((p / "manifest.json").read_text()) for p in (tmp_path / "pairs", whole))
    assert one["preprocessing"] == two["preprocessing"]


def test_training_wants_the_right_records(config: ConfigDict, whole: Path, tmp_path: Path) -> None:
    """Pairs where they are needed and nowhere else, and one line that says how to make them."""
    manifest = LatentReader(whole).manifest
    with pytest.raises(UserError, match="holds pairs"):
        check_data(config, str(whole), manifest)
    student = config.copy_and_resolve_references()
    with student.unlocked():
        student.objective.name = "koopman"
    with pytest.raises(UserError, match="generate_pairs"):
        train(student, epath.Path(tmp_path))
    with student.unlocked():
        student.data.pairs = str(whole)
    assert records_of(student) == str(whole)
    check_data(student, str(whole), manifest)
    with pytest.raises(UserError, match="no pairs"):
        check_data(student, config.data.path, LatentReader(config.data.path).manifest)
