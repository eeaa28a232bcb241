"""The map of a pool: one fixed projection onto two axes, and how many records lie where.

The browser never gets the pool: it gets a density of at most 256 by 256 fields, counted where the records lie, and a
few thousand points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from dal._files import read_npz, write_npz
from dal._threads import one_thread
from dal.compute.client import connect
from dal.errors import CampaignError, SettingsError
from dal.pool import Pool
from dal.scan import plan
from dal.scan.driver import SAMPLE_BYTES, SAMPLE_ROWS, sample_rows
from dal.scan.plan import Interval
from dal.selection.candidates import usable
from dal.selection.codebook import MOST_DEVIATIONS, Codebook
from dal.selection.order import row_hash

if TYPE_CHECKING:
    from distributed import Client

    from dal.compute.client import Connectable

Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

MAP = "map.npz"
"""The file of a campaign's directory that keeps its map."""

VERSION = 2
BINS = 256
SAMPLE_POINTS = 2000
_MARGIN = 0.04
_TAIL = 0.0005


@dataclass(frozen=True)
class Projection:
    """From features onto the two axes of the map.

    Attributes
    ----------
    mean, scale : ndarray of shape (d,), float32
    components : ndarray of shape (2, d), float32
    axes : tuple of str
        What the axes are.
    filling : ndarray of shape (d,), float32
        What a missing feature (NaN) is taken for.
    """

    mean: Floats32
    scale: Floats32
    components: Floats32
    axes: tuple[str, str]
    filling: Floats32

    @one_thread
    def place(self, X: Floats32) -> Floats32:
        """Compute the place of each record on the map, (n, 2); NaN where a feature is infinite or all are missing."""
        nowhere, missing = np.isinf(X).any(axis=1), np.isnan(X)
        if missing.any():
            nowhere |= missing.all(axis=1)
            X = np.where(missing, self.filling, X)
        with np.errstate(over="ignore", invalid="ignore"):
            standard = np.clip((X - self.mean) / self.scale, -MOST_DEVIATIONS, MOST_DEVIATIONS)
            placed: Floats32 = (standard @ self.components.T).astype(np.float32)
        placed[nowhere] = np.nan
        return placed


@dataclass(frozen=True)
class PoolMap:
    """A pool seen from above.

    Attributes
    ----------
    projection : Projection
    extent : tuple of float
        Left, right, bottom, top of the density.
    density : ndarray of shape (256, 256), int64
        Valid records in each field; the first row is the lowest.
    outside : int
        Valid records beyond the extent: the farthest few in ten thousand are left out, so that the others have room.
    sample : ndarray of shape (n,), int64
        Rows of an even sample of the pool, at most 2,000.
    sample_places : ndarray of shape (n, 2), float32
    fingerprint : str
        Of the pool.
    n_rows : int
        Of the pool when it was counted.
    """

    projection: Projection
    extent: tuple[float, float, float, float]
    density: npt.NDArray[np.int64]
    outside: int
    sample: Rows
    sample_places: Floats32
    fingerprint: str
    n_rows: int

    def save(self, path: Path) -> None:
        """Write the map to an .npz file, whole or not at all."""
        plain: dict[str, Any] = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)[1:]}
        plain |= {f.name: np.asarray(getattr(self.projection, f.name)) for f in fields(Projection)}
        write_npz(path, {"version": np.asarray(VERSION), **plain}, compressed=True)

    @classmethod
    def load(cls, path: Path) -> "PoolMap | None":
        """Read a map; None where there is none that this version can use."""
        try:
            stored = read_npz(path)
            return cls._from(stored) if int(stored["version"]) == VERSION else None
        except (FileNotFoundError, CampaignError, ValueError, KeyError):
            return None

    @classmethod
    def _from(cls, stored: dict[str, npt.NDArray[Any]]) -> "PoolMap":
        axes: list[str] = stored["axes"].tolist()
        left, right, bottom, top = stored["extent"].tolist()
        return cls(
            projection=Projection(
                stored["mean"], stored["scale"], stored["components"], (axes[0], axes[1]), stored["filling"]
            ),
            extent=(left, right, bottom, top),
            density=stored["density"],
            outside=int(stored["outside"]),
            sample=stored["sample"],
            sample_places=stored["sample_places"],
            fingerprint=str(stored["fingerprint"]),
            n_rows=int(stored["n_rows"]),
        )


def map_of(
    pool: Pool,
    path: Path | None,
    random_state: int,
    *,
    client: "Connectable" = None,
    progress: Callable[[int, int], None] | None = None,
) -> PoolMap:
    """Return the map that is kept at `path`, or make it and keep it there.

    The projection is made once and stays, also when the pool grows: a map on which everything moves shows nothing. Only
    the density is counted again then.

    Parameters
    ----------
    pool : Pool
    path : Path or None
        Where the map is kept, such as ``campaign.directory / "map.npz"``; None keeps it nowhere.
    random_state : int
    client : distributed.Client, Cluster or str, optional
        Where to count, see :func:`dal.compute.client.connect`; without one, in this process.
    progress : callable, optional
        Given rows counted and rows in all.

    Returns
    -------
    PoolMap
    """
    kept = PoolMap.load(path) if path is not None else None
    if kept is not None and (kept.fingerprint, kept.n_rows) == (pool.fingerprint, pool.n_rows):
        return kept
    if kept is not None and kept.fingerprint == pool.fingerprint:
        projection, extent = kept.projection, kept.extent
    else:
        projection, extent = fit_projection(pool, random_state)
    made = count_density(pool, projection, extent, random_state, client=client, progress=progress)
    if path is not None:
        made.save(path)
    return made


def fit_projection(pool: Pool, seed: int) -> tuple[Projection, tuple[float, float, float, float]]:
    """Find the axes from a seeded sample, and the extent that shows all but the farthest records.

    The axes are the first two principal components of the standardised features, the space in which the default
    strategy compares records. Each points to where its largest weight is positive, so that no run mirrors the map. A
    pool of two features is its own map.

    Returns
    -------
    projection : Projection
    extent : tuple of float
        Left, right, bottom, top.

    Raises
    ------
    SettingsError
        If every sampled record has a feature that is not finite.
    """
    size = min(SAMPLE_ROWS, max(1000, SAMPLE_BYTES // (4 * pool.n_features)))
    sample = pool.take(sample_rows(pool.n_rows, seed, size))
    sample = sample[usable(sample, missing=True) & np.isfinite(sample).any(axis=1)]
    if not len(sample):
        raise SettingsError(
            "`pool` must hold records without NaN and infinite features, got none; there is nothing to draw a map of."
        )
    d, space = pool.n_features, Codebook.fit(sample, 0, seed)
    if d == 2:
        plain = np.zeros(2, np.float32), np.ones(2, np.float32), np.eye(2, dtype=np.float32)
        projection = Projection(*plain, ("feature 1", "feature 2"), space.mean)
    else:
        components = np.zeros((2, d), dtype=np.float32)
        count = min(2, d, len(sample))
        # Where all records are equal there is no variance to explain a share of: the components are as good as any.
        with one_thread, np.errstate(invalid="ignore"):
            analysis = PCA(
                count, svd_solver="covariance_eigh" if d <= 1000 else "randomized", random_state=seed % 2**32
            )
            found = analysis.fit(space.embed(sample) * np.float32(np.sqrt(d))).components_
        signs = np.sign(found[np.arange(count), np.abs(found).argmax(axis=1)])
        components[:count] = found * np.where(signs == 0, 1, signs)[:, None]
        axes = ("first principal component", "second principal component")
        projection = Projection(space.mean, space.scale, components, axes, space.mean)
    return projection, _extent(projection.place(sample))


def _extent(places: Floats32) -> tuple[float, float, float, float]:
    low, high = np.quantile(places.astype(np.float64), [_TAIL, 1 - _TAIL], axis=0)
    # A constant axis still needs a width to be drawn on.
    wide = np.where(high > low, high - low, 2.0)
    low, high = (
        low - np.where(high > low, 0, 1.0) - _MARGIN * wide,
        high + np.where(high > low, 0, 1.0) + _MARGIN * wide,
    )
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def count_density(
    pool: Pool,
    projection: Projection,
    extent: tuple[float, float, float, float],
    seed: int,
    *,
    client: "Connectable" = None,
    progress: Callable[[int, int], None] | None = None,
) -> PoolMap:
    """Count the records in each field of the map, span by span, on a cluster or here; the same counts either way.

    Raises
    ------
    ClusterError
        If the cluster is lost, has no worker for a minute, or finishes no span for ten minutes.
    """
    with connect(client) as connected:
        counts = _counted(pool, projection, extent, seed, connected, progress)
    # Even over the rows and not over the map: a sample of the pool, at places that are its own.
    drawn = _even_sample(pool.n_rows, seed)
    places = projection.place(pool.take(drawn))
    valid = np.isfinite(places).all(axis=1)
    return PoolMap(
        projection=projection,
        extent=extent,
        density=counts[:-1].reshape(BINS, BINS),
        outside=int(counts[-1]),
        sample=drawn[valid],
        sample_places=places[valid],
        fingerprint=pool.fingerprint,
        n_rows=pool.n_rows,
    )


def _counted(
    pool: Pool,
    projection: Projection,
    extent: tuple[float, float, float, float],
    seed: int,
    client: "Client | None",
    progress: Callable[[int, int], None] | None,
) -> npt.NDArray[np.int64]:
    tile = plan.tile_rows(pool.n_features)
    unit = plan.unit_rows(tile, pool.write_rows)
    threads = max(1, sum(client.nthreads().values())) if client is not None else 1
    rows = plan.span_rows(pool.n_rows, pool.n_features * pool.dtype.itemsize, threads, unit, None)
    spans = plan.cut([Interval(0, pool.n_rows)], rows, seed)
    counts = np.zeros(BINS * BINS + 1, dtype=np.int64)
    done = 0
    what = {"pool": pool, "projection": projection, "extent": extent, "tile": tile}
    for span, found in _counted_here(spans, **what) if client is None else _counted_on_cluster(client, spans, **what):
        counts += found
        done += span.stop - span.start
        if progress is not None:
            progress(done, pool.n_rows)
    return counts


def _even_sample(n_rows: int, seed: int) -> Rows:
    rows = sample_rows(n_rows, seed)
    return np.sort(rows[np.argsort(row_hash(rows, seed, 3), kind="stable")[:SAMPLE_POINTS]])


def count_span(
    span: Interval, pool: Pool, projection: Projection, extent: tuple[float, float, float, float], tile: int
) -> npt.NDArray[np.int64]:
    """Count one span: a number for each field of the map, and one more for what lies beyond it."""
    counts = np.zeros(BINS * BINS + 1, dtype=np.int64)
    reader = pool.reader()
    left, right, bottom, top = extent
    with one_thread:
        for start in range(span.start, span.stop, tile):
            places = projection.place(reader.read(start, min(start + tile, span.stop)))
            places = places[np.isfinite(places).all(axis=1)].astype(np.float64)
            column = np.floor((places[:, 0] - left) / (right - left) * BINS)
            row = np.floor((places[:, 1] - bottom) / (top - bottom) * BINS)
            inside = (column >= 0) & (column < BINS) & (row >= 0) & (row < BINS)
            field = np.where(inside, row * BINS + column, BINS * BINS).astype(np.int64)
            counts += np.bincount(field, minlength=len(counts))
    return counts


_Counts = Iterator[tuple[Interval, npt.NDArray[np.int64]]]


def _counted_here(spans: list[Interval], **what: Any) -> _Counts:  # noqa: ANN401 - count_span's own arguments
    for span in spans:
        yield span, count_span(span, **what)


def _counted_on_cluster(client: "Client", spans: list[Interval], **what: Any) -> _Counts:  # noqa: ANN401
    from dal.compute.work import each_on

    return each_on(client, _count, spans, what)


def _count(what: dict[str, Any], span: Interval, _: Callable[[], None]) -> npt.NDArray[np.int64]:
    return count_span(span, **what)
