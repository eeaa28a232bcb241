"""Search: the records of a pool that lie nearest to given examples, in the space in which records are compared.

The cell of a record is its nearest example. A search keeps the nearest records of each, and takes them in turn: else
examples in a crowd would leave none to those that stand alone.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from dal.selection.candidates import Capacity
from dal.selection.codebook import Codebook
from dal.selection.distances import Floats32
from dal.selection.order import Floats64, Positions, rank_within
from dal.selection.problem import Problem
from dal.selection.strategy import Strategy, Traits

_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Likeness:
    """The score of a search: 1 / (1 + the squared distance to the nearest example).

    Attributes
    ----------
    codebook : Codebook
        The space.
    directions : bool
        Whether directions are compared, or standardised features.
    points : ndarray of shape (m, d), float64
        The examples in this space.
    """

    codebook: Codebook
    directions: bool
    points: Floats64

    @classmethod
    def to(cls, examples: Floats32, codebook: Codebook, *, directions: bool) -> "Likeness":
        """Return the likeness to examples.

        Parameters
        ----------
        examples : ndarray of shape (m, d), float32
            Their features.
        codebook : Codebook
        directions : bool
        """
        place = codebook.directions if directions else codebook.embed
        return cls(codebook, directions, place(examples).astype(np.float64))

    def __call__(self, X: Floats32) -> tuple[Floats64, Positions]:
        """Score records, in (0, 1], and find the nearest example of each, the first of equals.

        `X` is in feature space, (n, d), without infinite values.
        """
        place = self.codebook.directions if self.directions else self.codebook.embed
        squares = (self.points * self.points).sum(axis=1)
        score, cells = np.empty(len(X), dtype=np.float64), np.empty(len(X), dtype=np.int64)
        for start in range(0, len(X), _BLOCK_ROWS):
            # Doubles: the difference of large squares would lose a small distance in single precision.
            placed = place(X[start : start + _BLOCK_ROWS]).astype(np.float64)
            stop, apart = start + len(placed), squares - 2.0 * (placed @ self.points.T)
            nearest = apart.min(axis=1) + (placed * placed).sum(axis=1)
            score[start:stop], cells[start:stop] = 1.0 / (1.0 + np.maximum(nearest, 0.0)), apart.argmin(axis=1)
        return score, cells

    def capacity(self, capacity: Capacity) -> Capacity:
        """Return what a search keeps out of as many rows in all."""
        return shared(capacity, len(self.points))

    def digest(self) -> str:
        """Name the score by its content."""
        sha = hashlib.sha256(f"{self.codebook.digest()} {self.directions}".encode())
        sha.update(np.ascontiguousarray(self.points).tobytes())
        return sha.hexdigest()


def shared(capacity: Capacity, n_examples: int) -> Capacity:
    """Return the capacity of a search: as many rows of each of several examples as make up the total."""
    return capacity if n_examples < 2 else Capacity(capacity.total, n_examples, -(-capacity.total // n_examples))


class Nearest:
    """The selector of a search: the nearest records of each example in turn.

    No two of them are near-duplicates, and none is one of a record asked before.
    """

    traits = Traits(weighs=False, features=True, spread=False, cells=False, proba=False, nearest_asked=True)

    def __call__(self, problem: Problem, k: int) -> Positions:
        """Choose up to `k` candidates."""
        positions = problem.representatives
        # All of them may stand near labeled records; a search then finds nothing.
        positions = positions[~problem.near_labeled(positions)]
        turn = rank_within(problem.cells[positions])
        return positions[np.lexsort((positions, turn))[:k]]


NEAREST = Strategy(score="random", selector=Nearest(), shortlist=10, explore=0.0)
"""The strategy of a search by examples; its score is a :class:`Likeness`, its capacity :func:`shared`."""
