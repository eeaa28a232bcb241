"""The choice of learner: comparisons with the learner in use, and switches to another one, as a campaign keeps them."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Self

from sqlalchemy import func, insert, select

from dal.campaign.rounds import switched_to
from dal.campaign.schema import comparisons, rounds, switches
from dal.campaign.store import CampaignStore
from dal.errors import InputError, LearnerSwitched
from dal.evidence.comparison import Compared, in_short
from dal.evidence.ruler import Estimate
from dal.texts import flaw


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


_OLDER = Estimate(None, 0.0, 1.0, 0, "compare again")
"""Accuracy in comparisons of an older version: by labels that were asked for, and off by many points."""


def _candidate(values: dict[str, Any]) -> Candidate:
    accuracy = Estimate(**values["accuracy"]) if isinstance(values["accuracy"], dict) else _OLDER
    known = {each.name: values[each.name] for each in fields(Candidate)}
    return Candidate(**known | {"accuracy": accuracy})


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
        candidates = tuple(_candidate(each) for each in values.pop("candidates"))
        return cls(**values | {"candidates": candidates, "notes": tuple(values["notes"])})

    def as_json(self) -> str:
        """Write JSON."""
        return json.dumps(asdict(self))

    def tables(self) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
        """Return the candidates as two tables, each a header and its rows: one table is too wide for a terminal."""
        judged: list[Sequence[str]] = []
        beside: list[Sequence[str]] = []
        for each in self.candidates:
            gap = f"{each.difference:+.3f} ({each.difference_low:+.3f} to {each.difference_high:+.3f})"
            known = each.accuracy
            level = known.text if known == _OLDER else in_short(known.value, known.low, known.high)
            judged.append((each.name, level, "" if each.verdict == "in use" else gap, each.verdict))
            seconds = f"{each.fit_seconds:.2g} s", f"{each.pass_seconds:.2g} s"
            beside.append((each.name, f"{each.brier:.3f}", f"{each.calibration:.3f}", *seconds))
        return [
            (("learner", "accuracy", "difference", "verdict"), judged),
            (("learner", "Brier", "calibration error", "fit", "pass of one core"), beside),
        ]


@dataclass(frozen=True)
class Switch:
    """A change of the learner.

    Attributes
    ----------
    learner, before : str
        The learner from then on, and the one before.
    since : int
        The newest round then, which keeps the learner before; 0 before the first.
    labels : int
        Labels then.
    person, reason : str
    at : datetime
        UTC.
    """

    learner: str
    before: str
    since: int
    labels: int
    person: str
    reason: str
    at: datetime

    @property
    def text(self) -> str:
        """The switch in a sentence."""
        when = f"after round {self.since}" if self.since else "before the first round"
        what = f"{self.person} switched the learner from {self.before} to {self.learner} {when}"
        return f"{what}, with {self.labels:,} labels: {self.reason.rstrip('.')}."


class Choice:
    """The learner of a campaign: compared with others, and switched.

    A switch holds from the round on that is frozen next: a round keeps the learner that it was frozen with, however
    often its coordinator is killed.
    """

    def __init__(self, campaign: CampaignStore) -> None:
        self._campaign = campaign
        self._database = campaign.database

    def keep(self, comparison: Comparison, last_answer: int) -> None:
        """Keep a comparison, with the last answer that it knew."""
        with self._database.writing() as connection:
            number = 1 + (connection.scalar(select(func.max(comparisons.c.number))) or 0)
            connection.execute(
                insert(comparisons).values(
                    number=number,
                    last_answer=last_answer,
                    result=comparison.as_json(),
                    at=self._database.stamp(connection),
                )
            )

    def newest(self) -> Comparison | None:
        """Read the newest comparison with the learner in use; None where there is none."""
        with self._database.reading() as connection:
            newest = select(comparisons.c.result).order_by(comparisons.c.number.desc()).limit(1)
            found = connection.scalar(newest)
        comparison = None if found is None else Comparison.of_json(found)
        return comparison if comparison is not None and comparison.in_use == self._campaign.learner else None

    def last_answer(self) -> int | None:
        """Read the last answer that the newest comparison knew; None where learners were never compared."""
        with self._database.reading() as connection:
            return connection.scalar(select(comparisons.c.last_answer).order_by(comparisons.c.number.desc()).limit(1))

    def warning(self) -> str:
        """Return, in a sentence, that another learner has overtaken the one in use; empty where none has."""
        newest = self.newest()
        if newest is None or newest.best is None:
            return ""
        name, place = newest.best.name, str(self._campaign.directory)
        how = (
            "Campaign.switch_learner in Python, with a reason"
            if name.endswith(")")
            else f"dal learner switch {shlex.quote(place)} {shlex.quote(name)}"
        )
        return f"{newest.text} To use it: {how}"

    def justified(self, learner: str | None, person: str, reason: str) -> str:
        """Return the reason of a switch; without one, it is the newest comparison, where that finds it to be better.

        Parameters
        ----------
        learner : str or None
            None for one that was passed as an object: comparisons keep its kind alone, and another object of that kind
            may be no better.
        person, reason : str

        Raises
        ------
        InputError
            If there is no reason, or a text cannot be stored.
        """
        newest, reason = self.newest(), " ".join(reason.split())
        for name, given in (("reason", reason), ("person", person)):
            if wrong := flaw(given):
                raise InputError(f"`{name}` must be text that can be stored, got {given!r}, which {wrong}")
        if not reason and learner is None:
            raise InputError("`reason` must say why, got none; give a reason for a learner that is passed as an object")
        if not reason and newest is not None:
            better = [each for each in newest.candidates if each.name == learner and each.verdict == "better"]
            reason = f"{better[0].text}, on {newest.labels:,} labels" if better else ""
        if not reason:
            raise InputError(
                f"`reason` must say why, got none, and no comparison finds {learner} to be better; compare learners"
                " first, or give a reason"
            )
        return reason

    def switch(self, learner: str, before: str, person: str, reason: str) -> Switch:
        """Use another learner from the next round on, and remember who wanted it and why.

        Parameters
        ----------
        learner : str
        before : str
            The learner in use when the reason was given.
        person, reason : str
            As `justified` returns it.

        Raises
        ------
        InputError
            If it is the learner in use.
        LearnerSwitched
            If somebody has switched from `before` meanwhile.
        """
        if learner == before:
            raise InputError(f"`learner` must be another one than {before}, which is in use, got {learner}")
        labels = len(self._campaign.answers.labels().rows)
        with self._database.writing() as connection:
            now = switched_to(connection) or self._campaign.settings.estimator
            if now != before:
                raise LearnerSwitched(
                    f"the learner was switched from {before} to {now} meanwhile: see dal status, and switch again if"
                    f" {learner} is still wanted"
                )
            since = connection.scalar(select(func.max(rounds.c.number))) or 0
            number = 1 + (connection.scalar(select(func.max(switches.c.number))) or 0)
            at = self._database.stamp(connection)
            values = Switch(learner, before, since, labels, person, reason, datetime.fromisoformat(at))
            connection.execute(insert(switches).values(**{**vars(values), "number": number, "at": at}))
        return values

    def switches(self) -> list[Switch]:
        """List all switches, the first one first."""
        columns = [switches.c[each.name] for each in fields(Switch)]
        with self._database.reading() as connection:
            found = [each._mapping for each in connection.execute(select(*columns).order_by(switches.c.number))]
        return [Switch(**{**each, "at": datetime.fromisoformat(each["at"])}) for each in found]
