"""Pools and learners to measure on, the same for the same size on every machine."""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import zarr
from rich.progress import track
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from zarr.codecs import BloscCodec, Crc32cCodec

from dal.errors import PoolIncomplete, PoolNotFound
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Block, Pool
from dal.selection.order import row_hash

CLASSES = 10
NO_ROWS = np.empty(0, dtype=np.int64)
BLOCK_ROWS = 65_536
FITTED_ROWS = 5_000
SEPARATION = 3.2
"""Distance of two classes' means, in standard deviations: they overlap, so that there is something to ask."""

# As dal's presets, without their scaler; boosting in 30 iterations, because a pass takes minutes as it is.
LEARNERS: dict[str, BaseEstimator] = {
    "logistic": LogisticRegression(max_iter=1000),
    "forest": RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=0),
    "hgb": HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0),
    "mlp": MLPClassifier((64,), max_iter=500, random_state=0),
}


CHUNK_BYTES = 16 * 2**20
LAYOUTS = ("sharded", "compressed", "foreign")
"""Of plain arrays that dal did not write. ``sharded``: chunks of 16 MiB with their checksums, eight to a file;
``compressed``: such chunks by lz4 and bitshuffle; ``foreign``: chunks of 10,000 rows, which cut across tiles."""


def names(classes: int = CLASSES) -> tuple[str, ...]:
    """Return names of classes."""
    return tuple(f"class {number}" for number in range(classes))


def labels(rows: npt.NDArray[np.int64], classes: int = CLASSES) -> npt.NDArray[np.int64]:
    """Return the true class codes of rows."""
    return (row_hash(rows, seed=1, round=0) % np.uint64(classes)).astype(np.int64)


def blocks(n_rows: int, dim: int, classes: int = CLASSES) -> Iterator[Block]:
    """Draw records, each from the Gaussian of its class, one block at a time."""
    means = np.random.default_rng(0).standard_normal((classes, dim), dtype=np.float32)
    means *= SEPARATION / np.sqrt(2 * dim)
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, n_rows), dtype=np.int64)
        X = np.random.default_rng([1, start]).standard_normal((len(rows), dim), dtype=np.float32)
        X += means[labels(rows, classes)]
        yield Block(X)


def pool_of(directory: Path, n_rows: int, dim: int, classes: int = CLASSES) -> Pool:
    """Build the pool of this size, or open it if it is already there."""
    several = f"-{classes}-classes" if classes != CLASSES else ""
    path = directory / f"gaussians-{n_rows}x{dim}{several}.zarr"
    try:
        return Pool.open(path)
    except (PoolNotFound, PoolIncomplete):
        total = -(-n_rows // BLOCK_ROWS)
        source = track(blocks(n_rows, dim, classes), "building the pool", total=total, transient=True)
        return Pool.build(source, path, overwrite=True)


def narrowed(pool: Pool, dtype: str) -> Pool:
    """Build the pool that stores the same records in a narrower type, or open it if it is already there."""
    path = Path(pool.path).with_suffix(f".{dtype}.zarr")
    try:
        return Pool.open(path)
    except (PoolNotFound, PoolIncomplete):
        return Pool.build(pool.read(0, pool.n_rows), path, dtype=dtype, overwrite=True)


def laid_out(pool: Pool, layout: str, chunk_bytes: int = CHUNK_BYTES) -> Pool:
    """Write the same records as a plain Zarr array of this layout, or open it if it is already there."""
    path = Path(pool.path).with_suffix(f".{layout}.zarr")
    height = 10_000 if layout == "foreign" else chunk_bytes // (4 * pool.n_features)
    options = {
        "sharded": {"shards": (8 * height, pool.n_features), "compressors": [Crc32cCodec()]},
        "compressed": {"compressors": [BloscCodec(cname="lz4", shuffle="bitshuffle")]},
        "foreign": {"compressors": None},
    }[layout]
    written = path.with_suffix(".part")
    if not path.exists():
        shape, chunks = (pool.n_rows, pool.n_features), (height, pool.n_features)
        if written.exists():
            raise click.ClickException(f"{written} is left of a run that was killed: remove it, and run again")
        array = zarr.create_array(written, shape=shape, chunks=chunks, dtype="float32", **options)
        for start in track(range(0, pool.n_rows, 8 * height), f"writing it {layout}", transient=True):
            array[start : start + 8 * height] = pool.read(start, min(start + 8 * height, pool.n_rows))
        written.rename(path)
    return Pool.open(path)


def fitted_rows(pool: Pool) -> npt.NDArray[np.int64]:
    """Return the rows that learners are fitted on, evenly spread."""
    return np.unique(np.linspace(0, pool.n_rows - 1, FITTED_ROWS).astype(np.int64))


def model_of(pool: Pool, learner: str, classes: int = CLASSES) -> Model:
    """Fit a learner on rows of the pool, evenly spread."""
    rows = fitted_rows(pool)
    return Learner(LEARNERS[learner], names(classes)).fit(pool.take(rows), labels(rows, classes))
