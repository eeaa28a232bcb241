"""One campaign in memory: the batches that a real one would ask, without its database.

The scan, the learner, the codebook and the choice are those of ``dal``; what is left out is what makes a campaign
durable. A test holds that the batches are the same as those of ``dal.simulate``.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.labels.sets import Setup, World
from dal.campaign import Labelling
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.trust import Trust, trust_in
from dal.loop.coordinator import is_insured
from dal.pool import Pool
from dal.scan import Carried, Cells, Limits, Waves, sample_codebook, scan
from dal.scan.plan import LIMITS
from dal.selection.balance import choose_balanced, kept_of_classes, quotas_of
from dal.selection.batch import Known, familiar, once
from dal.selection.codebook import Codebook
from dal.selection.explore import explore_count, first_share, interleaved, share_in_doubt, uniform_rows
from dal.selection.order import uniform
from dal.selection.strategy import Strategy

Rows = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]
NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Contender:
    """A way to choose batches.

    Attributes
    ----------
    strategy : Strategy
    start : {"random", "cold"}
        Whether the first labels are drawn uniformly, the same for all strategies of a seed, or asked by the strategy's
        own cold start.
    balance : bool
        Whether all classes are to have an equal share of what is asked.
    oracle : bool
        Whether each batch is the best on the test set out of many that other strategies choose; `strategy` is not
        looked at.
    waves : Waves or None
        The terms on which rounds with a model score the pool by waves.
    carries : bool
        Whether what a round keeps is scored again in the next one.
    full_every : int
        Rounds from a full pass to the next; the one before the first is a full one.
    close_at : float
        Share of a batch whose labels the next batch is chosen by; the rest come in time for the batch after it.
    """

    strategy: Strategy
    start: Literal["random", "cold"] = "random"
    balance: bool = False
    oracle: bool = False
    waves: Waves | None = None
    carries: bool = True
    full_every: int = 10
    close_at: float = 1.0


@dataclass(frozen=True)
class Replayed:
    """What a replay came to.

    Attributes
    ----------
    labels : tuple of int
        Known at each point of the curve, the first labels first.
    accuracy : tuple of float
        Of a learner fitted on just these, on the test set; or the set's own metric.
    noise : tuple of float
        Share of each batch in the set's region of noise; empty where it has none.
    rare_found : tuple of int
        Rare classes of which a record is labelled, at each point.
    rare_recall : tuple of float
        Mean recall over the rare classes on the test set, at each point.
    digest : str
        Of the rows asked, in their order: two replays with the same digest asked the same.
    cpu_seconds : tuple of (float, float, float)
        Of this process to fit, to scan and to choose, in each round.
    scored : tuple of float
        Share of the pool that each round has scored.
    """

    labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    noise: tuple[float, ...]
    rare_found: tuple[int, ...]
    rare_recall: tuple[float, ...]
    digest: str
    cpu_seconds: tuple[tuple[float, float, float], ...] = field(compare=False)
    scored: tuple[float, ...] = ()


class Fit(NamedTuple):
    """A model, the CPU seconds that it took, and the trust in chosen labels that it was fitted with."""

    model: Model | None
    seconds: float
    trust: Trust


class Stage:
    """A pool of a seed with all that its replays share."""

    def __init__(
        self, world: World, pool: Pool, learner: Learner, seed: int, directory: Path, limits: Limits = LIMITS
    ) -> None:
        self.limits = limits
        self.world = world
        self.pool = pool
        self.learner = learner
        self.seed = seed
        self.directory = directory
        self._spaces: dict[int, tuple[Codebook, Cells]] = {}
        self._fits: dict[bytes, Fit] = {}

    def space(self, n_cells: int) -> tuple[Codebook, Cells]:
        """Return a codebook of `n_cells` cells, and where the cells of the rows are kept once a scan has found them."""
        if n_cells not in self._spaces:
            codebook = sample_codebook(self.pool, n_cells, self.seed)
            self._spaces[n_cells] = codebook, Cells(self.directory / f"cells-{n_cells}.zarr", write=True)
        return self._spaces[n_cells]

    def cells_are_stored(self, n_cells: int) -> None:
        """Read the cells in the scans that follow."""
        codebook, cells = self._spaces[n_cells]
        self._spaces[n_cells] = codebook, replace(cells, write=False)

    def fit(self, rows: Rows, *, committee: bool = False, random: Rows | None = None) -> "Fit":
        """Fit the learner on the labels of these rows; without a model where they are of one class.

        Where the rows that were drawn uniformly are given, those of the others weigh as much as they are trusted.
        """
        rows = np.sort(rows)
        labels = self.world.y[rows]
        if len(np.unique(labels)) < 2:
            return Fit(None, 0.0, Trust())
        drawn = np.isin(rows, NO_ROWS if random is None else random)
        name = hashlib.sha256(rows.tobytes() + drawn.tobytes()).digest() + bytes([committee, random is None])
        if name not in self._fits:
            # What is measured after a batch is what chooses the next one; and all strategies of a seed begin alike.
            self._fits = dict(list(self._fits.items())[:1])
            began, X, trust = process_time(), self.world.X[rows], Trust()
            model = self.learner.fit(X, labels, committee=committee)
            if random is not None:
                trust = trust_in(self.learner, X, labels, None, drawn, model, rows)
            if trust.weight < 1:
                model = self.learner.fit(X, labels, trust.weights(drawn), committee=committee)
            self._fits[name] = Fit(model, process_time() - began, trust)
        return self._fits[name]


@contextmanager
def staged(world: World, setup: Setup, seed: int, limits: Limits = LIMITS) -> Iterator[Stage]:
    """Set a pool up for replays."""
    with tempfile.TemporaryDirectory(prefix="dal-labels-") as name:
        directory = Path(name)
        pool = Pool.build(world.X, directory / "pool.zarr")
        classes = [str(code) for code in range(world.n_classes)]
        learner = Learner(setup.learner(seed), classes, trusted=setup.trusted)
        yield Stage(world, pool, learner, seed, directory, limits)


def replay(
    stage: Stage, setup: Setup, contender: Contender, on_batch: Callable[[Rows], None] | None = None
) -> Replayed:
    """Play one campaign.

    Parameters
    ----------
    stage : Stage
    setup : Setup
    contender : Contender
    on_batch : callable, optional
        Given the rows of each batch.
    """
    campaign = _Oracle(stage, setup) if contender.oracle else _Campaign(stage, contender)
    batches = [campaign.begun(setup, contender.start)]
    points = [_measured(stage, setup, campaign.known, campaign.random)]
    for _ in range(setup.rounds):
        batch = campaign.asked_next(setup.batch)
        if not len(batch):
            break
        batches.append(batch)
        if on_batch is not None:
            on_batch(batch)
        points.append(_measured(stage, setup, campaign.known, campaign.random))
    noise = stage.world.noise
    return Replayed(
        labels=tuple(np.cumsum([len(batch) for batch in batches]).tolist()),
        accuracy=tuple(point.metric for point in points),
        noise=() if noise is None else tuple(float(noise[batch].mean()) for batch in batches[1:]),
        rare_found=tuple(point.rare_found for point in points),
        rare_recall=tuple(point.rare_recall for point in points),
        digest=hashlib.sha256(np.concatenate(batches).tobytes()).hexdigest()[:16],
        cpu_seconds=tuple(campaign.seconds),
        scored=tuple(campaign.scored),
    )


class _Campaign:
    """The coordinator's steps from fit to batch, with the state in variables."""

    def __init__(self, stage: Stage, contender: Contender) -> None:
        self.stage = stage
        self.contender = contender
        self.strategy = contender.strategy
        self.after: int | None = None
        self.since_full = 0
        self.carried: Carried | None = None
        self.scored: list[float] = []
        self.shares = [1 / stage.world.n_classes] * stage.world.n_classes if contender.balance else []
        self.known = self.late = NO_ROWS
        self.round = self.explored = 0
        self.share = self.due = 0.0
        # Rows that were drawn uniformly; None where no fit looks for labels that mislead.
        self.random = NO_ROWS if is_insured(contender.strategy, contender.strategy.explore) else None
        self.n_cells = 0
        self.seconds: list[tuple[float, float, float]] = []

    def begun(self, setup: Setup, start: str) -> Rows:
        if start == "random":
            draws = uniform_rows(self.stage.pool.n_rows, NO_ROWS, self.stage.seed, 0)
            if setup.balanced:
                draws = _of_each(draws, self.stage.world, setup.initial)
            self.known = np.array(list(islice(draws, setup.initial)), dtype=np.int64)
            if self.random is not None and not setup.balanced:
                self.random = self.known
        else:
            self.asked_next(setup.initial)
        return self.known

    def asked_next(self, batch: int) -> Rows:
        """Choose the next batch and learn its labels."""
        stage, excluded = self.stage, np.sort(self.known)
        self.round += 1
        k = min(batch, stage.pool.n_rows - len(excluded))
        if k <= 0:
            return NO_ROWS
        known = np.setdiff1d(excluded, self.late)
        model, seconds, trust = stage.fit(known, committee=self.strategy.committee, random=self.random)
        share = self.contender.strategy.explore
        in_doubt = share_in_doubt(share, trust.weight, trust.beaten)
        self.share = in_doubt if len(excluded) else first_share(share, k)
        rows = self._next(model, k, batch, excluded, seconds)
        self.due += self.share * len(rows)
        return self._learned(rows)

    def _next(self, model: Model | None, k: int, batch: int, excluded: Rows, fitted: float) -> Rows:
        return self._chosen(self._strategy(excluded, model), model, k, batch, excluded, fitted)

    def _strategy(self, excluded: Rows, model: Model | None) -> Strategy:
        if model is None and len(excluded) and self.strategy.score != "random":
            # All labels are of one class: a campaign goes on by coverage then.
            return Strategy.named("coverage", self.strategy.explore).cold()
        return self.strategy if model is not None else self.strategy.cold()

    def _chosen(
        self,
        strategy: Strategy,
        model: Model | None,
        k: int,
        batch: int,
        excluded: Rows,
        fitted: float,
        held: Rows = NO_ROWS,
    ) -> Rows:
        """Choose a batch of `k` unlike the excluded records; those held back are not asked either."""
        stage, began = self.stage, process_time()
        codebook, cells = None, None
        n_cells = self.strategy.n_cells(batch, stage.pool.n_rows)
        if strategy.traits.features:
            codebook, cells = stage.space(n_cells)
        waves = self._waves(strategy, model)
        drawn = self._drawn(k, excluded)
        quotas: tuple[int, ...] = ()
        if self.shares and model is not None:
            labels = np.bincount(stage.world.y[excluded], minlength=stage.world.n_classes)
            shares = [share if count else 0.0 for share, count in zip(self.shares, labels.tolist(), strict=True)]
            quotas = quotas_of(shares, labels.tolist(), k - len(drawn))
        per_class = kept_of_classes(strategy, quotas, len(drawn))
        found = scan(
            stage.pool,
            model,
            strategy,
            k,
            np.union1d(excluded, held),
            random_state=stage.seed,
            round=self.round,
            codebook=codebook,
            cells=cells,
            with_features=True,
            waves=waves,
            carried=None if waves is None else self.carried,
            limits=stage.limits,
            per_class=per_class,
            familiar=familiar(
                strategy,
                codebook,
                lambda: stage.world.X[excluded],
                directions=stage.learner.compares_directions,
                inner=model is not None and model.embedding_width > 0,
                random_state=stage.seed,
                round=self.round,
            ),
            once=once(strategy, lambda: stage.world.X[excluded]),
        )
        if found.summary.reach is not None:
            self.after = found.summary.reach.after
        if model is not None and self.contender.carries:
            self.carried = Carried(found.candidates.rows, found.candidates.embeddings)
        self.scored.append(found.summary.tally.rows / stage.pool.n_rows)
        if found.summary.wrote_cells:
            stage.cells_are_stored(n_cells)
        scanned = process_time()
        taken = np.concatenate([excluded, drawn])
        asked, inner = stage.world.X[taken], None
        if model is not None and found.candidates.inner is not None:
            inner = model.predict_embedded(asked)[1]
        proba = None
        if model is not None and strategy.traits.asked_proba:
            proba = model.predict_proba(asked).astype(np.float32)
        capacity = strategy.capacity(k, stage.pool.n_rows, len(codebook.centers) if codebook else None)
        rows = choose_balanced(
            found.candidates,
            strategy,
            k - len(drawn),
            quotas,
            Known(taken, asked, inner, self._codes(excluded, drawn, model), proba, len(excluded)),
            capacity=capacity._replace(per_class=per_class),
            codebook=codebook,
            random_state=stage.seed,
            round=self.round,
            directions=stage.learner.compares_directions,
        )
        self.explored += len(drawn)
        self.seconds.append((fitted, scanned - began, process_time() - scanned))
        return np.array(interleaved(rows.tolist(), drawn.tolist()), dtype=np.int64)

    def _waves(self, strategy: Strategy, model: Model | None) -> Waves | None:
        """Return the terms of a round by waves, as :func:`dal.loop.waves.waves_of` does."""
        wanted = self.contender.waves
        self.since_full += 1
        if (
            wanted is None
            or model is None
            or strategy.score == "random"
            or self.since_full >= self.contender.full_every
        ):
            self.since_full = 0
            return None
        return replace(wanted, after=self.after)

    def _codes(self, labeled: Rows, drawn: Rows, model: Model | None) -> Rows:
        """Return the labels of labelled records, and the model's predictions for late and drawn ones."""
        codes, late = self.stage.world.y[labeled], np.isin(labeled, self.late)
        if model is None or not (late.any() or len(drawn)):
            return np.append(codes, np.full(len(drawn), -1))
        rows = np.append(labeled[late], drawn)
        predicted = model.predict_proba(self.stage.world.X[rows]).argmax(axis=1)
        codes[late] = predicted[: late.sum()]
        return np.append(codes, predicted[late.sum() :])

    def _drawn(self, k: int, excluded: Rows) -> Rows:
        count = explore_count(self.share, self.due, self.explored, k)
        draws = uniform_rows(self.stage.pool.n_rows, excluded, self.stage.seed, self.round)
        drawn = np.array(list(islice(draws, count)), dtype=np.int64)
        if self.random is not None:
            self.random = np.append(self.random, drawn)
        return drawn

    def _learned(self, batch: Rows) -> Rows:
        self.known = np.concatenate([self.known, batch])
        # People get a batch in an order by hash.
        order = np.argsort(uniform(batch, self.stage.seed, self.round), kind="stable")
        self.late = batch[order[: Labelling(close_at=self.contender.close_at).spare(len(batch))]]
        return batch


ORACLE = (
    *("random", "power", "margin", "entropy", "default", "class_coverage", "uncertainty_herding"),
    *("weighted_kmeans", "badge", "bait", "dropquery", "coverage"),
)
"""The strategies whose batches the oracle judges."""
TURNS = 5
"""Batches of each: one out of the whole pool, the others out of random halves of it."""


class _Oracle(_Campaign):
    """Asks in each round the batch after which the learner is best on the test set, out of those of all strategies.

    In the manner of BoSS (arXiv 2603.13109), which draws candidate batches out of random parts of the pool.
    """

    def __init__(self, stage: Stage, setup: Setup) -> None:
        super().__init__(stage, Contender(Strategy.named("random", explore=0.0)))
        self.setup = setup

    def _next(self, model: Model | None, k: int, batch: int, excluded: Rows, fitted: float) -> Rows:
        best, most, judged = NO_ROWS, -1.0, set[bytes]()
        for name in ORACLE:
            self.strategy = Strategy.named(name, explore=0.0)
            for turn in range(TURNS):
                held = self._held(turn, k)
                rows = self._chosen(self._strategy(excluded, model), model, k, batch, excluded, fitted, held)
                if (mark := np.sort(rows).tobytes()) in judged:
                    continue
                judged.add(mark)
                metric = _measured(self.stage, self.setup, np.concatenate([self.known, rows]), None).metric
                if metric > most:
                    best, most = rows, metric
        return best

    def _held(self, turn: int, k: int) -> Rows:
        rows = np.arange(self.stage.pool.n_rows, dtype=np.int64)
        if not turn or len(rows) - len(self.known) < 2 * k:
            return NO_ROWS
        return rows[uniform(rows, self.stage.seed, TURNS * self.round + turn) < 0.5]


def _of_each(rows: Iterator[int], world: World, count: int) -> Iterator[int]:
    """Yield the first rows of each class, an equal number of each."""
    left = [count // world.n_classes] * world.n_classes
    for row in rows:
        code = world.y[row]
        if left[code]:
            left[code] -= 1
            yield row


class _Point(NamedTuple):
    metric: float
    rare_found: int
    rare_recall: float


def _measured(stage: Stage, setup: Setup, known: Rows, random: Rows | None) -> _Point:
    world = stage.world
    model = stage.fit(known, random=random).model
    labels = np.unique(world.y[known])
    predicted = np.full(len(world.test.y), labels[0])
    if model is not None:
        predicted = model.predict_proba(world.test.X).argmax(axis=1)
    right = predicted == world.test.y
    counts = np.bincount(world.test.y, minlength=world.n_classes)
    recall = np.bincount(world.test.y, weights=right, minlength=world.n_classes) / np.maximum(counts, 1)
    metric = float(right.mean()) if setup.metric == "accuracy" else float(recall[counts > 0].mean())
    rare = list(world.rare)
    return _Point(metric, int(np.isin(rare, labels).sum()), float(recall[rare].mean()) if rare else 0.0)
