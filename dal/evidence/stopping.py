"""When to stop asking: pure functions of the campaign's history, each with its reason in words.

Every criterion is judged by the same call, ``judge(history, labels, now_hours)``, whichever of the three it looks at:
`history` holds one record a closed round, `labels` are those known now, and `now_hours` are the hours
since the campaign began.
"""

# ruff: noqa: ARG002 - one signature for all criteria, so that the loop need not know them apart

import ast
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol

from dal import plugins
from dal.errors import SettingsError
from dal.evidence.ruler import RoundRecord, critical_value, explore_counts, last_rounds, wilson

__all__ = [
    "All",
    "ClassificationChange",
    "Criterion",
    "MaxHours",
    "MaxLabels",
    "MaxRounds",
    "OverallUncertainty",
    "Plateau",
    "PoolExhausted",
    "RoundRecord",
    "StabilizingPredictions",
    "TargetScore",
    "Verdict",
    "advice",
    "first_stop",
    "parse",
    "texts_of",
]

SLOT = plugins.Slot("stop", "dal.stopping", ("those below",))
"""Where criteria of one's own are found."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of a criterion; `value` is None where there is not enough evidence, and then `stop` is False."""

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
            return _too_early("target_score", self.score, f"no explore answers in {last_rounds(self.rounds)}")
        low, _ = wilson(correct, asked)
        reason = (
            f"{correct} of {asked} explore answers of {last_rounds(self.rounds)} were predicted: "
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
class StabilizingPredictions:
    """Stop when successive models agree on the stop set: Cohen's kappa, averaged over `rounds` rounds, reaches `kappa`.

    Kappa discounts the agreement that a large class gives for nothing. Where it is at least T, the F-measures of the
    two models on the stop set differ by at most 4 (1 - T) / T (Bloodgood and Grothendieck, CoNLL 2013): 0.0404 for the
    default. It says that the model has settled, not that it is right; and a larger batch changes a model more, so
    values compare at one batch size only. Bloodgood and Vijay-Shanker, CoNLL 2009.
    """

    kappa: float = 0.99
    rounds: int = 3

    def __post_init__(self) -> None:
        _expect(0 < self.kappa <= 1, self, "a kappa above 0, and at most 1")
        _expect(self.rounds >= 1, self, "at least one round")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Compare with `kappa` the mean agreement, in the last rounds, of each model with the one before."""
        name = "stabilizing_predictions"
        seen = [record.kappa for record in history if record.kappa is not None]
        if len(seen) < self.rounds:
            said = f"{len(seen)} of {self.rounds} pairs of successive models were compared on a stop set"
            return _too_early(name, self.kappa, said)
        value = math.fsum(seen[-self.rounds :]) / self.rounds
        reason = f"successive models agree on the stop set with a mean kappa of {value:.4f} over {self.rounds} rounds"
        return Verdict(name, value >= self.kappa, value, self.kappa, f"{reason}; {self.kappa:g} is stable")


@dataclass(frozen=True)
class OverallUncertainty:
    """Stop when the model is sure of the stop set: its mean entropy, as a share of ln C, is below `entropy`.

    Only as good as the model's calibration. Zhu, Wang and Hovy, COLING 2008.
    """

    entropy: float = 0.05

    def __post_init__(self) -> None:
        _expect(0 < self.entropy < 1, self, "a share of the largest entropy between 0 and 1")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Look at the newest model's uncertainty."""
        value = history[-1].uncertainty if history else None
        if value is None:
            return _too_early("overall_uncertainty", self.entropy, "no model has judged a stop set in the last round")
        reason = f"the mean entropy on the stop set is {value:.4f} of the largest; below {self.entropy:g} is sure"
        return Verdict("overall_uncertainty", value < self.entropy, value, self.entropy, reason)


@dataclass(frozen=True)
class ClassificationChange:
    """Stop when a new model predicts what the one before did: at most the share `change` of the stop set differs.

    The strictest of the three that look at the stop set. Zhu, Wang and Hovy, COLING 2008.
    """

    change: float = 0.0

    def __post_init__(self) -> None:
        _expect(0 <= self.change < 1, self, "a share of 0 or more and less than 1")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Look at what the newest model changed."""
        value = history[-1].changed if history else None
        if value is None:
            return _too_early("classification_change", self.change, "the last round compared no models on a stop set")
        reason = f"the last model changed {value:.2%} of the predictions on the stop set; {self.change:.2%} is allowed"
        return Verdict("classification_change", value <= self.change, value, self.change, reason)


@dataclass(frozen=True)
class PoolExhausted:
    """Stop when every row of the pool was asked."""

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Look at the rows never asked."""
        if not history:
            return _too_early("pool_exhausted", 0, "no round is closed")
        left = history[-1].never_asked
        return Verdict("pool_exhausted", left <= 0, left, 0, f"{left} rows were never asked")


class Criterion(Protocol):
    """A stopping criterion: an object with the method `judge`.

    A criterion is a pure function of what it is given: the same history, labels and hours give the same verdict. A
    class of one's own is named as ``module:Class``, in settings with its parameters: ``module:Class=3,other=0.5``. They
    are numbers, and are kept as attributes of the same names, as a dataclass does.

    See Also
    --------
    dal.testing.CriterionContract : the tests to subclass for a criterion of one's own.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Labels:
    ...     n: int
    ...
    ...     def judge(self, history, labels, now_hours):
    ...         return Verdict("labels", labels >= self.n, labels, self.n, f"{labels} of {self.n} labels are known")
    >>> Labels(5).judge((), 7, 0.5).stop
    True
    """

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Judge whether to stop.

        Parameters
        ----------
        history : sequence of RoundRecord
            One record a closed round, the first round first.
        labels : int
            Labels known now.
        now_hours : float
            Hours since the campaign began.

        Returns
        -------
        Verdict
            With its value, its threshold, and its reason in words; `value` is None without enough evidence.
        """


@dataclass(frozen=True)
class All:
    """Stop when every one of several criteria says so; a campaign's own list stops when any of it does."""

    criteria: tuple[Criterion, ...]

    def __post_init__(self) -> None:
        _expect(len(self.criteria) >= 2, self, "at least two criteria")

    def judge(self, history: Sequence[RoundRecord], labels: int, now_hours: float) -> Verdict:
        """Count the criteria that say stop; each gives its reason."""
        verdicts = [criterion.judge(history, labels, now_hours) for criterion in self.criteria]
        met = sum(verdict.stop for verdict in verdicts)
        reason = "; ".join(
            f"{verdict.criterion} {'met' if verdict.stop else 'not met'}: {verdict.reason}" for verdict in verdicts
        )
        name = " and ".join(verdict.criterion for verdict in verdicts)
        return Verdict(name, met == len(verdicts), met, len(verdicts), reason)


def as_they_ended(criterion: Criterion, history: Sequence[RoundRecord]) -> Iterator[Verdict]:
    """Judge each round with what was known when the next one began.

    The newest round has no verdict here: its labels may still come in, and the verdict of today is about them.
    """
    for closed, following in enumerate(history[1:], start=1):
        yield criterion.judge(history[:closed], following.labels, following.hours)


def first_stop(criterion: Criterion, history: Sequence[RoundRecord]) -> int | None:
    """Return the round after which a criterion would first have ended the campaign; None if after none so far.

    See :func:`as_they_ended`.

    Examples
    --------
    >>> history = [RoundRecord(n, 100 * (n - 1), 0, 0, 0.0, 900) for n in (1, 2, 3, 4)]
    >>> first_stop(MaxLabels(150), history), first_stop(MaxLabels(300), history), first_stop(MaxLabels(301), history)
    (2, 3, None)
    """
    verdicts = zip(history, as_they_ended(criterion, history), strict=False)
    return next((record.number for record, verdict in verdicts if verdict.stop), None)


def label_budget(criteria: Iterable[Criterion]) -> int | None:
    """Return how many labels may be asked for in all; None where no criterion alone says it.

    Examples
    --------
    >>> label_budget(map(parse, ("max_labels=500", "max_rounds=9", "max_labels=90 and plateau"))), label_budget(())
    (500, None)
    """
    return min((each.n for each in criteria if isinstance(each, MaxLabels)), default=None)


def advice(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """Return the criteria that look at the model, at their defaults, without the kinds that `criteria` holds already.

    They end nothing. Beside the chosen ones they show what a campaign without them is passing by.
    """
    chosen = {type(part) for each in criteria for part in (each.criteria if isinstance(each, All) else (each,))}
    offered = (StabilizingPredictions(), Plateau(), OverallUncertainty(), ClassificationChange())
    return tuple(each for each in offered if type(each) not in chosen)


_WRITTEN: dict[type[Criterion], str] = {
    MaxLabels: "max_labels=5000",
    MaxRounds: "max_rounds=20",
    MaxHours: "max_hours=40",
    TargetScore: "target_score=0.95,rounds=3",
    Plateau: "plateau=0.002,rounds=3,answers=100",
    StabilizingPredictions: "stabilizing_predictions=0.99,rounds=3",
    OverallUncertainty: "overall_uncertainty=0.05",
    ClassificationChange: "classification_change=0.0",
    PoolExhausted: "pool_exhausted",
}
"""Each criterion as people write it, with the defaults of what may be left out."""
_BY_NAME = {text.partition("=")[0]: kind for kind, text in _WRITTEN.items()}


def parse(text: str) -> Criterion:
    """Read a criterion as people write it: its name, its value, and further fields by name; `and` joins several.

    The name is a built-in criterion's, ``module:Class``, or that of an entry point in the group ``dal.stopping``.

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
    >>> parse("stabilizing_predictions and plateau=0.01")
    All(criteria=(StabilizingPredictions(kappa=0.99, rounds=3), Plateau(gain=0.01, rounds=3, answers=100)))
    """
    parts = text.split(" and ")
    return _parse(parts[0]) if len(parts) == 1 else All(tuple(_parse(part.strip()) for part in parts))


def _parse(text: str) -> Criterion:
    if "(" in text:
        return _own(plugins.find(text, SLOT), text)
    first, *rest = [part.strip() for part in text.split(",")]
    name, given, value = (part.strip() for part in first.partition("="))
    kind = _BY_NAME.get(name)
    pairs = [("", value)] if given else []
    pairs += [(key.strip(), number.strip()) for key, _, number in (part.partition("=") for part in rest)]
    if kind is not None:
        return _build(kind, pairs, text)
    try:
        found = plugins.find(name, SLOT)
    except SettingsError as error:
        raise SettingsError(f"{error}\n{_listing()}") from error
    return _own(_called(found, pairs, text) if isinstance(found, type) else found, text)


def _called(kind: type, pairs: list[tuple[str, str]], text: str) -> object:
    """Make a criterion of one's own with the numbers that people have written."""
    names = plugins.parameter_names(kind)
    try:
        values = {key or names[0]: ast.literal_eval(number) for key, number in pairs}
        return kind(**values)
    except Exception as error:  # anybody's code
        raise SettingsError(
            f"`stop` must give {kind.__qualname__} what it takes ({', '.join(names)}), got {text!r}; {error}."
        ) from error


def _own(criterion: Any, text: str) -> Criterion:  # noqa: ANN401 - anybody's object
    """Return a criterion of one's own, once it has judged a campaign that has only begun."""
    try:
        verdict = criterion.judge((), 0, 0.0)
    except Exception as error:  # anybody's code
        raise SettingsError(
            f"`stop` must name a criterion with judge(history, labels, now_hours), got {text!r}; before the first round"
            f" it raises {type(error).__name__}: {error}."
        ) from error
    if not isinstance(verdict, Verdict):
        raise SettingsError(f"`stop` must name a criterion whose judge returns a Verdict, got {verdict!r} of {text!r}.")
    own: Criterion = criterion
    return own


def texts_of(stop: str | Criterion | Sequence[str | Criterion]) -> tuple[str, ...]:
    """Return criteria as settings keep them.

    Examples
    --------
    >>> texts_of(MaxLabels(5000)), texts_of([All((TargetScore(0.9), MaxRounds(7))), "plateau"])
    (('max_labels=5000',), ('target_score=0.9,rounds=3 and max_rounds=7', 'plateau'))
    """
    if isinstance(stop, str) or hasattr(stop, "judge"):
        return (_text(stop),)
    return tuple(map(_text, stop))


def _text(criterion: Any) -> str:  # noqa: ANN401 - a text, or anybody's object
    if isinstance(criterion, str):
        return criterion
    if isinstance(criterion, All):
        return " and ".join(map(_text, criterion.criteria))
    if type(criterion) not in _WRITTEN:
        return plugins.text_of(criterion, SLOT)
    name = _WRITTEN[type(criterion)].partition("=")[0]
    values = [f"{key}={value!r}" for key, value in vars(criterion).items()]
    return ",".join([f"{name}={values[0].partition('=')[2]}", *values[1:]]) if values else name


def _build(kind: type[Criterion], pairs: list[tuple[str, str]], text: str) -> Criterion:
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]  # those here are dataclasses
    defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, float] = {}
    for written, number in pairs:
        key = written or next(iter(types), "")
        if key not in types or key in values:
            takes = ", ".join(types) or "nothing"
            what = (
                f"{key} is there more than once" if key in values else f"it takes {takes}, and not {key or 'a value'}"
            )
            raise _refused(text, kind, what)
        try:
            values[key] = int(number) if types[key] is int else float(number)
        except ValueError:
            kind_of_number = "a whole number" if types[key] is int else "a number"
            raise _refused(text, kind, f"{key} must be {kind_of_number}, got {number!r}") from None
    if any(default is MISSING and name not in values for name, default in defaults.items()):
        raise _refused(text, kind, "it lacks its value")
    try:
        return kind(**values)  # _expect in each class checks them
    except SettingsError as error:
        raise _refused(text, kind, str(error).split(", got ")[0]) from error


def _refused(text: str, kind: type[Criterion], what: str) -> SettingsError:
    return SettingsError(f"{text!r} is no stopping criterion: {what}. An example:\n{_usage(kind)}")


def _listing() -> str:
    return "\n".join(map(_usage, _WRITTEN))


def _usage(kind: type[Criterion]) -> str:
    """Return an example of a criterion and what it does, out of its docstring."""
    meaning = (kind.__doc__ or "").partition("\n")[0].replace("`", "'").rstrip(".:")
    return f"  {_WRITTEN[kind]}: {meaning[:1].lower()}{meaning[1:]}"


def _expect(holds: bool, criterion: object, needed: str) -> None:
    if not holds:
        raise SettingsError(f"`{type(criterion).__name__}` must have {needed}, got {criterion}")


def _too_early(criterion: str, threshold: float, what: str) -> Verdict:
    return Verdict(criterion, stop=False, value=None, threshold=threshold, reason=f"not enough evidence: {what}")
