"""A package of emoji becomes class folders, whole or not at all."""

import io
import json
import tarfile

import numpy as np
import pytest

from data_pipeline import emoji
from data_pipeline.errors import UserError
from data_pipeline.sources import open_source
from tests.unit.image_files import png

TABLE = [
    {
        "image": "1f44b.png",
        "category": "People & Body",
        "has_img_google": True,
        "skin_variations": {
            "1F3FB": {"image": "1f44b-1f3fb.png", "has_img_google": True},
            "1F3FC": {"image": "1f44b-1f3fc.png", "has_img_google": False},
        },
    },
    {"image": "2600-fe0f.png", "category": "Travel & Places", "has_img_google": True},
]
IMAGE = png(np.zeros((64, 64, 3), np.uint8))


def package(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def files():
    names = ("1f44b", "1f44b-1f3fb", "2600-fe0f")
    images = {f"img/google/64/{name}.png": IMAGE for name in names}
    return {"emoji.json": json.dumps(TABLE).encode(), **images}


def test_a_folder_for_each_category(tmp_path, files):
    output = tmp_path / "deep" / "images"
    counts = emoji.unpack(package(tmp_path / "e.tgz", files), output)
    assert counts == {"People & Body": 2, "Travel & Places": 1}
    source = open_source(f"imagefolder:{output}")
    assert source.class_names == ("people_body", "travel_places")
    assert [(image.name, image.label, image.data) for image in source.read_encoded(0, 3)] == [
        ("people_body/1f44b-1f3fb.png", 0, IMAGE),
        ("people_body/1f44b.png", 0, IMAGE),
        ("travel_places/2600-fe0f.png", 1, IMAGE),
    ]
    with pytest.raises(UserError, match="images: is there already"):
        emoji.unpack(tmp_path / "e.tgz", output)


def test_packages_that_are_not_this_one(tmp_path, files):
    output = tmp_path / "images"
    whole = package(tmp_path / "e.tgz", files).read_bytes()
    outside = json.dumps([{**TABLE[1], "image": "../../x.png"}]).encode()
    packages = {
        "missing.tgz": None,
        "text.tgz": b"text",
        "cut.tgz": whole[: len(whole) // 2],
        "lacks.tgz": {**files, "img/google/64/1f44b.png": None},
        "table.tgz": {**files, "emoji.json": b"{"},
        "outside.tgz": {**files, "emoji.json": outside},
        "other.tgz": {"package.json": b"{}"},
    }
    for name, content in packages.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            package(path, {key: data for key, data in content.items() if data is not None})
        with pytest.raises(UserError, match=name):
            emoji.unpack(path, output)
    (tmp_path / "dir.tgz").mkdir()
    with pytest.raises(UserError, match=r"dir\.tgz"):
        emoji.unpack(tmp_path / "dir.tgz", output)
    assert not [path for path in tmp_path.iterdir() if "images" in path.name]
