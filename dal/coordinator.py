"""The loop: carries out what :func:`dal.rounds.next_action` says, one durable step at a time."""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from distributed import Client
from sklearn.base import BaseEstimator

from dal import rounds
from dal.agreement import Agreement, Labels, Vote, agreement, dawid_skene, relabelling
from dal.campaign import Campaign, Round, Settings
from dal.campaign.control import Control
from dal.campaign.disk import replacing
from dal.errors import CampaignMismatch, LearnerError, SettingsError
from dal.learner import Learner, Model
from dal.pool import Pool
from dal.ruler import Estimate, accuracy
from dal.scan import Cells, Journal, Progress, Summary, sample_codebook, scan
from dal.scan.journal import candidate_arrays, candidates_from
from dal.scan.kernel import score_block
from dal.selection import (
    Candidates,
    Codebook,
    Strategy,
    explore_count,
    interleaved,
    uniform_rows,
)
from dal.selectors import choose
from dal.stopping import MaxLabels, Verdict, parse

Rows = npt.NDArray[np.int64]
SAVED_LEARNER = "saved"
"""The learner's name in the settings where an estimator object was given; it lies in the campaign's directory."""

COVERAGE = "coverage"
CELLS, CELLS_COMPLETE = "cells.zarr", "cells.complete"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The records of a round that are to be labelled.

    Attributes
    ----------
    number : int
        Round.
    rows : ndarray of int64
        In the order of asking.
    record_ids : list of str
        The same records by the user's own keys.
    pending : int
        How many of them nobody has answered.
    fresh : bool
        Whether this call opened it; a batch that was open already is given again, unchanged.
    """

    number: int
    rows: Rows
    record_ids: list[str]
    pending: int
    fresh: bool


@dataclass(frozen=True)
class Stopped:
    """No batch: these criteria say that more labels are not worth their price."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Status:
    """Where a campaign stands, for people to read; `gold` counts, per annotator, right answers and all."""

    round: int
    status: str
    asked: int
    labels: int
    pending: int
    per_class: dict[str, int]
    accuracy: Estimate
    agreement: Agreement
    gold: dict[str, tuple[int, int]]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


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


def create_campaign(
    directory: str | Path,
    pool: Pool | str | Path,
    classes: Sequence[str],
    *,
    learner: str | BaseEstimator = "logistic",
    strategy: str = "default",
    batch: int = 100,
    seed: int = 0,
    stop: Sequence[str] = (),
    explore: float = 0.05,
    trusted: Sequence[str] = (),
    overlap: int = 1,
    gold: float = 0.0,
    vote: Vote = "majority",
    database: str = "",
) -> Campaign:
    """Make a campaign; everything that can be refused is refused now, before anything is written.

    Parameters
    ----------
    directory : path
        Empty, or not there yet.
    pool : Pool or path
    classes : sequence of str
        At least two.
    learner : str or estimator, default="logistic"
        ``logistic``, ``forest``, ``hgb``, ``mlp``, ``module:object``, or a scikit-learn classifier.
    strategy : str, default="default"
        A name out of :data:`dal.selection.STRATEGIES`.
    batch : int, default=100
        Records asked in a round.
    seed : int, default=0
        Same seed, same batches.
    stop : sequence of str, default=()
        Stopping criteria such as ``"max_labels=5000"``; any of them ends the campaign.
    explore : float, default=0.05
        Share of what is asked that is drawn uniformly.
    trusted : sequence of str, default=()
        Types, by full name, that a saved learner may hold beyond scikit-learn's own.
    overlap : int, default=1
        Annotators who are to answer each record.
    gold : float, default=0
        Share of the records served to an annotator whose label is known (`Campaign.add_gold`).
    vote : {"majority", "dawid_skene"}, default="majority"
        How the answers of several annotators become one label. The second one weighs annotators by how they err, and
        records by how sure their label is; it takes a learner that weights can be given to.
    database : str, default=""
        URL of a PostgreSQL database. Without one, the campaign is kept in an SQLite file in its directory.

    Returns
    -------
    Campaign

    Raises
    ------
    InputError
        If any of these cannot be used.
    CampaignError
        If the directory holds something else.
    """
    pool = pool if isinstance(pool, Pool) else Pool.open(pool)
    name = learner if isinstance(learner, str) else SAVED_LEARNER
    settings = Settings(
        pool=pool.path,
        classes=tuple(classes),
        learner=name,
        strategy=strategy,
        batch=batch,
        seed=seed,
        stop=tuple(stop),
        explore=explore,
        trusted=tuple(trusted),
        overlap=overlap,
        gold=gold,
        vote=vote,
        database=database,
    )
    settings.check()
    score = Strategy.named(strategy, explore).score
    for text in stop:
        parse(text)
    if batch > pool.n_rows:
        raise SettingsError(f"Expected a batch of at most the pool's {pool.n_rows:,} records, got {batch:,}.")
    if isinstance(learner, str):
        named = Learner.named(learner, settings.classes, random_state=seed, trusted=settings.trusted)
    else:
        named = Learner(learner, settings.classes, trusted=settings.trusted)
    named.check(pool.n_features, score)
    _check_weights(named, settings)
    saved = named.dumps() if name == SAVED_LEARNER else None
    return Campaign.create(directory, settings, pool_fingerprint=pool.fingerprint, n_rows=pool.n_rows, learner=saved)


def next_batch(
    campaign: Campaign,
    *,
    client: Client | None = None,
    progress: Callable[[Progress], None] | None = None,
    close: bool = False,
    coverage: bool = False,
    reserved: Rows | Sequence[int] = (),
) -> Batch | Stopped:
    """Do everything up to the next batch: close the round that is answered, train, scan, select, open.

    Killed at any instant and called again, it goes on from the last durable step and gives the same batch. While a
    batch is open it changes nothing.

    Parameters
    ----------
    campaign : Campaign
    client : distributed.Client, optional
        Where to scan; without one, in this process.
    progress : callable, optional
        Told of the scan's progress.
    close : bool, default=False
        Close an open batch with the answers it has. Records that nobody answered are not asked again.
    coverage : bool, default=False
        Choose the new batch by coverage of the pool, as in a cold start, even though there are labels.
    reserved : array of int64, default=()
        Rows that are never asked, such as those of a test set. The campaign does not remember them: they are passed
        with every call, the same ones.

    Returns
    -------
    Batch or Stopped

    Raises
    ------
    LearnerError
        If the labels are all of one class.
    CampaignLocked
        If another process is at work on this campaign.
    """
    with campaign.lock():
        coordinator = _Coordinator(campaign, client, progress, coverage=coverage, reserved=reserved)
        return coordinator.run(close=close)


def next_step(campaign: Campaign) -> rounds.Action:
    """Say what :func:`next_batch` would do first. Changes nothing and needs no lock."""
    return rounds.next_action(_Coordinator(campaign, None, None, coverage=False).state())


def status(campaign: Campaign) -> Status:
    """Tell where a campaign stands. Changes nothing and needs no lock."""
    coordinator = _Coordinator(campaign, None, None, coverage=False)
    state = coordinator.state()
    codes = coordinator.labels(None).codes
    answers = campaign.latest_answers()
    counts = np.bincount(codes, minlength=len(campaign.settings.classes))
    fits = [each.notes for each in campaign.rounds() if each.notes]
    notes = tuple(str(note) for note in fits[-1].get("warnings", ())) if fits else ()
    return Status(
        round=state.number,
        status=state.status,
        asked=len(campaign.asked_rows()),
        labels=len(codes),
        pending=state.pending,
        per_class=dict(zip(campaign.settings.classes, counts.tolist(), strict=True)),
        accuracy=accuracy(campaign.history(), rounds=5),
        agreement=agreement(answers.rows, answers.annotators, answers.labels, seed=campaign.settings.seed),
        gold=_gold_results(campaign),
        verdicts=state.verdicts,
        notes=notes,
    )


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


def pool_of(campaign: Campaign) -> Pool:
    """Open the campaign's pool.

    Raises
    ------
    CampaignMismatch
        If another pool lies where it was: labels would land on the wrong records.
    """
    pool = Pool.open(campaign.settings.pool)
    if pool.fingerprint != campaign.pool_fingerprint:
        raise CampaignMismatch(
            f"{campaign.directory} was made for another pool than the one that {campaign.settings.pool} holds now."
            " Restore that pool, or make a new campaign."
        )
    return pool


def features_of(campaign: Campaign, rows: Rows) -> npt.NDArray[np.float32]:
    """Read features of rows, from the pool only where they were not kept when the record was asked."""
    return _Coordinator(campaign, None, None, coverage=False)._features(rows)


def learner_of(campaign: Campaign) -> Learner:
    """Give the learner that a campaign was made with.

    Raises
    ------
    CampaignError
        If it was given as an object and its file is gone.
    """
    settings = campaign.settings
    if settings.learner != SAVED_LEARNER:
        return Learner.named(settings.learner, settings.classes, random_state=settings.seed, trusted=settings.trusted)
    return Learner.loads(campaign.load_learner(), settings.classes, trusted=settings.trusted)


def _check_weights(learner: Learner, settings: Settings) -> None:
    if settings.vote == "dawid_skene" and not learner.takes_weights:
        raise LearnerError(
            "The vote dawid_skene weights records by how sure their label is, and this learner's fit takes no"
            " sample_weight. Choose another learner, or the vote majority."
        )


@dataclass(frozen=True)
class _Drawn:
    """The explore share of a batch, with its features."""

    rows: list[int]
    X: npt.NDArray[np.float32]

    @classmethod
    def none(cls, width: int) -> "_Drawn":
        return cls([], np.empty((0, width), dtype=np.float32))


class _Coordinator:
    def __init__(
        self,
        campaign: Campaign,
        client: Client | None,
        progress: Callable[[Progress], None] | None,
        *,
        coverage: bool,
        reserved: Rows | Sequence[int] = (),
    ) -> None:
        self.campaign = campaign
        self.settings = campaign.settings
        self.client = client
        self.progress = progress
        self.coverage = coverage
        self.reserved = np.unique(np.asarray(reserved, dtype=np.int64))
        self.criteria = [parse(text) for text in self.settings.stop]

    @cached_property
    def pool(self) -> Pool:
        return pool_of(self.campaign)

    def run(self, *, close: bool) -> Batch | Stopped:
        fresh = False
        while True:
            state = self.state()
            match rounds.next_action(state):
                case rounds.Open():
                    self._freeze()
                case rounds.Fit():
                    self._fit(self._current())
                case rounds.Scan(cold=cold):
                    self._scan(self._current(), cold=cold)
                case rounds.Select():
                    self._select(self._current())
                    fresh = True
                case rounds.Close():
                    self.campaign.close_round(self._current())
                case rounds.Wait(pending=pending):
                    if not close:
                        return self._batch(state.number, pending, fresh=fresh)
                    self.campaign.close_round(self._current())
                    close = False
                case rounds.Stop(verdicts=verdicts):
                    return Stopped(verdicts)

    def state(self) -> rounds.State:
        past = self.campaign.rounds()
        verdicts = self._verdicts(past)
        if not past:
            return rounds.State(0, "none", trainable=False, pending=0, verdicts=verdicts)
        last = past[-1]
        pending = self.campaign.pending(last.number) if last.status == "open" else 0
        trainable = last.strategy != COVERAGE and self._classes_seen(last.last_answer) > 1
        return rounds.State(last.number, last.status, trainable=trainable, pending=pending, verdicts=verdicts)

    def labels(self, upto: int | None) -> Labels:
        """Give the label of every labelled record, from the answers up to an id."""
        return self.campaign.labels(upto)

    def _classes_seen(self, upto: int | None) -> int:
        return len(np.unique(self.labels(upto).codes))

    def _verdicts(self, past: list[Round]) -> tuple[Verdict, ...]:
        if self._exhausted(past):
            return (Verdict("pool_exhausted", True, 0, 0, "every row of the pool was asked or cannot be"),)
        told = Control(self.campaign).in_force
        if told is not None and told.act == "stop":
            reason = f"{told.person} stopped the campaign on {told.at:%Y-%m-%d at %H:%M} UTC; dal resume goes on"
            return (Verdict("stopped", True, None, 0, reason),)
        if not self.criteria:
            return ()
        history = self.campaign.history()
        hours = (datetime.now(UTC) - self.campaign.created_at).total_seconds() / 3600
        known = len(self.labels(None).rows)
        return tuple(criterion.judge(history, known, hours) for criterion in self.criteria)

    def _exhausted(self, past: list[Round]) -> bool:
        """Say whether nothing is left to ask: no row, or none that the last scan could find."""
        if not past or past[-1].status != "closed":
            return False
        # By the rows that the round froze: telling where a campaign stands takes no look at its pool.
        spent = not self.campaign.batch(past[-1].number) or len(self._closed_rows()) >= past[-1].n_rows
        return spent and self.pool.n_rows <= past[-1].n_rows

    def _closed_rows(self, current: Round | None = None) -> Rows:
        """Give the rows that are not to be asked, ascending; of a round, as they were when it was frozen."""
        return np.union1d(self.campaign.excluded_rows(current), self.reserved)

    def _current(self) -> Round:
        current = self.campaign.current_round
        if current is None:  # the lock is ours, so nobody else can have closed it
            raise RuntimeError("there is no open round")
        return current

    def _freeze(self) -> None:
        pool, settings = self.pool, self.settings
        strategy = COVERAGE if self.coverage else settings.strategy
        # Refused now: people may edit campaign.toml, and what a round has frozen stays.
        Strategy.named(strategy, settings.explore)
        _check_weights(learner_of(self.campaign), settings)
        codes = self.labels(None).codes
        if len(codes) and len(np.unique(codes)) < 2 and Strategy.named(strategy).score != "random":
            only = settings.classes[int(codes[0])]
            raise LearnerError(
                f"All {len(codes):,} labels are {only!r}; a learner needs two classes. Label a record of another class"
                " (any record of the pool can be imported, asked or not), or choose another batch by coverage:"
                " dal next --coverage."
            )
        left = pool.n_rows - len(self._closed_rows())
        if left < settings.batch:
            _log.warning("Only %d records were never asked: the batch is that short.", left)
        budget = min((c.n - len(codes) for c in self.criteria if isinstance(c, MaxLabels)), default=settings.batch)
        self.campaign.freeze_round(
            pool_fingerprint=pool.fingerprint,
            n_rows=pool.n_rows,
            k=min(settings.batch, left, budget),
            explore=settings.explore,
            seed=settings.seed,
            strategy=strategy,
        )

    def _fit(self, current: Round) -> None:
        labels = self.labels(current.last_answer)
        rows, X = labels.rows, self._features(labels.rows)
        valid = np.isfinite(X).all(axis=1)
        positions, codes, weights = labels.weighted()
        sound = valid[positions]
        with self._withdrawing(current):
            model = learner_of(self.campaign).fit(
                X[positions[sound]],
                codes[sound],
                None if weights is None else weights[sound],
                committee=Strategy.named(current.strategy).committee,
            )
            model.predict_proba(X[valid][:1000])
        notes = {"warnings": list(model.warnings), "invalid_labeled": int((~valid).sum())}
        self.campaign.save_model(current, model.dumps(), trained_on=len(rows), notes=notes)

    @contextmanager
    def _withdrawing(self, current: Round) -> Iterator[None]:
        """Take the round back if its learner refuses what was frozen.

        It would refuse it again however often it is tried; the next round may freeze more labels, or another learner.
        """
        try:
            yield
        except LearnerError:
            self.campaign.withdraw_round(current)
            raise

    def _model(self, current: Round) -> Model | None:
        if current.model is None:
            return None
        return Model.loads(self.campaign.load_model(current.model), self.settings.trusted)

    def _strategy(self, current: Round, model: Model | None) -> Strategy:
        strategy = Strategy.named(current.strategy, current.explore)
        return strategy if model is not None else strategy.cold()

    def _codebook(self) -> Codebook:
        path = self.campaign.directory / "codebook.npz"
        stored = _loaded(path)
        if stored is not None:
            return Codebook(stored["mean"], stored["scale"], stored["axes"], stored["centers"])
        strategy = Strategy.named(self.settings.strategy, self.settings.explore)
        cells = strategy.n_cells(self.settings.batch, self.pool.n_rows)
        codebook = sample_codebook(self.pool, cells, self.settings.seed)
        with replacing(path) as file:
            np.savez(file, mean=codebook.mean, scale=codebook.scale, axes=codebook.axes, centers=codebook.centers)
        return codebook

    def _cells(self, n_rows: int) -> Cells:
        stored, marker = self.campaign.directory / CELLS, self.campaign.directory / CELLS_COMPLETE
        # A pool that has grown since gets its cells anew.
        complete = stored.exists() and marker.exists() and marker.read_text() == str(n_rows)
        return Cells(str(stored), write=not complete)

    def _features(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Read features of rows; those of asked records were kept when they were asked.

        Scattered through a large pool, each of them would cost a whole chunk, every round again.
        """
        found = np.zeros(len(rows), dtype=bool)
        X = np.empty((len(rows), self.pool.n_features), dtype=np.float32)
        for path in sorted((self.campaign.directory / "rounds").glob("*-features.npz")):
            kept = _loaded(path)
            if kept is not None and len(kept["rows"]):
                order = np.argsort(kept["rows"])
                known = kept["rows"][order]
                position = np.minimum(np.searchsorted(known, rows), len(known) - 1)
                here = known[position] == rows
                X[here] = kept["features"][order[position[here]]]
                found |= here
        X[~found] = self.pool.take(rows[~found])
        return X

    def _scan(self, current: Round, *, cold: bool) -> None:
        model = None if cold else self._model(current)
        strategy = self._strategy(current, model)
        journal = Journal(self.campaign.directory / "journal")
        with self._withdrawing(current):
            found = scan(
                self.pool.head(current.n_rows),
                model,
                strategy,
                current.k,
                self._closed_rows(current),
                seed=current.seed,
                round=current.number,
                codebook=self._codebook() if strategy.traits.features else None,
                cells=self._cells(current.n_rows),
                client=self.client,
                journal=journal,
                progress=self.progress,
                with_features=True,
            )
        self.campaign.save_scan(current, _candidates_as_bytes(found.candidates), _summary_as_json(found.summary))
        if found.summary.wrote_cells:
            (self.campaign.directory / CELLS_COMPLETE).write_text(str(current.n_rows))
        journal.clear()

    def _select(self, current: Round) -> None:
        model = self._model(current)
        strategy = self._strategy(current, model)
        excluded = self.campaign.excluded_rows()
        with np.load(io.BytesIO(self.campaign.load_scan(current))) as arrays:
            candidates = candidates_from(arrays)
        drawn = self._drawn(current, self._closed_rows()) if len(candidates) else _Drawn.none(self.pool.n_features)
        chosen = self._chosen(current, strategy, candidates, excluded, drawn)
        self._keep_features(current, chosen, drawn)
        answers = dict(zip(chosen.rows.tolist(), zip(chosen.scores, chosen.predicted, strict=True), strict=True))
        answers |= dict(zip(drawn.rows, self._judged(model, strategy, drawn.X), strict=True))
        sure = self._confidence(model, chosen, drawn, {row: code for row, (_, code) in answers.items()})
        order = interleaved(chosen.rows.tolist(), drawn.rows)
        if len(order) < current.k:
            _log.warning(
                "The batch holds %d records instead of %d: the other candidates are near-duplicates of these or of"
                " records asked before.",
                len(order),
                current.k,
            )
        explored = set(drawn.rows)
        self.campaign.open_batch(
            current,
            order,
            self.pool.record_ids(order),
            [None if answers[row][0] is None else float(answers[row][0]) for row in order],
            [int(answers[row][1]) if answers[row][1] >= 0 else None for row in order],
            [row in explored for row in order],
            confidence=[sure.get(row) for row in order],
        )

    def _drawn(self, current: Round, excluded: Rows) -> "_Drawn":
        """Draw the explore share: valid records only, because an invalid one is never asked."""
        before = [asked for each in self.campaign.rounds() for asked in self.campaign.batch(each.number)]
        explored = sum(asked.explore for asked in before)
        count = explore_count(current.explore, len(before), explored, current.k)
        drawn = _Drawn.none(self.pool.n_features)
        draws = uniform_rows(current.n_rows, excluded, current.seed, current.number)
        while missing := list(islice(draws, count - len(drawn.rows))):
            X = self.pool.take(missing)
            valid = np.isfinite(X).all(axis=1)
            rows = [row for row, keep in zip(missing, valid.tolist(), strict=True) if keep]
            drawn = _Drawn(drawn.rows + rows, np.concatenate([drawn.X, X[valid]]))
        return drawn

    def _chosen(
        self, current: Round, strategy: Strategy, candidates: Candidates, excluded: Rows, drawn: "_Drawn"
    ) -> Candidates:
        taken = np.concatenate([excluded, np.array(drawn.rows, dtype=np.int64)])
        looks = strategy.traits.features
        codebook = self._codebook() if looks else None
        rows = choose(
            candidates,
            strategy,
            current.k - len(drawn.rows),
            capacity=strategy.capacity(current.k, current.n_rows, len(codebook.centers) if codebook else None),
            codebook=codebook,
            asked=np.concatenate([self._features(excluded), drawn.X]) if looks else drawn.X,
            excluded=taken,
            seed=current.seed,
            round=current.number,
        )
        return candidates.take(np.searchsorted(candidates.rows, rows))

    def _keep_features(self, current: Round, chosen: Candidates, drawn: "_Drawn") -> None:
        # No more than a copy of what the pool holds, and not missed if it is gone.
        rows = np.concatenate([chosen.rows, np.array(drawn.rows, dtype=np.int64)])
        path = self.campaign.directory / "rounds" / f"{current.number:04d}-features.npz"
        with replacing(path) as file:
            np.savez(file, rows=rows, features=np.concatenate([chosen.embeddings, drawn.X]))

    def _judged(
        self, model: Model | None, strategy: Strategy, X: npt.NDArray[np.float32]
    ) -> list[tuple[float | None, int]]:
        """Score the drawn records with the model that chose the batch, before anyone learns from them."""
        if model is None or not len(X):
            return [(None, -1)] * len(X)
        predicted = model.predict_proba(X).argmax(axis=1).tolist()
        if strategy.score == "random":
            return [(None, code) for code in predicted]
        return list(zip(score_block(strategy.score, model, X).score.tolist(), predicted, strict=True))

    def _confidence(
        self, model: Model | None, chosen: Candidates, drawn: "_Drawn", predicted: dict[int, int]
    ) -> dict[int, float]:
        """Give the model's probability of what it predicted for each record of the batch, for people to see."""
        rows = [*chosen.rows.tolist(), *drawn.rows]
        if model is None or not rows:
            return {}
        proba = model.predict_proba(np.concatenate([chosen.embeddings, drawn.X]))
        return {row: float(each[predicted[row]]) for row, each in zip(rows, proba, strict=True)}

    def _batch(self, number: int, pending: int, *, fresh: bool) -> Batch:
        asked = self.campaign.batch(number)
        rows = np.array([each.row for each in asked], dtype=np.int64)
        return Batch(number, rows, [each.record_id for each in asked], pending, fresh)


def _loaded(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """Read a file that can be made again; None if it is not there, or was torn by a power cut."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return dict(stored)
    except FileNotFoundError:
        return None
    except (EOFError, ValueError, KeyError, BadZipFile) as error:
        _log.warning("%s is torn (%s): it is made again.", path, error)
        return None


def _candidates_as_bytes(candidates: Candidates) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **candidate_arrays(candidates))
    return buffer.getvalue()


def _summary_as_json(summary: Summary) -> dict[str, object]:
    tally = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(summary.tally).items()
    }
    confidence = summary.tally.mean_confidence
    rest = {name: value for name, value in vars(summary).items() if name != "tally"}
    return {**tally, **rest, "mean_confidence": None if np.isnan(confidence) else confidence}
