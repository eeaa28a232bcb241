"""The quality of the answers of people, read from all answers that count."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sqlalchemy import case, func

from dal.campaign import answers as ledger
from dal.campaign.people import by_people
from dal.campaign.schema import SKIPPED, answers
from dal.campaign.store import CampaignStore
from dal.evidence.quality import Apart, Course, apart, courses
from dal.evidence.votes import Floats, Integers, dawid_skene

READ_AT_ONCE = 16384


@dataclass(frozen=True)
class _Given:
    """The answers that count, of people alone; gold records among them."""

    rows: Integers
    annotators: list[str]
    labels: Integers
    times: Integers
    seconds: Floats


class Quality:
    """The quality of people's answers: over time, by their pace, and apart from how hard their records are.

    Machines are judged elsewhere, by people (`dal.evidence.machines`).

    Parameters
    ----------
    campaign : CampaignStore
    """

    def __init__(self, campaign: CampaignStore) -> None:
        self._campaign = campaign

    @cached_property
    def courses(self) -> tuple[Course, ...]:
        """Each person's judged answers in the order of time, by name."""
        given = self._given
        gold = self._campaign.answers.gold()
        return courses(given.rows, given.annotators, given.labels, gold, given.times, given.seconds)

    @cached_property
    def apart(self) -> tuple[Apart, ...]:
        """Careless people apart from hard records, by Dawid and Skene's model; the least often right first."""
        known = self._campaign.answers.latest()
        columns = known.rows, known.annotators, known.labels
        settings = self._campaign.settings
        found = dawid_skene(*columns, n_classes=len(settings.classes), seed=settings.random_state)
        return apart(found, *columns)

    @cached_property
    def _given(self) -> _Given:
        """Read the answers with their times.

        The pages' answers are ordered by the database's clock, never by that of a browser, which may be wrong. Those of
        files came at once: their own times order them, where the file has them and they lie before the import.
        """
        told = func.coalesce(answers.c.answered_at, answers.c.received_at)
        earlier = case((told < answers.c.received_at, told), else_=answers.c.received_at)
        at = case((answers.c.event_id.is_(None), earlier), else_=answers.c.received_at)
        query = (
            ledger.standing(by_people(answers.c.annotator))
            .with_only_columns(
                answers.c.row, answers.c.annotator, func.coalesce(answers.c.label, SKIPPED), at, answers.c.lead_time
            )
            .order_by(answers.c.id)
            .execution_options(yield_per=READ_AT_ONCE)
        )
        rows, labels, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        times: list[npt.NDArray[np.str_]] = [np.empty(0, "U1")]
        people: list[str] = []
        names: dict[str, str] = {}
        with self._campaign.database.reading() as connection:
            for block in connection.execute(query).partitions():
                row, who, code, moment, taken = zip(*block, strict=True)
                rows.append(np.array(row, np.int64))
                labels.append(np.array(code, np.int64))
                seconds.append(np.array(taken, np.float64))
                times.append(np.array(moment, np.str_))
                people += [names.setdefault(name, name) for name in who]
        ranks = np.unique(np.concatenate(times), return_inverse=True)[1].astype(np.int64)
        return _Given(np.concatenate(rows), people, np.concatenate(labels), ranks, np.concatenate(seconds))
