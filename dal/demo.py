"""The demonstration: half a million handwritten digits, made from the 1,797 of scikit-learn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from dal.explorer import Run, view_of_run, write_explorer
from dal.explorer.run import watched_by
from dal.figures import Table
from dal.map import PoolMap
from dal.pool import Block, Pool
from dal.progress import Show
from dal.replay import Comparison, Replay, TestSet, compare, saved_labels

if TYPE_CHECKING:
    from distributed import Client

SIDE = 8
TEST_ORIGINALS = 600
TEST_COPIES = 5
CLASSES = tuple("0123456789")
STRATEGIES = ("default", "random")
_BLOCK_ROWS = 32_768


@dataclass(frozen=True)
class Demonstration:
    """The demo's pool with its answers, and test records made from other originals.

    Attributes
    ----------
    pool : Pool
    answers : ndarray of int64, shape (N,)
        True class of each row.
    test : TestSet
    """

    pool: Pool
    answers: npt.NDArray[np.int64]
    test: TestSet


def build(directory: Path, n_rows: int, seed: int, show: Show) -> Demonstration:
    """Build the pool, or open an existing one of the same rows and seed.

    Each record is a digit of somebody's handwriting, shifted, turned and scaled a little, with noise; the number of the
    original is its true answer. The test records are made alike, from 600 originals that never enter the pool.

    Parameters
    ----------
    directory : Path
    n_rows : int
        Number of records.
    seed : int
    show : Show
        Called with the progress.
    """
    originals, numbers = load_digits(return_X_y=True)
    images = originals.reshape(-1, SIDE, SIDE).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    test, source = order[:TEST_ORIGINALS], order[TEST_ORIGINALS:]
    chosen = np.random.default_rng([seed, 1]).choice(source, n_rows)
    path = directory / f"digits-{n_rows}-{seed}.zarr"
    if not path.exists():
        pool = Pool.build(
            _blocks(images, chosen, seed),
            path,
            progress=lambda done, _: show(done, n_rows, ""),
        )
    else:
        pool = Pool.open(path)
    copies = np.repeat(test, TEST_COPIES)
    X = altered(images[copies], np.random.default_rng([seed, 3])).reshape(len(copies), -1)
    return Demonstration(pool, numbers[chosen].astype(np.int64), TestSet(X, numbers[copies].astype(np.int64)))


def _blocks(images: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64], seed: int) -> Iterator[Block]:
    for start in range(0, len(chosen), _BLOCK_ROWS):
        part = chosen[start : start + _BLOCK_ROWS]
        moved = altered(images[part], np.random.default_rng([seed, 2, start]))
        yield Block(moved[..., None], fields={"original": part})


def altered(images: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Shift, turn and scale each image a little at random, and add noise.

    Parameters
    ----------
    images : ndarray of float32, shape (n, 8, 8)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float32, shape (n, 8, 8)
    """
    n = len(images)
    angle = rng.normal(0, np.radians(4), n)
    scale = rng.uniform(0.95, 1.05, n)
    shift = rng.uniform(-0.25, 0.25, (2, n))
    middle = (SIDE - 1) / 2
    y, x = np.meshgrid(np.arange(SIDE) - middle, np.arange(SIDE) - middle, indexing="ij")
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    from_y = np.multiply.outer(cosine, y) - np.multiply.outer(sine, x) + (shift[0] + middle)[:, None, None]
    from_x = np.multiply.outer(sine, y) + np.multiply.outer(cosine, x) + (shift[1] + middle)[:, None, None]
    moved = _interpolated(images, from_y, from_x)
    noisy = moved + rng.normal(0, 0.5, moved.shape)
    return np.clip(noisy, 0, 16).astype(np.float32)


def _interpolated(
    images: npt.NDArray[np.float32], y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Interpolate images between their pixels, bilinearly; outside of them is paper."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    y, x = np.clip(y + 1, 0, SIDE + 0.999), np.clip(x + 1, 0, SIDE + 0.999)
    top, left = y.astype(np.int64), x.astype(np.int64)
    down, right = y - top, x - left
    image = np.arange(len(images))[:, None, None]
    upper = padded[image, top, left] * (1 - right) + padded[image, top, left + 1] * right
    lower = padded[image, top + 1, left] * (1 - right) + padded[image, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def play(
    demonstration: Demonstration,
    pool_map: PoolMap,
    client: "Client | None",
    rounds: int,
    batch: int,
    seed: int,
    show: Show,
) -> Comparison:
    """Run the default strategy and random sampling on the pool, against its known answers.

    Parameters
    ----------
    demonstration : Demonstration
    pool_map : PoolMap
    client : distributed.Client or None
        None plays in this process.
    rounds, batch : int
        Number of rounds, and labels in each.
    seed : int
    show : Show
        Called with the progress after each round.
    """
    done = 0

    def show_round(replay: Replay) -> None:
        nonlocal done
        done += 1
        remark = f"{replay.strategy}: {replay.labels[-1]} labels, accuracy {replay.accuracy[-1]:.3f}"
        show(done, rounds * len(STRATEGIES), remark)

    return compare(
        demonstration.pool,
        demonstration.answers,
        demonstration.test,
        CLASSES,
        STRATEGIES,
        random_state=(seed,),
        batch_size=batch,
        rounds=rounds,
        watched=watched_by(demonstration.pool, pool_map),
        client=client,
        on_round=show_round,
    )


def table(comparison: Comparison) -> Table:
    """Return accuracy by number of labels, a column for each strategy."""
    means = [comparison.mean(strategy) for strategy in comparison.strategies]
    rows = [
        (f"{labels:,}", *(f"{mean.accuracy[index]:.3f}" for mean in means))
        for index, labels in enumerate(means[0].labels)
    ]
    return Table(("labels", *comparison.strategies), rows)


def verdict(comparison: Comparison) -> str:
    """Return one line on how many labels were saved."""
    saved = saved_labels(comparison, "default")
    if saved is None:
        return "The default strategy did not reach the final accuracy of random sampling: no labels were saved."
    return (
        f"The default strategy reached random sampling's final accuracy of {saved['accuracy']:.3f}"
        f" with {saved['labels']:.0f} labels instead of {saved['labels_against']:.0f}:"
        f" {saved['labels_against'] - saved['labels']:.0f} labels saved ({saved['share']:.0%})."
    )


def write_report(
    path: Path, demonstration: Demonstration, pool_map: PoolMap, comparison: Comparison, seed: int
) -> None:
    """Write the page: the two strategies side by side, round by round, in the explorer.

    Parameters
    ----------
    path : Path
    demonstration : Demonstration
    pool_map : PoolMap
    comparison : Comparison
    seed : int
        Named in the notes.
    """
    pool = demonstration.pool
    asked = [rows for replay in comparison.replays for rows in replay.batches]
    rows = np.unique(np.concatenate([pool_map.sample, *asked]))
    shares = np.bincount(demonstration.answers, minlength=len(CLASSES)) / pool.n_rows
    notes = (
        verdict(comparison),
        f"{len(demonstration.test.y):,} test records of other originals, seed {seed}, one run of each strategy, no"
        " explore share.",
        "The first batch of the default strategy is chosen without a single label, to cover the pool; later ones where"
        " the learner is unsure, and spread out.",
    )
    run = Run(
        title="Active learning on handwritten digits",
        classes=CLASSES,
        replays=comparison.replays,
        rows=rows,
        codes=demonstration.answers[rows],
        pool_map=pool_map,
        shares=tuple(shares.tolist()),
        notes=notes,
    )
    write_explorer(path, view_of_run(run, pool))
