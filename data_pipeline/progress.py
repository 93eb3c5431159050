"""Progress bars with the rate and the time left, on stderr.

Usage:
    with progress_bar("images", total=len(source)) as advance:
        advance(256)
"""

from collections.abc import Callable, Iterator
import contextlib
import sys

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

Advance = Callable[[int], None]
Bar = Callable[[str, int, int], contextlib.AbstractContextManager[Advance]]


class _RateColumn(ProgressColumn):
    """Units a second: of late while it runs, over all once it is done."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{rate(speed)} {task.description}/s" if speed else "")


def rate(speed: float) -> str:
    """A speed in whole numbers where they say enough."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


@contextlib.contextmanager
def progress_bar(units: str, total: int) -> Iterator[Advance]:
    """Shows a bar; off a terminal, only its final state; nothing where there is nothing to do.

    Args:
        units: what is counted, in the plural.
        total: how many there are.

    Yields:
        A function to call with how many more are done.
    """
    with _bars(Console(stderr=True), shown=total > 0) as bar, bar(units, total, 0) as advance:
        yield advance


@contextlib.contextmanager
def terminal_bars(*, shown: bool) -> Iterator[Bar]:
    """Bars below what a command prints, where it prints on a terminal; nowhere else.

    Args:
        shown: False for no bars at all, as on every host but one.

    Yields:
        A function (units, total, done) that makes a bar, to be used as a context like that of
        `progress_bar`. One that ends while another goes on disappears.
    """
    # Lines that go into a file must not be caught and put on the terminal.
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with _bars(Console(stderr=True), shown=shown and terminal) as bar:
        yield bar


def counted(bar: Bar, units: str, numbers: range) -> Iterator[int]:
    """The numbers, and a bar that says which of 1 .. the last is at work."""
    with bar(units, numbers.stop - 1, numbers.start - 1) as advance:
        for number in numbers:
            advance(1)
            yield number


@contextlib.contextmanager
def unseen(units: str, total: int, done: int) -> Iterator[Advance]:
    """Stands where there are no bars."""
    yield lambda more: None


@contextlib.contextmanager
def _bars(console: Console, *, shown: bool) -> Iterator[Bar]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), _RateColumn())
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
        redirect_stdout=sys.stdout.isatty(),
    )

    @contextlib.contextmanager
    def bar(units: str, total: int, done: int) -> Iterator[Advance]:
        task = progress.add_task(units, total=total, completed=done)
        try:
            yield lambda more: progress.advance(task, more)
        finally:
            if len(progress.tasks) > 1:
                progress.remove_task(task)

    with progress:
        yield bar
