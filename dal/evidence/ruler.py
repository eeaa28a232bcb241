"""The honest ruler: how good the learner is, measured on records that nobody chose.

The only answers that may judge a model are those of the explore share: drawn uniformly from the rows never asked, and
scored by the model that was in use *before* it learned from them. Anything measured on actively chosen records is
biased, mostly downwards: they were chosen because the model was unsure of them. Where the probabilities of the choice
are known, `lure` takes the bias out; where the user has a holdout, that is what counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.errors import InputError

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
FitAndJudge = Callable[[Positions, Positions], npt.NDArray[np.bool_]]
"""Fits a learner on the first positions and says of each of the others whether it is right there."""

FEWEST_ANSWERS = 200
"""Explore answers below which nothing is said of the labels saved."""
FEWEST_EFFECTIVE = 30
"""Equally weighted records that weighted ones must be worth."""
FARTHEST = 4
"""How many times the explore answers the learning curve of random sampling is followed beyond them."""
NEWEST = 100
"""Explore answers, the newest ones, by which a model is compared with naming one class for all records."""
CHANCE = 0.01
"""Probability of a warning about a model that is as often right as one class named for all records."""


@dataclass(frozen=True)
class RoundRecord:
    """The record of one closed round, for the ruler and the stopping criteria.

    Parameters
    ----------
    number
        Number of the round.
    labels
        Labels known when the round's model was fitted.
    explore_correct, explore_asked
        Answers of the round's explore share that the model which chose the batch had predicted, and all of them.
    hours
        Hours from the campaign's start to the round's freeze.
    never_asked
        Rows of the pool that nobody was asked about yet.
    kappa, changed, uncertainty
        Of the round's model on the stop set: its agreement with the model before, the share of predictions in which
        they differ, and its mean entropy as a share of ln C. None without a stop set, or without a model before.
    holdout_correct, holdout_asked
        What the round's model got right on the user's holdout, and the holdout's size; 0 without one.
    """

    number: int
    labels: int
    explore_correct: int
    explore_asked: int
    hours: float
    never_asked: int
    kappa: float | None = None
    changed: float | None = None
    uncertainty: float | None = None
    holdout_correct: int = 0
    holdout_asked: int = 0


@dataclass(frozen=True)
class Estimate:
    """A share with its interval, and the same in words; `value` is None where there is no evidence."""

    value: float | None
    low: float
    high: float
    n: int
    text: str


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of a binomial proportion.

    Unlike the textbook interval it stays inside [0, 1] and keeps its coverage for few answers and for shares near 1,
    which is where a campaign ends up. Wilson, JASA 22 (1927) 209; Brown, Cai and DasGupta, Stat. Sci. 16 (2001) 101.

    Returns
    -------
    low, high : float
        (0, 1) where `n` is 0: nothing is known.

    Raises
    ------
    InputError
        Unless 0 <= successes <= n and 0 < confidence < 1.

    Examples
    --------
    >>> low, high = wilson(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    if not 0 <= successes <= n:
        raise InputError(f"`successes` must be from 0 to `n`, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    return share_interval(successes / n, n, confidence)


def share_interval(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Compute the interval of a share of `n` records; a weighted share has an effective number that is no integer."""
    z2 = critical_value(confidence) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding would put the ends 1e-17 outside of [0, 1], or off 0 and 1 where they are exact.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def critical_value(confidence: float) -> float:
    """Return the half-width, in standard deviations, of the two-sided normal interval of this confidence."""
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def effective_number(weights: Floats) -> float:
    """Compute how many equally weighted records weighted ones are worth; 0 of none.

    Kish, Survey Sampling (1965), section 8.2.

    Examples
    --------
    >>> effective_number(np.array([2.0, 2.0])), effective_number(np.array([3.0, 1.0]))
    (2.0, 1.6)
    """
    return float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0


def explore_counts(history: Sequence[RoundRecord]) -> tuple[int, int]:
    """Count the correct explore answers of these rounds together, and all of them."""
    return sum(record.explore_correct for record in history), sum(record.explore_asked for record in history)


def accuracy(history: Sequence[RoundRecord], rounds: int, confidence: float = 0.95) -> Estimate:
    """Estimate the accuracy on the user's holdout; without one, on the explore answers of the last rounds.

    The holdout shows the accuracy of the newest model. Each explore answer was scored by the model that was in use when
    its record was asked, so they show the average over the models of the last `rounds` rounds, not the accuracy of the
    newest, which has learned from the answers since.

    Examples
    --------
    >>> history = [RoundRecord(1, 20, 22, 25, 0.0, 900), RoundRecord(2, 120, 23, 25, 0.5, 800)]
    >>> accuracy(history, rounds=3).text
    '0.900 (0.786 to 0.957, 95 %) on 50 explore answers of the last 2 rounds: the average of the models then in use'
    """
    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1, got {rounds}")
    if history and history[-1].holdout_asked:
        return holdout_accuracy(history[-1].holdout_correct, history[-1].holdout_asked, confidence)
    window = history[-rounds:]
    correct, asked = explore_counts(window)
    low, high = wilson(correct, asked, confidence)
    if asked == 0:
        where = last_rounds(len(window)) if window else "any round"
        return Estimate(None, low, high, 0, f"not enough evidence: no explore answers in {where}")
    text = (
        f"{correct / asked:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) on {asked} explore answers "
        f"of {last_rounds(len(window))}: the average of the models then in use"
    )
    return Estimate(correct / asked, low, high, asked, text)


def last_rounds(count: int) -> str:
    """Return how a number of last rounds is named.

    >>> last_rounds(1), last_rounds(2)
    ('the last round', 'the last 2 rounds')
    """
    return "the last round" if count == 1 else f"the last {count} rounds"


def holdout_accuracy(correct: int, n: int, confidence: float = 0.95) -> Estimate:
    """Estimate the accuracy on records that the user has set apart, all labelled and none of them learned from.

    Examples
    --------
    >>> holdout_accuracy(45, 50).text
    '0.900 (0.786 to 0.957, 95 %) on 50 holdout records'
    """
    low, high = wilson(correct, n, confidence)
    text = f"{correct / n:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) on {n} holdout records"
    return Estimate(correct / n, low, high, n, text)


def class_shares(counts: Sequence[int], confidence: float = 0.95) -> list[Estimate]:
    """Estimate the share of each class in the pool from the explore answers of all rounds.

    Parameters
    ----------
    counts
        Explore answers of each class. They are drawn from the rows never asked before, which is the pool but for the
        records that the strategy chose; of a pool that is mostly asked they tell about the rest only.
    confidence

    Examples
    --------
    >>> [share.text for share in class_shares([45, 5])]
    ['0.900 (0.786 to 0.957, 95 %) of 50 explore answers', '0.100 (0.043 to 0.214, 95 %) of 50 explore answers']
    """
    n = sum(counts)
    shares = []
    for count in counts:
        low, high = wilson(count, n, confidence)
        text = f"{count / n:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) of {n} explore answers" if n else ""
        value = count / n if n else None
        shares.append(Estimate(value, low, high, n, text or "not enough evidence: no explore answers"))
    return shares


def beaten_by_one_class(right: Sequence[bool], codes: Sequence[int]) -> int | None:
    """Return the class that is right more often, named for all records, than the model, by more than chance.

    A model ends there where the learner cannot represent the classes, such as a linear one of which one class surrounds
    the other, and what was asked has other shares of them than the pool: chosen records teach it to name the smaller
    class far too often. An exact one-sided sign test on the records of which one of the two is right and one wrong.

    Parameters
    ----------
    right : sequence of bool
        Of each explore answer, whether the model predicted it before it learned from it.
    codes : sequence of int
        Class codes of the answers.

    Returns
    -------
    int or None
        The most frequent class of the answers, the lowest code of several; None where it is not clearly better.

    Examples
    --------
    >>> beaten_by_one_class([False] * 9 + [True], [0] * 9 + [1]) is None  # 9 against 1: by chance in 11 of 1,024 cases
    True
    >>> beaten_by_one_class([False] * 10 + [True], [0] * 10 + [1])
    0
    """
    if len(right) != len(codes):
        raise InputError(f"`codes` must be {len(right)} class codes, one for each prediction, got {len(codes)}")
    if not codes:
        return None
    counts = np.bincount(np.asarray(codes, dtype=np.int64))
    common = int(np.argmax(counts))
    lost = sum(not each and code == common for each, code in zip(right, codes, strict=True))
    won = sum(each and code != common for each, code in zip(right, codes, strict=True))
    # In integers: as a float, 2 to the number of records overflows from 1,024 on. Each term follows from the one
    # before, for a round may have thousands of explore answers.
    differ = lost + won
    term = tail = math.comb(differ, lost)
    for count in range(lost, differ):
        term = term * (differ - count) // (count + 1)
        tail += term
    return common if round(1 / CHANCE) * tail < 2**differ else None


# -- labels saved -----------------------------------------------------------------------------------------------------


def labels_saved(
    fit_and_judge: FitAndJudge,
    n: int,
    accuracy: tuple[int, int],
    spent: int,
    *,
    seed: int = 0,
    repeats: int = 40,
    confidence: float = 0.95,
) -> Estimate:
    r"""Estimate how many more labels random sampling would have taken to come where the campaign is.

    The explore answers are a random sample, so a learner fitted on them alone shows what random sampling would have
    given. They are halved at random, `repeats` times; on nested subsets of the first half the learner is fitted, on
    the second it is judged. Through the accuracies at m labels goes the power law :math:`a - b\,m^{-c}`, which is
    followed to today's accuracy. Halving a sample varies as drawing another of its size does, so the quantiles over
    the halvings, with an accuracy drawn for each from its posterior, are the interval. Learning curves of classifiers
    follow power laws mostly (Viering and Loog, TPAMI 45 (2023) 7799), but not for ever: this one is not followed
    farther than `FARTHEST` times the answers.

    Parameters
    ----------
    fit_and_judge : callable
        Given two arrays of positions among the explore answers.
    n : int
        Explore answers.
    accuracy : tuple of int
        Explore answers that were predicted before they were learned from, and all such, in the last rounds.
    spent : int
        Labels that the campaign has used.
    seed, repeats, confidence

    Returns
    -------
    Estimate
        Labels saved, negative where random sampling would have been better; `high` is infinite where the interval goes
        beyond what can be estimated.
    """
    correct, asked = accuracy
    if n < FEWEST_ANSWERS:
        return _unknown(n, f"{n} explore answers, {FEWEST_ANSWERS} are needed")
    if asked == 0:
        return _unknown(n, "no explore answer was predicted before it was learned from")
    if FARTHEST * n < spent:
        return _unknown(
            n,
            f"{n} explore answers show random sampling up to {FARTHEST * n} labels, and {spent} were used; "
            f"it takes an explore share of a quarter, or {-(-spent // FARTHEST)} explore answers",
        )
    sizes, curves = _halved(fit_and_judge, n, seed, repeats)
    needed = _needed(sizes, curves.mean(axis=0)[None], np.array([correct / asked]))[0]
    if needed > FARTHEST * n:
        return _unknown(
            n, f"random sampling comes where the campaign is beyond {FARTHEST * n} labels, if at all: too far to tell"
        )
    rng = np.random.default_rng([seed, n])
    drawn = rng.beta(correct + 0.5, asked - correct + 0.5, size=repeats)
    spread = np.quantile(_needed(sizes, curves, drawn), [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    low, high = (float(end) if end <= FARTHEST * n else math.inf for end in spread)
    beyond = "more" if high == math.inf else f"{high - spent:.0f}"
    text = (
        f"{needed - spent:.0f} ({low - spent:.0f} to {beyond}, {100 * confidence:g} %): random sampling would have "
        f"taken about {needed:.0f} labels instead of {spent}, going by {n} explore answers"
    )
    return Estimate(needed - spent, low - spent, high - spent, n, text)


def _unknown(n: int, what: str) -> Estimate:
    return Estimate(None, -math.inf, math.inf, n, f"not enough evidence: {what}")


def _halved(fit_and_judge: FitAndJudge, n: int, seed: int, repeats: int) -> tuple[Floats, Floats]:
    """Measure the accuracy on one half of the answers, learned from nested parts of the other half."""
    half = n // 2
    sizes = np.unique(np.geomspace(half / 8, half, 5).round().astype(np.int64))
    curves = np.empty((repeats, len(sizes)))
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(n)
        for position, size in enumerate(sizes.tolist()):
            curves[repeat, position] = fit_and_judge(order[:size], order[half:]).mean()
    return sizes.astype(np.float64), curves


@one_thread
def _needed(sizes: Floats, curves: Floats, accuracy: Floats) -> Floats:
    """Fit the power law to each curve and solve it for the accuracy; infinite where the curve stays below."""
    exponents = np.geomspace(0.1, 2.0, 40)
    powers = sizes[None] ** -exponents[:, None]
    # For a given exponent the law is a straight line in m^-c: least squares in closed form, for all exponents at once.
    centred = powers - powers.mean(axis=1, keepdims=True)
    slope = np.minimum(curves @ centred.T / (centred**2).sum(axis=1), 0.0)
    top = np.minimum(curves.mean(axis=1)[:, None] - slope * powers.mean(axis=1), 1.0)
    fitted = top[..., None] + slope[..., None] * powers
    best = ((curves[:, None] - fitted) ** 2).sum(axis=2).argmin(axis=1)
    each = np.arange(len(curves))
    a, b, c = top[each, best], -slope[each, best], exponents[best]
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(a > accuracy, (b / np.maximum(a - accuracy, 1e-300)) ** (1 / c), np.inf)


# -- records that were chosen -----------------------------------------------------------------------------------------


def lure_weights(probabilities: npt.ArrayLike, n_pool: int) -> Floats:
    r"""Compute weights that make a mean over chosen records an unbiased estimate of the mean over the pool.

    :math:`v_m = 1 + \frac{N-M}{N-m} \left(\frac{1}{(N-m+1)\,q_m} - 1\right)` (Farquhar, Gal and Rainforth, ICLR 2021).

    Parameters
    ----------
    probabilities : array of float, shape (M,)
        q: of each record, in the order of drawing, the probability with which it was drawn next among those left.
    n_pool : int
        N: records at the start, of which M were drawn without replacement.

    Returns
    -------
    ndarray of float64, shape (M,)

    Raises
    ------
    InputError
        Unless 0 < q <= 1 and there are no more draws than records.

    Examples
    --------
    >>> lure_weights([1 / 4, 1 / 3], 4).tolist()  # drawn uniformly: nothing to correct
    [1.0, 1.0]
    """
    q = np.asarray(probabilities, dtype=np.float64)
    if not ((q > 0) & (q <= 1)).all():
        raise InputError(
            "`probabilities` must be above 0 and at most 1, got others; a record that is drawn for sure has 1"
        )
    if len(q) > n_pool:
        raise InputError(f"`probabilities` must be of at most {n_pool} records, got {len(q)}")
    left = n_pool - np.arange(1, len(q) + 1)
    share = np.divide(n_pool - len(q), left, out=np.zeros(len(q)), where=left > 0)
    return 1.0 + share * (1.0 / ((left + 1) * q) - 1.0)


def lure(losses: npt.ArrayLike, probabilities: npt.ArrayLike, n_pool: int, confidence: float = 0.95) -> Estimate:
    """Estimate the mean loss over the pool without bias from records that were drawn with known probabilities.

    Parameters
    ----------
    losses : array of float, shape (M,)
        Of the drawn records, in the order of drawing; between 0 and 1, such as 1 where the model was wrong.
    probabilities, n_pool
        As in `lure_weights`.
    confidence

    Returns
    -------
    Estimate
        The interval is Wilson's, for as many records as would give the variance of the weighted losses. Of 95 % it
        holds the truth in 93 to 95 of 100 simulated cases. Where few weights carry the estimate, fewer than
        `FEWEST_EFFECTIVE` records' worth by Kish's rule, it would be 84, and none is given.

    Raises
    ------
    InputError
        If a loss is not between 0 and 1, or there are not as many as probabilities.
    """
    weights, loss = lure_weights(probabilities, n_pool), np.asarray(losses, dtype=np.float64)
    if loss.shape != weights.shape or not ((loss >= 0) & (loss <= 1)).all():
        raise InputError(
            f"`losses` must be {len(weights)} numbers between 0 and 1, one for each probability, got others"
        )
    n = len(loss)
    effective = effective_number(weights)
    if effective < FEWEST_EFFECTIVE:
        said = f"{n} records drawn with known probabilities weigh as much as {effective:.0f}"
        return _unknown(n, f"{said}, {FEWEST_EFFECTIVE} are needed")
    weighted = weights * loss
    mean = min(max(float(weighted.mean()), 0.0), 1.0)
    # Of records drawn without replacement a share M / N of the variance is gone.
    variance = float(weighted.var(ddof=1)) * (1 - n / n_pool) / n
    spread = mean * (1 - mean)
    low, high = share_interval(mean, spread / variance if spread > 0 and variance > 0 else effective, confidence)
    text = f"{mean:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) on {n} records, corrected for their choice"
    return Estimate(mean, low, high, n, text)
