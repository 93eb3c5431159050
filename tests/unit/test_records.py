"""The latent record: what is written is read to the bit, and every damage is named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.records import Field, LatentReader, Manifest, verify, write_shard

FIELDS = (
    Field("mean", "float16", (2, 3, 4)),
    Field("std", "float16", (2, 3, 4)),
    Field("mean_flipped", "float16", (2, 3, 4)),
    Field("label", "int32", ()),
)
AUTOENCODER = {
    "name": "test",
    "digest": "0123",
    "scale": 0.5,
    "deterministic": False,
    "latent_shape": [2, 3, 4],
    "image_shape": [16, 24, 3],
}


def make_folder(folder: Path, sizes=(5, 1, 7)) -> np.ndarray:
    """Writes shards of the given sizes with arbitrary bits; returns all records."""
    total = sum(sizes)
    manifest = Manifest(
        fields=FIELDS,
        shards=(),
        autoencoder=AUTOENCODER,
        preprocessing={"source": "test", "source_digest": "0", "flips": True},
        class_names=("a", "b"),
        num_records=total,
    )
    size = manifest.record_dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 256, total * size, dtype=np.uint8)
    records = raw.view(manifest.record_dtype)
    shards = []
    start = 0
    for number, count in enumerate(sizes):
        path = folder / f"shard-{number:05d}-of-{len(sizes):05d}.array_record"
        shards.append(write_shard(path, records[start : start + count]))
        start += count
    dataclasses.replace(manifest, shards=tuple(shards)).save(folder)
    return records


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_is_exact_in_any_order(tmp_path):
    records = make_folder(tmp_path)
    reader = LatentReader(tmp_path)
    assert len(reader) == 13
    for indices in ([12, 0, 5, 6, 0, 4], np.arange(13), [7]):
        batch = reader.read(indices)
        assert list(batch) == ["mean", "std", "mean_flipped", "label"]
        for name, values in batch.items():
            # Bytes, for NaNs compare unequal.
            assert values.dtype == records[name].dtype
            assert values.tobytes() == records[name][np.asarray(indices)].tobytes()
            assert values.flags.c_contiguous and values.flags.writeable
    assert reader.read([])["mean"].shape == (0, 2, 3, 4)


def test_manifest_round_trip_and_properties(tmp_path):
    make_folder(tmp_path)
    manifest = Manifest.load(tmp_path)
    assert manifest.record_dtype.itemsize == 3 * 2 * 24 + 4
    assert manifest.record_dtype["label"] == np.dtype("<i4")
    assert manifest.num_classes == 2
    assert manifest.latent_shape == (2, 3, 4)
    before = (tmp_path / "manifest.json").read_bytes()
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before
    manifest.require_autoencoder("test", "0123")
    with pytest.raises(UserError, match="digest 0123.*digest 4567"):
        manifest.require_autoencoder("test", "4567")


def test_dtypes_come_from_the_manifest(tmp_path):
    records = make_folder(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_text())["fields"]
    fields[0]["dtype"] = "int16"
    edit_manifest(tmp_path, fields=fields)
    mean = LatentReader(tmp_path).read([3])["mean"]
    assert mean.dtype == np.int16
    assert mean.tobytes() == records["mean"][3].tobytes()


def test_missing_manifest_names_the_command(tmp_path):
    with pytest.raises(UserError, match="manifest.json.*python -m data_pipeline.encode_latents"):
        LatentReader(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99 is unknown"),
        ({"num_records": 14}, "the shards hold 13 records, num_records is 14"),
        ({"fields": [{"name": "mean", "dtype": "float17", "shape": [2]}]}, "float17"),
        ({"fields": [{"name": "label", "dtype": "int32", "shape": []}]}, "mean and label"),
        ({"autoencoder": {"name": "test"}}, "digest"),
        ({"autoencoder": AUTOENCODER | {"latent_shape": [9, 9, 9]}}, "latent_shape"),
        ({"shards": [{"file": "x"}]}, "num_records"),
        ({"class_names": None}, "not a valid manifest"),
    ],
)
def test_bad_manifest_is_refused(tmp_path, changes, message):
    make_folder(tmp_path)
    edit_manifest(tmp_path, **changes)
    with pytest.raises(UserError, match=f"manifest.json: .*{message}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\xff"])
def test_unreadable_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="manifest.json"):
        Manifest.load(tmp_path)


def shard_1(folder: Path) -> Path:
    return folder / "shard-00001-of-00003.array_record"


def test_missing_and_truncated_shards_are_named(tmp_path):
    make_folder(tmp_path)
    whole = shard_1(tmp_path).read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-1], b"", None):
        shard_1(tmp_path).unlink()
        if damage is not None:
            shard_1(tmp_path).write_bytes(damage)
        for check in (LatentReader, verify):
            with pytest.raises(UserError, match=r"shard-00001-of-00003.array_record: "):
                check(tmp_path)


def test_shard_of_the_right_size_but_not_an_array_record_is_named(tmp_path):
    make_folder(tmp_path)
    shard_1(tmp_path).write_bytes(bytes(shard_1(tmp_path).stat().st_size))
    with pytest.raises(UserError, match="shard-00001-of-00003.array_record: damaged"):
        LatentReader(tmp_path)


def test_wrong_record_count_is_named(tmp_path):
    make_folder(tmp_path)
    shards = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    shards[1]["num_records"] = 2
    edit_manifest(tmp_path, shards=shards, num_records=14)
    with pytest.raises(UserError, match="00001-of-00003.array_record: holds 1 records.* says 2"):
        LatentReader(tmp_path)


def test_flipped_bit_is_named_with_its_record_and_fails_verify(tmp_path):
    records = make_folder(tmp_path)
    verify(tmp_path)
    content = bytearray(shard_1(tmp_path).read_bytes())
    content[content.index(records[5].tobytes()) + 10] ^= 1
    shard_1(tmp_path).write_bytes(content)
    reader = LatentReader(tmp_path)
    assert reader.read([4, 6])["label"].shape == (2,)
    with pytest.raises(UserError, match="shard-00001-of-00003.array_record: record 5 is damaged"):
        reader.read([0, 12, 5, 3])
    with pytest.raises(UserError, match="shard-00001-of-00003.array_record: .*checksum"):
        verify(tmp_path)


def test_wrong_record_length_is_named(tmp_path):
    make_folder(tmp_path)
    fields = [dataclasses.asdict(field) for field in FIELDS if field.name != "std"]
    edit_manifest(tmp_path, fields=fields)
    with pytest.raises(UserError, match="shard-00002.*record 6 has 148 bytes.* make 100"):
        LatentReader(tmp_path).read([6])


@pytest.mark.parametrize("index", [-1, 13])
def test_index_out_of_range_is_named(tmp_path, index):
    make_folder(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path.name}: record index {index} is out of range"):
        LatentReader(tmp_path).read([0, index])


def test_a_shard_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("data_pipeline.records.file_sha256", fail)
    with pytest.raises(UserError, match="x.array_record: cannot be written: disk full"):
        write_shard(tmp_path / "x.array_record", np.zeros(3, np.int32))
    assert not (tmp_path / "x.array_record").exists()
    with pytest.raises(UserError, match="cannot be written"):
        write_shard(tmp_path / "nowhere" / "x.array_record", np.zeros(3, np.int32))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("x.npz: no such\nfile"), 1, "error: x.npz: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_commands_end_in_one_line(capsys, error, status, line):
    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == status
    assert capsys.readouterr().err == line
    assert exit_on_user_error(lambda x: x + 1)(1) == 2
