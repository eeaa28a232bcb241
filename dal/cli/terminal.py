"""Writing to the terminal: lines, tables, progress, and the warnings that libraries log."""

from __future__ import annotations

import logging
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from dal.figures.table import Table
    from dal.progress import Show

# Rich is imported where something is drawn: a line of text needs none of it, nor does help.


def say(line: str) -> None:
    """Write a line."""
    click.echo(line)


def quoted(word: str | Path) -> str:
    """Return a word as a shell takes it, for a command that is copied: a path may hold blanks.

    Examples
    --------
    >>> quoted("campaign"), quoted("my campaign")
    ('campaign', "'my campaign'")
    """
    return shlex.quote(str(word))


def shown(what: str) -> AbstractContextManager[Show]:
    """Show the progress of one piece of work, see :func:`dal.progress.shown`."""
    from dal.progress import shown as shown_on

    return shown_on(what, _console())


def draw(table: Table) -> None:
    """Draw a table of numbers."""
    from rich.table import Table as RichTable

    drawn = RichTable(*table.header)
    for column in drawn.columns:
        column.justify = "right"
    for row in table.rows:
        drawn.add_row(*row)
    _console().print(drawn)


def as_bytes(count: float) -> str:
    """Return a number of bytes as text, in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


class LogHandler(logging.Handler):
    """Shows what libraries log, through Rich once there is something to show."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(_no_interrupt)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        _rich_handler().emit(record)


def _no_interrupt(record: logging.LogRecord) -> bool:
    """Drop what a library logs of Ctrl-C passing through it: the person who pressed the key knows."""
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False)


@cache
def _rich_handler() -> logging.Handler:
    from rich.logging import RichHandler

    handler = RichHandler(console=_console(), show_time=False, show_path=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
