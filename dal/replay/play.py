"""One campaign, played against an oracle: the real loop, with the people replaced."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from dal.campaign.parts import learner_of
from dal.campaign.settings import Measuring, Settings
from dal.classes import UNLABELLED, codes_of, names_of
from dal.compute.workers import Workers, workers_of
from dal.errors import SettingsError
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.presets import chosen_or_default
from dal.loop.campaign import Batch, Campaign, Stopped
from dal.plugins import Slot, Unnameable, lent, text_of
from dal.pool import Pool
from dal.replay.curves import NO_CLASS, Codes, Replay, Rows
from dal.scan import Progress
from dal.scores import SLOT as SCORES
from dal.selection.candidates import usable
from dal.selection.strategy import SELECTORS, Strategy, strategy_or_default

if TYPE_CHECKING:
    from dal.compute.client import Connectable

Oracle = Callable[[Rows], npt.ArrayLike]


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


def simulate(
    pool: Pool,
    y: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    *,
    strategy: str | Strategy = Settings.strategy,
    estimator: str | BaseEstimator = Settings.estimator,
    trusted: Sequence[str] = Settings.trusted,
    batch_size: int = 50,
    rounds: int = 10,
    random_state: int = 0,
    balance: str | Mapping[str, float] | Sequence[str] = Settings.balance,
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
    y : array by row, or callable from rows
        The oracle: gives the names of classes, or their codes where no class is called by a number. Records that an
        array has no class for (None, NaN, an empty text, masked) are not asked.
    test : TestSet
        Records that are not in the pool, or are reserved.
    classes : sequence of str
        Numbers stand for themselves as text.
    strategy, estimator, trusted, batch_size, random_state, balance
        As in :meth:`dal.Campaign.create`.
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
        If `y` or the test set names something that is no class, or may be read in two ways.
    SettingsError
        If the learner cannot be given the records of the test set.
    """
    if rounds < 1:
        raise SettingsError(f"`rounds` must be at least 1, got {rounds}")
    classes, estimator = names_of(classes), chosen_or_default(estimator, pool.encoder)
    strategy = strategy_or_default(strategy, pool.encoder)
    test = test.coded(classes)
    ask, unknown = _asking(y, pool, classes)
    names = np.array(classes, dtype=object)
    reserved = np.union1d(np.asarray(reserved, np.int64), unknown)
    test.check(Learner.of(estimator, classes, random_state=random_state, trusted=trusted), pool.n_features)
    with ExitStack() as stack:
        workers = stack.enter_context(workers_of(client))
        place = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="dal-"))
        kept = stack.enter_context(_kept(strategy))
        campaign = Campaign.create(
            place,
            pool,
            classes,
            estimator=estimator,
            trusted=trusted,
            strategy=kept,
            batch_size=batch_size,
            random_state=random_state,
            balance=balance,
            explore=explore,
            measuring=Measuring(stop_set=0),
        )
        replay = Replay(label_of(strategy), random_state, (), (), ())
        for _ in range(rounds):
            given = campaign.next_batch(client=workers, progress=progress, reserved=reserved)
            if isinstance(given, Stopped):
                break
            campaign.label(given, names[ask(given.rows)])
            replay = _measured(replay, campaign, pool, test, given, watched)
            if on_round is not None:
                on_round(replay)
    return replay


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


def label_of(strategy: str | Strategy) -> str:
    """Return the name under which the replays of a strategy are listed."""
    return strategy if isinstance(strategy, str) else strategy.label


def _asking(y: Oracle | npt.ArrayLike, pool: Pool, classes: Sequence[str]) -> tuple[Callable[[Rows], Codes], Rows]:
    """Return a function from rows to their class codes, and the rows whose class it does not know."""
    if callable(y):
        return lambda rows: codes_of(y(rows), classes, what="y(rows)", codes=True), np.empty(0, np.int64)
    codes = codes_of(y, classes, what="y", gaps=True, codes=True)
    if codes.shape != (pool.n_rows,):
        raise SettingsError(f"`y` must have one class for each of the {pool.n_rows:,} rows, got shape {codes.shape}.")
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
        # Without an explore share nothing is known of the labels' bias, and the fit is the learner's own.
        explored = campaign.settings.explore > 0
        model = campaign.fit() if explored else learner_of(campaign).fit(pool.take(answers.rows), answers.labels)
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
