"""The whole choice of a batch, from what a scan kept."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.errors import SettingsError
from dal.plugins import label_of
from dal.selection import designs, methods
from dal.selection.candidates import Candidates, Capacity, shortlist, usable
from dal.selection.codebook import Codebook
from dal.selection.distances import Floats32
from dal.selection.facility_location import facility_location
from dal.selection.familiar import Familiar
from dal.selection.nearby import Place, median_apart, nearby
from dal.selection.once import Once
from dal.selection.order import Positions, Rows, key_order, power_keys
from dal.selection.problem import COVERED, CROWD, Mapper, Problem
from dal.selection.records import MOST_ASKED, Records, joined
from dal.selection.strategy import SELECTORS, BuiltIn, Selector, Strategy

_SELECTORS: Mapping[BuiltIn, Callable[[Problem, int], Positions]] = {
    "top": methods.top,
    "power": methods.top,  # what differs is the key
    "stratified": methods.stratified,
    "cluster_margin": methods.cluster_margin,
    "facility_location": facility_location,
    "max_herding": methods.max_herding,
    "k_center": methods.k_center,
    "weighted_kmeans": methods.weighted_kmeans,
    "badge": methods.badge,
    "class_coverage": facility_location,
    "uncertainty_herding": facility_location,  # what differs are the candidates
    "dropquery": methods.weighted_kmeans,  # and the score
    "bait": designs.bait,
    "typiclust": designs.typiclust,
}


Mask = npt.NDArray[np.bool_]
_LARGEST = np.float32(1e6)


class Known(NamedTuple):
    """Records that are not chosen, and that choices are to differ from.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
    X : Records
        Features, (n, d); of very many they are read when they are needed.
    inner : Records or None
        The model's own embeddings, (n, width), where candidates carry theirs.
    codes : ndarray of int64, shape (n,)
        Classes; -1 where none is known.
    proba : ndarray of float32, shape (n, C), or None
        Class probabilities, where the strategy looks at these; NaN where there are none.
    n_asked : int
        How many of them were asked before the batch. The others are chosen for it.
    """

    rows: Rows
    X: Records
    inner: Records | None
    codes: Positions
    proba: Floats32 | None
    n_asked: int

    def joined(self, chosen: Candidates) -> "Known":
        """Return these records and chosen candidates, of which their predictions are known."""
        return Known(
            np.append(self.rows, chosen.rows),
            joined(self.X, chosen.embeddings),
            None if self.inner is None or chosen.inner is None else joined(self.inner, chosen.inner),
            np.append(self.codes, chosen.predicted),
            None if self.proba is None or chosen.proba is None else np.concatenate([self.proba, chosen.proba]),
            self.n_asked,
        )


def choose(
    candidates: Candidates,
    strategy: Strategy,
    k: int,
    *,
    capacity: Capacity,
    codebook: Codebook | None,
    asked: Records,
    excluded: Rows,
    random_state: int,
    round: int,
    directions: bool = False,
    mapper: Mapper = map,
    asked_inner: Records | None = None,
    asked_codes: Positions | None = None,
    asked_proba: Floats32 | None = None,
    n_asked: int | None = None,
    most_asked: int = MOST_ASKED,
) -> Rows:
    """Choose a batch from what a scan kept: shortlist, embed, select.

    A campaign and a replay in memory that give it the same get the same batch.

    Parameters
    ----------
    candidates : Candidates
        As a scan gives them: their embeddings are still features.
    strategy : Strategy
    k : int
        Records wanted.
    capacity : Capacity
        What the scan was made to keep: ``strategy.capacity(batch, n_rows, n_cells)``.
    codebook : Codebook or None
        The space in which records are compared; needed unless the strategy takes the plain top.
    asked : Records
        Features, (n_asked, d), of the records asked or labelled before, and of those drawn for this batch's explore
        share.
    excluded : ndarray of int64
        Rows that may not be chosen: all that were asked before, and those drawn for the explore share.
    random_state, round : int
        As in the scan.
    directions : bool, default=False
        Whether the learner looks at the directions of records alone, as a head of embeddings does. A strategy that
        covers the pool then compares directions.
    mapper : callable, default=map
        As in :func:`select`.
    asked_inner : Records, optional
        The learner's own embeddings, (n_asked, width), of the same records, where the candidates carry theirs; NaN
        where it has none.
    asked_codes : ndarray of shape (n_asked,), int64, optional
        Their classes, for selectors that look at these: labels, or predictions where there are none yet; -1 where
        neither is known.
    asked_proba : ndarray of shape (n_asked, n_classes), float32, optional
        Their class probabilities, for selectors that look at these; NaN where the learner gives none.
    n_asked : int, optional
        How many of `asked` were asked before the batch; all of them by default. It decides how the others are looked
        at, too, so that all choices of a round follow one rule.
    most_asked : int
        Of more asked records, those nearest to candidates are held in memory alone, where these suffice for the
        selector. What they do not cover by as much as 2 % may then count as covered by less.

    Returns
    -------
    ndarray of int64
        Rows in the order of choice; fewer than `k` where there are no more distinct records.
    """
    candidates = candidates.take(np.flatnonzero(~np.isin(candidates.rows, excluded)))
    if not strategy.traits.features or codebook is None:
        no_labeled = np.empty((0, candidates.embeddings.shape[1]), np.float32)
        return select(candidates, strategy, k, no_labeled, random_state, round)
    candidates = shortlist(candidates, capacity, random_state, round)
    if k <= 0 or not len(candidates):  # nothing is read of what was asked
        return candidates.rows[:0]
    in_cells = strategy.traits.cells and not capacity.cells and len(codebook.centers) > 0
    embed = codebook.directions if directions and _along(strategy) else codebook.embed
    placed, source, place = _placed(candidates, codebook, embed, asked, asked_inner, random_state, in_cells=in_cells)
    codes = asked_codes if strategy.traits.asked_codes else None
    which: Positions | slice = slice(None)
    width = None
    if (len(asked) if n_asked is None else n_asked) > most_asked and strategy.traits.nearest_asked:
        if strategy.traits.weighs:  # else the bandwidth is that of the candidates
            width = median_apart(source, place, random_state, round)
        nothing = np.empty((0, placed.embeddings.shape[1]), np.float32)
        # No name holds this problem, a second one beside that of the choice.
        which = nearby(posed(placed, strategy, nothing, random_state, round, apart=width), source, place, codes)
    labeled, sound = place(source[which])
    codes = None if codes is None else codes[which][sound]
    proba = None if asked_proba is None else asked_proba[which][sound]
    return select(
        placed,
        strategy,
        k,
        labeled,
        random_state,
        round,
        mapper=mapper,
        codes=codes,
        labeled_proba=proba,
        apart=width,
    )


def familiar(
    strategy: Strategy,
    codebook: Codebook | None,
    asked: Callable[[], Records],
    *,
    directions: bool,
    inner: bool,
    random_state: int,
    round: int,
) -> Familiar | None:
    """Return the records that a scan leaves out, because they are near-duplicates of records asked before.

    None where the selector would not tell near-duplicates by the asked records alone: it does not look where records
    stand, measures distances among candidates, or compares the learner's own embeddings. None as well where candidates
    are to be a sample of the pool.

    Parameters
    ----------
    strategy, codebook, directions, random_state, round
        As in :func:`choose`.
    asked : callable
        Reads the features of the records asked before, (n_asked, d), where they are needed.
    inner : bool
        Whether candidates carry the learner's own embeddings.
    """
    traits = strategy.traits
    if codebook is None or inner or traits.sampled or not (traits.features and traits.weighs):
        return None
    along = directions and _along(strategy)
    return Familiar.to(asked(), codebook, directions=along, seed=random_state, round=round)


def once(strategy: Strategy, asked: Callable[[], Records]) -> Once | None:
    """Return the rule by which a scan keeps one of equal records; None where candidates are to be a sample of the pool.

    Parameters
    ----------
    strategy : Strategy
    asked : callable
        Reads the features of the records asked before, (n_asked, d), where they are needed.
    """
    samples = strategy.score == "random" or strategy.selector == "power" or strategy.traits.sampled
    return None if samples else Once.after(asked())


def _along(strategy: Strategy) -> bool:
    """Return whether a strategy compares directions where the learner looks at these alone."""
    return not strategy.traits.weighs or strategy.traits.directions


def _placed(
    candidates: Candidates,
    codebook: Codebook,
    embed: Callable[[Floats32], Floats32],
    asked: Records,
    asked_inner: Records | None,
    seed: int,
    *,
    in_cells: bool,
) -> tuple[Candidates, Records, Place]:
    """Put candidates into the space in which records are compared; return what puts asked ones there, and from where.

    It is the learner's own where the candidates carry their embeddings, as of a network's last layer, and else that of
    the features, by `embed`. The cells of a pool are those of its features always: they outlive the models of the
    rounds. Cells of candidates alone are found in the space.
    """
    if candidates.inner is None or asked_inner is None or not len(candidates):

        def by_features(X: Floats32) -> tuple[Floats32, Mask]:
            # A label can be volunteered for a record that is never asked, because a feature is infinite.
            sound = usable(X, missing=True)
            return embed(X[sound]), sound

        cells = codebook.assign(candidates.embeddings).astype(np.int64) if in_cells else candidates.cells
        return replace(candidates, embeddings=embed(candidates.embeddings), cells=cells), asked, by_features

    def as_given(X: Floats32) -> tuple[Floats32, Mask]:
        # As the network gives them: gradients are made of these. Squares of larger ones would overflow.
        sound = usable(X, missing=False)
        return np.clip(X[sound], -_LARGEST, _LARGEST), sound

    cells = candidates.cells
    if in_cells:
        own = Codebook.fit(candidates.inner, len(codebook.centers), seed)
        cells = own.assign(candidates.inner).astype(np.int64)
    points = np.clip(candidates.inner, -_LARGEST, _LARGEST)
    return replace(candidates, embeddings=points, cells=cells), asked_inner, as_given


def select(
    candidates: Candidates,
    strategy: Strategy,
    k: int,
    labeled: Floats32,
    seed: int,
    round: int,
    *,
    mapper: Mapper = map,
    codes: Positions | None = None,
    labeled_proba: Floats32 | None = None,
    apart: float | None = None,
) -> Rows:
    """Choose the batch among the candidates.

    Parameters
    ----------
    candidates : Candidates
        In any order.
    strategy : Strategy
        Its selector is one of

        * ``top``: the best by score; ``power``: a draw in proportion to a power of the score;
        * ``facility_location``: what covers the uncertain candidates; ``max_herding``: what covers all candidates;
        * ``class_coverage``: what covers the uncertain candidates, each by records of its own likely classes;
        * ``k_center``: what leaves none far away; ``stratified``, ``cluster_margin``: the cells in turn;
        * ``weighted_kmeans``, ``badge``: clusters of the uncertain candidates, of their gradients;
        * ``uncertainty_herding``: what covers the uncertain of a sample; ``bait``: what tells most about the model;
        * ``typiclust``: the typical of each cluster.
    k : int
        Records wanted.
    labeled : ndarray of shape (n_labeled, d), float32
        Embeddings of the records already asked: what they cover is not worth asking again.
    seed, round : int
    mapper : callable, default=map
        Solves independent parts of a large batch: :func:`dal.compute.work.map_on` does so on a cluster, same result.
    codes : ndarray of shape (n_labeled,), int64, optional
        Classes of these records, for selectors that look at classes; -1 where none is known.
    labeled_proba : ndarray of shape (n_labeled, n_classes), float32, optional
        As in :func:`choose`, of the labeled records.
    apart : float, optional
        The median distance of an asked record to its nearest other one, where `labeled` holds a part of them and the
        selector weighs.

    Returns
    -------
    ndarray of int64
        Rows in the order of choice; fewer than `k` where the candidates hold no more distinct records. Near-duplicates
        of a pick or of a labeled record are not picked, by selectors that look where records stand.

    See Also
    --------
    dal.selection.facility_location.facility_location, dal.selection.methods : the formulas and their sources.
    """
    k = min(k, len(candidates))
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    problem = posed(
        candidates,
        strategy,
        labeled,
        seed,
        round,
        mapper=mapper,
        codes=codes,
        labeled_proba=labeled_proba,
        apart=apart,
    )
    chooser = strategy.chooser
    solve = _SELECTORS[chooser] if isinstance(chooser, str) else partial(_own, chooser)
    if not strategy.traits.features:
        return problem.rows[solve(problem, k)]
    with one_thread:
        return problem.rows[solve(problem, k)]


def _own(selector: Selector, problem: Problem, k: int) -> Positions:
    """Return what a selector of one's own chooses, if it is a choice."""
    chosen = np.asarray(selector(problem, k))
    if not chosen.size:
        return np.empty(0, dtype=np.int64)
    wrong = ""
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        wrong = f"{chosen.dtype} of shape {chosen.shape}"
    elif len(chosen) > k or len(np.unique(chosen)) < len(chosen):
        wrong = f"{len(chosen)} positions, {len(np.unique(chosen))} of them different"
    elif chosen.min() < 0 or chosen.max() >= len(problem):
        wrong = f"positions from {chosen.min()} to {chosen.max()}"
    if wrong:
        raise SettingsError(
            f"`{label_of(selector, SELECTORS)}` must return at most {k} different positions from 0 to"
            f" {len(problem) - 1}, got {wrong}; mend it."
        )
    return chosen.astype(np.int64)


def posed(
    candidates: Candidates,
    strategy: Strategy,
    labeled: Floats32,
    seed: int,
    round: int,
    *,
    mapper: Mapper = map,
    codes: Positions | None = None,
    labeled_proba: Floats32 | None = None,
    apart: float | None = None,
) -> Problem:
    """Put the candidates in the order of their keys, which no longer tells how they came."""
    in_row_order = candidates.take(np.argsort(candidates.rows))
    ranked = in_row_order.scores
    if strategy.selector == "power":
        ranked = power_keys(ranked, in_row_order.rows, strategy.beta, seed, round)
    by_key = in_row_order.take(key_order(ranked, in_row_order.rows, seed, round))
    weights = by_key.weights
    if weights is None:
        weights = np.maximum(by_key.scores, 0.0) if strategy.traits.weighs else np.ones(len(by_key))
    if codes is None or not strategy.traits.asked_codes:
        codes = np.full(len(labeled), -1)
    # Equal records of different classes all count, where classes do.
    known = np.column_stack([np.asarray(labeled, dtype=np.float32), codes.astype(np.float32)])
    known = known.reshape(len(labeled), by_key.embeddings.shape[1] + 1)
    known, first = np.unique(known, axis=0, return_index=True)
    return Problem(
        by_key.rows,
        weights.astype(np.float32),
        by_key.cells,
        np.ascontiguousarray(by_key.embeddings, dtype=np.float32),
        by_key.proba if strategy.traits.proba else None,
        np.ascontiguousarray(known[:, :-1]),
        strategy.traits.weighs,
        seed,
        round,
        mapper,
        crowd=strategy.shortlist if strategy.traits.drawn else CROWD,
        covered=COVERED if strategy.selector == "facility_location" else np.inf,
        classes=by_key.classes,
        codes=known[:, -1].astype(np.int64),
        labeled_proba=None if labeled_proba is None else labeled_proba[first],
        apart=apart,
    )
