"""From a pool and a file of known classes to a run: the work of `dal compare`."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dal._files import read_labelled, read_labels
from dal.classes import Classes, alike, codes_of, distinct_names, listed
from dal.compute.client import connect
from dal.errors import LabelError, SettingsError
from dal.explorer.run import Run, RunFolder, watched_by
from dal.figures import Table
from dal.learners.learner import Learner
from dal.loop.learners import records_to_try
from dal.map import PoolMap
from dal.pool import Pool
from dal.replay import Comparison, Replay, TestSet, compare, compare_side_by_side
from dal.replay.held import held_out, size_of_test
from dal.selection.candidates import usable
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from dal.compute.client import Connectable

Rows = npt.NDArray[np.int64]

WHOLE_POOL_BYTES = 256 * 2**20
"""Largest pool that one worker replays whole, beside other replays; larger ones are scanned by all workers."""


_MADE_OF_NOTHING = frozenset({"nan", "None", "<NA>", "NaT"})
"""Texts that ``astype(str)`` makes of missing labels."""


@dataclass(frozen=True)
class Known:
    """The classes of all records.

    Attributes
    ----------
    classes : tuple of str
    codes : ndarray of int64, shape (n_rows,)
        -1 where the class is not known: such records are never asked, nor tested on.
    """

    classes: tuple[str, ...]
    codes: Rows

    @classmethod
    def read(cls, path: str | Path, n_rows: int, classes: Sequence[str] = ()) -> "Known":
        """Read an .npy file with one class a row, as numbers or texts; NaN and empty texts are no class.

        Parameters
        ----------
        path : path
        n_rows : int
            Number of records of the pool.
        classes : sequence of str, optional
            Default: all that occur.

        Raises
        ------
        SettingsError
            The file is no such file; the message says what it holds and what to do.
        """
        values = _labels(read_labels(Path(path)), Path(path))
        if len(values) != n_rows:
            raise SettingsError(
                f"{path} must have one label for each of the {n_rows:,} records, in the order of the pool's rows, got"
                f" {len(values):,} labels"
            )
        try:
            if classes:
                return cls(Classes(classes).names, codes_of(values, classes, what=str(path), gaps=True))
            names, codes = distinct_names(values, what=str(path))
        except LabelError as error:
            raise SettingsError(str(error)) from error
        if len(names) < 2:
            raise SettingsError(f"{path} must have labels of at least two classes, got only {listed(names) or 'none'}")
        _refuse_doubtful(names, Path(path))
        return cls(names, codes)

    def __call__(self, rows: Rows) -> npt.NDArray[np.object_]:
        """Return the names of the classes of rows.

        Names and not codes, because codes could be taken for names where the names are numbers.
        """
        return np.array(self.classes, dtype=object)[self.codes[rows]]

    @property
    def unknown(self) -> Rows:
        """Rows whose class is not known."""
        return np.flatnonzero(self.codes < 0)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each class among the records whose class is known."""
        known = self.codes[self.codes >= 0]
        return tuple((np.bincount(known, minlength=len(self.classes)) / max(len(known), 1)).tolist())

    def coded(self, values: npt.NDArray[Any], path: Path) -> Rows:
        """Return the codes of other labels.

        Raises
        ------
        SettingsError
            A label is none of the classes.
        """
        try:
            return codes_of(_labels(values, path), self.classes, what=f"y of {path}")
        except LabelError as error:
            raise SettingsError(f"{error}; the classes are those of the pool's records") from error


def _labels(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if values.ndim != 1:
        raise SettingsError(f"{path} must have one label for each record, got an array of shape {values.shape}")
    if values.dtype.kind not in "biufUS":
        raise SettingsError(f"{path} must hold labels that are numbers or texts, got {values.dtype}; convert them")
    if values.dtype.kind == "f" and ((values % 1 != 0) & np.isfinite(values)).any():
        raise SettingsError(f"{path} must hold names of classes, got fractions such as {values[values % 1 != 0][0]}")
    return values


def _refuse_doubtful(names: Sequence[str], path: Path) -> None:
    """Raise an error for labels that may mark missing values, and for a class in two spellings."""
    if twins := alike(names):
        raise SettingsError(
            f"{path} must spell each class in one way, got {twins[0]!r} and {twins[1]!r}; if they are two classes, "
            "name the"
            " classes (--class for each)"
        )
    marks = [name for name in names if name in _MADE_OF_NOTHING]
    # -1 marks unlabelled records in scikit-learn. It is a class beside 1 alone, and beside other negative numbers.
    numbers = {int(name) for name in names} if all(re.fullmatch(r"-?\d+", name) for name in names) else set()
    if -1 in numbers and min(numbers) == -1 and numbers != {-1, 1}:
        marks.append("-1")
    if marks:
        raise SettingsError(
            f"{path} must hold names of classes, got {marks[0]!r}, which may mean that the class is not known; if it "
            "is a "
            "class, name the classes (--class for each), else write NaN or an empty text in its place"
        )


def read_test(path: str | Path, known: Known, n_features: int, *, missing: bool = False) -> TestSet:
    """Read a test set from an .npz file with the arrays ``X`` and ``y``.

    Parameters
    ----------
    path : path
    known : Known
    n_features : int
    missing : bool, default=False
        Whether the learner takes NaN.

    Raises
    ------
    SettingsError
        The file is no such file, or does not match the pool.
    """
    path = Path(path)
    X, y = read_labelled(path, n_features)
    if not usable(X, missing=missing).all():
        raise SettingsError(f"{path} must hold finite features, got NaN or infinity; leave those records out")
    return TestSet(X, known.coded(y, path))


@dataclass(frozen=True)
class Plan:
    """The replays to compare, checked before any work starts.

    Attributes
    ----------
    pool : Pool
    known : Known
    strategies : tuple of str
    seeds : int
        Number of seeds.
    estimator : str
    batch_size, rounds : int
    test : path or None
        The user's own test set.
    trusted : tuple of str
        As in :meth:`dal.Campaign.create`.
    """

    pool: Pool
    known: Known
    strategies: tuple[str, ...]
    seeds: int
    estimator: str
    batch_size: int
    rounds: int
    test: Path | None
    trusted: tuple[str, ...] = ()

    def check(self) -> None:
        """Check that the plan can be played.

        Raises
        ------
        InputError
            A value cannot be used.
        """
        if not self.strategies:
            raise SettingsError("`strategies` must name at least one strategy, such as random or default, got none")
        for name in self.strategies:
            Strategy.named(name)
        for name, value in (("seeds", self.seeds), ("batch_size", self.batch_size), ("rounds", self.rounds)):
            if value < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {value}")
        room = self.pool.n_rows - len(self.known.unknown)
        room -= 0 if self.test else size_of_test(self.pool, self.known.codes)
        if self.batch_size > room:
            raise SettingsError(
                f"`batch_size` must be at most {room:,}, the records that can be asked, got {self.batch_size:,}"
            )
        records = records_to_try(self.pool)
        for score in {Strategy.named(name).scorer for name in self.strategies}:
            self._learner.check(self.pool.n_features, score, records=records)
        if self.test is not None:
            read_test(self.test, self.known, self.pool.n_features, missing=self.takes_missing)

    @property
    def takes_missing(self) -> bool:
        """Whether the learner takes records with missing features."""
        return self._learner.takes_missing(self.pool.n_features)

    @property
    def _learner(self) -> Learner:
        return Learner.named(self.estimator, self.known.classes, trusted=self.trusted)

    def settings(self) -> dict[str, object]:
        """Return the settings that define the replays, for the run folder; strategies and seeds may be added later."""
        test = None if self.test is None else hashlib.sha256(self.test.read_bytes()).hexdigest()
        answers = hashlib.sha256(repr(self.known.classes).encode() + self.known.codes.tobytes()).hexdigest()
        return {
            "pool": self.pool.fingerprint,
            "records": self.pool.n_rows,
            "answers": answers,
            "test": test,
            "learner": self.estimator,
            "batch": self.batch_size,
            "rounds": self.rounds,
        }


def play(
    plan: Plan,
    folder: RunFolder,
    pool_map: PoolMap,
    *,
    client: "Connectable" = None,
    on_replay: Callable[[Replay], None] | None = None,
) -> Run:
    """Play the replays that the folder lacks, and return the run.

    Parameters
    ----------
    plan : Plan
    folder : RunFolder
        Stores each replay as soon as it ends.
    pool_map : PoolMap
    client : distributed.Client, Cluster or str, optional
        Where to play, see :func:`dal.compute.client.connect`; without one, in this process.
    on_replay : callable, optional
        Called with every replay, those from the folder first.
    """
    pool, known = plan.pool, plan.known
    if plan.test is None:
        reserved, test = held_out(pool, known.codes, missing=plan.takes_missing)
        note = f"Accuracy is measured on {len(test.y):,} records that were drawn from the pool and are never asked."
    else:
        reserved, test = np.empty(0, np.int64), read_test(plan.test, known, pool.n_features, missing=plan.takes_missing)
        note = f"Accuracy is measured on {len(test.y):,} test records of your own."
    notes = [f"Learner {plan.estimator}, {plan.batch_size} records asked in a round, no explore share.", note]
    if len(known.unknown):
        reserved = np.union1d(reserved, known.unknown)
        notes.append(f"The class of {len(known.unknown):,} records is not known: they are never asked.")
    wanted = [(strategy, seed) for seed in range(plan.seeds) for strategy in plan.strategies]
    done = [replay for replay in folder.replays() if (replay.strategy, replay.seed) in wanted]

    def keep(replay: Replay) -> None:
        folder.add(replay)
        if on_replay is not None:
            on_replay(replay)

    for replay in done:
        if on_replay is not None:
            on_replay(replay)
    common: dict[str, Any] = {
        "random_state": range(plan.seeds),
        "estimator": plan.estimator,
        "trusted": plan.trusted,
        "batch_size": plan.batch_size,
        "rounds": plan.rounds,
        "reserved": reserved,
        "watched": watched_by(pool, pool_map),
        "known": done,
        "on_replay": keep,
    }
    names = np.array(known.classes, dtype=object)
    with connect(client) as connected:
        what = pool, known, TestSet(test.X, names[test.y]), known.classes, plan.strategies
        if connected is not None and pool.nbytes <= WHOLE_POOL_BYTES:
            played = compare_side_by_side(*what, client=connected, **common)
        else:
            played = compare(*what, client=connected, **common)
    rows = np.unique(np.concatenate([pool_map.sample, *(rows for each in played.replays for rows in each.batches)]))
    run = Run(
        title=pool.path.rpartition("/")[2].removesuffix(".zarr"),
        classes=known.classes,
        replays=played.replays,
        rows=rows,
        codes=known.codes[rows],
        pool_map=pool_map,
        shares=known.shares,
        notes=tuple(notes),
    )
    folder.finish(run)
    return run


def table(played: Comparison) -> Table:
    """Return a row for each strategy: its last accuracy, and the labels to reach random's.

    The accuracy to reach is the one that random sampling reached with every seed. Values are means over the seeds with
    95 % intervals; differences are paired by seed.
    """
    baseline = "random" if "random" in played.strategies else None
    rows = []
    for name in played.strategies:
        mean, low, _ = played.band(name)
        accuracy, half = mean.accuracy[-1], mean.accuracy[-1] - low[-1]
        # ± 0.000 is shown as well, for a strategy that draws nothing and so is the same with every seed.
        interval = f" ± {half:.3f}" if len(played.of(name)) > 1 else ""
        line = [name, f"{mean.labels[-1]:,}", f"{accuracy:.3f}{interval}"]
        if baseline is not None:
            needed = played.needed(name, played.reached_by_all(baseline), baseline if name != baseline else None)
            line.append("-" if needed.labels is None else f"{needed.labels:,.0f}")
            difference = "" if needed.difference is None else f"{needed.difference:+,.0f}"
            line.append(difference + ("" if needed.half_width is None else f" ± {needed.half_width:,.0f}"))
        rows.append(line)
    more = [f"labels for {played.reached_by_all(baseline):.3f}", "against random"] if baseline is not None else []
    return Table(("strategy", "labels", "accuracy", *more), rows)
