"""When to stop asking: pure functions of the campaign's history, each with its reason in words.

Every criterion is judged by the same call, ``judge(history, labels, now_hours)``, whichever of the three it looks at:
`history` holds one record a closed round, `labels` are those known now, and `now_hours` are the hours
since the campaign began.
"""

# ruff: noqa: ARG002 - one signature for all criteria, so that the loop need not know them apart

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

from dal.errors import SettingsError
from dal.ruler import RoundRecord, critical_value, explore_counts, wilson

__all__ = [
    "Criterion",
    "MaxHours",
    "MaxLabels",
    "MaxRounds",
    "Plateau",
    "PoolExhausted",
    "RoundRecord",
    "TargetScore",
    "Verdict",
    "parse",
]


@dataclass(frozen=True)
class Verdict:
    """What a criterion says; `value` is None where there is not enough evidence, and then `stop` is False."""

    criterion: str
    stop: bool
    value: float | None
    threshold: float
    reason: str


@dataclass(frozen=True)
class MaxLabels:
    """Stop at `n` labels."""

    n: int

    def __post_init__(self) -> None:
        _expect(self.n >= 1, self, "at least one label")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Compare the labels known now with the budget."""
        return Verdict("max_labels", labels >= self.n, labels, self.n, f"{labels} of {self.n} labels are known")


@dataclass(frozen=True)
class MaxRounds:
    """Stop after `n` closed rounds."""

    n: int

    def __post_init__(self) -> None:
        _expect(self.n >= 1, self, "at least one round")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Compare the rounds closed so far with the budget."""
        done = len(history)
        return Verdict("max_rounds", done >= self.n, done, self.n, f"{done} of {self.n} rounds are closed")


@dataclass(frozen=True)
class MaxHours:
    """Stop `h` hours after the campaign's start."""

    h: float

    def __post_init__(self) -> None:
        _expect(0 < self.h < math.inf, self, "hours above 0")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Compare the hours since the campaign's start with the budget."""
        reason = f"{now_hours:.1f} of {self.h:g} hours have passed"
        return Verdict("max_hours", now_hours >= self.h, now_hours, self.h, reason)


@dataclass(frozen=True)
class TargetScore:
    """Stop when the accuracy is `score` or better beyond doubt.

    Tested is the lower end of the 95 % Wilson interval over the explore answers of the last `rounds` rounds: one lucky
    batch does not end a campaign, and few explore answers never do. The test is made after every round, so over a long
    campaign near the target it stops too early somewhat more often than once in forty.
    """

    score: float
    rounds: int = 3

    def __post_init__(self) -> None:
        _expect(0 < self.score < 1, self, "a score between 0 and 1")
        _expect(self.rounds >= 1, self, "at least one round")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Test the interval's lower end against the target."""
        if len(history) < self.rounds:
            return _too_early("target_score", self.score, f"{len(history)} of {self.rounds} rounds are closed")
        correct, asked = explore_counts(history[-self.rounds :])
        if asked == 0:
            return _too_early("target_score", self.score, f"no explore answers in the last {self.rounds} rounds")
        low, _ = wilson(correct, asked)
        reason = (
            f"{correct} of {asked} explore answers of the last {self.rounds} rounds were predicted: "
            f"accuracy is at least {low:.3f}, {self.score:g} is the target"
        )
        if asked < self._fewest_answers():
            reason += f" (which takes {self._fewest_answers()} explore answers even if all are predicted)"
        return Verdict("target_score", low >= self.score, low, self.score, reason)

    def _fewest_answers(self) -> int:
        # With all n answers right the interval's lower end is n / (n + z^2).
        return math.ceil(critical_value(0.95) ** 2 * self.score / (1 - self.score))


@dataclass(frozen=True)
class Plateau:
    """Stop when the accuracy of the last `rounds` rounds is less than `gain` above that of the `rounds` before.

    Both accuracies are over the explore answers. The difference of two shares of 15 answers has a standard error of
    0.1, so that a plateau would be "seen" by chance within a few rounds; fewer than `answers` answers on either side
    are therefore no evidence.
    """

    gain: float = 0.002
    rounds: int = 3
    answers: int = 100

    def __post_init__(self) -> None:
        _expect(-1 < self.gain < 1, self, "a gain of accuracy between -1 and 1")
        _expect(self.rounds >= 1, self, "at least one round")
        _expect(self.answers >= 1, self, "at least one answer")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Compare the last rounds with the ones before them."""
        if len(history) < 2 * self.rounds:
            return _too_early("plateau", self.gain, f"{len(history)} of {2 * self.rounds} rounds are closed")
        correct, asked = explore_counts(history[-self.rounds :])
        correct_before, asked_before = explore_counts(history[-2 * self.rounds : -self.rounds])
        if min(asked, asked_before) < self.answers:
            said = f"{asked_before} and {asked} explore answers to compare, {self.answers} are needed on either side"
            return _too_early("plateau", self.gain, said)
        now, before = correct / asked, correct_before / asked_before
        reason = (
            f"accuracy over {self.rounds} rounds went from {before:.3f} to {now:.3f}, "
            f"by {now - before:+.4f}; less than {self.gain:+g} is a plateau"
        )
        return Verdict("plateau", now - before < self.gain, now - before, self.gain, reason)


@dataclass(frozen=True)
class PoolExhausted:
    """Stop when every row of the pool was asked."""

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Look at the rows never asked."""
        if not history:
            return _too_early("pool_exhausted", 0, "no round is closed")
        left = history[-1].never_asked
        return Verdict("pool_exhausted", left <= 0, left, 0, f"{left} rows were never asked")


Criterion = MaxLabels | MaxRounds | MaxHours | TargetScore | Plateau | PoolExhausted

_BY_NAME: dict[str, type[Criterion]] = {
    "max_labels": MaxLabels,
    "max_rounds": MaxRounds,
    "max_hours": MaxHours,
    "target_score": TargetScore,
    "plateau": Plateau,
    "pool_exhausted": PoolExhausted,
}


def parse(text: str) -> Criterion:
    """Read a criterion as people write it: its name, its value, and further fields by name.

    Raises
    ------
    SettingsError
        For an unknown criterion or field, a missing or unreadable value; the message lists what exists.

    Examples
    --------
    >>> parse("max_labels=5000")
    MaxLabels(n=5000)
    >>> parse("target_score=0.95,rounds=5")
    TargetScore(score=0.95, rounds=5)
    >>> parse("pool_exhausted")
    PoolExhausted()
    """
    first, *rest = [part.strip() for part in text.split(",")]
    name, given, value = (part.strip() for part in first.partition("="))
    kind = _BY_NAME.get(name)
    if kind is None:
        raise SettingsError(f"there is no stopping criterion {name!r}; there are {_listing()}")
    names = [field.name for field in fields(kind)]
    pairs = [(names[0] if names else "", value)] if given else []
    pairs += [(key.strip(), number.strip()) for key, _, number in (part.partition("=") for part in rest)]
    return _build(kind, pairs, text)


def _build(kind: type[Criterion], pairs: list[tuple[str, str]], text: str) -> Criterion:
    types = {field.name: field.type for field in fields(kind)}
    values: dict[str, float] = {}
    for key, number in pairs:
        if key not in types or key in values:
            raise SettingsError(f"{text!r} is no stopping criterion; there are {_listing()}")
        try:
            values[key] = int(number) if types[key] is int else float(number)
        except ValueError:
            expected = "a whole number" if types[key] is int else "a number"
            raise SettingsError(f"expected {expected} as {key} in {text!r}, got {number!r}") from None
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
    if missing:
        raise SettingsError(f"{text!r} lacks its value; there are {_listing()}")
    return kind(**values)  # type: ignore[arg-type]  # _expect in each class checks them


def _listing() -> str:
    return "; ".join(_usage(name, kind) for name, kind in _BY_NAME.items())


def _usage(name: str, kind: type[Criterion]) -> str:
    """Write a criterion as people do; a field without a default stands as its name in capitals."""
    values = [field.name.upper() if field.default is MISSING else str(field.default) for field in fields(kind)]
    rest = [f"{field.name}={value}" for field, value in zip(fields(kind), values, strict=True)][1:]
    return ",".join([f"{name}={values[0]}", *rest]) if values else name


def _expect(holds: bool, criterion: object, expected: str) -> None:
    if not holds:
        raise SettingsError(f"expected {expected}, got {criterion}")


def _too_early(criterion: str, threshold: float, what: str) -> Verdict:
    return Verdict(criterion, stop=False, value=None, threshold=threshold, reason=f"not enough evidence: {what}")
