"""Checks the files that an evaluation needs from the user, before a run starts.

Usage:
  require_named(config)       # in a launcher: the files may be where the pod is
  require_readable(config, autoencoder)    # on the machine that will read them
"""

from ml_collections import ConfigDict

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.evaluator import image_shape
from shortcut_tpu.evaluation.features import POOL, load_features
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.evaluation.reference import load_reference
from shortcut_tpu.training.experiment import latent_shape

_FILES = {
    "inception": {
        "features": "inception:FILE, Inception's weights (pytorch-fid's .pth, jax-fid's .pickle or "
        "ADM's classify_image_graph_def.pb)",
        "reference": "FILE, statistics of real images (ADM's VIRTUAL_imagenet256_labeled.npz, or "
        "what `python -m shortcut_tpu.reference_stats` makes)",
    },
    "dinov2": {
        "features": "dinov2:FILE, DINOv2's weights (model.safetensors of facebook/dinov2-large)",
        "reference": "FILE, statistics of real images, which `python -m "
        "shortcut_tpu.reference_stats` makes",
    },
}


def require_named(config: ConfigDict) -> None:
    """Refuses a config whose distance has no weights or no statistics.

    Raises:
      UserError: one is not named, or the protocol is none.
    """
    evaluation = config.evaluation
    files = _FILES.get(get_protocol(evaluation.protocol).network, {})
    missing = [f"--config.evaluation.{k}={v}" for k, v in files.items() if not evaluation[k]]
    if missing:
        raise UserError(
            f"evaluation.protocol={evaluation.protocol} needs {' and '.join(missing)}; or train "
            "without evaluations, --config.evaluation.every_steps=0, and score later with "
            "`python -m shortcut_tpu.evaluate`"
        )


def require_readable(config: ConfigDict, autoencoder: Autoencoder) -> None:
    """Reads the files that a config's evaluation names, and keeps nothing of them.

    Args:
      config: of the run.
      autoencoder: decodes its samples.

    Raises:
      UserError: one is not named, missing, damaged or of something else.
    """
    require_named(config)
    evaluation = config.evaluation
    features = load_features(get_protocol(evaluation.protocol), evaluation.features)
    if evaluation.reference:
        shape = image_shape(autoencoder, latent_shape(config.data))
        load_reference(evaluation.reference, features, features.sizes(shape)[POOL])
