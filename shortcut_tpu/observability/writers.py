"""Metric writers (CLU): TensorBoard on the first host, nothing on the others."""

from collections.abc import Iterable, Mapping
import json
import math
from typing import Any, Protocol, SupportsFloat

from etils import epath
import jax
from ml_collections import ConfigDict

from shortcut_tpu.observability import dashboard
from shortcut_tpu.observability.parameters import arrays, markdown


class Writer(Protocol):
    """What a run needs of CLU's MetricWriter."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds a point to each curve."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Adds images [N, H, W, C] in [0, 1] by name."""

    def flush(self) -> None:
        """Returns when all is written."""

    def close(self) -> None:
        """Ends it."""


class _Silent:
    """Stands on every host but the first, which so need not load TensorFlow."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        pass

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def make_writer(
    workdir: epath.Path, config: ConfigDict, params: Any, distances: Iterable[str]
) -> Writer:
    """A writer into `workdir`; it must be closed.

    It begins with the config and a table of the parameters as text, the hyperparameters, and the
    layout of the custom scalars.

    Args:
      params: the parameters or their shapes.
      distances: those that evaluations of the run will log, the main one first.
    """
    if jax.process_index() != 0:
        return _Silent()
    # CLU imports TensorFlow, which takes seconds: a mistyped flag should not have to wait for it.
    from clu import metric_writers

    writer = metric_writers.create_default_writer(str(workdir))
    if config.train.wandb:
        from shortcut_tpu.observability.wandb_writer import WandbWriter

        writer = metric_writers.MultiWriter([writer, WandbWriter(workdir, config.train.wandb)])
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    # Four spaces make a code block of TensorBoard's Markdown.
    indented = "\n".join(f"    {line}" for line in text.splitlines())
    writer.write_texts(0, {"config": indented, "parameters": markdown(arrays(params))})
    writer.write_hparams(dashboard.hyperparameters(config))
    tag, value, metadata = dashboard.layout(distances)
    writer.write_summaries(0, {tag: value}, metadata={tag: metadata})
    return writer


def concerned(scalars: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Those that say something: NaN is a kind of rows that a step had none of.

    Where the loss itself is not a number, all stay.
    """
    if not math.isfinite(scalars["loss"]):
        return {name: float(value) for name, value in scalars.items()}
    return {name: float(value) for name, value in scalars.items() if not math.isnan(value)}
