"""Reads the public weights of the 2015 Inception in each form they are published in.

| file | from |
|---|---|
| `pt_inception-2015-12-05-6726825d.pth` | pytorch-fid, torch-fidelity |
| `inception_v3_weights_fid.pickle` | jax-fid, the official shortcut-models code |
| `classify_image_graph_def.pb` | TensorFlow, ADM's evaluator |

All are the same network; torch is not needed for the first, nor TensorFlow for the last, and no
pickle is run.

Usage:
  weights = load_inception("pt_inception-2015-12-05-6726825d.pth")
  out = run(inception.network, weights.tensors, images)
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from data_pipeline.autoencoders.weights import fitted, sha256
from data_pipeline.errors import UserError
from data_pipeline.pickles import read_pickle
from data_pipeline.system_errors import unreadable
from data_pipeline.torch_archive import read_torch_archive
from shortcut_tpu.evaluation import inception

# SHA-256 of files whose digest several public repositories state.
KNOWN = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
        "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
    ),
    "4e030efa5bccac3222d975f658d1884f9e00fab24f2812082884539220b90d77": (
        "jax-fid's inception_v3_weights_fid.pickle"
    ),
}

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
# By the network's name of an array: TensorFlow's in the graph, jax-fid's in the pickle.
_GRAPH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_PICKLE_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionWeights:
    """Weights of `inception.network`.

    Attributes:
      tensors: float32, by name.
      digest: the file's SHA-256.
      known_as: which public file that is, if it is one of KNOWN.
      classifier: whether the file holds the last layer, which only the Inception Score needs.
    """

    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    digest: str
    known_as: str | None
    classifier: bool


def load_inception(path: epath.PathLike) -> InceptionWeights:
    """Loads a file in any of the forms above, told apart by its name's ending.

    Args:
      path: local or `gs://`; `.pth`, `.pt`, `.pickle`, `.pkl` or `.pb`.

    Raises:
      UserError: the file is missing or damaged, is of no form that is known, or holds another
        network.
    """
    # A browser keeps the query of a download in the name.
    suffix = epath.Path(str(path).split("?")[0]).suffix
    if suffix not in _READERS:
        raise UserError(f"{path}: its name ends in none of {', '.join(_READERS)}")
    tensors = _READERS[suffix](path)
    shapes = inception.weight_shapes()
    classifier = {name for name in shapes if name.startswith("fc.")}
    complete = classifier <= tensors.keys()
    if not complete:
        tensors |= {name: np.zeros(shapes[name], np.float32) for name in classifier}
    digest = sha256([path])
    return InceptionWeights(fitted(path, tensors, shapes), digest, KNOWN.get(digest), complete)


def _read_torch(path: epath.PathLike) -> dict[str, np.ndarray]:
    return {
        name: tensor
        for name, tensor in read_torch_archive(path).items()
        # Counters and the head that training needed.
        if not name.endswith("num_batches_tracked") and not name.startswith("AuxLogits.")
    }


def _read_pickle(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Flax's nested names and [h, w, in, out] kernels, as jax-fid has them."""
    tree = read_arrays(path)
    tree.pop("AuxLogits", None)
    flat = {name: array for name, array in _leaves(tree) if isinstance(array, np.ndarray)}
    to_flax = {"fc.weight": "fc.kernel", "fc.bias": "fc.bias"}
    for module in _modules():
        to_flax[f"{module}.conv.weight"] = f"{module}.conv.kernel"
        for ours, theirs in _PICKLE_NORM.items():
            to_flax[f"{module}.bn.{ours}"] = f"{module}.bn.{theirs}"
    return {ours: _torch_layout(flat[theirs]) for ours, theirs in to_flax.items() if theirs in flat}


def read_arrays(path: epath.PathLike) -> dict[str, Any]:
    """Reads a pickled dictionary, nested by names, whose leaves are arrays.

    Raises:
      UserError: the file is missing or damaged, holds something else, or names code.
    """
    return _arrays(path, read_pickle(path), "")


def _arrays(path: epath.PathLike, content: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no dictionary of arrays{place and f' at {place:.60}'}")
    result: dict[str, Any] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: holds an entry {name!r:.60}, which is no name")
        if isinstance(value, np.ndarray):
            result[name] = value.astype(value.dtype.newbyteorder("="), copy=False)
        else:
            result[name] = _arrays(path, value, f"{place}/{name}".lstrip("/"))
    return result


def _leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _read_graph(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The constants of TensorFlow's graph, by their public names."""
    # TensorBoard carries the message types and needs no TensorFlow for them.
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.util.tensor_util import make_ndarray

    graph = GraphDef()
    try:
        graph.ParseFromString(epath.Path(path).read_bytes())
        constants = {
            node.name: make_ndarray(node.attr["value"].tensor)
            for node in graph.node
            if node.op == "Const" and node.name.startswith(("conv", "mixed", "softmax"))
        }
    except OSError as error:
        raise unreadable(path, error) from None
    except (DecodeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged, or no TensorFlow graph: {error}") from None
    to_graph = {"fc.weight": "softmax/weights", "fc.bias": "softmax/biases"}
    for module in _modules():
        scope = graph_scope(module)
        to_graph[f"{module}.conv.weight"] = f"{scope}/conv2d_params"
        for ours, theirs in _GRAPH_NORM.items():
            to_graph[f"{module}.bn.{ours}"] = f"{scope}/batchnorm/{theirs}"
    return {
        ours: _torch_layout(constants[theirs])
        for ours, theirs in to_graph.items()
        if theirs in constants
    }


def graph_scope(module: str) -> str:
    """Where TensorFlow's graph keeps a convolution, such as `mixed_6/tower/conv_1`.

    Args:
      module: the network's name of it, such as `Mixed_6d.branch7x7_2`.
    """
    if module in _STEM:
        return _numbered("conv", _STEM.index(module))
    block, branch = module.removeprefix("Mixed_").split(".")
    scope = _numbered("mixed", _MIXED.index(block))
    if branch == "branch_pool":
        return f"{scope}/tower_2/conv"
    kernel, _, place = branch.removeprefix("branch").partition("_")
    if not place:
        return f"{scope}/conv"
    second = kernel in ("7x7dbl", "7x7x3") or (kernel == "3x3dbl" and block != "6a")
    tower = f"{scope}/{'tower_1' if second else 'tower'}"
    if place[-1] in "ab":
        return f"{tower}/mixed/{_numbered('conv', 'ab'.index(place[-1]))}"
    return f"{tower}/{_numbered('conv', int(place) - 1)}"


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def _modules() -> list[str]:
    """The network's convolutions, each with its normalisation."""
    end = ".conv.weight"
    return [name.removesuffix(end) for name in inception.weight_shapes() if name.endswith(end)]


def _torch_layout(array: np.ndarray) -> np.ndarray:
    """Kernels [h, w, in, out] and matrices [in, out] with their outputs first."""
    if array.ndim == 4 and array.shape[:3] != (1, 1, 1):
        return array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array.reshape(-1)


_READERS = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pickle": _read_pickle,
    ".pkl": _read_pickle,
    ".pb": _read_graph,
}
