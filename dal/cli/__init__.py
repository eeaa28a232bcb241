"""The command line: one verb for each thing people do.

Each module here holds one group of commands, and is imported when one of them is used or help lists them all. The
modules import nothing heavy. A command imports in its body the parts that it works with, so that help and completion
answer at once and a command pays for its own work alone. ``tests/test_entrance.py`` holds which command imports what.
"""

import io
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from dal._distribution import __version__
from dal.cli.terminal import LogHandler, say
from dal.errors import ClusterLost, DalError

_COMMANDS = {
    "pool": "pools:pool",
    "init": "campaigns:init",
    "status": "campaigns:status_",
    "next": "rounds:next_",
    "run": "rounds:run_",
    "map": "rounds:map_",
    "finetune": "finetuning:finetune",
    "label": "labels:label",
    "learner": "learners:learner",
    "plan": "learners:plan_",
    "annotator": "people:annotator",
    "machine": "machines:machine",
    "serve": "pages:serve",
    "pause": "pages:pause",
    "resume": "pages:resume",
    "close": "pages:close",
    "stop": "pages:stop",
    "compare": "explorer:compare_",
    "report": "explorer:report",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
}
"""Where each command is: a module of this package and a name in it."""


class _Verbs(click.Group):
    """A group that imports a command when it is used.

    It turns the library's errors into one line and an exit status; anything else is a bug and keeps its traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        try:
            with _terminable():
                return super().invoke(ctx)
        except DalError as error:
            raise (_TryAgain if isinstance(error, ClusterLost) else click.ClickException)(str(error)) from error
        except OSError as error:
            from dal._files import DISK_ERRORS, reason_of

            if error.errno not in DISK_ERRORS:
                raise
            raise click.ClickException(f"{error.filename or 'A file'}: {reason_of(error)}") from error
        except KeyboardInterrupt as error:
            say("Interrupted. Nothing is lost: run the same command again, it goes on from here.")
            ctx.exit(143 if isinstance(error, _Terminated) else 130)


class _TryAgain(click.ClickException):
    """The cluster was lost, or is not there yet: the same command, run again, goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class _Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as by a service manager: it ends as by Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # as in a test: only there are signals handled
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dal")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run distributed active learning on very large pools."""
    ctx.with_resource(_own_modules())
    ctx.with_resource(_own_log())
    # Names of files may be any bytes, and a terminal may know few letters: neither is worth a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _own_modules() -> Iterator[None]:
    """Let a command import from the directory that it is run in: there lies a learner named as module:object."""
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


@contextmanager
def _own_log() -> Iterator[None]:
    """Show what is logged while a command runs, and nothing below a warning; then put back how it was.

    A test or a notebook runs several commands in one process, and logs in its own way between them. The handlers that
    were there are kept as they are: ``basicConfig(force=True)`` would close them.
    """
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [LogHandler()]
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
