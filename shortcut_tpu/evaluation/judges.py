"""The frozen networks that an objective trains by: decoder, features and real moments of each.

Usage:
  judges = load_judges(config, autoencoder)          # () for an objective that needs none
  experiment = Experiment.from_config(config, jax.devices(), autoencoder.scale, judges)
  judges = abstract_judges(config, latent_scale)     # shapes, to compile without any file
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipeline.autoencoders import Autoencoder, abstract_autoencoder
from data_pipeline.autoencoders.layers import at_precision
from shortcut_tpu.evaluation.evaluator import find_reference, image_shape
from shortcut_tpu.evaluation.features import POOL, Features, abstract_features, load_features
from shortcut_tpu.evaluation.images import one_mesh
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.objectives import Judge
from shortcut_tpu.objectives.frechet import Real
from shortcut_tpu.training.experiment import latent_shape
from shortcut_tpu.training.latents import Scaling
from shortcut_tpu.training.parts import make_parts


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedFeatures:
    """From latents as the model makes them to a protocol's feature vectors.

    Products take one pass of bfloat16 on a TPU, as the generator's own do: in float32 the decoder
    alone would take several times as long as the rest of a step.
    """

    autoencoder: Autoencoder
    features: Features
    scaling: Scaling

    @property
    def weights(self) -> Any:
        """Of the decoder and of the network."""
        return dict(self.autoencoder.decoder_weights), dict(self.features.weights)

    def __call__(self, weights: Any, x1: jax.Array) -> jax.Array:
        decoder, network = weights
        with at_precision(jax.lax.Precision.DEFAULT):
            images = self.autoencoder.decode_with(decoder, self.scaling.stored(x1))
            return self.features.compute(network, jnp.asarray(images))[POOL]


def load_judges(config: ConfigDict, autoencoder: Autoencoder) -> tuple[Judge, ...]:
    """The judges that a config's objective needs, as numpy arrays.

    Args:
      config: of the run, with the statistics of its latents.
      autoencoder: decodes its samples.

    Raises:
      UserError: weights or statistics are missing, damaged or of something else.
    """
    return tuple(_loaded(config, autoencoder))


def _loaded(config: ConfigDict, autoencoder: Autoencoder) -> Iterator[Judge]:
    shape = image_shape(autoencoder, latent_shape(config.data))
    for name, spec, path in make_parts(config).objective.judged_by:
        features = load_features(get_protocol(name), spec)
        reference = find_reference(path, config.data, autoencoder, features, shape, one_mesh())
        real = Real.of(reference.pool.mean, reference.pool.covariance)
        yield _judge(config, autoencoder, features, real, autoencoder.scale)


def abstract_judges(config: ConfigDict, latent_scale: float) -> tuple[Judge, ...]:
    """Shapes of the judges that a config's objective needs, to compile its step.

    Args:
      config: of the run.
      latent_scale: the autoencoder's factor between stored latents and those that the model sees.
    """
    return tuple(_abstract(config, latent_scale))


def _abstract(config: ConfigDict, latent_scale: float) -> Iterator[Judge]:
    autoencoder = abstract_autoencoder(config.data.autoencoder, config.data.channels)
    for name, _, _ in make_parts(config).objective.judged_by:
        features = abstract_features(get_protocol(name))
        length = features.sizes(image_shape(autoencoder, latent_shape(config.data)))[POOL]
        yield _judge(config, autoencoder, features, Real.abstract(length), latent_scale)


def _judge(
    config: ConfigDict, autoencoder: Autoencoder, features: Features, real: Real, scale: float
) -> Judge:
    compute = DecodedFeatures(autoencoder, features, Scaling.of(config.data, scale))
    return Judge(features.protocol.name, compute, compute.weights, real)
