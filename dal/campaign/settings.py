"""The user's choices for a campaign: named, documented and checked in one place.

Each setting is a field of a small frozen class, with its help, its default and its check. The arguments of
`dal.Campaign.create`, the tables of ``campaign.toml`` and the options of ``dal init`` have their names. This module
imports nothing heavy, because the command line makes its options from it.
"""

import json
import math
import os
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Self, TypeVar, get_args

from dal.choices import PRESETS, STRATEGIES, Extent, Missing, Vote
from dal.errors import InputError, SettingsError
from dal.places import place_of
from dal.texts import composed, flaw

Check = Callable[[str, object], None]
"""Raises a SettingsError that names the setting, where the value cannot be used."""

_Kind = TypeVar("_Kind", bound=type)


def _setting(check: Check, summary: str, **how: Any) -> Any:  # noqa: ANN401 - as `dataclasses.field`
    return field(metadata={"check": check, "help": summary}, **how)


def documented(kind: _Kind) -> _Kind:
    """Write the fields of a class of settings into its docstring, from their help."""
    lines = ["Parameters", "----------"]
    for each in fields(kind):
        lines += [f"{each.name} : {_in_words(each)}", f"    {each.metadata['help']}"]
    kind.__doc__ = f"{kind.__doc__}\n\n    " + "\n    ".join(lines) + "\n    "
    return kind


def _in_words(each: "Field[Any]") -> str:
    kind: Any = each.type
    if choices := choices_of(each):
        name = "{" + ", ".join(f'"{choice}"' for choice in choices) + "}"
    else:
        name = {tuple[str, ...]: "tuple of str", int | None: "int or None"}.get(kind) or kind.__name__
    plain = each.default is not MISSING and not isinstance(each.default, _Checked)
    return f"{name}, default={each.default!r}" if plain else str(name)


def choices_of(each: "Field[Any]") -> tuple[str, ...]:
    """Return the values that a setting may have; none where they cannot be listed."""
    return get_args(each.type) if each.type in (Vote, Missing, Extent) else ()


# -- checks ------------------------------------------------------------------------------------------------------------


def _must(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise SettingsError(f"`{name}` must be {expected}, got {value!r}")


def _integer(least: int, *, optional: bool = False) -> Check:
    def check(name: str, value: object) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
        _must(whole or (optional and value is None), name, f"an integer of {least} or more", value)

    return check


def _number(holds: Callable[[float], bool], expected: str) -> Check:
    def check(name: str, value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and holds(value)
        _must(number, name, expected, value)

    return check


_share = _number(lambda value: 0 <= value < 1, "a share of 0 or more and less than 1")


def _one_of(choices: tuple[str, ...]) -> Check:
    return lambda name, value: _must(value in choices, name, " or ".join(choices), value)


def _text(name: str, value: object) -> None:
    clean = isinstance(value, str) and bool(value.strip()) and value == value.strip()
    _must(clean, name, "text without surrounding blanks", value)
    if wrong := flaw(str(value)):
        raise SettingsError(f"`{name}` must be text that can be stored, got {value!r}, which {wrong}")


def _text_or_none(name: str, value: object) -> None:
    if value != "":
        _text(name, value)


def _texts(name: str, values: object) -> None:
    if not isinstance(values, tuple):
        raise SettingsError(f"`{name}` must be several texts, got {values!r}")
    for value in values:
        _text(name, value)
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        from dal.classes import listed  # of NumPy, and this module is imported for help

        raise SettingsError(f"`{name}` must be different, got {listed(repeated)} more than once")


def _classes(name: str, values: object) -> None:
    from dal.classes import class_flaw

    _texts(name, values)
    assert isinstance(values, tuple)
    for value in values:
        if wrong := class_flaw(value):
            raise SettingsError(f"`{name}` must be names that a page can show, got {value!r}, which {wrong}")
    _must(len(values) > 1, name, "at least two names", list(values))


def _pool(name: str, value: object) -> None:
    # A path may end in a blank, unlike the other texts.
    _must(isinstance(value, str), name, "a path or a URL", value)
    try:
        place_of(str(value))
        str(value).encode()
    except (InputError, UnicodeEncodeError) as error:
        raise SettingsError(f"`{name}` must be a path or a URL in UTF-8, got {value!r}: {error}") from error


def _store(name: str, value: object) -> None:
    if value == "":
        return
    try:
        lasts = isinstance(value, str) and not str(place_of(value)).startswith("memory:")
    except InputError:
        lasts = False
    text = str(value)
    if not lasts or "://" not in text or "::" in text or text != text.strip():
        raise SettingsError(
            f"`{name}` must be a URL such as s3://bucket/folder, got {value!r}; leave it out to keep models in the"
            " campaign's directory"
        )


def _path(name: str, value: object) -> None:
    _must(isinstance(value, str), name, "the path of a file", value)


# -- the settings ------------------------------------------------------------------------------------------------------


class _Checked:
    """Checks its fields as it is made."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # a subclass is a dataclass
            each.metadata["check"](each.name, getattr(self, each.name))


@documented
@dataclass(frozen=True)
class Labelling(_Checked):
    """The way from records to labels: who is asked, how often, and how answers become a label."""

    overlap: int = _setting(_integer(1), "Annotators who are to answer each record.", default=1)
    gold: float = _setting(_share, "Share of the served records whose label is known.", default=0.0)
    vote: Vote = _setting(
        _one_of(get_args(Vote)),
        "How several answers become a label. dawid_skene weighs annotators by how they err, and records by how sure"
        " their label is; the estimator must take weights.",
        default="majority",
    )
    close_at: float = _setting(
        _number(lambda share: 0 < share <= 1, "a share above 0 and at most 1"),
        "Share of a batch whose answers are waited for. The next round is prepared from these, while people answer the"
        " others, which count from the round after it on.",
        default=1.0,
    )
    again: float = _setting(
        _share,
        "Share of a batch, at most, that asks another person about records that have labels, where a label is less sure"
        " than the model is of a new record. Served by the pages alone, and only where several people answer.",
        default=0.0,
    )
    machine_check: float = _setting(
        _number(lambda share: 0 < share <= 1, "a share above 0 and at most 1"),
        "Of the records that a machine's answer could settle, the share that people answer as well, drawn at random, to"
        " see how often it is right. People answer all others: the explore share, and where machine and model differ.",
        default=0.1,
    )
    machine_accuracy: float = _setting(
        _number(lambda share: 0 < share <= 1, "a share above 0 and at most 1"),
        "Lower end of the 95 % interval of the share in which a machine is right where people have checked it, from"
        " which on its answers settle records without a person.",
        default=0.9,
    )
    reserve: float = _setting(
        _number(lambda share: 0 <= share <= 10, "a multiple of the batch from 0 to 10"),
        "Records beyond the batch, as a share of it, to work on while the next batch is prepared.",
        default=0.0,
    )

    def spare(self, size: int) -> int:
        """Return how many records of a batch need not be waited for.

        Examples
        --------
        >>> Labelling(close_at=0.9).spare(10), Labelling(close_at=0.85).spare(10), Labelling().spare(10)
        (1, 1, 0)
        """
        # The rounding is of shares people write, such as 0.9 of 10, which in binary is a little more than 9.
        return size - math.ceil(round(self.close_at * size, 9))


@documented
@dataclass(frozen=True)
class Storage(_Checked):
    """The places where a campaign keeps its state."""

    database: str = _setting(
        _text_or_none, "URL of a PostgreSQL database. By default a file in the campaign's directory.", default=""
    )
    store: str = _setting(
        _store,
        "URL of an object store for models and the files of rounds, such as s3://bucket/folder, so that a coordinator"
        " on another machine can go on. By default the campaign's directory.",
        default="",
    )


@documented
@dataclass(frozen=True)
class Measuring(_Checked):
    """Records that are held apart, to measure on."""

    stop_set: int | None = _setting(
        _integer(0, optional=True),
        "Records held back from asking, to compare models on. By default one in a hundred and at most 1,000; none where"
        " that would be fewer than 100.",
        default=None,
    )
    holdout: str = _setting(
        _path,
        "An .npz file of labelled records outside of the pool, X (n, d) and y (n,), the names of their classes."
        " Accuracy is then measured on them.",
        default="",
    )
    advise_every: int = _setting(
        _integer(0),
        "Labels from one comparison of the learner in use with the presets to the next; 0: none. It is made once a"
        " batch is open, and takes seconds to minutes of one process.",
        default=0,
    )

    def __post_init__(self) -> None:
        if isinstance(self.holdout, os.PathLike):
            object.__setattr__(self, "holdout", os.fspath(self.holdout))
        super().__post_init__()


@documented
@dataclass(frozen=True)
class Scanning(_Checked):
    """The part of the pool that a round scores."""

    scan: Extent = _setting(
        _one_of(get_args(Extent)),
        "full: a round scores the whole pool. waves: it scores blocks of the pool in random order, until the shortlist"
        " is good enough. auto: by waves where one process would score the whole pool for longer than people take to"
        " answer a batch, at 5 s a record.",
        default="auto",
    )
    floor: float = _setting(
        _number(lambda share: 0 < share <= 1, "a share above 0 and at most 1"),
        "By waves: share of the best score that the last record of the shortlist must reach.",
        default=0.9,
    )
    full_every: int = _setting(
        _integer(1), "By waves: rounds from one that scores the whole pool to the next.", default=10
    )


def _group(kind: type[_Checked]) -> Any:  # noqa: ANN401 - as `dataclasses.field`
    def check(name: str, value: object) -> None:
        _must(isinstance(value, kind), name, f"of the type {kind.__name__}", value)

    return _setting(check, f"{(kind.__doc__ or '').partition('.')[0]}.", default=kind())


@documented
@dataclass(frozen=True)
class Settings(_Checked):
    """The user's choices for a campaign.

    Examples
    --------
    >>> chosen = Settings("pool.zarr", ("cat", "dog"), strategy="margin", labelling=Labelling(overlap=2))
    >>> Settings.from_toml(chosen.to_toml()) == chosen
    True
    """

    pool: str = _setting(_pool, "Path or URL of the pool.")
    classes: tuple[str, ...] = _setting(
        _classes, "The classes, at least two. Their order is the order of the label codes, so it is fixed for ever."
    )
    estimator: str = _setting(
        _text_or_none,
        f"What learns: {', '.join(PRESETS)}, an installed plug-in, or module:object of your own. By default head where"
        " an encoder made the pool's features, else logistic.",
        default="",
    )
    strategy: str = _setting(
        _text_or_none,
        f"Which records are asked: {', '.join(STRATEGIES)}, or one of your own. By default class_coverage where an"
        " encoder made the pool's features, else default.",
        default="",
    )
    batch_size: int = _setting(_integer(1), "Records asked in a round.", default=100)
    random_state: int = _setting(_integer(0), "Same number, same batches.", default=0)
    stop: tuple[str, ...] = _setting(
        _texts, "Stopping criteria, such as max_labels=5000; any of them ends the campaign.", default=()
    )
    balance: tuple[str, ...] = _setting(
        _texts,
        "Share of all labels that a class is to have: uniform, the same for each, or class=share, such as rare=0.2. The"
        " batch then holds records that are predicted to be of the classes that lack most.",
        default=(),
    )
    explore: float = _setting(
        _share, "Share of what is asked that is drawn uniformly, to measure honestly.", default=0.05
    )
    trusted: tuple[str, ...] = _setting(
        _texts, "Types, by full name, that a saved model may hold beyond those known to be safe.", default=()
    )
    missing_chunks: Missing = _setting(
        _one_of(get_args(Missing)),
        "Of a plain Zarr array: whether a chunk that is not stored is an error, or means the fill value.",
        default="refuse",
    )
    labelling: Labelling = _group(Labelling)
    storage: Storage = _group(Storage)
    measuring: Measuring = _group(Measuring)
    scanning: Scanning = _group(Scanning)

    def __post_init__(self) -> None:
        # A class has one name, whichever keyboard or file system spelt its accents.
        if isinstance(self.classes, tuple):
            names = tuple(composed(name) if isinstance(name, str) else name for name in self.classes)
            object.__setattr__(self, "classes", names)
        super().__post_init__()
        shares_of(self.balance, self.classes)
        if self.balance and self.labelling.again:
            raise SettingsError(
                f"`again` must be 0 where `balance` is set, got {self.labelling.again}: second opinions would take the"
                " places of classes that lack; leave one of them out"
            )

    def to_toml(self) -> str:
        """Return the settings as the tables of campaign.toml, each below its help."""
        lines = ["[settings]"]
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, _Checked):
                lines += ["", f"[{each.name}]"]
                for part in fields(value):  # type: ignore[arg-type]  # a subclass is a dataclass
                    lines += _lines(part, getattr(value, part.name))
            else:
                lines += _lines(each, value)
        return "\n".join([*lines, ""])

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read the tables of campaign.toml.

        Raises
        ------
        SettingsError
            If the text is no TOML, or a setting is missing, unknown or unusable.
        """
        try:
            tables = tables_of(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"the settings are no valid TOML: {error}") from error
        own = tables["settings"]
        if missing := [name for name in _WRITTEN if name not in own]:
            raise SettingsError(f"the settings lack {', '.join(missing)}")
        groups = {name: kind(**_arguments(tables[name])) for name, kind in GROUPS.items()}
        return cls(**_arguments(own), **groups)


def shares_of(balance: tuple[str, ...], classes: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the share of all labels that each class is to have; None where none is to have any.

    Raises
    ------
    SettingsError
        If a part of `balance` is neither ``uniform``, alone, nor a class with a share, or the shares add up to over 1.

    Examples
    --------
    >>> shares_of(("uniform",), ("ham", "spam")), shares_of(("spam=0.2",), ("ham", "spam")), shares_of((), ("a", "b"))
    ((0.5, 0.5), (0.0, 0.2), None)
    """
    if not balance:
        return None
    if balance == ("uniform",):
        return tuple(1 / len(classes) for _ in classes)
    shares = dict.fromkeys(classes, 0.0)
    for part in balance:
        name, _, text = part.rpartition("=")
        name = composed(name.strip())
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if name not in shares or not 0 < share <= 1 or shares[name]:
            from dal.classes import listed  # of NumPy, and this module is imported for help

            raise SettingsError(
                f"`balance` must be uniform alone, or class=share once for a class, with a share above 0 and at most 1,"
                f" got {part!r}; name one of the classes {listed(classes)}"
            )
        shares[name] = share
    if math.fsum(shares.values()) > 1 + 1e-9:
        from dal.classes import listed

        raise SettingsError(
            f"`balance` must have shares that add up to at most 1, got {listed(balance)}, which add up to"
            f" {math.fsum(shares.values()):g}; lower some"
        )
    return tuple(shares.values())


GROUPS: dict[str, type[Any]] = {
    each.name: type(each.default) for each in fields(Settings) if isinstance(each.default, _Checked)
}
"""The tables beside ``[settings]``, and their classes."""

_WRITTEN = ("pool", "classes", "estimator", "strategy", "batch_size")
"""Settings that a file must have: with other ones than it was made with, a campaign would silently go another way."""

_RENAMED = {"learner": "estimator", "batch": "batch_size", "seed": "random_state"}
"""Names in files of earlier versions, in which all settings were in one table, and their names now."""


def tables_of(text: str) -> dict[str, dict[str, Any]]:
    """Read the tables of settings in a TOML text, each with the names of now; values are not checked.

    Raises
    ------
    SettingsError
        If there is no table ``[settings]``, or a table or setting that is not known.
    TOMLDecodeError
    """
    found = tomllib.loads(text)
    if not isinstance(found.get("settings"), dict):
        raise SettingsError("`campaign.toml` must have a table [settings], got none")
    kinds: dict[str, type[Any]] = {"settings": Settings, **GROUPS}
    if unknown := sorted(name for name, table in found.items() if isinstance(table, dict) and name not in kinds):
        raise SettingsError(f"unknown tables {', '.join(unknown)}; there are {', '.join(kinds)}")
    tables: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    homes = {name: place for place, kind in kinds.items() for name in _names(kind)}
    for place, kind in kinds.items():
        given = found.get(place, {})
        if not isinstance(given, dict):
            raise SettingsError(f"`{place}` must be a table, got {given!r}")
        for old, value in given.items():
            name = str(_RENAMED.get(old, old))
            home = homes.get(name, "")
            if place not in ("settings", home) or not home:
                raise SettingsError(f"unknown settings {old} in [{place}]; there are {', '.join(_names(kind))}")
            if name in tables[home]:
                raise SettingsError(f"`{name}` must be set once, got it twice")
            tables[home][name] = value
    return tables


def _names(kind: type[Any]) -> list[str]:
    return [each.name for each in fields(kind) if each.name not in GROUPS]


def _arguments(table: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _lines(each: "Field[Any]", value: object) -> list[str]:
    """Return a setting as TOML, which for these types is JSON except for the character DEL."""
    if value is None:
        return []
    written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return [
        *textwrap.wrap(each.metadata["help"], 100, initial_indent="# ", subsequent_indent="# "),
        f"{each.name} = {written}",
    ]
