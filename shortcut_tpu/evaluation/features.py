"""Feature functions of the protocols: from images to feature vectors.

Usage:
  features = load_features(get_protocol("adm"), "inception:pt_inception-2015-12-05-6726825d.pth")
  out = jax.jit(features.compute)(features.weights, images)  # {"pool": [n, 2048], ...}
"""

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders.layers import abstract, run
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation import dinov2, efficientnet, inception
from shortcut_tpu.evaluation.dinov2 import load_dinov2
from shortcut_tpu.evaluation.efficientnet import load_efficientnet
from shortcut_tpu.evaluation.inception_weights import load_inception
from shortcut_tpu.evaluation.protocols import Protocol

# What `Features.compute` gives of each image: the vectors that the distances are between; those
# with places in them, of the sFID; and the classifier's logits, of the Inception Score.
POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"

Outputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A protocol's network with its weights.

    Attributes:
      protocol: says how images are prepared and which network it is.
      weights: passed to `compute`, so that a compiled program does not hold them.
      digest: SHA-256 of the weights' file; empty where there are none.
      known_as: which public file that is, if it is known.
      classifier: whether there are logits.
      remark: what a reader of numbers by it must know.
    """

    protocol: Protocol
    weights: Mapping[str, np.ndarray | jax.Array] = dataclasses.field(repr=False)
    digest: str = ""
    known_as: str | None = None
    classifier: bool = False
    remark: str = ""

    def compute(self, weights: Mapping[str, jax.Array], images: jax.Array) -> Outputs:
        """Images [n, H, W, C] in about [-1, 1] to float32 vectors by name; pure, for any jit."""
        prepared = self.protocol.prepare(images)
        if self.protocol.network == "pixels":
            return {POOL: prepared.reshape(len(prepared), -1)}
        if self.protocol.network == "efficientnet":
            return {POOL: run(efficientnet.network, weights, prepared)}
        if self.protocol.network == "dinov2":
            network = functools.partial(dinov2.network, dinov2.Size.of(weights))
            return {POOL: run(network, weights, prepared)}
        out = run(inception.network, weights, prepared)
        found = {POOL: out.pool, SPATIAL: out.spatial}
        return found | {LOGITS: out.unbiased_logits} if self.classifier else found

    def sizes(self, image_shape: tuple[int, ...]) -> dict[str, int]:
        """The length of each vector for images of shape [H, W, C]."""
        shapes = jax.eval_shape(
            self.compute,
            {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in self.weights.items()},
            jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
        )
        return {name: array.shape[1] for name, array in shapes.items()}


@functools.cache
def abstract_features(protocol: Protocol) -> Features:
    """A protocol's network with shapes for weights: to be compiled, and for its `sizes`."""
    shapes = {
        "pixels": lambda: {},
        "efficientnet": efficientnet.weight_shapes,
        "dinov2": dinov2.weight_shapes,
        "inception": inception.weight_shapes,
    }[protocol.network]()
    return Features(protocol, abstract(shapes), classifier=protocol.network == "inception")


def load_features(protocol: Protocol, spec: str = "") -> Features:
    """Loads the network that a protocol measures on.

    Args:
      protocol: says which.
      spec: NAME or NAME:FILE; FILE, the weights, may be left out where a package carries them, and
        all of it where nothing is to choose.

    Raises:
      UserError: the protocol measures on another network, or the weights are missing, damaged or
        another network's.
    """
    name, _, path = spec.partition(":")
    if name and name != protocol.network:
        raise UserError(
            f"--features={spec}: protocol {protocol.name} measures on {protocol.network}"
        )
    if protocol.network == "pixels":
        if path:
            raise UserError(f"--features={spec}: pixels have no weights")
        return Features(protocol, {})
    if protocol.network == "efficientnet":
        packaged = load_efficientnet(path)
        return Features(protocol, packaged.tensors, packaged.digest, packaged.known_as)
    if protocol.network == "dinov2":
        if not path:
            raise UserError(
                f"protocol {protocol.name} needs DINOv2's weights: --features=dinov2:FILE, the "
                "model.safetensors of facebook/dinov2-large"
            )
        named = load_dinov2(path)
        remark = "" if named.size == dinov2.LARGE else "published FD-DINOv2 is of ViT-L/14"
        return Features(protocol, named.tensors, named.digest, remark=remark)
    if not path:
        raise UserError(
            f"protocol {protocol.name} needs Inception's weights: --features=inception:FILE, one of"
            " pytorch-fid's .pth, jax-fid's .pickle, ADM's classify_image_graph_def.pb"
        )
    weights = load_inception(path)
    return Features(protocol, weights.tensors, weights.digest, weights.known_as, weights.classifier)
