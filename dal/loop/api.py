"""The user's doors to the loop: make a campaign, go on to its next batch, run it until it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from dal.campaign import Campaign, Settings
from dal.campaign.parts import SAVED_LEARNER
from dal.choices import Missing, Vote
from dal.classes import names_of
from dal.compute.workers import Workers, workers_of
from dal.errors import SettingsError
from dal.evidence.stopping import Criterion, parse, texts_of
from dal.learners.learner import Learner
from dal.learners.presets import Preset
from dal.loop.batch import Batch
from dal.loop.coordinator import Coordinator, Stopped, check_weights
from dal.loop.measure import read_holdout
from dal.pool import Pool
from dal.scan import Progress
from dal.scan.driver import sample_rows
from dal.selection.candidates import usable
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from dal.compute.client import Connectable

__all__ = ["Batch", "Stopped", "create_campaign", "next_batch", "records_to_try", "run_campaign"]

Rows = npt.NDArray[np.int64]
TRIED_ROWS, TRIED_BYTES = 1280, 64 * 2**20


def create_campaign(
    directory: str | Path,
    pool: Pool | str | Path,
    classes: Sequence[str],
    *,
    learner: str | BaseEstimator | Preset = "logistic",
    strategy: str | Strategy = "default",
    batch: int = 100,
    seed: int = 0,
    stop: str | Criterion | Sequence[str | Criterion] = (),
    explore: float | None = None,
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
    learner : str, estimator or function, default="logistic"
        ``logistic``, ``forest``, ``hgb``, ``mlp``, ``module:object``, an installed plug-in, a scikit-learn classifier,
        or a :class:`dal.learners.presets.Preset`.
    strategy : str or Strategy, default="default"
        A name as :meth:`dal.Strategy.named` reads it, or an object; a score or selector of your own in it must be a
        function or class of a module, because settings keep its name.
    batch : int, default=100
        Records asked in a round.
    seed : int, default=0
        Same seed, same batches.
    stop : str, Criterion, or sequence of these, default=()
        Stopping criteria such as ``"max_labels=5000"`` or ``MaxLabels(5000)``; any of them ends the campaign.
    explore : float, default=0.05, or as `strategy` has it
        Share of what is asked that is drawn uniformly.
    trusted : sequence of str, default=()
        Types, by full name, that a saved learner may hold beyond scikit-learn's own.
    overlap : int, default=1
        Annotators who are to answer each record.
    gold : float, default=0
        Share of the records served to an annotator whose label is known (`campaign.answers.add_gold`).
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
    if explore is None:
        explore = strategy.explore if isinstance(strategy, Strategy) else Strategy.explore
    name = learner if isinstance(learner, str) else SAVED_LEARNER
    settings = Settings(
        pool=pool.path,
        classes=names_of(classes),
        learner=name,
        strategy=strategy.text if isinstance(strategy, Strategy) else strategy,
        batch=batch,
        seed=seed,
        stop=texts_of(stop),
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
    score = Strategy.named(settings.strategy, explore).scorer
    for text in settings.stop:
        parse(text)
    if batch > pool.n_rows:
        raise SettingsError(f"Expected a batch of at most the pool's {pool.n_rows:,} records, got {batch:,}.")
    if settings.stop_set > pool.n_rows // 2:
        raise SettingsError(
            f"Expected a stop set of at most half of the pool's {pool.n_rows:,} records, got {settings.stop_set:,}."
        )
    named = Learner.of(learner, settings.classes, random_state=seed, trusted=settings.trusted)
    apart = read_holdout(settings, pool.n_features)
    check_weights(named, settings)
    named.check(pool.n_features, score, records=records_to_try(pool), weighted=settings.vote == "dawid_skene")
    if apart is not None and not usable(apart[0], missing=named.takes_missing(pool.n_features)).all():
        raise SettingsError("The holdout holds NaN or infinite features: the learner cannot be tried on them.")
    saved = named.dumps() if name == SAVED_LEARNER else None
    return Campaign.create(directory, settings, pool_fingerprint=pool.fingerprint, n_rows=pool.n_rows, learner=saved)


def next_batch(
    campaign: Campaign,
    *,
    client: "Connectable | Workers" = None,
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
    client : distributed.Client, Cluster or str, optional
        Where to scan, see :func:`dal.compute.client.connect`; without one, in this process.
    progress : callable, optional
        Called with the scan's progress.
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
    with campaign.lock(), workers_of(client) as workers:
        coordinator = Coordinator(campaign, workers, progress, coverage=coverage, reserved=reserved)
        return coordinator.run(close=close)


def run_campaign(
    campaign: Campaign,
    *,
    client: "Connectable | Workers" = None,
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
    client : distributed.Client, Cluster or str, optional
        Where to scan, see :func:`dal.compute.client.connect`; without one, in this process.
    progress : callable, optional
        Called with each scan's progress.
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
    with campaign.lock(), workers_of(client) as workers:
        coordinator = Coordinator(campaign, workers, progress)
        while not ended.is_set():
            given = coordinator.run(close=False)
            if isinstance(given, Stopped):
                return given
            if on_batch is not None:
                on_batch(given)
            while coordinator.view.waiting() and not ended.wait(patience):
                pass
    return None


def records_to_try(pool: Pool) -> npt.NDArray[np.float32]:
    """Draw the records that a learner is tried on, out of a few chunks, so that making a campaign stays cheap."""
    size = min(TRIED_ROWS, max(8, TRIED_BYTES // (4 * pool.n_features)))
    return pool.take(sample_rows(pool.n_rows, 0, size, blocks=8, block_rows=size // 8 + 1))


def _stop_set_of(n_rows: int) -> int:
    """Return the stop set's size where none was chosen: in a small pool each record is worth more as a label."""
    size = min(n_rows // 100, 1000)
    return size if size >= 100 else 0
