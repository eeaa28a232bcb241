"""Votes: the label of a record from the answers of several annotators.

An answer is a row, an annotator and a class code; there is one for each annotator and row. A negative code is a skipped
answer, which counts for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dal.choices import Vote
from dal.errors import LabelError
from dal.selection.order import row_hash

if TYPE_CHECKING:
    from scipy import sparse

Integers = npt.NDArray[np.int64]


Floats = npt.NDArray[np.float64]

MOST_STEPS = 1000
"""Of the expectation maximisation; it ends sooner, as soon as a step moves no posterior by a millionth."""


LEAST_WEIGHT = 0.01
"""Classes that a record belongs to with less probability are left out of the training."""


@dataclass(frozen=True)
class Labels:
    """The labels that the answers amount to.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
        The rows that anyone labelled, ascending, each once.
    codes : ndarray of int64, shape (m,)
        Their class codes.
    proba : ndarray of float64, shape (m, C), or None
        The probability of each class, where the vote gives one; `codes` are the most probable ones.
    """

    rows: Integers
    codes: Integers
    proba: Floats | None = None

    def at(self, positions: npt.NDArray[np.int64 | np.bool_]) -> "Labels":
        """Return the labels at some positions, or where a mask is set."""
        proba = None if self.proba is None else self.proba[positions]
        return Labels(self.rows[positions], self.codes[positions], proba)

    def weighted(self) -> tuple[Integers, Integers, Floats | None]:
        """Return what to train on: positions in `rows`, class codes, weights.

        A record of doubtful class is there once for each class that it may be of, weighted by its probability: the
        loss of the learner is then the expected one. The weights of a record add up to 1.

        Examples
        --------
        >>> doubtful = Labels(np.array([7, 9]), np.array([0, 1]), np.array([[0.75, 0.25], [0.0, 1.0]]))
        >>> [column.tolist() for column in doubtful.weighted()]
        [[0, 0, 1], [0, 1, 1], [0.75, 0.25, 1.0]]
        """
        if self.proba is None:
            return np.arange(len(self.rows)), self.codes, None
        weights = np.where(self.proba >= LEAST_WEIGHT, self.proba, 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        positions, codes = np.nonzero(weights)
        return positions, codes, weights[positions, codes]


def label(
    rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike, *, vote: Vote, n_classes: int, seed: int
) -> Labels:
    """Decide the label of each record, by majority or by Dawid and Skene's model of the annotators."""
    if vote == "dawid_skene":
        return dawid_skene(rows, annotators, labels, n_classes=n_classes, seed=seed).labels
    return Labels(*majority(rows, labels, seed=seed))


def majority(rows: npt.ArrayLike, labels: npt.ArrayLike, *, seed: int) -> tuple[Integers, Integers]:
    """Decide the class of each record: the one that most of its annotators gave it.

    A tie is decided by a hash of the row, so the label of a record depends on its own answers and the seed
    alone: not on the order in which they came, nor on any other record.

    Parameters
    ----------
    rows : array of int, shape (n,)
        Row of each answer; one answer per annotator, the latest.
    labels : array of int, shape (n,)
        Class code of each answer; a negative code is a skipped one and counts for nothing.
    seed : int
        Seed of the campaign.

    Returns
    -------
    rows : ndarray of int64, shape (m,)
        The rows that anyone labelled, ascending, each once.
    labels : ndarray of int64, shape (m,)
        Their class codes.

    Raises
    ------
    LabelError
        If the two are not one-dimensional and of one length.

    Examples
    --------
    >>> rows, labels = majority([7, 7, 7, 3, 5], [1, 0, 1, 2, -1], seed=0)
    >>> rows.tolist(), labels.tolist()
    ([3, 7], [2, 1])
    """
    rows, labels = np.asarray(rows, np.int64), np.asarray(labels, np.int64)
    if rows.ndim != 1 or rows.shape != labels.shape:
        raise LabelError(f"`labels` must be one a row, got {labels.shape} labels for {rows.shape} rows")
    given = labels >= 0
    if given.all() and (rows[1:] > rows[:-1]).all():
        return rows, labels  # a million records of one answer each are neither sorted nor copied
    rows, labels, votes = _votes(rows[given], labels[given])
    starts = _starts(rows)
    most = np.repeat(np.maximum.reduceat(votes, starts), _lengths(starts, rows.size)) if rows.size else votes
    rows, labels = rows[votes == most], labels[votes == most]
    starts = _starts(rows)
    tied = _lengths(starts, rows.size).astype(np.uint64)
    chosen = starts + (row_hash(rows[starts], seed, 0) % tied).astype(np.int64)
    return rows[chosen], labels[chosen]


def _votes(rows: Integers, labels: Integers) -> tuple[Integers, Integers, Integers]:
    """Count the answers of each (row, label), ordered by row, then label."""
    order = np.lexsort((labels, rows))
    rows, labels = rows[order], labels[order]
    starts = _starts(rows, labels)
    return rows[starts], labels[starts], _lengths(starts, rows.size)


def _starts(*columns: Integers) -> Integers:
    """Find where a run of equal values begins in sorted columns."""
    new = np.zeros(columns[0].size, dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new).astype(np.int64)


def _lengths(starts: Integers, total: int) -> Integers:
    return np.diff(starts, append=total).astype(np.int64)


@dataclass(frozen=True)
class DawidSkene:
    """The result of the model of Dawid and Skene.

    Attributes
    ----------
    labels : Labels
        With the posterior of each record.
    annotators : list of str
        Those who labelled anything, sorted.
    confusion : ndarray of float64, shape (annotators, C, C)
        ``confusion[a, c, l]``: how often annotator a answers l where the truth is c.
    steps : int
        Of the expectation maximisation.
    """

    labels: Labels
    annotators: list[str]
    confusion: Floats
    steps: int


def dawid_skene(
    rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike, *, n_classes: int, seed: int
) -> DawidSkene:
    """Estimate what each record is and how each annotator errs, together, by expectation maximisation.

    Each annotator has a confusion matrix; a record's class has the posterior ``T_ic ~ pi_c prod_a theta^a_{c,l}`` over
    its answers l. Dawid and Skene, Applied Statistics 28 (1979) 20. A prior of 2 answers on the diagonal and of 1
    shared by the other classes keeps an annotator of few answers near the others.

    Only records with two answers or more say anything of who errs, so only these are fitted. A record with a single
    answer then gets its posterior from its annotator's matrix with all classes alike: with the class shares of the
    others as well, a common class would swallow the few answers of a rare one, which are what a campaign looks for.

    Parameters
    ----------
    rows, labels : array of int, shape (n,)
    annotators : sequence of str, length n
    n_classes : int
    seed : int
        Decides ties.

    Returns
    -------
    DawidSkene

    Examples
    --------
    >>> rows, who = [1, 1, 1, 2, 2, 2, 3, 3, 3], ["ann", "bob", "cat"] * 3
    >>> found = dawid_skene(rows, who, [0, 0, 1, 1, 1, 1, 0, 0, 0], n_classes=2, seed=0)
    >>> found.labels.codes.tolist()
    [0, 1, 0]
    """
    from scipy import sparse  # majority votes, and status, do without

    row, names, annotator, code = opinions(rows, annotators, labels)
    known, record = np.unique(row, return_inverse=True)
    size = len(names) * n_classes
    # One line a record, one column a pair of annotator and answer: both steps are products with this matrix.
    given = sparse.csr_array((np.ones(len(code)), (record, annotator * n_classes + code)), shape=(len(known), size))
    answers_of = np.bincount(record, minlength=len(known))
    several = answers_of > 1
    fitted = given[several]
    votes = _vote_shares(record, code, len(known), n_classes)
    posterior, change, steps = votes[several], np.inf, 0
    log_theta = _log_confusion(fitted, posterior, len(names), n_classes)
    while change > 1e-6 and steps < MOST_STEPS:
        shares = posterior.sum(axis=0) + 1 / n_classes
        before, posterior = posterior, _normalised(fitted @ log_theta + np.log(shares / shares.sum()))
        log_theta = _log_confusion(fitted, posterior, len(names), n_classes)
        change, steps = float(np.abs(posterior - before).max(initial=0)), steps + 1
    proba = np.empty((len(known), n_classes))
    proba[several] = posterior
    proba[~several] = _normalised(given[~several] @ log_theta)
    confusion = np.exp(log_theta).reshape(len(names), n_classes, n_classes).transpose(0, 2, 1)
    codes = _most_probable(known, proba, seed)
    return DawidSkene(Labels(known, codes, proba), names, confusion, steps)


def opinions(
    rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike
) -> tuple[Integers, list[str], Integers, Integers]:
    """Check the columns, and leave the skipped answers out; annotators become positions among their sorted names."""
    row, code = np.asarray(rows, np.int64), np.asarray(labels, np.int64)
    if row.ndim != 1 or not row.shape == code.shape == (len(annotators),):
        raise LabelError(
            f"`rows`, `annotators` and `labels` must be as many, got {row.shape}, {len(annotators)} and {code.shape}"
        )
    opinion = code >= 0
    everybody = sorted(set(annotators))
    position = {name: at for at, name in enumerate(everybody)}
    who = np.fromiter(map(position.__getitem__, annotators), np.int64, len(annotators))[opinion]
    heard, who = np.unique(who, return_inverse=True)
    return row[opinion], [everybody[at] for at in heard.tolist()], who, code[opinion]


def _vote_shares(record: Integers, code: Integers, n_records: int, n_classes: int) -> Floats:
    counts = np.bincount(record * n_classes + code, minlength=n_records * n_classes).reshape(n_records, n_classes)
    shares: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _log_confusion(given: "sparse.csr_array", posterior: Floats, n_annotators: int, n_classes: int) -> Floats:
    """Estimate, per annotator and answer, the logarithm of its probability under each true class."""
    counts = (given.T @ posterior).reshape(n_annotators, n_classes, n_classes) + prior_answers(n_classes)
    log_theta: Floats = np.log(counts / counts.sum(axis=1, keepdims=True)).reshape(-1, n_classes)
    return log_theta


def prior_answers(n_classes: int) -> Floats:
    """Return the answers that each annotator is given in advance, 2 on the diagonal and 1 shared by the others."""
    prior = np.full((n_classes, n_classes), 1 / (n_classes - 1))
    np.fill_diagonal(prior, 2)
    return prior


def _normalised(joint: Floats) -> Floats:
    """Turn logarithms of joint probabilities into posteriors."""
    likelihood = np.exp(joint - joint.max(axis=1, keepdims=True, initial=-np.inf))
    posteriors: Floats = likelihood / likelihood.sum(axis=1, keepdims=True)
    return posteriors


def _most_probable(rows: Integers, proba: Floats, seed: int) -> Integers:
    """Choose the most probable class; a tie is decided by a hash of the row, as in `majority`."""
    best = proba >= proba.max(axis=1, keepdims=True, initial=0.0) - 1e-9
    place = (row_hash(rows, seed, 0) % np.maximum(best.sum(axis=1), 1).astype(np.uint64)).astype(np.int64)
    return np.argmax(np.cumsum(best, axis=1) > place[:, None], axis=1).astype(np.int64)


def relabelling(proba: Floats, scores: npt.ArrayLike) -> tuple[Integers, Floats]:
    """Order labelled records by what another answer is worth: how doubtful the label is, times how much it matters.

    Parameters
    ----------
    proba : ndarray of float, shape (m, C)
        Posteriors of :func:`dawid_skene`.
    scores : array of float, shape (m,)
        What each record was worth asking, from 0 to 1; NaN where nobody knows, which counts as 1.

    Returns
    -------
    positions : ndarray of int64, shape (m,)
        The most worthwhile record first.
    worth : ndarray of float64, shape (m,)
        Of each record, in the order of `proba`: the entropy of its posterior, as a share of the largest, times its
        score.

    Examples
    --------
    >>> relabelling(np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]), [1.0, 0.2, 1.0])[0].tolist()
    [2, 1, 0]
    """
    worth: Floats = doubts(proba) * np.nan_to_num(np.asarray(scores, np.float64), nan=1.0)
    return np.argsort(-worth, kind="stable").astype(np.int64), worth


def doubts(proba: Floats) -> Floats:
    """Return the entropy of posteriors, (m, C), as a share of the largest, (m,)."""
    logs = np.log(proba, out=np.zeros_like(proba), where=proba > 0)
    entropy: Floats = -(proba * logs).sum(axis=1) / np.log(proba.shape[1])
    return entropy
