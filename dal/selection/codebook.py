"""The codebook: the space in which records are compared, and its coarse regions, the cells."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.errors import SettingsError
from dal.selection.candidates import Floats32, usable
from dal.selection.order import Floats64

CELL_AXES = 16
"""Axes in which cells are told apart. In all of 128 features the nearest of 256 centers takes several times as long as
reading and scoring by a linear model, in 16 about as long."""


_BLOCK_ROWS = 128
"""Records whose cells are found at once: distances to 256 centers, 128 KiB, stay in the core's cache, and OpenBLAS
multiplies these without packing them first."""


MOST_DEVIATIONS = np.float32(1e4)


@dataclass(frozen=True)
class Codebook:
    """The space in which records are compared, and its coarse regions.

    Attributes
    ----------
    mean, scale : ndarray of shape (d,), float32
        Of the sample it was fitted on.
    axes : ndarray of shape (d, r), float32
        The leading principal axes of the embedded sample, at most 16: cells differ in these alone.
    centers : ndarray of shape (n_cells, r), float32
        In the space of the axes.
    """

    mean: Floats32
    scale: Floats32
    axes: Floats32
    centers: Floats32

    @classmethod
    @one_thread
    def fit(cls, sample: Floats32, n_cells: int, seed: int) -> "Codebook":
        """Find the space and its cells from a sample of the pool.

        Parameters
        ----------
        sample : ndarray of shape (n, d), float32
            Rows with an infinite value are left out; a missing one (NaN) counts as the mean of its column.
        n_cells : int
            At most one per row of the sample is made.
        seed : int
        """
        n = len(sample)
        sample = sample[usable(sample, missing=True)]
        if not np.isfinite(sample).any():
            raise SettingsError(
                f"the pool must have features that are numbers, got only NaN and infinite ones in {n:,} records that"
                " were drawn from it; look at the columns that became features, and build the pool again."
            )
        mean, scale = _moments(sample)
        # A column that is constant but for rounding would be blown up to look like any other.
        scale[~(scale > 1e-6 * np.abs(mean))] = 1.0
        nothing = np.empty((0, 0), np.float32)
        space = cls(mean.astype(np.float32), scale.astype(np.float32), nothing, nothing)
        if n_cells < 1:
            return space
        embedded = space.embed(sample)
        axes = _principal_axes(embedded)
        # Equal records first: in a product, they may come to differ in their last bits.
        distinct = np.unique(np.unique(embedded, axis=0) @ axes, axis=0)
        from sklearn.cluster import KMeans  # takes a second, and only cells need it

        means = KMeans(min(n_cells, len(distinct)), n_init=1, max_iter=20, random_state=seed % 2**32)
        means.fit(embedded @ axes)
        return replace(space, axes=axes, centers=means.cluster_centers_.astype(np.float32))

    def embed(self, X: Floats32) -> Floats32:
        """Standardise and divide by the square root of d, so that distances do not grow with the dimension.

        What is more than 10,000 deviations away is put there: its square would overflow in single precision. What is
        missing (NaN) is put at the mean.
        """
        with np.errstate(over="ignore"):
            standard = (X - self.mean) / self.scale
        standard[np.isnan(standard)] = 0.0
        np.clip(standard, -MOST_DEVIATIONS, MOST_DEVIATIONS, out=standard)
        embedded: Floats32 = standard / np.float32(np.sqrt(X.shape[1]))
        return embedded

    def directions(self, X: Floats32) -> Floats32:
        """Compute the directions of records, so that distances are those of a learner that looks at these alone.

        What is missing (NaN) is put at the mean, as in `embed`; a record of zeros stays there.
        """
        found: Floats32 = np.where(np.isnan(X), self.mean, X)
        # By the largest first: the squares of features beyond 1e19 would overflow.
        largest = np.abs(found).max(axis=1, initial=0, keepdims=True)
        np.divide(found, largest, out=found, where=largest > 0)
        lengths = np.sqrt((found * found).sum(axis=1, keepdims=True))
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found

    @one_thread
    def assign(self, X: Floats32) -> npt.NDArray[np.uint16]:
        """Find the cell of each record, whose center is nearest along the axes; the first of equals.

        ``X`` is in feature space, (n, d); what is missing (NaN) is taken for the mean. It is taken in blocks that stay
        in the core's cache.
        """
        projection, nearness = self._factors
        cells = np.empty(len(X), dtype=np.uint16)
        # Room that is used again: its pages stay in the cache.
        centred = np.empty((min(_BLOCK_ROWS, len(X)), X.shape[1]), dtype=np.float32)
        along = np.ones((len(centred), len(nearness)), dtype=np.float32)
        near = np.empty((len(centred), nearness.shape[1]), dtype=np.float32)
        # What overflows far from everything else is put into some cell, and always into the same one.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(X), _BLOCK_ROWS):
                count = min(_BLOCK_ROWS, len(X) - start)
                block = np.subtract(X[start : start + count], self.mean, out=centred[:count])
                projected = block @ projection
                if np.isnan(projected).any():
                    # All of the block again: the last bits of a product depend on its height.
                    block[np.isnan(block)] = 0.0
                    projected = block @ projection
                along[:count, :-1] = projected
                np.matmul(along[:count], nearness, out=near[:count])
                cells[start : start + count] = near[:count].argmax(axis=1)
        return cells

    @cached_property
    def _factors(self) -> tuple[Floats32, Floats32]:
        r"""The matrices by which centred records are multiplied: onto the axes, and on to the centers.

        A record :math:`z` along the axes is nearest to the center :math:`c` with the largest :math:`z c - c^2 / 2`; the
        last row of the second matrix holds the halves, for a column of ones in the records.
        """
        projection = self.axes / (self.scale * np.float32(np.sqrt(len(self.mean))))[:, None]
        halves = 0.5 * (self.centers * self.centers).sum(axis=1)
        return projection, np.ascontiguousarray(np.vstack([self.centers.T, -halves]))  # a tenth faster by rows

    def digest(self) -> str:
        """Name the codebook by its content."""
        sha = hashlib.sha256()
        for part in (self.mean, self.scale, self.axes, self.centers):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


def _moments(sample: Floats32) -> tuple[Floats64, Floats64]:
    """Compute the mean and deviation of each column's values that are there; 0 where there are none."""
    present = ~np.isnan(sample)
    if present.all():
        return sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
    count = np.maximum(present.sum(axis=0), 1)
    values = np.where(present, sample, 0.0).astype(np.float64)
    mean = values.sum(axis=0) / count
    return mean, np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / count)


def _principal_axes(embedded: Floats32) -> Floats32:
    """Find the leading principal axes, (d, r), of at most 16; the eigenvectors of the covariance (Pearson, 1901)."""
    centered = embedded.astype(np.float64) - embedded.mean(axis=0, dtype=np.float64)
    vectors = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :CELL_AXES]
    return np.ascontiguousarray(vectors, dtype=np.float32)
