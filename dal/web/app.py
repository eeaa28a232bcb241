"""The pages' server: a typed JSON API over a campaign's queue, and the files of the pages.

It never trains or scans: the loop runs in another process (`dal next`, `dal run`), and all that the two share is the
campaign's database. So no annotator waits for a scan, and either process may be killed and started again by itself.
"""

import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import bokeh
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.staticfiles import StaticFiles

from dal.campaign import Annotators, Campaign, Given, Queue
from dal.campaign.control import Act, Control
from dal.campaign.queue import Outcome
from dal.coordinator import pool_of
from dal.errors import CampaignError, DalError, InputError
from dal.web.doors import Doors, Rates, known_host
from dal.web.overview import FigureName, Overview, Overviews, exported
from dal.web.records import Content, Records
from dal.web.state import Standing, Standings

STATIC = files("dal.web") / "static"
GUIDELINES = "guidelines.md"
"""The file in a campaign's directory that tells annotators how to decide; shown as plain text."""

REQUESTS = (200.0, 1000)
"""Requests a second from one address, and how many at once; a page makes two or three for each answer."""

MOST_ROW = 2**53 - 1  # the largest integer that JavaScript keeps
_GUIDELINES_BYTES = 200_000
_ACCOUNT_SECONDS = 2.0
_COUNTED_SECONDS = 2.0

Row = Annotated[int, Field(ge=0, le=MOST_ROW)]
EventId = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Me(BaseModel):
    """Who is asking."""

    name: str
    role: Literal["annotator", "manager"]


class Named(BaseModel):
    """Which campaign this is."""

    id: str
    name: str


class State(Standing):
    """Where the campaign stands, and the one who asks in it."""

    campaign: Named
    classes: list[str]
    me: Me
    mine: int
    guidelines: bool


class Record(Content):
    """A record to be answered, or looked at again."""

    row: int
    record_id: str
    reserve: bool = False
    suggestion: tuple[int, float | None] | None = None


class AnswerIn(_Strict):
    """One answer; `event_id` is the page's own, and an answer sent twice counts once."""

    event_id: EventId
    row: Row
    status: Literal["submitted", "skipped"]
    label: Annotated[int, Field(ge=0, le=100_000)] | None = None
    skip_reason: Annotated[str, Field(max_length=200)] | None = None
    lead_time: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] | None = None
    shown_at: AwareDatetime | None = None
    answered_at: AwareDatetime | None = None
    suggestion_shown: bool = False


class AnswersIn(_Strict):
    """Answers, and how many records one wants to have in hand afterwards."""

    answers: Annotated[list[AnswerIn], Field(max_length=100)] = []
    lease: Annotated[int, Field(ge=0, le=50)] = 0


class OutcomeOut(BaseModel):
    """What became of one answer."""

    event_id: str
    outcome: Literal["new", "changed", "same", "repeated", "refused"]
    late: bool
    reason: str


class AnswersOut(BaseModel):
    """What became of the answers, the records now in hand, and where the campaign stands."""

    outcomes: list[OutcomeOut]
    records: list[Record]
    state: State


class UndoIn(_Strict):
    """The answer to be taken back, and the id of this undoing."""

    event_id: EventId
    new_event_id: EventId


class UndoOut(BaseModel):
    """What became of the undoing."""

    outcome: OutcomeOut
    state: State


class RowsIn(_Strict):
    """Records in hand."""

    rows: Annotated[list[Row], Field(max_length=200)]


class RowsOut(BaseModel):
    """Those of them that are still in hand."""

    rows: list[int]


class PastOut(BaseModel):
    """An answer that its annotator gave, and may change."""

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


class GuidelinesOut(BaseModel):
    """How to decide, as plain text."""

    text: str


class EnterIn(_Strict):
    """A person's token."""

    token: Annotated[str, Field(min_length=1, max_length=200)]


class ActIn(_Strict):
    """What a manager wants."""

    act: Act


class FiguresOut(BaseModel):
    """Figures, each for ``Bokeh.embed.embed_item``."""

    figures: list[dict[str, Any]]


class Problem(BaseModel):
    """What went wrong: what was expected, what came, what to do."""

    detail: str


@dataclass(frozen=True)
class Options:
    """How a campaign is served.

    Attributes
    ----------
    user : str
        Who labels, where the campaign has no tokens and only this machine can reach the server.
    show_suggestions : bool
        Whether annotators see what the model predicts before they answer. It makes them agree with it.
    """

    user: str
    show_suggestions: bool = False


def create_app(campaign: Campaign, options: Options) -> FastAPI:
    """Make the application that serves a campaign's pages.

    Parameters
    ----------
    campaign : Campaign
    options : Options

    Returns
    -------
    fastapi.FastAPI

    Raises
    ------
    PoolError
        If the campaign's pool cannot be opened.
    """
    site = _Site(campaign, options)
    app = FastAPI(
        title="dal",
        summary="Labelling for a campaign of active learning",
        # FastAPI's pages of documentation load their scripts from elsewhere; the document itself stays.
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Problem} for status in (400, 401, 403, 404, 409, 413, 415, 429)},
    )
    app.exception_handler(DalError)(_told)
    _add_api(app, site)
    _add_pages(app)
    app.add_middleware(Doors, chart_paths=("campaign", "explorer"), requests=Rates(*REQUESTS))
    return app


class _Site:
    """What all requests share."""

    def __init__(self, campaign: Campaign, options: Options) -> None:
        self.campaign = campaign
        self.options = options
        self.queue = Queue(campaign)
        self.people = _People(Annotators(campaign))
        self.standings = Standings(campaign)
        self.records = Records(pool_of(campaign))
        self.overviews = Overviews(campaign, self.records)
        self.control = Control(campaign)
        self.guidelines = campaign.directory / GUIDELINES
        self.attempts = Rates(per_second=0.2, burst=20)
        self._counted: dict[str, tuple[float, int]] = {}
        self._asked: frozenset[int] = frozenset()
        # SQLite lets one write at a time and makes others poll for their turn; in here they queue up instead.
        self.writing = threading.Lock()
        self._line: deque[tuple[str, list[Given], Future[list[Outcome]]]] = deque()

    def answered(self, me: Me, given: list[Given]) -> list[Outcome]:
        """Add answers together with those of everybody who waits for the same lock: one commit for all of them.

        A commit is what takes time, on a busy disk tens of milliseconds.
        """
        mine: Future[list[Outcome]] = Future()
        self._line.append((me.name, given, mine))
        with self.writing:
            together = [self._line.popleft() for _ in range(len(self._line))]
            if together:
                try:
                    outcomes = self.queue.answer_together([(name, theirs) for name, theirs, _ in together])
                except Exception as error:  # it is raised again in everybody's own request, and their pages send again
                    for _, _, future in together:
                        future.set_exception(error)
                else:
                    for (_, _, future), theirs in zip(together, outcomes, strict=True):
                        future.set_result(theirs)
        return mine.result()

    def person(self, request: Request) -> Me:
        """Find who is asking.

        Raises
        ------
        HTTPException
            401 where a token is needed, and none, or a worthless one, came; 403 under a foreign name.
        """
        if not self.people.needed:
            refusal = known_host(request.headers)
            if refusal is not None:
                raise HTTPException(refusal.status, refusal.detail)
            return Me(name=self.options.user, role="manager")
        token = request.cookies.get(self.cookie) or _bearer(request)
        me = self.people.find(token) if token else None
        if me is None:
            raise HTTPException(
                401, "Open the link that you were given; if it no longer works, ask for a new one (dal annotator add)."
            )
        return me

    @property
    def cookie(self) -> str:
        return f"dal-{self.campaign.id[:16]}"

    def state(self, me: Me, *, fresh: bool = False) -> State:
        standing = self.standings.now(fresh=fresh)
        mine = self._mine(me.name) if standing.size else 0
        return State(
            **standing.model_dump(),
            campaign=Named(id=self.campaign.id, name=self.campaign.directory.name),
            classes=list(self.campaign.settings.classes),
            me=me,
            mine=mine,
            guidelines=self.guidelines.is_file(),
        )

    def _mine(self, name: str) -> int:
        """Count somebody's answers to the batch, at most every other second: it reads the whole batch."""
        until, mine = self._counted.get(name, (0.0, 0))
        if time.monotonic() >= until:
            mine = self.queue.mine(name)
            self._counted[name] = (time.monotonic() + _COUNTED_SECONDS, mine)
        return mine

    def leased(self, me: Me, n: int) -> list[Record]:
        if not n or self.standings.now().phase in ("paused", "stopped"):
            return []
        with self.writing:
            served = self.queue.lease(me.name, n)
        contents = self.records.contents([each.row for each in served])
        return [
            Record(
                row=each.row,
                record_id=each.record_id,
                reserve=each.reserve,
                suggestion=each.suggestion if self.options.show_suggestions else None,
                **content.model_dump(),
            )
            for each, content in zip(served, contents, strict=True)
        ]

    def check_served(self, row: int) -> None:
        """Refuse rows that no round asked: the pool's other records are nobody's business here."""
        if row not in self._asked:
            self._asked = frozenset(self.campaign.asked_rows().tolist()) | frozenset(self.campaign.gold())
        if row not in self._asked:
            raise HTTPException(404, f"row {row} was never asked in this campaign")


class _People:
    """Knows tokens for a moment, so that not every request asks the database; a revoked one ends that much later."""

    KEPT = 1000

    def __init__(self, annotators: Annotators) -> None:
        self._annotators = annotators
        self._known: OrderedDict[str, tuple[float, Me | None]] = OrderedDict()
        self._needed = (0.0, True)
        self._lock = threading.Lock()

    @property
    def needed(self) -> bool:
        """Whether anybody was ever given a token: from then on everybody needs one, also after the last is revoked."""
        with self._lock:
            if time.monotonic() >= self._needed[0]:
                self._needed = (time.monotonic() + _ACCOUNT_SECONDS, bool(self._annotators.all()))
            return self._needed[1]

    def find(self, token: str) -> Me | None:
        with self._lock:
            until, me = self._known.get(token, (0.0, None))
            if time.monotonic() < until:
                return me
        account = self._annotators.verify(token)
        me = None if account is None else Me(name=account.name, role=account.role)
        with self._lock:
            self._known[token] = (time.monotonic() + _ACCOUNT_SECONDS, me)
            while len(self._known) > self.KEPT:
                self._known.popitem(last=False)
        return me


def _bearer(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _told(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the signature of a handler
    status = 400 if isinstance(error, InputError) else 409 if isinstance(error, CampaignError) else 503
    return JSONResponse({"detail": str(error)}, status)


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
        """Turn a token into a cookie that lasts until it is revoked."""
        wait = site.attempts.excess(request.client.host if request.client else "")
        if wait is not None:
            raise HTTPException(
                429, "Too many attempts from this address: wait.", {"retry-after": str(round(wait) + 1)}
            )
        me = site.people.find(given.token)
        if me is None:
            raise HTTPException(401, "This link does not work, or no longer: ask for a new one.")
        # Without a path the cookie is sent to what lies beside this address, whatever prefix a proxy put before it.
        response.set_cookie(
            site.cookie,
            given.token,
            max_age=180 * 24 * 3600,
            path=None,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return me

    @app.get("/api/state")
    def state(me: Anyone) -> State:
        """Tell where the campaign stands."""
        return site.state(me)

    @app.post("/api/answers")
    def answers(given: AnswersIn, me: Anyone) -> AnswersOut:
        """Take answers, then give the records that the annotator has in hand, up to `lease`."""
        outcomes = []
        if given.answers:
            outcomes = site.answered(me, [Given(**each.model_dump()) for each in given.answers])
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
        with site.writing:
            told = site.queue.undo(me.name, given.event_id, given.new_event_id)
        outcome = OutcomeOut(event_id=told.event_id, outcome=told.result, late=told.late, reason=told.reason)
        return UndoOut(outcome=outcome, state=site.state(me))

    @app.post("/api/renew")
    def renew(given: RowsIn, me: Anyone) -> RowsOut:
        """Keep records in hand for another ten minutes."""
        if site.standings.now().phase in ("paused", "stopped"):
            return RowsOut(rows=[])
        with site.writing:
            return RowsOut(rows=site.queue.renew(me.name, given.rows))

    @app.post("/api/release")
    def release(given: RowsIn, me: Anyone) -> RowsOut:
        """Hand records back, for others."""
        with site.writing:
            site.queue.release(me.name, given.rows)
        return RowsOut(rows=[])

    @app.get("/api/history")
    def history(me: Anyone, n: Annotated[int, Query(ge=1, le=1000)] = 200) -> HistoryOut:
        """Give the annotator's last answers, the oldest first."""
        past = site.queue.history(me.name, n)
        return HistoryOut(answers=[PastOut(**vars(each)) for each in reversed(past)])

    @app.get("/api/records/{row}")
    def record(row: Annotated[int, Path(ge=0, le=MOST_ROW)], me: Anyone) -> Record:  # noqa: ARG001 - a person is needed
        """Show a record that was asked."""
        site.check_served(row)
        content = site.records.contents([row])[0]
        return Record(row=row, record_id=site.records.record_ids([row])[0], **content.model_dump())

    @app.get("/media/{row}/image", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    def image(row: Annotated[int, Path(ge=0, le=MOST_ROW)], me: Anyone) -> Response:  # noqa: ARG001
        """Give a record's image; a pool's records do not change, so a browser may keep it."""
        site.check_served(row)
        return Response(
            site.records.image(row),
            media_type="image/png",
            headers={"cache-control": "private, max-age=86400, immutable"},
        )

    @app.get("/api/guidelines")
    def guidelines(me: Anyone) -> GuidelinesOut:  # noqa: ARG001
        """Give the campaign's guidelines."""
        try:
            with site.guidelines.open("rb") as file:
                text = file.read(_GUIDELINES_BYTES).decode("utf-8", errors="replace")
        except FileNotFoundError:
            raise HTTPException(404, f"this campaign has no {GUIDELINES}") from None
        return GuidelinesOut(text=text)

    @app.get("/api/campaign")
    def campaign(me: Manager) -> Overview:  # noqa: ARG001
        """Tell everything about the campaign."""
        return site.overviews.now(site.standings.now())

    @app.get("/api/figures/{name}")
    def drawn(name: FigureName, me: Manager, theme: Literal["light", "dark"] = "light") -> FiguresOut:  # noqa: ARG001
        """Give figures as Bokeh's JSON."""
        return FiguresOut(figures=site.overviews.figure(name, theme))

    @app.post("/api/actions")
    def act(given: ActIn, me: Manager) -> Standing:
        """Pause, go on, close the open round early, or stop."""
        with site.writing:
            site.control.tell(given.act, me.name)
        return site.standings.now(fresh=True)

    @app.get("/export.{form}", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    def export(form: Literal["csv", "jsonl"], me: Manager) -> Response:  # noqa: ARG001
        """Give every answer that counts, as a file."""
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
    # BokehJS out of the package that makes the figures: the two must be of one version.
    app.mount("/bokeh", _Static(directory=FilePath(bokeh.__file__).parent / "server" / "static" / "js"))
    app.mount("/static", _Static(packages=[("dal.web", "static")]))


class _Static(StaticFiles):
    """Files that a browser asks about again each time: a newer dal must not run with an older one's scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - Starlette's own signature
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
