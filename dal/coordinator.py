"""The loop: carries out what :func:`dal.rounds.next_action` says, one durable step at a time."""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from distributed import Client
from sklearn.base import BaseEstimator

from dal import rounds
from dal.agreement import majority
from dal.campaign import Campaign, Round, Settings
from dal.errors import CampaignMismatch, LearnerError, SettingsError
from dal.learner import Learner, Model
from dal.pool import Pool
from dal.ruler import Estimate, accuracy
from dal.scan import Cells, Journal, Progress, sample_codebook, scan
from dal.scan.journal import candidate_arrays, candidates_from
from dal.scan.kernel import Tally, score_block
from dal.selection import (
    Candidates,
    Codebook,
    Strategy,
    explore_count,
    interleaved,
    select,
    shortlist,
    uniform_rows,
)
from dal.stopping import MaxLabels, Verdict, parse

Rows = npt.NDArray[np.int64]
SAVED_LEARNER = "saved"
"""The learner's name in the settings where an estimator object was given; it lies in the campaign's directory."""

LEARNER_FILE = "learner.skops"
COVERAGE = "coverage"

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
    """Where a campaign stands, for people to read."""

    round: int
    status: str
    asked: int
    labels: int
    pending: int
    per_class: dict[str, int]
    accuracy: Estimate
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


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
    )
    settings.check()
    Strategy.named(strategy, explore)
    for text in stop:
        parse(text)
    if batch > pool.n_rows:
        raise SettingsError(f"Expected a batch of at most the pool's {pool.n_rows:,} records, got {batch:,}.")
    if isinstance(learner, str):
        named = Learner.named(learner, settings.classes, random_state=seed, trusted=settings.trusted)
    else:
        named = Learner(learner, settings.classes, trusted=settings.trusted)
    named.check(pool.n_features)
    campaign = Campaign.create(directory, settings, pool_fingerprint=pool.fingerprint, n_rows=pool.n_rows)
    if name == SAVED_LEARNER:
        (campaign.directory / LEARNER_FILE).write_bytes(named.dumps())
    return campaign


def next_batch(
    campaign: Campaign,
    *,
    client: Client | None = None,
    progress: Callable[[Progress], None] | None = None,
    close: bool = False,
    coverage: bool = False,
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
        return _Coordinator(campaign, client, progress, coverage=coverage).run(close=close)


def next_step(campaign: Campaign) -> rounds.Action:
    """Say what :func:`next_batch` would do first. Changes nothing and needs no lock."""
    return rounds.next_action(_Coordinator(campaign, None, None, coverage=False).state())


def status(campaign: Campaign) -> Status:
    """Tell where a campaign stands. Changes nothing and needs no lock."""
    coordinator = _Coordinator(campaign, None, None, coverage=False)
    state = coordinator.state()
    _, codes = coordinator.labels(None)
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
        verdicts=state.verdicts,
        notes=notes,
    )


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


def learner_of(campaign: Campaign) -> Learner:
    """Give the learner that a campaign was made with.

    Raises
    ------
    LearnerError
        If it was given as an object and its file is gone.
    """
    settings = campaign.settings
    if settings.learner != SAVED_LEARNER:
        return Learner.named(settings.learner, settings.classes, random_state=settings.seed, trusted=settings.trusted)
    path = campaign.directory / LEARNER_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise LearnerError(f"The campaign's learner was saved as {path}, which is gone: restore it.") from error
    return Learner.loads(data, settings.classes, trusted=settings.trusted)


class _Coordinator:
    def __init__(
        self,
        campaign: Campaign,
        client: Client | None,
        progress: Callable[[Progress], None] | None,
        *,
        coverage: bool,
    ) -> None:
        self.campaign = campaign
        self.settings = campaign.settings
        self.client = client
        self.progress = progress
        self.coverage = coverage
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
        verdicts = self._verdicts()
        if not past:
            return rounds.State(0, "none", trainable=False, pending=0, verdicts=verdicts)
        last = past[-1]
        pending = self.campaign.pending(last.number) if last.status == "open" else 0
        trainable = last.strategy != COVERAGE and self._classes_seen(last.last_answer) > 1
        return rounds.State(last.number, last.status, trainable=trainable, pending=pending, verdicts=verdicts)

    def labels(self, upto: int | None) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Give the label of every labelled record, from the answers up to an id."""
        answers = self.campaign.latest_answers(upto)
        return majority(answers.rows, answers.labels, seed=self.settings.seed)

    def _classes_seen(self, upto: int | None) -> int:
        return len(np.unique(self.labels(upto)[1]))

    def _verdicts(self) -> tuple[Verdict, ...]:
        if not self.criteria:
            return ()
        closed = [each.number for each in self.campaign.rounds() if each.status == "closed"]
        history = [record for record in self.campaign.history() if record.number in closed]
        hours = (datetime.now(UTC) - self.campaign.created_at).total_seconds() / 3600
        known = len(self.labels(None)[0])
        return tuple(criterion.judge(history, known, hours) for criterion in self.criteria)

    def _current(self) -> Round:
        current = self.campaign.current_round
        if current is None:  # the lock is ours, so nobody else can have closed it
            raise RuntimeError("there is no open round")
        return current

    def _freeze(self) -> None:
        pool, settings = self.pool, self.settings
        strategy = COVERAGE if self.coverage else settings.strategy
        _, codes = self.labels(None)
        if len(codes) and len(np.unique(codes)) < 2 and strategy not in (COVERAGE, "random"):
            only = settings.classes[int(codes[0])]
            raise LearnerError(
                f"All {len(codes):,} labels are {only!r}; a learner needs two classes. Label a record of another class"
                " (any record of the pool can be imported, asked or not), or choose another batch by coverage:"
                " dal next --coverage."
            )
        left = pool.n_rows - len(self.campaign.excluded_rows())
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
        rows, codes = self.labels(current.last_answer)
        X = self.pool.take(rows)
        valid = np.isfinite(X).all(axis=1)
        model = learner_of(self.campaign).fit(X[valid], codes[valid])
        notes = {"warnings": list(model.warnings), "invalid_labeled": int((~valid).sum())}
        self.campaign.save_model(current, model.dumps(), trained_on=len(rows), notes=notes)

    def _model(self, current: Round) -> Model | None:
        if current.model is None:
            return None
        return Model.loads(self.campaign.load_model(current.model), self.settings.trusted)

    def _strategy(self, current: Round, model: Model | None) -> Strategy:
        strategy = Strategy.named(current.strategy, current.explore)
        return strategy if model is not None else strategy.cold()

    def _codebook(self) -> Codebook:
        path = self.campaign.directory / "codebook.npz"
        with suppress(FileNotFoundError), np.load(path) as stored:
            return Codebook(stored["mean"], stored["scale"], stored["centers"])
        strategy = Strategy.named(self.settings.strategy, self.settings.explore)
        cells = strategy.capacity(self.settings.batch, self.pool.n_rows).cells
        codebook = sample_codebook(self.pool, cells, self.settings.seed)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, mean=codebook.mean, scale=codebook.scale, centers=codebook.centers)
        partial.replace(path)
        return codebook

    def _cells(self) -> Cells:
        stored = self.campaign.directory / "cells.zarr"
        return Cells(str(stored), write=not (self.campaign.directory / "cells.complete").exists())

    def _scan(self, current: Round, *, cold: bool) -> None:
        model = None if cold else self._model(current)
        strategy = self._strategy(current, model)
        journal = Journal(self.campaign.directory / "journal")
        found = scan(
            self.pool,
            model,
            strategy,
            current.k,
            self.campaign.excluded_rows(current),
            seed=current.seed,
            round=current.number,
            codebook=self._codebook() if strategy.selector != "top" else None,
            cells=self._cells(),
            client=self.client,
            journal=journal,
            progress=self.progress,
        )
        if found.summary.wrote_cells:
            (self.campaign.directory / "cells.complete").touch()
        summary = {**_tally_as_json(found.summary.tally), "seconds": found.summary.seconds}
        self.campaign.save_scan(current, _candidates_as_bytes(found.candidates), summary)
        journal.clear()

    def _select(self, current: Round) -> None:
        model = self._model(current)
        strategy = self._strategy(current, model)
        now_excluded = self.campaign.excluded_rows()
        drawn, X = self._drawn(current, now_excluded)
        chosen = self._chosen(
            current, strategy, np.union1d(now_excluded, np.array(drawn, dtype=np.int64)), current.k - len(drawn)
        )
        known = dict(zip(chosen.rows.tolist(), range(len(chosen.rows)), strict=True))
        order = interleaved(chosen.rows.tolist(), drawn)
        scores, predicted = self._judged(model, strategy, X)
        by_row: dict[int, tuple[float | None, int]] = {
            row: (float(chosen.scores[i]), int(chosen.predicted[i])) for row, i in known.items()
        }
        by_row |= {row: (scores[i], predicted[i]) for i, row in enumerate(drawn)}
        if len(order) < current.k:
            _log.warning(
                "The batch holds %d records instead of %d: no more are distinct and never asked.", len(order), current.k
            )
        self.campaign.open_batch(
            current,
            order,
            self.pool.record_ids(order),
            [by_row[row][0] for row in order],
            [code if (code := by_row[row][1]) >= 0 else None for row in order],
            [row not in known for row in order],
        )

    def _drawn(self, current: Round, excluded: Rows) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Draw the explore share: valid records only, because an invalid one is never asked."""
        before = [asked for each in self.campaign.rounds() for asked in self.campaign.batch(each.number)]
        explored = sum(asked.explore for asked in before)
        count = explore_count(current.explore, len(before), explored, current.k)
        rows: list[int] = []
        kept = [np.empty((0, self.pool.n_features), dtype=np.float32)]
        for row in uniform_rows(current.n_rows, excluded, current.seed, current.number):
            if len(rows) == count:
                break
            record = self.pool.take([row])
            if np.isfinite(record).all():
                rows.append(row)
                kept.append(record)
        return rows, np.concatenate(kept)

    def _chosen(self, current: Round, strategy: Strategy, excluded: Rows, k: int) -> Candidates:
        data = self.campaign.load_scan(current)
        with np.load(io.BytesIO(data)) as arrays:
            candidates = candidates_from(arrays)
        candidates = candidates.take(np.flatnonzero(~np.isin(candidates.rows, excluded)))
        labeled = np.empty((0, candidates.embeddings.shape[1]), dtype=np.float32)
        if strategy.selector != "top":
            codebook = self._codebook()
            capacity = strategy.capacity(current.k, current.n_rows, len(codebook.centers))
            candidates = shortlist(candidates, capacity, current.seed, current.number)
            candidates = replace(candidates, embeddings=codebook.embed(candidates.embeddings))
            asked = self.pool.take(excluded)
            # A label can be volunteered for a record that is never asked, because a feature is NaN.
            labeled = codebook.embed(asked[np.isfinite(asked).all(axis=1)])
        rows = select(candidates, strategy, k, labeled, current.seed, current.number)
        return candidates.take(np.searchsorted(candidates.rows, rows))

    def _judged(
        self, model: Model | None, strategy: Strategy, X: npt.NDArray[np.float32]
    ) -> tuple[list[float | None], list[int]]:
        """Score the drawn records with the model that chose the batch, before anyone learns from them."""
        if model is None or not len(X):
            return [None] * len(X), [-1] * len(X)
        predicted = model.predict_proba(X).argmax(axis=1).tolist()
        if strategy.score == "random":
            return [None] * len(X), predicted
        return [float(score) for score in score_block(strategy.score, model, X).score], predicted

    def _batch(self, number: int, pending: int, *, fresh: bool) -> Batch:
        asked = self.campaign.batch(number)
        rows = np.array([each.row for each in asked], dtype=np.int64)
        return Batch(number, rows, [each.record_id for each in asked], pending, fresh)


def _candidates_as_bytes(candidates: Candidates) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **candidate_arrays(candidates))
    return buffer.getvalue()


def _tally_as_json(tally: Tally) -> dict[str, object]:
    values = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(tally).items()}
    confidence = tally.mean_confidence
    return {**values, "mean_confidence": None if np.isnan(confidence) else confidence}
