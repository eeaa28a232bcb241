"""The loop with a known oracle: replaying a campaign, and comparing strategies on the same pool."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from distributed import Client
from sklearn.base import BaseEstimator

from dal.campaign import Answer, Campaign
from dal.coordinator import Stopped, create_campaign, learner_of, next_batch
from dal.errors import SettingsError
from dal.learner import Model
from dal.pool import Pool
from dal.scan import Progress
from dal.selection import Strategy

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int64]
Oracle = Callable[[Rows], Codes]


@dataclass(frozen=True)
class TestSet:
    """Records outside the pool whose classes are known, to measure accuracy on.

    Attributes
    ----------
    X : ndarray of shape (n, d), float32
    y : ndarray of shape (n,), int64
        Class codes.
    """

    __test__ = False  # the name is not a test's

    X: npt.NDArray[np.float32]
    y: Codes

    def accuracy(self, model: Model) -> float:
        """Share of the records whose class the model predicts."""
        return float((model.predict_proba(self.X).argmax(axis=1) == self.y).mean())


@dataclass(frozen=True)
class Replay:
    """One campaign, played against an oracle.

    Attributes
    ----------
    strategy : str
    seed : int
    labels : tuple of int
        Labels known at each point of the learning curve, the first batch first.
    accuracy : tuple of float
        Of a learner fitted on just these labels, on the test set.
    batches : tuple of ndarray
        Rows asked in each round.
    """

    strategy: str
    seed: int
    labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    batches: tuple[Rows, ...]

    @property
    def area(self) -> float:
        """Mean accuracy over the labels asked: the area under the learning curve, divided by its width."""
        if len(self.labels) < 2:
            return self.accuracy[0]
        return float(np.trapezoid(self.accuracy, self.labels) / (self.labels[-1] - self.labels[0]))

    def labels_to_reach(self, accuracy: float) -> float | None:
        """Labels until the curve first reaches an accuracy, between points in a straight line; None if it never does.

        Examples
        --------
        >>> replay = Replay("margin", 0, (10, 20, 30), (0.5, 0.7, 0.9), ())
        >>> round(replay.labels_to_reach(0.8), 6), replay.labels_to_reach(0.95)
        (25.0, None)
        """
        for index, reached in enumerate(self.accuracy):
            if reached >= accuracy:
                if index == 0:
                    return float(self.labels[0])
                before, low = self.labels[index - 1], self.accuracy[index - 1]
                return before + (self.labels[index] - before) * (accuracy - low) / (reached - low)
        return None


@dataclass(frozen=True)
class Comparison:
    """Replays of several strategies on one pool, several seeds each."""

    replays: tuple[Replay, ...]

    def of(self, strategy: str) -> list[Replay]:
        """Give the replays of one strategy, by seed."""
        return sorted((r for r in self.replays if r.strategy == strategy), key=lambda r: r.seed)

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order in which they were given."""
        return list(dict.fromkeys(replay.strategy for replay in self.replays))

    def labels_to_reach(self, strategy: str, accuracy: float) -> float | None:
        """Labels at which the mean curve of a strategy first reaches an accuracy."""
        return self.mean(strategy).labels_to_reach(accuracy)

    def mean(self, strategy: str) -> Replay:
        """Average the curves of a strategy over its seeds."""
        replays = self.of(strategy)
        points = min(len(replay.labels) for replay in replays)
        labels = np.mean([replay.labels[:points] for replay in replays], axis=0).round().astype(int)
        accuracy = np.mean([replay.accuracy[:points] for replay in replays], axis=0)
        return Replay(strategy, -1, tuple(labels.tolist()), tuple(accuracy.tolist()), ())


def simulate(
    pool: Pool,
    oracle: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    *,
    strategy: str = "default",
    learner: str | BaseEstimator = "logistic",
    batch: int = 50,
    rounds: int = 10,
    seed: int = 0,
    explore: float = 0.0,
    client: Client | None = None,
    directory: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_round: Callable[[Replay], None] | None = None,
) -> Replay:
    """Play a campaign against an oracle that knows every class.

    It is the real loop, durable campaign and all; only the people are replaced.

    Parameters
    ----------
    pool : Pool
    oracle : array of class codes by row, or callable from rows to class codes
    test : TestSet
        Records that are not in the pool.
    classes : sequence of str
    strategy, learner, batch, seed
        As in :func:`dal.create_campaign`.
    rounds : int, default=10
        Batches to ask; fewer where the pool is exhausted.
    explore : float, default=0.0
        Zero, unlike in a real campaign: strategies are compared, not measured.
    client : distributed.Client, optional
    directory : path, optional
        Where the campaign is kept; without it, in a temporary place.
    progress : callable, optional
        Told of each scan's progress.
    on_round : callable, optional
        Given the replay so far after each round.

    Returns
    -------
    Replay
    """
    if rounds < 1:
        raise SettingsError(f"Expected at least 1 round, got {rounds}.")
    ask = oracle if callable(oracle) else _from_array(np.asarray(oracle), pool)
    with ExitStack() as stack:
        place = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="dal-"))
        campaign = create_campaign(
            place, pool, classes, learner=learner, strategy=strategy, batch=batch, seed=seed, explore=explore
        )
        replay = Replay(strategy, seed, (), (), ())
        for _ in range(rounds):
            # Where every label is of one class, as in a pool of rare ones, people would ask for coverage. What asks no
            # learner goes on, as random sampling does: it is what the others are measured against.
            coverage = (
                Strategy.named(strategy).score != "random" and len(np.unique(campaign.latest_answers().labels)) == 1
            )
            given = next_batch(campaign, client=client, progress=progress, coverage=coverage)
            if isinstance(given, Stopped):
                break
            answer_batch(campaign, given.rows, given.record_ids, ask(given.rows))
            replay = _measured(replay, campaign, pool, test, given.rows)
            if on_round is not None:
                on_round(replay)
    return replay


def compare(
    pool: Pool,
    oracle: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    strategies: Sequence[str] = ("default", "random"),
    *,
    seeds: Sequence[int] = (0,),
    learner: str | BaseEstimator = "logistic",
    batch: int = 50,
    rounds: int = 10,
    client: Client | None = None,
    on_round: Callable[[Replay], None] | None = None,
) -> Comparison:
    """Play the same campaign with several strategies, paired by seed.

    Parameters
    ----------
    pool, oracle, test, classes, learner, batch, rounds, client, on_round
        As in :func:`simulate`.
    strategies : sequence of str
    seeds : sequence of int, default=(0,)
        One seed shows how a strategy works; to tell two apart takes ten or more.

    Returns
    -------
    Comparison
    """
    return Comparison(
        tuple(
            simulate(
                pool,
                oracle,
                test,
                classes,
                strategy=strategy,
                learner=learner,
                batch=batch,
                rounds=rounds,
                seed=seed,
                client=client,
                on_round=on_round,
            )
            for seed in seeds
            for strategy in strategies
        )
    )


def answer_batch(
    campaign: Campaign, rows: Rows, record_ids: Sequence[str], codes: Codes, annotator: str = "oracle"
) -> None:
    """Give an answer to each of these records."""
    answers = (
        Answer(row=row, record_id=record_id, annotator=annotator, status="submitted", label=code)
        for row, record_id, code in zip(rows.tolist(), record_ids, np.asarray(codes).tolist(), strict=True)
    )
    campaign.add_answers(answers, source=annotator)


def saved_labels(comparison: Comparison, strategy: str, against: str = "random") -> Mapping[str, float] | None:
    """Say how many labels a strategy saved: those it needs to reach what the other reached at its end.

    Returns
    -------
    mapping or None
        ``accuracy``, ``labels``, ``labels_against``, ``share`` saved; None if the strategy never got there.
    """
    last = comparison.mean(against)
    needed = comparison.labels_to_reach(strategy, last.accuracy[-1])
    if needed is None:
        return None
    spent = comparison.labels_to_reach(against, last.accuracy[-1]) or last.labels[-1]
    return {"accuracy": last.accuracy[-1], "labels": needed, "labels_against": spent, "share": 1 - needed / spent}


def _from_array(codes: npt.NDArray[np.integer], pool: Pool) -> Oracle:
    if codes.shape != (pool.n_rows,):
        raise SettingsError(f"Expected one class code for each of the {pool.n_rows:,} rows, got shape {codes.shape}.")
    return lambda rows: codes[rows].astype(np.int64)


def _measured(replay: Replay, campaign: Campaign, pool: Pool, test: TestSet, rows: Rows) -> Replay:
    answers = campaign.latest_answers()
    seen = np.unique(answers.labels)
    # One class cannot be learned: what is known then is to always predict it.
    accuracy = float((test.y == seen[0]).mean())
    if len(seen) > 1:
        model = learner_of(campaign).fit(pool.take(answers.rows), answers.labels)
        accuracy = test.accuracy(model)
    return Replay(
        replay.strategy,
        replay.seed,
        (*replay.labels, len(answers.rows)),
        (*replay.accuracy, accuracy),
        (*replay.batches, rows),
    )
