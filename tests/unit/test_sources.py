"""Each form of image files gives the same records, and says what it cannot read."""

import io
import json
from pathlib import Path
import tarfile

import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.images import Preprocessing
from data_pipeline.records import LatentReader
from data_pipeline.sources import open_source
from data_pipeline.sources.base import expand
from data_pipeline.sources.tf_example import parse_example
from tests.unit import image_files
from tests.unit.image_files import CLASSES, WRITERS, pictures, png

IDENTITY = load_autoencoder("identity")


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_records(tmp_path, form):
    images = pictures()
    source = open_source(WRITERS[form](tmp_path / "source", images))
    assert len(source) == 12
    names = ("0", "1", "2") if form == "tars" else CLASSES
    assert source.class_names == names
    # Of the second half of one file, the whole of the next.
    assert [image.data for image in source.read_encoded(4, 11)] == [x for x, _ in images[4:11]]
    manifest, _ = encode(
        source, IDENTITY, tmp_path / "out", preprocessing=Preprocessing("adm", 8), shard_records=5
    )
    assert manifest.class_names == names
    assert manifest.preprocessing["resize"] == "adm"
    batch = LatentReader(tmp_path / "out").read(range(12))
    assert batch["label"].tolist() == [label for _, label in images]
    for index, (data, _) in enumerate(images):
        pixels = Preprocessing("adm", 8)(data).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(batch["mean"][index], pixels, atol=1e-3)
    # Wherever it lies, it is the same; with another image, another.
    again = WRITERS[form](tmp_path / "elsewhere", images)
    assert open_source(again).digest == source.digest
    other = [*images[:-1], (png(np.zeros((9, 9, 3), np.uint8)), 2)]
    assert open_source(WRITERS[form](tmp_path / "other", other)).digest != source.digest


@pytest.mark.parametrize("form", WRITERS)
def test_any_form_without_its_labels(tmp_path, form):
    images = pictures()
    source = open_source(WRITERS[form](tmp_path / "source", images), unlabeled=True)
    assert source.class_names == ("unlabeled",)
    found = source.read_encoded(0, len(source))
    assert {image.label for image in found} == {0}
    assert sorted(data for data, _ in images) == sorted(image.data for image in found)


def test_unlabelled_folders_and_lists_of_labels(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    for index, (data, _) in enumerate(pictures(3)):
        (folder / f"ILSVRC_val_{index}.JPEG").write_bytes(data)
    source = open_source(f"imagefolder:{folder}")
    assert source.class_names == ("unlabeled",)
    assert [image.label for image in source.read_encoded(0, 3)] == [0, 0, 0]
    listed = tmp_path / "LOC_val_solution.csv"
    listed.write_text(
        "ImageId,PredictionString\n"
        "ILSVRC_val_2,n01 1 2 3 4 \nILSVRC_val_0,n02 5 6 7 8 n02 1 2 3 4 \n"
        "ILSVRC_val_1,n01 0 0 1 1\n"
    )
    source = open_source(f"imagefolder:{folder}", str(listed))
    assert source.class_names == ("n01", "n02")
    images = source.read_encoded(0, 3)
    assert [(image.name[11:12], image.label) for image in images] == [("1", 0), ("2", 0), ("0", 1)]
    (folder / "labels.txt").write_text(
        "ILSVRC_val_0.JPEG 10\nILSVRC_val_1.JPEG 9\nILSVRC_val_2 10\n"
    )
    assert open_source(f"imagefolder:{folder}").class_names == ("9", "10")


def make(path: Path, **files: bytes) -> Path:
    for name, content in files.items():
        place = path / name.replace("__", "/").replace("_dot_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        ({}, None, "no such folder"),
        ({"a__x": b"", "b___dot_hidden": b""}, None, "b: no files in this class folder"),
        ({"a__x": b"", "y_dot_JPG": b""}, None, "y.JPG: an image beside class folders"),
        ({"a__x": b"", "y_dot_avif": b""}, None, "y.avif: an image beside class folders"),
        ({"labels_dot_txt": b""}, None, "holds no files"),
        ({"x": b"", "labels_dot_txt": b"x\n"}, None, "line 1 is not `NAME CLASS`"),
        ({"x": b"", "labels_dot_txt": b"x 1\nx 2\n"}, None, "line 2 gives x a second class"),
        ({"x": b"", "labels_dot_txt": b"z 1\n"}, None, "line 1 names z, which is not in"),
        ({"x": b"", "y": b"", "labels_dot_txt": b"x 1\n"}, None, "does not list y"),
        ({"x": b"", "labels_dot_txt": b"\xff 1\n"}, None, "is no UTF-8 text"),
        ({"x": b"", "labels_dot_txt": b"", "labels_dot_csv": b""}, None, "more than one list"),
        ({"x": b""}, "nowhere.txt", "nowhere.txt: cannot be read: No such file"),
        ({"a__x": b""}, "nowhere.txt", "has class folders, so --labels"),
    ],
)
def test_folders_of_no_layout(tmp_path, files, labels, message):
    folder = make(tmp_path / "set", **files)
    with pytest.raises(UserError, match=message):
        open_source(f"imagefolder:{folder}", labels)


def test_every_visible_file_is_an_image_to_be(tmp_path):
    make(tmp_path, a__deep__er__x=b"1", a__Thumbs_dot_db=b"2", a___dot_hidden=b"", README=b"")
    source = open_source(f"imagefolder:{tmp_path}")
    assert [image.name for image in source.read_encoded(0, 2)] == ["a/Thumbs.db", "a/deep/er/x"]


def tar(path: Path, *files: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no samples"),
        ([("x.jpg", b"1")], "sample x has no label"),
        ([("x.cls", b"1")], "sample x has 0 images"),
        ([("x.jpg", b"1"), ("x.png", b"1"), ("x.cls", b"1")], "sample x has 2 images"),
        ([("x.jpg", b"1"), ("x.cls", b"-1")], "sample x has no label"),
        ([("x.jpg", b"1"), ("x.cls", b"cat")], "sample x has no label"),
        ([("x.jpg", b"1"), ("x.json", b"[" * 9999)], "sample x has no label"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": true}')], "sample x has no label"),
        ([("x.jpg", b"1"), ("x.jpg", b"1"), ("x.cls", b"1")], "holds x.jpg twice"),
    ],
)
def test_tars_without_whole_samples(tmp_path, files, message):
    path = tar(tmp_path / "a.tar", *files)
    with pytest.raises(UserError, match=f"a.tar: .*{message}"):
        open_source(f"webdataset:{path}")


def test_a_tar_that_ends_early_or_late(tmp_path):
    """Python's tarfile takes the first damaged header for the end, and says nothing."""
    whole = tar(tmp_path / "a.tar", *[(f"{i}.{e}", b"1") for i in range(3) for e in ("jpg", "cls")])
    content = whole.read_bytes()
    for cut in (512, 1024, 1500, 2048, len(content) - 10240 + 6 * 1024):
        whole.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a.tar"):
            open_source(f"webdataset:{whole}")
    damaged = bytearray(content)
    damaged[2 * 1024 + 5] ^= 1
    whole.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged or truncated after 2 files"):
        open_source(f"webdataset:{whole}")


def test_tar_members_of_no_sample_are_left_alone(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        ("set/__key__", b""),
        ("set/x.PNG", b"image"),
        ("set/x.cls", b"4"),
        ("set/x.txt", b"a caption"),
    )
    with pytest.raises(UserError, match="sample set/__key__ has 0 images"):
        open_source(f"webdataset:{path}")
    path = tar(path, ("set/x.PNG", b"image"), ("set/x.cls", b"4"), ("set/x.txt", b"a caption"))
    source = open_source(f"webdataset:{path}")
    assert source.class_names == tuple("01234")
    assert [(i.data, i.label, i.name) for i in source.read_encoded(0, 1)] == [
        (b"image", 4, "set/x.PNG")
    ]


def test_parquet_columns(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    cases = [
        ({"picture": [b"x"], "label": [0]}, "the columns are picture, label"),
        ({"image": ["x"], "label": [0]}, "image is string"),
        ({"image": [b"x"], "label": ["a"]}, "label is string, it needs integers"),
        ({"image": [b"x"], "label": [None]}, "label is null"),
        ({"image": [b"x", b"y"], "label": [1, None]}, "label is missing in some rows"),
        ({"image": [b"x"], "label": [-1]}, "label runs from -1 to -1"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "no rows"),
    ]
    for columns, message in cases:
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        with pytest.raises(UserError, match=f"x.parquet: .*{message}"):
            open_source(f"parquet:{tmp_path / 'x.parquet'}")
    parquet.write_table(pa.table({"image": [b"x", None], "label": [0, 1]}), tmp_path / "x.parquet")
    images = open_source(f"parquet:{tmp_path / 'x.parquet'}").read_encoded(0, 2)
    assert [(image.data, image.problem) for image in images] == [(b"x", None), (b"", "no bytes")]


def test_parquet_files_that_do_not_belong_together(tmp_path):
    image_files.write_parquet(tmp_path / "set", pictures())
    train = sorted((tmp_path / "set").iterdir())[0]
    (tmp_path / "set" / "test-00000-of-00001.parquet").write_bytes(train.read_bytes())
    with pytest.raises(UserError, match="holds the splits test, train"):
        open_source(f"parquet:{tmp_path / 'set'}")
    assert len(open_source(f"parquet:{tmp_path / 'set'}/train-*.parquet")) == 12


def test_array_records_that_are_no_examples(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    from data_pipeline.sources.tf_example import _example_class

    def example(**features) -> bytes:
        made = _example_class()()
        for name, value in features.items():
            kind = "byteslist" if isinstance(value, bytes) else "int64list"
            getattr(made.features.feature[name], kind).value.append(value)
        return made.SerializeToString()

    records = [
        (example(image=b"x", label=2), None),
        (b"\xff\xff", "not a tf.train.Example"),
        (example(label=1), "no single feature `image`"),
        (example(image=b"x"), "no single feature `label`"),
        (example(image=b"x", label=-1), "label -1 is out of range"),
    ]
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record, _ in records:
        writer.write(record)
    writer.close()
    source = open_source(f"arrayrecord:{tmp_path / 'a.array_record'}")
    assert source.class_names == ("0", "1", "2")
    for image, (_, problem) in zip(source.read_encoded(0, 5), records, strict=True):
        assert (image.problem or "").startswith(problem or ""), image
        assert (image.problem is None) == (problem is None)
    (tmp_path / "label.labels.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="a.array_record#0: label 2 of 2 classes"):
        open_source(f"arrayrecord:{tmp_path / 'a.array_record'}").read_encoded(0, 5)


def test_array_records_are_read_from_disks():
    with pytest.raises(UserError, match="gs://bucket/train.*: .* mount the bucket"):
        open_source("arrayrecord:gs://bucket/train*")


def test_examples_are_those_of_tensorflow():
    """Bytes after the wire format that TensorFlow's own message writes (tag, length, payload)."""
    feature = b"\x0a\x03\x0a\x01x"  # bytes_list { value: "x" }
    entry = b"\x0a\x05image\x12" + bytes([len(feature)]) + feature
    record = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(record) == {"image": [b"x"]}
    assert parse_example(b"\x0a\xff") is None


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-1.tar"):
        (tmp_path / name).touch()

    def names(pattern):
        return [path.name for path in expand(f"{tmp_path}/{pattern}")]

    assert names("a-{08..10}.tar") == names("a-*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("b-{1..1}.tar") == ["b-1.tar"]
    for pattern, message in (
        ("a-{07..10}.tar", "a-07.tar: no such file"),
        ("c-*.tar", "no file matches"),
        ("*/x.tar", "last part of a pattern only"),
        ("a-{10..08}.tar", "not a range of files"),
        ("a-{0..9999999}.tar", "not a range of files"),
        ("a-{0..9999}{0..9999}.tar", "names more than"),
    ):
        with pytest.raises(UserError, match=message):
            names(pattern)


def test_json_of_labels(tmp_path):
    path = tar(tmp_path / "a.tar", ("x.jpg", b"1"), ("x.json", json.dumps({"cls": 7}).encode()))
    assert open_source(f"webdataset:{path}").read_encoded(0, 1)[0].label == 7
