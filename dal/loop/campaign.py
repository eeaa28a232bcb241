"""The campaign as its users hold it: make one, take batch after batch, label, read where it stands."""

import getpass
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from dal.campaign import Answer, CampaignStore, Labelling, Measuring, Scanning, Settings, Storage
from dal.campaign.choice import Comparison, Switch
from dal.campaign.features import Features
from dal.campaign.parts import SAVED_LEARNER, pool_of
from dal.campaign.view import Status, View, status
from dal.choices import Missing
from dal.classes import UNLABELLED, codes_of, names_of
from dal.compute.workers import Workers, workers_of
from dal.encoders.tuning import Tuning
from dal.errors import CampaignError, LabelError, SettingsError
from dal.evidence.stopping import Criterion, parse, texts_of
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.presets import Preset, chosen_or_default
from dal.loop.actions import Stop
from dal.loop.batch import Batch
from dal.loop.bias import Bias, Biases, Weights, weights_of
from dal.loop.coordinator import Coordinator, Stopped, fitted, is_insured, loaded
from dal.loop.learners import Named, check_learner, compare_learners, records_to_try, switch_learner
from dal.loop.pilot import PilotPlan, plan
from dal.loop.search import Like, search_of
from dal.loop.state import next_step
from dal.pool import Pool
from dal.scan import Progress
from dal.selection.strategy import Strategy, strategy_or_default
from dal.texts import brief

if TYPE_CHECKING:
    from dal.compute.client import Connectable

__all__ = ["Batch", "Campaign", "Stopped"]

Rows = npt.NDArray[np.int64]
_log = logging.getLogger(__name__)


class Campaign(CampaignStore):
    """One labelling effort: a pool, its settings, and everything that was asked and answered.

    Made by `create` or `open`. Every step is durable: a process that is killed leaves the state before or after it, and
    the next one goes on from there. Safe to use from several threads; there is nothing to close.

    Attributes
    ----------
    directory : Path
    settings : Settings
        As campaign.toml says now; a round keeps its own, frozen.
    answers : AnswerLog
        All answers, by annotator and time.
    rounds : Rounds
        All rounds, with their batches and models.

    Examples
    --------
    >>> import numpy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> y = numpy.arange(400) % 2
    >>> X = numpy.random.default_rng(0).normal(y[:, None], 1.0, (400, 2))
    >>> pool = Pool.build(X, f"{folder.name}/pool.zarr")
    >>> campaign = Campaign.create(
    ...     f"{folder.name}/campaign", pool, ["ham", "spam"], batch_size=10, stop="max_labels=30"
    ... )
    >>> for batch in campaign.batches():
    ...     campaign.label(batch, y[batch.rows])
    >>> campaign.status().labels, campaign.fit().classes_.tolist()
    (30, ['ham', 'spam'])
    >>> folder.cleanup()
    """

    @classmethod
    def create(
        cls,
        directory: str | Path,
        pool: Pool | str | Path,
        classes: Sequence[str],
        *,
        estimator: str | BaseEstimator | Preset = Settings.estimator,
        strategy: str | Strategy = Settings.strategy,
        batch_size: int = Settings.batch_size,
        random_state: int = Settings.random_state,
        stop: str | Criterion | Sequence[str | Criterion] = Settings.stop,
        balance: str | Mapping[str, float] | Sequence[str] = Settings.balance,
        explore: float | None = None,
        trusted: Sequence[str] = Settings.trusted,
        missing_chunks: Missing | None = None,
        labelling: Labelling = Settings.labelling,
        storage: Storage = Settings.storage,
        measuring: Measuring = Settings.measuring,
        scanning: Scanning = Settings.scanning,
    ) -> Self:
        """Make a campaign; refuse everything that can be refused now, before anything is written.

        Parameters
        ----------
        directory : path
            Empty, or not there yet.
        pool : Pool or path
        classes : sequence of str
            At least two; numbers stand for themselves as text.
        estimator : str, estimator or function
            As in :class:`dal.campaign.Settings`; or a scikit-learn classifier, which is saved with the campaign, or a
            :class:`dal.learners.presets.Preset`. Default: ``head`` where an encoder made the pool's features, else
            ``logistic``.
        strategy : str or Strategy
            A name as :meth:`dal.Strategy.named` reads it, or an object; a score or selector of your own in it must be a
            function or class of a module, because settings keep its name. Default: ``class_coverage`` where an encoder
            made the pool's features, else ``default``.
        stop : str, Criterion, or sequence of these
            Stopping criteria such as ``"max_labels=5000"`` or ``dal.MaxLabels(5000)``, see
            :mod:`dal.evidence.stopping`; any of them ends the campaign.
        balance : str, mapping from str to float, or sequence of str
            The share of all labels that a class is to have, such as ``{"rare": 0.2}``; ``"uniform"`` is the same for
            all. Batches then hold records that are predicted to be of the classes that lack most.
        explore : float, default=0.05, or as `strategy` has it
        missing_chunks : {"refuse", "fill"}, default as the pool was opened, else "refuse"
        batch_size, random_state, trusted, labelling, storage, measuring, scanning
            As in :class:`dal.campaign.Settings`.

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
        estimator = chosen_or_default(estimator, pool.encoder)
        strategy = strategy_or_default(strategy, pool.encoder)
        if explore is None:
            explore = strategy.explore if isinstance(strategy, Strategy) else Settings.explore
        if measuring.stop_set is None:
            measuring = replace(measuring, stop_set=_stop_set_of(pool.n_rows))
        if measuring.holdout:
            measuring = replace(measuring, holdout=str(Path(measuring.holdout).absolute()))
        settings = Settings(
            pool=pool.path,
            classes=names_of(classes),
            estimator=estimator if isinstance(estimator, str) else SAVED_LEARNER,
            strategy=strategy.text if isinstance(strategy, Strategy) else strategy,
            batch_size=batch_size,
            random_state=random_state,
            stop=texts_of(stop),
            balance=_balance_texts(balance),
            explore=explore,
            trusted=tuple(trusted),
            missing_chunks=missing_chunks or pool.missing_chunks,
            labelling=labelling,
            storage=storage,
            measuring=measuring,
            scanning=scanning,
        )
        for text in settings.stop:
            parse(text)
        held = measuring.stop_set or 0
        if batch_size > pool.n_rows:
            raise SettingsError(f"`batch_size` must be at most the pool's {pool.n_rows:,} records, got {batch_size:,}")
        if held > pool.n_rows // 2:
            raise SettingsError(f"`stop_set` must be at most half of the pool's {pool.n_rows:,} records, got {held:,}")
        named = Learner.of(estimator, settings.classes, random_state=random_state, trusted=settings.trusted)
        check_learner(named, settings, pool, records_to_try(pool))
        saved = named.dumps() if settings.estimator == SAVED_LEARNER else None
        return cls.make(directory, settings, pool_fingerprint=pool.fingerprint, n_rows=pool.n_rows, learner=saved)

    def batches(
        self, *, client: "Connectable | Workers" = None, progress: Callable[[Progress], None] | None = None
    ) -> Iterator[Batch]:
        """Yield batch after batch to label, until a criterion ends the campaign or the pool is exhausted.

        Each batch is given with the records that still wait for an answer, so nobody is asked twice: a batch that was
        open before, as after a kill, comes first. Advance when the batch is labelled by :meth:`label`, on the pages, or
        by an import. If some of it was answered, and the settings wait for the rest, the rest is given once more. If
        nothing was, the iteration ends with an error, and the batch stays open. :attr:`stopped` says why the iteration
        ended otherwise.

        The iteration holds the campaign's lock and its workers until it ends or is dropped.

        Parameters
        ----------
        client : Client, Cluster or str, optional
            Where to scan: a client, which is never closed, a cluster, or the address of a scheduler; by default in this
            process.
        progress : callable, optional
            Called with each scan's progress.

        Yields
        ------
        Batch

        Raises
        ------
        LabelError
            If records of the batch wait for answers, and none came since it was given.
        CampaignLocked
            If another process is at work on this campaign.
        """
        with self.lock(), workers_of(client) as workers:
            coordinator = Coordinator(self, workers, progress)
            given: tuple[int, int] | None = None
            while not isinstance(batch := coordinator.run(close=False), Stopped):
                now = batch.number, self.answers.last_id()
                if given == now:
                    raise LabelError(
                        f"`batch` {batch.number} must be labelled before the next one, got no answer since it was"
                        f" given; label its {batch.pending:,} open records (None skips one), or close it by"
                        " next_batch(close=True)"
                    )
                given = now
                if batch.fresh:
                    coordinator.advise()
                waiting = np.isin(batch.rows, self.rounds.waiting_rows(batch.number))
                ids = [record_id for record_id, waits in zip(batch.record_ids, waiting, strict=True) if waits]
                yield replace(batch, rows=batch.rows[waiting], record_ids=ids)

    @property
    def stopped(self) -> Stopped | None:
        """The criteria that ended the campaign, each with its reason; None while there is something left to do."""
        step = next_step(self)
        return Stopped(step.verdicts) if isinstance(step, Stop) else None

    def next_batch(
        self,
        *,
        client: "Connectable | Workers" = None,
        progress: Callable[[Progress], None] | None = None,
        close: bool = False,
        coverage: bool = False,
        full: bool = False,
        reserved: Rows | Sequence[int] = (),
        like: Like | None = None,
        where: str | None = None,
        share: float = 1.0,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> Batch | Stopped:
        """Do everything up to the next batch: close the round that is answered, train, scan, select, open.

        Killed at any instant and called again, it goes on from the last durable step and gives the same batch. While a
        batch is open it changes nothing. While all labels are of one class, batches are chosen by coverage of the pool,
        and a warning is logged.

        Parameters
        ----------
        client : distributed.Client, Cluster or str, optional
            Where to scan, see :func:`dal.compute.client.connect`; without one, in this process.
        progress : callable, optional
            Called with the scan's progress.
        close : bool, default=False
            Close an open batch with the answers it has, once there is one, or somebody holds a record of it. Records
            that nobody answered are not asked again, except where the share `close_at` of the batch was answered.
        coverage : bool, default=False
            Choose the new batch by coverage of the pool, as in a cold start, even though there are labels.
        full : bool, default=False
            Score the whole pool for the new batch, even though the campaign scores it by waves.
        reserved : array of int64, default=()
            Rows that are never asked, such as those of a test set. The campaign does not remember them: they are passed
            with every call, the same ones.
        like : str, sequence of str, or ndarray of shape (m, d), optional
            Examples to search for the like of: ids of records of the pool, or features of others. The nearest records
            that were never asked come into the batch. A batch that was begun before keeps what it was begun with.
        where : str, optional
            A condition on columns of the pool, such as ``"lang = 'de'"``, see :mod:`dal.pool.condition`. The batch is
            chosen as usual among the records that meet it, or, with `like`, the nearest of them.
        share : float, default=1
            Of the batch, that is searched for; at most what the explore share leaves. The rest is chosen as usual.
        on_batch : callable, optional
            Given the batch once it is open. Where learners are compared as labels grow, that comes after it.

        Returns
        -------
        Batch or Stopped

        Raises
        ------
        InputError
            If an example cannot be searched for, or a condition cannot be read.
        LearnerError
            If the learner refuses the labels, such as for too few of a class; the round is withdrawn then.
        CampaignLocked
            If another process is at work on this campaign.
        """
        search = None if like is None and where is None else search_of(pool_of(self), like, where, share)
        with self.lock(), workers_of(client) as workers:
            coordinator = Coordinator(
                self, workers, progress, coverage=coverage, full=full, reserved=reserved, search=search
            )
            given = coordinator.run(close=close)
            if isinstance(given, Batch):
                if on_batch is not None:
                    on_batch(given)
                if given.fresh:
                    coordinator.advise()
        if coordinator.full and isinstance(given, Batch) and self.rounds.get(given.number).waves is not None:
            told = "Round %d was begun by waves before this call, and keeps its batch; ask for a full pass again."
            _log.warning(told, given.number)
        unused = coordinator.search is not None
        if unused and isinstance(given, Batch) and self.rounds.get(given.number).search != search:
            told = "Round %d was begun before this search, and keeps its batch; search again for the next."
            _log.warning(told, given.number)
        return given

    def run(
        self,
        *,
        client: "Connectable | Workers" = None,
        progress: Callable[[Progress], None] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
        on_rest: Callable[[str], None] | None = None,
        ended: Event | None = None,
        patience: float = 1.0,
    ) -> Stopped | None:
        """Carry on round after round, as the answers come in, until a criterion ends the campaign.

        People answer through the queue (`dal.campaign.Queue`), by imports, or both. A round is closed when the share
        ``close_at`` of its batch is answered. Its rest is served on, while the next batch is prepared and then before
        that batch; where it runs out, the reserve is served meanwhile.

        Parameters
        ----------
        client : distributed.Client, Cluster or str, optional
            Where to scan, see :func:`dal.compute.client.connect`; without one, in this process.
        progress : callable, optional
            Called with each scan's progress.
        on_batch : callable, optional
            Given each batch once it is open.
        on_rest : callable, optional
            Given a sentence where the next batch is prepared while records of the last one wait for answers.
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
        with self.lock(), workers_of(client) as workers:
            coordinator = Coordinator(self, workers, progress, on_rest=on_rest)
            while not ended.is_set():
                given = coordinator.run(close=False)
                if isinstance(given, Stopped):
                    return given
                if on_batch is not None:
                    on_batch(given)
                if given.fresh:
                    coordinator.advise()
                while coordinator.view.waiting() and not ended.wait(patience):
                    pass
        return None

    def label(self, records: Batch | Sequence[str], labels: object, *, annotator: str = "oracle") -> None:
        """Record one annotator's answers to some records, in one transaction.

        Called again with the same labels it changes nothing; with others, the new ones count, and the old ones are
        kept.

        Parameters
        ----------
        records : Batch or sequence of str
            A batch, or the ids of any records of the pool, asked or not.
        labels : array-like
            A class for each record, by name; also by code, in the order of ``settings.classes``, where no class has a
            number as its name. A record without one (None, NaN, an empty text, masked) is skipped: it has no label, and
            its batch does not wait for this annotator.
        annotator : str, default="oracle"
            Who answers.

        Raises
        ------
        LabelError
            If a label names no class or may be read in two ways, records and labels do not belong together, or the pool
            has no such record; no answer was added then.
        """
        codes = codes_of(labels, self.settings.classes, what="labels", gaps=True, codes=True)
        ids = records.record_ids if isinstance(records, Batch) else list(records)
        if len(ids) != len(codes):
            raise LabelError(f"`labels` must be as many as the {len(ids):,} records, got {len(codes):,}")
        for name, texts in (("records", ids), ("annotator", [annotator])):
            if wrong := [each for each in texts if not isinstance(each, str)]:
                raise LabelError(f"`{name}` must be text, got {brief(wrong[0])}")
        rows = records.rows if isinstance(records, Batch) else pool_of(self).rows_of(ids)
        if (rows < 0).any():
            unknown = ids[int(np.argmin(rows))]
            raise LabelError(f"`records` must be ids of records of the pool, got {brief(unknown)}")
        answers = [
            Answer(row, record_id, annotator, "skipped", None)
            if code == UNLABELLED
            else Answer(row, record_id, annotator, "submitted", code)
            for row, record_id, code in zip(rows.tolist(), ids, codes.tolist(), strict=True)
        ]
        self.answers.add(answers, source=annotator)

    def finetune(
        self,
        source: object,
        pool: str | Path,
        encoder: object,
        *,
        ids: str | None = None,
        display: Sequence[str] = (),
        text: str | None = None,
        images: bool = False,
        header: bool | None = None,
        tuning: Tuning | None = None,
        client: object = None,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Self:
        """Train the encoder on all labels so far, encode all records again, and move to that pool.

        The labels train the encoder together with a linear head, which is dropped. The new pool has the same rows and
        ids. People go on labelling meanwhile: their answers stay, and nobody is asked twice. The honest ruler begins
        again, because the models of before knew other features; the status shows both. Killed and called again with
        the same arguments, it goes on.

        Parameters
        ----------
        source : object
            The raw records of the whole pool, as in :meth:`dal.Pool.build`, in the same order.
        pool : path
            Where to write the new pool.
        encoder : SentenceEncoder or TorchEncoder
            As it is: a campaign that moved before may go on with the encoder of its pool, see
            :func:`dal.encoders.tuned`.
        ids, display, text, images, header
            As in :meth:`dal.Pool.build`.
        tuning : Tuning, optional
            Epochs, learning rate, batch size and seed.
        client : distributed.Client, optional
            Workers that encode. The encoder is trained in this process.
        progress : callable, optional
            Called with ``"epochs"`` or ``"rows"``, how many are done, and of how many.

        Returns
        -------
        Campaign
            On the new pool. Objects that were opened before stay with the other one.

        Raises
        ------
        SettingsError
            If the encoder cannot be trained, the settings name a holdout, or labels are of fewer than two classes.
        SourceError
            If the source does not hold the pool's records in their order.
        CampaignLocked, CampaignError
            If a round is being computed when the campaign is to move; call again after it.
        """
        from dal.loop.finetune import finetune
        from dal.pool.build import Options

        how = Options(ids, None, display, text, None, header, None, None, encoder, images, client)
        finetune(self, source, pool, encoder, how, tuning or Tuning(), progress)
        return type(self).open(self.directory)

    def fit(self) -> Model:
        """Fit the learner on all labels that there are now, those of the last batch as well; store nothing.

        Returns
        -------
        Model

        Raises
        ------
        LearnerError
            If the labels are of fewer than two classes, or the learner refuses them.
        """
        view = View(self)
        insured = is_insured(Strategy.named(self.settings.strategy), self.settings.explore)
        return fitted(self, view.labels(), Features(view), parent=self._newest(), insured=insured).model

    def compare_learners(
        self,
        learners: Sequence[Named] = (),
        *,
        client: "Connectable | Workers" = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Comparison:
        """Compare other learners with the one in use, on the labels so far.

        Each is fitted on four fifths of the labels and judged on the rest, fifteen times. The labels are weighted to
        the pool, and the interval of a difference allows for the fits sharing their records: with few labels the
        verdict is that it is too early to tell. An accuracy has a value where all labels were drawn at random. Else
        only a lower bound is known, by those that were. The result is kept, and nothing
        else is changed.

        Parameters
        ----------
        learners : sequence of str, estimator or function
            As the `estimator` of :meth:`create`; a ``GridSearchCV`` searches its grid in each fit. Default: the
            presets but ``sgd``.
        client : distributed.Client, Cluster or str, optional
            Where to fit; without one, in this process.
        progress : callable, optional
            Called with the fits that are done, and of how many.

        Returns
        -------
        Comparison

        Raises
        ------
        LearnerError
            If a learner that was named cannot be used. One that cannot be fitted on a part of the labels is left out,
            and `notes` says why.
        """
        with workers_of(client) as workers:
            return compare_learners(self, learners, workers=workers, progress=progress)

    def bias(self) -> Bias:
        """Compare the labels with the pool: classes, regions, and how each record came to be labelled.

        Returns
        -------
        Bias
        """
        return Biases(View(self)).now()

    def weights(
        self,
        *,
        client: "Connectable | Workers" = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Weights:
        """Weigh all labels so far, so that they stand for the pool, and judge the learner in use trained with that.

        The learner is fitted on four fifths of the labels and predicts the rest, fifteen times. The labels are weighted
        by the class and the margin that it predicts, to a thousand records of the pool; then the learner is fitted with
        these weights as often, and both are compared. Nothing is stored, and the campaign goes on without weights.

        Parameters
        ----------
        client : distributed.Client, Cluster or str, optional
            Where to fit; without one, in this process.
        progress : callable, optional
            Called with the first fits that are done, and of how many.

        Returns
        -------
        Weights
        """
        with workers_of(client) as workers:
            return weights_of(self, workers=workers, progress=progress)

    def plan(
        self,
        target: float,
        *,
        price: float | None = None,
        pace: float | None = None,
        imported_at_random: bool = False,
        client: "Connectable | Workers" = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PilotPlan:
        """Estimate the labels that an accuracy takes, by random sampling and by the default, and their cost.

        The learner is fitted on parts of the labels that were drawn at random, of which there must be 200: those of the
        explore share, those asked by the strategy ``random``, and imported ones by `imported_at_random`. Nothing is
        changed, and no curve is followed beyond four times these labels.

        Parameters
        ----------
        target : float
            Accuracy on the pool, between 0 and 1.
        price : float, optional
            Of one answer, in any currency.
        pace : float, optional
            Answers a day, of all annotators together.
        imported_at_random : bool, default=False
            Whether the labelled records that the campaign never asked were drawn uniformly from the pool.
        client : distributed.Client, Cluster or str, optional
            Where to fit; without one, in this process.
        progress : callable, optional
            Called with the parts of the work that are done, and of how many.

        Returns
        -------
        PilotPlan

        Raises
        ------
        InputError
            If `target`, `price` or `pace` is no such number.
        LearnerError
            If the learner refuses a part of the labels.
        """
        with workers_of(client) as workers:
            return plan(
                self,
                target,
                price=price,
                pace=pace,
                imported_at_random=imported_at_random,
                workers=workers,
                progress=progress,
            )

    def switch_learner(self, learner: Named, reason: str = "", *, person: str = "") -> Switch:
        """Use another learner from the next round on, and remember when and why.

        A round that has begun keeps the learner that it was begun with, and its batch. A run of the campaign that is at
        work need not be started again.

        Parameters
        ----------
        learner : str, estimator or function
            As the `estimator` of :meth:`create`; an estimator is saved beside the campaign.
        reason : str, optional
            Why. Default: the last comparison, where it finds this learner to be better; an estimator needs one.
        person : str, optional
            Who wants it. Default: the system's user.

        Returns
        -------
        Switch

        Raises
        ------
        LearnerError
            If the campaign could not use the learner.
        InputError
            If it is in use already, or there is no reason.
        LearnerSwitched
            If somebody else has switched the learner meanwhile.
        """
        return switch_learner(self, learner, person or getpass.getuser(), reason)

    def status(self) -> Status:
        """Read where the campaign stands: labels, accuracy, agreement, criteria. Changes nothing."""
        return status(self)

    @property
    def model(self) -> Model:
        """The newest stored model: the one that chose the last batch, whose labels it has not learned.

        See Also
        --------
        Campaign.fit : the model of all labels that there are now.

        Raises
        ------
        CampaignError
            If there is none yet, because no batch but those of the cold start was chosen.
        """
        if (newest := loaded(self, self._newest())) is None:
            raise CampaignError(
                f"{self.directory} has no model yet: label its first batch, with two classes, and take the next one"
            )
        return newest

    def _newest(self) -> str | None:
        """Return the digest of the newest stored model of the campaign's pool."""
        return self.rounds.newest_model(self.pool_fingerprint)


def _balance_texts(balance: str | Mapping[str, float] | Sequence[str]) -> tuple[str, ...]:
    """Return a balance as settings keep it."""
    if isinstance(balance, str):
        return (balance,) if balance else ()
    if isinstance(balance, Mapping):
        return tuple(f"{name}={share}" for name, share in balance.items())
    if not isinstance(balance, Sequence):
        raise SettingsError(f"`balance` must be uniform, or shares such as rare=0.2, got {balance!r}")
    return tuple(balance)


def _stop_set_of(n_rows: int) -> int:
    """Return the stop set's size where none was chosen: in a small pool each record is worth more as a label."""
    size = min(n_rows // 100, 1000)
    return size if size >= 100 else 0
