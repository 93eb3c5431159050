"""A sheet of methods: a row each, the same noises and labels in every row, blocks by step count.

Usage:
  keep(workdir, evaluator, params, steps, records, config.data)   # of each method, once scored
  page = methods_sheet({"shortcut": workdir, ...}, steps, config.data)
"""

from collections.abc import Mapping, Sequence
import io
import os
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.atomic_files import write_bytes
from shortcut_tpu.cli.labels import label_names
from shortcut_tpu.evaluation.evaluator import Evaluator
from shortcut_tpu.evaluation.generator import unit_to_uint8
from shortcut_tpu.evaluation.real_images import real_latents
from shortcut_tpu.observability.charts import in_steps
from shortcut_tpu.observability.sheets import sheet

_FILE = "samples.npz"
_LABELS = 5
_REAL = "real"


def shown(steps: Sequence[int]) -> list[int]:
    """Those of the step counts that have a block: the fewest, four and the most."""
    return sorted({min(steps), max(steps)} | ({4} & {*steps}))


def keep(
    workdir: epath.Path,
    evaluator: Evaluator,
    params: Any,
    steps: Sequence[int],
    records: str | os.PathLike[str],
    data: ConfigDict,
) -> None:
    """Leaves a method's samples, and real images of their labels, in its workdir.

    Args:
      workdir: of the method.
      evaluator: that has scored it, and so has compiled what makes images.
      params: that it has scored.
      steps: step counts that it has scored.
      records: the folder of latent records.
      data: the config's `data`.
    """
    labels = np.arange(min(data.num_classes, _LABELS), dtype=np.int32)
    arrays = {str(n): unit_to_uint8(evaluator.images(params, labels, n)) for n in shown(steps)}
    real = real_latents(records, data, labels.tolist(), 3)
    if real is not None:
        images = unit_to_uint8(evaluator.decoded(real))
        # As many of each label as a sheet has blocks.
        arrays[_REAL] = images.reshape(len(labels), 3, *images.shape[1:]).swapaxes(0, 1)
    if jax.process_index() == 0:
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        workdir.mkdir(parents=True, exist_ok=True)
        write_bytes(workdir / _FILE, content.getvalue())


def methods_sheet(
    workdirs: Mapping[str, epath.Path], steps: Sequence[int], data: ConfigDict
) -> np.ndarray | None:
    """The page [H, W, 3] uint8; None where no method has left samples.

    White where a method makes no samples in so many steps; the last row is of real images.

    Args:
      workdirs: of the methods by name.
      steps: all step counts that were asked for.
      data: the config's `data`.
    """
    counts, rows = shown(steps), {}
    real: np.ndarray | None = None
    for name, workdir in workdirs.items():
        file = workdir / _FILE
        if not file.exists():
            continue
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
        real = found.pop(_REAL, real)
        blank = np.full_like(next(iter(found.values())), 255)
        rows[name] = [found.get(str(n), blank) for n in counts]
    if not rows:
        return None
    if real is not None:
        rows["real images"] = list(real[: len(counts)])
    labels = len(next(iter(rows.values()))[0])
    return sheet(
        np.concatenate([image for row in rows.values() for image in row]),
        labels * len(counts),
        row_names=list(rows),
        column_names=label_names(range(labels), data) * len(counts),
        blocks=dict.fromkeys(map(in_steps, counts), labels),
    )
