"""The content of the campaign page: numbers as JSON, and figures as Bokeh's."""

import codecs
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from bokeh.embed import json_item
from bokeh.plotting import figure as Figure  # noqa: N812 - a method below has the name
from pydantic import BaseModel

from dal import figures
from dal.campaign import CampaignStore, Round
from dal.campaign.activity import Activity, Work
from dal.campaign.control import Action, Control
from dal.campaign.features import features_of
from dal.campaign.quality import Quality
from dal.campaign.view import Status, View, invalid_in, pauses, status_of
from dal.errors import InputError
from dal.evidence.agreement import Agreement
from dal.evidence.stopping import Verdict
from dal.loop.bias import Biases
from dal.map import MAP, PoolMap
from dal.selection.candidates import UNUSABLE
from dal.texts import guarded
from dal.web.records import Records
from dal.web.state import Standing

PACE = timedelta(minutes=15)
FEW = 20
"""Fewest answers in the last quarter of an hour for which a time left is shown."""

DRAWN = 2500
"""Most records of earlier batches, and of this one, on the map."""

_LISTED_CLASSES = 10
_DRAWN_PEOPLE = 20
_SKIPS = 0.3
_HASTE = 0.2

FigureName = Literal[
    "accuracy",
    "balance",
    "bias",
    "stopping",
    "people",
    "agreement",
    "courses",
    "apart",
    "pace",
    "pauses",
    "scores",
    "map",
]


class ClassCount(BaseModel):
    """Labels of one class."""

    name: str
    labels: int


class Person(BaseModel):
    """The work of one annotator; `agreement` with others is on `together` records that others answered as well."""

    name: str
    answers: int
    skipped: int
    median_seconds: float | None
    last_at: datetime
    agreement: float | None
    together: int


class Overview(BaseModel):
    """The content of the campaign page without the figures.

    Attributes
    ----------
    per_hour : float
        Answers an hour, over the last quarter of an hour.
    left_low, left_high : float or None
        Seconds until the batch is answered at that pace, as an interval; None below 20 answers.
    bias : list of str
        How the labels differ from the pool, in words.
    version : str
        Changes when a figure may have changed.
    """

    standing: Standing
    name: str
    pool: str
    n_rows: int
    learner: str
    strategy: str
    labels: int
    asked: int
    budget: int | None
    accuracy: str
    classes: list[ClassCount]
    balance: list[str]
    bias: list[str]
    verdicts: list[Verdict]
    people: list[Person]
    machines: list[str]
    per_hour: float
    left_low: float | None
    left_high: float | None
    warnings: list[str]
    actions: list[Action]
    figures: list[FigureName]
    version: str


class Overviews:
    """The content of the campaign page, computed on request.

    Parameters
    ----------
    campaign : Campaign
    records : Records
        The pool's records, for the map.
    """

    def __init__(self, campaign: CampaignStore, records: Records) -> None:
        self._campaign = campaign
        self._records = records
        self._view = View(campaign)
        self._activity = Activity(campaign)
        self._control = Control(campaign)
        self._biases = Biases(self._view)
        self._draw: dict[FigureName, Callable[[], list[Figure]]] = {
            "accuracy": self._accuracy,
            "balance": self._balance,
            "bias": self._bias,
            "stopping": self._stopping,
            "people": self._people,
            "agreement": self._agreement,
            "courses": self._courses,
            "apart": self._apart,
            "pace": self._pace,
            "pauses": self._pauses,
            "scores": self._scores,
            "map": self._map,
        }
        self._places: dict[int, tuple[float, float]] = {}
        self._placed_by = b""
        self._computing = threading.Lock()
        self._known: Overview | None = None

    def now(self, standing: Standing) -> Overview:
        """Return everything but the figures, computed once for each standing, for all who ask."""
        with self._computing:
            if self._known is None or self._known.standing is not standing:
                self._known = self._computed(standing)
            return self._known

    def _computed(self, standing: Standing) -> Overview:
        campaign, settings = self._campaign, self._campaign.settings
        known = status_of(self._view)
        past = campaign.rounds.all()
        lately = self._activity.lately(PACE)
        rest = sum(map(len, campaign.rounds.rest_rows().values())) if standing.pending else 0
        low, high = time_left(standing.pending + rest, lately, PACE)
        return Overview(
            standing=standing,
            name=campaign.directory.name,
            pool=settings.pool,
            n_rows=past[-1].n_rows if past else campaign.n_rows,
            learner=known.learner,
            strategy=settings.strategy,
            labels=known.labels,
            asked=known.asked,
            budget=self._view.budget,
            accuracy=known.accuracy.text,
            classes=[ClassCount(name=name, labels=count) for name, count in known.per_class.items()],
            balance=[each.text for each in known.balance[:_LISTED_CLASSES]],
            bias=[known.bias] if known.bias else [],
            verdicts=list(known.verdicts),
            people=[_person(each, known.agreement) for each in known.people],
            machines=[each.text for each in known.machines],
            per_hour=lately * 3600 / PACE.total_seconds(),
            left_low=low,
            left_high=high,
            warnings=[
                *known.notes,
                *(
                    each
                    for each in (
                        known.overtaken,
                        known.switched,
                        known.left_out,
                        known.one_class,
                        known.trusted,
                        known.unskilled,
                        known.scored,
                        known.compared,
                        known.again,
                        known.before,
                    )
                    if each
                ),
                *_warnings(known.per_class, known.people, past),
                *(text for each in known.courses for text in each.warnings),
            ],
            actions=self._control.history()[-20:][::-1],
            figures=self._there(past, known),
            version=f"{standing.round} {standing.step} {campaign.answers.last_id()}",
        )

    def figure(self, name: FigureName, theme: Literal["light", "dark"]) -> list[dict[str, Any]]:
        """Return figures as Bokeh's JSON, for ``Bokeh.embed.embed_item``."""
        return [dict(json_item(each, theme=figures.THEMES[theme])) for each in self._draw[name]()]

    def _there(self, past: list[Round], told: Status) -> list[FigureName]:
        """Return the names of the figures that have something to show."""
        known: dict[FigureName, bool] = {
            "accuracy": any(record.explore_asked for record in self._view.history(every_model=True)),
            "balance": told.labels > 0,
            "bias": told.labels >= FEW,
            "stopping": bool(self._campaign.settings.stop) and any(each.status == "closed" for each in past),
            "people": bool(told.people),
            "agreement": bool(told.agreement.pairs),
            "courses": any(each.windows for each in told.courses),
            "apart": bool(told.agreement.pairs),
            "pace": told.labels >= FEW,
            "pauses": bool(pauses(past)),
            "map": (self._campaign.directory / MAP).exists() and bool(past),
            # A cold start has no model, and its scores are the random ones that break ties.
            "scores": any(each.model is not None and each.summary is not None for each in past),
        }
        return [name for name, there in known.items() if there]

    def _accuracy(self) -> list[Figure]:
        return [figures.accuracy_curve(self._view.history(every_model=True))]

    def _balance(self) -> list[Figure]:
        view, classes = self._view, self._campaign.settings.classes
        known, last = view.labels(), self._campaign.rounds.last
        newest = [] if last is None else [asked.row for asked in self._campaign.rounds.batch(last.number)]
        labels = np.bincount(known.codes, minlength=len(classes)).tolist()
        new = np.bincount(known.codes[np.isin(known.rows, newest)], minlength=len(classes)).tolist()
        pool = view.shares()
        shares = [
            figures.Balance(
                name,
                labels[at],
                new[at],
                pool[at].value,
                None if pool[at].value is None else pool[at].low,
                None if pool[at].value is None else pool[at].high,
            )
            for at, name in enumerate(classes)
        ]
        return [figures.class_balance(shares)]

    def _bias(self) -> list[Figure]:
        found = self._biases.now()
        drawn = [figures.regions(found.regions)] if found.regions else []
        if drawn and (apart := found.apart):
            drawn[0].title.text = f"{apart[0]:.0%} lie elsewhere than the pool\n({apart[1]:.0%} by chance)"
        pool_map = PoolMap.load(self._campaign.directory / MAP)
        if pool_map is not None:
            known = self._view.labels().rows
            places = self._placed(known[:: max(1, -(-len(known) // DRAWN))].tolist(), pool_map)
            drawn.append(figures.bias_map(pool_map.density, pool_map.extent, places, pool_map.projection.axes))
        return drawn

    def _stopping(self) -> list[Figure]:
        view = self._view
        rounds = [record.number for record in view.history()]
        return figures.stopping_criteria(
            [
                figures.Criterion(text, verdicts[-1], rounds, [verdict.value for verdict in verdicts])
                for text, verdicts in view.judged_so_far()
            ]
        )

    def _people(self) -> list[Figure]:
        work = self._activity.work()
        return [
            figures.annotators([figures.Annotator(w.name, w.answers, w.skipped, w.median_seconds) for w in work[:30]])
        ]

    def _agreement(self) -> list[Figure]:
        names, shares, together = self._campaign.answers.standing().agreement.matrix()
        return [
            figures.agreement_matrix(names[:20], shares[:20, :20], together[:20, :20], what="share of equal answers")
        ]

    def _courses(self) -> list[Figure]:
        known = [each for each in Quality(self._campaign).courses if each.windows]
        if not known:
            raise InputError("nobody has answers yet that others, or a known label, can judge")
        return [figures.courses(known[:_DRAWN_PEOPLE])]

    def _apart(self) -> list[Figure]:
        if not (known := Quality(self._campaign).apart):
            raise InputError("no record has two answers yet")
        return [figures.people_apart(known[:_DRAWN_PEOPLE])]

    def _pace(self) -> list[Figure]:
        hours, pace = paces(self._activity.arrivals(), self._campaign.created_at)
        return [figures.throughput(hours, pace)]

    def _pauses(self) -> list[Figure]:
        return [figures.pauses(pauses(self._campaign.rounds.all())[-40:])]

    def _scores(self) -> list[Figure]:
        summaries = [each.summary for each in self._campaign.rounds.all() if each.model is not None]
        known = [summary for summary in summaries if summary is not None]
        if not known:
            raise InputError("no model has scored the pool yet")
        return [figures.score_histogram(known[-1]["histogram"], known[-1].get("edges", (0.0, 1.0)))]

    def _map(self) -> list[Figure]:
        campaign = self._campaign
        pool_map = PoolMap.load(campaign.directory / MAP)
        if pool_map is None:
            raise InputError("this campaign has no map yet; dal map makes one")
        newest = campaign.rounds.last
        batch = {} if newest is None else {each.row: each for each in campaign.rounds.batch(newest.number)}
        others = np.setdiff1d(campaign.rounds.asked_rows(), list(batch))
        # An even share of the rest is enough to see where labels are; reading them all is not free.
        shown = [*batch, *others[:: max(1, -(-len(others) // DRAWN))].tolist()][: 2 * DRAWN]
        places = self._placed(shown, pool_map)
        known = campaign.answers.labels()
        labels = dict(zip(known.rows.tolist(), known.codes.tolist(), strict=True))
        points = figures.Points(
            places[:, 0],
            places[:, 1],
            self._records.record_ids(shown),
            np.array([labels.get(row, -1) for row in shown], dtype=np.int64),
            np.array([row in batch for row in shown], dtype=bool),
            [batch[row].score if row in batch else None for row in shown],
        )
        shape = figures.BatchMap(
            pool_map.density, pool_map.extent, points, campaign.settings.classes, pool_map.projection.axes
        )
        return [figures.batch_map(shape)]

    def _placed(self, rows: list[int], pool_map: PoolMap) -> npt.NDArray[np.float64]:
        """Find the places of records on the map, (n, 2), and remember them."""
        projection = pool_map.projection.components.tobytes()
        if projection != self._placed_by:  # dal map draws another one after the pool has grown
            self._places, self._placed_by = {}, projection
        new = np.array([row for row in rows if row not in self._places], dtype=np.int64)
        if len(new):
            placed = pool_map.projection.place(features_of(self._campaign, new))
            self._places |= dict(zip(new.tolist(), map(tuple, placed.tolist()), strict=True))
        return np.array([self._places[row] for row in rows]).reshape(-1, 2)


def time_left(pending: int, lately: int, span: timedelta) -> tuple[float | None, float | None]:
    """Estimate the seconds until `pending` records are answered, from the number of answers in the last span.

    The interval is that of a Poisson count, with its square root as deviation. It needs 20 answers.

    Parameters
    ----------
    pending : int
        Records without an answer.
    lately : int
        Answers in the last `span`.
    span : timedelta

    Returns
    -------
    low, high : float or None
        Seconds.

    Examples
    --------
    >>> [round(seconds) for seconds in time_left(100, 100, timedelta(minutes=15))]
    [753, 1119]
    >>> time_left(100, 3, timedelta(minutes=15))
    (None, None)
    """
    if lately < FEW or not pending:
        return None, None
    deviation = 1.96 * lately**0.5
    seconds = pending * span.total_seconds()
    return seconds / (lately + deviation), seconds / (lately - deviation)


def paces(arrivals: list[datetime], start: datetime) -> tuple[list[float], list[float]]:
    """Count the answers in 60 equal spans from the campaign's start to the last answer.

    Returns
    -------
    hours, labels_per_hour : list of float
        End of each span in hours since the start, and its pace.
    """
    hours = np.array([(at - start).total_seconds() / 3600 for at in arrivals])
    edges = np.linspace(0, max(float(hours.max(initial=0.0)), 1 / 60), 61)
    counts, _ = np.histogram(hours, edges)
    return edges[1:].tolist(), (counts / np.diff(edges)).tolist()


def _person(work: Work, agreed: Agreement) -> Person:
    agreement, common = agreed.with_others(work.name)
    return Person(
        name=work.name,
        answers=work.answers,
        skipped=work.skipped,
        median_seconds=work.median_seconds,
        last_at=work.last_at,
        agreement=agreement,
        together=common,
    )


def _warnings(per_class: dict[str, int], work: Sequence[Work], past: list[Round]) -> Iterator[str]:
    labels = sum(per_class.values())
    if labels >= FEW:
        for name, count in per_class.items():
            if not count:
                yield f"No record was labelled {name} so far: the learner cannot know this class."
    for each in work:
        if each.answers >= FEW and each.skipped / each.answers > _SKIPS:
            yield f"{each.name} skipped {each.skipped / each.answers:.0%} of {each.answers:,} records."
        if each.answers >= FEW and each.hasty / min(each.answers, Activity.TIMED) > _HASTE:
            yield f"{each.name} gave {each.hasty:,} of the last answers in less than {Activity.HASTY_SECONDS} s each."
    invalid = max((invalid_in(each) for each in past), default=0)
    if invalid:
        least = "At least " if any((each.summary or {}).get("reach") for each in past) else ""
        yield f"{least}{invalid:,} records of the pool {UNUSABLE}: they are never asked."


# -- exports -----------------------------------------------------------------------------------------------------------


COLUMNS = (
    "record_id", "row", "round", "annotator", "status", "label", "skip_reason", "lead_time", "answered_at",
    "received_at", "late", "source", "event_id", "machine",
)  # fmt: skip


def exported(campaign: CampaignStore, form: Literal["csv", "jsonl"]) -> Iterator[bytes]:
    """Yield every answer that counts now, a line each, as CSV or JSON lines; the first lines are read immediately.

    Later answers are not included. Nothing is open between two blocks, so that an interrupted download leaves nothing.
    """
    activity, upto = Activity(campaign), campaign.answers.last_id()
    classes = campaign.settings.classes

    def written(block: list[Any]) -> bytes:
        lines = [{name: getattr(answer, name) for name in COLUMNS} for answer in block]
        for line in lines:
            line["label"] = None if line["label"] is None else classes[line["label"]]
        if form == "jsonl":
            return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        buffer = io.StringIO()
        csv.writer(buffer).writerows([_guarded(value) for value in line.values()] for line in lines)
        return buffer.getvalue().encode()

    def blocks(block: list[Any]) -> Iterator[bytes]:
        if form == "csv":
            # As in the files of batches: without the mark spreadsheets take UTF-8 for something else.
            yield codecs.BOM_UTF8 + f"{','.join(COLUMNS)}\r\n".encode()
        while block:
            yield written(block)
            block = activity.standing(upto, after=block[-1].id)

    return blocks(activity.standing(upto))


def _guarded(value: object) -> object:
    return guarded(value) if isinstance(value, str) else value
