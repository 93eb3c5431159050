"""What the system cannot do is named as itself, and is never taken for damage."""

import builtins
import errno
import io
import os
from pathlib import Path
import resource

from etils import epath
import numpy as np
import pytest

from data_pipeline import decoding, errors, resumable
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import PassingError, UserError
from data_pipeline.images import Preprocessing
from data_pipeline.loader import BatchSource
from data_pipeline.manifest import Manifest
from data_pipeline.npz_files import read_npz
from data_pipeline.pickles import read_pickle
from data_pipeline.records import LatentReader, verify
from data_pipeline.sources import EncodedImage, open_source
from data_pipeline.system_errors import raise_if_system
from data_pipeline.torch_archive import read_torch_archive
from shortcut_tpu.evaluation.sample_files import SampleReader
from shortcut_tpu.evaluation.unfinished import Unfinished
from shortcut_tpu.runs import checksums
from tests.unit.image_files import WRITERS, pictures, write_array_records

PASSING = (errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE)
NUMBERS = (*PASSING, errno.EACCES)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Digits in 300 shards."""
    path = tmp_path_factory.mktemp("records")
    encode(open_source("digits"), load_autoencoder("identity"), path, shard_records=6)
    return path


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def limited(files: int):
    """At most so many more files than are open now; the limit is on their numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = {int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name))}
    free = [number for number in range(soft) if number not in there]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[files], hard))
    return soft, hard


def test_300_shards_are_read_with_few_files_open(records):
    """The same records, whatever the limit; ulimit -n is 256 on some systems."""
    expected = LatentReader(records).read(range(1797))
    reader = LatentReader(records)
    before = limited(120)
    try:
        source = BatchSource(reader, seed=0, batch_size=1797, rows=(0, 1797), num_steps=9)
        first = source[0]
        found = reader.read(range(1797))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(first["label"]) == 1797
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_too_many_open_files_are_no_damage(records):
    """With or without max_corrupt: no record is replaced by another."""
    corrupt: set[int] = set()
    reader = LatentReader(records)
    source = BatchSource(
        reader, seed=0, batch_size=999, rows=(0, 999), num_steps=9, max_corrupt=99, corrupt=corrupt
    )
    before = limited(8)
    try:
        with pytest.raises(PassingError, match="Too many open files; raise the limit"):
            source[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not corrupt
    assert len(source[0]["label"]) == 999


@pytest.mark.parametrize("number", [*NUMBERS, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_the_system_refuses_anywhere_is_a_line(number, monkeypatch, capsys):
    """And no verdict on the command: a supervisor starts it again."""
    told: list[str] = []
    monkeypatch.setattr(errors.exit_reason, "report", told.append)

    def main():
        raise OSError(number, os.strerror(number), "run/a\nb")

    with pytest.raises(SystemExit, match="1"):
        errors.exit_on_user_error(main)()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: run/a b: {os.strerror(number)}")
    assert not told


def test_other_errors_keep_their_traceback():
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError("?"), ValueError("disk quota")):
        assert errors.line_of(error) is None


@pytest.mark.parametrize("number", NUMBERS)
def test_words_of_the_system_are_known_in_a_librarys(number):
    error = RuntimeError(f"UNKNOWN: open() failed: {os.strerror(number)} [/x/y]")
    with pytest.raises(UserError, match=f"x: cannot be read: .*{os.strerror(number)}") as caught:
        raise_if_system("x", error)
    assert isinstance(caught.value, PassingError) == (number in PASSING)
    raise_if_system("x", RuntimeError("checksum mismatch at 17"))


@pytest.fixture(params=NUMBERS)
def failing(request, monkeypatch):
    """Makes every reading of files that hold `poison` in their names fail with an errno."""
    number = request.param
    opened = io.open

    def fail(path, mode="r", *args, **kwargs):
        if isinstance(path, str | os.PathLike) and "poison" in os.fspath(path) and "r" in mode:
            raise OSError(number, os.strerror(number), os.fspath(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fail)
    monkeypatch.setattr(io, "open", fail)
    return os.strerror(number)


@pytest.mark.parametrize("form", ["folders", "flat", "tars", "parquet"])
def test_sources_name_the_system(tmp_path, failing, form):
    folder = tmp_path / ("poison" if form in ("tars", "parquet") else "set")
    spec = WRITERS[form](tmp_path / "set", pictures())
    if form in ("tars", "parquet"):
        (tmp_path / "set").rename(folder)
        spec = spec.replace(f"{tmp_path}/set", str(folder))
    else:
        victim = sorted(folder.rglob("*.png"))[3]
        victim.rename(victim.with_name("003-poison.png"))
        if form == "flat":
            listed = folder / "labels.txt"
            listed.write_text(listed.read_text().replace("003.png", "003-poison.png"))
    with pytest.raises(UserError, match=f"poison.*: cannot be read: {failing}"):  # noqa: PT012
        source = open_source(spec)
        source.read_encoded(0, 12)


def test_files_of_numbers_name_the_system(tmp_path, failing):
    path = tmp_path / "poison"
    for read in (
        read_torch_archive,
        read_pickle,
        lambda path: read_npz(path, ()),
        SampleReader,
        Manifest.load,
        lambda path: open_source(f"npz:{path}"),
    ):
        with pytest.raises(UserError, match=f"poison.*: .*{failing}") as caught:
            read(path)
        assert "readable npz" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(tmp_path, failing):
    """Else it would be moved aside, and the run go on from an older one."""
    folder = epath.Path(tmp_path / "checkpoints")
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "poison").write_bytes(b"x" * 9)
    content = '{"step": 7, "files": {"poison": {"bytes": 9, "sha256": "0"}}}'
    (tmp_path / "checksums").mkdir()
    (tmp_path / "checksums" / "7.json").write_text(content)
    with pytest.raises(UserError, match=f"poison: cannot be read: {failing}"):
        checksums.find_problem(folder, 7)


def test_sums_that_cannot_be_read_are_not_made_again(tmp_path, failing):
    unfinished = Unfinished(tmp_path, {})
    path = unfinished._folder / "poison.npz"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=f"poison.npz: cannot be read: {failing}"):
        unfinished.load("poison")


def test_a_shard_that_cannot_be_read_is_not_encoded_anew(records, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(resumable, "file_sha256", fail)
    identity = load_autoencoder("identity")
    with pytest.raises(PassingError, match="shard-00000.*: cannot be read: Input/output error"):
        encode(open_source("digits"), identity, records, shard_records=6)
    monkeypatch.setattr("data_pipeline.records.file_sha256", fail)
    with pytest.raises(PassingError, match="Input/output error; the disk"):
        verify(records)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, os.strerror(errno.EMFILE))])
def test_a_decoder_without_memory_rejects_nothing(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("PIL.Image.Image.resize", fail)
    with pytest.raises(PassingError, match="a/x.png: cannot be read: "):
        decoding.decode(Preprocessing("adm", 4), [EncodedImage(pictures(1)[0][0], 0, "a/x.png")])


def test_array_records_name_the_system(tmp_path, monkeypatch):
    spec = write_array_records(tmp_path / "set", pictures())
    source = open_source(spec)
    before = limited(0)
    try:
        with pytest.raises(PassingError, match="array_record.*Too many open files"):
            source.read_encoded(0, 12)
        with pytest.raises(PassingError, match="array_record.*Too many open files"):
            open_source(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
