"""Lists of labels as people write them: each is understood, or the line at fault is named."""

import codecs

from etils import epath
import pytest

from data_pipeline.errors import UserError
from data_pipeline.sources import open_source
from data_pipeline.sources.label_lists import read_labels

FILES = ("a.png", "b.png", "c d.png")
EXPECTED = {"a.png": "polar bear", "b.png": "golden retriever", "c d.png": "ant"}

UNDERSTOOD = {
    "blanks": "a.png polar bear\nb.png golden retriever\nc d.png ant\n",
    "wide blanks": "a.png    polar bear \n\n  b.png golden retriever\n\nc d.png   ant",
    "quoted words": '"a.png" "polar bear"\n"b.png" "golden retriever"\n"c d.png" ant\n',
    "commas": "a.png,polar bear\nb.png, golden retriever\nc d.png,ant\n",
    "quotes": '"a.png","polar bear"\n"b.png","golden retriever"\n"c d.png","ant"\n',
    "tabs": "a.png\tpolar bear\nb.png\tgolden retriever\nc d.png\tant\n",
    "semicolons": "a.png;polar bear\nb.png;golden retriever\nc d.png;ant\n",
    "header": "filename,label\na.png,polar bear\nb.png,golden retriever\nc d.png,ant\n",
    "header of blanks": "file class\na.png polar bear\nb.png golden retriever\nc d.png ant\n",
    "columns": "id,species,file\n9,polar bear,a.png\n8,golden retriever,b.png\n7,ant,c d.png\n",
    "an index": ",image,class\n0,a.png,polar bear\n1,b.png,golden retriever\n2,c d.png,ant\n",
    "no names": "Photo;file\npolar bear;a.png\ngolden retriever;b.png\nant;c d.png\n",
    "stems": "a,polar bear\nb,golden retriever\nc d,ant\n",
    "folders": "val/a.png,polar bear\n./b.png,golden retriever\n./val/c d,ant\n",
    "twice the same": "a.png,polar bear\na.png,polar bear\nb.png,golden retriever\nc d.png,ant\n",
    "predictions": "ImageId,PredictionString\na,polar 1 2 3 4 polar 1 1 \nb,x 0 0 1 1\nc d,x 1\n",
}


@pytest.mark.parametrize("form", UNDERSTOOD)
@pytest.mark.parametrize("dress", ["plain", "windows", "utf-16"])
def test_lists_are_understood(tmp_path, form, dress):
    path = epath.Path(tmp_path / "list")
    text = UNDERSTOOD[form]
    content = {
        "plain": text.encode(),
        "windows": codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
        "utf-16": text.encode("utf-16"),
    }[dress]
    path.write_bytes(content)
    expected = EXPECTED
    if form == "predictions":
        expected = {"a.png": "polar", "b.png": "x", "c d.png": "x"}
    assert read_labels(path, FILES, "val") == expected


@pytest.mark.parametrize("name", ["goldfish, Carassius auratus", 'the "great" auk', "Ölkäfer; x"])
def test_a_class_may_hold_separators(tmp_path, name):
    path = epath.Path(tmp_path / "list")
    quoted = name.replace('"', '""')
    path.write_text(f'a.png,"{quoted}"\nb.png,ant\n')
    assert read_labels(path, ["a.png", "b.png"], "val") == {"a.png": name, "b.png": "ant"}
    path.write_text(f"a.png {name}\nb.png ant\n")
    assert read_labels(path, ["a.png", "b.png"], "val") == {"a.png": name, "b.png": "ant"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,x\nb.png,y\n", "does not list c d.png .1 of 3"),
        ("a.png,x\nz.png,y\n", "line 2 names z.png, which is not in the folder"),
        ("a.png,x\nb.png,y\na.png,z\n", "line 3 gives a.png a second class"),
        ("a.png,x\nb.png,\nc d.png,z\n", "line 2 gives b.png no class"),
        ("a.png,goldfish, Carassius\nb.png,x\n", "line 1 has 3 columns, not 2; .* quote"),
        ("file,x,y\na.png,1,2\n", "none of the columns file, x, y is `class`"),
        ("file,class\na.png,x\nb.png\n", "line 3 is not `NAME CLASS`"),
        ("a.png\nb.png\n", "line 1 is not `NAME CLASS`"),
        ("", "does not list a.png .3 of 3"),
    ],
)
def test_what_a_list_lacks_is_named(tmp_path, text, message):
    path = epath.Path(tmp_path / "list")
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(path, FILES, "val")


def test_a_stem_of_two_files_names_neither(tmp_path):
    path = epath.Path(tmp_path / "list")
    path.write_text("a,x\n")
    with pytest.raises(UserError, match="line 1 names a, which is not in"):
        read_labels(path, ["a.png", "a.jpg"], "val")


def test_names_in_another_encoding(tmp_path):
    """As macOS writes them on its disks."""
    path = epath.Path(tmp_path / "list")
    path.write_text("caf\u00e9.png,x\n")
    assert read_labels(path, ["cafe\u0301.png"], "val") == {"cafe\u0301.png": "x"}


def test_a_list_within_the_folder_is_no_image(tmp_path):
    """As Hugging Face's metadata.csv lies, whose columns are file_name and more."""
    for name in FILES:
        (tmp_path / name).write_bytes(b"x")
    listed = tmp_path / "metadata.csv"
    listed.write_text("file_name,label\na.png,x\nb.png,y\nc d.png,y\n")
    source = open_source(f"imagefolder:{tmp_path}", str(listed))
    assert (len(source), source.class_names) == (3, ("x", "y"))


def test_a_folder_with_such_a_list(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "labels.csv").write_text(UNDERSTOOD["quotes"])
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.class_names == ("ant", "golden retriever", "polar bear")
    assert [(i.name, i.label) for i in source.read_encoded(0, 3)] == [
        *(("c d.png", 0), ("b.png", 1), ("a.png", 2))
    ]
