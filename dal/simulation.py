"""The loop with a known oracle: replaying a campaign, and comparing strategies on the same pool."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator

from dal.campaign import Answer, Campaign
from dal.campaign.parts import learner_of
from dal.classes import UNLABELLED, codes_of, names_of
from dal.compute.client import connect
from dal.compute.workers import Workers, workers_of
from dal.errors import LabelError, SettingsError
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.loop.api import Batch, Stopped, create_campaign, next_batch
from dal.plugins import Slot, Unnameable, lent, text_of
from dal.pool import Pool
from dal.scan import Progress
from dal.scores import SLOT as SCORES
from dal.selection.candidates import usable
from dal.selection.strategy import SELECTORS, Strategy
from dal.texts import brief

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    from dal.compute.client import Connectable
    from dal.compute.work import Beat

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int64]
Oracle = Callable[[Rows], npt.ArrayLike]

NO_CLASS = 255
"""In a view: no learner yet or none that takes the record, or a class beyond the 255 that a byte can name."""


@dataclass(frozen=True)
class TestSet:
    """Records outside the pool whose classes are known, to measure accuracy on.

    Attributes
    ----------
    X : ndarray of shape (n, d), float32
    y : ndarray of shape (n,)
        Names of classes, or their codes where no class is called by a number; codes once it is used.
    """

    __test__ = False  # the name is not a test's

    X: npt.NDArray[np.float32]
    y: npt.NDArray[Any]

    def accuracy(self, model: Model) -> float:
        """Return the share of the records whose class the model predicts."""
        return float((model.predict_proba(self.X).argmax(axis=1) == self.y).mean())

    def check(self, learner: Learner, n_features: int) -> None:
        """Refuse records that the learner cannot be given.

        Raises
        ------
        SettingsError
            If they are of another width than those of the pool, or some have features that are infinite, or missing
            (NaN) where the learner takes no such records.
        """
        if self.X.shape != (len(self.y), n_features):
            raise SettingsError(
                f"`test.X` must be of shape {(len(self.y), n_features)}, for as many labels and the pool's features,"
                f" got {self.X.shape}."
            )
        given = usable(self.X, missing=learner.takes_missing(n_features))
        if not given.all():
            raise SettingsError(
                f"`test.X` must hold records that the learner takes, got {np.count_nonzero(~given):,} with features"
                " that are missing (NaN) or infinite; leave them out."
            )

    def coded(self, classes: Sequence[str]) -> "TestSet":
        """Return the same records with the codes of their classes.

        Raises
        ------
        LabelError
            If one has none.
        """
        return replace(self, y=codes_of(self.y, classes, what="test.y", codes=True))


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
    scores : tuple of ndarray of float32
        How much each of them was worth asking; NaN where the strategy gives no score.
    predicted : tuple of ndarray of int64
        What the model that chose them took each for; -1 where there was no model.
    views : tuple of ndarray of shape (n, 2), uint8
        What the learner of each point of the curve thinks of the records that were watched: the class (255 where there
        is no learner yet), and its probability in 255ths.
    """

    strategy: str
    seed: int
    labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    batches: tuple[Rows, ...]
    scores: tuple[npt.NDArray[np.float32], ...] = ()
    predicted: tuple[Codes, ...] = ()
    views: tuple[npt.NDArray[np.uint8], ...] = ()

    @property
    def area(self) -> float:
        """Mean accuracy over the labels asked: the area under the learning curve, divided by its width."""
        if len(self.labels) < 2:
            return self.accuracy[0]
        return float(np.trapezoid(self.accuracy, self.labels) / (self.labels[-1] - self.labels[0]))

    def labels_to_reach(self, accuracy: float) -> float | None:
        """Return the labels at which the curve first reaches an accuracy; None if it never does.

        The curve is a straight line between its points.

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
class Needed:
    """The labels that an accuracy costs.

    Attributes
    ----------
    labels : float or None
        Mean over the seeds; None where one of them never got there.
    reached, seeds : int
        In how many of the seeds the accuracy was reached.
    difference : float or None
        Mean difference to the other strategy, paired by seed; negative is fewer. None where one of the two never got
        there in some seed.
    half_width : float or None
        Of the 95 % interval of the difference; None where there are fewer than two pairs.
    """

    labels: float | None
    reached: int
    seeds: int
    difference: float | None
    half_width: float | None


@dataclass(frozen=True)
class Comparison:
    """Replays of several strategies on one pool, several seeds each."""

    replays: tuple[Replay, ...]

    def of(self, strategy: str) -> list[Replay]:
        """Return the replays of one strategy, sorted by seed."""
        return sorted((r for r in self.replays if r.strategy == strategy), key=lambda r: r.seed)

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order in which they were given."""
        return list(dict.fromkeys(replay.strategy for replay in self.replays))

    def band(self, strategy: str) -> tuple[Replay, tuple[float, ...], tuple[float, ...]]:
        """Return the mean curve of a strategy, and the ends of its 95 % interval (Student's t over the seeds).

        The interval is that of the mean, cut to [0, 1]. Its ends are the curve itself where there is a single seed:
        one seed is no evidence of how another would have gone.
        """
        mean = self.mean(strategy)
        curves = np.array([replay.accuracy[: len(mean.labels)] for replay in self.of(strategy)])
        half = _half_width(curves)
        low, high = np.clip(np.array(mean.accuracy) - half, 0, 1), np.clip(np.array(mean.accuracy) + half, 0, 1)
        return mean, tuple(low.tolist()), tuple(high.tolist())

    def reached_by_all(self, strategy: str) -> float:
        """Return the best accuracy that a strategy reached in every seed."""
        return min(max(replay.accuracy) for replay in self.of(strategy))

    def needed(self, strategy: str, accuracy: float, against: str | None = None) -> "Needed":
        """Count the labels that a strategy needs to reach an accuracy, and their difference to another strategy's.

        Parameters
        ----------
        strategy : str
        accuracy : float
        against : str, optional
            The strategy to compare with, seed by seed.
        """
        reached = {replay.seed: replay.labels_to_reach(accuracy) for replay in self.of(strategy)}
        others = {r.seed: r.labels_to_reach(accuracy) for r in self.of(against)} if against is not None else {}
        known = [labels for labels in reached.values() if labels is not None]
        pairs = [(labels, others[seed]) for seed, labels in reached.items() if seed in others]
        differences = [one - other for one, other in pairs if one is not None and other is not None]
        # Seeds in which one of the two never got there are the ones in which they differ most: an interval over the
        # others would be a lie.
        complete = bool(pairs) and len(differences) == len(pairs)
        half = _half_width(np.array(differences)[:, None])[0] if complete and len(differences) > 1 else None
        return Needed(
            labels=float(np.mean(known)) if len(known) == len(reached) and known else None,
            reached=len(known),
            seeds=len(reached),
            difference=float(np.mean(differences)) if complete else None,
            half_width=None if half is None else float(half),
        )

    def labels_to_reach(self, strategy: str, accuracy: float) -> float | None:
        """Return the labels at which the mean curve of a strategy first reaches an accuracy; None if it never does."""
        return self.mean(strategy).labels_to_reach(accuracy)

    def mean(self, strategy: str) -> Replay:
        """Return the mean over the seeds of the curves of a strategy."""
        replays = self.of(strategy)
        points = min(len(replay.labels) for replay in replays)
        labels = np.mean([replay.labels[:points] for replay in replays], axis=0).round().astype(int)
        accuracy = np.mean([replay.accuracy[:points] for replay in replays], axis=0)
        return Replay(strategy, -1, tuple(labels.tolist()), tuple(accuracy.tolist()), ())


def _half_width(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the half-width of the 95 % interval of the mean over the first axis; zero where there is one value."""
    n = len(values)
    if n < 2:
        return np.zeros(values.shape[1:])
    width: npt.NDArray[np.float64] = student_t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return width


def simulate(
    pool: Pool,
    oracle: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    *,
    strategy: str | Strategy = "default",
    learner: str | BaseEstimator = "logistic",
    batch: int = 50,
    rounds: int = 10,
    seed: int = 0,
    explore: float = 0.0,
    reserved: npt.ArrayLike = (),
    watched: npt.NDArray[np.float32] | None = None,
    client: "Connectable | Workers" = None,
    directory: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_round: Callable[[Replay], None] | None = None,
) -> Replay:
    """Play a campaign against an oracle that knows every class.

    It is the real loop, durable campaign and all; only the people are replaced.

    Parameters
    ----------
    pool : Pool
    oracle : array by row, or callable from rows
        Gives the names of classes, or their codes where no class is called by a number. Records that an array has no
        class for (None, NaN, an empty text, masked) are not asked.
    test : TestSet
        Records that are not in the pool, or are reserved.
    classes : sequence of str
        Numbers stand for themselves as text.
    strategy, learner, batch, seed
        As in :func:`dal.create_campaign`.
    rounds : int, default=10
        Batches to ask; fewer where the pool is exhausted.
    explore : float, default=0.0
        Zero, unlike in a real campaign: strategies are compared, not measured.
    reserved : array of int64, default=()
        Rows of the pool that are never asked, such as those that the test set was drawn from.
    watched : ndarray of shape (n, d), float32, optional
        Records whose prediction is kept after every round; see :attr:`Replay.views`.
    client : distributed.Client, Cluster or str, optional
        Where to scan, see :func:`dal.compute.client.connect`; without one, in this process.
    directory : path, optional
        Where the campaign is kept; without it, in a temporary place.
    progress : callable, optional
        Called with the progress of each scan.
    on_round : callable, optional
        Given the replay so far after each round.

    Returns
    -------
    Replay

    Raises
    ------
    LabelError
        If the oracle or the test set names something that is no class, or may be read in two ways.
    SettingsError
        If the learner cannot be given the records of the test set.
    """
    if rounds < 1:
        raise SettingsError(f"Expected at least 1 round, got {rounds}.")
    classes = names_of(classes)
    test = test.coded(classes)
    ask, unknown = _asking(oracle, pool, classes)
    reserved = np.union1d(np.asarray(reserved, np.int64), unknown)
    test.check(Learner.of(learner, classes, random_state=seed), pool.n_features)
    with ExitStack() as stack:
        workers = stack.enter_context(workers_of(client))
        place = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="dal-"))
        kept = stack.enter_context(_kept(strategy))
        campaign = create_campaign(
            place,
            pool,
            classes,
            learner=learner,
            strategy=kept,
            batch=batch,
            seed=seed,
            explore=explore,
            stop_set=0,
        )
        replay = Replay(_label(strategy), seed, (), (), ())
        for _ in range(rounds):
            # Where every label is of one class, as in a pool of rare ones, people would ask for coverage. What asks no
            # learner goes on, as random sampling does: it is what the others are measured against.
            one_class = len(np.unique(campaign.answers.latest().labels)) == 1
            coverage = one_class and Strategy.named(campaign.settings.strategy).score != "random"
            given = next_batch(campaign, client=workers, progress=progress, coverage=coverage, reserved=reserved)
            if isinstance(given, Stopped):
                break
            _answer(campaign, given.rows, given.record_ids, ask(given.rows), "oracle")
            replay = _measured(replay, campaign, pool, test, given, watched)
            if on_round is not None:
                on_round(replay)
    return replay


def compare(
    pool: Pool,
    oracle: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    strategies: Sequence[str | Strategy] = ("default", "random"),
    *,
    seeds: Sequence[int] = (0,),
    learner: str | BaseEstimator = "logistic",
    batch: int = 50,
    rounds: int = 10,
    reserved: npt.ArrayLike = (),
    watched: npt.NDArray[np.float32] | None = None,
    client: "Connectable | Workers" = None,
    on_round: Callable[[Replay], None] | None = None,
    known: Sequence[Replay] = (),
    on_replay: Callable[[Replay], None] | None = None,
) -> Comparison:
    """Play the same campaign with several strategies, paired by seed.

    Parameters
    ----------
    pool, oracle, test, classes, learner, batch, rounds, reserved, watched, client, on_round
        As in :func:`simulate`.
    strategies : sequence of str or Strategy
        Objects need no name here: a score may be a lambda.
    seeds : sequence of int, default=(0,)
        One seed shows how a strategy works; to tell two apart takes ten or more.
    known : sequence of Replay, default=()
        Replays that were played before, and are not played again.
    on_replay : callable, optional
        Given each replay that was played, as soon as it ends.

    Returns
    -------
    Comparison
    """
    named = _by_label(strategies)
    played = {(replay.strategy, replay.seed): replay for replay in known}
    with workers_of(client) as workers:
        for seed in seeds:
            for label, strategy in named.items():
                if (label, seed) in played:
                    continue
                played[label, seed] = simulate(
                    pool,
                    oracle,
                    test,
                    classes,
                    strategy=strategy,
                    learner=learner,
                    batch=batch,
                    rounds=rounds,
                    seed=seed,
                    reserved=reserved,
                    watched=watched,
                    client=workers,
                    on_round=on_round,
                )
                if on_replay is not None:
                    on_replay(played[label, seed])
    return Comparison(tuple(played[label, seed] for seed in seeds for label in named))


def compare_side_by_side(
    pool: Pool,
    oracle: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    strategies: Sequence[str | Strategy],
    *,
    client: "Client | Cluster | str",
    seeds: Sequence[int] = (0,),
    known: Sequence[Replay] = (),
    on_replay: Callable[[Replay], None] | None = None,
    **settings: Any,  # noqa: ANN401 - those of simulate
) -> Comparison:
    """Play whole replays on the workers of a cluster, many at a time: for pools that one worker scans in seconds.

    The replays are those of :func:`compare`, bit by bit, because a scan gives the same candidates wherever it runs.

    Parameters
    ----------
    pool : Pool
        Workers must be able to read it.
    oracle, test, classes, strategies, seeds, known, on_replay
        As in :func:`compare`; a callable is sent to the workers.
    client : distributed.Client, Cluster or str
    **settings
        ``learner``, ``batch``, ``rounds``, ``reserved`` and ``watched``, as in :func:`simulate`.

    Raises
    ------
    ClusterError
        If the cluster is lost, or in ten minutes no round ends anywhere; a worker that dies has its replays begun again
        by others.
    """
    from dal.compute.work import each_on

    named = _by_label(strategies)
    played = {(replay.strategy, replay.seed): replay for replay in known}
    shared = {"strategies": named, "pool": pool, "oracle": oracle, "test": test, "classes": tuple(classes), **settings}
    wanted = [(label, seed) for seed in seeds for label in named if (label, seed) not in played]
    with connect(client) as connected:
        if connected is None:
            raise SettingsError("`client` must be a Client, a Cluster or an address, got None; compare does without")
        for which, replay in each_on(connected, _replayed, wanted, shared):
            played[which] = replay
            if on_replay is not None:
                on_replay(replay)
    return Comparison(tuple(played[label, seed] for seed in seeds for label in named))


def _label(strategy: str | Strategy) -> str:
    return strategy if isinstance(strategy, str) else strategy.label


def _by_label(strategies: Sequence[str | Strategy]) -> dict[str, str | Strategy]:
    named: dict[str, str | Strategy] = {}
    for strategy in strategies:
        label = _label(strategy)
        if named.setdefault(label, strategy) != strategy:
            raise SettingsError(
                f"`strategies` must have different names, got {label} for two; give lambdas names by def, at the top of"
                " a module."
            )
    return named


@contextmanager
def _kept(strategy: str | Strategy) -> Iterator[str | Strategy]:
    """Yield the strategy with names lent, until the exit, to those of its parts that have none."""
    with ExitStack() as stack:

        def named(part: Any, slot: Slot) -> Any:  # noqa: ANN401 - a name, or anybody's object
            try:
                return part if isinstance(part, str) else text_of(part, slot)
            except Unnameable:
                return stack.enter_context(lent(part))

        if isinstance(strategy, Strategy):
            score, selector = named(strategy.score, SCORES), named(strategy.selector, SELECTORS)
            strategy = replace(strategy, score=score, selector=selector)
        yield strategy


def _replayed(shared: dict[str, Any], which: tuple[str, int], beat: "Beat") -> Replay:
    label, seed = which
    settings = {name: value for name, value in shared.items() if name != "strategies"}
    return simulate(**settings, strategy=shared["strategies"][label], seed=seed, on_round=lambda _: beat())


def answer_batch(
    campaign: Campaign,
    rows: npt.ArrayLike,
    record_ids: Sequence[str],
    labels: object,
    annotator: str = "oracle",
) -> None:
    """Record the answers to records in a campaign.

    Parameters
    ----------
    campaign : Campaign
    rows : array of int64
    record_ids : sequence of str
    labels : array-like
        Names of classes, or their codes where no class is called by a number. A record without one (None, NaN, an
        empty text, masked) gets no answer.
    annotator : str, default="oracle"
        Who answers.

    Raises
    ------
    LabelError
        If a label names no class, or may be read in two ways, or rows, ids and labels do not belong together; no answer
        was added then.
    """
    codes = codes_of(labels, campaign.settings.classes, what="labels", gaps=True, codes=True)
    rows, record_ids = np.asarray(rows), list(record_ids)
    if rows.shape != (len(codes),) or len(record_ids) != len(codes):
        raise LabelError(
            f"`rows`, `record_ids` and `labels` must be as many, got {rows.size:,}, {len(record_ids):,} and "
            f"{len(codes):,}"
        )
    if rows.size and rows.dtype.kind not in "iu":
        raise LabelError(f"`rows` must hold whole numbers, got {rows.dtype}")
    for name, texts in (("record_ids", record_ids), ("annotator", [annotator])):
        if wrong := [each for each in texts if not isinstance(each, str)]:
            raise LabelError(f"`{name}` must be text, got {brief(wrong[0])}")
    _answer(campaign, rows, record_ids, codes, annotator)


def _answer(campaign: Campaign, rows: npt.ArrayLike, record_ids: Sequence[str], codes: Codes, annotator: str) -> None:
    answers = [
        Answer(row=row, record_id=record_id, annotator=annotator, status="submitted", label=code)
        for row, record_id, code in zip(np.asarray(rows).tolist(), record_ids, codes.tolist(), strict=True)
        if code != UNLABELLED
    ]
    campaign.answers.add(answers, source=annotator)


def saved_labels(comparison: Comparison, strategy: str, against: str = "random") -> Mapping[str, float] | None:
    """Compute the labels that a strategy saves in reaching the accuracy that another one reached at its end.

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


def _asking(oracle: Oracle | npt.ArrayLike, pool: Pool, classes: Sequence[str]) -> tuple[Callable[[Rows], Codes], Rows]:
    """Return a function from rows to their class codes, and the rows whose class it does not know."""
    if callable(oracle):
        return lambda rows: codes_of(oracle(rows), classes, what="oracle(rows)", codes=True), np.empty(0, np.int64)
    codes = codes_of(oracle, classes, what="oracle", gaps=True, codes=True)
    if codes.shape != (pool.n_rows,):
        raise SettingsError(f"Expected one class for each of the {pool.n_rows:,} rows, got shape {codes.shape}.")
    return lambda rows: codes[rows], np.flatnonzero(codes == UNLABELLED)


def _measured(
    replay: Replay,
    campaign: Campaign,
    pool: Pool,
    test: TestSet,
    given: Batch,
    watched: npt.NDArray[np.float32] | None,
) -> Replay:
    answers = campaign.answers.latest()
    seen = np.unique(answers.labels)
    # One class cannot be learned: what is known then is to always predict it.
    accuracy, model = float((test.y == seen[0]).mean()), None
    if len(seen) > 1:
        model = learner_of(campaign).fit(pool.take(answers.rows), answers.labels)
        accuracy = test.accuracy(model)
    asked = campaign.rounds.batch(given.number)
    scores = np.array([np.nan if each.score is None else each.score for each in asked], dtype=np.float32)
    predicted = np.array([-1 if each.predicted is None else each.predicted for each in asked], dtype=np.int64)
    return replace(
        replay,
        labels=(*replay.labels, len(answers.rows)),
        accuracy=(*replay.accuracy, accuracy),
        batches=(*replay.batches, given.rows),
        scores=(*replay.scores, scores),
        predicted=(*replay.predicted, predicted),
        views=replay.views if watched is None else (*replay.views, view_of(model, watched)),
    )


def view_of(model: Model | None, watched: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the class that a model predicts for each record, and its probability, in a byte each.

    The bytes are those of :attr:`Replay.views`.
    """
    view = np.full((len(watched), 2), NO_CLASS, dtype=np.uint8)
    if model is None:
        view[:, 1] = 0
        return view
    given = usable(watched, missing=model.takes_missing)
    if given.any():
        probabilities = model.predict_proba(watched[given])
        said = np.isfinite(probabilities).all(axis=1)
        given[given], probabilities = said, probabilities[said]
        view[given, 0] = np.minimum(probabilities.argmax(axis=1), NO_CLASS)
        view[given, 1] = np.round(255 * probabilities.max(axis=1))
    view[~given, 1] = 0
    return view
