"""Hosts that share a folder, lose processes and meet bad images end up with the same bytes."""

import concurrent.futures
import json
import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import data_pipeline
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.hosts import Hosts, find_hosts
from data_pipeline.images import Preprocessing
from data_pipeline.records import LatentReader
from data_pipeline.sources import open_source
from data_pipeline.verification import verify_records
from tests.unit.image_files import pictures, write_folders

ROOT = Path(data_pipeline.__file__).parent.parent
IDENTITY = load_autoencoder("identity")
TINY = Preprocessing("adm", 8)
DEADLINE_SECONDS = 120


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def encode_on(source, output: Path, *hosts: Hosts, **options) -> list[int]:
    """Encodes on several hosts at once; returns how many images each had to do."""
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
        runs = [
            pool.submit(encode, source, IDENTITY, output, preprocessing=TINY, hosts=host, **options)
            for host in hosts
        ]
        results = [run.result() for run in runs]
    assert all(manifest == results[0][0] for manifest, _ in results)
    return [count for _, count in results]


@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_hosts_makes_the_same_folder(tmp_path, count):
    digits = open_source("digits")
    encode(digits, IDENTITY, tmp_path / "one", shard_records=500)
    hosts = [Hosts(index, count) for index in range(count)]
    done = encode_on(digits, tmp_path / "many", *hosts, shard_records=500)
    assert done == {2: [1000, 797], 5: [500, 500, 500, 297, 0]}[count]
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_host_killed_and_started_again(tmp_path):
    """Its decoding processes end with it; no finished shard is encoded again."""
    spec = write_folders(tmp_path / "images", pictures(400))
    source = open_source(spec)
    encode(source, IDENTITY, tmp_path / "one", preprocessing=TINY, shard_records=2)
    output = tmp_path / "two"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "data_pipeline.encode_latents", f"--source={spec}"),
            *("--image_size=8", f"--output={output}", "--shard_records=2", "--workers=1"),
            *("--host=1", "--hosts=2"),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        notes = output / "unfinished"
        until(lambda: (notes / "shard-00007-of-00200.array_record.json").exists())
        # The other children are what Python keeps beside them.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert children
        until(lambda: not any(map(is_alive, children)))
    finally:
        process.kill()
        process.wait()
    noted = {path.name.removesuffix(".json"): path for path in notes.glob("shard-*.json")}
    times = {name: (output / name).stat().st_mtime_ns for name in noted}
    assert 4 <= len(noted) < 100
    done = encode_on(source, output, Hosts(0, 2), Hosts(1, 2), shard_records=2)
    assert done == [200, 200 - 2 * len(noted)]
    assert contents(output) == contents(tmp_path / "one")
    assert times == {name: (output / name).stat().st_mtime_ns for name in noted}


def until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_host_that_never_comes(tmp_path):
    digits = open_source("digits")
    for index, what in ((0, "shards of the other hosts.*shard-00001"), (1, "manifest.json")):
        with pytest.raises(UserError, match=f"waited 0.3 s for .*{what}"):
            encode(
                digits,
                IDENTITY,
                tmp_path,
                shard_records=1000,
                hosts=Hosts(index, 2),
                stall_seconds=0.3,
            )
    # What each had done is kept: one more look finishes the folder.
    assert encode_on(digits, tmp_path, Hosts(0, 2), Hosts(1, 2), shard_records=1000) == [0, 0]
    assert len(verify_records(tmp_path).shards) == 2


def test_two_processes_in_one_host_s_place(tmp_path):
    class Second:
        """The digits, beside whose reading another process starts."""

        def __getattr__(self, name):
            return getattr(open_source("digits"), name)

        def __len__(self):
            return 1797

        def read(self, start, stop):
            with pytest.raises(UserError, match="another process is at work here as host 0 of 1"):
                encode(open_source("digits"), IDENTITY, tmp_path)
            return open_source("digits").read(start, stop)

    encode(Second(), IDENTITY, tmp_path)
    assert verify_records(tmp_path).num_records == 1797


@pytest.fixture
def spoiled(tmp_path):
    """Sixteen pictures, four of them damaged: 1, and all that shard 2 of 4 stands for but 11."""
    images = [
        (data[:60] if index in (1, 8, 9, 10) else data, label)
        for index, (data, label) in enumerate(pictures(16))
    ]
    return open_source(write_folders(tmp_path / "images", images))


def rejected_in(folder: Path) -> list[int]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line)["index"] for line in lines]


def test_rejected_images_are_listed_on_any_number_of_hosts(tmp_path, spoiled):
    def attempt(output, *hosts, **options):
        return encode_on(spoiled, output, *hosts, shard_records=4, **options)

    with pytest.raises(UserError, match="4 image.s. rejected so far, the first ant/001.png"):
        attempt(tmp_path / "one", Hosts(), max_rejected=3)
    assert rejected_in(tmp_path / "one") == [1, 8, 9, 10]
    assert not (tmp_path / "one" / "manifest.json").exists()
    # The shards before were finished; more patience costs no more than the rest.
    assert attempt(tmp_path / "one", Hosts(), max_rejected=4) == [8]
    attempt(tmp_path / "two", Hosts(1, 2), Hosts(0, 2), max_rejected=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    manifest = verify_records(tmp_path / "two")
    assert [shard.num_records for shard in manifest.shards] == [3, 4, 1, 4]
    assert manifest.preprocessing["rejected"] == 4
    kept = [index for index in range(16) if index not in (1, 8, 9, 10)]
    labels = [image.label for image in spoiled.read_encoded(0, 16)]
    records = LatentReader(tmp_path / "two").read(range(12))
    assert records["label"].tolist() == [labels[index] for index in kept]
    last = TINY(spoiled.read_encoded(15, 16)[0].data) / 127.5 - 1
    np.testing.assert_allclose(records["mean"][11], last, atol=1e-3)


def test_a_damaged_shard_with_rejected_images_is_encoded_anew(tmp_path, spoiled):
    encode_on(spoiled, tmp_path / "out", Hosts(), shard_records=4, max_rejected=4)
    before = contents(tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("shard-*"))
    shards[0].unlink()
    shards[2].write_bytes(b"")
    with pytest.raises(UserError, match="shard-00000-of-00004.array_record: missing shard"):
        verify_records(tmp_path / "out")
    hosts = (Hosts(0, 2), Hosts(1, 2))
    assert encode_on(spoiled, tmp_path / "out", *hosts, max_rejected=4) == [8, 0]
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "rejected.jsonl").unlink()
    with pytest.raises(UserError, match="rejected.jsonl: lists 0 images, the manifest counts 4"):
        verify_records(tmp_path / "out")


def test_shards_without_a_record(tmp_path, spoiled):
    encode_on(spoiled, tmp_path / "some", Hosts(), shard_records=2, max_rejected=4)
    manifest = verify_records(tmp_path / "some")
    assert [shard.num_records for shard in manifest.shards] == [1, 2, 2, 2, 0, 1, 2, 2]
    assert len(LatentReader(tmp_path / "some").read(range(12))["label"]) == 12
    nothing = open_source(write_folders(tmp_path / "none", [(b"", 0), (b"", 1)]))
    with pytest.raises(UserError, match="rejected.jsonl: all images were rejected"):
        encode(nothing, IDENTITY, tmp_path / "out", preprocessing=TINY, max_rejected=2)


def test_a_decoding_process_that_is_killed(tmp_path):
    spec = write_folders(tmp_path / "images", pictures(64))

    class Deadly:
        """A folder whose reading kills the process that would decode it."""

        def __init__(self):
            self.inner = open_source(spec)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def read_encoded(self, start, stop):
            if start:
                for child in multiprocessing.active_children():
                    child.kill()
            return self.inner.read_encoded(start, stop)

    with pytest.raises(UserError, match="a decoding process was killed .* start the command again"):
        encode(Deadly(), IDENTITY, tmp_path / "out", preprocessing=TINY, workers=1)
    encode(open_source(spec), IDENTITY, tmp_path / "out", preprocessing=TINY)
    assert verify_records(tmp_path / "out").num_records == 64


def test_a_process_finds_its_place(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SHORTCUT_TPU_", "MEGASCALE_", "TPU_WORKER_")):
            monkeypatch.delenv(name)
    assert find_hosts() == Hosts(0, 1)
    assert find_hosts(2, 3) == Hosts(2, 3)
    for index, count in ((1, None), (None, 2), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=r"--host and --hosts go together|is not one of"):
            find_hosts(index, count)
    monkeypatch.setenv("SHORTCUT_TPU_NUM_PROCESSES", "4")
    monkeypatch.setenv("SHORTCUT_TPU_PROCESS_ID", "3")
    assert find_hosts() == Hosts(3, 4)
