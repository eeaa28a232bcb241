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
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from dal._distribution import __version__
from dal.cli.terminal import LogHandler, say
from dal.errors import DalError

_COMMANDS = {
    "pool": "pools:pool",
    "init": "campaigns:init",
    "status": "campaigns:status_",
    "next": "rounds:next_",
    "run": "rounds:run_",
    "map": "rounds:map_",
    "label": "labels:label",
    "annotator": "people:annotator",
    "serve": "pages:serve",
    "pause": "pages:pause",
    "resume": "pages:resume",
    "close": "pages:close",
    "stop": "pages:stop",
    "compare": "explorer:compare_",
    "report": "explorer:report",
    "demo": "demo:demo",
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
            raise click.ClickException(str(error)) from error
        except OSError as error:
            from dal.campaign.disk import DISK_ERRORS, told

            if error.errno not in DISK_ERRORS:
                raise
            raise click.ClickException(f"{error.filename or 'A file'}: {told(error)}") from error
        except KeyboardInterrupt as error:
            say("Interrupted. Nothing is lost: run the same command again, it goes on from here.")
            ctx.exit(143 if isinstance(error, _Terminated) else 130)


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
def main() -> None:
    """Distributed active learning on very large pools."""
    # A learner of one's own is named as module:object, and its module lies where one stands.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    # Names of files may be any bytes, and a terminal may know few letters: neither is worth a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler()], force=True)
    # What dal has to say of a cluster is in its own errors; Dask would print a traceback for every lost connection.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
