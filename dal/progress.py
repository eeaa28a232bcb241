"""Showing long work: a bar in a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    last = ""
    told = time.monotonic()

    def show(done: int, total: int | None, remark: str) -> None:
        nonlocal last, told
        share = f" ({done / total:.0%})" if total else ""
        last = f"{what}: {done:,}{f' of {total:,}' if total else ''}{share} {remark}".rstrip()
        if time.monotonic() - told >= LINE_EVERY_SECONDS:
            told = time.monotonic()
            console.print(last, highlight=False)

    yield show
    if last:
        console.print(last, highlight=False)
