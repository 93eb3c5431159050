"""The layout of TensorBoard's tabs Custom Scalars and HParams.

Usage:
  writer.write_hparams(hyperparameters(config))
  writer.write_summaries(0, {TAG: layout}, metadata={TAG: metadata})
"""

from collections.abc import Iterable, Iterator
import json
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from shortcut_tpu.cli.config import leaves
from shortcut_tpu.models import NETWORKS
from shortcut_tpu.objectives import OBJECTIVES

# Where a run lies and how its input is read tells nothing of what it learns.
_ELSEWHERE = (
    *("data.stage", "data.source", "data.num_threads", "data.prefetch", "comparison."),
    *("train.hang_seconds", "train.compile_cache", "checkpoint."),
)

# Charts by section: a title, and regular expressions of tags that are drawn into one chart.
CHARTS = {
    "Training": {
        "loss": "train/loss",
        "loss by kind of row": r"train/loss_(?!level_)\w+",
        "loss by level l, d = 2^-l": r"train/loss_level_\d+",
        "norms of gradient and update": "train/(grad|update)_norm",
        "distance of averages from weights, over their norm": r"train/ema_distance_\w+",
        "learning rate": "train/learning_rate",
    },
    "Performance": {
        "images a second": "perf/images_per_second",
        "shares of time": "perf/(mfu|goodput|input_wait)",
    },
}


def hyperparameters(config: ConfigDict) -> dict[str, bool | int | float | str]:
    """What `telling` finds, lists as one text: the tab has no others."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in telling(config).items()
    }


def telling(config: ConfigDict) -> dict[str, object]:
    """The keys of a config that can tell what a run learns, such as "model.width": 768.

    Of the objectives and networks only those of the one that trains.
    """
    objective = OBJECTIVES[config.objective.name]
    others = [f"objective.{other.group}." for other in OBJECTIVES.values()]
    others += [f"model.{network}." for network in NETWORKS]
    own = (f"objective.{objective.group}.", f"model.{objective.network}.")
    silent = (*_ELSEWHERE, *(group for group in others if group not in own))
    return {key: value for key, value in leaves(config) if not key.startswith(silent)}


def charts(distances: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Sections of charts; each chart has a title and a regular expression of its tags."""
    yield "Evaluation", {f"{d} by sampling steps": rf"eval/{d}@\d+" for d in distances}
    yield from CHARTS.items()


def layout(distances: Iterable[str]) -> tuple[str, Any, Any]:
    """The tag, value and metadata of the summary that lays out the tab of custom scalars."""
    # TensorBoard takes seconds to import.
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = [
        layout_pb2.Category(
            title=section,
            chart=[
                layout_pb2.Chart(
                    title=title,
                    # Whole tags: TensorBoard looks for a match anywhere.
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^{tags}$"]),
                )
                for title, tags in found.items()
            ],
        )
        for section, found in charts(distances)
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    # CLU's logger asks for a shape.
    value = np.array(content, object)
    return metadata.CONFIG_SUMMARY_TAG, value, metadata.create_summary_metadata()
