"""Reads a run's curves and images back from its TensorBoard event files.

Usage:
  record = read_events(workdir)
  record.scalars["train/loss"]      # {100: 0.21, 200: 0.19, ...} by step
  record.images["samples/4_steps"]  # (200, PNG bytes), the newest
"""

import dataclasses
import math

from etils import epath

from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run wrote down.

    Attributes:
      scalars: finite values by tag and step. Where a run went over a step twice, the later counts.
      images: the newest picture of each tag: its step and its PNG file.
    """

    scalars: dict[str, dict[int, float]]
    images: dict[str, tuple[int, bytes]]


def read_events(workdir: epath.Path) -> Record:
    """Reads all event files of a workdir.

    Raises:
      UserError: there is none.
    """
    # TensorBoard takes seconds to import.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    if not any(path.name.startswith("events.out.tfevents.") for path in _files(workdir)):
        raise UserError(f"{workdir}: no event files, so there are no curves to report")
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    scalars: dict[str, dict[int, float]] = {}
    images: dict[str, tuple[int, bytes]] = {}
    for tag in events.Tags()["tensors"]:
        plugin = events.summary_metadata[tag].plugin_data.plugin_name
        # Files of the same second come in an order of their own.
        tensors = sorted(events.Tensors(tag), key=lambda event: event.wall_time)
        if plugin == "scalars":
            values = {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in tensors}
            scalars[tag] = {n: v for n, v in sorted(values.items()) if math.isfinite(v)}
        elif plugin == "images":
            # Width, height, and the pictures.
            images[tag] = (tensors[-1].step, tensors[-1].tensor_proto.string_val[2])
    return Record(scalars, images)


def _files(workdir: epath.Path) -> list[epath.Path]:
    return list(workdir.iterdir()) if workdir.is_dir() else []
