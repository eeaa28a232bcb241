"""The choice of learner: how candidates compare with the learner in use, as values that a campaign keeps."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from dal.evidence.comparison import Compared


@dataclass(frozen=True)
class Candidate(Compared):
    """A learner against the one in use, with its costs.

    Attributes
    ----------
    fit_seconds : float
        Of one fit on the labels that were not held out, in the median.
    pass_seconds : float
        To score the pool by one core, without reading it.
    """

    fit_seconds: float
    pass_seconds: float

    @property
    def text(self) -> str:
        """The candidate's difference from the learner in use, in words."""
        ends = f"{self.difference_low:+.3f} to {self.difference_high:+.3f}"
        return f"{self.name} is {self.verdict}, by {self.difference:+.3f} ({ends}) of accuracy on the pool"


@dataclass(frozen=True)
class Comparison:
    """A comparison of learners on the labels of a campaign.

    Attributes
    ----------
    in_use : str
        The learner in use then.
    labels : int
        Labelled records that were held out in turn.
    candidates : tuple of Candidate
        The learner in use first; none where it is too early.
    too_early : str
        Why no learner could be judged, in words; empty where they were.
    notes : tuple of str
        The limits of the evidence, in words.
    """

    in_use: str
    labels: int
    candidates: tuple[Candidate, ...]
    too_early: str = ""
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The candidate that is better than the learner in use, and most surely so; None where there is none."""
        better = [each for each in self.candidates if each.verdict == "better"]
        return max(better, key=lambda each: each.difference_low, default=None)

    @property
    def text(self) -> str:
        """The result in a sentence."""
        if self.too_early:
            return f"Too early to tell which learner is best: {self.too_early}."
        on = f"by cross-validation on {self.labels:,} labels"
        if self.best is not None:
            ends = f"{self.best.difference_low:.3f} to {self.best.difference_high:.3f}"
            return (
                f"{self.best.name} has overtaken {self.in_use}, the learner in use: better by"
                f" {self.best.difference:.3f} ({ends}) of accuracy on the pool, {on}."
            )
        others = [each for each in self.candidates if each.verdict == "too early to tell"]
        if others:
            names = ", ".join(each.name for each in others)
            return f"{self.in_use}, the learner in use, stays: too early to tell whether {names} would be better, {on}."
        return f"{self.in_use}, the learner in use, stays: no other one is better, {on}."

    @classmethod
    def of_json(cls, text: str) -> Self:
        """Read what `as_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        candidates = tuple(Candidate(**each) for each in values.pop("candidates"))
        return cls(**values | {"candidates": candidates, "notes": tuple(values["notes"])})

    def as_json(self) -> str:
        """Write JSON."""
        return json.dumps(asdict(self))

    def rows(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Return the candidates as a table: its header, and the rows."""
        header = (
            "learner",
            "accuracy",
            "difference",
            "Brier",
            "calibration error",
            "fit",
            "pass of one core",
            "verdict",
        )
        rows: list[Sequence[str]] = []
        for each in self.candidates:
            gap = f"{each.difference:+.3f} ({each.difference_low:+.3f} to {each.difference_high:+.3f})"
            rows.append(
                (
                    each.name,
                    f"{each.accuracy:.3f} ({each.low:.3f} to {each.high:.3f})",
                    "" if each.verdict == "in use" else gap,
                    f"{each.brier:.3f}",
                    f"{each.calibration:.3f}",
                    f"{each.fit_seconds:.2g} s",
                    f"{each.pass_seconds:.2g} s",
                    each.verdict,
                )
            )
        return header, rows
