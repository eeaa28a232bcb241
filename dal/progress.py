"""Progress of long work: a bar in a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


LINE_EVERY_SECONDS = 10.0

Show = Callable[[int, int | None, str], None]
"""Called with units done, units in all (None if unknown) and a remark, at any rate."""


@contextmanager
def shown(title: str, console: "Console") -> Iterator[Show]:
    """Show the progress of one piece of work.

    Parameters
    ----------
    title : str
        Name of the work.
    console : rich.console.Console
        A terminal gets a bar; a file or a pipe gets a plain line now and then, and one at the end.

    Yields
    ------
    Show
        Call it with the progress.
    """
    if console.is_terminal:
        with _bar(title, console) as show:
            yield show
    else:
        with _lines(title, console) as show:
            yield show


@contextmanager
def _bar(title: str, console: "Console") -> Iterator[Show]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, remark="")

        def show(done: int, total: int | None, remark: str) -> None:
            bar.update(task, completed=done, total=total, remark=remark)

        yield show


@contextmanager
def _lines(title: str, console: "Console") -> Iterator[Show]:
    last = printed = ""
    began: tuple[float, int] | None = None
    printed_at = time.monotonic()

    def show(done: int, total: int | None, remark: str) -> None:
        nonlocal last, printed, printed_at, began
        began = began or (time.monotonic(), done)
        share = f" ({done / total:.0%})" if total else ""
        left = _time_left(began, done, total) if total else ""
        last = f"{title}: {done:,}{f' of {total:,}' if total else ''}{share}{left} {remark}".rstrip()
        if time.monotonic() - printed_at >= LINE_EVERY_SECONDS:
            printed_at = time.monotonic()
            printed = last
            console.print(last, highlight=False)

    yield show
    if last != printed:
        console.print(last, highlight=False)


def _time_left(began: tuple[float, int], done: int, total: int) -> str:
    """Return the time left at the pace since the first call, as text for a line."""
    since, first = began
    if done >= total or done <= first:
        return ""
    seconds = (time.monotonic() - since) * (total - done) / (done - first)
    return f" {timedelta(seconds=round(seconds))} left,"
