"""CLU metric writers: TensorBoard from the first host, nothing from the others."""

from collections.abc import Mapping
import json
from typing import TYPE_CHECKING, Any

from etils import epath
import jax

if TYPE_CHECKING:
    from clu import metric_writers


def make_writer(workdir: epath.Path, config: Mapping[str, Any]) -> "metric_writers.MetricWriter":
    """A writer into `workdir`, with the config as text; it must be closed."""
    # CLU imports TensorFlow, which takes seconds: a mistyped flag should not have to wait for it.
    from clu import metric_writers

    first = jax.process_index() == 0
    writer = metric_writers.create_default_writer(str(workdir), just_logging=not first)
    text = json.dumps(config, indent=2, sort_keys=True)
    # Four spaces make a code block of TensorBoard's Markdown.
    indented = "\n".join(f"    {line}" for line in text.splitlines())
    writer.write_texts(0, {"config": indented})
    return writer
