"""Agreement: how far annotators agree with each other on the records that several of them labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dal.evidence.votes import Floats, Integers, opinions


@dataclass(frozen=True)
class Pair:
    """The agreement of two annotators on the records that both labelled.

    Attributes
    ----------
    first, second : str
    n : int
        Records that both labelled.
    agreement : float
        Share of them with one label.
    kappa : float or None
        Cohen's kappa; None where both gave one and the same class throughout, which leaves nothing to agree on.
    """

    first: str
    second: str
    n: int
    agreement: float
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """The agreement of all annotators.

    Attributes
    ----------
    records : int
        Records that two annotators or more labelled; nothing else says anything of agreement.
    percent : float or None
        Share of the pairs of answers to one record that are of one class.
    alpha, low, high : float or None
        Krippendorff's alpha for nominal data, and its 95 % interval over the records; 1 is perfect, 0 is chance. None
        where there are no records, or only one class.
    pairs : tuple of Pair
        Of annotators who labelled a record in common, those who agree least first.
    text : str
        The same in words.
    """

    records: int
    percent: float | None
    alpha: float | None
    low: float | None
    high: float | None
    pairs: tuple[Pair, ...]
    text: str

    def with_others(self, annotator: str) -> tuple[float | None, int]:
        """Return the share of one annotator's labels that are those of others, and the pairs of labels it is over.

        Examples
        --------
        >>> rows, names = [1, 1, 2, 2, 2], ["ann", "bob", "ann", "bob", "eve"]
        >>> found = agreement(rows, names, [0, 0, 1, 0, 1], seed=0)
        >>> found.with_others("bob"), found.with_others("joe")
        ((0.3333333333333333, 3), (None, 0))
        """
        mine = [pair for pair in self.pairs if annotator in (pair.first, pair.second)]
        n = sum(pair.n for pair in mine)
        return (sum(pair.agreement * pair.n for pair in mine) / n if n else None), n

    def matrix(self) -> tuple[list[str], Floats, Integers]:
        """Return the pairs as matrices.

        Returns
        -------
        names : list of str
            Annotators who labelled a record in common with another one, sorted.
        shares : ndarray of float64, shape (m, m)
            Share of equal labels; NaN where two have no record in common, and on the diagonal.
        together : ndarray of int64, shape (m, m)
            Records in common; 0 on the diagonal.

        Examples
        --------
        >>> found = agreement([1, 1, 2, 2, 3], ["a", "b", "a", "b", "c"], [0, 0, 1, 0, 1], seed=0)
        >>> names, shares, together = found.matrix()
        >>> names, float(shares[0, 1]), int(together[1, 0])
        (['a', 'b'], 0.5, 2)
        """
        names = sorted({name for pair in self.pairs for name in (pair.first, pair.second)})
        at = {name: place for place, name in enumerate(names)}
        shares, together = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), np.int64)
        for pair in self.pairs:
            for i, j in ((at[pair.first], at[pair.second]), (at[pair.second], at[pair.first])):
                shares[i, j], together[i, j] = pair.agreement, pair.n
        return names, shares, together


def agreement(
    rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike, *, seed: int, repeats: int = 1000
) -> Agreement:
    """Measure the agreement of annotators, each of whom may have labelled any of the records.

    Krippendorff's alpha is ``1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k`` with the coincidences
    ``o_ck = sum_i n_ic (n_ik - [c = k]) / (m_i - 1)`` of the records i that have ``m_i`` > 1 labels (Krippendorff,
    Content Analysis, 2004, chapter 11). Its interval is the percentile one of a bootstrap over records.

    Examples
    --------
    >>> found = agreement([1, 1, 2, 2, 3, 3], ["ann", "bob"] * 3, [0, 0, 1, 1, 0, 1], seed=0)
    >>> found.records, round(found.percent, 3), round(found.alpha, 3)
    (3, 0.667, 0.444)
    """
    row, names, annotator, code = opinions(rows, annotators, labels)
    known, record = np.unique(row, return_inverse=True)
    classes, of = np.unique(code, return_inverse=True)
    counts = np.zeros((len(known), len(classes)), dtype=np.int64)
    np.add.at(counts, (record, of), 1)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        text = "no record has two answers: set an overlap of 2 or more, or have some answered again"
        return Agreement(0, None, None, None, None, (), text)
    patterns, times = np.unique(counts, axis=0, return_counts=True)
    answers = patterns.sum(axis=1)
    alike = (patterns * (patterns - 1)).sum(axis=1)
    percent = float((times * alike).sum()) / float((times * answers * (answers - 1)).sum())
    # Records of one pattern are alike, so drawing records again is drawing how often each pattern comes.
    drawn = np.random.default_rng([seed, len(counts)]).multinomial(len(counts), times / times.sum(), size=repeats)
    (alpha,) = _alphas(patterns, times[None])
    pairs = tuple(
        sorted(_pairs(record, names, annotator, code), key=lambda pair: (_least(pair), pair.first, pair.second))
    )
    said = f"{percent:.0%} of the answers to {len(counts):,} records with several are alike"
    if np.isnan(alpha):
        return Agreement(len(counts), percent, None, None, None, pairs, f"{said}; all of one class, so alpha is none")
    spread = _alphas(patterns, drawn)
    low, high = np.quantile(np.where(np.isnan(spread), 1.0, spread), [0.025, 0.975]).tolist()
    text = f"{said}; Krippendorff's alpha {alpha:.2f} ({low:.2f} to {high:.2f})"
    return Agreement(len(counts), percent, float(alpha), low, high, pairs, text)


def _alphas(patterns: Integers, times: Integers) -> Floats:
    """Compute alpha where each pattern of answers comes `times` times, (repeats, patterns); NaN for one class."""
    answers = patterns.sum(axis=1)
    unlike = (answers**2 - (patterns**2).sum(axis=1)) / (answers - 1)
    per_class = (times @ patterns).astype(np.float64)
    total = per_class.sum(axis=1)
    expected = total**2 - (per_class**2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        alphas: Floats = 1 - (total - 1) * (times @ unlike) / expected
    return alphas


def _pairs(record: Integers, names: list[str], annotator: Integers, code: Integers) -> list[Pair]:
    order = np.argsort(annotator, kind="stable")
    ends = np.cumsum(np.bincount(annotator, minlength=len(names)))[:-1]
    columns = np.split(record[order], ends), np.split(code[order], ends)
    said = dict(zip(names, zip(*columns, strict=True), strict=True))
    found = []
    for first, second in combinations(said, 2):
        _, mine, theirs = np.intersect1d(said[first][0], said[second][0], assume_unique=True, return_indices=True)
        if len(mine):
            found.append(_pair(first, second, said[first][1][mine], said[second][1][theirs]))
    return found


def _pair(first: str, second: str, a: Integers, b: Integers) -> Pair:
    observed = float((a == b).mean())
    size = int(np.maximum(a, b).max()) + 1
    expected = float(np.bincount(a, minlength=size) @ np.bincount(b, minlength=size)) / len(a) ** 2
    kappa = None if expected == 1 else (observed - expected) / (1 - expected)
    return Pair(first, second, len(a), observed, kappa)


def _least(pair: Pair) -> float:
    return 1.0 if pair.kappa is None else pair.kappa
