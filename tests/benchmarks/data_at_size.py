"""ImageNet's number of records through all that reads them, of a few bytes each.

What grows with the data is done once a start or once an epoch. What a batch takes depends on the
number of shards that its rows lie in, for each is read by a call of its own: of 157, or of two.
"""

import dataclasses
from pathlib import Path
import resource
import sys
import time

import numpy as np

from data_pipeline import staging
from data_pipeline.loader import epoch_permutation, make_loader
from data_pipeline.records import Field, LatentReader, Manifest, write_shard
from data_pipeline.verification import verify_records
from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns

NUM_RECORDS = 1_281_167
SHARD_RECORDS = 8192
FEW_RECORDS = 2 * SHARD_RECORDS
BATCH_SIZE = 256
NUM_STEPS = 200
HOSTS = 64
LATENT_SHAPE = (2, 2, 1)


def make_folder(folder: Path, num_records: int) -> Manifest:
    """Random latents with labels of a thousand classes, in shards of the usual size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    manifest = Manifest(
        fields=(Field("mean", "float16", LATENT_SHAPE), Field("label", "int32", ())),
        shards=(),
        autoencoder={
            "name": "random",
            "digest": "random",
            "scale": 1.0,
            "deterministic": True,
            "latent_shape": list(LATENT_SHAPE),
            "image_shape": [16, 16, 3],
        },
        preprocessing={},
        class_names=tuple(map(str, range(1000))),
        num_records=num_records,
    )
    shards = []
    for start in range(0, num_records, SHARD_RECORDS):
        count = min(SHARD_RECORDS, num_records - start)
        records = np.zeros(count, manifest.record_dtype)
        records["mean"] = rng.standard_normal((count, *LATENT_SHAPE), np.float32)
        records["label"] = rng.integers(0, 1000, count)
        name = f"{start // SHARD_RECORDS:05}.array_record"
        shards.append(write_shard(folder / name, records))
    manifest = dataclasses.replace(manifest, shards=tuple(shards))
    manifest.save(folder)
    return manifest


def seconds_a_run(folder: Path, hosts: int) -> float:
    """Of the first host's rows of so many batches, after as many that open the shards."""
    batches = make_loader(
        folder,
        seed=0,
        batch_size=BATCH_SIZE,
        rows=(0, BATCH_SIZE // hosts),
        start_step=0,
        num_steps=2 * NUM_STEPS,
    )
    for _ in range(NUM_STEPS):
        next(batches)
    started = time.perf_counter()
    for _ in range(NUM_STEPS):
        next(batches)
    took = time.perf_counter() - started
    batches.close()
    return took


def say(what: str, started: float) -> None:
    took, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = f"data_at_size: {what} in {took:.2f} s; memory at most {peak / 2**10:.0f} MiB"
    print(line, file=sys.stderr, flush=True)


def measure(options: Options) -> list[Comparison]:
    many, few = options.folder / "many", options.folder / "few"
    started = time.perf_counter()
    make_folder(many, NUM_RECORDS)
    say(f"{NUM_RECORDS} records written", started)
    make_folder(few, FEW_RECORDS)

    started = time.perf_counter()
    reader = LatentReader(many)
    say("manifest and shards opened", started)
    started = time.perf_counter()
    # What each process of a pod does once an epoch.
    epoch_permutation(0, 0, NUM_RECORDS)
    say("an epoch's permutation", started)
    started = time.perf_counter()
    np.bincount(reader.read(np.arange(NUM_RECORDS))["label"])
    say("all labels read", started)
    started = time.perf_counter()
    copy = staging.local(many, str(options.folder / "stage"))
    say("a copy staged", started)
    started = time.perf_counter()
    staging.local(many, str(options.folder / "stage"))
    say("the copy found again", started)
    started = time.perf_counter()
    verify_records(copy)
    say("all verified", started)

    def compared(hosts: int, bar: Bar) -> Comparison:
        both = in_turns(
            lambda: seconds_a_run(many, hosts), lambda: seconds_a_run(few, hosts), options.rounds
        )
        rows = f"{BATCH_SIZE // hosts} rows a batch"
        return Comparison(f"{rows}, {NUM_RECORDS} records over {FEW_RECORDS}", "s", *both, bar)

    return [compared(HOSTS, Bar(high=2.0)), compared(1, Bar())]
