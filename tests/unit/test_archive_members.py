"""Archives whose members point elsewhere: nothing is read or written but within the archive."""

import io
import json
from pathlib import Path
import tarfile
from unittest import mock
import zipfile

import numpy as np
import pytest

from data_pipeline import emoji, mnist, npm_package
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.npz_files import read_npz
from data_pipeline.sources import open_source
from data_pipeline.torch_archive import read_torch_archive, read_torch_checkpoint
from shortcut_tpu.evaluation.reference import holds_images, load_reference
from shortcut_tpu.evaluation.sample_files import SampleReader
from tests.unit.image_files import png

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = png(np.zeros((8, 8, 3), np.uint8))
SECRET = png(np.full((8, 8, 3), 9, np.uint8))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder to work in, and around it what no archive may read or change."""
    (tmp_path / "secret.png").write_bytes(SECRET)
    (tmp_path / "0.json").write_text(json.dumps({"data": [1.0] * 784}))
    (tmp_path / "images.npy").write_bytes(npy(np.zeros((1, 8, 8, 1), np.uint8)))
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)

    def around() -> dict[str, bytes | None]:
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in sorted(tmp_path.rglob("*"))
            if work not in path.parents
        }

    before = around()
    yield tmp_path
    assert around() == before


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | tuple[bytes, str]], mode: str = "w") -> Path:
    """Writes members by name: their content, or a kind of tarfile's and where it points."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                # The machine's memory.
                member.devmajor, member.devminor = 1, 1
                archive.addfile(member)
    return path


def elsewhere(world: Path) -> dict[str, tuple[bytes, str]]:
    """Members that are no files; the links lead to what is there."""
    return {
        "link": (tarfile.SYMTYPE, f"{world}/secret.png"),
        "up": (tarfile.SYMTYPE, "../../secret.png"),
        "hard": (tarfile.LNKTYPE, f"{world}/secret.png"),
        "self": (tarfile.SYMTYPE, "self.png"),
        "pipe": (tarfile.FIFOTYPE, ""),
        "memory": (tarfile.CHRTYPE, ""),
        "disk": (tarfile.BLKTYPE, ""),
    }


def test_tar_shards_name_files_and_open_none(world):
    names = ("../../secret.png", f"{world}/secret.png", "000.png")
    members: dict = {f"{kind}.png": target for kind, target in elsewhere(world).items()}
    members |= {name: IMAGE for name in names}
    members |= {name.replace(".png", ".cls"): b"0" for name in names}
    source = open_source(f"webdataset:{tar(Path('shard-0.tar'), members)}")
    images = source.read_encoded(0, len(source))
    # Files by whatever name, by their content in the archive; what is no file is no sample.
    assert {image.name for image in images} == set(names)
    assert {image.data for image in images} == {IMAGE}
    members["up.cls"] = b"0"
    with pytest.raises(UserError, match="sample up has 0 images, it needs one"):
        open_source(f"webdataset:{tar(Path('shard-1.tar'), members)}")


@pytest.mark.parametrize("kind", ["link", "up", "hard", "self", "pipe", "memory", "disk"])
def test_npm_packages_hold_files_alone(world, kind):
    target = elsewhere(world)[kind]
    table = [{"image": "1f44b.png", "category": "A", "has_img_google": True}]
    content: dict = {"package/emoji.json": json.dumps(table).encode()}
    content["package/img/google/64/1f44b.png"] = target
    package = tar(Path("emoji.tgz"), content, "w:gz")
    with pytest.raises(UserError, match=r"emoji.tgz: not the package .*1f44b.png is no file"):
        emoji.unpack(package, Path("images"))
    assert not list(Path().glob("*images*"))
    package = tar(Path("mnist.tgz"), {"package/src/digits/0.json": target}, "w:gz")
    with pytest.raises(UserError, match=r"mnist.tgz: not the package .*0.json is no file"):
        mnist.read(package)


@pytest.mark.parametrize("category", ["../../a", "/a", "..", "."])
def test_npm_categories_become_plain_names(world, category):
    table = [{"image": "1f44b.png", "category": category, "has_img_google": True}]
    content = {
        "package/emoji.json": json.dumps(table).encode(),
        "package/img/google/64/1f44b.png": IMAGE,
    }
    emoji.unpack(tar(Path("emoji.tgz"), content, "w:gz"), Path("images"))
    assert all(path.name in ("a", "1f44b.png") for path in Path("images").rglob("*"))


def test_npm_packages_do_not_unpack_to_any_size(world, monkeypatch):
    monkeypatch.setattr(npm_package, "_LARGEST", 1 << 20)
    package = tar(Path("m.tgz"), {"package/src/digits/0.json": bytes((1 << 20) + 1)}, "w:gz")
    with pytest.raises(UserError, match="is no file of at most 1 MiB"):
        mnist.read(package)


def zipped(path: Path, members: dict[str, bytes], link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            # Unix's rights and kind of file, which `unzip` obeys.
            member.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize("where", ["../../", "WORLD/"])
def test_arrays_outside_are_not_taken(world, where):
    folder = where.replace("WORLD", str(world))
    members = {f"{folder}{name}.npy": npy(np.zeros(2)) for name in ("images", "labels", "mu")}
    path = zipped(Path("x.npz"), members)
    assert read_npz(path, ("images", "labels")) == {}
    with pytest.raises(UserError, match=r"x.npz: it needs arrays `images` and `labels`"):
        open_source(f"npz:{path}")
    with pytest.raises(UserError, match=r"x.npz: holds no `mu` and `sigma`"):
        load_reference(path, mock.Mock(), 4)
    with pytest.raises(UserError, match=r"x.npz: holds no array `arr_0`"):
        SampleReader(path)
    assert not holds_images(path)


def test_links_in_place_of_arrays_are_no_arrays(world):
    target = f"{world}/images.npy".encode()
    names = ("images", "labels", "mu", "sigma", "arr_0")
    path = zipped(Path("x.npz"), {f"{name}.npy": target for name in names}, link=True)
    for read in (
        lambda: read_npz(path, names),
        lambda: open_source(f"npz:{path}"),
        lambda: load_reference(path, mock.Mock(), 4),
        lambda: SampleReader(path),
    ):
        with pytest.raises(UserError, match=r"x.npz: not a readable npz archive"):
            read()


@pytest.mark.parametrize("where", ["../../", "WORLD/", "LINK"])
def test_torch_files_read_their_own_members(world, where):
    with zipfile.ZipFile(GOLDEN / "torch_zip.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stored = [name for name in members if "/data/" in name]
    if where == "LINK":
        members |= dict.fromkeys(stored, f"{world}/images.npy".encode())
        path = zipped(Path("x.pth"), members, link=True)
    else:
        folder = where.replace("WORLD", str(world))
        for name in stored:
            members[folder + name] = members.pop(name)
        path = zipped(Path("x.pth"), members)
    for read in (read_torch_archive, read_torch_checkpoint):
        with pytest.raises(UserError, match=r"x.pth: "):
            read(path)


@pytest.mark.parametrize("name", ["../../a", "WORLD/secret.png", "a/b", "..", ".", "", "a\0b"])
def test_shards_lie_in_their_folder(world, digits_path, name):
    content = json.loads((digits_path / "manifest.json").read_text())
    content["shards"][0]["file"] = name.replace("WORLD", str(world))
    Path("manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="it needs a name in the folder"):
        Manifest.load(".")
