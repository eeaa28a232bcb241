"""The pages' server: a typed JSON API over a campaign's queue, and the files of the pages.

It never trains or scans. The loop runs in another process (`dal next`, `dal run`), and the two share only the
campaign's
database. So no annotator waits for a scan, and either process may be killed and started again on its own.
"""

import errno
import logging
import re
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from urllib.parse import quote

import bokeh
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.staticfiles import StaticFiles

from dal.campaign import Account, Annotators, CampaignStore, Given, Queue
from dal.campaign.annotators import LONGEST_SESSION
from dal.campaign.control import Act, Control
from dal.campaign.examples import Examples
from dal.campaign.metrics import metrics_of
from dal.campaign.parts import pool_of
from dal.campaign.queue import Outcome, OwnShare
from dal.campaign.view import View
from dal.errors import CampaignError, CampaignMismatch, ChunkError, DalError, DatabaseError, InputError
from dal.figures import color_of
from dal.metrics import CONTENT_TYPE, Metric, exposition
from dal.pool.stored import picture_kind
from dal.web.connections import LIMITS, Limits
from dal.web.doors import Doors, Rates, local_request
from dal.web.guesses import Guesses
from dal.web.overview import FigureName, Overview, Overviews, exported
from dal.web.records import Content, Records
from dal.web.state import Given as TeamGiven
from dal.web.state import Standing, Standings

STATIC = files("dal.web") / "static"
GUIDELINES = "guidelines.md"
"""File in a campaign's directory with instructions for annotators; shown as plain text."""

FOR = "dal-for"
"""Header in which a page names the campaign and the person that its answers belong to."""

MOST_ROW = 2**53 - 1  # the largest integer that JavaScript keeps
_GUIDELINES_BYTES = 200_000
_TURN_SECONDS = 10.0
"""Longest wait of a request for its turn to write; pages give up after 20 seconds."""

_log = logging.getLogger(__name__)

_PROBLEMS = (400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 429, 503)

Row = Annotated[int, Field(ge=0, le=MOST_ROW, strict=True)]
EventId = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Me(BaseModel):
    """The person who sends a request; `session` is True for one who came by a link, and can log out."""

    name: str
    role: Literal["annotator", "manager"]
    session: bool = False


class Named(BaseModel):
    """The campaign's id and name."""

    id: str
    name: str


class State(Standing):
    """The standing of the campaign, and of the person who asks.

    `size`, `answered` and `pending` count answers here, not records, and include this person's answers beyond the
    batch.
    Each of their answers raises `answered` and `mine` by one, so that neither shows which records are gold. `examples`
    counts the records that the team wants more of in the next batch.
    """

    campaign: Named
    classes: list[str]
    colors: list[str]
    me: Me
    mine: int
    guidelines: bool
    examples: int


class Record(Content):
    """A record to answer, or to look at again."""

    row: int
    record_id: str
    suggestion: tuple[int, float | None] | None = None
    example: bool = False


class AnswerIn(_Strict):
    """One answer; the page makes `event_id`, and an answer sent twice counts once."""

    event_id: EventId
    row: Row
    status: Literal["submitted", "skipped"]
    # Strict: "1" could also mean the class of that name, and true any class.
    label: Annotated[int, Field(ge=0, le=100_000, strict=True)] | None = None
    skip_reason: Annotated[str, Field(max_length=200)] | None = None
    lead_time: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] | None = None
    shown_at: AwareDatetime | None = None
    answered_at: AwareDatetime | None = None
    suggestion_shown: bool = False


class AnswersIn(_Strict):
    """Answers, and the number of records to hold afterwards."""

    answers: Annotated[list[AnswerIn], Field(max_length=100)] = []
    lease: Annotated[int, Field(ge=0, le=50)] = 0


class OutcomeOut(BaseModel):
    """The outcome of one answer."""

    event_id: str
    outcome: Literal["new", "changed", "same", "repeated", "refused"]
    late: bool
    reason: str


class AnswersOut(BaseModel):
    """The outcomes of the answers, the records now held, and the standing of the campaign."""

    outcomes: list[OutcomeOut]
    records: list[Record]
    state: State


class UndoIn(_Strict):
    """The answer to take back, and the id of this undoing."""

    event_id: EventId
    new_event_id: EventId


class UndoOut(BaseModel):
    """The outcome of the undoing."""

    outcome: OutcomeOut
    state: State


class RowsIn(_Strict):
    """Records that are held."""

    rows: Annotated[list[Row], Field(max_length=200)]


class RowsOut(BaseModel):
    """Those of the records that are still held."""

    rows: list[int]


class PastOut(BaseModel):
    """An earlier answer, which its annotator may change."""

    event_id: str | None
    row: int
    record_id: str
    status: Literal["submitted", "skipped"]
    label: int | None
    skip_reason: str | None
    lead_time: float | None
    answered_at: datetime


class HistoryOut(BaseModel):
    """Answers, the oldest first."""

    answers: list[PastOut]


class ExampleIn(_Strict):
    """A record, and whether the next batch is to hold more like it."""

    row: Row
    wanted: Annotated[bool, Field(strict=True)]


class ExampleOut(BaseModel):
    """Whether it is, and how many such records there are."""

    wanted: bool
    examples: int


class GuidelinesOut(BaseModel):
    """The guidelines, as plain text."""

    text: str


class EnterIn(_Strict):
    """A person's token."""

    token: Annotated[str, Field(min_length=1, max_length=200)]


class Nothing(_Strict):
    """An empty body."""


class ActIn(_Strict):
    """A manager's action."""

    act: Act


class FiguresOut(BaseModel):
    """Figures, each for ``Bokeh.embed.embed_item``."""

    figures: list[dict[str, Any]]


class Problem(BaseModel):
    """An error: what was expected, what came, what to do."""

    detail: str


@dataclass(frozen=True)
class Options:
    """Options for serving a campaign.

    Attributes
    ----------
    user : str
        Name of the person who labels, where the campaign has no tokens and only this machine can reach the server.
    show_suggestions : bool
        Whether annotators see the model's prediction before they answer. It makes them agree with it.
    """

    user: str
    show_suggestions: bool = False


def create_app(campaign: CampaignStore, options: Options, limits: Limits = LIMITS) -> FastAPI:
    """Create the application that serves a campaign's pages.

    Parameters
    ----------
    campaign : Campaign
    options : Options
    limits : Limits

    Returns
    -------
    fastapi.FastAPI

    Raises
    ------
    PoolError
        The campaign's pool cannot be opened.
    """
    site = _Site(campaign, options, limits)
    app = FastAPI(
        title="dal",
        summary="Labelling for a campaign of active learning",
        # FastAPI's documentation pages load scripts from other hosts; only the OpenAPI document is served.
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Problem} for status in _PROBLEMS},
    )
    app.exception_handler(DalError)(_error_response)
    app.exception_handler(OSError)(_error_response)
    app.exception_handler(RequestValidationError)(_unreadable)
    app.exception_handler(Exception)(_failed)
    _add_api(app, site)
    _add_pages(app)
    app.add_middleware(
        Doors,
        chart_paths=("campaign", "explorer"),
        requests=Rates(limits.address_rate, limits.address_burst),
        body_seconds=limits.body_seconds,
        answered=site.answered,
    )
    return app


class _Site:
    """The state that all requests share."""

    def __init__(self, campaign: CampaignStore, options: Options, limits: Limits) -> None:
        self.campaign = campaign
        self.options = options
        self.user = campaign.answers.spelling(options.user)
        self.queue = Queue(campaign)
        self.people = _People(Annotators(campaign), limits.account_seconds)
        self.standings = Standings(campaign, limits.standing_seconds)
        self.records = Records(pool_of(campaign))
        self.overviews = Overviews(campaign, self.records)
        self.control = Control(campaign)
        self.examples = Examples(campaign)
        self.guesses = Guesses(campaign, self.records)
        self.guidelines = campaign.directory / GUIDELINES
        self.attempts = Rates(per_second=0.2, burst=20)
        self.view = View(campaign)
        self.answered = Counter({f"{kind}xx": 0 for kind in (2, 4, 5)})
        self._counted: dict[str, tuple[TeamGiven, OwnShare]] = {}
        self._asked: frozenset[int] = frozenset()
        self._served: set[tuple[str, int]] = set()
        # SQLite lets one write at a time and makes others poll for their turn; here they queue up instead.
        self.writing = threading.Lock()
        self._line: deque[tuple[str, list[Given], Future[list[Outcome]]]] = deque()

    def add_answers(self, me: Me, given: list[Given]) -> list[Outcome]:
        """Add answers together with those of all who wait for the same lock, in one commit.

        The commit takes most of the time, tens of milliseconds on a busy disk.
        """
        mine: Future[list[Outcome]] = Future()
        self._line.append((me.name, given, mine))
        with self.turn():
            together = [self._line.popleft() for _ in range(len(self._line))]
            if together:
                try:
                    outcomes = self.queue.answer_together([(name, theirs) for name, theirs, _ in together])
                except Exception as error:  # each request raises it again, and the pages send again
                    for _, _, future in together:
                        future.set_exception(error)
                else:
                    for (_, _, future), theirs in zip(together, outcomes, strict=True):
                        future.set_result(theirs)
        return mine.result()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn to write.

        Raises
        ------
        DatabaseError
            The turn takes so long that something must be wrong with the database.
        """
        if not self.writing.acquire(timeout=_TURN_SECONDS):
            remedy = "Others have been writing for too long: try again"
            raise DatabaseError(f"{self.campaign.database.place}: {remedy}", remedy)
        try:
            yield
        finally:
            self.writing.release()

    def person(self, request: Request) -> Me:
        """Return the person who sent a request.

        Raises
        ------
        HTTPException
            401 if a link is needed, and the request has none or an invalid one; 403 if no links are in use, and the
            request did not come directly from this machine; 421 if it was meant for another campaign or person.
        """
        if not self.people.needed:
            refusal = local_request(request.scope)
            if refusal is not None:
                raise HTTPException(refusal.status, refusal.detail)
            me: Me | None = Me(name=self.user, role="manager")
        elif (secret := request.cookies.get(self.cookie)) is not None:
            me = self.people.in_session(secret)
        else:
            token = _bearer(request)
            me = self.people.find(token) if token else None
        if me is None:
            raise HTTPException(
                401, "Open the link that you were given; if it no longer works, ask for a new one (dal annotator add)."
            )
        # A page may still hold answers for another campaign that was at this address, or another person who used this
        # browser: they must not be stored here.
        meant = request.headers.get(FOR)
        if meant is not None and meant != self.is_for(me):
            raise HTTPException(421, "This page is of another campaign, or of another person: open it again.")
        return me

    def is_for(self, me: Me) -> str:
        return f"{self.campaign.id}/{quote(me.name, safe='')}"

    def set_cookie(self, request: Request, response: Response, secret: str, lasts: timedelta) -> None:
        response.set_cookie(
            self.cookie,
            secret,
            max_age=round(lasts.total_seconds()),
            # Without a path the browser sends the cookie to all addresses beside this one, under any prefix of a proxy.
            # So it
            # must be set and deleted at addresses beside the pages.
            path=None,
            secure=request.scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )

    @property
    def cookie(self) -> str:
        return f"dal-{self.campaign.id[:16]}"

    def state(self, me: Me) -> State:
        standing, given = self.standings.with_given()
        shown = standing.model_dump()
        mine = 0
        if standing.size:
            own = self._own(me.name, given)
            mine = own.batch + own.beyond
            # Until the batch is answered, one is left: answers beyond the batch must not seem to complete it.
            most = given.wanted - (given.answers < given.wanted)
            answered = min(most, given.answers + own.beyond)
            pending = given.wanted - answered if standing.pending else 0
            shown |= {"size": given.wanted, "answered": answered, "pending": pending}
        return State(
            **shown,
            campaign=Named(id=self.campaign.id, name=self.campaign.directory.name),
            classes=list(self.campaign.settings.classes),
            colors=[color_of(code) for code in range(len(self.campaign.settings.classes))],
            me=me,
            mine=mine,
            guidelines=self.guidelines.is_file(),
            examples=self.examples.count(),
        )

    def _own(self, name: str, given: TeamGiven) -> OwnShare:
        """Return the count of a person's answers, as of the moment when the team's were counted."""
        known = self._counted.get(name)
        if known is None or known[0] is not given:
            known = self._counted[name] = (given, self.queue.own_share(name, given.upto))
        return known[1]

    def leased(self, me: Me, n: int) -> list[Record]:
        if not n or self.standings.now().phase in ("paused", "stopped"):
            return []
        with self.turn():
            served = self.queue.lease(me.name, n)
        self._served |= {(me.name, each.row) for each in served}
        contents = self.records.contents([each.row for each in served])
        guesses = self.guesses.of(served) if self.options.show_suggestions else {}
        marked = set(self.examples.rows())
        return [
            Record(
                row=each.row,
                record_id=each.record_id,
                suggestion=guesses.get(each.row),
                example=each.row in marked,
                **content.model_dump(),
            )
            for each, content in zip(served, contents, strict=True)
        ]

    def check_served(self, me: Me, row: int) -> None:
        """Refuse rows that were never served to the person who asks: nobody may read the rest of the pool here.

        Managers may see all records that were asked. Annotators may not, because they could then recognise gold
        records.
        """
        if (me.name, row) in self._served:
            return
        if me.role == "manager":
            if row not in self._asked:
                self._asked = frozenset(self.campaign.rounds.asked_rows().tolist()) | frozenset(
                    self.campaign.answers.gold()
                )
            served = row in self._asked
        else:
            served = self.queue.was_served(me.name, row)
        if not served:
            raise HTTPException(404, f"row {row} was never asked in this campaign")
        self._served.add((me.name, row))


class _People:
    """A short-lived cache of tokens that spares requests to the database; a revoked one works that much longer."""

    KEPT = 1000

    def __init__(self, annotators: Annotators, seconds: float) -> None:
        self._seconds = seconds
        self._annotators = annotators
        self._known: OrderedDict[str, tuple[float, Me | None]] = OrderedDict()
        self._needed = (0.0, True)
        self._lock = threading.Lock()

    @property
    def needed(self) -> bool:
        """Whether a token was ever made: from then on everybody needs one, even after the last is revoked."""
        with self._lock:
            if time.monotonic() >= self._needed[0]:
                self._needed = (time.monotonic() + self._seconds, bool(self._annotators.all()))
            return self._needed[1]

    def find(self, token: str) -> Me | None:
        """Return the owner of a token, which a program sends."""
        return self._found(token, lambda: _me(self._annotators.verify(token)))

    def enter(self, token: str) -> tuple[Me, str] | None:
        """Begin a session; return the person and the session's secret."""
        begun = self._annotators.begin_session(token)
        return None if begun is None else (Me(name=begun[0].name, role=begun[0].role, session=True), begun[1])

    def in_session(self, secret: str) -> Me | None:
        """Return the owner of a session, which a browser has."""
        return self._found(secret, lambda: _me(self._annotators.in_session(secret), session=True))

    def leave(self, secret: str) -> None:
        """End a session immediately."""
        self._annotators.end_session(secret)
        with self._lock:
            self._known.pop(secret, None)

    def _found(self, secret: str, look_up: Callable[[], Me | None]) -> Me | None:
        with self._lock:
            until, me = self._known.get(secret, (0.0, None))
            if time.monotonic() < until:
                return me
        me = look_up()
        with self._lock:
            self._known[secret] = (time.monotonic() + self._seconds, me)
            while len(self._known) > self.KEPT:
                self._known.popitem(last=False)
        return me


def _me(account: Account | None, *, session: bool = False) -> Me | None:
    return None if account is None else Me(name=account.name, role=account.role, session=session)


def _bearer(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


_PLACE = re.compile(r"\w+://|(?:^|[\s'\"(=,:])(?:/|~/)[\w.@%+~-]+|\b[A-Za-z]:\\")
"""A text that looks like a path or a URL of the server: only for its operator, who finds it in the log."""

_HIDDEN = "Something is wrong with the campaign on the server. The server's log says what."


def _error_response(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the signature of a handler
    """Return what a person can do about an error; temporary failures are 503, and pages send again."""
    match error:
        case DatabaseError():
            # The remedy for a database server names its address and password files.
            remedy = "" if _PLACE.search(error.remedy) else f" {error.remedy}."
            status, detail = 503, f"The campaign's database fails just now.{remedy}"
        case InputError():
            status, detail = 400, str(error)
        case CampaignMismatch():
            status, detail = (
                503,
                "The campaign's files are not those that it was made with. The server's log says more.",
            )
        case ChunkError():
            status, detail = 409, "It cannot be read from the pool. The server's log says why."
        case CampaignError():
            status, detail = 409, str(error)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            status, detail = 503, "The server's disk is full."
        case _:
            status, detail = 503, _HIDDEN
    if _PLACE.search(detail):
        detail = _HIDDEN
    if status == 503 or detail != str(error):
        _log.warning("%s", error)
    return JSONResponse({"detail": detail}, status, {"retry-after": "2"} if status == 503 else None)


def _unreadable(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Return what is wrong with a request, without its content: JSON may be unable to hold it."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10]]
    return JSONResponse({"detail": "; ".join(faults).encode("utf-8", "backslashreplace").decode()[:2000]}, 422)


def _failed(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the server logs it
    return JSONResponse({"detail": _HIDDEN}, 500)


# -- the API -----------------------------------------------------------------------------------------------------------


def _add_api(app: FastAPI, site: _Site) -> None:
    def anyone(request: Request) -> Me:
        return site.person(request)

    def manager(me: Annotated[Me, Depends(anyone)]) -> Me:
        if me.role != "manager":
            raise HTTPException(403, f"This is for managers of the campaign; {me.name} is an annotator.")
        return me

    Anyone = Annotated[Me, Depends(anyone)]
    Manager = Annotated[Me, Depends(manager)]

    @app.post("/enter")
    def enter(given: EnterIn, request: Request, response: Response) -> Me:
        """Set a cookie for a token; its session lasts twelve hours from its last use."""
        wait = site.attempts.excess(request.client.host if request.client else "")
        if wait is not None:
            raise HTTPException(
                429, "Too many attempts from this address: wait.", {"retry-after": str(round(wait) + 1)}
            )
        begun = site.people.enter(given.token)
        if begun is None:
            raise HTTPException(401, "This link does not work, or no longer: ask for a new one.")
        me, secret = begun
        site.set_cookie(request, response, secret, LONGEST_SESSION)
        return me

    @app.post("/leave")
    def leave(given: Nothing, request: Request, response: Response) -> Nothing:
        """End the session of this browser; the link continues to work."""
        secret = request.cookies.get(site.cookie)
        if secret is not None:
            site.people.leave(secret)
        site.set_cookie(request, response, "", timedelta(0))
        return given

    @app.get("/api/state")
    def state(me: Anyone) -> State:
        """Return the standing of the campaign."""
        return site.state(me)

    @app.post("/api/answers")
    def answers(given: AnswersIn, me: Anyone) -> AnswersOut:
        """Store answers, then return the records that the annotator holds, up to `lease`."""
        outcomes = []
        if given.answers:
            outcomes = site.add_answers(me, [Given(**each.model_dump()) for each in given.answers])
        return AnswersOut(
            outcomes=[
                OutcomeOut(event_id=each.event_id, outcome=each.result, late=each.late, reason=each.reason)
                for each in outcomes
            ],
            records=site.leased(me, given.lease),
            state=site.state(me),
        )

    @app.post("/api/undo")
    def undo(given: UndoIn, me: Anyone) -> UndoOut:
        """Take an answer back."""
        with site.turn():
            undone = site.queue.undo(me.name, given.event_id, given.new_event_id)
        outcome = OutcomeOut(event_id=undone.event_id, outcome=undone.result, late=undone.late, reason=undone.reason)
        return UndoOut(outcome=outcome, state=site.state(me))

    @app.post("/api/renew")
    def renew(given: RowsIn, me: Anyone) -> RowsOut:
        """Keep records for another ten minutes."""
        if site.standings.now().phase in ("paused", "stopped"):
            return RowsOut(rows=[])
        with site.turn():
            return RowsOut(rows=site.queue.renew(me.name, given.rows))

    @app.post("/api/release")
    def release(given: RowsIn, me: Anyone) -> RowsOut:
        """Return records to the queue, for others."""
        with site.turn():
            site.queue.release(me.name, given.rows)
        return RowsOut(rows=[])

    @app.get("/api/history")
    def history(me: Anyone, n: Annotated[int, Query(ge=1, le=1000)] = 200) -> HistoryOut:
        """Return the annotator's last answers, the oldest first."""
        past = site.queue.history(me.name, n)
        return HistoryOut(answers=[PastOut(**vars(each)) for each in reversed(past)])

    @app.get("/api/records/{row}")
    def record(row: Annotated[int, Path(ge=0, le=MOST_ROW)], me: Anyone) -> Record:
        """Show a record that was asked."""
        site.check_served(me, row)
        content = site.records.contents([row])[0]
        record_id, marked = site.records.record_ids([row])[0], site.examples.rows()
        return Record(row=row, record_id=record_id, example=row in marked, **content.model_dump())

    @app.post("/api/examples")
    def example(given: ExampleIn, me: Anyone) -> ExampleOut:
        """Mark a record that was asked, for the next batch to search for more like it, or take the mark away."""
        site.check_served(me, given.row)
        with site.turn():
            if given.wanted:
                site.examples.mark(given.row, site.records.record_ids([given.row])[0], me.name)
            else:
                site.examples.unmark(given.row)
        return ExampleOut(wanted=given.wanted, examples=site.examples.count())

    @app.get(
        "/media/{row}/image", response_class=Response, responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}}
    )
    def image(row: Annotated[int, Path(ge=0, le=MOST_ROW)], me: Anyone) -> Response:
        """Return a record's image; browsers may cache it, because records of a pool do not change."""
        site.check_served(me, row)
        picture = site.records.image(row)
        return Response(
            picture,
            media_type=picture_kind(picture),
            headers={"cache-control": "private, max-age=86400, immutable"},
        )

    @app.get("/api/guidelines")
    def guidelines(me: Anyone) -> GuidelinesOut:  # noqa: ARG001
        """Return the campaign's guidelines."""
        try:
            with site.guidelines.open("rb") as file:
                text = file.read(_GUIDELINES_BYTES).decode("utf-8", errors="replace")
        except FileNotFoundError:
            raise HTTPException(404, f"this campaign has no {GUIDELINES}") from None
        return GuidelinesOut(text=text)

    @app.get("/api/campaign")
    def campaign(me: Manager) -> Overview:  # noqa: ARG001
        """Return everything about the campaign."""
        return site.overviews.now(site.standings.now())

    @app.get("/api/figures/{name}")
    def drawn(name: FigureName, me: Manager, theme: Literal["light", "dark"] = "light") -> FiguresOut:  # noqa: ARG001
        """Return figures as Bokeh's JSON."""
        return FiguresOut(figures=site.overviews.figure(name, theme))

    @app.post("/api/actions")
    def act(given: ActIn, me: Manager) -> Standing:
        """Apply a manager's action: pause, resume, close the open round early, or stop."""
        with site.turn():
            site.control.tell(given.act, me.name)
        return site.standings.now(fresh=True)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(me: Manager) -> Response:  # noqa: ARG001
        """Return the state of the campaign and of this server for Prometheus, which sends a manager's token."""
        answered = Metric(
            "dal_http_responses_total", "counter", "Responses by the kind of their status.", dict(site.answered), "kind"
        )
        return Response(exposition([*metrics_of(site.view), answered]), media_type=CONTENT_TYPE)

    @app.get("/export.{form}", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    def export(form: Literal["csv", "jsonl"], me: Manager) -> Response:  # noqa: ARG001
        """Return every answer that counts, as a file."""
        kind = "text/csv" if form == "csv" else "application/x-ndjson"
        name = {"content-disposition": f'attachment; filename="answers.{form}"'}
        return StreamingResponse(exported(site.campaign, form), media_type=f"{kind}; charset=utf-8", headers=name)


# -- the pages ---------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI) -> None:
    def page(name: str) -> Any:  # noqa: ANN401 - a route
        content = (STATIC / name).read_bytes()

        def shown() -> Response:
            return Response(content, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})

        return shown

    for path, name in {"/": "label.html", "/enter": "enter.html", "/campaign": "campaign.html"}.items():
        app.get(path, include_in_schema=False)(page(name))
    # BokehJS from the package that makes the figures: the two must be of one version.
    app.mount("/bokeh", _Static(directory=FilePath(bokeh.__file__).parent / "server" / "static" / "js"))
    app.mount("/static", _Static(packages=[("dal.web", "static")]))


class _Static(StaticFiles):
    """Files that a browser revalidates each time: a newer dal must not run with an older one's scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - Starlette's own signature
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
