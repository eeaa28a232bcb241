"""Machines as annotators: how often a program is right, by the people who answered the same records.

People do not answer a random share of what a machine answers. They answer every record on which it differs from the
model, and of the others only a share. A plain count of agreement would say how good the machine is on its worst
records. So the answers are split in two, and each part is weighted by its size:

*backed*
    the machine and the model that chose the batch say the same. Such a record is settled without a person once the
    machine is trusted with this answer, except for a share that is drawn at random. These are checks of exactly the
    answers that count alone.
*others*
    all other answers; people get each of these records.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.evidence.ruler import Estimate, share_interval
from dal.evidence.votes import Labels, prior_answers
from dal.selection.order import Rows, uniform

Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

CHECKS = 200
"""Newest checks that decide whether a machine is trusted: it may have become another one."""

LEAST = 10
"""Checks of one answer from which on they say more about it than the machine does."""

_DRAWN = -2
"""Stands for the round in the hash that draws the records to check: no round has it."""


@dataclass(frozen=True)
class MachineAnswers:
    """The latest answers of one machine, in the order in which they came.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
    codes : ndarray of int64, shape (n,)
        Class codes; negative where the machine skipped the record.
    backed : ndarray of bool, shape (n,)
        Whether the model that chose the batch predicted the same class, of a record outside of the explore share.
    alone : ndarray of bool, shape (n,)
        Whether the answer counts without a person's.
    """

    rows: Rows
    codes: Codes
    backed: Flags
    alone: Flags

    @property
    def settling(self) -> Flags:
        """The flags of the answers that are the label of their record where no person has labelled it."""
        return self.alone & (self.codes >= 0)


@dataclass(frozen=True)
class Judged:
    """A machine by the labels that people gave the same records.

    Attributes
    ----------
    checked : int
        Records that the machine and people labelled.
    accuracy : Estimate
        Share of its labels that are those of people, over all of its labels.
    backed : Estimate
        The same where the model predicts the same class, over the newest checks; only of answers that are right often
        enough by their own checks, where there are some.
    by_answer : tuple of Estimate
        The same for each answer by itself, by class code.
    trusted : frozenset of int
        The class codes that the machine may answer alone.
    confusion : ndarray of float64, shape (C, C)
        ``confusion[c, l]``: how often the machine answers l where people say c; weighted as `accuracy` is.
    by_class : ndarray of int64, shape (C,)
        Records that `confusion` knows of each class.
    meaning : ndarray of float64, shape (C, C)
        ``meaning[l, c]``: the probability that a backed answer l is of the class c. Fewer than `LEAST` checks change
        nothing, nor does another class than l without a majority of them.
    """

    checked: int
    accuracy: Estimate
    backed: Estimate
    by_answer: tuple[Estimate, ...]
    trusted: frozenset[int]
    confusion: Floats
    by_class: Codes
    meaning: Floats

    def confusions(self, most: int = 3) -> list[tuple[int, int, float]]:
        """Return the largest confusions: the class by people, the machine's answer, and the share of the class.

        Only those of at least a tenth, and of classes with `LEAST` records: the matrix begins with a few made-up ones.
        """
        wrong = np.where(self.by_class[:, None] >= LEAST, self.confusion, 0.0)
        np.fill_diagonal(wrong, 0.0)
        largest = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*(each.tolist() for each in np.unravel_index(largest, wrong.shape)), strict=True)
        return [(true, said, float(wrong[true, said])) for true, said in pairs if wrong[true, said] >= 0.1]


def drawn_to_check(rows: npt.ArrayLike, share: float, seed: int) -> Flags:
    """Return which records people answer beside a trusted machine: a share of all, by hash, for any answer."""
    return np.asarray(uniform(np.asarray(rows, np.int64), seed, _DRAWN) < share)


def judge(given: MachineAnswers, people: Labels, n_classes: int, least: float = 0.9) -> Judged:
    """Compare a machine's answers with the labels that people gave the same records.

    Most checks are of the common classes, and say nothing of a rare one. So an answer needs `LEAST` checks of its own
    that are right in a share of `least`; all such answers together need an interval above it. The others are checked
    more often than these, so they are a part of their own.

    Parameters
    ----------
    given : MachineAnswers
    people : Labels
        The vote of people alone.
    n_classes : int
    least : float, default=0.9
        Share of right answers from which on the machine may answer alone.

    Examples
    --------
    >>> answers = np.array([0, 0, 1, 1, 1])
    >>> backed = np.array([True, True, True, True, False])
    >>> given = MachineAnswers(np.arange(5), answers, backed, np.zeros(5, bool))
    >>> judge(given, Labels(np.array([0, 2, 4]), np.array([0, 1, 0])), 2).accuracy.value
    0.8
    """
    labelled = given.codes >= 0
    rows, codes, backed = given.rows[labelled], given.codes[labelled], given.backed[labelled]
    at = np.searchsorted(people.rows, rows)
    checked = np.isin(rows, people.rows)
    truth = np.full(len(rows), -1, np.int64)
    truth[checked] = people.codes[at[checked]]
    checks = np.flatnonzero(checked & backed)
    right = truth == codes
    by_answer = tuple(_share_right(right[checks[codes[checks] == code]]) for code in range(n_classes))
    passing = [code for code, each in enumerate(by_answer) if each.n >= LEAST and (each.value or 0.0) >= least]
    passes = np.isin(codes, passing)
    newest = _share_right(right[checks[passes[checks]]] if passing else right[checks])
    parts = (backed & passes, backed & ~passes, ~backed)
    counts = np.stack([_counts(truth, codes, checked & part, n_classes) for part in parts])
    sizes = np.array([part.sum() for part in parts], np.float64)
    return Judged(
        int(checked.sum()),
        _weighted_accuracy(counts, sizes),
        newest,
        by_answer,
        frozenset(passing if newest.low >= least else ()),
        _confusion(counts, sizes),
        counts.sum(axis=(0, 2)).astype(np.int64),
        _meaning(counts[:2].sum(axis=0)),
    )


def with_machines(people: Labels, given: list[tuple[MachineAnswers, Judged]]) -> Labels:
    """Add to the labels of people those of machines that count alone, for records that no person has labelled.

    A label is the most probable class of what the machine answered, by its checks, and the answer itself where another
    class is only as probable. Where the vote of people gives probabilities, it has these as well.
    """
    if not given:
        return people
    rows, codes, proba = [people.rows], [people.codes], [] if people.proba is None else [people.proba]
    known = people.rows
    for answers, judged in given:
        # Two machines that settle a record say the same, and the first one is heard.
        own = answers.settling & ~np.isin(answers.rows, known)
        said = answers.codes[own]
        meant = judged.meaning[said]
        as_said = meant[np.arange(len(said)), said] >= meant.max(axis=1)
        rows.append(answers.rows[own])
        codes.append(np.where(as_said, said, meant.argmax(axis=1)))
        proba.append(meant)
        known = np.concatenate([known, answers.rows[own]])
    order = np.argsort(known, kind="stable")
    every = np.concatenate(proba)[order] if people.proba is not None else None
    return Labels(known[order], np.concatenate(codes)[order], every)


def _counts(truth: Codes, codes: Codes, chosen: Flags, n_classes: int) -> Floats:
    """Count records by the class that people gave, then by the machine's answer."""
    pairs = truth[chosen] * n_classes + codes[chosen]
    found: Floats = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.float64)
    return found


def _weighted_accuracy(counts: Floats, sizes: Floats) -> Estimate:
    """Estimate a share over parts of which different shares are known (a stratified sample, Cochran 1977, 5.3).

    The interval is Wilson's, for as many plain records as would give the same variance.
    """
    known = counts.sum(axis=(1, 2))
    if ((known == 0) & (sizes > 0)).any() or not known.any():
        return estimate(0.0, 0, 0)
    there = sizes > 0
    right, known, weights = np.trace(counts, axis1=1, axis2=2)[there], known[there], sizes[there] / sizes.sum()
    # Half a record each way: a part without an error is not known without error.
    softened = (right + 0.5) / (known + 1)
    mean, variance = float(weights @ softened), float(weights**2 @ (softened * (1 - softened) / known))
    n = float(known.sum())
    return estimate(float(weights @ (right / known)), min(n, mean * (1 - mean) / variance), int(n))


def _share_right(right: Flags) -> Estimate:
    """Estimate the share of right answers by the newest checks, the last ones."""
    newest = right[-CHECKS:]
    return estimate(float(newest.mean()) if len(newest) else 0.0, len(newest), len(newest))


def estimate(share: float, effective: float, n: int) -> Estimate:
    """Return a share of `n` records, with the interval of as many as `effective`; nothing is known of none."""
    if not n:
        return Estimate(None, 0.0, 1.0, 0, "people have not checked enough of them yet")
    low, high = share_interval(share, effective, 0.95)
    return Estimate(share, low, high, n, f"{share:.3f} ({low:.3f} to {high:.3f}, 95 %) on {n:,} records")


def _confusion(counts: Floats, sizes: Floats) -> Floats:
    known = counts.sum(axis=(1, 2))
    scale = np.divide(sizes, known, out=np.zeros(len(known)), where=known > 0)
    joint = np.einsum("s,scl->cl", scale, counts) + prior_answers(counts.shape[1])
    matrix: Floats = joint / joint.sum(axis=1, keepdims=True)
    return matrix


def _meaning(counts: Floats) -> Floats:
    prior = prior_answers(len(counts))
    checks = counts.T
    joint = checks + prior
    confirmed = joint.diagonal() >= joint.max(axis=1)
    told = confirmed | (2 * checks.max(axis=1) > checks.sum(axis=1))
    joint = np.where(((checks.sum(axis=1) >= LEAST) & told)[:, None], joint, prior)
    matrix: Floats = joint / joint.sum(axis=1, keepdims=True)
    return matrix
