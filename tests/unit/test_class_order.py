"""A class is the same number in every form of a data set, and no folder is left out in silence."""

import errno
import json
import os

import pyarrow as pa
from pyarrow import parquet
import pytest

from data_pipeline.errors import UserError
from data_pipeline.sources import Columns, open_source
from data_pipeline.sources.class_order import ordered
from tests.unit.image_files import WRITERS, pictures, write_array_records, write_parquet, write_tars


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),
        (["class10", "class2", "class1"], ["class1", "class2", "class10"]),
        (["n02", "n01", "n10"], ["n01", "n02", "n10"]),
        (["10", "cat", "2"], ["10", "2", "cat"]),
        (["b2", "a10"], ["a10", "b2"]),
        (["b", "a", "b"], ["a", "b"]),
    ],
)
def test_numbered_classes_are_in_the_order_of_their_numbers(names, expected):
    assert list(ordered(names)) == expected


def test_numbered_folders_and_lists(tmp_path):
    for number in range(12):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        (tmp_path / "set" / str(number) / "x.png").write_bytes(b"x")
    source = open_source(f"imagefolder:{tmp_path / 'set'}")
    assert source.class_names == tuple(str(number) for number in range(12))
    assert [(image.name, image.label) for image in source.read_encoded(0, 12)] == [
        (f"{number}/x.png", number) for number in range(12)
    ]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(12):
        (flat / f"{number}.png").write_bytes(b"x")
    (flat / "labels.csv").write_text("".join(f"{n}.png,{n}\n" for n in range(12)))
    assert open_source(f"imagefolder:{flat}").class_names == source.class_names


@pytest.mark.parametrize("form", WRITERS)
def test_a_list_of_classes_beside_the_images_decides(tmp_path, form):
    """Here it says bee, dog, ant, cat; the labels of tars and records are places in it."""
    listed = ("bee", "dog", "ant", "cat")
    names = ("ant", "bee", "cat") if form in ("folders", "flat") else ("bee", "dog", "ant")
    spec = WRITERS[form](tmp_path / "set", pictures())
    for path in (tmp_path / "set").glob("label.labels.txt"):
        path.unlink()
    if form == "parquet":
        for path in (tmp_path / "set").iterdir():
            parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)
    (tmp_path / "set" / "classes.txt").write_text("".join(f"{name}\r\n" for name in listed))
    source = open_source(spec)
    assert source.class_names == listed
    found = {listed[image.label] for image in source.read_encoded(0, 12)}
    assert found == set(names)
    assert len(source) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [("ant\nbee\nant\n", "line 3 names a class twice"), ("", "no class names"), ("ant\n", "bee")],
)
def test_a_list_of_classes_that_does_not_fit(tmp_path, content, message):
    WRITERS["folders"](tmp_path, pictures())
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        open_source(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    "names", [("train", "val"), ("train",), ("Training", "test"), ("val2017",)]
)
@pytest.mark.parametrize("unlabeled", [False, True])
def test_parts_of_a_data_set_are_no_classes(tmp_path, names, unlabeled):
    for name in names:
        WRITERS["folders"](tmp_path / name, pictures())
    with pytest.raises(UserError, match=f"no classes; give .*imagefolder:{tmp_path}/{names[0]}"):
        open_source(f"imagefolder:{tmp_path}", unlabeled=unlabeled)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    assert len(open_source(f"imagefolder:{tmp_path}", unlabeled=unlabeled)) == 12 * len(names)


def test_one_name_in_two_encodings_is_no_two_classes(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match="one name in two encodings"):
        open_source(f"imagefolder:{tmp_path}")


def test_a_class_may_be_named_train(tmp_path):
    WRITERS["folders"](tmp_path, pictures())
    (tmp_path / "ant").rename(tmp_path / "train")
    assert open_source(f"imagefolder:{tmp_path}").class_names == ("bee", "cat", "train")


@pytest.mark.parametrize(
    ("writer", "pattern", "ending"),
    [
        (write_tars, "webdataset:{}", ".tar"),
        (write_tars, "webdataset:{}/*.tar", ".tar"),
        (write_parquet, "parquet:{}", ".parquet"),
        (write_array_records, "arrayrecord:{}/*array_record*", ""),
    ],
)
def test_files_of_several_parts_are_refused(tmp_path, writer, pattern, ending):
    folder = tmp_path / "set"
    writer(folder, pictures())
    spec = pattern.format(folder)
    assert len(open_source(spec)) == 12
    first = next(path for path in sorted(folder.iterdir()) if "train" in path.name)
    other = folder / (f"val{ending}" if ending else first.name.replace("train", "test"))
    other.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="holds the splits (train, val|test, train)"):
        open_source(spec)


def test_links_are_followed(tmp_path):
    """A class is complete whether its files, its folder or folders within are links."""
    real = tmp_path / "elsewhere"
    for name in ("more/2.png", "class/3.png"):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).write_bytes(b"x")
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"x")
    (folder / "a" / "more").symlink_to(real / "more")
    (folder / "a" / "twice").symlink_to(real / "more")
    (folder / "b").symlink_to(real / "class")
    (folder / "a" / "4.png").symlink_to(real / "class" / "3.png")
    source = open_source(f"imagefolder:{folder}")
    assert [image.name for image in source.read_encoded(0, len(source))] == [
        *("a/1.png", "a/4.png", "a/more/2.png", "a/twice/2.png", "b/3.png")
    ]
    assert len(open_source(f"imagefolder:{folder}", unlabeled=True)) == 5
    (real / "more" / "back").symlink_to(folder / "a")
    for unlabeled in (False, True):
        with pytest.raises(UserError, match="back: a link that leads in a circle"):
            open_source(f"imagefolder:{folder}", unlabeled=unlabeled)


@pytest.mark.parametrize("place", ["c", "a/x.png"])
def test_links_to_nothing_are_named(tmp_path, place):
    WRITERS["folders"](tmp_path, pictures())
    (tmp_path / "a").mkdir()
    (tmp_path / place).symlink_to(tmp_path / "nowhere")
    # One among 13 files has its size looked at.
    with pytest.raises(UserError, match=f"{place}: (a link to nothing|cannot be read: No such)"):
        open_source(f"imagefolder:{tmp_path}")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    """os.walk passes over it otherwise."""
    WRITERS["folders"](tmp_path, pictures())
    (tmp_path / "ant" / "closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="closed: cannot be read: Permission denied"):
        open_source(f"imagefolder:{tmp_path}")


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"img": [b"x", b"y"], "cls": [1, 0], "n": [3, 3]}), path)
    source = open_source(f"parquet:{path}")
    assert [(i.data, i.label) for i in source.read_encoded(0, 2)] == [(b"x", 1), (b"y", 0)]
    source = open_source(f"parquet:{path}", columns=Columns(label="n"))
    assert [i.label for i in source.read_encoded(0, 2)] == [3, 3]
    odd = pa.table({"a": [b"x"], "b": [b"y"], "label": [0], "target": [1]})
    parquet.write_table(odd, path)
    for columns, message in (
        (Columns(), "none is a usual image; name it by --image_column"),
        (Columns("a"), "label or target may be the label; name it by --label_column"),
        (Columns("c", "label"), "--image_column=c is none of them"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"parquet:{path}", columns=columns)
    source = open_source(f"parquet:{path}", columns=Columns("b", "target"))
    assert [(i.data, i.label) for i in source.read_encoded(0, 1)] == [(b"y", 1)]


def test_endings_and_keys_of_other_names_in_tars(tmp_path):
    from tests.unit.test_sources import tar

    fields = json.dumps({"class_id": 2, "age": 7, "text": "x"}).encode()
    path = tar(tmp_path / "a.tar", ("x.raw", b"1"), ("x.seg.png", b"2"), ("x.json", fields))
    with pytest.raises(UserError, match="0 images.*json, raw, seg.png; --image_column names"):
        open_source(f"webdataset:{path}")
    images = open_source(f"webdataset:{path}", columns=Columns("seg.png")).read_encoded(0, 1)
    assert [(i.data, i.label) for i in images] == [(b"2", 2)]
    images = open_source(f"webdataset:{path}", columns=Columns("RAW", "age")).read_encoded(0, 1)
    assert [(i.data, i.label) for i in images] == [(b"1", 7)]
    path = tar(tmp_path / "a.tar", ("x.avif", b"1"), ("x.id", b" 5\n"))
    images = open_source(f"webdataset:{path}", columns=Columns(label="id")).read_encoded(0, 1)
    assert [(i.data, i.label) for i in images] == [(b"1", 5)]


def test_features_of_other_names_in_records(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    from data_pipeline.sources.tf_example import _example_class

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for label in (1, 0):
        example = _example_class()()
        example.features.feature["img"].byteslist.value.append(b"x%d" % label)
        example.features.feature["fine_label"].int64list.value.append(label)
        example.features.feature["coarse"].int64list.value.append(5)
        writer.write(example.SerializeToString())
    writer.close()
    found = open_source(f"arrayrecord:{tmp_path}").read_encoded(0, 2)
    assert [(i.data, i.label) for i in found] == [(b"x1", 1), (b"x0", 0)]
    source = open_source(f"arrayrecord:{tmp_path}", columns=Columns(label="coarse"))
    assert [i.label for i in source.read_encoded(0, 2)] == [5, 5]
    with pytest.raises(UserError, match="--label_column=x is none of them"):
        open_source(f"arrayrecord:{tmp_path}", columns=Columns(label="x"))


def test_several_shards_in_every_form(tmp_path):
    spec = write_tars(tmp_path / "set", pictures(), shards=3)
    assert spec.endswith("{0000..0002}.tar")
    names = [f"{tmp_path}/set/train-000{n}.tar" for n in range(3)]
    forms = [
        *(f"{tmp_path}/set", f"{tmp_path}/set/", f"{tmp_path}/set/*.tar", ",".join(names)),
        *(
            f"{tmp_path}/set/train-000{{0,1,2}}.tar",
            f"{tmp_path}/set/train-{{0000,0001..0002}}.tar",
        ),
    ][:5]
    whole = open_source(spec)
    for form in forms:
        assert open_source(f"webdataset:{form}").digest == whole.digest, form
    for form, message in (
        (f"{names[0]},{names[0]}", "names train-0000.tar twice"),
        (f"{names[0]},", "a comma without a file"),
        (f"{tmp_path}/set/train-{{a}}.tar", "neither a range of numbers nor a list"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"webdataset:{form}")
    odd = tmp_path / "a,b{0..1}.tar"
    odd.write_bytes((tmp_path / "set" / "train-0000.tar").read_bytes())
    assert len(open_source(f"webdataset:{odd}")) == 4
