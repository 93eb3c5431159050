"""Records a second of the loader beside the raw reads under it, for latents of 16 KiB."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource
import numpy as np

from configs import common
from data_pipeline import loader
from data_pipeline.records import Field, Manifest, write_shard
from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns, seconds

NUM_RECORDS = 20_000
NUM_SHARDS = 4
BATCH_SIZE = 256
NUM_STEPS = 150
ROUNDS = 5
LATENT_SHAPE = (32, 32, 8)


def make_folder(folder: Path) -> Manifest:
    """Writes random latents with their labels."""
    manifest = Manifest(
        fields=(Field("mean", "float16", LATENT_SHAPE), Field("label", "int32", ())),
        shards=(),
        autoencoder={
            "name": "random",
            "digest": "random",
            "scale": 1.0,
            "deterministic": True,
            "latent_shape": list(LATENT_SHAPE),
            "image_shape": [256, 256, 3],
        },
        preprocessing={},
        class_names=("all",),
        num_records=NUM_RECORDS,
    )
    share = NUM_RECORDS // NUM_SHARDS
    records = np.zeros(share, manifest.record_dtype)
    shards = []
    for number in range(NUM_SHARDS):
        rng = np.random.default_rng(number)
        records["mean"] = rng.standard_normal((share, *LATENT_SHAPE), np.float32)
        shards.append(write_shard(folder / f"{number}.array_record", records))
    manifest = dataclasses.replace(manifest, shards=tuple(shards))
    manifest.save(folder)
    return manifest


def raw_reads(folder: Path, manifest: Manifest) -> None:
    """What nothing can beat: one `__getitems__` of random records a batch, bytes left as bytes."""
    source = ArrayRecordDataSource([str(folder / shard.file) for shard in manifest.shards])
    rng = np.random.default_rng(0)
    for _ in range(NUM_STEPS):
        source.__getitems__(rng.integers(0, NUM_RECORDS, BATCH_SIZE).tolist())


def loaded_batches(folder: Path) -> None:
    """The loader, to decoded arrays, with as many threads as a config has by default."""
    batches = loader.make_loader(
        folder,
        seed=0,
        batch_size=BATCH_SIZE,
        rows=(0, BATCH_SIZE),
        start_step=0,
        num_steps=NUM_STEPS,
        num_threads=common.get_config().data.num_threads,
    )
    assert sum(len(batch["label"]) for batch in batches) == NUM_STEPS * BATCH_SIZE
    batches.close()


def measure(options: Options) -> list[Comparison]:
    manifest = make_folder(options.folder)

    def rate(function: Callable[[], None]) -> float:
        return NUM_STEPS * BATCH_SIZE / seconds(function)

    rates = in_turns(
        lambda: rate(lambda: loaded_batches(options.folder)),
        lambda: rate(lambda: raw_reads(options.folder, manifest)),
        options.rounds,
    )
    return [Comparison("loader over raw __getitems__", "/s", *rates, Bar(low=0.8))]
