"""People over time, by their pace, and by the records that they got: change and haste, and hard records apart.

An answer is judged by a gold record's label, or by the class that most other people gave the same record. A person's
own answer is no part of that, and where the others are of two minds the answer is not judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.evidence.ruler import critical_value, wilson
from dal.evidence.votes import DawidSkene, Floats, Integers, doubts, opinions

Flags = npt.NDArray[np.bool_]

CHANCE = 0.05
"""Most probable share of campaigns in which anybody is ever named by chance: over all looks, people and both tests."""

FIRST_LOOK, NEXT_LOOK = 40, 1.25
"""Judged answers at the first look at a person, and the factor to those at the next one."""

WINDOWS, LEAST_WINDOW = 8, 20
"""Most windows of a person's judged answers, and the fewest answers of each."""

PACE_WINDOW = 30
"""Fewest answers in a row among which fast ones are compared with slow ones."""

FEWEST_OTHERS = 10
"""Judged answers of others before and after a change without which nobody can tell it from harder records."""


@dataclass(frozen=True)
class Share:
    """A share of right answers among judged ones, with Wilson's 95 % interval."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """The share itself; 0 of no answers."""
        return self.right / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval."""
        return wilson(self.right, self.of)

    @property
    def text(self) -> str:
        """The share in words."""
        low, high = self.interval
        return f"{self.value:.0%} ({low:.0%} to {high:.0%}) of {self.of:,}"


@dataclass(frozen=True)
class Change:
    """A change of a person that is larger than chance, and not shared by the others.

    Attributes
    ----------
    after : int
        Judged answers before it.
    before, since : Share
        The person's answers.
    others_before, others_since : Share
        Those of all others in the same time.
    """

    after: int
    before: Share
    since: Share
    others_before: Share
    others_since: Share


@dataclass(frozen=True)
class Course:
    """The answers of one person in the order of time.

    Attributes
    ----------
    name : str
    judged : int
        Answers that gold or others judge.
    windows : tuple of Share
        Of equally many judged answers, the first ones first.
    change : Change or None
    fast, middle, slow : Share or None
        At the last look, by thirds of the seconds that answers took among `PACE_WINDOW` or more in a row; None without
        `FIRST_LOOK` judged answers of known seconds.
    hasty : bool
        Whether the fast third is right less often than the slow one, beyond chance. Hard records take longer, so the
        fast third of a careful person is right more often.
    """

    name: str
    judged: int
    windows: tuple[Share, ...] = ()
    change: Change | None = None
    fast: Share | None = None
    middle: Share | None = None
    slow: Share | None = None
    hasty: bool = False

    @property
    def text(self) -> str:
        """The course in words."""
        if not self.windows:
            return f"{self.name}: {self.judged:,} judged answers; {FIRST_LOOK} are needed to see a change"
        shares = ", ".join(f"{each.value:.0%}" for each in self.windows)
        text = f"{self.name}: of {self.judged:,} judged answers {shares} are right, the first ones first"
        if self.fast is None or self.slow is None:
            return f"{text}; too few answers tell their seconds"
        return f"{text}; {self.fast.value:.0%} of the fastest third, {self.slow.value:.0%} of the slowest"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Changes and haste to be looked into, in words."""
        found = []
        if self.change is not None:
            each = self.change
            way = "less" if each.since.value < each.before.value else "more"
            others = f"; others {each.others_before.value:.0%} and {each.others_since.value:.0%} in the same time"
            found.append(
                f"{self.name} is right {way} often after {each.after:,} judged answers: {each.since.text},"
                f" before {each.before.text}{others if each.others_since.of else ''}."
            )
        if self.hasty and self.fast is not None and self.slow is not None:
            found.append(
                f"{self.name} is less often right when fast: {self.fast.text} in the fastest third, {self.slow.text} in"
                " the slowest."
            )
        return tuple(found)


def judgements(rows: npt.ArrayLike, labels: npt.ArrayLike, gold: Mapping[int, int]) -> tuple[Integers, Flags]:
    """Judge each answer by gold, else by the class that most other people gave its record.

    Parameters
    ----------
    rows, labels : array of int, shape (n,)
        One answer per person and record; a negative label is a skip.
    gold : mapping of int to int
        The class code of each gold row.

    Returns
    -------
    right : ndarray of int64, shape (n,)
        1 or 0; -1 where nothing judges the answer.
    by_gold : ndarray of bool, shape (n,)

    Examples
    --------
    >>> judgements([1, 1, 1, 2, 9], [0, 0, 1, 0, 1], {9: 1})[0].tolist()
    [-1, -1, 0, -1, 1]
    """
    row, code = np.asarray(rows, np.int64), np.asarray(labels, np.int64)
    opinion = np.flatnonzero(code >= 0)
    right, known = np.full(len(row), -1, np.int64), np.array(sorted(gold), np.int64)
    by_gold = np.isin(row, known)
    if not len(opinion):
        return right, by_gold
    record, own = np.unique(row[opinion], return_inverse=True)[1], code[opinion]
    pairs, of, count = np.unique(np.stack([record, own]), axis=1, return_inverse=True, return_counts=True)
    of, starts = of.ravel(), np.flatnonzero(np.diff(pairs[0], prepend=-1))
    most = np.maximum.reduceat(count, starts)
    at_most = np.add.reduceat((count == most[pairs[0]]).astype(np.int64), starts)
    second = np.maximum.reduceat(np.where(count == most[pairs[0]], 0, count), starts)
    mine, top, tops = count[of], most[record], at_most[record]
    # Without the answer itself: another class is alone at the top, or its own still is.
    others = ((mine < top) & (tops == 1)) | ((mine == top) & (tops == 2))
    shared = (mine == top) & (tops == 1) & (mine - 1 > second[record])
    right[opinion] = np.where(shared, 1, np.where(others, 0, -1))
    known_here = np.flatnonzero(by_gold & (code >= 0))
    truth = np.fromiter(map(gold.__getitem__, row[known_here].tolist()), np.int64, len(known_here))
    right[known_here] = truth == code[known_here]
    return right, by_gold


def courses(
    rows: npt.ArrayLike,
    annotators: Sequence[str],
    labels: npt.ArrayLike,
    gold: Mapping[int, int],
    times: npt.ArrayLike,
    seconds: npt.ArrayLike,
) -> tuple[Course, ...]:
    """Follow each person's judged answers through time, and compare the fast ones with the slow ones.

    A change is sought by the largest deviation of the cumulated sum of right answers from a straight line, over all
    places where it may be: ``max_t |S_t - t/n S_n| / (s sqrt(n))`` with ``s^2 = p (1 - p)``. Where nothing changes, its
    limit is the largest deviation of a Brownian bridge (Kolmogorov, 1933; Brown, Durbin and Evans, JRSS B 37 (1975)
    149). All get worse together where records get harder, so a change counts only if it also differs, with the same
    chance, from that of the others in the same time, who are judged without this person.

    Haste is sought by the difference of the fast and the slow third. Records get harder and people faster while a
    campaign goes on, so thirds of all answers would compare late ones with early ones: each is the sum of the thirds
    of short windows (Mantel and Haenszel, JNCI 22 (1959) 719; its weights of windows of one length are equal).

    Each of the two tests, at the look number l at the i-th person who came so far, has a chance of
    ``CHANCE / (2 l (l + 1) i (i + 1))``. That adds up to `CHANCE`, and those who come later change nobody's share.

    Parameters
    ----------
    rows, labels, gold
        As :func:`judgements` takes them.
    annotators : sequence of str, length n
    times : array of int, shape (n,)
        Rank of each answer in time. Answers that came at once, as in a file, have the same one: nothing changed
        between them.
    seconds : array of float, shape (n,)
        How long each answer took; NaN where nobody knows.

    Returns
    -------
    tuple of Course
        By name, of all who answered.
    """
    row, code = np.asarray(rows, np.int64), np.asarray(labels, np.int64)
    time, taken = np.asarray(times, np.int64), np.asarray(seconds, np.float64)
    everybody = sorted(set(annotators))
    position = {name: at for at, name in enumerate(everybody)}
    who = np.fromiter(map(position.__getitem__, annotators), np.int64, len(annotators))
    right, by_gold = judgements(row, code, gold)
    judged = right >= 0
    places = _places(who[judged], time[judged])
    found = []
    for at, name in enumerate(everybody):
        own = np.flatnonzero((who == at) & judged)
        own = own[np.argsort(time[own], kind="stable")]
        if len(own) < FIRST_LOOK:
            found.append(Course(name, len(own)))
            continue
        change, upto = None, own[: _looked_at(len(own))]
        chance = _chance(len(own), places[at])
        if split := _change(right[upto], time[upto], chance):
            others = np.flatnonzero((who != at) & (time >= time[own[0]]) & (time <= time[upto[-1]]))
            theirs = judgements(row[others], code[others], gold)[0]
            since = time[others] >= time[upto[split]]
            change = Change(
                split,
                _share(right[upto[:split]]),
                _share(right[upto[split:]]),
                _share(theirs[(theirs >= 0) & ~since]),
                _share(theirs[(theirs >= 0) & since]),
            )
            change = change if _is_own(change, chance, by_gold=bool(by_gold[upto].all())) else None
        found.append(
            Course(name, len(own), _windows(right[own]), change, *_by_pace(right[own], taken[own], places[at]))
        )
    return tuple(found)


def _places(who: Integers, time: Integers) -> dict[int, int]:
    """Return the place, from 1, of each who has `FIRST_LOOK` judged answers, in the order in which they got there."""
    counts = np.bincount(who)
    ends = np.cumsum(counts)
    followed = np.flatnonzero(counts >= FIRST_LOOK)
    came = time[np.lexsort((time, who))][(ends - counts)[followed] + FIRST_LOOK - 1]
    return {at: place for place, at in enumerate(followed[np.argsort(came, kind="stable")].tolist(), 1)}


def _looks(n: int) -> int:
    """Return how many looks there were at `n` judged answers, of which there are `FIRST_LOOK` or more."""
    return 1 + math.floor(math.log(n / FIRST_LOOK) / math.log(NEXT_LOOK) + 1e-9)


def _looked_at(n: int) -> int:
    """Return the number of answers at the last look."""
    return min(n, math.ceil(FIRST_LOOK * NEXT_LOOK ** (_looks(n) - 1) - 1e-9))


def _chance(n: int, place: int) -> float:
    """Return the chance of each of both tests at the last look at the person who came at `place`."""
    look = _looks(n)
    return CHANCE / (2 * look * (look + 1) * place * (place + 1))


def _change(right: Integers, time: Integers, chance: float) -> int:
    """Return the number of answers before the largest change; 0 where it is within chance."""
    n, mean = len(right), float(right.mean())
    if not 0 < mean < 1:
        return 0
    ends = np.flatnonzero(np.diff(time)) + 1
    if not len(ends):
        return 0
    away = np.abs(np.cumsum(right) - mean * np.arange(1, n + 1))[ends - 1]
    largest = float(away.max()) / math.sqrt(n * mean * (1 - mean))
    terms = np.arange(1, 101)
    tail = 2 * float((np.where(terms % 2, 1.0, -1.0) * np.exp(-2.0 * terms**2 * largest**2)).sum())
    # The series says nothing of small deviations, whose chance is 1.
    return int(ends[np.argmax(away)]) if largest > 0.5 and tail <= chance else 0


def _is_own(change: Change, chance: float, *, by_gold: bool) -> bool:
    """Return whether a change is the person's alone: not that of the others, who met as hard records."""
    if min(change.others_before.of, change.others_since.of) < FEWEST_OTHERS:
        # Gold records are as hard at all times; others are not, and two people alone judge each other.
        return by_gold
    parts = (change.before, change.since, change.others_before, change.others_since)
    own = change.since.value - change.before.value
    apart = own - (change.others_since.value - change.others_before.value)
    # One answer each way: a share of 1 is not known without error.
    shares = [((each.right + 1) / (each.of + 2), each.of + 2) for each in parts]
    deviation = math.sqrt(sum(share * (1 - share) / of for share, of in shares))
    return own * apart > 0 and abs(apart) > critical_value(1 - chance) * deviation


def _windows(right: Integers) -> tuple[Share, ...]:
    count = max(1, min(WINDOWS, len(right) // LEAST_WINDOW))
    return tuple(_share(part) for part in np.array_split(right, count))


def _by_pace(right: Integers, seconds: Floats, place: int) -> tuple[Share | None, Share | None, Share | None, bool]:
    known = np.flatnonzero(np.isfinite(seconds) & (seconds >= 0))
    if len(known) < FIRST_LOOK:
        return None, None, None, False
    chance, known = _chance(len(known), place), known[: _looked_at(len(known))]
    windows = np.array_split(known, len(known) // PACE_WINDOW)
    thirds = [np.array_split(each[np.argsort(seconds[each], kind="stable")], 3) for each in windows]
    fast, middle, slow = (_share(right[np.concatenate(part)]) for part in zip(*thirds, strict=True))
    return fast, middle, slow, _is_below(fast, slow, 1 - chance)


def _is_below(one: Share, other: Share, confidence: float) -> bool:
    """Return whether the interval of a difference of shares is below 0 (Newcombe, Stat. Med. 17 (1998) 873, no. 10)."""
    (_, high), (low, _) = wilson(one.right, one.of, confidence), wilson(other.right, other.of, confidence)
    difference = one.value - other.value
    return difference + math.hypot(high - one.value, other.value - low) < 0


def _share(right: Integers) -> Share:
    return Share(int(right.sum()), len(right))


# -- hard records and careless people ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Apart:
    """A person by Dawid and Skene's model, which tells hard records from careless people.

    Attributes
    ----------
    name : str
    records : int
        Records with several answers that they labelled.
    right : float
        Probability that they answer a record of theirs rightly: the diagonal of their confusion matrix, weighted by
        the classes of these records.
    doubt : float
        Mean entropy of what the answers say of these records, from 0 to 1: how hard they were for people as good as
        these.
    """

    name: str
    records: int
    right: float
    doubt: float

    @property
    def text(self) -> str:
        """The person in words."""
        return f"{self.name}: right in {self.right:.0%} of {self.records:,} records, whose doubt is {self.doubt:.2f}"


def apart(
    found: DawidSkene, rows: npt.ArrayLike, annotators: Sequence[str], labels: npt.ArrayLike
) -> tuple[Apart, ...]:
    """Compute how often people are right, apart from how hard their records are: the least often right first.

    Parameters
    ----------
    found : DawidSkene
        Of the same answers.
    rows, labels : array of int, shape (n,)
    annotators : sequence of str, length n

    Examples
    --------
    >>> from dal.evidence.votes import dawid_skene
    >>> rows = np.repeat(np.arange(40), 3)
    >>> codes = np.where(np.arange(120) % 3 == 2, 0, rows % 2)  # eve always says 0
    >>> columns = rows, ["ann", "bob", "eve"] * 40, codes
    >>> [each.name for each in apart(dawid_skene(*columns, n_classes=2, seed=0), *columns)][0]
    'eve'
    """
    assert found.labels.proba is not None
    row, names, annotator, _ = opinions(rows, annotators, labels)
    record = np.searchsorted(found.labels.rows, row)
    several = np.bincount(record, minlength=len(found.labels.rows))[record] > 1
    proba = found.labels.proba
    doubt = doubts(proba)
    told = []
    for at, name in enumerate(names):
        own = record[several & (annotator == at)]
        if len(own):
            right = float(proba[own].mean(axis=0) @ found.confusion[at].diagonal())
            told.append(Apart(name, len(own), right, float(doubt[own].mean())))
    return tuple(sorted(told, key=lambda each: (each.right, each.name)))
