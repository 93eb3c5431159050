"""Draws a sheet of samples of a checkpoint.

  python -m shortcut_tpu.sample --workdir=runs/digits --output=sheet.png
  python -m shortcut_tpu.sample --workdir=runs/digits --steps=1,4,128 --labels=3,7 --output=s.png

Each row is a label; with several step counts, each block of rows is one of them, drawn from the
same noises.
"""

from pathlib import Path

from absl import flags
from etils import epath
import jax
import numpy as np
from PIL import Image

from data_pipeline.errors import UserError
from shortcut_tpu import command, distributed
from shortcut_tpu.evaluation.generator import make_generator, unit_to_uint8
from shortcut_tpu.loading import load_run, require_steps
from shortcut_tpu.observability.console import say
from shortcut_tpu.observability.sheets import sheet


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("output", None, "PNG file to write.")
    flags.DEFINE_string("steps", "1", "Step counts, such as 1,4,128.")
    flags.DEFINE_string("labels", None, "Labels to draw, such as 3,7; all, up to 20, by default.")
    flags.DEFINE_integer("columns", 10, "Samples of each label.", lower_bound=1)
    flags.DEFINE_integer("seed", None, "Seed of the noises; the run's by default.")
    flags.DEFINE_integer("step", None, "Checkpoint to draw from; the newest by default.")
    flags.DEFINE_string("ema", "evaluation", "Which average of the weights to use.")


def parse_labels(text: str | None, num_classes: int) -> list[int]:
    """Labels of --labels.

    Raises:
      UserError: one is no label of the run.
    """
    if text is None:
        return list(range(min(num_classes, 20)))
    labels = text.split(",")
    unknown = [label for label in labels if not label.isdecimal() or int(label) >= num_classes]
    if unknown:
        raise UserError(f"--labels: {unknown[0]!r} is not a label in 0 .. {num_classes - 1}")
    return [int(label) for label in labels]


def main() -> None:
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run to draw from"))
    output = Path(command.required("output", "the PNG file to write"))
    if output.suffix.lower() != ".png":
        raise UserError(f"--output={output}: must end in .png")
    steps = command.integers("steps")
    distributed.initialize()
    run = load_run(workdir, values.step, values.ema)
    steps = require_steps(run.experiment.objective, steps)

    wanted = parse_labels(values.labels, run.experiment.config.data.num_classes)
    labels = np.repeat(wanted, values.columns)
    generator = make_generator(run.experiment, run.autoencoder, seed=values.seed)
    blocks = [generator(run.params, np.arange(len(labels)), labels, n) for n in steps]
    page = sheet(unit_to_uint8(np.concatenate(blocks)), values.columns)
    if jax.process_index() == 0:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(page).save(output)
        except OSError as error:
            raise UserError(f"--output={output}: {error.strerror or error}") from None
    say(f"{output}: step {run.step}, {len(labels)} samples at {', '.join(map(str, steps))} steps")


if __name__ == "__main__":
    command.run(main, define_flags)
