"""A pilot plan: learning curves on parts of a few hundred labels, before the money for the others is spent."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.campaign import CampaignStore
from dal.campaign.activity import Activity, Work
from dal.campaign.features import Features
from dal.campaign.parts import learner_of
from dal.campaign.view import View
from dal.compute.workers import Workers
from dal.errors import InputError
from dal.evidence.folds import grouped, lacking
from dal.evidence.pilot import TIMES, Band, Curve, Outlook, Seen, accuracy_now, band, forecast, outlook
from dal.evidence.ruler import FEWEST_ANSWERS, Estimate
from dal.learners.learner import Learner
from dal.loop.learners import Known, beating, drawn_labels
from dal.selection.candidates import usable
from dal.texts import brief

if TYPE_CHECKING:
    from bokeh.plotting import figure
    from distributed import Client

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Way = Literal["random", "default"]

FOLDS, REPEATS, SIZES = 5, 4, 5
_SHOWN = (1.0, 2.0, 3.0, 4.0)
DEFAULTS = ("default", "class_coverage")
"""Strategies that are the default of a pool: without an encoder, and with one."""

_SECONDS_OF_FIT = 0.2 * FOLDS * REPEATS * SIZES

Item = tuple[int, int]
"""A repeat and a fold, by number."""


@dataclass(frozen=True)
class _Trial:
    learner: Learner
    known: Known
    folds: Integers
    orders: Integers
    sizes: tuple[int, ...]


def measured(
    learner: Learner,
    known: Known,
    *,
    seed: int = 0,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Measure a learning curve on labelled records, which are a random sample of the pool.

    A fifth of the records is held out in turn, four times with other fifths; a learner is fitted on nested random parts
    of the others, from a tenth of them to all.

    Parameters
    ----------
    learner : Learner
    known : Known
        Records that the learner takes, of two classes or more.
    seed : int
    workers : Workers, optional
        That fit; by default this process does.
    progress : callable, optional
        Called with the folds that are done, and of how many.
    """
    n = len(known.X)
    # Folds with equal shares of the classes would make learner and judge alike, which random labels are not: with few
    # labels of many classes the curve would be five points too high.
    orders = np.stack([np.random.default_rng([seed, repeat]).permutation(n) for repeat in range(REPEATS)])
    folds = np.argsort(orders, axis=1) % FOLDS
    most = n - -(-n // FOLDS)
    sizes = tuple(np.unique(np.geomspace(max(most / 10, 2), most, SIZES).round().astype(np.int64)).tolist())
    # Once, not in each of a hundred fits, which would take ten times as long.
    positions, given, weights = known.labels.weighted()
    settled = learner.settled(learner.try_fit(known.X[positions], given, weights))
    trial = _Trial(settled, known, folds, orders, sizes)
    items = [(repeat, fold) for repeat in range(REPEATS) for fold in range(FOLDS)]
    client = None if workers is None else workers.client_for(n, _SECONDS_OF_FIT)
    right = np.zeros((len(sizes), n))
    for done, ((repeat, fold), found) in enumerate(_worked(client, trial, items), 1):
        right[:, folds[repeat] == fold] += found / REPEATS
        if progress is not None:
            progress(done, len(items))
    return Curve(np.array(sizes, dtype=np.float64), right)


def _worked(client: "Client | None", trial: _Trial, items: Sequence[Item]) -> Iterator[tuple[Item, Floats]]:
    if client is None:
        return ((item, held_out(trial, item)) for item in items)
    from dal.compute.work import each_on

    return each_on(client, held_out, items, trial)


@one_thread
def held_out(trial: _Trial, item: Item, beat: Callable[[], None] | None = None) -> Floats:
    """Fit the learner on nested parts without a fold, and judge it there, (sizes, held out); on a worker, beat."""
    with beating(beat):
        repeat, fold = item
        out = trial.folds[repeat] == fold
        order = trial.orders[repeat]
        order = order[~out[order]]
        truth = trial.known.truth(len(trial.learner.classes))[out]
        return np.stack([_right(trial, order[:size], trial.known.X[out], truth) for size in trial.sizes])


def _right(trial: _Trial, learned: Integers, X: npt.NDArray[np.float32], truth: Floats) -> Floats:
    kept = trial.known.part(np.sort(learned))
    positions, codes, weights = kept.labels.weighted()
    if len(np.unique(codes)) < 2:
        return truth[:, codes[0]]
    proba = trial.learner.try_fit(kept.X[positions], codes, weights).predict_proba(X)
    predicted = np.where(np.isfinite(proba).all(axis=1), proba.argmax(axis=1), 0)
    return np.asarray(truth[np.arange(len(truth)), predicted], dtype=np.float64)


# -- of a campaign -----------------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """A number with its interval: `value` is None where there is not enough evidence, `high` infinite without bound."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """The labels that the target takes, by one way of choosing.

    Attributes
    ----------
    way : {"random", "default"}
    labels : Estimate
        In all. `value` is None where there is not enough evidence.
    known : int
        Labels that count towards them already.
    to_come : Amount
        Labels beyond those.
    cost : Amount or None
        Of the labels to come; None without a price.
    days : Amount or None
        Of the labels to come; None without a pace.
    hours : Amount or None
        Of work for the labels to come, by the median seconds of an answer so far; None without such answers.
    curve : Band
    """

    way: Way
    labels: Estimate
    known: int
    to_come: Amount
    cost: Amount | None
    days: Amount | None
    hours: Amount | None
    curve: Band


@dataclass(frozen=True)
class PilotPlan:
    """The cost of a target, by a pilot of random labels.

    Attributes
    ----------
    target : float
    pilot : int
        Labelled records that were drawn uniformly.
    accuracy : Estimate or None
        On the pool, of the campaign's learner on the pilot's labels alone; None where it is too early.
    ways : tuple of Forecast
        By random sampling and by the default; none where it is too early.
    too_early : str
        Why there is no forecast, in words; empty where there is one.
    notes : tuple of str
        The limits of the evidence, in words.
    """

    target: float
    pilot: int
    accuracy: Estimate | None
    ways: tuple[Forecast, ...]
    too_early: str = ""
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The plan in a sentence."""
        if self.accuracy is None:
            return f"Too early for a plan: {self.too_early}."
        told = "; ".join(f"by {each.way}, {each.labels.text}" for each in self.ways)
        return f"Accuracy {self.target:g}: {told}. Accuracy now: {self.accuracy.text}."

    def tables(self) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
        """Return two tables, each a header and its rows: of what the target takes, and of the expected accuracy."""
        takes = {
            "labels in all": [_written(each.labels) for each in self.ways],
            "labels to come": [_written(each.to_come) for each in self.ways],
            "cost": [_written(each.cost) for each in self.ways],
            "days": [_written(each.days, 1) for each in self.ways],
            "hours of work": [_written(each.hours, 1) for each in self.ways],
        }
        expected: list[Sequence[str]] = [
            (f"{labels:,} labels", *(each.curve.point(index) for each in self.ways))
            for index, labels in enumerate(self.ways[0].curve.labels if self.ways else ())
            if TIMES[index] in _SHOWN
        ]
        ways = [each.way for each in self.ways]
        needed: list[Sequence[str]] = [(name, *cells) for name, cells in takes.items() if any(cells)]
        return [((f"accuracy {self.target:g}", *ways), needed), (("expected accuracy", *ways), expected)]

    def figure(self) -> "figure":
        """Draw both expected curves with the intervals of their points, the target, and the pilot's labels.

        Raises
        ------
        InputError
            If it is too early for a curve.
        """
        if not self.ways:
            raise InputError(f"`plan` must have curves, got none: {self.too_early}")
        from dal.figures import Curve as Drawn
        from dal.figures import learning_curves

        curves = [Drawn(each.way, *each.curve) for each in self.ways]
        return learning_curves(curves, self.target, "expected accuracy on the pool", self.pilot)


def _written(amount: Amount | Estimate | None, digits: int = 0) -> str:
    if amount is None:
        return ""
    if amount.value is None:
        return f"{amount.low:,.{digits}f} or more"
    ends = f"to {amount.high:,.{digits}f}" if amount.high < math.inf else "or more"
    return f"{amount.value:,.{digits}f} ({amount.low:,.{digits}f} {ends})"


def plan(
    campaign: CampaignStore,
    target: float,
    *,
    price: float | None = None,
    pace: float | None = None,
    imported_at_random: bool = False,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PilotPlan:
    """Estimate the cost of a target by the random labels of a campaign, see `dal.Campaign.plan`."""
    _check("target", target, lambda number: 0 < number < 1, "above 0 and below 1", "give an accuracy, such as 0.9")
    if price is not None:
        _check("price", price, lambda number: number >= 0, "of at least 0", "give that of one answer")
    if pace is not None:
        _check("pace", pace, lambda number: number > 0, "above 0", "give the answers of all annotators in a day")
    view, settings = View(campaign), campaign.settings
    with campaign.database.snapshot():
        labels, annotators = view.labels(), set(campaign.answers.latest().annotators)
        rows, seen, start = view.random_rows(imported=imported_at_random), _seen(view), _start(view)
        seconds = _seconds(Activity(campaign).work())
    mine = labels.at(np.isin(labels.rows, rows))
    drawn, known = drawn_labels(mine, settings.random_state), len(mine.rows)
    learner, features = learner_of(campaign), Features(view)
    X = features.take(drawn.rows)
    sound = usable(X, missing=view.pool.asks_missing and learner.takes_missing(X.shape[1]))
    pilot, n = Known(X, drawn).part(np.flatnonzero(sound)), int(sound.sum())
    if reason := _lacking(pilot, len(labels.rows), imported_at_random):
        return PilotPlan(target, n, None, (), reason)
    curve = measured(learner, pilot, seed=settings.random_state, workers=workers, progress=progress)
    found = outlook(curve, start=n if start is None else start, seen=seen, seed=settings.random_state)
    answers = settings.labelling.overlap
    spent = {"random": known, "default": known if start is None else len(labels.rows)}
    ways = []
    for way in get_args(Way):
        wanted = forecast(found, target, default=way == "default")
        to_come = _to_come(wanted, spent[way])
        ways.append(
            Forecast(
                way,
                wanted,
                spent[way],
                to_come,
                _times(to_come, None if price is None else price * answers),
                _times(to_come, None if pace is None else answers / pace),
                _times(to_come, None if seconds is None else answers * seconds / 3600),
                band(found, default=way == "default"),
            )
        )
    notes = [_share_note(found, seen)]
    if len(labels.rows) > known:
        notes.append(
            f"{len(labels.rows) - known:,} other labels are left out: their records were chosen, or imported, and show"
            " no random sampling."
        )
    if known > len(drawn.rows):
        notes.append(f"Of {known:,} random labels, {len(drawn.rows):,} were drawn uniformly.")
    if left_out := int((~sound).sum()):
        notes.append(f"{left_out:,} labels are left out, whose features are missing or infinite.")
    if len(annotators) == 1:
        notes.append(f"All answers are of {annotators.pop()}: accuracy is agreement with them, mistakes included.")
    most = max(each.labels.value or 0 for each in ways)
    if most > campaign.n_rows:
        notes.append(f"The pool has {campaign.n_rows:,} records: it cannot give as many labels.")
    return PilotPlan(target, n, accuracy_now(found), tuple(ways), notes=tuple(notes))


def _check(name: str, value: object, fits: Callable[[float], bool], kind: str, remedy: str) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and fits(value)
    if not sound:
        raise InputError(f"`{name}` must be a number {kind}, got {brief(value)}; {remedy}.")


def _lacking(pilot: Known, labels: int, imported_at_random: bool) -> str:
    """Return, in words, why the pilot is none; empty where it is one."""
    n = len(pilot.X)
    if n < FEWEST_ANSWERS:
        what = f"{n:,} of {labels:,} labels are of records drawn at random, and {FEWEST_ANSWERS:,} are needed"
        ask = "ask them by the strategy random, or by the explore share"
        return f"{what}; {ask}" + ("" if imported_at_random else ", or say that the imported ones were drawn at random")
    return lacking(grouped(pilot.X), pilot.labels.codes, FOLDS)


def _rounds_by_default(view: View) -> dict[int, int]:
    """Return the rounds that the default has chosen with the learner and pool of now, and the labels before each."""
    now = view.rounds_of_now()
    return {
        each.number: each.labels
        for each in view.campaign.rounds.all()
        if each.number in now and each.strategy in DEFAULTS
    }


def _start(view: View) -> int | None:
    """Return the labels from which on the default has chosen; None where it has not."""
    return min(_rounds_by_default(view).values(), default=None)


def _seen(view: View) -> list[Seen]:
    chosen = _rounds_by_default(view)
    return [
        Seen(each.labels, each.explore_correct, each.explore_asked)
        for each in view.history()
        if each.number in chosen and each.explore_asked
    ]


def _seconds(people: Sequence[Work]) -> float | None:
    """Return the median seconds of an answer, over people by their answers; None where no answer tells."""
    timed = [(each.answers, each.median_seconds) for each in people if each.median_seconds is not None]
    total = sum(answers for answers, _ in timed)
    return sum(answers * seconds for answers, seconds in timed) / total if total else None


def _to_come(labels: Estimate, known: int) -> Amount:
    value = None if labels.value is None else max(0.0, labels.value - known)
    return Amount(value, max(0.0, labels.low - known), max(0.0, labels.high - known))


def _times(labels: Amount, factor: float | None) -> Amount | None:
    """Return the cost of labels at one each; None without a price."""
    if factor is None:
        return None
    # An unbounded number of labels costs nothing where they are free.
    low, high = (factor * end if factor else 0.0 for end in (labels.low, labels.high))
    return Amount(None if labels.value is None else factor * labels.value, low, high)


def _share_note(found: Outlook, seen: Sequence[Seen]) -> str:
    low, middle, high = np.quantile(found.share, [0.025, 0.5, 0.975]).tolist()
    asked = sum(each.asked for each in seen)
    by = f"and {asked:,} explore answers of this campaign" if seen else "and nothing of this campaign yet"
    return (
        f"The default is taken to need {middle:.0%} ({low:.0%} to {high:.0%}) of the labels that random sampling needs"
        f" beyond the first {found.start:,}, by what it needed on other sets, {by}."
    )
