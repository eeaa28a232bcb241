"""Ask again or ask new: labelled records and new ones on one scale, the probability that their class is known rightly.

Goh and Mueller, ActiveLab (arXiv 2301.11856, 2023), ask where the consensus of annotators and model is least sure,
among labelled and unlabelled records alike. Their consensus lets the model vote on records that it has learned from,
which takes cross-validation in each round; and while a pool has uncertain records, hardly any labelled one is the least
sure. Here the annotators alone speak for a label, weighed by the share of its class: a rare class that a careless one
names is more often a mistake than a find, and that is where a second opinion pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.evidence.votes import Floats, Integers, dawid_skene, opinions

STEPS, NEARNESS = 100, 1e-6
"""Most steps of the estimate of the class shares, which starts from equal ones, and the move that is its end."""

EVEN = 0.5
"""Probability above which a label is left alone."""


@dataclass(frozen=True)
class Sureness:
    """The probability that the label of each record is right, by its annotators and the share of its class.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
        Ascending.
    right : ndarray of float64, shape (m,)
    """

    rows: Integers
    right: Floats


def sureness(
    rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike, *, n_classes: int, seed: int
) -> Sureness:
    """Compute how sure labels are: ``pi_c prod_a theta^a_{c,l}``, normalised, at each record's most probable class.

    The confusion matrices are those of Dawid and Skene's model. Unlike there, a record with a single answer is weighed
    by the class shares ``pi`` too: they maximise the likelihood of all answers under these matrices.

    Parameters
    ----------
    rows, labels : array of int, shape (n,)
        As :func:`dal.evidence.votes.dawid_skene` takes them.
    annotators : sequence of str, length n

    Examples
    --------
    A class that one person in ten answers names is doubted where the others say that people are often wrong:

    >>> found = sureness(range(20), ["ann"] * 20, [1] * 18 + [0] * 2, n_classes=2, seed=0)
    >>> bool(found.right[0] > 0.9), bool(found.right[19] < 0.5)
    (True, True)
    """
    found = dawid_skene(rows, annotators, labels, n_classes=n_classes, seed=seed)
    row, _, annotator, code = opinions(rows, annotators, labels)
    known = found.labels.rows
    logs = np.zeros((len(known), n_classes))
    np.add.at(logs, np.searchsorted(known, row), np.log(found.confusion[annotator, :, code]))
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-np.inf))
    shares, posterior = np.full(n_classes, 1 / n_classes), likelihood
    for _ in range(STEPS):
        posterior = likelihood * shares
        posterior /= posterior.sum(axis=1, keepdims=True)
        before, shares = shares, (posterior.sum(axis=0) + 1 / n_classes) / (len(known) + 1)
        if np.abs(shares - before).max() < NEARNESS:
            break
    return Sureness(known, posterior[np.arange(len(known)), found.labels.codes])


def asked_again(labelled: Floats, new: Floats, most: int) -> tuple[Integers, Integers]:
    """Choose labelled records for another answer, and the new records that give way to them.

    The least sure labelled record takes the place of the surest new one while it is less sure, and more probably wrong
    than right: of others, a second answer most often says the same again.

    Parameters
    ----------
    labelled, new : ndarray of float64, shape (m,), (k,)
        How sure the class of each record is.
    most : int
        Records that may give way.

    Returns
    -------
    again, dropped : ndarray of int64
        Positions in `labelled` and in `new`, as many.

    Examples
    --------
    >>> [each.tolist() for each in asked_again(np.array([0.9, 0.3, 0.6]), np.array([0.5, 0.8, 0.4]), most=2)]
    [[1], [1]]
    """
    again, dropped = np.argsort(labelled, kind="stable")[:most], np.argsort(-new, kind="stable")[:most]
    pairs = min(len(again), len(dropped))
    less = labelled[again[:pairs]] < np.minimum(new[dropped[:pairs]], EVEN)
    count = pairs if less.all() else int(np.argmin(less))
    return again[:count].astype(np.int64), dropped[:count].astype(np.int64)
