"""Prints a run's progress: one line for each log interval, readable over ssh."""

from collections.abc import Mapping
import datetime
import shlex

from etils import epath
import jax

# The least share of a step that waiting for input may take to be mentioned.
_WORTH_A_WORD = 0.01


def say(*lines: str) -> None:
    """Prints for the person at the console, from the first host only."""
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    return str(datetime.timedelta(seconds=round(seconds)))


def progress_line(
    step: int, num_steps: int, metrics: Mapping[str, float], seconds_per_step: float
) -> str:
    """For example `step 1200/5000  24%  loss 0.2130  grad 0.280  38 ms/step  6725 img/s ...`

    What is as it should be is not mentioned: input that is waited for and updates that were left
    out stand at the end of the line.
    """
    width, milliseconds = len(str(num_steps)), seconds_per_step * 1e3
    parts = [
        f"step {step:>{width}}/{num_steps} {step / num_steps:>4.0%}",
        f"loss {metrics['train/loss']:.4f}",
        f"grad {metrics['train/grad_norm']:.3f}",
        f"{milliseconds:.{1 if milliseconds < 100 else 0}f} ms/step",
        f"{metrics['perf/images_per_second']:.0f} img/s",
        f"left {duration((num_steps - step) * seconds_per_step)}",
    ]
    if "perf/mfu" in metrics:
        parts.insert(-1, f"MFU {metrics['perf/mfu']:.0%}")
    if (wait := metrics["perf/input_wait"]) >= _WORTH_A_WORD:
        parts.append(f"input wait {wait:.0%}")
    if skipped := metrics["train/skipped"]:
        parts.append(f"{skipped:.0f} updates left out")
    return "  ".join(parts)


def where_things_are(workdir: epath.Path, makes_images: bool) -> list[str]:
    """Lines that say what a run has left, and the commands that show it; actions are rolled out."""
    evaluations = workdir / "evaluations"
    module, quoted = "python -m shortcut_tpu", shlex.quote(str(workdir))
    lines = {
        "checkpoints": workdir / "checkpoints",
        "distances": evaluations if evaluations.exists() else "",
        "curves, sheets": f"tensorboard --logdir={quoted}",
        "report": f"{module}.report --workdir={quoted}",
    }
    if makes_images:
        lines["samples"] = f"{module}.sample --workdir={quoted} --output=samples.png"
        lines["scores"] = f"{module}.evaluate --workdir={quoted}"
    else:
        lines["success"] = f"{module}.rollout --workdir={quoted} --output=trajectories.png"
    return [f"{name:<15} {what}" for name, what in lines.items() if what]
