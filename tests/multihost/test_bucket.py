"""A run whose records and workdir are in a bucket that refuses a save."""

from etils import epath
import pytest

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
