"""Samples of a run as images, for notebooks and scripts.

Usage:
  run = load_run("runs/digits")
  images = sample(run, labels=[3, 3, 7], num_steps=1)
  images = interpolate(run, labels=[3, 7], points=8, num_steps=1)
"""

from collections.abc import Sequence
import functools

import numpy as np

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.generator import Generator, make_generator, unit_to_uint8
from shortcut_tpu.evaluation.interpolation import InterpolatingGenerator
from shortcut_tpu.runs.loading import Run
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.experiment import Experiment


def generator_of(
    run: Run, seed: int | None = None, guidance: Guidance | None = None, points: int | None = None
) -> Generator:
    """A run's generator, which keeps what it has compiled for the next call.

    Args:
      run: the run to sample from.
      seed: of the noises; the run's by default.
      guidance: classifier-free guidance; the config's by default.
      points: between two noises, for rows of interpolations.
    """
    return _generator(run.experiment, run.autoencoder, seed, guidance, points)


@functools.lru_cache(maxsize=4)
def _generator(
    experiment: Experiment,
    autoencoder: Autoencoder,
    seed: int | None,
    guidance: Guidance | None,
    points: int | None,
) -> Generator:
    if points is None:
        return make_generator(experiment, autoencoder, seed, guidance)
    config = experiment.config
    return InterpolatingGenerator(
        experiment,
        autoencoder,
        guidance=Guidance.of(config.evaluation) if guidance is None else guidance,
        seed=config.seed if seed is None else seed,
        points=points,
    )


def sample(
    run: Run,
    labels: Sequence[int],
    num_steps: int,
    *,
    seed: int | None = None,
    guidance: Guidance | None = None,
) -> np.ndarray:
    """One image for each label -> [len(labels), H, W, C] uint8.

    Image i starts from the same noise for any label and any number of steps.

    Args:
      run: the run to sample from.
      labels: class numbers.
      num_steps: sampling steps.
      seed: of the noises; the run's by default.
      guidance: classifier-free guidance; the config's by default.
    """
    images = generator_of(run, seed, guidance)(run.params, range(len(labels)), labels, num_steps)
    return unit_to_uint8(images)


def interpolate(
    run: Run,
    labels: Sequence[int],
    points: int,
    num_steps: int,
    *,
    seed: int | None = None,
    guidance: Guidance | None = None,
) -> np.ndarray:
    """A row of images between two noises for each label -> [len(labels), points, H, W, C] uint8.

    Args:
      run: the run to sample from.
      labels: class numbers.
      points: images in a row, those of both noises included.
      num_steps: sampling steps.
      seed: of the noises; the run's by default.
      guidance: classifier-free guidance; the config's by default.

    Raises:
      UserError: there are fewer than two points.
    """
    if points < 2:
        raise UserError(f"points={points}: an interpolation has two ends")
    generator = generator_of(run, seed, guidance, points)
    repeated = np.repeat(np.asarray(labels), points)
    images = generator(run.params, range(len(repeated)), repeated, num_steps)
    return unit_to_uint8(images).reshape(len(labels), points, *images.shape[1:])
