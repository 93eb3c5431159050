"""A progress bar with the rate and the time left, on stderr.

Usage:
    with progress_bar("images", total=len(source)) as advance:
        advance(256)
"""

from collections.abc import Callable, Iterator
import contextlib

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Units a second: of late while it runs, over all once it is done."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.description}/s" if speed else "")


@contextlib.contextmanager
def progress_bar(units: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar; off a terminal, only its final state; nothing where there is nothing to do.

    Args:
        units: what is counted, in the plural.
        total: how many there are.

    Yields:
        A function to call with how many more are done.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(units), _RateColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=total == 0)
    with progress:
        task = progress.add_task(units, total=total)
        yield lambda done: progress.advance(task, done)
