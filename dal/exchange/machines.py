"""Run a program on the open batch, as an annotator of its own kind.

The program reads JSON lines from its standard input, one a record, and writes JSON lines to its standard output, in
any order::

    {"record_id": "mail-7", "classes": ["ham", "spam"], "text": "You have won"}
    {"record_id": "mail-7", "label": "spam"}

A label of null skips the record, which people then answer. The program is run once for each few records, and each
answer is stored as it comes. A program that fails, and a process that is killed, lose at most the answers on their way.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from dal.campaign import Answers, Asked, CampaignStore
from dal.campaign.control import Control
from dal.campaign.machines import Machines
from dal.classes import UNLABELLED, Classes
from dal.errors import CampaignError, CampaignLocked, LabelError, SettingsError
from dal.exchange.files import Records, is_picture, items, sheet_of
from dal.exchange.formats import as_json, as_text, columns_for
from dal.exchange.program import Program
from dal.locks import locked
from dal.texts import brief, folded, parsed

OWN_KEYS = ("record_id", "classes", "image", "features", "label")
"""Keys that are no display fields."""

MOST_AT_ONCE = 10_000
"""Most records of one run of a program."""


@dataclass(frozen=True)
class Asking:
    """The outcome of asking a machine.

    Attributes
    ----------
    answers, skipped, alone : int
        Records that it answered now, and those of them that it skipped, and that need no person.
    unasked : int
        Records of the open batch that its cap left out.
    """

    answers: int = 0
    skipped: int = 0
    alone: int = 0
    unasked: int = 0


def ask_machine(
    campaign: CampaignStore,
    pool: Records,
    name: str,
    command: Sequence[str],
    *,
    cost: float | None = None,
    cap: int | None = None,
    at_once: int = 100,
    seconds: float = 300.0,
    progress: Callable[[int, int], None] | None = None,
) -> Asking:
    """Run a program on the records of the open batch that it has not answered, and store its answers.

    Run again after any end, it asks only for the records that have no answer of the machine.

    Parameters
    ----------
    campaign : CampaignStore
    pool : Records
        The campaign's pool.
    name : str
        The machine's, as an annotator; nobody else's.
    command : sequence of str
        The program and its arguments.
    cost : float, optional
        Of an answer, for the status; the last one that was given prices all answers.
    cap : int, optional
        Answers that the machine may give in this campaign; kept until it is changed.
    at_once : int, default=100
        Records of one run of the program.
    seconds : float, default=300
        Until a run must have ended.
    progress : callable, optional
        Called with the records that are answered, and of how many.

    Raises
    ------
    InputError
        If the name is a person's, or an argument cannot be used; the program was not run.
    ProgramError
        If the program fails, or answers what cannot be taken. Its answers up to there are kept.
    CampaignError
        If no batch is open, or the campaign is paused or stopped. Answers up to there are kept.
    CampaignLocked
        If another process asks the same machine.
    """
    if not command or shutil.which(command[0]) is None:
        raise SettingsError(f"`command` must name a program that can be run, got {' '.join(command)!r}; give its path")
    if not 1 <= at_once <= MOST_AT_ONCE:
        raise SettingsError(f"`at_once` must be from 1 to {MOST_AT_ONCE:,}, got {at_once}")
    if not 0 < seconds <= 86_400:
        raise SettingsError(f"`seconds` must be above 0 and at most 86,400, got {seconds}")
    _refuse_paused(campaign)
    current = campaign.rounds.current
    if current is None or current.status != "open":
        raise CampaignError("no batch is open; run dal next first")
    machines = Machines(campaign)
    machine = machines.enrol(name, cost=cost, cap=cap)
    found = Asking()
    with _only_one(campaign, machine.name):
        while True:
            # Looked up for each run of the program: people answer, pause and close while hours of runs go on.
            _refuse_paused(campaign)
            is_open = campaign.rounds.get(current.number).status == "open"
            waiting = machines.waiting(machine.name) if is_open else []
            left = machines.left(machine.name)
            wanted = waiting if left is None else waiting[:left]
            if not wanted:
                return Asking(found.answers, found.skipped, found.alone, len(waiting))
            block, total = wanted[:at_once], found.answers + len(wanted)
            trusted = machines.trusted_answers(machine.name)
            asked = _asked_for(campaign, pool, block)
            program = Program(command, seconds)
            with closing(_answers(program, asked, block, campaign.settings.classes)) as answers:
                for given in answers:
                    alone = machines.add(machine.name, given, trusted=trusted)
                    skipped = sum(code is None for _, code in given)
                    found = Asking(found.answers + len(given), found.skipped + skipped, found.alone + alone)
                    if progress is not None:
                        progress(found.answers, total)


def _refuse_paused(campaign: CampaignStore) -> None:
    if (told := Control(campaign).in_force) is not None:
        done = "paused" if told.act == "pause" else "stopped"
        raise CampaignError(f"{told.person} has {done} the campaign, and nobody is asked until dal resume")


@contextmanager
def _only_one(campaign: CampaignStore, name: str) -> Iterator[None]:
    """Hold a machine against other processes of this computer, which would pay for the same answers."""
    folder = campaign.directory / "machines" / hashlib.sha256(folded(name).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, folder / "lock"):
            yield
    except BlockingIOError as error:
        raise CampaignLocked(
            f"the machine {name!r} is being asked by process {error.strerror}: wait for it, or end it"
        ) from error


def _asked_for(campaign: CampaignStore, pool: Records, block: Sequence[Asked]) -> bytes:
    """Return records as JSON lines, with what people see of them; features where there is nothing to see."""
    nothing = np.empty(0, np.int64)
    sheet, classes = sheet_of(campaign, pool, 0), list(campaign.settings.classes)
    names, pictures = columns_for(pool.fields, OWN_KEYS), is_picture(pool)
    features = None
    if not names and not pictures:
        features = pool.take(np.array([each.row for each in block], np.int64)).reshape(len(block), -1)
    lines: list[bytes] = []
    rows = np.array([each.row for each in block], np.int64)
    for shown in items(pool, sheet, block, Answers(nothing, [], nothing, nothing), waiting=rows, pictures=pictures):
        for item in shown:
            fields: dict[str, object] = {"record_id": item.asked.record_id, "classes": classes}
            fields |= {name: as_json(item.shown[field]) for field, name in names.items()}
            if item.image is not None:
                fields["image"] = item.image
            if features is not None:
                fields["features"] = [as_json(value) for value in features[len(lines)].tolist()]
            lines.append(json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return b"".join(lines)


def _answers(
    program: Program, given: bytes, block: Sequence[Asked], classes: tuple[str, ...]
) -> Generator[list[tuple[Asked, int | None]]]:
    """Run a program, and yield its answers as they come; those before a fault are yielded before it is raised."""
    waiting, known, number = {each.record_id: each for each in block}, Classes(classes), 0
    asked = frozenset(waiting)
    with closing(program.replies(given)) as replies:
        for lines in replies:
            answers: list[tuple[Asked, int | None]] = []
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    record_id, code = _read(line, asked, waiting, known)
                except (ValueError, LabelError) as error:
                    if answers:
                        yield answers
                    raise program.error(f"must answer each record once, and line {number} {error}") from error
                answers.append((waiting.pop(record_id), code))
            if answers:
                yield answers
    if waiting:
        raise program.error(
            f"must answer each record, and left out {len(waiting):,} of {len(block):,}, such as"
            f" {brief(next(iter(waiting)))}; write null as the label of a record that it cannot tell"
        )


def _read(line: bytes, asked: frozenset[str], waiting: dict[str, Asked], classes: Classes) -> tuple[str, int | None]:
    """Read an answer: the id of a record that waits for one, and a class code, None for a skipped record."""
    fields = parsed(line)
    if not isinstance(fields, dict) or "record_id" not in fields or "label" not in fields:
        raise ValueError(f"is no JSON object with record_id and label: {brief(line.decode())}")
    record_id = as_text(fields["record_id"])
    if record_id not in asked:
        raise ValueError(f"is for record {brief(fields['record_id'])}, which was not asked")
    if record_id not in waiting:
        raise ValueError(f"answers record {brief(record_id)} again")
    try:
        code = classes.find(fields["label"])
    except LabelError as error:
        raise ValueError(f"has a label that cannot be taken: {error}; write null to skip a record") from error
    return record_id, None if code == UNLABELLED else code
