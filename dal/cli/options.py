"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from dal.campaign.settings import GROUPS, Settings, choices_of

_Command = TypeVar("_Command", bound=Callable[..., Any])


def workers_options(
    command: Callable[..., None],
    processes: str = "Worker processes on this machine; 0: none. Default: one a core where that is faster than none.",
) -> Callable[..., None]:
    """Add the options that say where work is done; `processes` is the help of those on this machine."""
    command = tls_options(command)
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help=processes,
        ),
        click.option("--scheduler", help="Address of a Dask scheduler, whose workers are used instead."),
    ):
        command = option(command)
    return command


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name certificates for the scheduler of the option `--scheduler`, and keep to them.

    They have the names that they have in Dask's own commands. They reach no function: what they say is Dask's
    configuration while the command runs.
    """

    @wraps(command)
    def encrypted(
        *args: object, tls_ca_file: Path | None, tls_cert: Path | None, tls_key: Path | None, **options: object
    ) -> None:
        from dal.compute.tls import certificates

        scheduler = options["scheduler"]
        assert scheduler is None or isinstance(scheduler, str)
        with certificates(scheduler, ca_file=tls_ca_file, cert=tls_cert, key=tls_key):
            command(*args, **options)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--tls-key", type=file, help="Key of that certificate, PEM."),
        click.option("--tls-cert", type=file, help="Certificate of this command for a scheduler at tls://, PEM."),
        click.option("--tls-ca-file", type=file, help="Who signed the certificates of that cluster, PEM."),
    ):
        encrypted = option(encrypted)
    return encrypted


def option_of(kind: type[Any], name: str) -> Callable[[_Command], _Command]:
    """Return the option of a setting, as its field has it: name, type, default, choices and help."""
    [each] = [each for each in fields(kind) if each.name == name]
    several, optional = each.type == tuple[str, ...], each.default in ("", (), None)
    choices = choices_of(each)
    given: Any = click.Choice(choices) if choices else None
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=given or (str if several or each.type is str else int if each.type == int | None else each.type),
        multiple=several,
        default=each.default,
        show_default=not optional,
        help=each.metadata["help"] + (" Repeat it for several." if several else ""),
    )


def settings_options(command: _Command) -> _Command:
    """Add the options of all settings but the pool and its classes, in the order of `campaign.toml`."""
    kinds: list[type[Any]] = [Settings, *GROUPS.values()]
    names = [(kind, each.name) for kind in kinds for each in fields(kind) if each.name not in _APART]
    for kind, name in reversed(names):
        command = option_of(kind, name)(command)
    return command


def grouped(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the values of :func:`settings_options` as arguments of `Campaign.create`."""
    groups = {
        place: kind(**{each.name: chosen.pop(each.name) for each in fields(kind)}) for place, kind in GROUPS.items()
    }
    return chosen | groups


_APART = {"pool", "classes", *GROUPS}

missing_chunks_option = option_of(Settings, "missing_chunks")


def class_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the three options that name the classes; :func:`classes_of` reads them."""
    for option in (
        click.option(
            "--classes-from",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file of classes, UTF-8, one a line.",
        ),
        click.option("--class", "each_class", multiple=True, help="A class; repeat it for each. It may hold commas."),
        click.option("--classes", help="The classes, separated by commas."),
    ):
        command = option(command)
    return command


def classes_of(classes: str | None, each_class: tuple[str, ...], classes_from: Path | None) -> list[str]:
    """Return the classes that the options of :func:`class_options` name; none where none was given."""
    given = [
        name
        for name, value in (("--classes", classes), ("--class", each_class), ("--classes-from", classes_from))
        if value
    ]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} name the classes twice: give one of them.")
    if classes_from is not None:
        try:
            lines = classes_from.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{classes_from} must be UTF-8: save it as such.") from error
        named = [line.strip() for line in lines if line.strip()]
        if not named:
            raise click.UsageError(f"{classes_from} must hold a class a line, got none; write the classes into it.")
        return named
    return list(each_class) or split(classes or "")


def split(text: str) -> list[str]:
    """Return the parts of a text that commas separate, without blanks and empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def system_user() -> str:
    """Return the name of the system's user, which annotators have who are not named."""
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # as in a container whose user has no name
        raise click.ClickException("This system has no name for you: say who answered with --annotator.") from error
