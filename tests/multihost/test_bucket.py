"""Records and runs in a bucket, also in one that refuses."""

import os
import subprocess
import sys

from etils import epath
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.sources import open_source
from shortcut_tpu.observability.goodput import recorded
from tests.launch.fake_bucket import FakeBucket
from tests.multihost import pods

pytestmark = pytest.mark.pods


def test_a_save_that_the_bucket_refuses_costs_only_itself(tmp_path, lab):
    bucket, workdir = FakeBucket(tmp_path), "gs://bucket/run"
    bucket.upload(lab.data, "gs://bucket/digits")
    bucket.fails = lambda method, path: 403 if method == "POST" and "checkpoints%2F8" in path else 0
    arguments = pods.train_arguments(
        workdir,
        "gs://bucket/digits",
        f"--config.data.stage={tmp_path / 'stage'}",
        "--profile_steps=5:7",
    )
    environment, log = lab.environment() | bucket.environment(), tmp_path / "log"
    with bucket.serving():
        with pods.started(arguments, environment, log) as run:
            assert pods.ended(run, log) == 0, log.read_text()
        assert "warning: the checkpoint of step 8 FAILED, training goes on: " in log.read_text()
        here = tmp_path / "run"
        bucket.download(workdir, here)
        assert pods.checkpoint_steps(here) == [4, 12, 16]
        failures = pods.logged(here, "perf/checkpoint_failures")
        assert [failures[step] for step in (8, 16)] == [{0}, {1}]
        assert [start.step for start in recorded(epath.Path(here))] == [16]
        assert (here / "profile/plugins/profile/steps_5_7/host_0.xplane.pb").stat().st_size > 0

        # It goes on from there: a copy of the records is not made again.
        bucket.requests.clear()
        with pods.started(arguments, environment, log) as run:
            assert pods.ended(run, log) == 0, log.read_text()
        assert "resumed from step 16 of gs://bucket/run/checkpoints" in log.read_text()
        assert not any("array_record" in path for _, path in bucket.requests)


def test_hosts_encode_into_a_bucket_what_one_writes_to_a_disk(tmp_path):
    """The second host is refused once, and started again; no finished shard is written twice."""
    encode(open_source("digits"), load_autoencoder("identity"), tmp_path / "one", shard_records=400)
    bucket, output = FakeBucket(tmp_path), "gs://bucket/digits"
    command = [sys.executable, "-m", "data_pipeline.encode_latents", f"--output={output}"]
    of_host = [*command, "--source=digits", "--shard_records=400", "--hosts=2"]
    environment = {**os.environ, **bucket.environment(), "TMPDIR": str(tmp_path)}

    def started(*flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*of_host, *flags],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    with bucket.serving():
        bucket.fails = lambda method, path: 403 if "shard-00003" in path else None
        _, error = started("--host=1").communicate(timeout=120)
        assert "shard-00003-of-00005.array_record: cannot be written: " in error, error
        assert "Traceback" not in error
        bucket.fails = lambda method, path: None
        hosts = [started(f"--host={index}") for index in range(2)]
        ends = [host.communicate(timeout=120) for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], ends
        assert "encoded 997 of 1797 records in 5 shard(s)" in "".join(out for out, _ in ends)
        assert "encoded 400 of 1797 records in 5 shard(s)" in "".join(out for out, _ in ends)
        verified = subprocess.run(
            [*command, "--verify"], env=environment, text=True, capture_output=True, timeout=120
        )
        assert "all 1797 records are whole" in verified.stdout, verified.stderr
    bucket.download(output, tmp_path / "two")
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    assert not [name for name in bucket.names(output) if "unfinished" in name]


def test_a_bucket_that_may_not_be_read_is_named_in_a_line(tmp_path):
    bucket = FakeBucket(tmp_path)
    bucket.fails = lambda method, path: 403
    environment = {**os.environ, **bucket.environment()}
    command = [sys.executable, "-m", "shortcut_tpu.evaluate", "--workdir=gs://bucket/run"]
    with bucket.serving():
        done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "403" in line and "gs://bucket/run/" in line


def test_demonstrations_in_a_bucket_are_those_on_a_disk(tmp_path):
    bucket = FakeBucket(tmp_path)
    command = [sys.executable, "-m", "data_pipeline.demonstrate", "--episodes=3"]
    environment = {**os.environ, **bucket.environment(), "TMPDIR": str(tmp_path)}
    with bucket.serving():
        for output in (tmp_path / "one", "gs://bucket/demonstrations"):
            subprocess.run([*command, f"--output={output}"], env=environment, check=True)
    bucket.download("gs://bucket/demonstrations", tmp_path / "two")
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
    assert not list(tmp_path.glob(".shard*"))
