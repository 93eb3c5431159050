"""Records are copied whole, once, and never a damaged one."""

import os
from pathlib import Path
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline import staging
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader, verify
from tests.multihost import pods


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staging") / "digits"
    pods.make_records(folder)
    return folder


def test_a_folder_on_a_disk_is_read_where_it_is(records):
    assert staging.local(records) == records


def test_the_copy_is_made_once_and_holds_the_same_records(records, tmp_path):
    folder = staging.local(records, str(tmp_path))
    assert folder.parent == tmp_path
    verify(folder)
    indices = np.arange(0, 1797, 100)
    here, there = LatentReader(folder).read(indices), LatentReader(records).read(indices)
    for name, values in there.items():
        np.testing.assert_array_equal(here[name], values)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
    assert staging.local(records, str(tmp_path)) == folder
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_copy_that_was_interrupted_goes_on(records, tmp_path):
    folder = staging.local(records, str(tmp_path))
    first, second = sorted(folder.glob("*.array_record"))
    kept = first.stat().st_mtime_ns
    second.unlink()
    (folder / "manifest.json").unlink()
    staging.local(records, str(tmp_path))
    verify(folder)
    assert first.stat().st_mtime_ns == kept


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("break_it", "said"), [(damage, "damaged"), (os.unlink, "missing")])
def test_a_shard_that_is_not_what_was_written_is_named(records, tmp_path, break_it, said):
    source = shutil.copytree(records, tmp_path / "source")
    shard = sorted(source.glob("*.array_record"))[1]
    break_it(shard)
    with pytest.raises(UserError, match=f"{shard.name}: {said} shard"):
        staging.local(source, str(tmp_path / "stage"))
    # Nobody takes the half for the whole.
    assert not list((tmp_path / "stage").glob("*/manifest.json"))


def test_too_little_room_is_said_before_anything_is_copied(records, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"do not fit into .*name a larger place by data\.stage"):
        staging.local(records, str(tmp_path))
    assert not list(tmp_path.rglob("*.array_record"))


def test_no_records_there(tmp_path):
    with pytest.raises(UserError, match=r"none/manifest\.json: no such file"):
        staging.local(tmp_path / "none", str(tmp_path / "stage"))
