"""The 2015 Inception computes what pytorch-fid's does, from each form of its weights.

The golden outputs are of pytorch-fid; `tests/golden/make_inception_goldens.py`.
"""

import hashlib
from pathlib import Path
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.util.tensor_util import make_tensor_proto

from data_pipeline.autoencoders.layers import run
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation import inception, inception_weights
from shortcut_tpu.evaluation.inception_weights import graph_scope, load_inception, read_arrays
from tests.end_to_end.imagenet_files import write_state_dict
from tests.golden.torch_weights import inception_images
from tests.golden.torch_weights import inception_weights as seeded_weights

ROOT = Path(__file__).parents[2]
SHAPES = inception.weight_shapes()


@pytest.fixture(scope="module")
def weights():
    return seeded_weights(SHAPES)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(ROOT / "tests/golden/inception.npz"))


def test_it_is_pytorch_fids(weights, golden):
    out = jax.jit(lambda w, x: run(inception.network, w, x))(weights, inception_images())
    for name in ("pool", "spatial", "logits"):
        np.testing.assert_allclose(getattr(out, name), golden[name], rtol=1e-4, atol=1e-4)
    # Images that differ have outputs that differ by far more than that.
    assert np.abs(golden["pool"][0] - golden["pool"][1]).max() > 0.1
    np.testing.assert_allclose(out.logits - out.unbiased_logits, [weights["fc.bias"]] * 2, 0, 1e-5)


def test_its_sizes_are_the_protocols():
    """17 x 17 x 7 spatial features at 299 pixels; torchvision counts 23,834,568 weights at
    1000 classes, and a class has 2049."""
    out = jax.eval_shape(
        lambda w, x: run(inception.network, w, x),
        {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()},
        jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32),
    )
    assert (out.pool.shape, out.spatial.shape) == ((1, 2048), (1, 2023))
    assert inception.SPATIAL_FEATURES == 2023
    trained = [shape for name, shape in SHAPES.items() if "running" not in name]
    assert sum(map(np.prod, trained)) == 23_834_568 + 8 * 2049


def write_pickle(path, weights):
    """As jax-fid nests and names them, with a head that only training needed."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    tree = {"AuxLogits": {"conv0": {"kernel": np.zeros(3)}}}
    for name, array in weights.items():
        *modules, last = name.split(".")
        if modules[-1] == "bn":
            last = names[last]
        elif last == "weight":
            last, array = "kernel", array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        branch = tree
        for module in modules:
            branch = branch.setdefault(module, {})
        branch[last] = array
    path.write_bytes(pickle.dumps(tree))


def write_graph(path, weights):
    """Constants as TensorFlow names them, among other nodes."""
    norm = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    graph = GraphDef()
    graph.node.add(name="ExpandDims/dim", op="Const")
    graph.node.add(name="mixed/join", op="Concat")
    for name, array in weights.items():
        *place, kind, last = name.split(".")
        module = ".".join(place)
        if name.startswith("fc."):
            constant = {"weight": "softmax/weights", "bias": "softmax/biases"}[last]
        elif kind == "bn":
            constant = f"{graph_scope(module)}/batchnorm/{norm[last]}"
        else:
            constant = f"{graph_scope(module)}/conv2d_params"
        if array.ndim > 1:
            array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        node = graph.node.add(name=constant, op="Const")
        node.attr["value"].tensor.CopyFrom(make_tensor_proto(array))
    path.write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("suffix", "write"),
    [("pickle", write_pickle), ("pb", write_graph), ("pth", write_state_dict)],
)
def test_each_form_gives_the_same_weights(tmp_path, weights, suffix, write):
    path = tmp_path / f"inception.{suffix}"
    write(path, weights)
    loaded = load_inception(path)
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.known_as, loaded.classifier) == (None, True)
    assert loaded.tensors.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded.tensors[name], array, err_msg=name)


def test_torch_files_may_hold_what_only_training_needed(monkeypatch, tmp_path, weights):
    path = tmp_path / "pt_inception.pth"
    path.write_bytes(b"")
    more = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7), "AuxLogits.fc.bias": np.zeros(3)}
    stored = {**weights, **more}
    monkeypatch.setitem(inception_weights._READERS, ".pth", inception_weights._read_torch)
    monkeypatch.setattr(inception_weights, "read_torch_archive", lambda _: stored)
    monkeypatch.setitem(inception_weights.KNOWN, hashlib.sha256(b"").hexdigest(), "nobody's")
    loaded = load_inception(path)
    assert loaded.tensors.keys() == weights.keys()
    assert loaded.known_as == "nobody's"
    del stored["fc.weight"]
    assert not load_inception(path).classifier
    del stored["Mixed_6d.branch_pool.bn.bias"]
    with pytest.raises(UserError, match=r"tensor Mixed_6d.branch_pool.bn.bias is missing"):
        load_inception(path)


def test_pickles_of_older_numpys_are_read(tmp_path):
    """numpy 2 renamed numpy.core; text pickles hold names without their lengths."""
    path = tmp_path / "tree.pickle"
    path.write_bytes(pickle.dumps({"a": np.arange(3.0)}, 0).replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read_arrays(path)["a"], np.arange(3.0))


def test_graph_scopes_are_tensorflows():
    expected = {
        "Conv2d_1a_3x3": "conv",
        "Conv2d_4a_3x3": "conv_4",
        "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
        "Mixed_5d.branch3x3dbl_3": "mixed_2/tower_1/conv_2",
        "Mixed_6a.branch3x3": "mixed_3/conv",
        "Mixed_6a.branch3x3dbl_2": "mixed_3/tower/conv_1",
        "Mixed_6d.branch1x1": "mixed_6/conv",
        "Mixed_6e.branch7x7dbl_5": "mixed_7/tower_1/conv_4",
        "Mixed_7a.branch3x3_2": "mixed_8/tower/conv_1",
        "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
        "Mixed_7b.branch3x3_2b": "mixed_9/tower/mixed/conv_1",
        "Mixed_7c.branch3x3dbl_3a": "mixed_10/tower_1/mixed/conv",
        "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
    }
    assert {module: graph_scope(module) for module in expected} == expected


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_age_are_read(tmp_path, protocol):
    tree = {
        "a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "c": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        "d": np.arange(3, dtype=">f4"),
        "e": np.array(5, np.int64),
    }
    path = tmp_path / "tree.pickle"
    path.write_bytes(pickle.dumps(tree, protocol))
    found = read_arrays(path)
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    for name in ("c", "d", "e"):
        np.testing.assert_array_equal(found[name], tree[name])


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        {"a": Runs(subprocess.check_output, ["touch", "PROOF"])},
        {"a": Runs(eval, "open('PROOF', 'w')")},
        {"a": Runs(getattr, "text", "upper")},
        {"a": np.array([Runs(eval, "open('PROOF', 'w')")], object)},
        {"a": [1.0]},
        {"a": "text"},
        {1: np.zeros(2)},
        [np.zeros(2)],
        {},
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="weights.pickle: "):
        read_arrays(path)
    assert not (tmp_path / "PROOF").exists()


def test_damaged_files_are_named(tmp_path):
    whole = pickle.dumps({"a": np.arange(100.0)})
    path = tmp_path / "weights.pickle"
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="weights.pickle: is damaged"):
            read_arrays(path)
    for name, message in (
        ("w.bin", "its name ends in none of .pth, .pt, .pickle, .pkl, .pb"),
        ("w.pb", "w.pb: cannot be read: No such file"),
        ("w.pickle?dl=1", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            load_inception(tmp_path / name)
    (tmp_path / "w.pb").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match="w.pb: is damaged, or no TensorFlow graph"):
        load_inception(tmp_path / "w.pb")
    (tmp_path / "w.pb").write_bytes(b"")
    with pytest.raises(UserError, match="tensor Conv2d_1a_3x3.conv.weight is missing"):
        load_inception(tmp_path / "w.pb")


def test_goldens_are_what_torch_computes_here(tmp_path, golden):
    pytest.importorskip("torch", reason="the live comparison needs torch")
    pytest.importorskip("pytorch_fid", reason="the live comparison needs pytorch-fid")
    code = (
        "import numpy, sys; from tests.golden import make_inception_goldens as make;"
        "numpy.savez(sys.argv[1], **make.outputs(make.network(), make.inception_images()))"
    )
    path = tmp_path / "live.npz"
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=ROOT)
    for key, value in np.load(path).items():
        np.testing.assert_allclose(value, golden[key], rtol=1e-4, atol=1e-4)
