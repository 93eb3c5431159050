"""The console of a run: one line a log interval, readable over ssh."""

from collections.abc import Mapping
import datetime

import jax


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
    """For example `step 1200/5000  24%  loss 0.2130  38 ms/step  3368 img/s  left 0:02:24`."""
    left = duration((num_steps - step) * seconds_per_step)
    width = len(str(num_steps))
    return (
        f"step {step:>{width}}/{num_steps} {step / num_steps:>4.0%}  "
        f"loss {metrics['train/loss']:.4f}  grad {metrics['train/grad_norm']:.3f}  "
        f"{seconds_per_step * 1e3:.1f} ms/step  "
        f"{metrics['perf/images_per_second']:.0f} img/s  "
        f"input wait {metrics['perf/input_wait']:.1%}  left {left}"
    )
