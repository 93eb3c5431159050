"""Records a second of the loader beside the raw reads under it, for 16 KiB latents, in one run.

Usage:
    $ python tests/benchmarks/loader.py
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
import tempfile
import time

from array_record.python.array_record_data_source import ArrayRecordDataSource
import numpy as np

from data_pipeline import loader
from data_pipeline.records import Field, Manifest, write_shard

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


def loaded_batches(folder: Path, num_threads: int) -> None:
    """The loader, to decoded arrays."""
    batches = loader.make_loader(
        folder,
        seed=0,
        batch_size=BATCH_SIZE,
        rows=(0, BATCH_SIZE),
        start_step=0,
        num_steps=NUM_STEPS,
        num_threads=num_threads,
    )
    assert sum(len(batch["label"]) for batch in batches) == NUM_STEPS * BATCH_SIZE
    batches.close()


def main() -> None:
    """Takes turns between the two, so that what else the machine does meets both alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_folder(folder)
        contenders: dict[str, Callable[[], None]] = {
            "raw __getitems__": lambda: raw_reads(folder, manifest),
            "loader, 1 thread": lambda: loaded_batches(folder, 1),
            "loader, 2 threads": lambda: loaded_batches(folder, 2),
        }
        rates: dict[str, list[float]] = {label: [] for label in contenders}
        for _ in range(ROUNDS):
            for label, contender in contenders.items():
                start = time.perf_counter()
                contender()
                rates[label].append(NUM_STEPS * BATCH_SIZE / (time.perf_counter() - start))
    raw = np.median(rates["raw __getitems__"])
    print(f"{'':20} {'records/s, median':>18} {'lowest':>9} {'highest':>9} {'over raw':>9}")
    for label, found in rates.items():
        median = np.median(found)
        print(
            f"{label:20} {median:18,.0f} {min(found):9,.0f} {max(found):9,.0f} {median / raw:9.2f}"
        )


if __name__ == "__main__":
    main()
