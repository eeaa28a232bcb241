"""The bias of a campaign's labelled set: seen beside the pool, and weights that correct it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dal.campaign import CampaignStore
from dal.campaign.features import Features
from dal.campaign.parts import learner_of
from dal.campaign.view import View
from dal.compute.workers import Workers
from dal.evidence.bias import Share, distance, of_classes, of_regions, represented
from dal.evidence.comparison import Compared, Judged, compare, raked
from dal.evidence.ruler import effective_number
from dal.evidence.votes import Labels
from dal.learners.learner import Learner
from dal.learners.models import finite
from dal.loop.learners import (
    Known,
    Tried,
    drawn_labels,
    judge,
    judge_weighted,
    predicted,
    predicted_weights,
    sample_of_pool,
    scaled,
    weights_to_pool,
)
from dal.selection.candidates import usable
from dal.selection.codebook import Codebook

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

REGIONS = 12
"""Regions of the pool: as few as that, some hundred labels show in each how often it was asked."""


# -- seen --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bias:
    """The labels beside the pool.

    Attributes
    ----------
    labels : int
    classes : tuple of Share
        In the campaign's order; shares of the pool are those among explore answers.
    regions : tuple of Share
        The most over-represented first; shares of the pool are those among records drawn uniformly. Empty without
        labels.
    drawn, chosen, unasked : int
        Labels of records that were drawn with a known probability, of those that a rule chose, and of those that
        nobody asked, such as imported ones.
    """

    labels: int
    classes: tuple[Share, ...]
    regions: tuple[Share, ...]
    drawn: int
    chosen: int
    unasked: int

    @property
    def apart(self) -> tuple[float, float] | None:
        """The part of the labels that lies in other regions than the pool does, and that by chance; None if unknown."""
        return distance(self.regions)

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, in words."""
        found = []
        if classes := represented(self.classes):
            found.append(f"Classes {classes}.")
        if apart := self.apart:
            found.append(
                f"{apart[0]:.0%} of the labels would have to lie in other regions for the labels to be spread as the"
                f" pool is; of as many labels drawn at random it would be about {apart[1]:.0%}."
            )
        if self.labels:
            found.append(
                f"Of {self.labels:,} labelled records, {self.drawn:,} were drawn at random, with a known probability;"
                f" {self.chosen:,} were chosen by a rule and {self.unasked:,} came unasked: the probability of these is"
                " not known."
            )
        return tuple(found)


class Biases:
    """The bias of a campaign's labels, read again on request; the regions of records are remembered.

    Parameters
    ----------
    view : View
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._features = Features(view)
        self._divided: tuple[tuple[str, int], _Regions | None] | None = None

    def now(self) -> Bias:
        """Compare the labels of now with the pool; of more than 5,000, the regions of 5,000 drawn uniformly."""
        view = self._view
        with view.campaign.database.snapshot():
            labels, explored = view.labels(), view.explored()
            drawn = np.isin(labels.rows, np.fromiter(view.propensities(), np.int64))
            asked = np.isin(labels.rows, view.campaign.rounds.asked_rows())
        names = view.campaign.settings.classes
        counts = np.bincount(labels.codes, minlength=len(names)).tolist()
        return Bias(
            len(labels.rows),
            of_classes(names, counts, explored),
            self._regions_of(drawn_labels(labels, view.campaign.settings.random_state)),
            int(drawn.sum()),
            int((asked & ~drawn).sum()),
            int((~asked).sum()),
        )

    def _regions_of(self, labels: Labels) -> tuple[Share, ...]:
        if not len(labels.rows) or (regions := self._of_pool()) is None:
            return ()
        found = regions.of(labels.rows, self._features)
        return of_regions(
            found[found >= 0], labels.codes[found >= 0], regions.sample, self._view.campaign.settings.classes
        )

    def _of_pool(self) -> "_Regions | None":
        """Return the regions of the pool as it is now; None where no record drawn from it can be compared."""
        pool = self._view.grown_pool()
        key = pool.fingerprint, pool.n_rows
        if self._divided is None or self._divided[0] != key:
            sample = sample_of_pool(self._view, self._features)
            sample = sample[usable(sample, missing=True) & np.isfinite(sample).any(axis=1)]
            seed = self._view.campaign.settings.random_state
            self._divided = key, _Regions(sample, seed) if len(sample) else None
        return self._divided[1]


class _Regions:
    """A division of the pool by a sample of it, with the region of each of these records."""

    def __init__(self, sample: Floats32, seed: int) -> None:
        self._codebook = Codebook.fit(sample, REGIONS, seed)
        self.sample = self._codebook.assign(sample).astype(np.int64)
        self._known: dict[int, int] = {}

    def of(self, rows: Rows, features: Features) -> Rows:
        """Find the region of each row; -1 of records that cannot be compared."""
        new = np.array([row for row in rows.tolist() if row not in self._known], dtype=np.int64)
        if len(new):
            X = features.take(new)
            sound = usable(X, missing=True) & np.isfinite(X).any(axis=1)
            regions = np.where(sound, self._codebook.assign(X).astype(np.int64), -1)
            self._known |= dict(zip(new.tolist(), regions.tolist(), strict=True))
        return np.array([self._known[row] for row in rows.tolist()], dtype=np.int64)


# -- corrected ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Labelled records, with weights that make them stand for the pool.

    Attributes
    ----------
    rows, codes : ndarray of int64, shape (n,)
        All labelled records, ascending, and their class codes.
    weights : ndarray of float64, shape (n,)
        To judge models by: the class and the margin that the learner in use predicts become as frequent as in the pool.
        Of mean 1; NaN where a record has features that the learner does not take, and where there are too few labels.
    training : ndarray of float64, shape (n,)
        To train models by: the regions of the pool become as frequent. Of mean 1; NaN of the same records.
    propensities : ndarray of float64, shape (n,)
        Probability with which a record was drawn in its round, out of those that nobody had been asked; NaN of records
        that were chosen by a rule or came unasked, for theirs is unknown.
    corrected : tuple of Compared
        The learner in use, trained without weights and with those of `training`, judged by `weights`. Empty where that
        is unknown.
    notes : tuple of str
    """

    rows: Rows
    codes: Rows
    weights: Floats
    training: Floats
    propensities: Floats
    corrected: tuple[Compared, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, in words."""
        known = np.isfinite(self.weights)
        if not known.any():
            return self.notes
        worth = [effective_number(each[known]) for each in (self.weights, self.training)]
        found = [
            f"To judge by, {known.sum():,} weighted labels are worth {worth[0]:,.0f} drawn at random; to train by,"
            f" {worth[1]:,.0f}."
        ]
        if self.corrected:
            plain, weighted = self.corrected
            found.append(
                f"Training {plain.name} with weights changes its accuracy on the pool by"
                f" {100 * weighted.difference:+.1f} points"
                f" ({100 * weighted.difference_low:+.1f} to {100 * weighted.difference_high:+.1f}):"
                f" {weighted.verdict}{'' if weighted.verdict == 'better' else '; train without them'}."
            )
        return (*found, *self.notes)


def weights_of(
    campaign: CampaignStore,
    *,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Weigh a campaign's labels to its pool, see `dal.Campaign.weights`."""
    view, settings = View(campaign), campaign.settings
    with campaign.database.snapshot():
        labels, name, drawn = view.labels(), campaign.learner, view.propensities()
        random = view.random_rows()
    pool, features, learner = view.grown_pool(), Features(view), learner_of(campaign, name)
    propensities = np.array([drawn.get(row, np.nan) for row in labels.rows.tolist()])
    X, sample = features.take(labels.rows), sample_of_pool(view, features)
    missing = pool.asks_missing and learner.takes_missing(pool.n_features)
    sound = usable(X, missing=missing)
    first = np.isin(labels.rows, drawn_labels(labels, settings.random_state).rows)
    everything = Known(X, labels)
    known, sample = everything.part(np.flatnonzero(sound & first)), sample[usable(sample, missing=missing)]
    none = np.full(len(X), np.nan)
    nothing = Weights(labels.rows, labels.codes, none, none, propensities)
    notes = []
    if left_out := int((~sound).sum()):
        notes.append(f"{left_out:,} labels have no weight: their features are missing or infinite.")
    both = learner.takes_weights

    def shown(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total * (1 + both))

    tried = judge({name: learner}, known, sample, workers=workers, progress=shown)
    if tried.too_early:
        return replace(nothing, notes=(f"Too early to weigh the labels: {tried.too_early}.", *notes))
    weights, training = none.copy(), none.copy()
    others = np.flatnonzero(sound & ~first)
    order = np.concatenate([np.flatnonzero(sound & first), others])
    weights[order] = scaled(_extended(tried, learner, known, X[others]))
    training[sound] = scaled(by_regions(X[sound], sample, settings.random_state))
    corrected: tuple[Compared, ...] = ()
    if both:
        importance = scaled(training[sound & first])
        trained = judge_weighted({name: learner}, known, sample, tried, importance, workers=workers, progress=progress)
        if isinstance(trained, Judged):
            at_random = np.isin(known.labels.rows, random)
            corrected = compare([*tried.judged, trained], tried.folds, tried.weights, at_random)
        else:
            notes.append(f"With the weights, {trained}.")
    else:
        notes.append(f"{name} takes no weights, so that it cannot be trained with them.")
    return replace(nothing, weights=weights, training=training, corrected=corrected, notes=tuple(notes))


def by_regions(X: Floats32, sample: Floats32, seed: int) -> Floats:
    """Weigh records, (n, d), so that the regions of the pool are as frequent as in a sample of it; they add up to 1."""
    codebook = Codebook.fit(sample, REGIONS, seed)
    mine, theirs = (codebook.assign(each).astype(np.int64) for each in (X, sample))
    return raked([mine], [theirs])


def _extended(tried: Tried, learner: Learner, known: Known, others: Floats32) -> Floats:
    """Weigh the records that were judged, and others that the learner has not seen either, together."""
    if not len(others):
        found: Floats = weights_to_pool(tried.proba, tried.of_pool).mean(axis=0)
        return found
    positions, codes, weights = known.labels.weighted()
    model = learner.try_fit(known.X[positions], codes, weights)
    # Class and margin alone are kept: the probabilities of a million records are gigabytes.
    unseen = [predicted(finite(block)) for block in model.predict_in_blocks(others)]
    found = np.zeros(tried.proba.shape[1] + len(others))
    for proba, of_pool in zip(tried.proba, tried.of_pool, strict=True):
        classes, margins = zip(predicted(proba), *unseen, strict=True)
        found += predicted_weights((np.concatenate(classes), np.concatenate(margins)), predicted(of_pool))
    return found / len(tried.proba)
