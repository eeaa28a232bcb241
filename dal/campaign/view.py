"""The read model: what is true of a campaign now, for the loop, the status, the pages and the report.

Reading changes nothing and takes no lock. Costly derivations of the answers, such as labels and agreement, are computed
once for each state of the answers and kept with it (`dal.campaign.answer_log.Standing`), so a page may poll.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dal.campaign.activity import Activity, Work
from dal.campaign.choice import Choice
from dal.campaign.control import Control
from dal.campaign.machines import Machines, MachineWork
from dal.campaign.parts import other_pool, pool_of
from dal.campaign.quality import Quality
from dal.campaign.schema import Round, Step
from dal.campaign.seconds import second_opinions
from dal.campaign.store import CampaignStore
from dal.errors import PoolError, PoolNotFound, SettingsError
from dal.evidence.agreement import Agreement
from dal.evidence.bias import of_classes, represented
from dal.evidence.quality import Course
from dal.evidence.ruler import NEWEST, Estimate, RoundRecord, accuracy, beaten_by_one_class, class_shares
from dal.evidence.stopping import Criterion, Verdict, advice, as_they_ended, first_stop, label_budget, parse
from dal.evidence.votes import Labels
from dal.selection.candidates import UNUSABLE
from dal.selection.explore import uniform_rows

if TYPE_CHECKING:
    from dal.pool import Pool

Rows = npt.NDArray[np.int64]

MEASURED = ("kappa", "changed", "uncertainty", "holdout_correct", "holdout_asked")
"""Fields of a `RoundRecord` that are measured on the round's model, and kept in its notes."""

STOP_SET = -1
"""Stands for the round in the hashes that draw the stop set: no round has it."""


@dataclass(frozen=True)
class Position:
    """The position of a campaign in its loop.

    Attributes
    ----------
    round : int
        The newest round; 0 before the first.
    step : str
        That round's step; ``none`` before the first round.
    pending : int
        Records of the open batch that wait for answers.
    spare : int
        How many of them need not be waited for.
    """

    round: int
    step: Step
    pending: int = 0
    spare: int = 0


_Ruled: TypeAlias = dict[int, list[tuple[bool, int]]]
"""By round, of each labelled explore record whether the model was right, and its class code."""


class _Past(NamedTuple):
    records: list[RoundRecord]
    ruled: _Ruled
    of_now: set[int]
    """Numbers of the rounds whose models are of the pool and the learner of now."""


class View:
    """Read what is true of a campaign now.

    Parameters
    ----------
    campaign : Campaign
    reserved : array of int64, default=()
        Rows that are never asked, such as those of a test set; the campaign does not store them.

    Attributes
    ----------
    criteria : tuple of Criterion
        The campaign's own stopping criteria.
    """

    def __init__(self, campaign: CampaignStore, *, reserved: npt.ArrayLike = ()) -> None:
        self.campaign = campaign
        self.reserved = np.unique(np.asarray(reserved, dtype=np.int64))
        self.criteria: tuple[Criterion, ...] = tuple(parse(text) for text in campaign.settings.stop)
        self._past: tuple[object, _Past] = None, _Past([], {}, set())

    # -- the pool ----------------------------------------------------------------------------------------------------

    @cached_property
    def pool(self) -> "Pool":
        """The campaign's pool, opened when it is first needed."""
        return pool_of(self.campaign)

    def grown_pool(self) -> "Pool":
        """Return the pool with the records that were appended since it was opened: a run holds it for weeks."""
        try:
            self.pool = self.pool.refreshed()
        except PoolNotFound:
            raise
        except PoolError as error:
            raise other_pool(self.campaign) from error
        return self.pool

    # -- the loop ----------------------------------------------------------------------------------------------------

    def position(self) -> Position:
        """Read where the campaign stands in its loop."""
        last = self.campaign.rounds.last
        if last is None:
            return Position(0, "none")
        return Position(last.number, last.status, *(self._awaited(last) if last.status == "open" else ()))

    def waiting(self) -> bool:
        """Return whether the open batch still waits for answers; cheap."""
        now = self.position()
        return now.pending > now.spare

    def _awaited(self, current: Round) -> tuple[int, int]:
        rounds = self.campaign.rounds
        waiting = rounds.waiting_rows(current.number)
        spare = self.campaign.settings.labelling.spare(rounds.batch_size(current.number))
        # A batch that uses up the budget, once it and the rest before it are labelled, is the last one: a round that
        # does not wait for it would find no label left to ask for, and ask for one too many.
        if (
            spare
            and self.budget is not None
            and self.left(self._to_be_known(waiting, *rounds.rest_rows().values())) <= 0
        ):
            spare = 0
        return len(waiting), spare

    # -- labels ------------------------------------------------------------------------------------------------------

    def labels(self, upto: int | None = None) -> Labels:
        """Return the label of every labelled record by the campaign's vote, from the answers up to an id."""
        return self.campaign.answers.labels(upto)

    def explored_labels(self, *, here: bool = False) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Return the rows and labels of all explore answers: a random sample of the records never chosen.

        With `here`, only those of rounds on the pool of now: an encoder may have been trained on the others.
        """
        known = self.labels()
        mine = np.isin(known.rows, self.campaign.rounds.explored_rows(self.campaign.pool_fingerprint if here else None))
        return known.rows[mine], known.codes[mine]

    def random_rows(self, *, imported: bool = False) -> Rows:
        """Read the rows that were drawn uniformly from the pool of now, ascending.

        The explore shares, and what rounds of the strategy `random` asked that balanced and searched for none. With
        `imported`, also the rows that were answered and never asked.
        """
        rounds = self.campaign.rounds
        uniform = [
            each.number
            for each in rounds.all()
            if self._is_here(each) and each.balance is None and each.strategy == "random"
        ]
        drawn = [each.row for number in uniform for each in rounds.batch(number) if each.found_by is None]
        never = np.setdiff1d(self.labels().rows, rounds.asked_rows()) if imported else np.empty(0, np.int64)
        explored = rounds.explored_rows(self.campaign.pool_fingerprint)
        return np.unique(np.concatenate([explored, np.array(drawn, dtype=np.int64), never]))

    def balance(self) -> tuple["ClassBalance", ...]:
        """Read how the labels and the newest batch compare with the shares that classes are to have.

        The classes that lack most come first. Of the batch, only the records count that the strategy chose. Empty
        where no class is to have a share.
        """
        past, classes = self.campaign.rounds.all(), self.campaign.settings.classes
        opened = [each for each in past if each.opened_at is not None]
        if not opened or opened[-1].balance is None:
            return ()
        newest, known = opened[-1], self.labels()
        chosen = [each for each in self.campaign.rounds.batch(newest.number) if each.chosen_by == "strategy"]
        predicted = Counter(each.predicted for each in chosen)
        codes = known.codes[np.isin(known.rows, [each.row for each in chosen])]
        labels, answered = (np.bincount(each, minlength=len(classes)).tolist() for each in (known.codes, codes))
        quotas = (newest.summary or {}).get("quotas") or [None] * len(classes)
        assert newest.balance is not None
        found = [
            ClassBalance(
                classes[code],
                share,
                labels[code],
                len(known.codes),
                newest.number,
                quotas[code],
                predicted[code],
                answered[code],
                len(codes),
            )
            for code, share in enumerate(newest.balance)
            if share
        ]
        return tuple(sorted(found, key=lambda each: each.labels / max(each.of, 1) - each.share))

    def _is_here(self, round: Round) -> bool:
        """Return whether a round was chosen from the pool of now."""
        return round.pool_fingerprint == self.campaign.pool_fingerprint

    def explored(self) -> list[int]:
        """Count the explore answers of each class."""
        return np.bincount(self.explored_labels()[1], minlength=len(self.campaign.settings.classes)).tolist()

    def shares(self) -> list[Estimate]:
        """Estimate the share of each class in the pool, from the explore answers."""
        return class_shares(self.explored())

    def propensities(self) -> dict[int, float]:
        """Return, by row, the probability with which each explore record was drawn in its round.

        Its round drew as many records, uniformly, out of those that nobody had been asked, that no stop set held back
        and whose features were valid. Records that a strategy or a search chose were not drawn, so that they have
        none. Rows that were held back by the caller of a round are not known: they count as left.
        """
        drawn = self.campaign.rounds.drawn_in()
        counts = Counter(drawn.values())
        share = {
            each.number: min(1.0, counts[each.number] / max(1, _left(each)))
            for each in self.campaign.rounds.all()
            if each.number in counts
        }
        return {row: share[number] for row, number in drawn.items()}

    def history(self, *, every_model: bool = False) -> list[RoundRecord]:
        """Return one record for each closed round, as the criteria and the ruler take it, the first one first.

        The explore answers of a round are the answers to its batch's explore records as they stand now, against the
        predictions of the model that chose the batch, before it learned from them.

        Before the campaign moved to the pool of now, or its learner was switched, other models were measured: that is
        left out of the records, unless `every_model` is set.
        """
        past = self._read_past()
        return [each if every_model or each.number in past.of_now else _unmeasured(each) for each in past.records]

    def _read_past(self) -> "_Past":
        """Read what history and warnings are made of, again where answers, rounds or the learner have changed."""
        last = self.campaign.rounds.last
        key = self.campaign.answers.last_id(), last and (last.number, last.status), self.campaign.learner
        if self._past[0] != key:
            ruled = self._ruled()
            self._past = key, _Past(self._records(ruled), ruled, self.rounds_of_now())
        return self._past[1]

    def rounds_of_now(self) -> set[int]:
        """Return the numbers of the rounds on the pool of now since the learner in use was switched to."""
        learner, newest_first = self.campaign.learner, reversed(self.campaign.rounds.all())
        since = takewhile(lambda each: self.campaign.learner_in(each) == learner, newest_first)
        return {each.number for each in since if self._is_here(each)}

    def accuracy_before(self) -> Estimate | None:
        """Estimate the accuracy on the pool before the last move, in its last five rounds; None without a move."""
        closed = [each for each in self.campaign.rounds.all() if each.status == "closed"]
        pools = [each.pool_fingerprint for each in closed if not self._is_here(each)]
        of_pool = {each.number for each in closed if pools and each.pool_fingerprint == pools[-1]}
        records = [each for each in self.history(every_model=True) if each.number in of_pool]
        return accuracy(records, rounds=5) if records else None

    def _records(self, ruled: "_Ruled") -> list[RoundRecord]:
        sizes = self.campaign.rounds.batch_sizes()
        return [
            RoundRecord(
                number=each.number,
                labels=each.labels,
                explore_correct=sum(right for right, _ in ruled.get(each.number, ())),
                explore_asked=len(ruled.get(each.number, ())),
                hours=self._hours(datetime.fromisoformat(each.frozen_at)),
                never_asked=each.n_rows - each.stop_set - each.excluded - sizes.get(each.number, 0),
                **_known((each.notes or {}).get("measured", {})),
            )
            for each in self.campaign.rounds.all()
            if each.status == "closed"
        ]

    def _ruled(self) -> "_Ruled":
        drawn, known = self.campaign.rounds.explore_predictions(), self.labels()
        ruled: _Ruled = {}
        for row, given in zip(known.rows.tolist(), known.codes.tolist(), strict=True):
            if row in drawn:
                number, code = drawn[row]
                ruled.setdefault(number, []).append((code == given, given))
        return ruled

    def unskilled(self) -> str:
        """Return, in words, that naming one class for all records beats the model; empty where it does not, clearly.

        By the newest explore answers of rounds on the pool of now since the last switch of the learner, whole rounds
        until there are a hundred.
        """
        past, newest = self._read_past(), list[tuple[bool, int]]()
        for number, ruled in sorted(past.ruled.items(), reverse=True):
            if number in past.of_now and len(newest) < NEWEST:
                newest += ruled
        right, codes = [each for each, _ in newest], [code for _, code in newest]
        code = beaten_by_one_class(right, codes)
        if code is None:
            return ""
        name = self.campaign.settings.classes[code]
        return (
            f"Of the newest {len(newest):,} explore answers the model predicted {sum(right):,} rightly, and {name!r}"
            f" for all would have been right {codes.count(code):,} times: what is asked may mislead the learner, or"
            " it cannot tell these classes apart. Ask by the strategy random for some rounds, and try another learner,"
            " such as forest"
        )

    def _hours(self, moment: datetime) -> float:
        return (moment - self.campaign.created_at).total_seconds() / 3600

    # -- what may be asked -------------------------------------------------------------------------------------------

    def never_asked(self, stop_set: int, current: Round | None = None) -> Rows:
        """Return rows excluded from selection: asked, answered, gold, stop set, reserved; ascending.

        With `current`, as they were when this round was frozen.
        """
        return self.held_back(self.campaign.rounds.excluded_rows(current), stop_set)

    def held_back(self, excluded: Rows, stop_set: int) -> Rows:
        """Add the stop set and the reserved rows to other excluded rows; ascending."""
        return np.union1d(excluded, np.append(self.stop_rows(stop_set), self.reserved))

    def stop_rows(self, count: int) -> Rows:
        """Return the rows of a stop set of this size, ascending; the same ones for the whole campaign."""
        # Of the pool as it was when the campaign began: rows that are appended change no choice.
        draws = uniform_rows(self.campaign.n_rows, np.empty(0, np.int64), self.campaign.settings.random_state, STOP_SET)
        return np.sort(np.fromiter(islice(draws, count), np.int64))

    @property
    def budget(self) -> int | None:
        """Labels that may be asked for in all; None without such a criterion."""
        return label_budget(self.criteria)

    def left(self, labels: int) -> int:
        """Return how many more labels may be asked for, where `labels` are known."""
        return self.campaign.n_rows if self.budget is None else self.budget - labels

    def room(self, *, held: bool = False) -> int:
        """Return how many more records the next batch may hold: labels of the last batch's rest are still to come.

        The rest before that one is not served any more when the next batch opens.

        Parameters
        ----------
        held : bool, default=False
            Count records that somebody holds now as labelled, too.
        """
        rounds = self.campaign.rounds
        with self.campaign.database.snapshot():
            last = rounds.last
            opened = 0 if last is None else last.number if last.opened_at is not None else last.number - 1
            coming = [rows for number, rows in rounds.rest_rows().items() if number == opened]
            return self.left(self._to_be_known(*coming, *([rounds.in_hand()] if held else [])))

    def _to_be_known(self, *coming: Rows) -> int:
        """Count the records that are labelled, and those without a label among the rows `coming`."""
        return len(np.unique(np.concatenate([self.labels().rows, *coming])))

    # -- stopping ----------------------------------------------------------------------------------------------------

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return what ends the campaign, or could: an empty pool, a manager's stop, else its criteria."""
        if self._exhausted():
            reason = "every row of the pool was asked or cannot be"
            if invalid := invalid_in(self.campaign.rounds.last):
                reason += f": {invalid:,} {UNUSABLE}"
            return (Verdict("pool_exhausted", True, 0, 0, reason),)
        told = Control(self.campaign).in_force
        if told is not None and told.act == "stop":
            reason = f"{told.person} stopped the campaign on {told.at:%Y-%m-%d at %H:%M} UTC; dal resume goes on"
            return (Verdict("stopped", True, None, 0, reason),)
        return self.judged(self.criteria) if self.criteria else ()

    def judged(self, criteria: Sequence[Criterion]) -> tuple[Verdict, ...]:
        """Judge criteria by the history, the labels and the time of now."""
        history, known, hours = self.history(), len(self.labels().rows), self._hours(datetime.now(UTC))
        return tuple(criterion.judge(history, known, hours) for criterion in criteria)

    def advice(self) -> tuple[Verdict, ...]:
        """Judge the criteria that the campaign did not choose, at their defaults; they end nothing."""
        return self.judged(advice(self.criteria))

    def first_stops(self) -> dict[str, int]:
        """Return after which round each criterion, chosen or not, would have ended the campaign first."""
        history, stops = self.history(), {}
        for criterion in (*self.criteria, *advice(self.criteria)):
            if (number := first_stop(criterion, history)) is not None:
                stops[criterion.judge(history, 0, 0.0).criterion] = number
        return stops

    def judged_so_far(self) -> Iterator[tuple[str, list[Verdict]]]:
        """Yield each criterion of the campaign as text, with its verdicts after each round and, last, its verdict now.

        The newest round has none but that of now: its labels may still come in.
        """
        history = self.history()
        for text, criterion, now in zip(
            self.campaign.settings.stop, self.criteria, self.judged(self.criteria), strict=True
        ):
            yield text, [*as_they_ended(criterion, history), now]

    def _exhausted(self) -> bool:
        """Return whether nothing is left to ask: no row, or none that the last scan could find."""
        last = self.campaign.rounds.last
        if last is None or last.status != "closed":
            return False
        # By the rows that the round froze: telling where a campaign stands takes no look at its pool.
        held_back = self.never_asked(last.stop_set)
        spent = not self.campaign.rounds.batch_size(last.number) or (held_back < last.n_rows).sum() >= last.n_rows
        return bool(spent) and self.grown_pool().n_rows <= last.n_rows


def invalid_in(round: Round | None) -> int:
    """Return how many records the scan of a round could not use."""
    return int(((round and round.summary) or {}).get("invalid", 0))


def _left(round: Round) -> int:
    """Return out of how many rows a round could draw: as many as it could find valid, if it has not scanned all."""
    return round.n_rows - round.stop_set - round.excluded - invalid_in(round)


def _unmeasured(record: RoundRecord) -> RoundRecord:
    """Return a record of the round's counts alone."""
    return RoundRecord(record.number, record.labels, 0, 0, record.hours, record.never_asked)


def _known(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements that this version knows.

    JSON in the database may gain keys without a new version of the tables: a reader takes the known ones.
    """
    return {name: measured[name] for name in MEASURED if name in measured}


@dataclass(frozen=True)
class ClassBalance:
    """A class with a share that it is to have.

    Attributes
    ----------
    name : str
    share : float
        Wanted, of all labels.
    labels, of : int
        Labels of the class, and of all classes.
    round : int
        The newest round with a batch.
    quota : int or None
        Records of its batch that were to be predicted to be of the class; None where it was chosen without a model.
    predicted : int
        Records of it that the strategy chose, and that were predicted to be of the class.
    answered, answers : int
        Labels of the class, and of all classes, among the records of it that the strategy chose.
    """

    name: str
    share: float
    labels: int
    of: int
    round: int
    quota: int | None
    predicted: int
    answered: int
    answers: int

    @property
    def text(self) -> str:
        """The balance of the class in a line."""
        now = f"{self.labels / self.of:.1%} of {self.of:,} labels" if self.of else "no label yet"
        text = f"balance of {self.name}: {self.share:.1%} wanted, {now}; round {self.round}: "
        if self.quota is None:
            return f"{text}chosen without a model, so that none were to be predicted so"
        answers = f"{self.answered:,} of {self.answers:,} answers are"
        return f"{text}{self.quota:,} to be predicted so, {self.predicted:,} asked, {answers}"


@dataclass(frozen=True)
class Status:
    """The state of a campaign, for people to read.

    Attributes
    ----------
    round, status
        Of the newest round.
    asked, labels, pending : int
        Records ever asked, records that have a label, and records of the open batch that wait for answers.
    per_class : dict of str to int
        Labels of each class.
    accuracy : Estimate
        By the user's holdout, else by the explore answers of the last five rounds.
    agreement : Agreement
        How far people agree.
    people : tuple of Work
        The work of each person, by name.
    machines : tuple of MachineWork
        The work of each machine, by name.
    gold : dict of str to tuple of int
        Of each annotator, right answers to gold records, and all.
    courses : tuple of Course
        Each person's answers over time, as far as gold records or others judge them.
    verdicts : tuple of Verdict
        Verdicts of the campaign's own stopping criteria.
    advice : tuple of Verdict
        Verdicts of other criteria, at their defaults.
    first_stops : dict of str to int
        The round after which each criterion, of both kinds, would have ended the campaign first. Criteria that would
        not are left out.
    shares : dict of str to Estimate
        Share of each class in the pool, by the explore answers.
    bias : str
        Which classes are over- and under-represented among the labels, in words; empty where none clearly is.
    balance : tuple of ClassBalance
        The classes with a share of the labels as a target, the farthest below it first.
    notes : tuple of str
        Warnings of the learner's last fit.
    learner : str
        The campaign's learner, with what its last fit chose by the labels, such as a penalty.
    switched : str
        The last change of the learner, in words; empty where there was none.
    overtaken : str
        That another learner is better than the one in use, by the newest comparison, in words; empty where none is.
    left_out : str
        How many labels that fit could not use, in words; empty where it used all.
    trusted : str
        How far that fit has trusted the labels of chosen records, in words; empty where it did fully.
    one_class : str
        Why batches are chosen by coverage though there are labels, in words; empty where they are not.
    before : str
        The accuracy on the pool that the campaign moved away from, in words; empty where it never moved.
    unskilled : str
        That naming one class for all records beats the model, in words; empty where it does not, clearly.
    scored : str
        Which part of the pool the newest round by waves has scored, in words; empty where rounds score all of it.
    compared : str
        By which embeddings of the model records were compared last, in words; empty where by their features.
    again : str
        About how many labelled records the newest round asks another person, in words; empty where that is not chosen.
    rest : str
        How many records of earlier rounds wait that the newest one does not wait for, in words; empty where none do.
    """

    round: int
    status: Step
    asked: int
    labels: int
    pending: int
    per_class: dict[str, int]
    accuracy: Estimate
    agreement: Agreement
    people: tuple[Work, ...]
    machines: tuple[MachineWork, ...]
    gold: dict[str, tuple[int, int]]
    courses: tuple[Course, ...]
    verdicts: tuple[Verdict, ...]
    advice: tuple[Verdict, ...]
    first_stops: dict[str, int]
    shares: dict[str, Estimate]
    bias: str
    balance: tuple[ClassBalance, ...]
    notes: tuple[str, ...]
    learner: str
    switched: str
    overtaken: str
    left_out: str
    trusted: str
    one_class: str
    unskilled: str
    scored: str
    compared: str
    again: str
    rest: str
    before: str


def status(campaign: CampaignStore) -> Status:
    """Read where a campaign stands. Changes nothing and takes no lock."""
    return status_of(View(campaign))


def status_of(view: View) -> Status:
    """Read where a campaign stands, by a view that was used before and need not read all of it again."""
    with view.campaign.database.snapshot():
        return _status_of(view)


def _status_of(view: View) -> Status:
    campaign = view.campaign
    position, codes, classes = view.position(), view.labels().codes, campaign.settings.classes
    fits = [each for each in campaign.rounds.all() if each.notes]
    notes = tuple(str(note) for note in (fits[-1].notes or {}).get("warnings", ())) if fits else ()
    before, counts = view.accuracy_before(), np.bincount(codes, minlength=len(classes)).tolist()
    return Status(
        round=position.round,
        status=position.step,
        asked=len(campaign.rounds.asked_rows()),
        labels=len(codes),
        pending=position.pending,
        per_class=dict(zip(classes, counts, strict=True)),
        accuracy=accuracy(view.history(), rounds=5),
        agreement=campaign.answers.standing().agreement,
        people=tuple(Activity(campaign).work()),
        machines=tuple(Machines(campaign).work()),
        gold=_gold_results(campaign),
        courses=Quality(campaign).courses,
        verdicts=view.verdicts(),
        advice=view.advice(),
        first_stops=view.first_stops(),
        shares=dict(zip(classes, view.shares(), strict=True)),
        bias=represented(of_classes(classes, counts, view.explored())),
        balance=view.balance(),
        notes=notes,
        learner=_learner(campaign.learner, (fits[-1].notes or {}).get("learner", {}) if fits else {}),
        switched="".join(each.text for each in Choice(campaign).switches()[-1:]),
        overtaken=Choice(campaign).warning(),
        left_out=left_out(fits[-1]) if fits else "",
        trusted=trusted(fits[-1]) if fits else "",
        one_class=one_class(view),
        unskilled=view.unskilled(),
        scored=scored(campaign.rounds.all()),
        compared=compared(campaign.rounds.all()),
        again=second_opinions(campaign),
        rest=rest_text(campaign),
        before="" if before is None else f"accuracy before the move to {campaign.settings.pool}: {before.text}",
    )


def _learner(name: str, fitted: Mapping[str, str]) -> str:
    """Return the learner's name, with what its last fit chose; the learner may be another one since."""
    chosen = fitted.get("chosen") if fitted.get("name") == name else None
    return f"{name}, {chosen}" if chosen else name


@dataclass(frozen=True)
class Pause:
    """The time between two batches by its use, in seconds.

    Attributes
    ----------
    round : int
        The round whose batch came after it.
    idle : float
        From the closing of the round before to the start of a computation.
    train, score, select : float
    """

    round: int
    idle: float
    train: float
    score: float
    select: float


def pauses(past: Sequence[Round]) -> list[Pause]:
    """Split the time before each opened batch, except the first, into idleness, training, scoring and selecting."""
    found = []
    for before, each in pairwise(past):
        if before.closed_at is None or each.opened_at is None:
            continue
        closed, frozen, opened = map(datetime.fromisoformat, (before.closed_at, each.frozen_at, each.opened_at))
        # A cold start trains nothing; rounds of an older version do not tell when they were fitted and scanned.
        fitted = datetime.fromisoformat(each.fitted_at) if each.fitted_at else frozen
        scanned = datetime.fromisoformat(each.scanned_at) if each.scanned_at else fitted
        parts = (frozen - closed, fitted - frozen, scanned - fitted, opened - scanned)
        # A clock that was set back meanwhile makes no part negative.
        idle, train, score, select = (max(0.0, part.total_seconds()) for part in parts)
        found.append(Pause(each.number, idle=idle, train=train, score=score, select=select))
    return found


def left_out(fitted: Round) -> str:
    """Return how many labels the fit of a round could not use, in words; empty where it used all, or was not done."""
    count = int((fitted.notes or {}).get("invalid_labeled", 0))
    if not count:
        return ""
    return (
        f"round {fitted.number} was trained on {fitted.trained_on:,} labels; {count:,} were left out, because features"
        " of their records are missing or infinite"
    )


def trusted(fitted: Round) -> str:
    """Return, in words, how far a round's fit has trusted the labels of chosen records; empty where it did fully."""
    told, words = (fitted.notes or {}).get("trust"), list[str]()
    if not told:
        return ""
    if told["reason"]:
        words.append(f"whether asked labels are to count less is not tried, as {told['reason']}")
    elif told["weight"] < 1:
        words.append(
            f"asked labels count 1/{1 / told['weight']:.0f}: so it predicts {told['judged']:,} random labels better, by"
            " cross-validation"
        )
    if told["beaten"]:
        words.append(
            f"one class for all of the {told['judged']:,} random labels is right more often than the learner is on"
            " them by cross-validation"
        )
    if told["explore"] > fitted.explore:
        words.append(f"{told['explore']:.0%} of the batch is drawn at random, until that changes")
    return f"round {fitted.number}: {'; '.join(words)}" if words else ""


def scored(past: Sequence[Round]) -> str:
    """Return, in words, which part of the pool the newest scan has scored by waves; empty where it scored all of it."""
    scans = [each for each in past if each.summary]
    summary = scans[-1].summary if scans else None
    if summary is None or not (reach := summary.get("reach")):
        return ""
    newest = scans[-1]
    text = (
        f"round {newest.number} scored {reach['blocks'] / reach['n_blocks']:.1%} of the pool in {reach['waves']:,}"
        f" wave{'s' if reach['waves'] > 1 else ''}, and {reach['carried']:,} candidates of a round before"
    )
    if summary["last"] is not None:
        text += f"; its best {summary['total']:,} records score {summary['last']:.3f} or more"
        full = next((each for each in reversed(scans) if _scored_all_like(each, newest)), None)
        if full is not None and full.summary:
            text += f" ({full.summary['last']:.3f} in round {full.number}, which scored all)"
    if reach["bound"] is not None:
        text += f", and are within the best {reach['bound']:.2%} of what may be asked at 95 %"
    elif reach.get("copied"):
        text += ", and some of them have copies, so that the share of the pool that ranks before them is unknown"
    if reach["reached"] is None:
        text += "; too few could be asked, or no score is above 0, so that all of the pool was scored"
    elif reach["reached"] < reach["floor"]:
        text += f"; no more of the pool reaches the floor {reach['floor']:g}"
    return text


def _scored_all_like(each: Round, newest: Round) -> bool:
    """Return whether a round scored the whole pool in the way in which the newest one scored a part of it."""
    if not each.model or each.waves or (each.summary or {}).get("last") is None:
        return False

    def way(of: Round) -> tuple[object, ...]:
        return of.pool_fingerprint, of.strategy, (of.summary or {}).get("total")

    return way(each) == way(newest)


def rest_text(campaign: CampaignStore) -> str:
    """Return, in words, how many records wait that the newest round does not wait for; empty where there are none."""
    last, rests = campaign.rounds.last, campaign.rounds.rest_rows()
    if last is None or not rests:
        return ""
    count = sum(len(rows) for rows in rests.values())
    of = f"round{'s' if len(rests) > 1 else ''} {' and '.join(map(str, sorted(rests)))}"
    records = f"{count:,} record{'s' if count > 1 else ''} of {of}"
    # Nobody is served anything in a pause, and once a round is closed a criterion may have ended the campaign.
    if last.status == "closed" or Control(campaign).in_force is not None:
        return f"{records} still lack{'' if count > 1 else 's'} answers"
    if last.status == "open":
        return f"before round {last.number}, people are served {records}"
    return f"round {last.number} is being made ready while people are served {records}"


def compared(past: Sequence[Round]) -> str:
    """Return, in words, by which embeddings of its model the newest scan compares records; empty for features."""
    summary = next((each.summary for each in reversed(past) if each.summary), {})
    if "inner" not in summary:
        return ""
    return f"records are compared by the {summary['inner']:,} numbers that {summary['kind']} makes of each"


def one_class(view: View) -> str:
    """Return, in words, that all labels are of one class, so that batches are chosen by coverage of the pool.

    A first batch often holds one class where the others are rare, and no learner can be fitted on it. Empty where the
    labels are of several classes, where there are none yet, and where the strategy asks no learner, such as ``random``.
    """
    settings, codes = view.campaign.settings, view.labels().codes
    if len(np.unique(codes)) != 1 or not _asks_a_learner(settings.strategy):
        return ""
    only = settings.classes[int(codes[0])]
    return (
        f"All {len(codes):,} labels are {only!r}, and a learner needs two classes: batches are chosen by coverage of"
        " the pool until a record of another class is labelled, asked or imported"
    )


def _asks_a_learner(strategy: str) -> bool:
    """Return whether a strategy scores by a model; False where it is not found.

    A strategy of one's own need not be installed where the pages are served.
    """
    from dal.selection.strategy import Strategy  # it brings SciPy, which a status needs in this case only

    try:
        return Strategy.named(strategy).score != "random"
    except SettingsError:
        return False


def _gold_results(campaign: CampaignStore) -> dict[str, tuple[int, int]]:
    known, answers = campaign.answers.gold(), campaign.answers.to_gold()
    results: dict[str, tuple[int, int]] = {}
    for row, annotator, code in zip(answers.rows.tolist(), answers.annotators, answers.labels.tolist(), strict=True):
        right, of = results.get(annotator, (0, 0))
        results[annotator] = right + (code == known[row]), of + 1
    return results
