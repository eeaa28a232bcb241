"""Strategies: a score, a selector, and what a scan must keep for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from dal import plugins, scores
from dal.errors import SettingsError
from dal.selection.candidates import STRATIFIED_SHARE, Capacity
from dal.selection.problem import Problem

SHORTLIST_OF_COLD_START = 2000
"""Candidates of a batch that looks at no score: they stand for the whole pool, so a small batch needs many, too."""


SAMPLE_OF_POOL = 4000
"""Candidates of a batch that is chosen among a sample: they stand for the whole pool and what is uncertain in it."""


STRATIFIED_FROM = 20
"""Below this many rows per candidate the stratified half would force in rows that are not worth asking."""


ROWS_PER_CELL = 16
"""At least this many candidates for each cell."""


MOST_CELLS = 256


BuiltIn = Literal[
    "top",
    "power",
    "stratified",
    "cluster_margin",
    "facility_location",
    "max_herding",
    "k_center",
    "weighted_kmeans",
    "badge",
    "class_coverage",
    "uncertainty_herding",
    "dropquery",
    "bait",
    "typiclust",
]


class Traits(NamedTuple):
    """The needs of a selector.

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
    classes : int
        The number of these that a candidate carries, the largest ones; 0 for all.
    asked_proba : bool
        Class probabilities of the records asked before.
    asked_codes : bool
        The classes of the records asked before.
    drawn : bool
        Half of the shortlist drawn in proportion to the scores, the other half the best of the cells in turn.
    sampled : bool
        Candidates drawn uniformly from the pool, at least 4,000, instead of the best by score.
    directions : bool
        Records compared by their directions alone where the learner looks at nothing else, though it weighs.
    nearest_asked : bool
        Of very many records asked before, those suffice that are nearest to a candidate, or cover it most. The others
        are not held in memory.
    """

    weighs: bool = True
    features: bool = True
    spread: bool = False
    cells: bool = False
    proba: bool = False
    classes: int = 0
    asked_proba: bool = False
    asked_codes: bool = False
    drawn: bool = False
    sampled: bool = False
    directions: bool = False
    nearest_asked: bool = False


class Selector(Protocol):
    """A selector of one's own: a function that chooses a batch among the candidates.

    The candidates come in the order of their keys, so the batch does not depend on the order in which a scan found
    them. What is random is drawn by ``problem.seed`` and ``problem.round``. Rows that were asked are not among them.

    An attribute `traits`, a :class:`Traits`, says what the selector needs to be given; without one it is given scores
    and embeddings.

    See Also
    --------
    dal.testing.SelectorContract : the tests to subclass for a selector of one's own.

    Examples
    --------
    >>> def every_other(problem, k):
    ...     return np.arange(0, len(problem), 2)[:k]
    >>> Strategy(selector=every_other).traits == Traits(weighs=True, features=True)
    True
    """

    def __call__(self, problem: "Problem", k: int, /) -> npt.ArrayLike:
        """Choose up to `k` candidates.

        Parameters
        ----------
        problem : Problem
            The candidates, the best by key first; a *position* in it is a rank.
        k : int

        Returns
        -------
        ndarray of int64
            Positions in the order of choice, none twice; fewer than `k` where no more are worth asking.
        """


TRAITS: Mapping[BuiltIn, Traits] = {
    "top": Traits(weighs=False, features=False, spread=False, cells=False, proba=False),
    "power": Traits(weighs=True, features=False, spread=False, cells=False, proba=False),
    "stratified": Traits(weighs=False, features=True, spread=True, cells=True, proba=False, nearest_asked=True),
    # The method's own shortlist is the best of the whole pool.
    "cluster_margin": Traits(weighs=True, features=True, spread=False, cells=True, proba=False, nearest_asked=True),
    "facility_location": Traits(weighs=True, features=True, spread=True, cells=False, proba=False, nearest_asked=True),
    "max_herding": Traits(weighs=False, features=True, spread=True, cells=False, proba=False),
    "k_center": Traits(weighs=False, features=True, spread=True, cells=False, proba=False, nearest_asked=True),
    "weighted_kmeans": Traits(weighs=True, features=True, spread=True, cells=False, proba=False, nearest_asked=True),
    "badge": Traits(weighs=True, features=True, spread=True, cells=False, proba=True, nearest_asked=True),
    "class_coverage": Traits(proba=True, classes=16, asked_codes=True, drawn=True, directions=True, nearest_asked=True),
    "uncertainty_herding": Traits(sampled=True, directions=True, nearest_asked=True),
    "dropquery": Traits(directions=True, nearest_asked=True),
    "bait": Traits(proba=True, asked_proba=True, sampled=True, directions=True),
    "typiclust": Traits(weighs=False, spread=True),
}


@dataclass(frozen=True)
class Strategy:
    """The rule by which the batch of a round is chosen.

    Parameters
    ----------
    score : str or Score, default="margin"
        A name out of :data:`dal.scores.NAMES`, ``module:object``, an installed plug-in of the group ``dal.scores``, or
        a :class:`dal.scores.Score`.
    selector : str or Selector, default="facility_location"
        How the batch is chosen among the best by score: a name out of :data:`TRAITS` (see
        :func:`dal.selection.batch.select`), ``module:object``, an installed plug-in of the group ``dal.selectors``, or
        a :class:`Selector`.
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

    score: str | scores.Score = "margin"
    selector: str | Selector = "facility_location"
    shortlist: int = 10
    explore: float = 0.05
    beta: float = 4.0

    def __post_init__(self) -> None:
        # Whatever cannot be found is refused here, before any work.
        assert self.scorer
        if not isinstance(self.traits, Traits):
            raise SettingsError(
                f"`strategy.selector` must have `traits` of the type Traits, got {self.traits!r}; see"
                " dal.selection.strategy.Selector."
            )
        if self.score == "random" and self.traits.weighs:
            raise SettingsError(
                f"`strategy.score` must come from a model, because {self.selector} weighs records by it, got 'random'."
            )
        if self.shortlist < 1:
            raise SettingsError(f"`strategy.shortlist` must be at least 1, got {self.shortlist}.")
        if not 0.0 <= self.explore < 1.0:
            raise SettingsError(f"`strategy.explore` must be at least 0 and less than 1, got {self.explore}.")
        if not 0.0 <= self.beta < np.inf:
            raise SettingsError(f"`strategy.beta` must be finite and at least 0, got {self.beta}.")

    @classmethod
    def named(cls, name: str, explore: float = 0.05) -> "Strategy":
        """Return the strategy of this name.

        Parameters
        ----------
        name : str
            ``default``; ``coverage`` and others that need no labels; a score's name for the plain top of that score,
            an own score's as well; a selector's of one's own, for that among the best by margin; ``module:object`` of
            either, or of a `Strategy`; or fields by name, as ``score=entropy,selector=module:object,shortlist=5``.
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
        if name.partition("=")[0].strip() in _FIELDS:
            return cls(**_fields(name), explore=explore)
        slot = SLOT
        if ":" not in name and name.partition("(")[0] in plugins.installed("dal.selectors"):
            slot = plugins.Slot("strategy", "dal.selectors", STRATEGIES)
        found = plugins.find(name, slot)
        if isinstance(found, Strategy):
            return replace(found, explore=explore)
        if slot is not SLOT or hasattr(found, "traits"):
            return cls(selector=name, explore=explore)
        return cls(score=name, selector="top", shortlist=1, explore=explore)

    @property
    def committee(self) -> bool:
        """Whether the score asks a committee."""
        return scores.takes_committee(self.scorer)

    @cached_property
    def scorer(self) -> str | plugins.Carried:
        """The score as scans use it."""
        return scores.resolved(self.score)

    @cached_property
    def chooser(self) -> BuiltIn | Selector:
        """The selector: its name where it is built in, else what chooses."""
        if isinstance(self.selector, str) and self.selector in TRAITS:
            return cast("BuiltIn", self.selector)
        found: Any = plugins.find(self.selector, SELECTORS) if isinstance(self.selector, str) else self.selector
        if isinstance(found, type):
            found = found()
        if not callable(found):
            raise SettingsError(
                f"`strategy.selector` must be callable, got {self.selector!r}; see dal.selection.strategy.Selector."
            )
        return cast("Selector", found)

    @property
    def traits(self) -> Traits:
        """The needs of the selector."""
        chooser = self.chooser
        return TRAITS[chooser] if isinstance(chooser, str) else getattr(chooser, "traits", Traits())

    @property
    def text(self) -> str:
        """The strategy as settings keep it, without its explore share: :meth:`named` reads it.

        Raises
        ------
        Unnameable
            If the score or the selector is an object that no text can name.
        """
        return self._text(plugins.text_of)

    @property
    def label(self) -> str:
        """The strategy as people read it: its text, or a description where there is none."""
        return self._text(plugins.label_of)

    def _text(self, naming: Callable[[object, plugins.Slot], str]) -> str:
        for name in STRATEGIES:
            if Strategy.named(name, self.explore) == self:
                return name
        score = self.score if isinstance(self.score, str) else naming(self.score, scores.SLOT)
        selector = self.selector if isinstance(self.selector, str) else naming(self.selector, SELECTORS)
        return f"score={score},selector={selector},shortlist={self.shortlist},beta={self.beta}"

    def cold(self) -> "Strategy":
        """Return the strategy of a round without labels to learn from: coverage of the pool, or random as chosen."""
        if not self.traits.weighs:
            return replace(self, score="random")
        return replace(self, score="random", selector="max_herding" if self.traits.features else "top")

    def n_cells(self, k: int, n_rows: int) -> int:
        """Return the number of cells that a campaign with batches of `k` should have; 0 where it needs none."""
        cells = min(MOST_CELLS, self._total(k, n_rows) // ROWS_PER_CELL)
        return max(cells, 2) if self.traits.cells else self.capacity(k, n_rows).cells

    def capacity(self, k: int, n_rows: int, n_cells: int | None = None) -> "Capacity":
        """Return what a scan must keep so that a batch of `k` can be chosen among `n_rows`.

        Parameters
        ----------
        k, n_rows : int
        n_cells : int, optional
            The cells there are. Without it the result has the number that there should be.
        """
        total = self._total(k, n_rows)
        if self.selector == "power":
            return Capacity(total, 0, 0, self.beta)
        if self.traits.sampled:
            return Capacity(total, 0, 0, 0.0)
        cells = min(MOST_CELLS, total // ROWS_PER_CELL)
        if self.traits.drawn:
            # All cells there are, however small the batch: without them a crowd of noise takes the batch.
            cells = max(cells, 2) if n_cells is None else n_cells
            return Capacity(total, cells, -(-total // cells), 1.0) if cells > 1 else Capacity(total, 0, 0, 1.0)
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
        if self.traits.sampled:
            total = max(total, SAMPLE_OF_POOL)
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
    "class_coverage": Strategy("margin", "class_coverage", shortlist=20),
    "uncertainty_herding": Strategy("margin", "uncertainty_herding"),
    "dropquery": Strategy("dropout", "dropquery", shortlist=20),
    "bait": Strategy("margin", "bait"),
    "typiclust": Strategy("random", "typiclust"),
}


def strategy_or_default(strategy: str | Strategy, encoder: str | None) -> str | Strategy:
    """Return the strategy that was chosen; where none was, the name of the one that suits the pool.

    Parameters
    ----------
    strategy : str or Strategy
        Empty where none was chosen.
    encoder : str or None
        The id of the encoder that made the pool's features: they are embeddings where there is one.
    """
    if isinstance(strategy, str) and not strategy:
        return "default" if encoder is None else "class_coverage"
    return strategy


STRATEGIES: tuple[str, ...] = (*_NAMED, *scores.NAMES)
"""The names :meth:`Strategy.named` knows."""


SLOT = plugins.Slot("strategy", "dal.scores", STRATEGIES)
SELECTORS = plugins.Slot("strategy.selector", "dal.selectors", tuple(TRAITS))
"""Where selectors of one's own are found."""

_FIELDS: Mapping[str, Callable[[str], Any]] = {"score": str, "selector": str, "shortlist": int, "beta": float}


def _fields(text: str) -> dict[str, Any]:
    """Read the fields of a strategy, separated by commas outside of parentheses.

    Examples
    --------
    >>> _fields("score=a:B(c=1, beta=2), shortlist=5")
    {'score': 'a:B(c=1, beta=2)', 'shortlist': 5}
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    found: dict[str, Any] = {}
    for part in parts:
        name, _, value = (each.strip() for each in part.partition("="))
        try:
            found |= {name: _FIELDS[name](value)}
        except (KeyError, ValueError) as error:
            fields = ", ".join(f"{each}=..." for each in _FIELDS)
            raise SettingsError(f"`strategy` must be {fields}, got {text!r}; {part.strip()!r} is none.") from error
    return found
