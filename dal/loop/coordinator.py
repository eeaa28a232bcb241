"""The loop: carries out what :func:`dal.loop.actions.next_action` says, one durable step at a time."""

import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from distributed import Client
from sklearn.base import BaseEstimator
from sklearn.metrics import cohen_kappa_score

from dal.campaign import Campaign, Round, Settings
from dal.campaign.control import Control
from dal.campaign.disk import replacing
from dal.campaign.objects import digest_of
from dal.choices import Missing, Vote
from dal.classes import codes_of, names_of
from dal.compute.work import map_on
from dal.errors import CampaignError, CampaignMismatch, LabelError, LearnerError, PoolError, PoolNotFound, SettingsError
from dal.evidence.ruler import RoundRecord
from dal.evidence.stopping import Criterion, Verdict, advice, first_stop, label_budget, parse
from dal.evidence.votes import Labels
from dal.labelled import read_labelled
from dal.learners.learner import Learner
from dal.learners.models import Model, score_block
from dal.loop import actions
from dal.places import place_of
from dal.pool import Pool
from dal.scan import Journal, Progress, Summary, cells_written, sample_codebook, scan, stored_cells
from dal.scan.driver import sample_rows
from dal.scan.journal import candidate_arrays, candidates_from
from dal.scores import of_probabilities
from dal.selection.batch import choose
from dal.selection.candidates import Candidates, usable
from dal.selection.codebook import Codebook
from dal.selection.explore import explore_count, interleaved, uniform_rows
from dal.selection.strategy import Strategy

Rows = npt.NDArray[np.int64]
SAVED_LEARNER = "saved"
"""The learner's name in the settings where an estimator object was given; it lies in the campaign's directory."""

COVERAGE = "coverage"
TRIED_ROWS, TRIED_BYTES = 1280, 64 * 2**20
STOP_SET = -1
"""Stands for the round in the hashes that draw the stop set: no round has it."""

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
    store: str = "",
    close_at: float = 1.0,
    reserve: float = 0.0,
    stop_set: int | None = None,
    holdout: str | Path | None = None,
    missing_chunks: Missing | None = None,
) -> Campaign:
    """Make a campaign; everything that can be refused is refused now, before anything is written.

    Parameters
    ----------
    directory : path
        Empty, or not there yet.
    pool : Pool or path
    classes : sequence of str
        At least two; numbers stand for themselves as text.
    learner : str or estimator, default="logistic"
        ``logistic``, ``forest``, ``hgb``, ``mlp``, ``module:object``, or a scikit-learn classifier.
    strategy : str, default="default"
        A name out of :data:`dal.selection.strategy.STRATEGIES`.
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
    store : str, default=""
        URL of an object store for models and the files of rounds, such as ``s3://bucket/folder``: a coordinator on
        another machine can then go on. Without one, they are kept in the directory.
    close_at : float, default=1
        Share of a batch whose answers are waited for; the others may come later, and count from the next round on.
    reserve : float, default=0
        Records chosen beyond the batch, as a share of it, to work on while the next batch is prepared.
    stop_set : int, optional
        Records that are held back from asking, so that criteria can compare successive models on them. By default one
        in a hundred and at most 1,000, and none where that would be fewer than 100.
    holdout : path, optional
        An .npz file with ``X`` (n, d) and ``y`` (n,), the names of classes: labelled records outside of the pool.
        Accuracy is then measured on them. Numbers are names, too, never positions.
    missing_chunks : {"refuse", "fill"}, optional
        What a chunk that is not stored means where the pool is a plain Zarr array: an error, or its fill value. Every
        later step of the campaign goes by it. By default as the pool was opened, else an error.

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
    if not isinstance(pool, Pool):
        pool = Pool.open(pool, missing_chunks=missing_chunks or "refuse")
    elif missing_chunks is not None:
        pool = Pool.open(pool.place, missing_chunks=missing_chunks)
    name = learner if isinstance(learner, str) else SAVED_LEARNER
    settings = Settings(
        pool=pool.path,
        classes=names_of(classes),
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
        store=store,
        close_at=close_at,
        reserve=reserve,
        stop_set=_stop_set_of(pool.n_rows) if stop_set is None else stop_set,
        holdout="" if holdout is None else str(Path(holdout).absolute()),
        missing_chunks=missing_chunks or pool.missing_chunks,
    )
    settings.check()
    score = Strategy.named(strategy, explore).score
    for text in stop:
        parse(text)
    if batch > pool.n_rows:
        raise SettingsError(f"Expected a batch of at most the pool's {pool.n_rows:,} records, got {batch:,}.")
    if settings.stop_set > pool.n_rows // 2:
        raise SettingsError(
            f"Expected a stop set of at most half of the pool's {pool.n_rows:,} records, got {settings.stop_set:,}."
        )
    named = Learner.of(learner, settings.classes, random_state=seed, trusted=settings.trusted)
    apart = _read_holdout(settings, pool.n_features)
    _check_weights(named, settings)
    named.check(pool.n_features, score, records=records_to_try(pool), weighted=settings.vote == "dawid_skene")
    if apart is not None and not usable(apart[0], missing=named.takes_missing(pool.n_features)).all():
        raise SettingsError("The holdout holds NaN or infinite features: the learner cannot be tried on them.")
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
        Close an open batch with the answers it has, once there is one, or somebody holds a record of it. Records that
        nobody answered are not asked again.
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
        coordinator = Coordinator(campaign, client, progress, coverage=coverage, reserved=reserved)
        return coordinator.run(close=close)


def run_campaign(
    campaign: Campaign,
    *,
    client: Client | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    ended: Event | None = None,
    patience: float = 1.0,
) -> Stopped | None:
    """Carry on round after round, as the answers come in, until a criterion ends the campaign.

    People answer through the queue (`dal.campaign.Queue`), by imports, or both. A round is closed when the share
    ``close_at`` of its batch is answered; while the next batch is prepared, the queue serves what is left of it, and
    then its reserve.

    Parameters
    ----------
    campaign : Campaign
    client : distributed.Client, optional
        Where to scan; without one, in this process.
    progress : callable, optional
        Told of each scan's progress.
    on_batch : callable, optional
        Given each batch once it is open.
    ended : threading.Event, optional
        Set, it ends the waiting; the campaign goes on when it is run again.
    patience : float, default=1
        Seconds between two looks at the answers.

    Returns
    -------
    Stopped or None
        None where `ended` was set.

    Raises
    ------
    CampaignLocked
        If another process is at work on this campaign.
    """
    ended = ended or Event()
    with campaign.lock():
        coordinator = Coordinator(campaign, client, progress, coverage=False)
        while not ended.is_set():
            given = coordinator.run(close=False)
            if isinstance(given, Stopped):
                return given
            if on_batch is not None:
                on_batch(given)
            while coordinator.waiting() and not ended.wait(patience):
                pass
    return None


def next_step(campaign: Campaign) -> actions.Action:
    """Say what :func:`next_batch` would do first. Changes nothing and needs no lock."""
    return actions.next_action(Coordinator(campaign, None, None, coverage=False).state())


def pool_of(campaign: Campaign) -> Pool:
    """Open the campaign's pool.

    Raises
    ------
    CampaignMismatch
        If another pool lies where it was: labels would land on the wrong records.
    """
    place = place_of(campaign.settings.pool, beside=campaign.directory)
    pool = Pool.open(place, missing_chunks=campaign.settings.missing_chunks)
    if pool.fingerprint != campaign.pool_fingerprint:
        raise _other_pool(campaign)
    return pool


def _other_pool(campaign: Campaign) -> CampaignMismatch:
    return CampaignMismatch(
        f"{campaign.directory} was made for another pool than the one that {campaign.settings.pool} holds now."
        " Restore that pool, or make a new campaign."
    )


def features_of(campaign: Campaign, rows: Rows) -> npt.NDArray[np.float32]:
    """Read features of rows, from the pool only where they were not kept when the record was asked."""
    return Coordinator(campaign, None, None, coverage=False).features(rows)


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


class _Asked(NamedTuple):
    """What is not to be asked again, with its features."""

    rows: Rows
    X: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Drawn:
    """The explore share of a batch, with its features."""

    rows: list[int]
    X: npt.NDArray[np.float32]

    @classmethod
    def none(cls, width: int) -> "_Drawn":
        return cls([], np.empty((0, width), dtype=np.float32))


class Coordinator:
    """Carries out a campaign's steps; reading where it stands needs no lock."""

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
        """The campaign's pool, opened when it is first needed."""
        return pool_of(self.campaign)

    def _grown(self) -> Pool:
        """Return the pool with what was appended to it since it was opened: a run holds it for weeks."""
        try:
            self.pool = self.pool.refreshed()
        except PoolNotFound:
            raise
        except PoolError as error:
            raise _other_pool(self.campaign) from error
        return self.pool

    def run(self, *, close: bool) -> Batch | Stopped:
        """Go on to the next batch, or to the end; the caller holds the campaign's lock."""
        fresh = checked = False
        # Before the loop, and only if somebody has begun: killed and run again, it must not close the batch that it has
        # opened, which nobody has seen.
        current = self.campaign.current_round if close else None
        if current is not None and current.status == "open" and self.campaign.begun(current.number):
            self.campaign.close_round(current)
        while True:
            state = self.state()
            action = actions.next_action(state)
            if not checked and not isinstance(action, actions.Close | actions.Wait | actions.Stop):
                self.campaign.objects.check()
                checked = True
            match action:
                case actions.Open():
                    self._freeze()
                case actions.Fit():
                    self._fit(self._current())
                case actions.Scan(cold=cold):
                    self._scan(self._current(), cold=cold)
                case actions.Select():
                    self._select(self._current())
                    fresh = True
                case actions.Close():
                    self.campaign.close_round(self._current())
                case actions.Wait(pending=pending):
                    return self._batch(state.number, pending, fresh=fresh)
                case actions.Stop(verdicts=verdicts):
                    return Stopped(verdicts)

    def state(self) -> actions.State:
        """Read where the campaign stands."""
        past = self.campaign.rounds()
        verdicts = self._verdicts(past)
        if not past:
            return actions.State(0, "none", trainable=False, pending=0, verdicts=verdicts)
        last = past[-1]
        pending, spare = self._awaited(last) if last.status == "open" else (0, 0)
        trainable = last.strategy != COVERAGE and self._classes_seen(last.last_answer) > 1
        return actions.State(last.number, last.status, trainable, pending, spare, verdicts)

    def waiting(self) -> bool:
        """Say whether the open batch still waits for answers, by a look that costs little."""
        current = self.campaign.current_round
        if current is None or current.status != "open":
            return False
        pending, spare = self._awaited(current)
        return pending > spare

    def _awaited(self, current: Round) -> tuple[int, int]:
        size = self.campaign.batch_size(current.number)
        # The rounding is of shares people write, such as 0.9 of 10, which in binary is a little more than 9.
        return self.campaign.pending(current.number), size - math.ceil(round(self.settings.close_at * size, 9))

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
        return self.judged(self.criteria, self.campaign.history()) if self.criteria else ()

    def judged(self, criteria: Sequence[Criterion], history: Sequence[RoundRecord]) -> tuple[Verdict, ...]:
        """Ask each criterion what it says now."""
        hours = (datetime.now(UTC) - self.campaign.created_at).total_seconds() / 3600
        known = len(self.labels(None).rows)
        return tuple(criterion.judge(history, known, hours) for criterion in criteria)

    def first_stops(self, history: Sequence[RoundRecord]) -> dict[str, int]:
        """Say after which round each criterion would have ended the campaign first."""
        stops = {}
        for criterion in (*self.criteria, *advice(self.criteria)):
            if (number := first_stop(criterion, history)) is not None:
                stops[criterion.judge(history, 0, 0.0).criterion] = number
        return stops

    def explored_labels(self) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Give the rows and labels of all explore answers: a random sample of what was not asked by choice."""
        drawn = [
            asked.row for each in self.campaign.rounds() for asked in self.campaign.batch(each.number) if asked.explore
        ]
        known = self.labels(None)
        mine = np.isin(known.rows, np.array(drawn, dtype=np.int64))
        return known.rows[mine], known.codes[mine]

    def explored(self) -> list[int]:
        """Count the explore answers of each class."""
        return np.bincount(self.explored_labels()[1], minlength=len(self.settings.classes)).tolist()

    def _exhausted(self, past: list[Round]) -> bool:
        """Say whether nothing is left to ask: no row, or none that the last scan could find."""
        if not past or past[-1].status != "closed":
            return False
        # By the rows that the round froze: telling where a campaign stands takes no look at its pool.
        last = past[-1]
        held_back = self._never_asked(last.stop_set)
        spent = not self.campaign.batch_size(last.number) or (held_back < last.n_rows).sum() >= last.n_rows
        return bool(spent) and self._grown().n_rows <= last.n_rows

    def _current(self) -> Round:
        current = self.campaign.current_round
        if current is None:  # the lock is ours, so nobody else can have closed it
            raise RuntimeError("there is no open round")
        return current

    def _freeze(self) -> None:
        pool, settings = self._grown(), self.settings
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
        left = pool.n_rows - len(self._never_asked(settings.stop_set))
        if left < settings.batch:
            _log.warning("Only %d records were never asked: the batch is that short.", left)
        self.campaign.freeze_round(
            pool_fingerprint=pool.fingerprint,
            n_rows=pool.n_rows,
            k=min(settings.batch, left, self._budget(len(codes))),
            explore=settings.explore,
            seed=settings.seed,
            strategy=strategy,
            stop_set=settings.stop_set,
        )

    def _never_asked(self, stop_set: int, current: Round | None = None) -> Rows:
        """Give the rows that are not to be asked: asked ones and their like, the stop set, and what is held out."""
        return self._held_back(self.campaign.excluded_rows(current), stop_set)

    def _held_back(self, excluded: Rows, stop_set: int) -> Rows:
        return np.union1d(excluded, np.append(self._stop_rows(stop_set), self.reserved))

    def _stop_rows(self, count: int) -> Rows:
        # Of the pool as it was when the campaign began: rows that are appended change no choice.
        draws = uniform_rows(self.campaign.n_rows, np.empty(0, np.int64), self.settings.seed, STOP_SET)
        return np.sort(np.fromiter(islice(draws, count), np.int64))

    def _fit(self, current: Round) -> None:
        labels, learner = self.labels(current.last_answer), learner_of(self.campaign)
        X = self.features(labels.rows)
        valid = usable(X, missing=learner.takes_missing(self.pool.n_features))
        positions, codes, weights = labels.weighted()
        sound = valid[positions]
        left_out = int((~valid).sum())
        with self._withdrawing(current):
            if left_out and len(np.unique(codes[sound])) < 2:
                raise LearnerError(
                    f"The labels that the learner can be given are of fewer than two classes: {left_out:,} of"
                    f" {len(valid):,} are left out, because features of their records are missing or infinite, and"
                    " some learners take missing ones, such as hgb"
                )
            model = learner.fit(
                X[positions[sound]],
                codes[sound],
                None if weights is None else weights[sound],
                committee=Strategy.named(current.strategy).committee,
            )
            if not np.isfinite(model.predict_proba(X[valid][:1000])).all(axis=1).any():
                raise LearnerError(f"{model.kind} predicts nothing finite for any of the records that it was fitted on")
        notes = {
            "warnings": list(model.warnings),
            "invalid_labeled": left_out,
            "measured": self._measured(current, model),
        }
        self.campaign.save_model(current, model.dumps(), trained_on=len(valid) - left_out, notes=notes)

    def _measured(self, current: Round, model: Model) -> dict[str, float]:
        """Compare the model with the one before on the stop set, and try it on the user's holdout."""
        measured: dict[str, float] = {}
        X = self._stop_set(current.stop_set)
        if len(X := X[usable(X, missing=model.takes_missing)]):
            proba = model.predict_proba(X)
            # A record may be so far from all others that an estimator overflows.
            if (finite := np.isfinite(proba).all(axis=1)).any():
                measured["uncertainty"] = float(of_probabilities("entropy", proba[finite]).score.mean())
            if current.parent_model is not None:
                before = Model.loads(self.campaign.load_model(current.parent_model), self.settings.trusted)
                proba, X = (each[usable(X, missing=before.takes_missing)] for each in (proba, X))
                now, then = proba.argmax(axis=1), before.predict_proba(X).argmax(axis=1)
                measured["changed"] = float((now != then).mean())
                # Kappa of two models that agree on a single class is 0 / 0.
                measured["kappa"] = 1.0 if (now == then).all() else float(cohen_kappa_score(now, then))
        holdout = _read_holdout(self.settings, self.pool.n_features, self.campaign.directory)
        if holdout is not None:
            given = usable(holdout[0], missing=model.takes_missing)  # all, unless the learner was changed since
            X, codes = holdout[0][given], holdout[1][given]
            measured["holdout_correct"] = int((model.predict_proba(X).argmax(axis=1) == codes).sum())
            measured["holdout_asked"] = len(codes)
        return measured

    def _stop_set(self, count: int) -> npt.NDArray[np.float32]:
        """Read the stop set's features, kept in the campaign: in a large pool each record costs its chunk."""
        rows, path = self._stop_rows(count), self.campaign.directory / "stop-set.npz"
        kept = _loaded(path, path.name) if path.exists() else None
        if kept is None or not np.array_equal(kept["rows"], rows):
            kept = {"rows": rows, "features": self.pool.take(rows)}
            with replacing(path) as file:
                np.savez(file, allow_pickle=False, **kept)
        X: npt.NDArray[np.float32] = kept["features"]
        return X

    @contextmanager
    def _withdrawing(self, current: Round) -> Iterator[None]:
        """Take the round back if its learner refuses what was frozen.

        It would refuse it again however often it is tried; the next round may freeze more labels, or another learner.
        """
        try:
            yield
        except LearnerError as error:
            self.campaign.withdraw_round(current)
            raise LearnerError(
                f"{str(error).rstrip('.')}. Label more records, imported or asked by dal next --coverage, or choose"
                " another learner."
            ) from error

    def _model(self, current: Round) -> Model | None:
        if current.model is None:
            return None
        return Model.loads(self.campaign.load_model(current.model), self.settings.trusted)

    def _strategy(self, current: Round, model: Model | None) -> Strategy:
        strategy = Strategy.named(current.strategy, current.explore)
        return strategy if model is not None else strategy.cold()

    def _codebook(self) -> tuple[Codebook, str]:
        """Give the campaign's codebook and its file's digest: the newest scan's, or, before the first, a new one."""
        summaries = [each.summary or {} for each in self.campaign.rounds()]
        committed = next((told["codebook"] for told in reversed(summaries) if "codebook" in told), None)
        if committed is not None:
            try:
                data = self.campaign.objects.read(_codebook_name(committed), committed)
            except CampaignError as error:
                _log.warning("%s. It is made again from the pool.", error)
            else:
                return _codebook_from(data), committed
        # From the pool as it was when the campaign began: what is made again is the same, whatever was appended since.
        strategy = Strategy.named(self.settings.strategy, self.settings.explore)
        cells = strategy.n_cells(self.settings.batch, self.campaign.n_rows)
        codebook = sample_codebook(self.pool.head(self.campaign.n_rows), cells, self.settings.seed)
        data = _as_npz(mean=codebook.mean, scale=codebook.scale, axes=codebook.axes, centers=codebook.centers)
        self.campaign.objects.write(_codebook_name(digest_of(data)), data)
        return codebook, digest_of(data)

    def features(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Read features of rows; those of asked records were kept when they were asked.

        Scattered through a large pool, each of them would cost a whole chunk, every round again.
        """
        found = np.zeros(len(rows), dtype=bool)
        if np.max(rows, initial=0) >= self.pool.n_rows:  # a label of a record that was appended a moment ago
            self._grown()
        X = np.empty((len(rows), self.pool.n_features), dtype=np.float32)
        for each in self.campaign.rounds():
            kept = self._kept_features(each) if each.opened_at is not None else None
            if kept is not None and len(kept["rows"]):
                order = np.argsort(kept["rows"])
                known = kept["rows"][order]
                position = np.minimum(np.searchsorted(known, rows), len(known) - 1)
                here = known[position] == rows
                X[here] = kept["features"][order[position[here]]]
                found |= here
        X[~found] = self.pool.take(rows[~found])
        return X

    def _kept_features(self, opened: Round) -> dict[str, npt.NDArray[Any]] | None:
        name = _features_name(opened.number)
        data = self.campaign.objects.find(name)
        return None if data is None else _loaded(io.BytesIO(data), name)

    def _scan(self, current: Round, *, cold: bool) -> None:
        model = None if cold else self._model(current)
        strategy = self._strategy(current, model)
        codebook, digest = self._codebook() if strategy.traits.features else (None, None)
        cells = None if codebook is None else stored_cells(self.campaign.objects.cells, current.n_rows, codebook)
        with self._withdrawing(current):
            found = scan(
                self.pool.head(current.n_rows),
                model,
                strategy,
                self._wanted(current, strategy),
                self._never_asked(current.stop_set, current),
                seed=current.seed,
                round=current.number,
                codebook=codebook,
                cells=cells,
                client=self.client,
                journal=self._journal,
                progress=self.progress,
                with_features=True,
                missing=self._takes_missing(model),
            )
        summary = _summary_as_json(found.summary) | ({} if digest is None else {"codebook": digest})
        self.campaign.save_scan(current, _as_npz(**candidate_arrays(found.candidates)), summary)
        if codebook is not None and cells is not None and found.summary.wrote_cells:
            cells_written(cells, codebook)

    def _reserve(self, current: Round) -> int:
        """Say how many records to choose beyond the batch: none beyond the budget, in the last batch."""
        wanted = math.ceil(self.settings.reserve * current.k)
        return max(0, min(wanted, self._budget(current.labels) - current.k))

    def _wanted(self, current: Round, strategy: Strategy) -> int:
        """Say for how many records candidates are kept: a shortlist is long enough for the reserve as well."""
        return current.k + (self._reserve(current) if strategy.shortlist == 1 else 0)

    def _budget(self, labels: int) -> int:
        budget = label_budget(self.criteria)
        return self.campaign.n_rows if budget is None else budget - labels

    def _room(self) -> int:
        """Say how many records more may be asked, now that answers came since the freeze and more are in hand."""
        known, held = self.labels(None).rows, self.campaign.in_hand()
        return self._budget(len(known) + len(np.setdiff1d(held, known)))

    @property
    def _journal(self) -> Journal:
        return Journal(self.campaign.directory / "journal")

    def _select(self, current: Round) -> None:
        # The scan is durable. Not cleared by the scan itself: killed in between, the journal would stay for good.
        self._journal.clear()
        model = self._model(current)
        strategy = self._strategy(current, model)
        # From here on people have the records that they hold; the page holds ten of them.
        excluded = self.campaign.withdraw_reserve()
        with np.load(io.BytesIO(self.campaign.load_scan(current))) as arrays:
            candidates = candidates_from(arrays)
        drawn = _Drawn.none(self.pool.n_features)
        if len(candidates):
            held = self._held_back(excluded, current.stop_set)
            drawn = self._drawn(current, held, model, missing=self._takes_missing(model))
        asked = _Asked(np.append(excluded, drawn.rows), np.concatenate([self.features(excluded), drawn.X]))
        chosen = self._chosen(current, strategy, candidates, asked, current.k - len(drawn.rows))
        order = interleaved(chosen.rows.tolist(), drawn.rows)
        if len(order) < current.k:
            _log.warning(
                "The batch holds %d records instead of %d: the other candidates are near-duplicates of these or of"
                " records asked before.",
                len(order),
                current.k,
            )
        # The reserve is chosen after the batch and apart from it, so that it changes nothing about the batch.
        asked = _Asked(np.append(asked.rows, chosen.rows), np.concatenate([asked.X, chosen.embeddings]))
        spare = self._chosen(current, strategy, candidates, asked, self._reserve(current))
        room = self._room()
        order = order[: max(room, 1)]
        spare = spare.take(np.arange(min(len(spare), max(room - len(order), 0))))
        chosen = candidates.take(np.searchsorted(candidates.rows, np.append(chosen.rows, spare.rows)))
        self._keep_features(current, chosen, drawn)
        answers = dict(zip(chosen.rows.tolist(), zip(chosen.scores, chosen.predicted, strict=True), strict=True))
        answers |= dict(zip(drawn.rows, self._judged(model, strategy, drawn.X), strict=True))
        sure = self._confidence(model, chosen, drawn, {row: code for row, (_, code) in answers.items()})
        order += spare.rows.tolist()
        explored = set(drawn.rows)
        self.campaign.open_batch(
            current,
            order,
            self.pool.record_ids(order),
            [None if answers[row][0] is None else float(answers[row][0]) for row in order],
            [int(answers[row][1]) if answers[row][1] >= 0 else None for row in order],
            [row in explored for row in order],
            confidence=[sure.get(row) for row in order],
            reserve=len(spare),
        )

    def _takes_missing(self, model: Model | None) -> bool:
        """Say whether a round asks records with missing features: a model says so itself, as of when it was fitted."""
        if model is not None:
            return model.takes_missing
        return learner_of(self.campaign).takes_missing(self.pool.n_features)

    def _drawn(self, current: Round, excluded: Rows, model: Model | None, *, missing: bool) -> "_Drawn":
        """Draw the explore share: valid records only, because an invalid one is never asked.

        As in the scan, a record is invalid, too, that is so far from all others that the model overflows.
        """
        before = [asked for each in self.campaign.rounds() for asked in self.campaign.batch(each.number)]
        explored = sum(asked.explore for asked in before)
        count = explore_count(current.explore, len(before), explored, current.k)
        drawn = _Drawn.none(self.pool.n_features)
        draws = uniform_rows(current.n_rows, excluded[excluded < current.n_rows], current.seed, current.number)
        while wanted := list(islice(draws, count - len(drawn.rows))):
            X = self.pool.take(wanted)
            valid = usable(X, missing=missing)
            if model is not None and valid.any():
                valid[valid] = np.isfinite(model.predict_proba(X[valid])).all(axis=1)
            rows = [row for row, keep in zip(wanted, valid.tolist(), strict=True) if keep]
            drawn = _Drawn(drawn.rows + rows, np.concatenate([drawn.X, X[valid]]))
        return drawn

    def _chosen(
        self, current: Round, strategy: Strategy, candidates: Candidates, asked: "_Asked", count: int
    ) -> Candidates:
        codebook = self._codebook()[0] if strategy.traits.features else None
        rows = choose(
            candidates,
            strategy,
            count,
            capacity=strategy.capacity(
                self._wanted(current, strategy), current.n_rows, len(codebook.centers) if codebook else None
            ),
            codebook=codebook,
            asked=asked.X,
            excluded=asked.rows,
            seed=current.seed,
            round=current.number,
            mapper=map if self.client is None else partial(map_on, self.client),
        )
        return candidates.take(np.searchsorted(candidates.rows, rows))

    def _keep_features(self, current: Round, chosen: Candidates, drawn: "_Drawn") -> None:
        # No more than a copy of what the pool holds, and not missed if it is gone.
        rows = np.concatenate([chosen.rows, np.array(drawn.rows, dtype=np.int64)])
        data = _as_npz(rows=rows, features=np.concatenate([chosen.embeddings, drawn.X]))
        self.campaign.objects.write(_features_name(current.number), data)

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


def _loaded(source: Path | io.BytesIO, name: str) -> dict[str, npt.NDArray[Any]] | None:
    """Read arrays that can be made again; None if they were torn by a power cut."""
    try:
        with np.load(source) as stored:
            return dict(stored)
    except (EOFError, ValueError, KeyError, BadZipFile) as error:
        _log.warning("%s is torn (%s): it is made again.", name, error)
        return None


def _features_name(number: int) -> str:
    return f"rounds/{number:04d}-features.npz"


def _codebook_name(digest: str) -> str:
    return f"codebook-{digest[:16]}.npz"


def _codebook_from(data: bytes) -> Codebook:
    with np.load(io.BytesIO(data)) as stored:
        return Codebook(stored["mean"], stored["scale"], stored["axes"], stored["centers"])


def _as_npz(**arrays: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _summary_as_json(summary: Summary) -> dict[str, object]:
    tally = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(summary.tally).items()
    }
    confidence = summary.tally.mean_confidence
    rest = {name: value for name, value in vars(summary).items() if name != "tally"}
    return {**tally, **rest, "mean_confidence": None if np.isnan(confidence) else confidence}


def records_to_try(pool: Pool) -> npt.NDArray[np.float32]:
    """Draw the records that a learner is tried on: out of a few chunks, so that making a campaign stays cheap."""
    size = min(TRIED_ROWS, max(8, TRIED_BYTES // (4 * pool.n_features)))
    return pool.take(sample_rows(pool.n_rows, 0, size, blocks=8, block_rows=size // 8 + 1))


def _stop_set_of(n_rows: int) -> int:
    """Give the stop set's size where none was chosen: in a small pool each record is worth more as a label."""
    size = min(n_rows // 100, 1000)
    return size if size >= 100 else 0


def _read_holdout(
    settings: Settings, n_features: int, beside: Path = Path()
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
    """Read the labelled records that the user has set apart."""
    if not settings.holdout:
        return None
    try:
        X, y = read_labelled(beside / settings.holdout, n_features)
        return X, codes_of(y, settings.classes, what="y")
    except (LabelError, SettingsError) as error:
        raise SettingsError(f"The holdout: {error}.") from error
