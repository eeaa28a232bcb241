"""The coordinator: carries out the actions of :mod:`dal.loop.actions`, one durable step at a time.

Each action ends in one transaction of the campaign, so a coordinator that is killed is followed by another one, which
asks for the next action and gives the same batch.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dal._files import as_npz, read_npz
from dal.campaign import CampaignStore, Round, Search
from dal.campaign.examples import Examples
from dal.campaign.features import Features
from dal.campaign.parts import learner_of
from dal.campaign.settings import shares_of
from dal.campaign.view import View, one_class, rest_text
from dal.compute.workers import Workers
from dal.errors import CampaignError, DalError, InputError, LearnerError, LearnerSwitched
from dal.evidence.stopping import Verdict
from dal.evidence.votes import Labels
from dal.learners.blocks import Source, part_of
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.trust import Trust, trust_in
from dal.loop import actions
from dal.loop.batch import (
    Batch,
    Composer,
    kept_of_quotas,
    quotas_of_round,
    strategy_of,
    strategy_of_search,
    wanted_of,
    wanted_of_search,
)
from dal.loop.codebook import codebook_of
from dal.loop.learners import advice_due, beating, check_weights, compare_learners
from dal.loop.measure import measured
from dal.loop.search import MARKED_SHARE, MOST_EXAMPLES
from dal.loop.state import COVERAGE, state_of
from dal.loop.waves import taken, waves_of
from dal.pool import Pool
from dal.pool.condition import Condition
from dal.scan import Cells, Journal, Progress, Scan, Summary, cells_written, scan, stored_cells
from dal.scan.plan import seconds_alone
from dal.selection.batch import familiar, once
from dal.selection.candidates import candidate_arrays, candidates_from, usable
from dal.selection.codebook import Codebook
from dal.selection.distances import DUPLICATE_DISTANCE
from dal.selection.explore import first_share, share_in_doubt
from dal.selection.familiar import Familiar
from dal.selection.once import Once
from dal.selection.records import Records
from dal.selection.search import Likeness
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from distributed import Client

_log = logging.getLogger(__name__)

CHECKED_AT_ONCE = 16_384
"""Labelled records that are looked at at a time."""

_SEARCHED = "searched-"
"""Before the names of the arrays of a search's candidates, in the file of a round's candidates."""


@dataclass(frozen=True)
class Stopped:
    """The campaign ended: these stopping criteria were met."""

    verdicts: tuple[Verdict, ...]


class Coordinator:
    """Carries out a campaign's actions; its caller holds the campaign's lock.

    Parameters
    ----------
    campaign : Campaign
    workers : Workers or None
        Where to scan; by default in this process.
    progress : callable or None
        Called with each scan's progress.
    coverage : bool, default=False
        Choose the next batch by coverage of the pool, although there are labels.
    full : bool, default=False
        Score the whole pool in the next round that is begun, although rounds score it by waves.
    reserved : array of int64, default=()
        Rows that are never asked.
    search : Search, optional
        What the next round that is begun looks for.
    on_rest : callable, optional
        Called with a sentence where a round is frozen while records of the last batch wait for answers.

    Attributes
    ----------
    view : View
        What is true of the campaign now.
    """

    def __init__(
        self,
        campaign: CampaignStore,
        workers: Workers | None = None,
        progress: Callable[[Progress], None] | None = None,
        *,
        coverage: bool = False,
        full: bool = False,
        reserved: npt.ArrayLike = (),
        search: Search | None = None,
        on_rest: Callable[[str], None] | None = None,
    ) -> None:
        self.search = search
        self.on_rest = on_rest
        self.campaign = campaign
        self.workers = workers or Workers()
        self.progress = progress
        self.coverage = coverage
        self.full = full
        self.view = View(campaign, reserved=reserved)
        self.features = Features(self.view)

    def run(self, *, close: bool) -> Batch | Stopped:
        """Do all actions up to the next batch, or to the end."""
        fresh = checked = False
        # Before the loop, and only if somebody has begun: killed and run again, it must not close the batch that it has
        # opened, which nobody has seen.
        current = self.campaign.rounds.current if close else None
        if current is not None and current.status == "open" and self.campaign.rounds.begun(current.number):
            self.campaign.rounds.close(current)
        while True:
            state = state_of(self.view)
            action = actions.next_action(state)
            if not checked and not isinstance(action, actions.Close | actions.Wait | actions.Stop):
                self.campaign.objects.check()
                checked = True
            match action:
                case actions.Open():
                    self.freeze()
                case actions.Fit():
                    self._fit(self._current())
                case actions.Scan(cold=cold):
                    self._scan(self._current(), cold=cold)
                case actions.Select():
                    self._select(self._current())
                    fresh = True
                case actions.Close():
                    self.campaign.rounds.close(self._current())
                case actions.Wait(pending=pending):
                    return self._batch(state.number, pending, fresh=fresh)
                case actions.Stop(verdicts=verdicts):
                    return Stopped(verdicts)

    # -- the actions -------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Open a round: fix everything that it will be computed from, again where the learner is switched meanwhile."""
        while True:
            try:
                return self._freeze()
            except LearnerSwitched as error:
                _log.info("%s.", error)

    def _freeze(self) -> None:
        pool, settings, view = self.view.grown_pool(), self.campaign.settings, self.view
        with self.campaign.database.snapshot():
            strategy = COVERAGE if self.coverage else settings.strategy
            # Refused now: people may edit campaign.toml, and what a round has frozen stays.
            Strategy.named(strategy, settings.explore)
            learner = self.campaign.learner
            if settings.estimator not in (learner, self.campaign.first_learner):
                _log.warning(
                    "`estimator` in campaign.toml is %s now, which is not used: the learner was switched to %s. Use dal"
                    " learner switch.",
                    settings.estimator,
                    learner,
                )
            check_weights(learner_of(self.campaign, learner), settings)
            if not self.coverage and (reason := one_class(view)):
                _log.warning("%s.", reason)
                strategy = COVERAGE
            stop_set = settings.measuring.stop_set or 0
            left = pool.n_rows - len(view.never_asked(stop_set))
            if left < settings.batch_size:
                _log.warning("Only %d records were never asked: the batch is that short.", left)
            search, useless = self._sought(pool)
            # Without the rest, that is to be labelled: else the batch would depend on how much of it is by the choice.
            k = min(settings.batch_size, left, max(1, view.room()))
            known = len(view.labels().rows)
            learns = strategy != COVERAGE and len(np.unique(view.labels().codes)) > 1
            waves = waves_of(self.campaign, pool, k, Strategy.named(strategy)) if learns and not self.full else None
        self.campaign.rounds.freeze(
            pool_fingerprint=pool.fingerprint,
            n_rows=pool.n_rows,
            k=k,
            # A first batch that searches is to find some: random records would take its places.
            explore=settings.explore if known or search else first_share(settings.explore, k),
            seed=settings.random_state,
            strategy=strategy,
            stop_set=stop_set,
            search=search,
            waves=waves,
            balance=shares_of(settings.balance, settings.classes),
            learner=learner,
            useless=useless,
        )
        self.search, self.full = None, False
        if self.on_rest is not None and (text := rest_text(self.campaign)):
            self.on_rest(text)

    def _sought(self, pool: Pool) -> tuple[Search | None, list[int]]:
        """Return what a round looks for: what the caller does, else the like of records that people have marked.

        Also the rows whose marks are of no use, because none of them can be searched for.
        """
        if self.search is not None:
            return self.search, []
        marked = Examples(self.campaign).rows(MOST_EXAMPLES)
        if not marked:
            return None, []
        # A gold record may lack features, and nobody is to see that it is one.
        sound = usable(self.features.take(np.array(marked, np.int64)), missing=pool.asks_missing)
        rows = [row for row, is_sound in zip(marked, sound.tolist(), strict=True) if is_sound]
        if not rows:
            return None, marked
        return Search(tuple(sorted(rows)), share=MARKED_SHARE, marked=tuple(sorted(marked))), []

    def _fit(self, current: Round) -> None:
        labels, strategy = self.view.labels(current.last_answer), Strategy.named(current.strategy)
        with self._withdrawing(current):
            done = fitted(
                self.campaign,
                labels,
                self.features,
                learner=self.campaign.learner_in(current),
                parent=current.parent_model,
                insured=is_insured(strategy, current.explore),
                committee=strategy.committee,
                client=self.workers.client,
            )
        model, trust = done.model, done.trust
        share = share_in_doubt(current.explore, trust.weight, trust.beaten)
        notes = {
            "warnings": list(model.warnings),
            "learner": {"name": self.campaign.learner_in(current), "chosen": model.chosen},
            "invalid_labeled": done.left_out,
            "trust": {**asdict(trust), "explore": share},
            "measured": measured(self.view, self.features, current, model),
        }
        trained_on = len(labels.rows) - done.left_out
        self.campaign.rounds.save_model(current, model.dumps(), trained_on=trained_on, notes=notes)

    def _scan(self, current: Round, *, cold: bool) -> None:
        model = None if cold else self._model(current)
        strategy = strategy_of(current, model)
        codebook, digest = self._codebook(current, strategy)
        cells = None if codebook is None else stored_cells(self.campaign.objects.cells, current.n_rows, codebook)
        pool, wanted = self.view.pool.head(current.n_rows), wanted_of(self.view, current, strategy)
        quotas = quotas_of_round(self.view, current, model)
        per_class = kept_of_quotas(self.view, current, strategy, quotas)
        capacity = strategy.capacity(wanted, pool.n_rows, len(codebook.centers) if codebook else None)
        alone = seconds_alone(
            pool.n_rows,
            pool.n_features,
            len(self.campaign.settings.classes),
            kind=_kind(model),
            members=max(1, len(model.bootstraps)) if model is not None and strategy.committee else 1,
            candidates=capacity._replace(per_class=per_class).rows,
            rows_per_second=self._pace(model),
        )
        # Labels may have been taken back since the round was frozen.
        waves, carried, asked = None, None, self._asked(current)
        if model is not None and current.waves is not None:
            with self._withdrawing(current, on=CampaignError):
                waves, carried = taken(self.campaign, current.waves)
            if model.wants_gpu:
                carried = None  # they would be scored here, perhaps without a GPU, and get other bits than the others
        with self._withdrawing(current):
            found = scan(
                pool,
                model,
                strategy,
                wanted,
                self.view.never_asked(current.stop_set, current),
                random_state=current.seed,
                round=current.number,
                codebook=codebook,
                cells=cells,
                client=self.workers.client_for(pool.n_rows, alone),
                journal=self._journal,
                progress=self.progress,
                with_features=True,
                missing=self._takes_missing(current, model),
                waves=waves,
                carried=carried,
                per_class=per_class,
                familiar=self._familiar(current, model, strategy, codebook, asked),
                once=once(strategy, asked),
            )
        arrays = candidate_arrays(found.candidates)
        summary = _summary_as_json(found.summary) | {"kind": _kind(model)}
        # A condition may fail on some record, and would again; an InputError says so.
        with self._withdrawing(current, on=InputError):
            searched = self._searched(current, model, codebook, _readable(cells, found.summary), alone)
        if searched is not None:
            arrays |= {_SEARCHED + name: each for name, each in candidate_arrays(searched.candidates).items()}
            summary["search"] = {"seconds": searched.summary.seconds, "candidates": len(searched.candidates)}
        if found.candidates.inner is not None:
            summary["inner"] = found.candidates.inner.shape[1]
        if digest is not None:
            summary["codebook"] = digest
        if quotas:
            summary["quotas"] = list(quotas)
        self.campaign.rounds.save_scan(current, as_npz(**arrays), summary)
        if codebook is not None and cells is not None and found.summary.wrote_cells:
            cells_written(cells, codebook)

    def _searched(
        self, current: Round, model: Model | None, codebook: Codebook | None, cells: Cells | None, alone: float
    ) -> Scan | None:
        """Run the pass of a round's search; None where it searches for nothing."""
        search = current.search
        if search is None:
            return None
        pool, asked = self.view.pool.head(current.n_rows), self._asked(current)
        strategy, likeness = strategy_of_search(current, model), None
        if search.by == "like":
            assert codebook is not None
            told = np.array(search.examples, np.float32).reshape(-1, pool.n_features)
            directions = self._learner(current).compares_directions
            examples = np.concatenate([self.features.take(np.array(search.rows, np.int64)), told])
            likeness = Likeness.to(examples, codebook, directions=directions)
            own: Once | None = Once.after(asked())
            known = Familiar.to(asked(), codebook, directions=directions, seed=current.seed, round=current.number)
            if known is not None:
                # Of the asked records, which lie far apart in a large pool: a whole class may be nearer to its example.
                close = DUPLICATE_DISTANCE * known.near.distance
                known = replace(known, near=replace(known.near, distance=close))
        else:
            known = self._familiar(current, model, strategy, codebook, asked)
            own = once(strategy, asked)
        return scan(
            pool,
            None if likeness else model,
            strategy,
            wanted_of_search(self.view, current, strategy),
            self.view.never_asked(current.stop_set, current),
            random_state=current.seed,
            round=current.number,
            codebook=codebook,
            cells=None if likeness else cells,  # by examples, the cell of a record is its nearest example
            client=self.workers.client_for(pool.n_rows, alone),
            journal=self._search_journal,
            progress=self.progress,
            with_features=True,
            missing=self._takes_missing(current, model),
            likeness=likeness,
            where=None if search.where is None else Condition.on(search.where, pool),
            familiar=known,
            once=own,
        )

    def _asked(self, current: Round) -> Callable[[], Records]:
        """Return a function that reads the features of the records asked or answered before the freeze, once."""
        return cache(lambda: self.features.compared(self.campaign.rounds.excluded_rows(current)))

    def _familiar(
        self,
        current: Round,
        model: Model | None,
        strategy: Strategy,
        codebook: Codebook | None,
        asked: Callable[[], Records],
    ) -> Familiar | None:
        """Return the near-duplicates of records that were asked or answered when the round was frozen."""
        return familiar(
            strategy,
            codebook,
            asked,
            directions=self._learner(current).compares_directions,
            inner=model is not None and model.embedding_width > 0,
            random_state=current.seed,
            round=current.number,
        )

    def _codebook(self, current: Round, strategy: Strategy) -> tuple[Codebook, str] | tuple[None, None]:
        """Return the codebook and its digest where the strategy, or a search by examples, looks at features."""
        if strategy.traits.features or (current.search is not None and current.search.by == "like"):
            return codebook_of(self.campaign, self.view.pool)
        return None, None

    def _select(self, current: Round) -> None:
        # The scan is durable. Not cleared by the scan itself: killed in between, the journal would stay for good.
        self._journal.clear()
        self._search_journal.clear()
        model = self._model(current)
        # From here on people have the records that they hold; the page holds ten of them.
        excluded = self.campaign.rounds.withdraw_reserve()
        arrays = read_npz(self.campaign.rounds.load_scan(current), "candidates.npz")
        searched = {name.removeprefix(_SEARCHED): arrays[name] for name in arrays if name.startswith(_SEARCHED)}
        composed = Composer(
            self.view,
            self.features,
            current,
            model,
            self._codebook(current, strategy_of(current, model))[0],
            missing=self._takes_missing(current, model),
            directions=self._learner(current).compares_directions,
            mapper=self._mapper(),
        ).compose(candidates_from(arrays), excluded, candidates_from(searched) if searched else None)
        self.features.keep(current.number, composed.rows, composed.X)
        self.campaign.rounds.open(current, composed.asked, composed.again)

    def advise(self) -> None:
        """Compare the learner in use with the presets, where as many labels have come since as the settings say.

        It is done once a new batch was handed out: people answer meanwhile. Killed here, it is done after the next one.
        """
        if not advice_due(self.view):
            return
        try:
            # By workers that are there already: others would be started for this, and kept for scans that need none.
            compare_learners(self.campaign, workers=Workers(self.workers.client))
        except DalError as error:  # advice alone: it ends no round, and the batch is open
            _log.warning("No learners were compared: %s", error)

    # -- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _withdrawing(self, current: Round, *, on: type[DalError] = LearnerError) -> Iterator[None]:
        """Take the round back if its learner, or its search, refuses what was frozen, or some of it is lost.

        It would refuse it again however often it is tried; the next round may freeze more labels, another learner,
        another search, or a full pass.
        """
        try:
            yield
        except on as error:
            self.campaign.rounds.withdraw(current)
            if not isinstance(error, LearnerError):
                raise
            raise LearnerError(
                f"{str(error).rstrip('.')}. Label more records, imported or asked by dal next --coverage, or use"
                " another learner by dal learner switch."
            ) from error

    def _current(self) -> Round:
        current = self.campaign.rounds.current
        if current is None:  # the lock is ours, so nobody else can have closed it
            raise RuntimeError("there is no open round")
        return current

    def _learner(self, current: Round) -> Learner:
        return learner_of(self.campaign, self.campaign.learner_in(current))

    def _model(self, current: Round) -> Model | None:
        return loaded(self.campaign, current.model)

    def _takes_missing(self, current: Round, model: Model | None) -> bool:
        """Return whether a round asks records with missing features; a model knows it as of when it was fitted."""
        pool = self.view.pool
        if model is not None:
            return model.takes_missing and pool.asks_missing
        return pool.asks_missing and self._learner(current).takes_missing(pool.n_features)

    def _pace(self, model: Model | None) -> float | None:
        """Return the rows a second of one thread in the fastest scan yet with such a model; None before the first."""
        told = [
            each.summary for each in self.campaign.rounds.all() if each.summary and each.summary.get("thread_seconds")
        ]
        like = [summary for summary in told if summary["kind"] == _kind(model)]
        return max((each["rows"] / each["thread_seconds"] for each in like), default=None)

    def _mapper(self) -> Callable[..., Iterator[Any]]:
        """Return the function that solves parts of a large batch, on the workers where there are some."""
        if self.workers.client is None:
            return map
        from dal.compute.work import map_on

        return partial(map_on, self.workers.client)

    @property
    def _journal(self) -> Journal:
        return Journal(self.campaign.directory / "journal")

    @property
    def _search_journal(self) -> Journal:
        # A journal holds one pass, and the first one's is not committed before the second has ended.
        return Journal(self.campaign.directory / "journal-of-search")

    def _batch(self, number: int, pending: int, *, fresh: bool) -> Batch:
        asked = self.campaign.rounds.batch(number)
        rows = np.array([each.row for each in asked], dtype=np.int64)
        return Batch(number, rows, [each.record_id for each in asked], pending, fresh)


def _readable(cells: Cells | None, summary: Summary) -> Cells | None:
    """Return stored cells for a second pass to read; None where the first one has not written all of them."""
    if cells is None or not cells.write:
        return cells
    return replace(cells, write=False) if summary.wrote_cells else None


def loaded(campaign: CampaignStore, digest: str | None) -> Model | None:
    """Load a model of the campaign by its digest."""
    return None if digest is None else Model.loads(campaign.rounds.load_model(digest), campaign.settings.trusted)


def is_insured(strategy: Strategy, explore: float) -> bool:
    """Return whether fits look for labels that mislead: there are random ones to judge by, and others are chosen."""
    return explore > 0 and strategy.score != "random"


class Fitted(NamedTuple):
    """A fit.

    Attributes
    ----------
    model : Model
    left_out : int
        Labels that the learner could not be given.
    trust : Trust
        The weight of the labels whose records were chosen.
    """

    model: Model
    left_out: int
    trust: Trust


def fitted(
    campaign: CampaignStore,
    labels: Labels,
    features: Features,
    *,
    parent: str | None,
    insured: bool,
    learner: str | None = None,
    committee: bool = False,
    client: "Client | None" = None,
) -> Fitted:
    """Fit a learner on labels.

    It is the learner in use, or the named one that a round froze. One that starts warm goes on from the model whose
    digest is `parent`, where that is its own. One that wants a GPU is fitted on a
    worker of the client that declares one, where this process has none. Where it is `insured`, it is fitted again if
    labels of chosen records mislead it, with less weight of these.

    Raises
    ------
    LearnerError
        If the others are of fewer than two classes, or the learner refuses them.
    """
    name = learner or campaign.learner
    used = learner_of(campaign, name)
    X = features.records(labels.rows) if used.fits_in_blocks else features.take(labels.rows)
    valid = _usable(X, missing=used.takes_missing(X.shape[1]))
    positions, codes, weights = labels.weighted()
    sound = valid[positions]
    left_out = int((~valid).sum())
    if left_out and len(np.unique(codes[sound])) < 2:
        raise LearnerError(
            f"The labels that the learner can be given are of fewer than two classes: {left_out:,} of {len(valid):,}"
            " are left out, because features of their records are missing or infinite, and some learners take missing"
            " ones, such as hgb"
        )
    # Not copied where all are learned from: features of a million labels are hundreds of megabytes.
    given = X if len(positions) == len(X) and sound.all() else part_of(X, positions[sound])
    codes, weights = codes[sound], None if weights is None else weights[sound]
    warm = loaded(campaign, parent) if used.starts_warm and _is_of(campaign, parent, name) else None
    random = np.isin(labels.rows, View(campaign).random_rows())[positions[sound]]

    def fit(weights: npt.NDArray[np.float64] | None) -> Model:
        once = partial(used.fit, given, codes, weights, committee=committee, parent=warm)
        return once() if client is None else _fitted_on(client, used, once)

    def checked(model: Model) -> Model:
        if not np.isfinite(model.predict_proba(X[np.flatnonzero(valid)[:1000]])).all(axis=1).any():
            raise LearnerError(f"{model.kind} predicts nothing finite for any of the records that it was fitted on")
        return model

    model = checked(fit(weights))
    trust = trust_in(used, given, codes, weights, random, model, positions[sound]) if insured else Trust()
    if trust.weight < 1:
        model = checked(fit(trust.weights(random, weights)))
    return Fitted(model, left_out, trust)


def _usable(X: Source, *, missing: bool) -> npt.NDArray[np.bool_]:
    """Mark the records that a learner can be given, block by block."""
    starts = range(0, len(X), CHECKED_AT_ONCE)
    return np.concatenate([[], *(usable(X[at : at + CHECKED_AT_ONCE], missing=missing) for at in starts)]).astype(bool)


def _is_of(campaign: CampaignStore, model: str | None, learner: str) -> bool:
    """Return whether a model is of this learner, and not of the one before a switch."""
    return any(each.model == model and campaign.learner_in(each) == learner for each in campaign.rounds.all())


def _fitted_on(client: "Client", learner: Learner, fit: Callable[[], Model]) -> Model:
    """Fit here, or on a worker that declares a GPU where the learner wants one and this process has none."""
    if not learner.needs_other_gpu:
        return fit()
    from dal.compute.asking import gpus_of
    from dal.compute.work import each_on

    if not gpus_of(client):
        return fit()
    [(_, data)] = each_on(client, fitted_there, [0], fit, on_gpus=True)
    return Model.loads(data, learner.trusted)


def fitted_there(fit: Callable[[], Model], _: int, beat: Callable[[], None]) -> bytes:
    """Fit on a worker, and return the saved model; beat meanwhile."""
    with beating(beat):
        return fit().dumps()


def _kind(model: Model | None) -> str | None:
    return None if model is None else model.kind


def _summary_as_json(summary: Summary) -> dict[str, object]:
    tally = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(summary.tally).items()
    }
    tally |= {"histogram": summary.tally.histogram.counts.tolist(), "edges": list(summary.tally.histogram.edges)}
    confidence = summary.tally.mean_confidence
    reach = None if summary.reach is None else {name: _finite(value) for name, value in vars(summary.reach).items()}
    rest = {name: value for name, value in vars(summary).items() if name != "tally"}
    return {**tally, **rest, "reach": reach, "mean_confidence": _finite(confidence)}


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else value
