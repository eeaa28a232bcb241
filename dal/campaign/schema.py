"""The tables of a campaign's database, and the values that come out of them."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
    text,
)

VERSION = 11
"""Raised with every change of the tables, together with a step in `dal.campaign.migrations`."""

SKIPPED = -1
"""Stands for a label where an annotator skipped the record."""

RETRACTED = -2
"""Stands for a label where an annotator took the answer back; as a label it is never given out."""

# By code points, as SQLite and Python order texts, whatever the server's language.
_Name = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData()

campaign = Table(
    "campaign",
    metadata,
    # Read before anything else is known about the database: this column stays, whatever changes.
    Column("schema_version", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("pool_fingerprint", Text, nullable=False),
    Column("n_rows", BigInteger, nullable=False),
    # Label codes are positions in this list; a list reordered in the TOML would relabel every answer.
    Column("classes", Text, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("pool_fingerprint", Text, nullable=False),
    Column("n_rows", BigInteger, nullable=False),
    Column("k", Integer, nullable=False),
    Column("explore", Float, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("last_answer", BigInteger, nullable=False),
    Column("labels", BigInteger, nullable=False),
    Column("excluded", BigInteger, nullable=False),
    Column("excluded_digest", Text, nullable=False),
    Column("parent_model", Text),
    Column("frozen_at", Text, nullable=False),
    Column("model", Text),
    Column("trained_on", BigInteger),
    Column("notes", Text),
    Column("candidates", Text),
    Column("summary", Text),
    # Rows held back from asking, for ever the same: criteria compare models on them.
    Column("stop_set", Integer, nullable=False, server_default=text("0")),
    # JSON; null where nothing was searched for.
    Column("search", Text),
    # JSON; null where the whole pool is scored.
    Column("waves", Text),
    # JSON, by class code; null where no class is to have a share.
    Column("balance", Text),
    # The learner's name; null in rounds of older versions, see `CampaignStore.learner_in`.
    Column("learner", Text),
    Column("fitted_at", Text),
    Column("scanned_at", Text),
    Column("opened_at", Text),
    Column("closed_at", Text),
    CheckConstraint("status in ('frozen', 'fitted', 'scanned', 'open', 'closed')"),
)

asked = Table(
    "asked",
    metadata,
    # The primary key is the promise that no record is asked twice.
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("record_id", Text, nullable=False),
    Column("round", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("score", Float),
    Column("predicted", Integer),
    Column("explore", Boolean, nullable=False),
    # The model's probability of `predicted`, for people to see; the score says how much a record is worth asking.
    Column("confidence", Float),
    # Chosen beyond the batch: served when the batch runs out, and not waited for.
    Column("reserve", Boolean, nullable=False, server_default=false()),
    # How a search found it, by examples or a condition; null for all others.
    Column("found_by", Text),
    Index("asked_by_rank", "round", "rank", unique=True),
)

answers = Table(
    "answers",
    metadata,
    # SQLite gives ids that only grow to an INTEGER key alone, never to a BIGINT.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("row", BigInteger, nullable=False),
    Column("record_id", Text, nullable=False),
    Column("annotator", _Name, nullable=False),
    Column("status", Text, nullable=False),
    Column("label", Integer),
    Column("round", Integer, ForeignKey("rounds.number")),
    Column("source", Text, nullable=False),
    # By the annotator's clock, which may be wrong; `received_at` is by the database's.
    Column("answered_at", Text, nullable=False),
    Column("received_at", Text, nullable=False),
    Column("shown_at", Text),
    Column("lead_time", Float),
    Column("skip_reason", Text),
    # What was suggested is what the batch's model predicted: `asked.predicted` and `confidence`, and `rounds.model`.
    Column("suggestion_shown", Boolean),
    # Given without a lease that was still held, or to a closed batch whose rest was not served on.
    Column("late", Boolean, nullable=False, server_default=false()),
    # Chosen by the client, so that an answer sent again is told from another one; files have none.
    Column("event_id", Text, unique=True),
    # A machine's, that counts as the label while no person has labelled the record.
    Column("alone", Boolean, nullable=False, server_default=false()),
    CheckConstraint(
        "(status = 'submitted' and label is not null) or (status in ('skipped', 'retracted') and label is null)"
    ),
    Index("answers_by_annotator", "row", "annotator", "id"),
    sqlite_autoincrement=True,
)

# Who is looking at which record. The only table whose lines come and go: losing it costs nobody an answer.
leases = Table(
    "leases",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("annotator", _Name, primary_key=True),
    # Seconds since 1970 by the database's clock.
    Column("expires_at", Double, nullable=False),
    Index("leases_by_annotator", "annotator"),
)

# Labelled records about which a round asks another person, beside its batch.
again = Table(
    "again",
    metadata,
    Column("row", BigInteger, ForeignKey("asked.row"), primary_key=True, autoincrement=False),
    Column("round", Integer, ForeignKey("rounds.number"), primary_key=True, autoincrement=False),
    # People who are to have answered it in all.
    Column("places", Integer, nullable=False),
)

# Records that people want more of: the round that is frozen next searches for them.
examples = Table(
    "examples",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("record_id", Text, nullable=False),
    Column("person", _Name, nullable=False),
    Column("at", Text, nullable=False),
)

# Records whose label is known, mixed into the queue to see how well people answer.
gold = Table(
    "gold",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("record_id", Text, nullable=False),
    Column("label", Integer, nullable=False),
    # The newest round when it was added, 0 before the first: a round that is older had not left it out.
    Column("since", Integer, nullable=False),
    Column("added_at", Text, nullable=False),
)

# One line a person: answers, leases and tokens hold `name`, the first spelling that came; `key` is `texts.folded`.
people = Table(
    "people",
    metadata,
    Column("key", _Name, primary_key=True),
    Column("name", _Name, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    # SHA-256 of the token: who reads the database cannot log in with it.
    Column("token_hash", Text, primary_key=True),
    Column("name", _Name, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("revoked_at", Text),
    CheckConstraint("role in ('annotator', 'manager')"),
)

# Annotators that are programs; all others are people. One whose answers are there never changes its kind.
machines = Table(
    "machines",
    metadata,
    # As `people.name` has it.
    Column("name", _Name, primary_key=True),
    # Of one answer, in the user's currency; null where nobody said.
    Column("cost", Double),
    # Answers that it may give in all; null for any number.
    Column("cap", BigInteger),
)

# Browsers that came in with a token; a logout deletes the line.
sessions = Table(
    "sessions",
    metadata,
    # SHA-256 of what the cookie holds: who reads the database cannot take a session over.
    Column("session_hash", Text, primary_key=True),
    Column("token_hash", Text, ForeignKey("annotators.token_hash"), nullable=False),
    # Seconds since 1970 by the database's clock.
    Column("expires_at", Float(53), nullable=False),
)

# What managers told the campaign to do; the newest that lasts is in force.
actions = Table(
    "actions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("act", Text, nullable=False),
    Column("person", Text, nullable=False),
    Column("at", Text, nullable=False),
    CheckConstraint("act in ('pause', 'resume', 'close', 'stop')"),
)

# Changes of the learner; the newest is in force, from the round on that is frozen next.
switches = Table(
    "switches",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("learner", Text, nullable=False),
    Column("before", Text, nullable=False),
    # The newest round then, which keeps the learner before; 0 before the first.
    Column("since", Integer, nullable=False),
    Column("labels", BigInteger, nullable=False),
    Column("person", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Text, nullable=False),
)

# Comparisons of learners, as JSON, with the last answer that they knew.
comparisons = Table(
    "comparisons",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("last_answer", BigInteger, nullable=False),
    Column("result", Text, nullable=False),
    Column("at", Text, nullable=False),
)

imports = Table(
    "imports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, index=True),
    # Two people who agree on a whole batch hand in the same bytes: whose they are belongs to what they are. A key.
    Column("annotator", _Name, nullable=False),
    Column("source", Text, nullable=False),
    Column("imported_at", Text, nullable=False),
    Column("new", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("same", BigInteger, nullable=False),
    Column("volunteered", BigInteger, nullable=False),
    Column("conflicts", BigInteger, nullable=False),
    # Lines that were refused: some day they may be taken, when the pool has grown, say.
    Column("rejected", BigInteger, nullable=False, server_default=text("0")),
)

exports = Table(
    "exports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("last_answer", BigInteger, nullable=False),
    Column("exported_at", Text, nullable=False),
)

# Where an import waits to be compared. Temporary tables take no lock that anyone else could wait for,
# so a long file is read and looked up before the campaign is locked for the short comparison.
staged = Table(
    "staged",
    MetaData(),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("line", Integer),
    Column("row", BigInteger, nullable=False),
    Column("record_id", Text, nullable=False),
    Column("annotator", _Name, nullable=False),
    Column("value", Integer, nullable=False),
    Column("answered_at", Text, nullable=False),
    Column("received_at", Text, nullable=False),
    Column("shown_at", Text),
    Column("lead_time", Float),
    Column("skip_reason", Text),
    Column("suggestion_shown", Boolean),
    prefixes=["TEMPORARY"],
)

Status = Literal["frozen", "fitted", "scanned", "open", "closed"]
FoundBy = Literal["like", "where"]
Step = Status | Literal["none"]
"""The step of a campaign's newest round; ``none`` before the first round."""


@dataclass(frozen=True)
class Search:
    """A round's search: for a share of its batch, beside the records that its strategy chooses.

    Attributes
    ----------
    rows : tuple of int
        Records to find alike ones of, ascending.
    examples : tuple of tuple of float
        Features of others, which are not in the pool.
    where : str or None
        A condition that the records must meet.
    share : float
        Of the batch; at most what the explore share leaves.
    marked : tuple of int
        Rows whose marks are used up when the batch opens, see :class:`dal.campaign.examples.Examples`.
    """

    rows: tuple[int, ...] = ()
    examples: tuple[tuple[float, ...], ...] = ()
    where: str | None = None
    share: float = 1.0
    marked: tuple[int, ...] = ()

    @property
    def by(self) -> "FoundBy":
        """The way in which it finds records, as their provenance tells it."""
        return "like" if self.n_examples else "where"

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self.rows) + len(self.examples)

    @classmethod
    def of_json(cls, text: str) -> "Search":
        """Read what `as_json` wrote."""
        told = json.loads(text)
        examples = tuple(tuple(each) for each in told["examples"])
        return cls(tuple(told["rows"]), examples, told["where"], told["share"], tuple(told.get("marked", ())))

    def as_json(self) -> str:
        """Write JSON."""
        return json.dumps(vars(self))


@dataclass(frozen=True)
class Round:
    """A round, with everything that was frozen when it began.

    Attributes
    ----------
    number : int
        From 1.
    status : {"frozen", "fitted", "scanned", "open", "closed"}
    pool_fingerprint, n_rows, k, explore, seed, strategy, stop_set, search, waves, balance, learner
        As passed to `Rounds.freeze`; `explore` is a share.
    last_answer : int
        Id of the last answer that belongs to the round; 0 where there was none. Later ones belong to the next round.
    labels : int
        Records that had a label then.
    excluded : int
        Records that had been asked or answered then.
    excluded_digest : str
        SHA-256 of their rows, ascending, as little-endian int64.
    parent_model : str or None
        Digest of the model before this round's.
    frozen_at, fitted_at, scanned_at, opened_at, closed_at : str or None
        When each step was committed; UTC, ISO 8601.
    model : str or None
        Digest of the round's model.
    trained_on : int or None
        Labels that it was fitted to.
    notes : dict or None
        The notes that were saved beside the model.
    candidates : str or None
        Digest of the scan's candidates.
    summary : dict or None
        The scan's summary.
    """

    number: int
    status: Status
    pool_fingerprint: str
    n_rows: int
    k: int
    explore: float
    seed: int
    strategy: str
    last_answer: int
    labels: int
    excluded: int
    excluded_digest: str
    parent_model: str | None
    frozen_at: str
    model: str | None
    trained_on: int | None
    notes: dict[str, Any] | None
    candidates: str | None
    summary: dict[str, Any] | None
    stop_set: int
    search: Search | None
    waves: dict[str, Any] | None
    balance: tuple[float, ...] | None
    learner: str | None
    fitted_at: str | None
    scanned_at: str | None
    opened_at: str | None
    closed_at: str | None

    @property
    def explore_share(self) -> float:
        """The share of the batch that is drawn uniformly: the frozen one, or a larger one that the fit has noted."""
        share: float = (self.notes or {}).get("trust", {}).get("explore", self.explore)
        return share


@dataclass(frozen=True)
class Asked:
    """A record of a batch; `rank` counts from 0, `predicted` is a class code and `confidence` its probability.

    `found_by` says how a search found it; None where the strategy or the explore share chose it.
    """

    row: int
    record_id: str
    rank: int
    score: float | None
    predicted: int | None
    explore: bool
    confidence: float | None = None
    reserve: bool = False
    found_by: FoundBy | None = None

    @property
    def chosen_by(self) -> Literal["strategy", "explore", "like", "where"]:
        """The way in which the record came to be asked."""
        return "explore" if self.explore else self.found_by or "strategy"


@dataclass(frozen=True)
class Answer:
    """The answer of one annotator to one record.

    Parameters
    ----------
    row : int
        Row of the record.
    record_id : str
        The user's key of the record.
    annotator : str
        Who answered.
    status : {"submitted", "skipped"}
    label : int or None
        Class code; None where skipped.
    answered_at : datetime, optional
        With a time zone. By default the time at which the answer is added.
    line : int, optional
        Where the answer stands in its file; reported with each fault of the answer, and not stored.
    lead_time : float, optional
        Seconds that it took.
    shown_at : datetime, optional
        When the record was put before the annotator, with a time zone.
    skip_reason : str, optional
        Why it was skipped, such as ``"cannot tell"``.
    suggestion_shown : bool, optional
        Whether the annotator saw what the model predicted.
    """

    row: int
    record_id: str
    annotator: str
    status: Literal["submitted", "skipped"]
    label: int | None = None
    answered_at: datetime | None = None
    line: int | None = None
    lead_time: float | None = None
    shown_at: datetime | None = None
    skip_reason: str | None = None
    suggestion_shown: bool | None = None


@dataclass(frozen=True)
class Answers:
    """The latest answer of each annotator to each record, as columns ordered by row, then annotator.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
    annotators : list of str
    labels : ndarray of int64, shape (n,)
        Class codes; `SKIPPED` (-1) where skipped.
    ids : ndarray of int64, shape (n,)
        Ids of the answers: they grow with the order in which the answers came.
    """

    rows: npt.NDArray[np.int64]
    annotators: list[str]
    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Event:
    """One line of the log of answers, which is never changed.

    Attributes
    ----------
    id : int
        Grows with the order in which answers came.
    row, record_id, annotator
        Which record, and who.
    status : {"submitted", "skipped", "retracted"}
        ``retracted``: the annotator took the answer to this record back.
    label : int or None
        Class code.
    round : int or None
        Whose batch the record is of; None where nobody had asked.
    source : str
        Where it comes from, such as ``"pages"`` or ``"file:batch-0001.csv"``.
    answered_at, received_at, shown_at : datetime or None
        UTC; the first and the last by the annotator's clock, the other one by the database's.
    lead_time : float or None
        Seconds.
    skip_reason : str or None
    suggested : int or None
        Class code that the batch's model had predicted.
    suggested_score : float or None
        Its probability.
    suggested_by : str or None
        Digest of that model.
    suggestion_shown : bool or None
        Whether the annotator saw it; None where it is not known.
    late : bool
        Given without a lease that was still held, or to a closed batch whose rest was not served on.
    machine : bool
        Whether the annotator is a program.
    alone : bool
        A machine's, that counts as the label while no person has labelled the record.
    event_id : str or None
        The client's own; None where it came in a file.
    """

    id: int
    row: int
    record_id: str
    annotator: str
    status: Literal["submitted", "skipped", "retracted"]
    label: int | None
    round: int | None
    source: str
    answered_at: datetime
    received_at: datetime
    shown_at: datetime | None
    lead_time: float | None
    skip_reason: str | None
    suggested: int | None
    suggested_score: float | None
    suggested_by: str | None
    suggestion_shown: bool | None
    late: bool
    machine: bool
    alone: bool
    event_id: str | None


@dataclass(frozen=True)
class ImportCounts:
    """The result of adding answers: each answer is `new`, `changed` or the `same` as the annotator's latest.

    `volunteered` counts those, of all three kinds, whose record no batch had asked; `conflicts` those kept out, and
    `rejected` the lines of a file that are no answers.
    """

    new: int = 0
    changed: int = 0
    same: int = 0
    volunteered: int = 0
    conflicts: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class AnswerFile:
    """The identity of an import: the file's bytes, and the annotator of the lines that name none."""

    name: str
    digest: str
    annotator: str
    take_conflicts: bool = False
    origin: str = "file"

    @property
    def source(self) -> str:
        """The source that answers from this file have."""
        return f"{self.origin}:{self.name}"

    def changes_nothing(self, before: ImportCounts | None) -> bool:
        """Return whether an import can change nothing, by the counts of the last one."""
        return before is not None and not before.rejected and not self.takes_conflicts_of(before)

    def takes_conflicts_of(self, before: ImportCounts) -> bool:
        """Return whether an import takes answers that were kept out before."""
        return self.take_conflicts and before.conflicts > 0


@dataclass(frozen=True)
class Conflict:
    """A line whose annotator answered elsewhere since the file was exported.

    The labels are codes, or `SKIPPED`; elsewhere also `RETRACTED`.
    """

    line: int
    record_id: str
    annotator: str
    label: int
    label_elsewhere: int
    source_elsewhere: str
    answered_at: str


@dataclass(frozen=True)
class Contradiction:
    """A line that disagrees with another one of the same file, record and annotator."""

    line: int
    record_id: str
    annotator: str
    first_line: int
    last_line: int


@dataclass(frozen=True)
class Imported:
    """The result of importing a file; of the lines kept out, the first ones are listed and all are counted."""

    counts: ImportCounts
    conflicts: tuple[Conflict, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    contradictory: int = 0
    seen: bool = False
    superseded: int = 0
