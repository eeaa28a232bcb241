"""What covering candidates costs, how near it comes to exact greedy, and how it compares with apricot.

Candidates are a mixture of 64 clusters, as many for each record of the batch as the strategy has, with uniform random
weights and 300 labelled records. Of 64 classes each candidate has probabilities of the 16 largest. Time is CPU time of
one process: the machine's other work lengthens the wait, and hardly this.
"""

import json
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from dal.selection.batch import posed, select
from dal.selection.candidates import Candidates, leading
from dal.selection.facility_location import LEAF_ROWS, Leaf, solve_leaf
from dal.selection.strategy import Strategy

SIZES = ((1_000, 32), (10_000, 32), (100_000, 32), (10_000, 128))
"""Records of a batch, and width of a record."""
FLAT_CANDIDATES, FLAT_BATCH = 6_000, 600
N_LABELED, N_CLASSES = 300, 64

CODES = np.arange(N_LABELED) % N_CLASSES
"""Classes of the labelled records."""

Floats = npt.NDArray[np.floating]


class Cost(NamedTuple):
    """CPU time of one choice, and the memory of one leaf."""

    k: int
    d: int
    seconds: float
    us_per_candidate: float
    leaf_megabytes: float


def made(n: int, d: int, seed: int = 0) -> Candidates:
    """Make candidates in clusters of very different size."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((64, d))
    of = rng.choice(64, n, p=rng.dirichlet(np.ones(64)))
    points = (centers[of] + 0.7 * rng.standard_normal((n, d))) / np.sqrt(d)
    nothing = np.full(n, -1, dtype=np.int64)
    scores = rng.uniform(0.01, 1, n)
    proba, classes = leading(rng.dirichlet(np.full(N_CLASSES, 0.05), n), 16)
    return Candidates(np.arange(n), scores, nothing, nothing, points.astype(np.float32), proba, classes=classes)


def cost(strategy: Strategy, k: int, d: int, repeats: int) -> Cost:
    """Time a batch of `k` out of the candidates that the strategy has for it; the median of a few."""
    n = strategy.shortlist * k
    candidates, labeled = made(n, d), made(N_LABELED, d, seed=1).embeddings
    seconds = []
    for repeat in range(repeats):
        before = time.process_time()
        rows = select(candidates, strategy, k, labeled, repeat, 0, codes=CODES)
        seconds.append(time.process_time() - before)
        if len(rows) != k:
            raise RuntimeError(f"expected {k} records, got {len(rows)}")
    middle = float(np.median(seconds))
    return Cost(k, d, middle, middle / n * 1e6, leaf_megabytes(strategy, d, labeled))


def leaf_megabytes(strategy: Strategy, d: int, labeled: npt.NDArray[np.float32]) -> float:
    """Measure the most memory that solving one full leaf takes."""
    given = made(LEAF_ROWS, d)
    leaf = Leaf(given.embeddings, np.ones(LEAF_ROWS, np.float32), labeled, 1.0, LEAF_ROWS, 0.0)
    if strategy.traits.proba:
        leaf = leaf._replace(codes=CODES, proba=given.proba, classes=given.classes)
    tracemalloc.start()
    solve_leaf(leaf)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def objective_ratio(strategy: Strategy, d: int) -> float:
    """Give the objective reached, over that of exact greedy on one kernel of all candidates, in double precision."""
    candidates, labeled = made(FLAT_CANDIDATES, d), made(N_LABELED, d, seed=1).embeddings
    sigma = posed(candidates, strategy, labeled, 0, 0).bandwidth
    kernel = rbf(candidates.embeddings, candidates.embeddings, sigma)
    of_labeled = rbf(candidates.embeddings, labeled, sigma)
    if strategy.traits.proba:
        roots = np.zeros((FLAT_CANDIDATES, N_CLASSES))
        np.put_along_axis(roots, np.asarray(candidates.classes), np.sqrt(np.asarray(candidates.proba)), axis=1)
        kernel *= roots @ roots.T
        np.fill_diagonal(kernel, 1.0)
        of_labeled *= 0.5 + 0.5 * roots[:, CODES]
    covered = of_labeled.max(axis=1)
    rows = select(candidates, strategy, FLAT_BATCH, labeled, 0, 0, codes=CODES)
    flat = greedy(kernel, covered, candidates.scores, FLAT_BATCH)
    values = [candidates.scores @ np.maximum(covered, kernel[picks].max(axis=0)) for picks in (rows, flat)]
    return float(values[0] / values[1])


def greedy(kernel: Floats, covered: Floats, weights: Floats, k: int) -> list[int]:
    """Pick the largest gain `k` times; bounds by submodularity, re-evaluated until the largest is exact."""
    covered = covered.copy()
    gains = np.array([np.maximum(row - covered, 0) @ weights for row in kernel])
    picks: list[int] = []
    while len(picks) < k:
        best = int(gains.argmax())
        fresh = float(np.maximum(kernel[best] - covered, 0) @ weights)
        if fresh < gains[best] - 1e-12:
            gains[best] = fresh
            continue
        picks.append(best)
        covered = np.maximum(covered, kernel[best])
        gains[best] = -1.0
    return picks


def rbf(a: Floats, b: Floats, sigma: float) -> Floats:
    """Give the kernel in double precision."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * a @ b.T
    kernel: Floats = np.exp(-np.maximum(squared, 0) / sigma**2)
    return kernel


def against_apricot(n: int, d: int, k: int) -> dict[str, object]:
    """Compare with apricot's facility location: unit weights, one leaf, no labelled records, the same kernel.

    Its kernel is given: making it is part of our time alone. With unit weights two records that are each other's only
    neighbours tie exactly, and rounding settles which is picked; the gains are the same.
    """
    from apricot import FacilityLocationSelection  # a dependency of the tests alone

    points = made(n, d).embeddings
    kernel = rbf(points, points, 1.0)
    theirs = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy", random_state=0)
    theirs.fit(kernel)  # compiles
    before = time.process_time()
    theirs = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy", random_state=0).fit(kernel)
    their_seconds = time.process_time() - before
    leaf = Leaf(points, np.ones(n, np.float32), np.empty((0, d), np.float32), 1.0, k, 0.0)
    before = time.process_time()
    ours = solve_leaf(leaf)
    our_seconds = time.process_time() - before
    return {
        "n": n,
        "d": d,
        "k": k,
        "same_picks": len(np.intersect1d(ours.positions, theirs.ranking)),
        "largest_difference_of_gains": float(np.abs(ours.gains / theirs.gains - 1).max()),
        "seconds": our_seconds,
        "seconds_apricot": their_seconds,
    }


@click.command("selection")
@click.option("--sizes", type=(int, int), multiple=True, default=SIZES, help="k and d; may be given several times.")
@click.option("--strategy", default="default", show_default=True, help="One that covers candidates.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--apricot/--no-apricot", default=True, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here.")
def command(
    sizes: Sequence[tuple[int, int]], strategy: str, repeats: int, *, apricot: bool, target: Path | None
) -> None:
    """Time the choice of a batch, and compare it with exact greedy and with apricot."""
    chosen = Strategy.named(strategy)
    ratios = {d: objective_ratio(chosen, d) for d in sorted({d for _, d in sizes})}
    costs = [{**cost(chosen, k, d, repeats)._asdict(), "objective_ratio": ratios[d]} for k, d in sizes]
    table = Table("k", "d", "CPU s", "CPU us / candidate", "MB / leaf", "objective / exact greedy")
    for row in costs:
        numbers = [f"{row['seconds']:.2f}", f"{row['us_per_candidate']:.1f}", f"{row['leaf_megabytes']:.1f}"]
        table.add_row(f"{row['k']:,}", str(row["d"]), *numbers, f"{row['objective_ratio']:.4f}")
    console = Console()
    console.print(table)
    conditions: dict[str, object] = {"machine": machine.facts(), "load": machine.load()}
    if apricot:
        conditions["apricot"] = against_apricot(1000, 32, 200)
        console.print(conditions["apricot"])
    if target is not None:
        rows = [{**row, **conditions} for row in costs]
        target.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
