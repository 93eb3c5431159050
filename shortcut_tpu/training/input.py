"""Opens a run's records and makes global batches of them.

Usage:
  records, manifest = open_records(config, autoencoder)
  with global_batches(config, records, mesh, start_step=0, num_steps=100) as batches:
    batch = next(batches)
"""

from collections.abc import Iterator
import contextlib
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline import staging
from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from data_pipeline.loader import make_loader
from data_pipeline.manifest import Manifest
from shortcut_tpu.objectives import make_objective
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.prefetch import Prefetch


def open_records(config: ConfigDict, autoencoder: Autoencoder) -> tuple[epath.PathLike, Manifest]:
    """The records of a config, copied near if it says so, and what they hold.

    Raises:
      UserError: they are missing, of another config or of another autoencoder.
    """
    records = staging.local(records_of(config), config.data.stage)
    manifest = Manifest.load(records)
    check_data(config, records_of(config), manifest)
    manifest.require_autoencoder(autoencoder.name, autoencoder.digest)
    return records, manifest


@contextlib.contextmanager
def global_batches(
    config: ConfigDict,
    records: epath.PathLike,
    mesh: Mesh,
    *,
    start_step: int,
    num_steps: int,
    corrupt: set[int] | None = None,
) -> Iterator[Iterator[Any]]:
    """Batches of the steps from `start_step` on, laid over the mesh ahead of their step.

    Args:
      config: of the run.
      records: the folder of records, near.
      mesh: of all devices.
      start_step: the number of steps that are done.
      num_steps: the number of steps that the last batch completes.
      corrupt: gets the indices of records that cannot be read.
    """
    loader = make_loader(
        records,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=partitioning.local_rows(mesh, config.batch_size),
        start_step=min(start_step, num_steps),
        num_steps=num_steps,
        num_threads=config.data.num_threads,
        prefetch=config.data.prefetch,
        max_corrupt=config.data.max_corrupt,
        corrupt=corrupt,
    )

    def put(batch: Any) -> Any:
        return partitioning.to_global(mesh, batch, config.batch_size)

    with contextlib.closing(loader), Prefetch(loader, put) as batches:
        yield batches


def needs_pairs(config: ConfigDict) -> bool:
    """Whether a config trains on `data.pairs`.

    Raises:
      UserError: it names no objective.
    """
    try:
        objective = make_objective(config.objective.to_dict())
    except ValueError as error:
        raise UserError(str(error)) from None
    return objective.needs_pairs or (objective.takes_pairs and bool(config.data.pairs))


def records_of(config: ConfigDict) -> str:
    """The folder of records that a config trains on.

    Raises:
      UserError: its objective needs pairs and none are named.
    """
    if not needs_pairs(config):
        return config.data.path
    if not config.data.pairs:
        raise UserError(
            f"{config.objective.name} trains on pairs: make them with `python -m "
            "shortcut_tpu.generate_pairs --workdir=TEACHER --output=DIR` and give "
            "--config.data.pairs=DIR"
        )
    return config.data.pairs


def check_data(config: ConfigDict, records: str, manifest: Manifest) -> None:
    """Compares the config with the records that it names.

    Raises:
      UserError: they differ; the message holds the overrides that mend it.
    """
    data = config.data
    if manifest.holds_pairs != needs_pairs(config):
        held = "pairs, which data.path may not" if manifest.holds_pairs else "no pairs"
        raise UserError(f"{records} holds {held}; data.pairs is for those")
    shape = manifest.latent_shape
    if len(shape) == 3 and shape[0] != shape[1]:
        raise UserError(f"{records} holds latents of shape {shape}, not square")
    asked = {key for key in ("every_steps", "sheet_every_steps") if config.evaluation[key]}
    if len(shape) != 3 and asked:
        zeros = " ".join(f"--config.evaluation.{key}=0" for key in sorted(asked))
        raise UserError(
            f"actions are no images to score or draw: give {zeros} and score with `python -m "
            "shortcut_tpu.rollout`"
        )
    said = data.to_dict() | {"autoencoder": data.autoencoder.partition(":")[0]}
    wrong = [f"--config.data.{k}={v}" for k, v in manifest.data_keys.items() if said[k] != v]
    if wrong:
        raise UserError(f"{records}: the records are not of this config; give {' '.join(wrong)}")
