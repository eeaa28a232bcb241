"""Familiar records: the near-duplicates of records asked before, which a scan leaves out of its candidates.

A selector picks none of them anyway. But they may fill the list of candidates, and nothing is left to pick from then.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from dal.selection.candidates import Capacity, usable
from dal.selection.codebook import Codebook
from dal.selection.distances import DUPLICATE_DISTANCE, Floats32, Mask, Neighbourhood, exact_median_to_nearest
from dal.selection.order import Floats64, Positions, row_hash
from dal.selection.records import MOST_ASKED, Records

MOST_NUMBERS = 2**22
"""Of the points that a scan brings to each worker: 16 MiB. Selectors look at all of them."""


@dataclass(frozen=True)
class Familiar:
    """The records of a pool that are near-duplicates of records asked before.

    Attributes
    ----------
    codebook : Codebook
        The space in which records are compared.
    directions : bool
        Whether directions are compared, or standardised features.
    near : Neighbourhood
        Of the asked records in this space.
    """

    codebook: Codebook
    directions: bool
    near: Neighbourhood

    @classmethod
    def to(
        cls,
        asked: Records,
        codebook: Codebook,
        *,
        directions: bool,
        seed: int,
        round: int,
        most_numbers: int = MOST_NUMBERS,
    ) -> "Familiar | None":
        """Return the records that are familiar once these are asked; None where there is no distance to tell it by.

        As for a selector, a near-duplicate is nearer than a tenth of the median distance of an asked record to its
        nearest other one.

        Parameters
        ----------
        asked : Records
            Features of the records asked before, (n, d).
        codebook : Codebook
        directions : bool
        seed, round : int
            Of the hashes.
        most_numbers : int
            Of the features of asked records that are looked at: those with the least hashes.
        """
        most = max(1, most_numbers // asked.shape[1])
        drawn: slice | Positions = slice(None)
        if len(asked) > max(most, MOST_ASKED):  # a million are not held in memory, nor compared there
            drawn = np.sort(np.argsort(row_hash(np.arange(len(asked)), seed, round))[: max(most, MOST_ASKED)])
        X = asked[drawn]
        place = codebook.directions if directions else codebook.embed
        points = np.unique(place(X[usable(X, missing=True)]), axis=0)
        names = np.arange(len(points))
        distance = DUPLICATE_DISTANCE * exact_median_to_nearest(points, names, seed, round)
        if not distance:
            return None
        points = points[np.sort(np.argsort(row_hash(names, seed, round))[:most])]
        return cls(codebook, directions, Neighbourhood(points, distance))

    def __call__(self, X: Floats32) -> Mask:
        """Mark the familiar ones of records, (n, d) in feature space, without infinite values."""
        return np.isfinite(self.nearest(X)[0])

    def nearest(self, X: Floats32) -> tuple[Floats64, Positions]:
        """Find the nearest asked record of each familiar record, and how far it is; infinity for the others."""
        place = self.codebook.directions if self.directions else self.codebook.embed
        return self.near.nearest(place(X))

    def digest(self) -> str:
        """Name the records by all that tells them."""
        sha = hashlib.sha256(f"{self.codebook.digest()} {self.directions} {self.near.distance!r}".encode())
        sha.update(np.ascontiguousarray(self.near.points).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class Copies:
    """The score by which a scan finds the near-duplicates of labelled records: 1 / (1 + the squared distance), or 0.

    The cell of a record is its nearest labelled one; a record of score 0 is none's near-duplicate, and not kept.

    Attributes
    ----------
    familiar : Familiar
    most : int
        Records of each cell that are kept, the nearest ones.
    """

    familiar: Familiar
    most: int

    def __call__(self, X: Floats32) -> tuple[Floats64, Positions]:
        """Score records, in [0, 1], and find their cells."""
        apart, which = self.familiar.nearest(X)
        return 1.0 / (1.0 + apart * apart), which

    def capacity(self, capacity: Capacity) -> Capacity:  # noqa: ARG002
        """Return what a scan keeps: of each labelled record as many."""
        return Capacity(1, len(self.familiar.near.points), self.most)

    def digest(self) -> str:
        """Name the score by its content; a scan names what it keeps."""
        return f"copies {self.familiar.digest()}"
