"""Second opinions: labelled records about which another person may be asked, and the round that asks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select

from dal.campaign import answers as ledger
from dal.campaign.schema import Round, again
from dal.campaign.store import CampaignStore
from dal.evidence.again import sureness

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Doubted:
    """Labelled records that somebody at work has not answered.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
    right : ndarray of float64, shape (m,)
        How probable their labels are.
    given : ndarray of int64, shape (m,)
        People who have answered them, skips included.
    """

    rows: Integers
    right: npt.NDArray[np.float64]
    given: Integers


def doubted(campaign: CampaignStore, current: Round) -> Doubted:
    """Find the records about which the round may ask another person, as of its freeze.

    Nobody but those who have answered since the round before was frozen counts as at work. A record that still waits
    for its overlap is served anyway, and one that a machine has settled to nobody.
    """
    settings, nothing = campaign.settings, Doubted(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
    known = campaign.answers.standing(current.last_answer)
    before = [each.last_answer for each in campaign.rounds.all() if each.number == current.number - 1]
    answers = known.answers
    people = at_work(answers.annotators, answers.ids, after=before[0] if before else 0)
    if len(people) < 2:
        return nothing
    settled = [each.rows[each.settling] for each in known.of_machines.values()]
    open_to = np.setdiff1d(campaign.rounds.asked_rows(), np.concatenate([np.empty(0, np.int64), *settled]))
    rows, given = np.unique(answers.rows, return_counts=True)
    theirs = np.fromiter((name in people for name in answers.annotators), bool, len(answers.annotators))
    by_those = np.zeros(len(rows), np.int64)
    np.add.at(by_those, np.searchsorted(rows, answers.rows[theirs]), 1)
    able = (by_those < len(people)) & (given >= settings.labelling.overlap) & np.isin(rows, open_to)
    columns = answers.rows, answers.annotators, answers.labels
    sure = sureness(*columns, n_classes=len(settings.classes), seed=settings.random_state)
    kept = np.isin(sure.rows, rows[able])
    return Doubted(sure.rows[kept], sure.right[kept], given[np.searchsorted(rows, sure.rows[kept])])


def at_work(annotators: list[str], ids: Integers, after: int) -> set[str]:
    """Return the people who have given an answer with an id above `after`."""
    return {annotators[at] for at in np.flatnonzero(ids > after).tolist()}


def second_opinions(campaign: CampaignStore) -> str:
    """Return, in words, whom the newest round asks again; empty where that is not chosen."""
    if not campaign.settings.labelling.again:
        return ""
    last = campaign.rounds.last
    if last is None or last.opened_at is None:
        return ""
    with campaign.database.reading() as connection:
        wanted = select(func.count()).where(again.c.round == last.number)
        count = connection.scalar(wanted) or 0
        answered = connection.scalar(wanted.where(ledger.answers_given(again.c.row) >= again.c.places)) or 0
    if count:
        return f"round {last.number} asks another person about {count:,} labelled records; {answered:,} have answered"
    known = campaign.answers.latest(last.last_answer)
    if len(set(known.annotators)) < 2:
        return "nobody is asked for a second opinion: a single person has answered so far"
    return f"round {last.number} asks for no second opinion"
