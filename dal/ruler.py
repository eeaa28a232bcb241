"""The honest ruler: how good the learner is, measured on records that nobody chose.

The only answers that may judge a model are those of the explore share: drawn uniformly from the rows never asked, and
scored by the model that was in use *before* it learned from them. Anything measured on actively chosen records is
biased, mostly downwards: they were chosen because the model was unsure of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from dal.errors import InputError


@dataclass(frozen=True)
class RoundRecord:
    """What one closed round leaves behind for the ruler and the stopping criteria.

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
    """

    number: int
    labels: int
    explore_correct: int
    explore_asked: int
    hours: float
    never_asked: int


@dataclass(frozen=True)
class Estimate:
    """A share with its interval, and the same in words; `value` is None where there is no evidence."""

    value: float | None
    low: float
    high: float
    n: int
    text: str


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion.

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
        raise InputError(f"expected 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z2 = critical_value(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding would put the ends 1e-17 outside of [0, 1], or off 0 and 1 where they are exact.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def critical_value(confidence: float) -> float:
    """Half-width, in standard deviations, of the two-sided normal interval of this confidence."""
    if not 0 < confidence < 1:
        raise InputError(f"expected a confidence between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def explore_counts(history: Sequence[RoundRecord]) -> tuple[int, int]:
    """Correct and all explore answers of these rounds together."""
    return sum(record.explore_correct for record in history), sum(record.explore_asked for record in history)


def accuracy(history: Sequence[RoundRecord], rounds: int, confidence: float = 0.95) -> Estimate:
    """Accuracy over the explore answers of the last `rounds` rounds.

    Each answer was scored by the model that was in use when its record was asked, so this is the average over these
    models and not the accuracy of the newest, which has learned from the answers since.

    Examples
    --------
    >>> history = [RoundRecord(1, 20, 22, 25, 0.0, 900), RoundRecord(2, 120, 23, 25, 0.5, 800)]
    >>> accuracy(history, rounds=3).text
    '0.900 (0.786 to 0.957, 95 %) on 50 explore answers of the last 2 rounds: the average of the models then in use'
    """
    if rounds < 1:
        raise InputError(f"expected at least one round, got rounds={rounds}")
    window = history[-rounds:]
    correct, asked = explore_counts(window)
    low, high = wilson(correct, asked, confidence)
    if asked == 0:
        where = f"the last {len(window)} rounds" if window else "any round"
        return Estimate(None, low, high, 0, f"not enough evidence: no explore answers in {where}")
    text = (
        f"{correct / asked:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) on {asked} explore answers "
        f"of the last {len(window)} rounds: the average of the models then in use"
    )
    return Estimate(correct / asked, low, high, asked, text)
