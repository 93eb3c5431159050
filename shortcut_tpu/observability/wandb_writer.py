"""Curves, sheets and texts of a run for Weights & Biases, as a CLU metric writer.

Runs of one workdir are one run there, however often it starts. WANDB_MODE=offline keeps all in the
workdir, for `wandb sync`.

Usage:
  writer = WandbWriter(epath.Path("runs/digits"), project="digits")
  writer.write_scalars(100, {"train/loss": 0.5})
  writer.close()
"""

from collections.abc import Mapping
from pathlib import Path
import tempfile
from typing import Any
import uuid

from clu import metric_writers
from etils import epath
import numpy as np

from data_pipeline.atomic_files import in_bucket, write_text
from data_pipeline.errors import UserError

_STEP = "step"
_ID = "wandb_run"


class WandbWriter(metric_writers.MetricWriter):
    """Writes to Weights & Biases; what that has no form for is left out."""

    def __init__(self, workdir: epath.Path, project: str):
        """Starts or resumes the workdir's run.

        Args:
          workdir: of the run; gets what an offline run leaves, unless in a bucket.
          project: of the user's, made if there is none.

        Raises:
          UserError: the package is not installed, or the user is not logged in.
        """
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb={project}: wandb is not installed; pip install 'shortcut_tpu[wandb]'"
            ) from None
        self._images, self._teardown = wandb.Image, wandb.teardown
        folder = tempfile.mkdtemp(prefix="wandb-") if in_bucket(workdir) else str(Path(workdir))
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(workdir),
                resume="allow",
                name=workdir.name,
                dir=folder,
                settings=settings,
            )
        except wandb.errors.Error as error:
            why = " ".join(str(error).split())
            raise UserError(
                f"train.wandb={project}: {why}; run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        # A run that was killed goes on from an earlier step, and wandb's own count never goes back.
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log({**{name: float(value) for name, value in scalars.items()}, _STEP: step})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        pages = {
            name: [self._images(np.asarray(image)) for image in np.atleast_1d(batch)]
            for name, batch in images.items()
        }
        self._run.log({**pages, _STEP: step})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._run.summary.update(dict(texts))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        # A start may bring other values, such as more steps.
        self._run.config.update(dict(hparams), allow_val_change=True)

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        pass

    def write_videos(self, step: int, videos: Any) -> None:
        pass

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
        pass

    def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None:
        pass

    def flush(self) -> None:
        """Nothing: wandb's own process has taken all that was logged."""

    def close(self) -> None:
        self._run.finish()
        # Its process writes the last of it when it ends, and ours may end without waiting.
        self._teardown()


def _run_id(workdir: epath.Path) -> str:
    """The run's name for wandb, made once a workdir."""
    file = workdir / _ID
    if file.exists():
        return file.read_text().strip()
    made = uuid.uuid4().hex[:16]
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(file, f"{made}\n")
    return made
