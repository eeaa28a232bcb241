"""The standing of a campaign, as its pages show it."""

import threading
import time
from datetime import UTC, datetime
from statistics import median
from typing import Literal, NamedTuple

from pydantic import BaseModel

from dal.campaign import CampaignStore, Queue, Round
from dal.campaign.activity import Activity
from dal.campaign.control import Control
from dal.campaign.schema import Step
from dal.campaign.view import View, rest_text

Phase = Literal["waiting", "training", "open", "between", "paused", "stopped"]


class Standing(BaseModel):
    """The part of a campaign's state that all pages show alike.

    Attributes
    ----------
    phase
        ``waiting``: no round has begun; ``training``: one is in preparation, see `step`; ``open``: records are asked;
        ``between``: every record is answered, and the next round has not begun; ``paused`` and ``stopped``: see
        `reasons`.
    round, step
        The newest round and its status.
    since
        Start of the step, UTC.
    usual_pause
        Median seconds of preparing a round; None before the second round.
    size, answered, pending
        Records of the newest batch; those with all answers that they need; the rest.
    active
        People who hold records now.
    rest
        How many records of earlier rounds wait, in words, see :func:`dal.campaign.view.rest_text`.
    """

    phase: Phase
    round: int
    step: Step
    since: datetime
    usual_pause: float | None
    reasons: list[str]
    size: int
    answered: int
    pending: int
    active: int
    rest: str


class Given(NamedTuple):
    """Answers of the team to the newest batch, and answers wanted; `upto` is the newest answer's id."""

    answers: int
    wanted: int
    upto: int


class Standings:
    """A campaign's standing, computed at most once a second.

    Parameters
    ----------
    campaign : Campaign
    seconds : float, default=1.0
        Age up to which a standing is reused.
    """

    def __init__(self, campaign: CampaignStore, seconds: float = 1.0) -> None:
        self._campaign = campaign
        self._seconds = seconds
        self._control = Control(campaign)
        self._view = View(campaign)
        self._queue = Queue(campaign)
        self._activity = Activity(campaign)
        self._computing = threading.Lock()
        self._known: tuple[Standing, Given] | None = None
        self._overlap = campaign.settings.labelling.overlap
        self._until = 0.0
        self._verdicts: tuple[tuple[int, int], list[str]] = ((-1, -1), [])

    def now(self, *, fresh: bool = False) -> Standing:
        """Return the standing; pass `fresh` after a change."""
        return self.with_given(fresh=fresh)[0]

    def with_given(self, *, fresh: bool = False) -> tuple[Standing, Given]:
        """Return the standing, and the answers that were counted for it."""
        with self._computing:
            if fresh or self._known is None or time.monotonic() >= self._until:
                self._known = self._computed()
                self._until = time.monotonic() + self._seconds
            return self._known

    def _computed(self) -> tuple[Standing, Given]:
        past = self._campaign.rounds.all()
        last = past[-1] if past else None
        progress = self._queue.progress("-")  # nobody's: what the team has done
        pending = progress.batch - progress.answered if last is not None and last.status == "open" else 0
        phase, reasons = self._phase(last, pending)
        size, answered = (progress.batch, progress.answered) if phase not in ("waiting", "training") else (0, 0)
        standing = Standing(
            phase=phase,
            round=0 if last is None else last.number,
            step="none" if last is None else last.status,
            since=self._campaign.created_at if last is None else _since(last),
            usual_pause=usual_pause(past),
            reasons=reasons,
            size=size,
            answered=answered,
            pending=pending,
            active=self._activity.active(),
            rest=rest_text(self._campaign),
        )
        return standing, Given(progress.given, progress.batch * self._overlap, progress.upto)

    def _phase(self, last: Round | None, pending: int) -> tuple[Phase, list[str]]:
        told = self._control.in_force
        if told is not None:
            said = f"{'Stopped' if told.act == 'stop' else 'Paused'} by {told.person} on {told.at:%d %B at %H:%M} UTC."
            return ("stopped" if told.act == "stop" else "paused"), [said]
        if last is None:
            return "waiting", []
        if last.status in ("frozen", "fitted", "scanned"):
            return "training", []
        if last.status == "open" and pending:
            return "open", []
        reasons = self._stopping(last)
        return ("stopped", reasons) if reasons else ("between", [])

    def _stopping(self, last: Round) -> list[str]:
        """Return the reasons to stop; the criteria are evaluated again only after a new answer."""
        if last.status != "closed":
            return []
        key = (last.number, self._campaign.answers.last_id())
        if self._verdicts[0] != key:
            reached = [each.reason for each in self._view.verdicts() if each.stop]
            self._verdicts = (key, [reason[:1].upper() + reason[1:] + "." for reason in reached])
        return self._verdicts[1]


def usual_pause(past: list[Round]) -> float | None:
    """Return the median seconds from the freeze of a round to its opening, over the last ten rounds with a model."""
    spans = [
        (datetime.fromisoformat(each.opened_at) - datetime.fromisoformat(each.frozen_at)).total_seconds()
        for each in past[-10:]
        if each.opened_at is not None and each.model is not None
    ]
    return median(spans) if spans else None


def _since(last: Round) -> datetime:
    at = {"open": last.opened_at, "closed": last.closed_at}.get(last.status) or last.frozen_at
    return datetime.fromisoformat(at).astimezone(UTC)
