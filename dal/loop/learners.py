"""Learners of a campaign: tried before they are used, and compared on the labels there are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from dal._threads import one_thread
from dal.campaign import CampaignStore, Settings
from dal.campaign.choice import Candidate, Choice, Comparison, Switch
from dal.campaign.features import Features
from dal.campaign.parts import learner_of, save_learner
from dal.campaign.view import View
from dal.compute.workers import Workers
from dal.errors import InputError, LearnerError, SettingsError
from dal.evidence.comparison import Judged, compare, margin_strata, raked
from dal.evidence.folds import again, dealt, grouped, lacking
from dal.evidence.ruler import effective_number
from dal.evidence.votes import Labels
from dal.learners.estimators import kind_of
from dal.learners.learner import Learner
from dal.learners.models import Model, finite, score_block
from dal.learners.presets import MANY, PRESETS, Preset
from dal.loop.measure import read_holdout
from dal.pool import Pool
from dal.scan.driver import sample_rows
from dal.selection.candidates import usable
from dal.selection.order import row_hash
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from distributed import Client

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Named: TypeAlias = str | BaseEstimator | Preset

TRIED_ROWS, TRIED_BYTES = 1280, 64 * 2**20
FOLDS, REPEATS = 5, 3
MOST_LABELS = 5_000
"""Labels that learners are compared by; of more, a part is drawn by the hash of their rows."""
SAMPLED = 1_000
"""Records of the pool that the labelled ones are weighted to."""
FEWEST_SAMPLED = 200

_TIMED_ROWS = 4096
_BEAT_SECONDS = 30.0
_SECONDS_OF_FIT = 0.3 * FOLDS * REPEATS


def records_to_try(pool: Pool) -> Floats32:
    """Draw the records that a learner is tried on, out of a few chunks, so that making a campaign stays cheap."""
    size = min(TRIED_ROWS, max(8, TRIED_BYTES // (4 * pool.n_features)))
    return pool.take(sample_rows(pool.n_rows, 0, size, blocks=8, block_rows=size // 8 + 1))


def check_weights(learner: Learner, settings: Settings) -> None:
    """Refuse a learner that takes no weights where the campaign's vote gives some."""
    if settings.labelling.vote == "dawid_skene" and not learner.takes_weights:
        raise LearnerError(
            "`estimator.fit` must take sample_weight for the vote dawid_skene, which weights records by how sure their"
            " label is; choose another learner, or the vote majority."
        )


# -- comparing ---------------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Labelled records, as learners are given them.

    Attributes
    ----------
    X : ndarray of float32, shape (n, d)
        Read once.
    labels : Labels
        Of the same records.
    """

    X: Floats32
    labels: Labels

    def part(self, positions: Integers) -> "Known":
        """Return the records at some positions."""
        return Known(self.X[positions], self.labels.at(positions))

    def truth(self, n_classes: int) -> Floats:
        """Return the probability of each class, (n, C)."""
        given = self.labels.proba
        return np.eye(n_classes)[self.labels.codes] if given is None else given


def compared(
    learners: Mapping[str, Learner],
    known: Known,
    sample: Floats32,
    n_rows: int,
    drawn: Booleans,
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare learners on labelled records, by repeated cross-validation that is weighted to the pool.

    Parameters
    ----------
    learners : mapping from str to Learner
        The one in use first.
    known : Known
        Records that all learners take.
    sample : ndarray of float32, shape (m, d)
        Records drawn uniformly from the pool, all of which the learners take.
    n_rows : int
        Of the pool.
    drawn : ndarray of bool, shape (n,)
        Whether each of the known records was drawn uniformly from the pool.
    workers : Workers, optional
        That fit the folds, asked for once there is something to fit; by default this process does.
    progress : callable, optional
        Called with the fits that are done, and of how many.

    Returns
    -------
    Comparison
        Without the learners that could not be fitted on a part of the labels, which its notes name; without any where
        the one in use could not.
    """
    tried = judge(learners, known, sample, workers=workers, progress=progress)
    in_use, n = next(iter(learners)), tried.n
    if tried.too_early:
        return Comparison(in_use, n, (), tried.too_early)
    candidates = tuple(
        Candidate(**vars(each), fit_seconds=seconds, pass_seconds=n_rows / pace)
        for each, seconds, pace in zip(
            compare(tried.judged, tried.folds, tried.weights, drawn),
            tried.fit_seconds,
            tried.rows_per_second,
            strict=True,
        )
    )
    worth = effective_number(tried.weights.mean(axis=0))
    weighted = (
        f"The {n:,} labelled records are weighted to the pool by what {in_use} predicts of them, and at which margin,"
        f" against {len(sample):,} records of the pool; they weigh as much as {worth:,.0f} drawn at random."
    )
    level = f"Accuracy of {in_use}: {candidates[0].accuracy.text}."
    return Comparison(in_use, n, candidates, notes=(weighted, level, *tried.failed))


class Tried(NamedTuple):
    """Learners judged on `n` records that were held out.

    Attributes
    ----------
    n : int
    judged : tuple of Judged
    folds, weights : ndarray of shape (repeats, n)
    proba, of_pool : ndarray of shape (repeats, n, C) and (repeats, m, C)
        Probabilities of the held-out records and of the sample of the pool, by the learner in use: what `weights` are
        made of.
    fit_seconds, rows_per_second : tuple of float
        Of each learner: of one fit in the median, and scored by one core.
    too_early : str
        Why none was judged; all else is empty then.
    failed : tuple of str
        Of each learner that could not be fitted on a part of the labels, and is not among `judged`: why.
    """

    n: int
    judged: tuple[Judged, ...] = ()
    folds: Integers = np.empty((REPEATS, 0), np.int64)
    weights: Floats = np.empty((REPEATS, 0))
    proba: Floats = np.empty((REPEATS, 0, 0))
    of_pool: Floats = np.empty((REPEATS, 0, 0))
    fit_seconds: tuple[float, ...] = ()
    rows_per_second: tuple[float, ...] = ()
    too_early: str = ""
    failed: tuple[str, ...] = ()


def judge(
    learners: Mapping[str, Learner],
    known: Known,
    sample: Floats32,
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tried:
    """Fit learners on parts of the labels, and judge them on the rest; as `compared` documents it."""
    groups, codes, n = grouped(known.X), known.labels.codes, len(known.X)
    if reason := lacking(groups, codes, FOLDS):
        return Tried(n, too_early=reason)
    if not len(sample):
        return Tried(n, too_early="of the records drawn from the pool, all lack features that the learners need")
    client = None if workers is None else workers.client_for(n, _SECONDS_OF_FIT * len(learners))
    folds = np.stack([dealt(again(groups, repeat), codes, FOLDS) for repeat in range(REPEATS)])
    n_classes = len(next(iter(learners.values())).classes)
    trial = _Trial(tuple(learners.items()), known, folds, sample)
    items = [(at, repeat, fold) for at in range(len(learners)) for repeat in range(REPEATS) for fold in range(FOLDS)]
    proba = np.zeros((len(learners), REPEATS, n, n_classes))
    of_pool = np.zeros((REPEATS, FOLDS, len(sample), n_classes))
    seconds, paces = np.zeros((len(learners), REPEATS, FOLDS)), np.zeros(len(learners))
    failed: dict[int, str] = {}
    for done, ((at, repeat, fold), found) in enumerate(_worked(client, trial, items), 1):
        if progress is not None:
            progress(done, len(items))
        if isinstance(found, str):
            failed.setdefault(at, found)
            continue
        proba[at, repeat, folds[repeat] == fold] = found.proba
        seconds[at, repeat, fold] = found.seconds
        if found.of_pool is not None:
            of_pool[repeat, fold] = found.of_pool
        if found.rows_per_second is not None:
            paces[at] = found.rows_per_second
    if 0 in failed:
        return Tried(n, too_early=f"the learner in use cannot be judged on a part of the labels. {failed[0]}")
    truth, fitted = known.truth(n_classes), [at for at in range(len(learners)) if at not in failed]
    there = of_pool.reshape(REPEATS, -1, n_classes)
    return Tried(
        n,
        tuple(Judged.of(trial.learners[at][0], proba[at], truth) for at in fitted),
        folds,
        weights_to_pool(proba[0], there),
        proba[0],
        there,
        tuple(np.median(seconds[fitted].reshape(len(fitted), -1), axis=1).tolist()),
        tuple(paces[fitted].tolist()),
        failed=tuple(failed[at] for at in sorted(failed)),
    )


def judge_weighted(
    learner: Mapping[str, Learner],
    known: Known,
    sample: Floats32,
    tried: Tried,
    importance: Floats,
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Judged | str:
    """Judge the learner in use where it is trained with weights, on the folds on which it was tried without.

    Parameters
    ----------
    learner : mapping of one name to Learner
    known, sample
        As in `judge`.
    tried : Tried
        Of the same records.
    importance : ndarray of float64, shape (n,)
        Weights of the records in training.
    workers, progress
        As in `compared`; as many fits were done before.

    Returns
    -------
    Judged or str
        Why it could not be fitted on a part of the labels.
    """
    client = None if workers is None else workers.client_for(tried.n, _SECONDS_OF_FIT)
    trial = _Trial(tuple(learner.items()), known, tried.folds, sample, importance)
    proba = np.zeros_like(tried.proba)
    items = [(0, *each) for each in np.ndindex(REPEATS, FOLDS)]
    for done, ((_, repeat, fold), found) in enumerate(_worked(client, trial, items), 1):
        if progress is not None:
            progress(len(items) + done, 2 * len(items))
        if isinstance(found, str):
            return found
        proba[repeat, tried.folds[repeat] == fold] = found.proba
    return Judged.of(f"{next(iter(learner))}, weighted", proba, known.truth(proba.shape[2]))


def weights_to_pool(proba: Floats, of_pool: Floats) -> Floats:
    """Weigh held-out records, (repeats, n, C), to those of the pool, (repeats, m, C), in each repeat.

    By the predicted class and the margin of the learner in use.
    """
    return np.stack([predicted_weights(*map(predicted, each)) for each in zip(proba, of_pool, strict=True)])


Predicted = tuple[Integers, Floats]
"""Class and margin of records."""


def predicted_weights(mine: Predicted, of_pool: Predicted) -> Floats:
    """Weigh records so that their classes and margins are as frequent as those of the pool."""
    bins = margin_strata(mine[1], of_pool[1])
    return raked([mine[0], bins[0]], [of_pool[0], bins[1]])


def predicted(proba: Floats) -> Predicted:
    """Return the class and the margin of each record; those without a class are one of their own, of margin 0."""
    best = np.partition(proba, -2, axis=1)
    return np.where(proba.any(axis=1), proba.argmax(axis=1), proba.shape[1]), best[:, -1] - best[:, -2]


# -- fitting the folds -------------------------------------------------------------------------------------------------

Item = tuple[int, int, int]
"""A learner, a repeat and a fold, by number."""


@dataclass(frozen=True)
class _Trial:
    learners: tuple[tuple[str, Learner], ...]
    known: Known
    folds: Integers
    sample: Floats32
    importance: Floats | None = None
    """Weights of the records in the fits, (n,); all alike where there are none."""


class _Found(NamedTuple):
    """Probabilities of the records that a fold holds out, and costs; of the learner in use, also those of the pool."""

    proba: Floats
    of_pool: Floats | None
    seconds: float
    rows_per_second: float | None


def _worked(client: "Client | None", trial: _Trial, items: Sequence[Item]) -> Iterator[tuple[Item, _Found | str]]:
    if client is None:
        return ((item, held_out(trial, item)) for item in items)
    from dal.compute.work import each_on

    return each_on(client, held_out, items, trial)


@one_thread
def held_out(trial: _Trial, item: Item, beat: Callable[[], None] | None = None) -> _Found | str:
    """Fit a learner without a fold, and predict that; on a worker, beat meanwhile.

    Returns
    -------
    _Found or str
        Why the learner cannot be compared, where it refuses the labels: the others still can.
    """
    with beating(beat):
        at, repeat, fold = item
        name, learner = trial.learners[at]
        out = trial.folds[repeat] == fold
        kept = trial.known.part(np.flatnonzero(~out))
        positions, codes, weights = kept.labels.weighted()
        if trial.importance is not None:
            weights = scaled(trial.importance[~out])[positions] * (1.0 if weights is None else weights)
        began = perf_counter()
        try:
            model = learner.try_fit(kept.X[positions], codes, weights)
            seconds = perf_counter() - began
            return _Found(
                finite(model.predict_proba(trial.known.X[out])),
                finite(model.predict_proba(trial.sample)) if at == 0 else None,
                seconds,
                _pace(model, trial.sample) if repeat == fold == 0 else None,
            )
        except LearnerError as error:
            return f"{name} cannot be compared: {str(error).rstrip('.')}"


def scaled(importance: Floats) -> Floats:
    """Scale weights to a mean of 1, so that a penalty keeps its size beside the loss."""
    return importance / importance.mean()


def _pace(model: Model, sample: Floats32) -> float:
    """Measure the rows a second that one core scores."""
    block = np.resize(sample, (_TIMED_ROWS, sample.shape[1]))
    score_block("margin", model, block)  # compiles what it scores with
    began = perf_counter()
    score_block("margin", model, block)
    return _TIMED_ROWS / (perf_counter() - began)


@contextmanager
def beating(beat: Callable[[], None] | None) -> Iterator[None]:
    """Send a beat every half a minute while the context lasts, for a fit may take hours."""
    if beat is None:
        yield
        return
    ended = Event()

    def live(beat: Callable[[], None] = beat) -> None:
        while not ended.wait(_BEAT_SECONDS):
            beat()

    pulse = Thread(target=live, daemon=True)
    pulse.start()
    try:
        yield
    finally:
        ended.set()
        pulse.join()


# -- of a campaign -----------------------------------------------------------------------------------------------------


def compare_learners(
    campaign: CampaignStore,
    candidates: Sequence[Named] = (),
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare learners with the one that a campaign uses, see `dal.Campaign.compare_learners`."""
    view, settings = View(campaign), campaign.settings
    with campaign.database.snapshot():
        labels, in_use, last_answer = view.labels(), campaign.learner, campaign.answers.last_id()
        random = view.random_rows()
        annotators = set(campaign.answers.latest().annotators)
    pool, features, given = view.grown_pool(), Features(view), len(labels.rows)
    labels = drawn_labels(labels, settings.random_state)
    learners = {in_use: learner_of(campaign, in_use)}
    tried, unusable = records_to_try(pool), list[str]()
    for candidate in candidates or [name for name in PRESETS if name not in (in_use, MANY)]:
        learner = _learner(campaign, candidate)
        name = candidate if isinstance(candidate, str) else _name_of(learner, learners)
        if name == in_use:
            continue
        try:
            check_learner(learner, settings, pool, tried, beside=campaign.directory)
        except InputError as error:  # such as gaps in the holdout, which a preset does not take
            if candidates:
                raise
            unusable.append(f"{name} is left out, because this campaign could not use it: {error}")
            continue
        learners[name] = learner
    X, sample = features.take(labels.rows), sample_of_pool(view, features)
    gappy = {name for name, each in learners.items() if pool.asks_missing and each.takes_missing(pool.n_features)}
    if in_use in gappy and _mostly_gaps(X, sample):
        # Judged on the few complete records, all learners would be, and the one in use is there for the others.
        for name in [each for each in learners if each not in gappy]:
            unusable.append(f"{name} is left out: most records lack a feature, and it takes none of those.")
            del learners[name]
    missing = gappy >= learners.keys()
    sound = usable(X, missing=missing)
    found = compared(
        learners,
        Known(X, labels).part(np.flatnonzero(sound)),
        sample[usable(sample, missing=missing)],
        pool.n_rows,
        np.isin(labels.rows[sound], random),
        workers=workers,
        progress=progress,
    )
    notes = [*found.notes, *unusable]
    if given > len(labels.rows):
        notes.append(f"Of {given:,} labels, {len(labels.rows):,} were drawn uniformly.")
    if left_out := int((~sound).sum()):
        notes.append(f"{left_out:,} labels are left out, whose features are missing or infinite.")
    if len(annotators) == 1:
        notes.append(f"All answers are of {annotators.pop()}: their mistakes count as right, for all learners.")
    comparison = replace(found, notes=tuple(notes))
    Choice(campaign).keep(comparison, last_answer)
    return comparison


def advice_due(view: View) -> bool:
    """Return whether as many labels have come since the last comparison as the settings say."""
    every, before = view.campaign.settings.measuring.advise_every, Choice(view.campaign).last_answer()
    if not every:
        return False
    known = 0 if before is None else len(view.labels(before).rows)
    return len(view.labels().rows) >= known + every


def drawn_labels(labels: Labels, random_state: int) -> Labels:
    """Draw at most `MOST_LABELS` labels, uniformly: more take longer, and tell hardly more."""
    if len(labels.rows) <= MOST_LABELS:
        return labels
    return labels.at(np.sort(np.argsort(row_hash(labels.rows, random_state, 0), kind="stable")[:MOST_LABELS]))


def _mostly_gaps(*parts: Floats32) -> bool:
    """Return whether in one of several sets of records most of those without infinite features lack one."""
    return any(2 * usable(X, missing=False).sum() < usable(X, missing=True).sum() for X in parts)


def switch_learner(campaign: CampaignStore, learner: Named, person: str, reason: str) -> Switch:
    """Use another learner in a campaign, see `dal.Campaign.switch_learner`."""
    before, choice = campaign.learner, Choice(campaign)
    reason = choice.justified(learner if isinstance(learner, str) else None, person, reason)
    other, pool = _learner(campaign, learner), View(campaign).grown_pool()
    check_learner(other, campaign.settings, pool, records_to_try(pool), beside=campaign.directory)
    name = learner if isinstance(learner, str) else save_learner(campaign, other)
    return choice.switch(name, before, person, reason)


def _learner(campaign: CampaignStore, given: Named) -> Learner:
    """Return a learner by its name, the ones that were saved with the campaign included, or of an object."""
    if isinstance(given, str):
        return learner_of(campaign, given)
    settings = campaign.settings
    return Learner.of(given, settings.classes, random_state=settings.random_state, trusted=settings.trusted)


def check_learner(learner: Learner, settings: Settings, pool: Pool, tried: Floats32, *, beside: Path = Path()) -> None:
    """Refuse a learner that a campaign could not use.

    Raises
    ------
    LearnerError
        If it cannot be fitted, saved or scored with, or takes no weights where labels have some.
    SettingsError
        If the holdout has records that it does not take.
    """
    apart = read_holdout(settings, pool.n_features, beside)
    check_weights(learner, settings)
    weighted = settings.labelling.vote == "dawid_skene"
    score = Strategy.named(settings.strategy, settings.explore).scorer
    learner.check(pool.n_features, score, records=tried, weighted=weighted)
    if apart is not None and not usable(apart[0], missing=learner.takes_missing(pool.n_features)).all():
        raise SettingsError("`holdout` must hold features that the learner takes, got NaN or infinite ones")


def _name_of(learner: Learner, others: Mapping[str, object]) -> str:
    """Return a name for a learner that was passed as an object: of its kind, numbered where that is taken."""
    kind = kind_of(learner.estimator)
    names = [f"{kind}()", *(f"{kind}({number})" for number in range(2, len(others) + 2))]
    return next(name for name in names if name not in others)


def sample_of_pool(view: View, features: Features) -> Floats32:
    """Read records drawn uniformly from the pool: the stop set, whose features are kept, where it is large enough.

    The stop set knows nothing of records that were appended since the campaign began.
    """
    stop_set, pool = view.campaign.settings.measuring.stop_set or 0, view.pool
    if stop_set >= FEWEST_SAMPLED and pool.n_rows == view.campaign.n_rows:
        return features.stop_set(stop_set)[:: -(-stop_set // SAMPLED)]
    return features.take(sample_rows(pool.n_rows, view.campaign.settings.random_state, SAMPLED))
