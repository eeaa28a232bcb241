"""Showing long work: a bar in a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0

Show = Callable[[int, int | None, str], None]
"""Told of units done, units in all (None if unknown) and a remark, as often as one likes."""


@contextmanager
def shown(what: str, console: Console) -> Iterator[Show]:
    """Show the progress of one piece of work.

    Parameters
    ----------
    what : str
        What is being done.
    console : rich.console.Console
        A terminal gets a bar; a file or a pipe gets a plain line now and then, and one at the end.
    """
    if console.is_terminal:
        with _bar(what, console) as show:
            yield show
    else:
        with _lines(what, console) as show:
            yield show


@contextmanager
def _bar(what: str, console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, remark="")

        def show(done: int, total: int | None, remark: str) -> None:
            bar.update(task, completed=done, total=total, remark=remark)

        yield show


@contextmanager
def _lines(what: str, console: Console) -> Iterator[Show]:
    last = printed = ""
    began: tuple[float, int] | None = None
    told = time.monotonic()

    def show(done: int, total: int | None, remark: str) -> None:
        nonlocal last, printed, told, began
        began = began or (time.monotonic(), done)
        share = f" ({done / total:.0%})" if total else ""
        left = _time_left(began, done, total) if total else ""
        last = f"{what}: {done:,}{f' of {total:,}' if total else ''}{share}{left} {remark}".rstrip()
        if time.monotonic() - told >= LINE_EVERY_SECONDS:
            told = time.monotonic()
            printed = last
            console.print(last, highlight=False)

    yield show
    if last != printed:
        console.print(last, highlight=False)


def _time_left(began: tuple[float, int], done: int, total: int) -> str:
    """Say how long it will take at the pace since the first that was told."""
    since, first = began
    if done >= total or done <= first:
        return ""
    seconds = (time.monotonic() - since) * (total - done) / (done - first)
    return f" {timedelta(seconds=round(seconds))} left,"
