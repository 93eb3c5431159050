"""Draws samples of a checkpoint as a sheet or as arrays.

  python -m shortcut_tpu.sample --workdir=runs/digits --output=sheet.png
  python -m shortcut_tpu.sample --workdir=runs/digits --steps=1,4,128 --labels=3,7 --output=s.png
  python -m shortcut_tpu.sample --workdir=runs/digits --interpolate --labels=3 --output=walk.png
  python -m shortcut_tpu.sample --workdir=runs/digits --columns=1000 --output=samples.npz
  python -m shortcut_tpu.sample --workdir=runs/digits --num=50000 --output=samples

Each row of a sheet has a label and a step count. All rows of a label start from the same noises,
column by column. Beside them are real images of the label, if the records are there, and the
checkpoint's distance over steps, if it was evaluated. An .npz holds `images` [steps, samples, H, W,
C] uint8, `labels` [samples], `steps`, `seed`, and the checkpoint's `step`.

With --num, --output is a folder for PNG files. They are the samples that `evaluate` scores, equally
many of each class, or of --labels. On a pod every host runs the command and writes its share.
Started again after a kill, or with a larger --num, it makes the missing files.
"""

from collections.abc import Sequence
import io
from typing import Any

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.atomic_files import in_bucket, write_output
from data_pipeline.errors import UserError
from data_pipeline.progress import progress_bar
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.cli.labels import label_names, parse_labels
from shortcut_tpu.evaluation.generator import Generator, unit_to_uint8
from shortcut_tpu.evaluation.labels import make_labels
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.evaluation.real_images import real_latents
from shortcut_tpu.evaluation.sample_folders import SampleFolder
from shortcut_tpu.evaluation.samples import generator_of
from shortcut_tpu.observability.charts import in_steps
from shortcut_tpu.observability.sheets import beside, distance_figure, sheet, to_png
from shortcut_tpu.observability.summary import Score, read_score
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs.checksums import digest_of
from shortcut_tpu.runs.loading import Run, load_run, require_steps

_BATCH = 256
_REAL = 4


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("output", None, "File to write, .png or .npz; with --num a folder.")
    with command.flag_group("Which samples"):
        flags.DEFINE_string("steps", "1", "Step counts, such as 1,4,128.")
        flags.DEFINE_string(
            "labels",
            None,
            "Labels or class names to draw, such as 3,7 or goldfish, null for no label; all, up to "
            "20, by default.",
        )
        flags.DEFINE_integer("columns", 10, "Samples of each label.", lower_bound=1)
        flags.DEFINE_integer("num", None, "Samples for a folder of PNG files; a sheet without.", 1)
        flags.DEFINE_boolean(
            "interpolate",
            False,
            "Each row goes from one noise to another, sqrt(1-i^2) e_0 + i e_1.",
        )
        flags.DEFINE_integer(
            "seed", None, "Seed of the noises; the run's by default.", 0, 2**32 - 1
        )
    with command.flag_group("Which weights"):
        flags.DEFINE_integer("step", None, "Checkpoint to draw from; the newest by default.", 0)
        flags.DEFINE_string("ema", "evaluation", "Which average of the weights to use.")
    with command.flag_group("Guidance"):
        command.define_guidance()


def main() -> None:
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run to draw from"))
    output = epath.Path(command.required("output", "the .png or .npz file to write"))
    steps = command.integers("steps")
    if values.num is not None:
        _check_folder(output, steps)
    elif output.suffix.lower() not in (".png", ".npz"):
        raise UserError(
            f"--output={output}: must end in .png or .npz; or give --num for a folder of PNG files"
        )
    if values.interpolate and values.columns < 2:
        raise UserError("--interpolate needs --columns=2 or more")
    distributed.initialize()
    distributed.first_does(command.require_places)
    run = load_run(workdir, values.step, values.ema)
    steps = require_steps(run.experiment.objective, steps)

    if values.num is not None:
        _write_folder(run, workdir, output, steps[0])
        return

    config = run.experiment.config
    seed = config.seed if values.seed is None else values.seed
    labels = np.repeat(parse_labels(values.labels, config.data), values.columns)
    guidance = command.guidance(config.evaluation)
    points = values.columns if values.interpolate else None
    generator = generator_of(run, seed, guidance, points)
    rows = min(len(labels), _BATCH)
    batches = [np.arange(i, min(i + rows, len(labels))) for i in range(0, len(labels), rows)]
    images = np.stack(
        [
            np.concatenate([unit_to_uint8(generator(run.params, b, labels[b], n)) for b in batches])
            for n in steps
        ]
    )
    picture, drawn = output.suffix.lower() == ".png", labels[:: values.columns]
    real = _real(generator, config, drawn, len(steps), rows) if picture else None
    if jax.process_index() == 0:
        if picture:
            way = np.linspace(0, 1, values.columns)
            content = png(
                images,
                label_names(drawn, config.data),
                steps,
                column_names=[f"i = {i:.2f}" for i in way] if values.interpolate else (),
                real=real,
                score=read_score(workdir, run.step),
            )
        else:
            content = npz(images=images, labels=labels, steps=steps, seed=seed, step=run.step)
        write_output(output, content)
    say(f"{output}: step {run.step}, {len(labels)} samples at {', '.join(map(str, steps))} steps")


def _check_folder(output: epath.Path, steps: Sequence[int]) -> None:
    """Refuses flags that do not go with --num.

    Raises:
      UserError: there are such.
    """
    if output.suffix.lower() in (".png", ".npz"):
        raise UserError(f"--output={output}: with --num it is a folder for PNG files")
    if len(steps) > 1:
        raise UserError(f"--num takes one step count, such as --steps={steps[0]}")
    if flags.FLAGS.interpolate or flags.FLAGS["columns"].present:
        raise UserError("--columns and --interpolate are of sheets; a folder has --num samples")


def _write_folder(run: Run, workdir: epath.Path, output: epath.Path, num_steps: int) -> None:
    """Writes the first --num samples of a checkpoint as PNG files."""
    values, config = flags.FLAGS, run.experiment.config
    guidance = command.guidance(config.evaluation)
    generator = generator_of(run, values.seed, guidance)
    balance = config.evaluation.class_balance or get_protocol(config.evaluation.protocol).balance
    if values.labels is None:
        labels = make_labels(
            balance,
            values.num,
            num_classes=config.data.num_classes,
            seed=generator.seed,
            records=config.data.path,
        )
    else:
        chosen = parse_labels(values.labels, config.data)
        labels, balance = np.resize(np.asarray(chosen, np.int32), values.num), f"in turn {chosen}"
    facts = {
        "step": run.step,
        "checkpoint": digest_of(workdir, run.step),
        "ema": run.ema,
        "seed": generator.seed,
        "steps": num_steps,
        "labels": balance,
        "guidance": str(guidance),
        "guidance_interval": list(guidance.interval),
    }
    folder = SampleFolder(output, facts)
    with progress_bar("samples", values.num if jax.process_index() == 0 else 0) as advance:
        folder.write(
            generator,
            run.params,
            labels,
            num_steps=num_steps,
            batch_size=config.evaluation.batch_size,
            progress=advance,
        )
    say(f"{output}: {values.num} PNG files of step {run.step}, {in_steps(num_steps)}")


def _real(
    generator: Generator, config: ConfigDict, labels: np.ndarray, num_steps: int, rows: int
) -> np.ndarray | None:
    """Real images beside each row of a sheet [labels, num_steps, _REAL, H, W, C] uint8.

    None where the records are not on this machine: a bucket's are not copied for a sheet.
    """
    if in_bucket(config.data.path):
        return None
    latents = real_latents(config.data.path, config.data, labels.tolist(), num_steps * _REAL)
    if latents is None:
        return None
    images = unit_to_uint8(generator.decoded(latents, rows))
    return images.reshape(len(labels), num_steps, _REAL, *images.shape[1:])


def png(
    images: np.ndarray,
    names: Sequence[str],
    steps: Sequence[int],
    *,
    column_names: Sequence[str] = (),
    real: np.ndarray | None = None,
    score: Score | None = None,
) -> bytes:
    """A sheet as a PNG file: for each label its rows of all step counts, below one another.

    Args:
      images: [len(steps), len(names) * columns, H, W, C] uint8.
      names: of the labels.
      steps: the step counts.
      column_names: of the samples; `noise 1` and so on by default.
      real: images beside each row [len(names), len(steps), n, H, W, C] uint8.
      score: the checkpoint's distances, whose figure stands beside the sheet.

    Raises:
      UserError: the images are neither grey nor in colour.
    """
    count, shape = images.shape[1], images.shape[2:]
    if shape[-1] not in (1, 3):
        raise UserError(f"samples of {shape[-1]} channels are no pictures; --output=FILE.npz")
    columns = count // len(names)
    rows = images.reshape(len(steps), len(names), columns, *shape).swapaxes(0, 1)
    blocks = {"samples": columns}
    if real is not None:
        rows = np.concatenate([rows, real], axis=2)
        blocks["real images"] = real.shape[2]
    page = sheet(
        rows.reshape(-1, *shape),
        rows.shape[2],
        row_names=[f"{name}\n{in_steps(n)}" for name in names for n in steps],
        column_names=column_names or [f"noise {i + 1}" for i in range(columns)],
        blocks=blocks,
    )
    if score is not None:
        page = beside(page, distance_figure(score.metric, score.distances))
    return to_png(page)


def npz(**arrays: Any) -> bytes:
    """Arrays as an .npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


if __name__ == "__main__":
    command.run(main, define_flags)
