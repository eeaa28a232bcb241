"""From a pool and a file of known classes to a run: what `dal compare` does."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from distributed import Client

from dal.errors import SettingsError
from dal.explorer.run import Run, RunFolder, watched_by
from dal.figures import Table
from dal.learner import Learner
from dal.map import PoolMap
from dal.pool import Pool
from dal.selection import Strategy, uniform_rows
from dal.simulation import Comparison, Replay, TestSet, compare, compare_side_by_side

Rows = npt.NDArray[np.int64]

MOST_TEST = 5000
TEST_SHARE = 0.2
WHOLE_POOL_BYTES = 256 * 2**20
"""Pools up to this size are replayed whole on one worker each, many at a time; larger ones are scanned by all."""
_TEST_ROUND = 2**31
"""The round of the hash that draws the test records: none that a campaign reaches."""


@dataclass(frozen=True)
class Known:
    """The classes of all records.

    Attributes
    ----------
    classes : tuple of str
    codes : ndarray of shape (n_rows,), int64
    """

    classes: tuple[str, ...]
    codes: Rows

    @classmethod
    def read(cls, path: str | Path, n_rows: int) -> "Known":
        """Read an .npy file with one class a row, as integers or strings.

        Raises
        ------
        SettingsError
            If it is no such file; the message says what it is and what to do.
        """
        values = _labels(_loaded(Path(path)), Path(path))
        if len(values) != n_rows:
            raise SettingsError(
                f"{path} holds {len(values):,} labels, the pool has {n_rows:,} records: expected one label for each"
                " record, in the order of the pool's rows."
            )
        names, codes = np.unique(values, return_inverse=True)
        if len(names) < 2:
            raise SettingsError(f"All labels in {path} are {str(names[0])!r}: a learner needs two classes.")
        return cls(tuple(str(name) for name in names.tolist()), codes.astype(np.int64))

    def coded(self, values: npt.NDArray[Any], path: Path) -> Rows:
        """Give the codes of other labels.

        Raises
        ------
        SettingsError
            If one of them is none of the classes.
        """
        code_of = {name: code for code, name in enumerate(self.classes)}
        texts = [str(value) for value in _labels(values, path).tolist()]
        if unknown := sorted(set(texts) - set(code_of)):
            raise SettingsError(
                f"{path} holds the classes {', '.join(unknown[:5])}, which no record of the pool has; these are"
                f" {', '.join(self.classes[:20])}."
            )
        return np.array([code_of[text] for text in texts], dtype=np.int64)


def _loaded(path: Path) -> npt.NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise SettingsError(f"There is no file {path}.") from error
    except (ValueError, EOFError, OSError) as error:
        raise SettingsError(
            f"{path} cannot be read as .npy: {error}. Write it with np.save(path, labels); labels that are Python"
            " objects with np.save(path, labels.astype(str))."
        ) from error
    if not isinstance(found, np.ndarray):
        raise SettingsError(f"{path} is an .npz archive; expected an .npy file of labels alone.")
    return found


def _labels(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if values.ndim != 1:
        raise SettingsError(f"{path} holds an array of shape {values.shape}; expected one label for each record.")
    if values.dtype.kind not in "iuU":
        raise SettingsError(
            f"{path} holds {values.dtype}; labels are integers or strings. Convert them: labels.astype(int) or"
            " labels.astype(str)."
        )
    if values.dtype.kind == "i" and len(values) and values.min() < 0:
        raise SettingsError(
            f"{path} holds {values.min()}, which looks like a record of unknown class: a replay needs the class of"
            " every record."
        )
    return values


def read_test(path: str | Path, known: Known, n_features: int) -> TestSet:
    """Read a test set from an .npz file with the arrays ``X`` and ``y``.

    Raises
    ------
    SettingsError
        If it is no such file, or does not fit the pool.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            X, y = np.asarray(stored["X"], dtype=np.float32), stored["y"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"{path} cannot be read as a test set: {error}. Expected an .npz file, written by"
            " np.savez(path, X=features, y=labels)."
        ) from error
    X = X.reshape(len(X), -1)
    if X.shape != (len(y), n_features) or not len(y):
        raise SettingsError(
            f"{path} holds X of shape {X.shape} and {len(y)} labels; expected as many of both, and {n_features}"
            " features."
        )
    if not np.isfinite(X).all():
        raise SettingsError(f"{path} holds features that are NaN or infinite: leave those records out.")
    return TestSet(X, known.coded(y, path))


def held_out(pool: Pool, known: Known) -> tuple[Rows, TestSet]:
    """Draw test records out of the pool by hash: a fifth of it, at most 5,000, the same ones for any seed.

    Returns
    -------
    rows : ndarray of int64
        Ascending; they are never to be asked.
    test : TestSet
        The valid ones of them.
    """
    count = min(MOST_TEST, int(TEST_SHARE * pool.n_rows))
    drawn = uniform_rows(pool.n_rows, np.empty(0, np.int64), 0, _TEST_ROUND)
    rows = np.sort(np.fromiter(islice(drawn, count), np.int64))
    X = pool.take(rows)
    valid = np.isfinite(X).all(axis=1)
    if not valid.any():
        raise SettingsError(
            f"None of the {count:,} records drawn for testing can be used (too few, or NaN in each): pass a test set of"
            " your own."
        )
    return rows, TestSet(X[valid], known.codes[rows[valid]])


@dataclass(frozen=True)
class Plan:
    """What is to be compared, checked before any work starts.

    Attributes
    ----------
    pool : Pool
    known : Known
    strategies : tuple of str
    seeds : int
    learner : str
    batch, rounds : int
    test : path or None
        The user's own test set.
    """

    pool: Pool
    known: Known
    strategies: tuple[str, ...]
    seeds: int
    learner: str
    batch: int
    rounds: int
    test: Path | None

    def check(self) -> None:
        """Refuse what cannot be played.

        Raises
        ------
        InputError
        """
        if not self.strategies:
            raise SettingsError("Expected at least one strategy, such as random,margin,default.")
        for name in self.strategies:
            Strategy.named(name)
        for what, value in (("seed", self.seeds), ("record in a batch", self.batch), ("round", self.rounds)):
            if value < 1:
                raise SettingsError(f"Expected at least 1 {what}, got {value}.")
        room = self.pool.n_rows - (0 if self.test else min(MOST_TEST, int(TEST_SHARE * self.pool.n_rows)))
        if self.batch > room:
            raise SettingsError(
                f"Expected a batch of at most the {room:,} records that can be asked, got {self.batch:,}."
            )
        Learner.named(self.learner, self.known.classes).check(self.pool.n_features)
        if self.test is not None:
            read_test(self.test, self.known, self.pool.n_features)

    def settings(self) -> dict[str, object]:
        """Give what defines the replays: a run folder with others is another run. Strategies and seeds may be added."""
        test = None if self.test is None else hashlib.sha256(self.test.read_bytes()).hexdigest()
        answers = hashlib.sha256(repr(self.known.classes).encode() + self.known.codes.tobytes()).hexdigest()
        return {
            "pool": self.pool.fingerprint,
            "records": self.pool.n_rows,
            "answers": answers,
            "test": test,
            "learner": self.learner,
            "batch": self.batch,
            "rounds": self.rounds,
        }


def play(
    plan: Plan,
    folder: RunFolder,
    pool_map: PoolMap,
    *,
    client: Client | None = None,
    on_replay: Callable[[Replay], None] | None = None,
) -> Run:
    """Play what is not in the folder yet, and give the run.

    Parameters
    ----------
    plan : Plan
    folder : RunFolder
        Keeps each replay as soon as it ends.
    pool_map : PoolMap
    client : distributed.Client, optional
    on_replay : callable, optional
        Given every replay, those that were in the folder first.
    """
    pool, known = plan.pool, plan.known
    if plan.test is None:
        reserved, test = held_out(pool, known)
        note = f"Accuracy is measured on {len(test.y):,} records that were drawn from the pool and are never asked."
    else:
        reserved, test = np.empty(0, np.int64), read_test(plan.test, known, pool.n_features)
        note = f"Accuracy is measured on {len(test.y):,} test records of your own."
    wanted = [(strategy, seed) for seed in range(plan.seeds) for strategy in plan.strategies]
    done = [replay for replay in folder.replays() if (replay.strategy, replay.seed) in wanted]

    def told(replay: Replay) -> None:
        folder.add(replay)
        if on_replay is not None:
            on_replay(replay)

    for replay in done:
        if on_replay is not None:
            on_replay(replay)
    common: dict[str, Any] = {
        "seeds": range(plan.seeds),
        "learner": plan.learner,
        "batch": plan.batch,
        "rounds": plan.rounds,
        "reserved": reserved,
        "watched": watched_by(pool, pool_map),
        "client": client,
        "known": done,
        "on_replay": told,
    }
    side_by_side = client is not None and pool.nbytes <= WHOLE_POOL_BYTES
    played = (compare_side_by_side if side_by_side else compare)(
        pool, known.codes, test, known.classes, plan.strategies, **common
    )
    rows = np.unique(np.concatenate([pool_map.sample, *(rows for each in played.replays for rows in each.batches)]))
    run = Run(
        title=pool.path.rpartition("/")[2].removesuffix(".zarr"),
        classes=known.classes,
        replays=played.replays,
        rows=rows,
        codes=known.codes[rows],
        pool_map=pool_map,
        shares=tuple((np.bincount(known.codes, minlength=len(known.classes)) / len(known.codes)).tolist()),
        notes=(f"Learner {plan.learner}, {plan.batch} records asked in a round, no explore share.", note),
    )
    folder.finish(run)
    return run


def table(played: Comparison) -> Table:
    """Say what each strategy came to: its last accuracy, and what the accuracy costs that random always reached.

    Means over the seeds with 95 % intervals; differences are paired by seed.
    """
    baseline = "random" if "random" in played.strategies else None
    rows = []
    for name in played.strategies:
        mean, low, _ = played.band(name)
        accuracy, half = mean.accuracy[-1], mean.accuracy[-1] - low[-1]
        # Where all seeds came to the same, as those of a strategy that draws nothing do, that is told, too: ± 0.000.
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
