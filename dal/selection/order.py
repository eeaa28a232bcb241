"""The total order of records, and the hashes that every random choice comes from."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


Positions = npt.NDArray[np.int64]


Floats64 = npt.NDArray[np.float64]


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64 bits so that each output bit depends on all input bits (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def row_hash(rows: Rows, seed: int, round: int) -> npt.NDArray[np.uint64]:
    """Hash rows: the only source of randomness in a scan or a selection.

    Parameters
    ----------
    rows : ndarray of int64
        Absolute rows of the pool.
    seed, round : int
        Another hash for each pair.

    Returns
    -------
    ndarray of uint64
        Uniform over all 64-bit values.

    Examples
    --------
    >>> rows = np.array([5, 6, 7])
    >>> bool((row_hash(rows, 1, 2)[1:] == row_hash(rows[1:], 1, 2)).all())
    True
    """
    mixed_seed = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    with np.errstate(over="ignore"):
        mixed = splitmix64(np.asarray(rows, dtype=np.int64).astype(np.uint64) ^ mixed_seed)
        return splitmix64(mixed + np.uint64(round % 2**64))


def uniform(rows: Rows, seed: int, round: int) -> Floats64:
    """Return a uniform number in (0, 1) for each row, by its hash."""
    return ((row_hash(rows, seed, round) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def key_order(score: Floats64, rows: Rows, seed: int, round: int) -> Positions:
    """Sort by key: positions, the best first.

    The key (score, hash, row) is a strict total order: higher scores first, equal scores by hash, equal hashes by row.
    Thousands of equal scores, as a saturated forest gives, are thus neither taken from the pool's head nor in an order
    that chunking could change.
    """
    return np.lexsort((rows, row_hash(rows, seed, round), -score)).astype(np.int64)


def best_by_key(score: Floats64, rows: Rows, count: int, seed: int, round: int) -> Positions:
    """Find the positions of the `count` best by key, in no particular order.

    The same set as ``key_order(...)[:count]``, but only the rows that tie at the boundary are hashed and sorted.
    """
    if count >= len(score):
        return np.arange(len(score))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    boundary = np.partition(score, len(score) - count)[len(score) - count]
    above = np.flatnonzero(score > boundary)
    ties = np.flatnonzero(score == boundary)
    order = key_order(score[ties], rows[ties], seed, round)
    return np.concatenate([above, ties[order[: count - len(above)]]])


def rank_within(groups: Positions) -> Positions:
    """Return the rank of each entry among the earlier entries of its own group."""
    by_group = np.argsort(groups, kind="stable")
    ordered = groups[by_group]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(ordered)])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[by_group] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


def power_keys(score: Floats64, rows: Rows, beta: float, seed: int, round: int) -> Floats64:
    r"""Perturb scores so that the best `k` of them are a draw without replacement, with P in proportion to score^beta.

    The Gumbel top-k trick (Kool et al. 2019), as in stochastic batch acquisition (Kirsch et al. 2023):
    :math:`\beta \ln s + G` with :math:`G = -\ln(-\ln U)`, U uniform by hash. Rows of score 0 come last; those of score
    -inf, which are never asked, keep it.
    """
    floor = np.finfo(np.float64).tiny
    gumbel = -np.log(-np.log(uniform(rows, seed, round)))
    return np.where(np.isneginf(score), -np.inf, beta * np.log(np.maximum(score, floor)) + gumbel)


def power_masses(score: Floats64, beta: float) -> Floats64:
    """Compute the mass of each row in the lottery of :func:`power_keys`: score^beta, and 0 for those never asked."""
    return np.where(np.isneginf(score), 0.0, np.maximum(score, np.finfo(np.float64).tiny) ** beta)


def propensities(score: Floats64, beta: float, mass: float) -> Floats64:
    r"""Compute the probability of each draw of a power batch, at the time when it was drawn.

    Drawing the largest Gumbel keys one after the other is drawing in proportion to score^beta from what is left, so

    .. math:: q_m = s_m^\beta / (Z - \sum_{j<m} s_j^\beta)

    These are what an unbiased estimate from the batch needs (LURE; Farquhar et al. 2021).

    Parameters
    ----------
    score : ndarray of shape (k,)
        Of the drawn rows, in the order in which they were drawn.
    beta : float
    mass : float
        Z, the sum of score^beta over all rows that could be drawn: ``Summary.tally.power_mass`` of the scan.

    Examples
    --------
    >>> propensities(np.array([0.5, 0.25]), 1.0, 1.0).tolist()
    [0.5, 0.5]
    """
    masses = power_masses(score, beta)
    return masses / (mass - np.concatenate([[0.0], np.cumsum(masses)[:-1]]))
