"""Strategies: a score, a selector, and what a scan must keep for them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from dal import scores
from dal.errors import SettingsError
from dal.selection.candidates import STRATIFIED_SHARE, Capacity

SHORTLIST_OF_COLD_START = 2000
"""Candidates of a batch that looks at no score: they stand for the whole pool, so a small batch needs many, too."""


STRATIFIED_FROM = 20
"""Below this many rows per candidate the stratified half would force in rows that are not worth asking."""


ROWS_PER_CELL = 16
"""At least this many candidates for each cell."""


MOST_CELLS = 256


Selector = Literal[
    "top",
    "power",
    "stratified",
    "cluster_margin",
    "facility_location",
    "max_herding",
    "k_center",
    "weighted_kmeans",
    "badge",
]


class Traits(NamedTuple):
    """What a selector needs to be given.

    Attributes
    ----------
    weighs : bool
        Scores that a model gives: without one there is nothing to weigh by.
    features : bool
        Where the records stand.
    spread : bool
        Candidates half of which are spread over the cells, where the pool is large.
    cells : bool
        The cell of every candidate, however small the pool.
    proba : bool
        Class probabilities of the candidates.
    """

    weighs: bool
    features: bool
    spread: bool
    cells: bool
    proba: bool


TRAITS: Mapping[Selector, Traits] = {
    "top": Traits(weighs=False, features=False, spread=False, cells=False, proba=False),
    "power": Traits(weighs=True, features=False, spread=False, cells=False, proba=False),
    "stratified": Traits(weighs=False, features=True, spread=True, cells=True, proba=False),
    # The method's own shortlist is the best of the whole pool.
    "cluster_margin": Traits(weighs=True, features=True, spread=False, cells=True, proba=False),
    "facility_location": Traits(weighs=True, features=True, spread=True, cells=False, proba=False),
    "max_herding": Traits(weighs=False, features=True, spread=True, cells=False, proba=False),
    "k_center": Traits(weighs=False, features=True, spread=True, cells=False, proba=False),
    "weighted_kmeans": Traits(weighs=True, features=True, spread=True, cells=False, proba=False),
    "badge": Traits(weighs=True, features=True, spread=True, cells=False, proba=True),
}


@dataclass(frozen=True)
class Strategy:
    """How the batch of a round is chosen.

    Parameters
    ----------
    score : str, default="margin"
        A name out of :data:`dal.scores.NAMES`.
    selector : str, default="facility_location"
        How the batch is chosen among the best by score: a name out of :data:`TRAITS`; see
        :func:`dal.selection.batch.select`.
    shortlist : int, default=10
        Candidates for each record of the batch.
    explore : float, default=0.05
        Share of what is asked that is drawn uniformly from the rows never asked: the honest ruler.
    beta : float, default=4.0
        Of the selector ``power``: records are drawn with probabilities in proportion to score^beta. 0 is uniform; the
        larger the pool for a batch, the larger it must be for the draw to differ from uniform.

    Raises
    ------
    SettingsError
        If a value is out of its range, or the selector weighs by scores and the score is ``random``.

    Examples
    --------
    >>> Strategy.named("default") == Strategy()
    True
    >>> Strategy.named("margin")
    Strategy(score='margin', selector='top', shortlist=1, explore=0.05, beta=4.0)
    """

    score: str = "margin"
    selector: Selector = "facility_location"
    shortlist: int = 10
    explore: float = 0.05
    beta: float = 4.0

    def __post_init__(self) -> None:
        scores.check_name(self.score)
        if self.selector not in TRAITS:
            raise SettingsError(f"Expected a selector out of {', '.join(TRAITS)}, got {self.selector!r}.")
        if self.score == "random" and self.traits.weighs:
            raise SettingsError(
                f"{self.selector} weighs records by what a model says of them; 'random' is no such score."
            )
        if self.shortlist < 1:
            raise SettingsError(f"Expected a shortlist of at least 1 candidate a record, got {self.shortlist}.")
        if not 0.0 <= self.explore < 1.0:
            raise SettingsError(f"Expected an explore share of 0 or more and less than 1, got {self.explore}.")
        if not 0.0 <= self.beta < np.inf:
            raise SettingsError(f"Expected a finite beta of 0 or more, got {self.beta}.")

    @classmethod
    def named(cls, name: str, explore: float = 0.05) -> "Strategy":
        """Give the strategy of this name.

        Parameters
        ----------
        name : str
            ``default``; ``coverage`` and others that need no labels; or a score's name for the plain top of that score.
        explore : float, default=0.05

        Raises
        ------
        SettingsError
            If there is no such strategy; the message lists those there are.
        """
        if name in _NAMED:
            return replace(_NAMED[name], explore=explore)
        if name in scores.NAMES:
            return cls(score=name, selector="top", shortlist=1, explore=explore)
        raise SettingsError(f"Expected a strategy out of {', '.join(STRATEGIES)}, got {name!r}.")

    @property
    def committee(self) -> bool:
        """Whether the score asks a committee."""
        return self.score in scores.OF_COMMITTEE

    @property
    def traits(self) -> Traits:
        """What the selector needs."""
        return TRAITS[self.selector]

    def cold(self) -> "Strategy":
        """Give the strategy of a round that has no labels to learn from: coverage of the pool, or random as chosen."""
        if not self.traits.weighs:
            return replace(self, score="random")
        return replace(self, score="random", selector="max_herding" if self.traits.features else "top")

    def n_cells(self, k: int, n_rows: int) -> int:
        """Say how many cells a campaign with batches of `k` should have; 0 where it has no use for them."""
        cells = min(MOST_CELLS, self._total(k, n_rows) // ROWS_PER_CELL)
        return max(cells, 2) if self.traits.cells else self.capacity(k, n_rows).cells

    def capacity(self, k: int, n_rows: int, n_cells: int | None = None) -> "Capacity":
        """Say what a scan must keep so that a batch of `k` can be chosen among `n_rows`.

        Parameters
        ----------
        k, n_rows : int
        n_cells : int, optional
            The cells there are. Without it the result says how many there should be.
        """
        total = self._total(k, n_rows)
        if self.selector == "power":
            return Capacity(total, 0, 0, self.beta)
        cells = min(MOST_CELLS, total // ROWS_PER_CELL)
        if not self.traits.spread or n_rows < STRATIFIED_FROM * total or cells < 2:
            return Capacity(total, 0, 0)
        if n_cells is not None:
            # A sample of few distinct records has fewer cells than were wished for. A late, small batch wishes for far
            # fewer than the campaign has: spread over all of them it would be spread too thin.
            if n_cells < 2 or n_cells > 2 * cells:
                return Capacity(total, 0, 0)
            cells = n_cells
        return Capacity(total, cells, -int(-2 * STRATIFIED_SHARE * total // cells))

    def _total(self, k: int, n_rows: int) -> int:
        total = self.shortlist * k
        if self.score == "random" and self.traits.features:
            total = max(total, SHORTLIST_OF_COLD_START)
        return min(total, n_rows)


_NAMED: Mapping[str, Strategy] = {
    "default": Strategy(),
    "coverage": Strategy("random", "max_herding"),
    "power": Strategy("margin", "power", shortlist=1),
    "weighted_kmeans": Strategy("margin", "weighted_kmeans"),
    "badge": Strategy("margin", "badge"),
    "cluster_margin": Strategy("margin", "cluster_margin"),
    "k_center": Strategy("random", "k_center"),
    "stratified": Strategy("random", "stratified"),
}


STRATEGIES: tuple[str, ...] = (*_NAMED, *scores.NAMES)
"""The names :meth:`Strategy.named` knows."""
