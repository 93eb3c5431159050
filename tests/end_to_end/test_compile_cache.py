"""Programs that were compiled once are kept in a bucket, and loaded from there."""

import json
import os
import subprocess
import sys

import pytest

from tests.launch.fake_bucket import FakeBucket

CODE = """
import collections, json, jax, jax.numpy as jnp
from data_pipeline.errors import UserError
from shortcut_tpu.pod import compile_cache
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
try:
    compile_cache.enable("gs://bucket/some/cache")
except UserError as error:
    raise SystemExit(f"refused: {error}")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x, inline=True)(jnp.ones((8, 8)))
print(json.dumps([events["cache_misses"], events["cache_hits"]]))
"""


@pytest.fixture
def bucket(tmp_path):
    with FakeBucket(tmp_path).serving() as bucket:
        yield bucket


def run(bucket):
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | bucket.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_second_process_compiles_nothing(bucket):
    first, second = (json.loads(run(bucket).stdout) for _ in range(2))
    kept = [name for name in bucket.names("gs://bucket/some/cache/") if name.endswith("-cache")]
    assert len(kept) > 0
    assert first == [len(kept), 0]
    assert second == [0, len(kept)]


def test_a_bucket_that_refuses_is_named(bucket):
    bucket.fails = lambda method, path: 403
    done = run(bucket)
    assert done.returncode == 1
    assert done.stderr.startswith("refused: train.compile_cache=gs://bucket/some/cache: ")
    assert len(done.stderr.splitlines()) == 1
