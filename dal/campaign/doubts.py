"""Labelled records for which another answer is worth its price."""

from dataclasses import dataclass

import numpy as np

from dal.campaign.parts import pool_of
from dal.campaign.store import CampaignStore
from dal.evidence.votes import dawid_skene, relabelling
from dal.selection.strategy import Strategy


@dataclass(frozen=True)
class Doubtful:
    """A labelled record for which another answer is worth its price.

    Attributes
    ----------
    row, record_id
        The record.
    label : str
        Its most probable class.
    probability : float
        Of that class.
    worth : float
        From 0 to 1: the entropy of its posterior times its score.
    answers : dict of str to str
        The answer of each annotator.
    """

    row: int
    record_id: str
    label: str
    probability: float
    worth: float
    answers: dict[str, str]


def doubtful(campaign: CampaignStore, n: int) -> list[Doubtful]:
    """Propose labelled records for another answer, by how doubtful the label is times what the record was worth.

    The doubt is the entropy of the posterior that Dawid and Skene's model gives, whichever way the campaign votes.
    """
    settings = campaign.settings
    answers = campaign.answers.latest()
    columns = answers.rows, answers.annotators, answers.labels
    found = dawid_skene(*columns, n_classes=len(settings.classes), seed=settings.random_state).labels
    assert found.proba is not None
    # Without a model, scores are drawn at random, and say nothing of what a record is worth.
    judged = [each for each in campaign.rounds.all() if each.model and Strategy.named(each.strategy).score != "random"]
    scores = {asked.row: asked.score for each in judged for asked in campaign.rounds.batch(each.number)}
    worth_asking = [np.nan if (score := scores.get(row)) is None else score for row in found.rows.tolist()]
    order, worth = relabelling(found.proba, np.clip(worth_asking, 0, 1))
    chosen = order[worth[order] > 0][:n]
    said: dict[int, dict[str, str]] = {row: {} for row in found.rows[chosen].tolist()}
    for row, annotator, code in zip(answers.rows.tolist(), answers.annotators, answers.labels.tolist(), strict=True):
        if row in said:
            said[row][annotator] = "skipped" if code < 0 else settings.classes[code]
    return [
        Doubtful(row, record_id, settings.classes[code], float(proba[code]), float(value), said[row])
        for row, record_id, code, proba, value in zip(
            found.rows[chosen].tolist(),
            pool_of(campaign).record_ids(found.rows[chosen]),
            found.codes[chosen].tolist(),
            found.proba[chosen],
            worth[chosen],
            strict=True,
        )
    ]
