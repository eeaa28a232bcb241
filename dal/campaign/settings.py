"""The user's choices for a campaign, and the TOML file that keeps them."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from dal.campaign.objects import check_store
from dal.choices import Vote
from dal.classes import class_flaw
from dal.errors import InputError, SettingsError
from dal.places import place_of
from dal.texts import composed, flaw


@dataclass(frozen=True)
class Settings:
    """The user's choices for a campaign.

    Parameters
    ----------
    pool : str
        Path or URL of the pool.
    classes : tuple of str
        The classes, at least two, in Unicode's composed form. Their order is the order of the label codes, so it is
        fixed for ever.
    estimator : str
        A preset's name or ``module:object``.
    strategy : str
        A strategy's name.
    batch_size : int
        Records asked in a round.
    random_state : int
        Decides every random choice of the campaign.
    stop : tuple of str
        Stopping criteria as text, such as ``"max_labels=5000"``; any of them ends the campaign.
    explore : float
        Share of what is asked that is drawn uniformly, from 0 to 1.
    trusted : tuple of str
        Types that a saved model may hold beyond those that are known to be safe.
    overlap : int
        Annotators who are to answer each record.
    gold : float
        Share of what is served to an annotator that are gold records, from 0 to 1.
    vote : {"majority", "dawid_skene"}
        How the answers of several annotators become one label.
    database : str
        URL of a PostgreSQL database; empty for an SQLite file in the campaign's directory.
    store : str
        URL of an object store for models and the files of rounds, such as ``s3://bucket/folder``; empty for the
        campaign's directory.
    close_at : float
        Share of a batch, above 0, whose answers are waited for before the next round begins.
    reserve : float
        Records chosen beyond the batch, as a share of it: people work on them while the next batch is prepared.
    stop_set : int
        Records held back from asking, on which successive models are compared.
    holdout : str
        Path of an .npz file with ``X`` and ``y``, labelled records outside of the pool; empty where there is none.
    missing_chunks : {"refuse", "fill"}
        What a chunk that is not stored means in a pool that is a plain Zarr array: an error, or the array's fill value.

    Examples
    --------
    >>> chosen = Settings("pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=20)
    >>> Settings.from_toml(chosen.to_toml()) == chosen
    True
    """

    pool: str
    classes: tuple[str, ...]
    estimator: str
    strategy: str
    batch_size: int
    random_state: int = 0
    stop: tuple[str, ...] = ()
    explore: float = 0.05
    trusted: tuple[str, ...] = ()
    overlap: int = 1
    gold: float = 0.0
    vote: Vote = "majority"
    database: str = ""
    store: str = ""
    close_at: float = 1.0
    reserve: float = 0.0
    stop_set: int = 0
    holdout: str = ""
    missing_chunks: Literal["refuse", "fill"] = "refuse"

    def __post_init__(self) -> None:
        # A class has one name, whichever keyboard or file system spelt its accents.
        if isinstance(self.classes, tuple):
            names = tuple(composed(name) if isinstance(name, str) else name for name in self.classes)
            object.__setattr__(self, "classes", names)

    def check(self) -> None:
        """Refuse settings that no campaign can have.

        Raises
        ------
        SettingsError
            For a setting that is not valid; the error names it and its value.
        """
        for name in ("estimator", "strategy"):
            _check_text(name, getattr(self, name))
        _check_pool(self.pool)
        for name in ("classes", "stop", "trusted"):
            _check_texts(name, getattr(self, name))
        for name in self.classes:
            if wrong := class_flaw(name):
                raise SettingsError(f"classes: {name!r} {wrong}")
        if len(self.classes) < 2:
            raise SettingsError(f"classes must have at least two names, got {list(self.classes)}")
        _check_integer("batch_size", self.batch_size, least=1)
        _check_integer("random_state", self.random_state, least=0)
        _check_integer("overlap", self.overlap, least=1)
        if self.vote not in (votes := get_args(Vote)):
            raise SettingsError(f"vote must be {' or '.join(votes)}, got {self.vote!r}")
        if self.database != "":
            _check_text("database", self.database)
        check_store(self.store)
        _check_number("explore", self.explore, _is_share, "a share of 0 or more and less than 1")
        _check_number("gold", self.gold, _is_share, "a share of 0 or more and less than 1")
        _check_integer("stop_set", self.stop_set, least=0)
        _check_number("close_at", self.close_at, lambda share: 0 < share <= 1, "a share above 0 and at most 1")
        _check_number("reserve", self.reserve, lambda share: 0 <= share <= 10, "a multiple of the batch from 0 to 10")
        if not isinstance(self.holdout, str):
            raise SettingsError(f"holdout must be the path of a file, got {self.holdout!r}")
        if self.missing_chunks not in ("refuse", "fill"):
            raise SettingsError(f"missing_chunks: refuse or fill was expected, {self.missing_chunks!r} came")

    def to_toml(self) -> str:
        """Return the settings as the TOML table ``[settings]``."""
        lines = (f"{name} = {_toml(value)}" for name, value in asdict(self).items())
        return "\n".join(["[settings]", *lines, ""])

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read the table ``[settings]``, and check it.

        Raises
        ------
        SettingsError
            If the text is no TOML, or a setting is missing, unknown or unusable.
        """
        try:
            table = tomllib.loads(text).get("settings")
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"the settings are no valid TOML: {error}") from error
        if not isinstance(table, dict):
            raise SettingsError("a table [settings] was expected, there is none")
        settings = cls(**_arguments(table))
        settings.check()
        return settings


RENAMED = {"learner": "estimator", "batch": "batch_size", "seed": "random_state"}
"""Names of settings in files of earlier versions, and their names now."""


def _arguments(table: dict[str, Any]) -> dict[str, Any]:
    table = {RENAMED.get(name, name) if RENAMED.get(name) not in table else name: table[name] for name in table}
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(set(table) - set(known)):
        raise SettingsError(f"unknown settings {', '.join(unknown)}; there are {', '.join(known)}")
    if missing := [name for name in ("pool", "classes", "estimator", "strategy", "batch_size") if name not in table]:
        raise SettingsError(f"the settings lack {', '.join(missing)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        raise SettingsError(f"{name} must be text without surrounding blanks, got {value!r}")
    if wrong := flaw(value):
        raise SettingsError(f"{name}: {value!r} {wrong}")


def _check_pool(pool: object) -> None:
    # A path may end in a blank, unlike the other texts.
    if not isinstance(pool, str):
        raise SettingsError(f"pool must be a path or a URL, got {pool!r}")
    try:
        place_of(pool)
        pool.encode()
    except (InputError, UnicodeEncodeError) as error:
        raise SettingsError(f"pool must be a path or a URL in UTF-8, got {pool!r}: {error}") from error


def _check_texts(name: str, values: object) -> None:
    if not isinstance(values, tuple):
        raise SettingsError(f"{name} must be several texts, got {values!r}")
    for value in values:
        _check_text(name, value)
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise SettingsError(f"{name}: {', '.join(repeated)} is there more than once")


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise SettingsError(f"{name}: an integer from {least} was expected, {value!r} came")


def _check_number(name: str, value: object, holds: Callable[[float], bool], expected: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not holds(value):
        raise SettingsError(f"{name} must be {expected}, got {value!r}")


def _is_share(value: float) -> bool:
    return 0 <= value < 1


def _toml(value: object) -> str:
    """Write a value as TOML, which for these types is JSON except for the character DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
