"""What is saved comes back to the bit, and what is damaged is noticed and never deleted."""

import contextlib
import dataclasses
import json
from pathlib import Path
import resource
import shutil
from typing import Any

from absl import logging
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.checkpointing import Checkpoints

SIZE = 100_000


@pytest.fixture(autouse=True)
def quiet():
    """Orbax logs the failures that these tests provoke."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    yield
    logging.set_verbosity(before)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def state(step: int) -> dict:
    # Random bytes, for zeros would be compressed to nothing.
    weights = np.random.default_rng(step).standard_normal(SIZE, np.float32)
    return {"step": jax.numpy.int32(step), "weights": jax.numpy.asarray(weights)}


def abstract() -> dict:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0)
    )


def save(folder: Path, *steps: int, keep: int = 5) -> None:
    with Checkpoints(folder, keep=keep, config=ConfigDict({"a": {"b": (1, 2)}})) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def restored(folder: Path, keep: int | None = 5) -> tuple[int | None, dict]:
    with Checkpoints(folder, keep=keep) as checkpoints:
        step = checkpoints.newest()
        return step, {} if step is None else checkpoints.restore(abstract(), step)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def largest(folder: Path) -> Path:
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder: Path, step: int) -> None:
    path = largest(folder / str(step))
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path, step: int) -> None:
    path = largest(folder / str(step))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_half(folder: Path, step: int) -> None:
    files = sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())
    for path in files[::2]:
        path.unlink()


def delete_all_but_checksums(folder: Path, step: int) -> None:
    shutil.rmtree(folder / str(step))


def delete_checksums(folder: Path, step: int) -> None:
    (folder.parent / "checksums" / f"{step}.json").unlink()


def garble_checksums(folder: Path, step: int) -> None:
    (folder.parent / "checksums" / f"{step}.json").write_text('{"files": [1, 2]}')


DAMAGES = [
    truncate,
    flip_a_bit,
    delete_half,
    delete_all_but_checksums,
    delete_checksums,
    garble_checksums,
]


def test_the_newest_comes_back_to_the_bit_with_its_config(folder):
    save(folder, 1, 2, 3, keep=2)
    step, tree = restored(folder)
    assert step == 3
    np.testing.assert_array_equal(tree["weights"], state(3)["weights"])
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.config(3) == {"a": {"b": [1, 2]}}
        with pytest.raises(UserError, match="no checkpoint of step 1, only of 2, 3"):
            checkpoints.restore(abstract(), 1)


def test_nothing_there(folder):
    assert restored(folder)[0] is None
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="no checkpoint"):
        checkpoints.restore(abstract())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_reported_and_set_aside_and_the_one_before_used(folder, capfd, damage):
    save(folder, 1, 2)
    damage(folder, 2)
    left = set(listing(folder.parent).values())
    step, tree = restored(folder)
    assert step == 1
    np.testing.assert_array_equal(tree["weights"], state(1)["weights"])
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert "checkpoint 2 is not whole: " in line
    assert set(listing(folder.parent).values()) == left
    assert (folder.parent / "damaged").is_dir()
    # The step can be saved again, and damaged again.
    save(folder, 2)
    assert restored(folder)[0] == 2
    damage(folder, 2)
    assert restored(folder)[0] == 1


def test_a_reader_passes_over_a_damaged_one_and_leaves_it(folder, capfd):
    save(folder, 1, 2)
    flip_a_bit(folder, 2)
    before = listing(folder.parent)
    assert restored(folder, keep=None)[0] == 1
    assert "checkpoint 2 is not whole" in capfd.readouterr().err
    assert listing(folder.parent) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_one_damaged_is_a_stop_with_nothing_touched(folder, damage):
    save(folder, 1, 2)
    for step in (1, 2):
        damage(folder, step)
    before = listing(folder.parent)
    for _ in range(2):
        with pytest.raises(UserError, match="every checkpoint is damaged"):
            restored(folder)
        assert listing(folder.parent) == before


def test_a_first_save_that_was_never_finished_is_no_checkpoint(folder, capfd):
    save(folder, 1)
    delete_checksums(folder, 1)
    assert restored(folder)[0] is None
    assert "interrupted" in capfd.readouterr().err


@contextlib.contextmanager
def full_disk():
    """Lets no file grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# A write of TensorStore that fails second finds the event loop of Orbax's save closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_is_loud_and_costs_nothing_but_itself(folder, capfd):
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        with full_disk():
            for step in (2, 3):
                checkpoints.save(step, state(step))
            checkpoints.wait()
        assert checkpoints.failures == 2
        # The failed ones hold no space; the last good one is still there.
        assert sorted(path.name for path in folder.iterdir()) == ["1"]
        assert checkpoints.newest() == 1
        checkpoints.save(4, state(4))
    assert checkpoints.failures == 2
    errors = capfd.readouterr().err
    for step in (2, 3):
        assert f"warning: the checkpoint of step {step} FAILED, training goes on: " in errors
    assert restored(folder)[0] == 4


def test_checksums_name_every_file(folder):
    save(folder, 1)
    named = json.loads((folder.parent / "checksums" / "1.json").read_text())["files"]
    assert set(named) == set(listing(folder / "1"))


def checksums_of(folder: Path, step: int) -> dict:
    return json.loads((folder.parent / "checksums" / f"{step}.json").read_text())


def test_hosts_share_the_reading(folder):
    """Three hosts' shares make the file that one makes alone, and find what one finds."""
    save(folder, 10)
    checkpoint, hosts = epath.Path(folder), 3
    alone = checksums_of(folder, 10)
    (folder.parent / "checksums" / "10.json").unlink()
    for host in (1, 2, 0):
        checksums.write(checkpoint, 10, host, hosts)
    assert checksums_of(folder, 10) == alone
    assert [path.name for path in (folder.parent / "checksums").glob("of-*")] == []
    assert not any(checksums.find_problem(checkpoint, 10, host, hosts) for host in range(hosts))
    flip_a_bit(folder, 10)
    found = [checksums.find_problem(checkpoint, 10, host, hosts) for host in range(hosts)]
    assert len(list(filter(None, found))) == 1


def test_a_hosts_share_is_of_the_bytes(tmp_path, monkeypatch):
    """Each host writes one large file and three small ones; by name the first would read all."""
    for writer in range(4):
        for file in range(4):
            path = tmp_path / "checkpoints" / "1" / str(writer) / str(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1 if file else 1000))
    (tmp_path / "checksums").mkdir()
    read, sha256 = [], checksums.file_sha256
    monkeypatch.setattr(checksums, "file_sha256", lambda path: read.append(path) or sha256(path))
    checkpoint = epath.Path(tmp_path / "checkpoints")
    for host in (1, 2, 3, 0):
        read.clear()
        checksums.write(checkpoint, 1, host, hosts=4)
        assert sum(path.stat().length for path in read) == 1003
    for host in range(4):
        read.clear()
        assert checksums.find_problem(checkpoint, 1, host, hosts=4) is None
        assert sum(path.stat().length for path in read) == 1003


def test_a_host_that_finds_nothing_is_stood_in_for(folder, monkeypatch):
    """And what a save that was interrupted has left counts for nothing."""
    save(folder, 10)
    checkpoint, alone = epath.Path(folder), checksums_of(folder, 10)
    stale = folder.parent / "checksums" / "of-10-by-1.json"
    stale.write_text('{"state/_METADATA": {"bytes": 1, "sha256": "0"}}')
    checksums.forget_parts(checkpoint, 10, hosts=2)
    assert not stale.exists()
    monkeypatch.setattr(checksums, "_PATIENCE_SECONDS", 0.1)
    checksums.write(checkpoint, 10, 0, hosts=2)
    assert checksums_of(folder, 10) == alone


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Newer:
    """A state with a field that what was saved has not."""

    step: Any
    weights: Any
    carried: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_a_checkpoint_of_before_a_field_was_restores(folder):
    save(folder, 1)
    with Checkpoints(folder, keep=5) as checkpoints:
        found = checkpoints.restore(Newer(**abstract()), 1)
    assert found.carried == {}
    np.testing.assert_array_equal(found.weights, state(1)["weights"])
    with Checkpoints(folder, keep=5) as checkpoints:
        checkpoints.save(2, Newer(**state(2)))
    assert int(restored(folder)[1]["step"]) == 2
