"""Whatever bytes lie where ours should, the answer is a right result or one clear error."""

import json
from pathlib import Path
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME, Manifest
from data_pipeline.records import LatentReader, verify
from data_pipeline.sources import open_source
from shortcut_tpu.cli import config as config_lib

# The same examples every time: a suite that fails now and then teaches nobody.
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("records")
    encode(open_source("digits"), load_autoencoder("identity"), path, shard_records=1000)
    return path


def attempt(call):
    """What a call returns, and the line of its UserError; one of them is None."""
    try:
        return call(), None
    except UserError as error:
        line = str(error)
    assert line
    assert "Traceback" not in line
    return None, line


def places(value, path=()):
    """Every place in a JSON value, the whole first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@FUZZ
@given(data=st.data())
def test_any_value_anywhere_in_a_manifest(folder, tmp_path, data):
    manifest = json.loads((folder / FILE_NAME).read_text())
    path = data.draw(st.sampled_from(list(places(manifest))))
    text = json.dumps(replaced(manifest, path, data.draw(JSON)))
    for shard in folder.glob("*.array_record"):
        if not (tmp_path / shard.name).exists():
            (tmp_path / shard.name).symlink_to(shard)
    (tmp_path / FILE_NAME).write_text(text)
    batch, _ = attempt(lambda: LatentReader(tmp_path).read([0, 1796]))
    assert batch is None or len(batch["mean"]) == len(batch["label"]) == 2


@FUZZ
@given(content=st.binary(max_size=200), keep=st.integers(0, 2000))
def test_any_bytes_for_a_manifest(folder, tmp_path, content, keep):
    whole = (folder / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[:keep] + content)
    found, _ = attempt(lambda: Manifest.load(tmp_path))
    assert found is None or found == Manifest.load(folder)


@settings(FUZZ, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_any_damage_to_a_shard(folder, tmp_path, place, flip, cut):
    """A record comes back as it was written or not at all, and `verify` finds every damage."""
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    target = sorted(tmp_path.glob("*.array_record"))[0]
    content = bytearray(target.read_bytes())
    where = int(place * len(content))
    if cut:
        del content[where:]
    else:
        content[where] ^= flip
    target.write_bytes(content)
    with pytest.raises(UserError):
        verify(tmp_path)
    expected = LatentReader(folder).read(range(1797))
    found, line = attempt(lambda: LatentReader(tmp_path).read(range(1797)))
    if found is None:
        assert target.name in line
    else:
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


@FUZZ
@given(content=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_the_config_of_a_workdir(tmp_path, content):
    (tmp_path / config_lib.CONFIG_FILE).write_bytes(content)
    attempt(lambda: config_lib.restore(tmp_path))


@FUZZ
@given(key=st.text(max_size=20), value=st.text(max_size=20))
def test_any_override(key, value):
    argument = f"--config.{key}={value}"
    arguments = ["train", "--config=digits", argument]
    prepared, _ = attempt(lambda: config_lib.prepare_arguments(arguments))
    if prepared is not None:
        assert prepared[2] == argument
        assert key.partition("=")[0] in dict(config_lib.leaves(config_lib.load("digits")))
