"""Balance: shares of what is asked that classes are to have, and the quotas of a batch that come of them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dal.selection.batch import Known, choose
from dal.selection.candidates import Candidates, Capacity
from dal.selection.codebook import Codebook
from dal.selection.explore import interleaved
from dal.selection.once import first_of_equals
from dal.selection.order import Positions, Rows, best_by_key, key_order, rank_within
from dal.selection.problem import Mapper
from dal.selection.strategy import Strategy

MOST = 2.0
"""A batch asks for at most this many times a class's share: predictions may go on being wrong, or the pool may hold no
more of it, and the quota would grow from round to round."""


def quotas_of(shares: Sequence[float], labels: Sequence[int], k: int) -> tuple[int, ...]:
    """Return how many of the next `k` records are to be predicted to be of each class.

    A class is to have its share of all labels after the batch. Those farthest below theirs come first where not all can
    have it, and a class that has it already has no quota. Only answers count: a record that was predicted to be of a
    class, and was not, is made up for in the next batch.

    Parameters
    ----------
    shares : sequence of float
        The share of each class, adding up to at most 1; 0 where it has none.
    labels : sequence of int
        Labels of each class.
    k : int

    Returns
    -------
    tuple of int
        Adding up to at most `k`.

    Examples
    --------
    >>> quotas_of([0.5, 0.5], [30, 10], 10), quotas_of([0.25, 0.25, 0.25, 0.25], [9, 0, 0, 0], 6)
    ((0, 10), (0, 2, 2, 2))
    >>> quotas_of([0.0, 0.2], [90, 10], 10), quotas_of([0.0, 0.2], [90, 30], 10)
    ((0, 4), (0, 0))
    """
    share, known = np.array(shares, dtype=np.float64), np.array(labels, dtype=np.float64)
    most = np.minimum(np.ceil(np.round(MOST * share * k, 9)), k)
    low, high = 0.0, float(known.sum()) + k
    if _lacking(high, share, known, most).sum() > k:
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if _lacking(middle, share, known, most).sum() <= k else (low, middle)
        high = low
    lacking = np.round(_lacking(high, share, known, most), 6)
    whole = np.floor(lacking)
    left = min(k, math.floor(lacking.sum() + 0.5)) - int(whole.sum())
    whole[np.lexsort((known, whole - lacking))[:left]] += 1
    return tuple(whole.astype(int).tolist())


def _lacking(
    total: float, share: npt.NDArray[np.float64], known: npt.NDArray[np.float64], most: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how many labels each class lacks of its share of a total."""
    return np.clip(share * total - known, 0.0, most)


def kept_of_classes(strategy: Strategy, quotas: Sequence[int], spare: int) -> tuple[int, ...]:
    """Return how many records a scan is to keep of each class, ``per_class`` of its capacity, for these quotas.

    Parameters
    ----------
    strategy : Strategy
    quotas : sequence of int
    spare : int
        Records that are asked beside those chosen, and may be any of those kept: a shortlist of several for each record
        has room for them.

    Examples
    --------
    >>> kept_of_classes(Strategy(), (0, 3), 2), kept_of_classes(Strategy.named("margin"), (0, 3), 2)
    ((0, 30), (0, 5))
    """
    spare = spare if strategy.shortlist == 1 else 0
    return tuple(strategy.shortlist * each + spare if each else 0 for each in quotas)


def choose_balanced(
    candidates: Candidates,
    strategy: Strategy,
    k: int,
    quotas: Sequence[int],
    known: Known,
    *,
    capacity: Capacity,
    codebook: Codebook | None,
    random_state: int,
    round: int,
    directions: bool = False,
    mapper: Mapper = map,
) -> Rows:
    """Choose a batch as :func:`dal.selection.batch.choose` does, with quotas of classes by their predictions.

    The strategy chooses as it does without quotas. In place of its last records whose classes have more than their
    quotas it then chooses among the candidates of the classes that have less, all of these together, and again among
    those of classes that still have less, until all have theirs or no distinct candidate is left. So the batch of the
    plain top is the best of each class by key up to its quota, and then the best of all the others.

    Parameters
    ----------
    candidates : Candidates
        As a scan gives them, under this capacity.
    strategy : Strategy
    k : int
    quotas : sequence of int
        Records of each class, by their predictions; adding up to at most `k`.
    known : Known
        Records that are not chosen, and that the choice is to differ from.
    capacity : Capacity
        With :func:`kept_of_classes`.
    codebook, random_state, round, directions, mapper
        As `choose` takes them.

    Returns
    -------
    ndarray of int64
        Rows in the order of choice, those of the quotas spread evenly among the others.
    """

    def chosen_among(among: Candidates, count: int, capacity: Capacity) -> Rows:
        return choose(
            among,
            strategy,
            count,
            capacity=capacity,
            codebook=codebook,
            asked=known.X,
            asked_inner=known.inner,
            asked_codes=known.codes,
            asked_proba=known.proba,
            n_asked=known.n_asked,
            excluded=known.rows,
            random_state=random_state,
            round=round,
            directions=directions,
            mapper=mapper,
        )

    keys = capacity.ranked(candidates.scores, candidates.rows, random_state, round)
    usual = candidates
    if not strategy.traits.features:
        # Others are cut down to a shortlist in any case.
        best = best_by_key(keys, candidates.rows, capacity.total, random_state, round)
        usual = candidates.take(np.sort(best))
    chosen = chosen_among(usual, k, capacity._replace(per_class=()))
    if not any(quotas):
        return chosen
    left = np.array(quotas, dtype=np.int64) - _counts(_codes(candidates, chosen), len(quotas))
    surplus, short = np.maximum(-left, 0), np.maximum(left, 0)
    order = key_order(keys, candidates.rows, random_state, round)
    # Of equal records the best of all and that of a cell may both be kept: one of a class is to take a place.
    groups, of = candidates.predicted, (candidates.rows, random_state, round)
    order = order[first_of_equals(candidates.content, groups, keys, *of)[order]]
    most = np.append(np.array(capacity.per_class, dtype=np.int64), 0)  # none, last, of those without a prediction
    of_classes = order[rank_within(candidates.predicted[order]) < most[candidates.predicted[order]]]
    known, found = known.joined(_taken(candidates, chosen)), chosen[:0]
    while short.any():
        among = candidates.take(np.sort(of_classes[short[candidates.predicted[of_classes]] > 0]))
        picks = chosen_among(among, int(short.sum()), Capacity(len(among), 0, 0, capacity.beta))
        codes = _codes(candidates, picks)
        within = rank_within(codes) < short[codes]
        if not within.any():
            break
        found = np.append(found, picks[within])
        short -= _counts(codes[within], len(quotas))
        known = known.joined(_taken(candidates, picks[within]))
    kept = _without_surplus(chosen, _codes(candidates, chosen), surplus, len(chosen) + len(found) - k)
    return np.array(interleaved(kept.tolist(), found.tolist()), dtype=np.int64)


def _taken(candidates: Candidates, rows: Rows) -> Candidates:
    return candidates.take(np.searchsorted(candidates.rows, rows))


def _codes(candidates: Candidates, rows: Rows) -> Positions:
    """Return the classes that are predicted for rows; -1 where none is."""
    return candidates.predicted[np.searchsorted(candidates.rows, rows)]


def _counts(codes: Positions, n_classes: int) -> Positions:
    return np.bincount(codes + 1, minlength=n_classes + 1)[1:]


def _without_surplus(rows: Rows, codes: Positions, surplus: Positions, count: int) -> Rows:
    """Leave out the last `count` rows of classes that have more than their quotas."""
    keep, surplus = np.ones(len(rows), dtype=bool), surplus.copy()
    for position in range(len(rows) - 1, -1, -1):
        code = codes[position]
        if count > 0 and (code < 0 or surplus[code]):
            keep[position] = False
            count -= 1
            if code >= 0:
                surplus[code] -= 1
    return rows[keep]
