"""Where a campaign stands, for people to read. Changes nothing and needs no lock."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.campaign import Campaign, Round
from dal.campaign.activity import Activity, Work
from dal.classes import UNLABELLED
from dal.evidence.agreement import Agreement, agreement
from dal.evidence.ruler import Estimate, accuracy, class_shares, explore_counts, labels_saved
from dal.evidence.stopping import Verdict, advice
from dal.evidence.votes import dawid_skene, relabelling
from dal.loop.coordinator import Coordinator, Rows, learner_of, pool_of
from dal.selection.candidates import usable
from dal.selection.strategy import Strategy


@dataclass(frozen=True)
class Status:
    """Where a campaign stands, for people to read.

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
        How far annotators agree.
    people : tuple of Work
        What each annotator has done, by name.
    gold : dict of str to tuple of int
        Of each annotator, right answers to gold records, and all.
    verdicts : tuple of Verdict
        What the campaign's own stopping criteria say.
    advice : tuple of Verdict
        What others would say, at their defaults.
    first_stops : dict of str to int
        After which round each criterion, of both kinds, would have ended the campaign first; those only that would.
    shares : dict of str to Estimate
        Share of each class in the pool, by the explore answers.
    notes : tuple of str
        What the learner warned of in its last fit.
    left_out : str
        How many labels that fit could not use, in words; empty where it used all.
    """

    round: int
    status: str
    asked: int
    labels: int
    pending: int
    per_class: dict[str, int]
    accuracy: Estimate
    agreement: Agreement
    people: tuple[Work, ...]
    gold: dict[str, tuple[int, int]]
    verdicts: tuple[Verdict, ...]
    advice: tuple[Verdict, ...]
    first_stops: dict[str, int]
    shares: dict[str, Estimate]
    notes: tuple[str, ...]
    left_out: str


def status(campaign: Campaign) -> Status:
    """Tell where a campaign stands. Changes nothing and needs no lock."""
    coordinator = Coordinator(campaign, None, None, coverage=False)
    state = coordinator.state()
    codes = coordinator.labels(None).codes
    answers = campaign.latest_answers()
    counts = np.bincount(codes, minlength=len(campaign.settings.classes))
    history = campaign.history()
    fits = [each for each in campaign.rounds() if each.notes]
    notes = tuple(str(note) for note in (fits[-1].notes or {}).get("warnings", ())) if fits else ()
    return Status(
        round=state.number,
        status=state.status,
        asked=len(campaign.asked_rows()),
        labels=len(codes),
        pending=state.pending,
        per_class=dict(zip(campaign.settings.classes, counts.tolist(), strict=True)),
        accuracy=accuracy(history, rounds=5),
        agreement=agreement(answers.rows, answers.annotators, answers.labels, seed=campaign.settings.seed),
        people=tuple(Activity(campaign).work()),
        gold=_gold_results(campaign),
        verdicts=state.verdicts,
        advice=coordinator.judged(advice(coordinator.criteria), history),
        first_stops=coordinator.first_stops(history),
        shares=dict(zip(campaign.settings.classes, class_shares(coordinator.explored()), strict=True)),
        notes=notes,
        left_out=left_out(fits[-1]) if fits else "",
    )


def left_out(fitted: Round) -> str:
    """Say how many labels the fit of a round could not use; nothing where it used all, or where there was no fit."""
    count = int((fitted.notes or {}).get("invalid_labeled", 0))
    if not count:
        return ""
    return (
        f"round {fitted.number} was trained on {fitted.trained_on:,} labels; {count:,} were left out, because features"
        " of their records are missing or infinite"
    )


def saved(campaign: Campaign) -> Estimate:
    """Estimate how many labels were saved against random sampling; see `dal.evidence.ruler.labels_saved`.

    Fits the learner some hundred times on explore answers, if there is evidence at all: seconds, and with a heavy
    learner minutes.
    """
    coordinator = Coordinator(campaign, None, None, coverage=False)
    rows, codes = coordinator.explored_labels()
    history = campaign.history()
    learner = learner_of(campaign)
    X: npt.NDArray[np.float32] | None = None
    sound: npt.NDArray[np.bool_] | None = None

    def fit_and_judge(learned: Rows, judged: Rows) -> npt.NDArray[np.bool_]:
        nonlocal X, sound
        if X is None or sound is None:
            X = coordinator.features(rows)
            # The learner of now may take fewer records than the one that they were drawn for.
            sound = usable(X, missing=learner.takes_missing(X.shape[1]))
        learned, given = learned[sound[learned]], sound[judged]
        predicted = np.full(len(judged), codes[learned[0]] if len(learned) else UNLABELLED)
        if len(np.unique(codes[learned])) > 1 and given.any():
            model = learner.try_fit(X[learned], codes[learned])
            predicted[given] = model.predict_proba(X[judged[given]]).argmax(axis=1)
        return np.asarray(predicted == codes[judged])

    spent = len(coordinator.labels(None).rows)
    return labels_saved(fit_and_judge, len(rows), explore_counts(history[-5:]), spent, seed=campaign.settings.seed)


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
        What each annotator said.
    """

    row: int
    record_id: str
    label: str
    probability: float
    worth: float
    answers: dict[str, str]


def _gold_results(campaign: Campaign) -> dict[str, tuple[int, int]]:
    known, answers = campaign.gold(), campaign.gold_answers()
    results: dict[str, tuple[int, int]] = {}
    for row, annotator, code in zip(answers.rows.tolist(), answers.annotators, answers.labels.tolist(), strict=True):
        right, of = results.get(annotator, (0, 0))
        results[annotator] = right + (code == known[row]), of + 1
    return results


def doubtful(campaign: Campaign, n: int) -> list[Doubtful]:
    """Propose labelled records for another answer, by how doubtful the label is times what the record was worth.

    The doubt is the entropy of the posterior that Dawid and Skene's model gives, whichever way the campaign votes.
    """
    settings = campaign.settings
    answers = campaign.latest_answers()
    columns = answers.rows, answers.annotators, answers.labels
    found = dawid_skene(*columns, n_classes=len(settings.classes), seed=settings.seed).labels
    assert found.proba is not None
    # Without a model, scores are drawn at random, and say nothing of what a record is worth.
    judged = [each for each in campaign.rounds() if each.model and Strategy.named(each.strategy).score != "random"]
    scores = {asked.row: asked.score for each in judged for asked in campaign.batch(each.number)}
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
