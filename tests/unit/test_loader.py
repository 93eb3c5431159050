"""Batches are functions of (seed, step, row), on any number of processes, after any restart."""

from pathlib import Path
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest

import data_pipeline
from data_pipeline import loader
from data_pipeline.errors import UserError
from data_pipeline.records import Field, LatentReader, Manifest, write_shard

ROOT = Path(data_pipeline.__file__).parent.parent
NUM_RECORDS = 23

GOLDEN_SMALL = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_LARGE = {  # (seed, epoch): the first six records of a data set of ImageNet's size.
    (0, 0): [220276, 68642, 368138, 1065851, 1208450, 763740],
    (0, 1): [686429, 648367, 422016, 274007, 1076650, 450251],
    (7, 0): [220364, 1076079, 686985, 50381, 776450, 399441],
    (2**64 - 1, 2): [767753, 498768, 770868, 1024013, 329706, 285214],
}
GOLDEN_ROWS = [6, 7, 5, 3, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 records whose label is their index."""
    path = tmp_path_factory.mktemp("records")
    manifest = Manifest(
        fields=(Field("mean", "float16", (2, 2, 1)), Field("label", "int32", ())),
        shards=(),
        autoencoder={
            "name": "identity",
            "digest": "identity",
            "scale": 1.0,
            "deterministic": True,
            "latent_shape": [2, 2, 1],
            "image_shape": [2, 2, 1],
        },
        preprocessing={},
        class_names=tuple(str(label) for label in range(NUM_RECORDS)),
        num_records=NUM_RECORDS,
    )
    records = np.zeros(NUM_RECORDS, manifest.record_dtype)
    records["label"] = np.arange(NUM_RECORDS)
    records["mean"] = np.arange(NUM_RECORDS).reshape(-1, 1, 1, 1)
    shards = [
        write_shard(path / f"{start}.array_record", records[start : start + 10])
        for start in range(0, NUM_RECORDS, 10)
    ]
    Manifest(**{**vars(manifest), "shards": tuple(shards)}).save(path)
    return path


def labels(folder, rows, *, batch_size=8, start_step=0, num_steps=7, **options):
    batches = loader.make_loader(
        folder,
        seed=3,
        batch_size=batch_size,
        rows=rows,
        start_step=start_step,
        num_steps=num_steps,
        **options,
    )
    result = []
    for batch in batches:
        assert (batch["mean"] == batch["label"].reshape(-1, 1, 1, 1)).all()
        result.append(batch["label"])
    batches.close()
    return np.array(result)


def test_golden_order():
    # These numbers must never change: a run resumed after an upgrade would meet other records.
    assert loader.epoch_permutation(0, 0, 10).tolist() == GOLDEN_SMALL
    first = [loader.epoch_permutation(*key, 1_281_167)[:6].tolist() for key in GOLDEN_LARGE]
    assert first == list(GOLDEN_LARGE.values())
    assert loader.record_indices(0, 1, (1, 6), 7, 10).tolist() == GOLDEN_ROWS


@pytest.mark.parametrize("num_records", [1, 2, 23, 1797])
def test_every_epoch_is_another_permutation(num_records):
    orders = [loader.epoch_permutation(0, epoch, num_records) for epoch in range(3)]
    orders.append(loader.epoch_permutation(1, 0, num_records))
    for order in orders:
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(num_records))
    if num_records > 10:
        assert len({order.tobytes() for order in orders}) == len(orders)


@pytest.mark.parametrize("batch_size", [1, 8, 23, 60])
def test_steps_walk_through_the_epochs_without_a_gap(batch_size):
    steps = -(-3 * NUM_RECORDS // batch_size)
    walked = np.concatenate(
        [
            loader.record_indices(5, step, (0, batch_size), batch_size, NUM_RECORDS)
            for step in range(steps)
        ]
    )
    epochs = [loader.epoch_permutation(5, epoch, NUM_RECORDS) for epoch in range(3)]
    assert np.array_equal(walked[: 3 * NUM_RECORDS], np.concatenate(epochs))


def test_the_views_of_64_processes_make_one_permutation_of_imagenet():
    """Process p's rows of all steps: each record of an epoch once, in the epoch's order."""
    num_records, batch_size, processes = 1_281_167, 4096, 64
    steps, share = -(-num_records // batch_size), batch_size // processes
    views = [
        [
            loader.record_indices(
                0, step, (process * share, (process + 1) * share), batch_size, num_records
            )
            for step in range(steps)
        ]
        for process in range(processes)
    ]
    together = np.array(views).transpose(1, 0, 2).reshape(-1)
    order = loader.epoch_permutation(0, 0, num_records)
    assert np.array_equal(together[:num_records], order)
    assert np.array_equal(np.sort(order), np.arange(num_records))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_single_process_batch(folder, processes):
    whole = labels(folder, (0, 8))
    share = 8 // processes
    parts = [labels(folder, (p * share, (p + 1) * share)) for p in range(processes)]
    assert whole.shape == (7, 8)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("start_step", [1, 4, 7])
def test_restart_gives_the_same_batches(folder, start_step):
    unbroken = labels(folder, (2, 6))
    assert np.array_equal(
        labels(folder, (2, 6), start_step=start_step).reshape(-1, 4), unbroken[start_step:]
    )


def test_threads_and_prefetch_do_not_show(folder):
    expected = labels(folder, (0, 60), batch_size=60, num_threads=0)
    for threads in (1, 4):
        got = labels(folder, (0, 60), batch_size=60, num_threads=threads, prefetch=5)
        assert np.array_equal(got, expected)


def test_batch_source_is_a_random_access_source(folder):
    source = loader.BatchSource(
        LatentReader(folder), seed=3, batch_size=8, rows=(0, 8), num_steps=10**9
    )
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert len(source) == 10**9
    expected = loader.record_indices(3, 123_456_789, (0, 8), 8, NUM_RECORDS)
    assert np.array_equal(source[123_456_789]["label"], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": (0, 9)},
        {"rows": (4, 4)},
        {"rows": (-1, 4)},
        {"seed": -1},
        {"seed": 2**64},
        {"start_step": 8},
        {"start_step": -1},
    ],
)
def test_values_out_of_range_are_refused(folder, changes):
    values = {"seed": 0, "batch_size": 8, "rows": (0, 8), "start_step": 0, "num_steps": 7}
    with pytest.raises(ValueError, match="not"):
        loader.make_loader(folder, **(values | changes))


def test_damage_found_by_a_reading_thread_reaches_the_caller(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / "10.array_record"
    content = bytearray(damaged.read_bytes())
    content[content.index(np.full(4, 13, np.float16).tobytes())] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="10.array_record: record 13 is damaged"):
        labels(tmp_path, (0, 8))


@pytest.mark.parametrize("ending", ["", "batches.close()", "del batches"])
def test_interpreter_exits_cleanly_in_the_middle(folder, ending):
    program = f"""
from data_pipeline import loader
batches = loader.make_loader({str(folder)!r}, seed=0, batch_size=8, rows=(0, 8), start_step=0,
                             num_steps=10**6, num_threads=2, prefetch=64)
print(next(batches)["label"].shape)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(8,)\n", "")


def test_damaged_records_are_done_without_up_to_a_number(folder, tmp_path, capfd):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    reader = LatentReader(damaged)
    whole = reader.read(np.arange(len(reader)))
    path = damaged / reader.manifest.shards[0].file
    content = bytearray(path.read_bytes())
    # Records 2 and 3: the neighbour of one is the other.
    for index in (2, 3):
        content[content.index(whole["mean"][index].tobytes())] ^= 1
    path.write_bytes(content)
    standing_in = np.arange(len(reader))
    standing_in[[2, 3]] = 4
    corrupt: set[int] = set()
    values = {"seed": 0, "batch_size": len(reader), "rows": (0, len(reader)), "num_steps": 3}
    source = loader.BatchSource(LatentReader(damaged), **values, max_corrupt=2, corrupt=corrupt)
    for step in range(3):
        batch = source[step]
        order = loader.epoch_permutation(0, step, len(reader))
        np.testing.assert_array_equal(batch["mean"], whole["mean"][standing_in[order]])
    assert corrupt == {2, 3}
    assert capfd.readouterr().err.count("is damaged") == 2
    strict = loader.BatchSource(LatentReader(damaged), **values, max_corrupt=1)
    with pytest.raises(UserError, match="record [23] is damaged"):
        strict[0]
