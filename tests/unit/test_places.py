"""Outputs that cannot be written are refused before the work for them, by the flag's name."""

import errno
import os
from pathlib import Path
import tempfile

from absl import flags
import pytest

from data_pipeline.atomic_files import require_place
from data_pipeline.errors import PassingError, UserError
from shortcut_tpu.cli import command


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/x.json", ".*/file is no folder"),
        ("file/deep/x.json", ".*/file is no folder"),
        ("nothing/x.json", ".*/nothing is no folder"),
        ("folder", "it is a folder"),
        ("deep/er/" + "x" * 300, "File name too long"),
    ],
)
def test_places_that_cannot_be(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nothing").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"--json=.*: cannot be written: {message}"):
        require_place("json", str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "nothing"]


@pytest.mark.parametrize("name", ["new.json", "a/b/c.json", "ä b/c\nd.json", "file"])
def test_places_that_can_be(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    require_place("json", str(tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "kept")]


@pytest.mark.parametrize("name", ["file", "nothing"])
def test_what_stands_where_a_folder_is_to_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").symlink_to("nowhere")
    # A file takes such a place, a folder cannot.
    require_place("output", str(tmp_path / name), "either")
    with pytest.raises(UserError, match=f"cannot be written: .*/{name} is no folder"):
        require_place("output", str(tmp_path / name), "folder")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_disks_that_take_nothing(tmp_path, monkeypatch, code):
    """The tests may run as root, whom rights do not stop; so what the kernel would say is said."""

    def refuse(dir: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    said = f"--workdir=.*: cannot be written: {os.strerror(code)}"
    with pytest.raises(UserError, match=said) as caught:
        require_place("workdir", str(tmp_path / "run"), "folder")
    # Room may be made while a supervisor tries again; rights are for a person to change.
    assert isinstance(caught.value, PassingError) == (code == errno.ENOSPC)


def test_every_flag_that_is_written(tmp_path, monkeypatch):
    values = flags.FlagValues()
    for name in ("output", "json", "save_samples"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(["command"])
    monkeypatch.setattr(flags, "FLAGS", values)
    command.require_places()
    values.output = str(tmp_path)
    command.require_places()
    for name in ("json", "save_samples"):
        setattr(values, name, str(tmp_path))
        with pytest.raises(UserError, match=f"--{name}=.*it is a folder"):
            command.require_places()
        setattr(values, name, None)
