"""Files of torch are read to the bit, and run nothing; the golden ones were written by torch."""

import argparse
from collections import OrderedDict
import io
from pathlib import Path
import pickle
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.torch_archive import read_torch_archive, read_torch_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_every_type_and_stride_is_read_to_the_bit(name):
    shared = np.arange(24, dtype=np.float32)
    expected = {
        "contiguous": shared.reshape(2, 3, 4),
        "permuted": shared.reshape(2, 3, 4).transpose(2, 0, 1),
        "sliced": shared.reshape(4, 6)[1:, ::2],
        "expanded": np.full((3, 2), 7, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(5, np.int64),
        "half": np.array([0.5, -65504], np.float16),
        "bfloat16": np.array([1.5, 3.0e38], jnp.bfloat16),
        "double": np.array([1 / 3]),
        "bytes": np.array([0, 255], np.uint8),
        "flags": np.array([True, False]),
    }
    tensors = read_torch_archive(GOLDEN / name)
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype, key
        np.testing.assert_array_equal(tensors[key], value, err_msg=key, strict=True)


def test_a_state_dict_is_read_though_it_carries_more_than_tensors():
    tensors = read_torch_archive(GOLDEN / "torch_module.pth")
    assert list(tensors) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    np.testing.assert_array_equal(tensors["running_var"], np.ones(3, np.float32))


def archive(path: Path, pickled: bytes, compression=zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('_', '/')}", content)
    return path


class Evil:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (exec, ("import pathlib; pathlib.Path(MARK).touch()",), "builtins.exec"),
        (getattr, (dict, "fromkeys"), "builtins.getattr"),
        (np.frombuffer, (b"1234",), "numpy.frombuffer"),
        (shutil.rmtree, ("MARK",), "shutil.rmtree"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_names_of_code_are_refused_and_nothing_is_called(
    tmp_path, function, arguments, named, legacy
):
    mark = tmp_path / "mark"
    arguments = [a.replace("MARK", repr(str(mark))) if isinstance(a, str) else a for a in arguments]
    content = pickle.dumps({"weight": Evil(function, *arguments)}, protocol=2)
    path = tmp_path / "evil.pth"
    path.write_bytes(content) if legacy else archive(path, content)
    # Protocol 2 writes the older names, `__builtin__`.
    with pytest.raises(UserError, match=rf"evil.pth: names \S+\.{named.split('.')[1]}, which"):
        read_torch_archive(path)
    assert not mark.exists()


def tensor_pickle(shape, strides, offset=0, size=4, kind="FloatStorage", key="0") -> bytes:
    """What torch writes for {"w": tensor}, from its description."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def numbers(values) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    storage += text(key) + text("cpu") + number(size) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape)
    call += numbers(strides) + b"\x89}tR"
    return b"\x80\x02}" + text("w") + call + b"s."


def test_a_handwritten_file_reads_as_torchs_own(tmp_path):
    path = archive(
        tmp_path / "w.pth", tensor_pickle((2,), (2,), 1), data_0=np.arange(4, dtype="<f4").tobytes()
    )
    np.testing.assert_array_equal(read_torch_archive(path)["w"], np.array([1, 3], np.float32))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor_pickle((3,), (2,)), "tensor w reaches beyond its storage"),
        (tensor_pickle((1,), (1,), offset=4), "tensor w reaches beyond its storage"),
        (tensor_pickle((2,), (-1,), offset=1), "not described as torch does"),
        (tensor_pickle((2,), (1, 1)), "not described as torch does"),
        (tensor_pickle((2,), (1,), size=5), "tensor w is truncated: 16 bytes of 20"),
        (tensor_pickle((2,), (1,), kind="QInt8Storage"), "names torch.QInt8Storage"),
        (tensor_pickle((2,), (1,), key="1"), "damaged.*data/1"),
        (pickle.dumps({"w": 3}, protocol=2), "holds under 'w' something other than a tensor"),
        (pickle.dumps([1], protocol=2), "holds no dictionary of tensors"),
        (pickle.dumps({}, protocol=2), "holds no dictionary of tensors"),
        (b"\x80\x02R.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_what_is_not_a_dictionary_of_whole_tensors_is_refused(tmp_path, pickled, message):
    path = archive(tmp_path / "w.pth", pickled, data_0=bytes(16))
    with pytest.raises(UserError, match=f"w.pth: .*{message}"):
        read_torch_archive(path)


def test_compressed_and_big_endian_archives_are_refused(tmp_path):
    pickled = tensor_pickle((2,), (1,))
    path = archive(tmp_path / "w.pth", pickled, zipfile.ZIP_DEFLATED, data_0=bytes(16))
    with pytest.raises(UserError, match="compressed"):
        read_torch_archive(path)
    path = archive(tmp_path / "w.pth", pickled, data_0=bytes(16), byteorder=b"big")
    with pytest.raises(UserError, match="big-endian"):
        read_torch_archive(path)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / "w.pth"
    for size in range(0, len(whole), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="w.pth: "):
            read_torch_archive(path)


def test_a_flipped_byte_in_an_archives_numbers_is_noticed(tmp_path):
    raw = np.arange(4, dtype="<f4").tobytes()
    path = archive(tmp_path / "w.pth", tensor_pickle((4,), (1,)), data_0=raw)
    path.write_bytes(path.read_bytes().replace(raw, bytes(reversed(raw))))
    with pytest.raises(UserError, match="damaged.*CRC"):
        read_torch_archive(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="absent.pth: cannot be read: No such file"):
        read_torch_archive(tmp_path / "absent.pth")
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(2))
    (tmp_path / "w.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="w.npz: is a zip archive, but not one that torch saved"):
        read_torch_archive(tmp_path / "w.npz")
    (tmp_path / "w.txt").write_text("weights, honestly")
    with pytest.raises(UserError, match="w.txt: "):
        read_torch_archive(tmp_path / "w.txt")


def inner(pickled: bytes) -> bytes:
    """A pickle without its header and its end, to stand in another."""
    return pickled[2:-1]


def of_parts(**parts: bytes) -> bytes:
    """A pickled dictionary of pickled parts."""
    items = b"".join(b"X" + len(n).to_bytes(4, "little") + n.encode() + p for n, p in parts.items())
    return b"\x80\x02}(" + items + b"u."


ARGUMENTS = argparse.Namespace(
    model="DiT-XL/2", lr=np.float64(1e-4), sizes=(3, 4), extra=OrderedDict(a=[1]), out=Path("/x")
)


@pytest.mark.parametrize("numpy_core", ["numpy.core", "numpy._core"])
def test_a_trainings_checkpoint_gives_its_average(tmp_path, numpy_core):
    """As DiT's and SiT's train.py write it: {model, ema, opt, args}."""
    arguments = pickle.dumps(ARGUMENTS, protocol=2)
    arguments = arguments.replace(b"numpy._core", numpy_core.encode())
    optimizer = pickle.dumps({"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}, protocol=2)
    content = of_parts(
        model=inner(tensor_pickle((2,), (2,), 0)),
        ema=inner(tensor_pickle((2,), (2,), 1)),
        opt=inner(optimizer),
        args=inner(arguments),
    )
    path = archive(tmp_path / "0400000.pt", content, data_0=np.arange(4, dtype="<f4").tobytes())
    found = read_torch_checkpoint(path)
    assert found.taken == "ema"
    np.testing.assert_array_equal(found.weights["w"], np.array([1, 3], np.float32))
    assert found.arguments["model"] == "DiT-XL/2" and found.arguments["sizes"] == (3, 4)
    # Where exact tensors by name are wanted, it is none.
    with pytest.raises(UserError, match="holds under 'model' something other than a tensor"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    ("parts", "taken"),
    [(("model",), "model"), (("state_dict", "opt"), "state_dict"), (("model", "ema"), "ema")],
)
def test_the_best_weights_there_are_are_taken(tmp_path, parts, taken):
    content = of_parts(**dict.fromkeys(parts, inner(tensor_pickle((4,), (1,)))))
    path = archive(tmp_path / "x.pt", content, data_0=bytes(16))
    assert read_torch_checkpoint(path).taken == taken


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    path = archive(tmp_path / "x.pt", pickle.dumps({"opt": {}, "epoch": 3}, protocol=2))
    with pytest.raises(UserError, match="holds opt, epoch, and none of ema"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("part", ["args", "ema", "opt"])
def test_a_checkpoint_runs_nothing_either(tmp_path, part):
    mark = tmp_path / "mark"
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    evil = pickle.dumps(Evil(exec, code), protocol=2)
    content = of_parts(model=inner(tensor_pickle((4,), (1,))), **{part: inner(evil)})
    with pytest.raises(UserError, match=r"names \S+\.exec, which"):
        read_torch_checkpoint(archive(tmp_path / "x.pt", content, data_0=bytes(16)))
    assert not mark.exists()


def test_names_of_wrapped_modules_are_those_within(tmp_path):
    content = tensor_pickle((4,), (1,)).replace(
        b"X" + (1).to_bytes(4, "little") + b"w", b"X" + (8).to_bytes(4, "little") + b"module.w"
    )
    path = archive(tmp_path / "x.pt", content, data_0=bytes(16))
    assert list(read_torch_checkpoint(path).weights) == ["w"]
