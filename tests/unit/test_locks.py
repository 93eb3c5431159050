"""A file system without locks stops nobody: what a lock would do is done in another way."""

import errno
import fcntl
import json
import os

from etils import epath
import numpy as np
import pytest

from data_pipeline import locks, staging
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.records import verify
from data_pipeline.sources import open_source
from shortcut_tpu.runs import lease, workdir

NONE = ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL")


@pytest.fixture
def broken(monkeypatch):
    """Makes every lock end with an error."""

    def make(name):
        def flock(file, how):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

        monkeypatch.setattr(fcntl, "flock", flock)

    return make


@pytest.mark.parametrize("name", NONE)
def test_no_locks_is_no_error_and_another_error_is(tmp_path, broken, name):
    with (tmp_path / "file").open("w") as file:
        broken(name)
        assert not locks.take(file.fileno())
        broken("EIO")
        with pytest.raises(OSError, match="Input/output"):
            locks.take(file.fileno(), wait=True)


def test_a_lock_is_had_by_one(tmp_path):
    with (tmp_path / "file").open("w") as one, (tmp_path / "file").open("w") as other:
        assert locks.take(one.fileno())
        with pytest.raises(BlockingIOError):
            locks.take(other.fileno())


def test_a_workdir_without_locks_is_held_by_a_lease(tmp_path, broken, monkeypatch):
    beats = {"beat_seconds": 0.05, "settle_seconds": 0.02}
    monkeypatch.setattr(workdir, "Lease", lambda *args: lease.Lease(*args, **beats))
    folder = epath.Path(tmp_path / "run")
    broken("ENOSYS")
    with workdir.claimed(folder):
        assert json.loads((folder / "lease.json").read_text())["process"] == os.getpid()
        with pytest.raises(UserError, match="another run is using"), workdir.claimed(folder):
            raise AssertionError("both have it")
    assert not (folder / "lease.json").exists()


def test_a_workdir_that_cannot_be_locked_is_a_line(tmp_path, broken):
    broken("EIO")
    with (
        pytest.raises(UserError, match=r"--workdir=.*: Input/output error"),
        workdir.claimed(epath.Path(tmp_path)),
    ):
        raise AssertionError("held")


def test_records_are_made_and_staged_without_locks(tmp_path, broken):
    broken("EOPNOTSUPP")
    made = tmp_path / "made"
    encode(open_source("digits"), load_autoencoder("identity"), made, shard_records=1000)
    here = staging.local(made, str(tmp_path / "stage"))
    assert verify(here).num_records == 1797
    # Nothing of the copying is left.
    assert {path.name for path in here.iterdir()} == {*(p.name for p in made.iterdir()), ".lock"}


def test_two_copies_at_once_without_locks_end_whole(tmp_path, broken, monkeypatch):
    made = tmp_path / "made"
    encode(open_source("digits"), load_autoencoder("identity"), made, shard_records=1000)
    broken("ENOSYS")
    copy, others = staging._copy_shard, []

    def copies_while_another_does(*args):
        monkeypatch.setattr(staging, "_copy_shard", copy)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 12345)
            others.append(staging.local(made, str(tmp_path / "stage")))
        copy(*args)

    monkeypatch.setattr(staging, "_copy_shard", copies_while_another_does)
    monkeypatch.setattr(staging, "_THREADS", 1)
    here = staging.local(made, str(tmp_path / "stage"))
    assert others == [here]
    assert verify(here).num_records == 1797
    assert np.all([not path.name.startswith("incoming") for path in here.iterdir()])
