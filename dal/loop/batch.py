"""Composing a batch: from the candidates of a scan, draws of the explore share and a reserve, to records to ask."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.campaign import Asked, Round, Search
from dal.campaign.features import Features
from dal.campaign.seconds import doubted
from dal.campaign.view import View, invalid_in
from dal.evidence.again import asked_again
from dal.learners.models import Model, score_block
from dal.selection.balance import choose_balanced, kept_of_classes, quotas_of
from dal.selection.batch import Known
from dal.selection.candidates import UNUSABLE, Candidates, usable
from dal.selection.codebook import Codebook
from dal.selection.explore import explore_count, interleaved, uniform_rows
from dal.selection.once import Once
from dal.selection.records import Mapped, Records, at_once, joined
from dal.selection.search import NEAREST, shared
from dal.selection.strategy import Strategy

Rows = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

_HELD_NUMBERS = 2**24
"""Of the model's own embeddings of asked records, 64 MiB are held for all choices of a round."""
_NAMED = 5
"""Classes that a warning names at most."""


@dataclass(frozen=True)
class Batch:
    """The records of a round that are to be labelled.

    Attributes
    ----------
    number : int
        Round.
    rows : ndarray of int64
        In the order of asking.
    record_ids : list of str
        The same records by the user's own keys.
    pending : int
        How many of them nobody has answered.
    fresh : bool
        Whether this call opened it; a batch that was open already is returned again, unchanged.
    """

    number: int
    rows: Rows
    record_ids: list[str]
    pending: int
    fresh: bool


@dataclass(frozen=True)
class Composed:
    """A batch that is not open yet.

    Attributes
    ----------
    asked : list of Asked
        The batch in the order of asking, then its reserve.
    rows : ndarray of int64, shape (n,)
    X : ndarray of float32, shape (n, d)
        Features of all these records, in an order of their own.
    again : list of (row, places)
        Labelled records about which another person is asked.
    """

    asked: list[Asked]
    rows: Rows
    X: Floats32
    again: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Composer:
    """Composes the batch of one round.

    Parameters
    ----------
    view : View
    features : Features
    current : Round
        Scanned.
    model : Model or None
        The round's model; None in a cold start.
    codebook : Codebook or None
        Where the strategy, or a search by examples, looks at features.
    missing : bool
        Whether records with missing features may be asked.
    directions : bool
        As in :func:`dal.selection.batch.choose`.
    mapper : callable, default=map
        Runs the independent parts of a selection.
    """

    view: View
    features: Features
    current: Round
    model: Model | None
    codebook: Codebook | None
    missing: bool
    directions: bool
    mapper: Callable[..., Any] = map

    def compose(self, candidates: Candidates, excluded: Rows, searched: Candidates | None = None) -> Composed:
        """Choose the batch and its reserve among candidates, and draw the explore share.

        Parameters
        ----------
        candidates : Candidates
            Of the round's scan, with embeddings.
        excluded : ndarray of int64
            Rows that are not to be asked, as of now; without stop set and reserved rows.
        searched : Candidates, optional
            Of the pass of the round's search.
        """
        k = self.current.k
        drawn, drawn_X = self._explore(excluded) if len(candidates) else ([], self._nothing())
        before = self.features.compared(excluded)
        # Since the scan others were asked or answered; and where all kinds were, each may be asked again.
        candidates = _different(candidates, before, unless_all=True)
        rows, X = np.append(excluded, drawn), joined(before, drawn_X)
        if searched is not None:
            searched = _different(_different(searched, before, unless_all=True), drawn_X)
        found = self._found(searched, excluded, rows, X, most=k - len(drawn))
        beside, beside_X = [*drawn, *found.rows.tolist()], np.concatenate([drawn_X, found.embeddings])
        rows, X = np.append(rows, found.rows), joined(X, found.embeddings)
        candidates = _different(candidates, beside_X)
        known = self._known(rows, X, excluded, candidates)
        wanted = max(0, k - len(drawn) - (self._wanted_found() if len(found) else 0))
        quotas = tuple((self.current.summary or {}).get("quotas", ()))
        chosen = self._chosen(candidates, known, count=wanted, quotas=quotas)
        self._tell_lacking(quotas, chosen)
        order = interleaved(interleaved(chosen.rows.tolist(), found.rows.tolist()), drawn)
        if len(chosen) < wanted:
            invalid = invalid_in(self.current)
            _log.warning(
                "The batch holds %d records instead of %d: all others that could be asked equal these or records asked"
                " before, or are near-duplicates of them%s.",
                len(order),
                k,
                f"; {invalid:,} cannot be, as they {UNUSABLE}" if invalid else "",
            )
        # The reserve is chosen after the batch and apart from it, so that it changes nothing about the batch.
        known = known.joined(chosen)
        others = _different(candidates, chosen.embeddings)
        spare = self._chosen(others, known, count=reserve_of(self.view, self.current))
        # Answers came since the freeze, and others are in hand.
        room = self.view.room(held=True)
        order = order[: max(room, 1)]
        again, dropped = self._again(chosen, order)
        chosen = chosen.take(np.flatnonzero(~np.isin(chosen.rows, list(dropped))))
        order = [row for row in order if row not in dropped]
        spare = spare.take(np.arange(min(len(spare), max(room - len(order), 0))))
        chosen = candidates.take(np.searchsorted(candidates.rows, np.append(chosen.rows, spare.rows)))
        rows = np.concatenate([chosen.rows, np.array(beside, dtype=np.int64)])
        asked = self._asked(order, spare.rows.tolist(), chosen, beside, beside_X, explored=set(drawn))
        return Composed(asked, rows, np.concatenate([chosen.embeddings, beside_X]), again)

    def _again(self, chosen: Candidates, order: list[int]) -> tuple[list[tuple[int, int]], set[int]]:
        """Choose labelled records for a second opinion, and the chosen records of the batch that give way to them.

        Everything is as of the freeze. Of the explore share and what a search found, nothing gives way, nor does a
        random batch: without its surest records it were none.
        """
        most = int(self.view.campaign.settings.labelling.again * len(order))
        own = np.flatnonzero(np.isin(chosen.rows, order))
        if not most or self.model is None or strategy_of(self.current, self.model).score == "random" or not len(own):
            return [], set()
        open_to = doubted(self.view.campaign, self.current)
        sure = self.model.predict_proba(chosen.embeddings[own]).max(axis=1)
        labelled, new = asked_again(open_to.right, sure.astype(np.float64), most)
        rows = zip(open_to.rows[labelled].tolist(), (open_to.given[labelled] + 1).tolist(), strict=True)
        return list(rows), set(chosen.rows[own[new]].tolist())

    def _wanted_found(self) -> int:
        return 0 if self.current.search is None else count_of_search(self.current.search, self.current.k)

    def _found(self, searched: Candidates | None, excluded: Rows, rows: Rows, X: Records, *, most: int) -> Candidates:
        """Choose the share of the batch that the round searches for, unlike the rows whose features are `X`.

        Where the search finds nothing at all the batch is chosen as usual: an empty one would end the campaign.
        """
        nothing = Candidates(excluded[:0], np.empty(0), excluded[:0], excluded[:0], self._nothing())
        if searched is None or self.current.search is None:
            return nothing
        wanted = min(self._wanted_found(), most)
        found = nothing
        if len(searched) and wanted:
            strategy = strategy_of_search(self.current, self.model)
            known = self._known(rows, X, excluded, searched)
            found = self._chosen(searched, known, count=wanted, strategy=strategy)
        # Others may stand behind near-duplicates of asked records that fill the list of the nearest ones.
        among = f" among the nearest {len(searched):,}" if self.current.search.by == "like" else ""
        if not len(found):
            _log.warning("The search found no record to ask%s: the batch is chosen as usual.", among)
        elif len(found) < wanted:
            _log.warning("The search found %d records to ask instead of %d%s.", len(found), wanted, among)
        return found

    def _nothing(self) -> Floats32:
        return np.empty((0, self.view.pool.n_features), dtype=np.float32)

    def _explore(self, excluded: Rows) -> tuple[list[int], Floats32]:
        """Draw the explore share, with its features: valid records only, because an invalid one is never asked.

        As in the scan, a record is invalid, too, that is so far from all others that the model overflows.
        """
        current, count = self.current, explore_of(self.view, self.current)
        held = self.view.held_back(excluded, current.stop_set)
        draws = uniform_rows(current.n_rows, held[held < current.n_rows], current.seed, current.number)
        drawn, features = list[int](), [self._nothing()]
        while wanted := list(islice(draws, count - len(drawn))):
            X = self.view.pool.take(wanted)
            valid = usable(X, missing=self.missing)
            if self.model is not None and valid.any():
                valid[valid] = np.isfinite(self.model.predict_proba(X[valid])).all(axis=1)
            drawn += [row for row, keep in zip(wanted, valid.tolist(), strict=True) if keep]
            features.append(X[valid])
        return drawn, np.concatenate(features)

    def _inner(self, X: Records, candidates: Candidates) -> Records | None:
        """Return the model's own embeddings of records, where the candidates carry theirs; NaN of unusable records.

        Up to 64 MiB are computed once for all choices of the round; more are computed again at each.
        """
        if self.model is None or candidates.inner is None or not len(candidates):
            return None
        model, width = self.model, candidates.inner.shape[1]

        def embedded(X: Floats32) -> Floats32:
            inner = np.full((len(X), width), np.nan, np.float32)
            valid = usable(X, missing=self.missing)
            if valid.any():
                inner[valid] = model.predict_embedded(X[valid])[1]
            return inner

        if isinstance(X, np.ndarray):
            return embedded(X)
        unread = Mapped(X, embedded, width)
        return unread[:] if len(X) * width <= _HELD_NUMBERS else unread

    def _known(self, rows: Rows, X: Records, excluded: Rows, candidates: Candidates) -> Known:
        """Describe records by all that candidates carry; the excluded ones come first."""
        inner, codes = self._inner(X, candidates), self._codes(excluded, X)
        return Known(rows, X, inner, codes, self._proba(X), len(excluded))

    def _codes(self, excluded: Rows, X: Records) -> Rows:
        """Return the classes of excluded and other records: labels as of the freeze, else what the model predicts."""
        codes = np.full(len(X), -1, dtype=np.int64)
        if self.model is None or not strategy_of(self.current, self.model).traits.asked_codes:
            return codes
        labels = self.view.labels(self.current.last_answer)
        _, mine, theirs = np.intersect1d(excluded, labels.rows, return_indices=True)
        codes[mine] = labels.codes[theirs]
        unanswered = np.flatnonzero(codes < 0)
        for start in range(0, len(unanswered), at_once(X)):
            part = unanswered[start : start + at_once(X)]
            their = X[part]
            valid = usable(their, missing=self.missing)
            if valid.any():
                predicted = self.model.predict_in_blocks(their[valid])
                codes[part[valid]] = np.concatenate([proba.argmax(axis=1) for proba in predicted])
        return codes

    def _proba(self, X: Records) -> Floats32 | None:
        """Return probabilities of records where the strategy looks at these; NaN of unusable records."""
        if self.model is None or not strategy_of(self.current, self.model).traits.asked_proba:
            return None
        proba = np.full((len(X), len(self.model.classes)), np.nan, np.float32)
        all_of_them = X[:]
        valid = np.flatnonzero(usable(all_of_them, missing=self.missing))
        if len(valid):
            predicted = self.model.predict_in_blocks(all_of_them[valid])
            proba[valid] = np.concatenate([each.astype(np.float32) for each in predicted])
        return proba

    def _chosen(
        self,
        candidates: Candidates,
        known: Known,
        *,
        count: int,
        strategy: Strategy | None = None,
        quotas: Sequence[int] = (),
    ) -> Candidates:
        """Choose `count` candidates unlike the known records, by the round's own strategy or by that of its search."""
        current = self.current
        if count <= 0:
            return candidates.take(np.arange(0))
        if strategy is None:
            strategy = strategy_of(current, self.model)
            wanted = wanted_of(self.view, current, strategy)
        else:
            wanted = wanted_of_search(self.view, current, strategy)
        cells = len(self.codebook.centers) if self.codebook else None
        capacity = strategy.capacity(wanted, current.n_rows, cells)
        if strategy is NEAREST and current.search is not None:
            capacity = shared(capacity, current.search.n_examples)
        rows = choose_balanced(
            candidates,
            strategy,
            count,
            quotas,
            known,
            capacity=capacity._replace(per_class=kept_of_quotas(self.view, current, strategy, quotas)),
            codebook=self.codebook,
            random_state=current.seed,
            round=current.number,
            directions=self.directions,
            mapper=self.mapper,
        )
        return candidates.take(np.searchsorted(candidates.rows, rows))

    def _tell_lacking(self, quotas: Sequence[int], chosen: Candidates) -> None:
        """Warn of the classes that have fewer records in the batch than their quotas."""
        there = np.bincount(chosen.predicted[chosen.predicted >= 0], minlength=len(quotas))
        lacking = {code: quota - int(there[code]) for code, quota in enumerate(quotas) if there[code] < quota}
        if not lacking:
            return
        names, most = self.view.campaign.settings.classes, sorted(lacking, key=lambda code: -lacking[code])[:_NAMED]
        listed = ", ".join(f"{int(there[code])} of {quotas[code]} {names[code]!r}" for code in most)
        more = f" and {len(lacking) - len(most)} other classes lack some" if len(lacking) > len(most) else ""
        _log.warning(
            "The model predicts too few other records to be of classes that have a quota: the batch holds %s%s; records"
            " of other classes take their places.",
            listed,
            more,
        )

    def _asked(
        self,
        batch: list[int],
        spare: list[int],
        chosen: Candidates,
        beside: list[int],
        beside_X: Floats32,
        *,
        explored: set[int],
    ) -> list[Asked]:
        """Describe the records of the batch and its reserve by what the model thinks of them, before it learns.

        Those `beside` the chosen ones are of the explore share, or were found by a search.
        """
        scores: dict[int, tuple[float | None, int]] = dict(
            zip(chosen.rows.tolist(), zip(chosen.scores.tolist(), chosen.predicted.tolist(), strict=True), strict=True)
        )
        scores |= dict(zip(beside, self._judged(beside_X), strict=True))
        X = np.concatenate([chosen.embeddings, beside_X])
        sure = self._confidence([*chosen.rows.tolist(), *beside], X, scores)
        order, found = [*batch, *spare], set(beside) - explored
        by = self.current.search.by if self.current.search else None
        return [
            Asked(
                row=row,
                record_id=record_id,
                rank=rank,
                score=scores[row][0],
                predicted=code if (code := scores[row][1]) >= 0 else None,
                explore=row in explored,
                confidence=sure.get(row),
                reserve=rank >= len(batch),
                found_by=by if row in found else None,
            )
            for rank, (row, record_id) in enumerate(zip(order, self.view.pool.record_ids(order), strict=True))
        ]

    def _judged(self, X: Floats32) -> list[tuple[float | None, int]]:
        """Score records with the model that chose the batch, before anyone learns from them."""
        if self.model is None or not len(X):
            return [(None, -1)] * len(X)
        score = strategy_of(self.current, self.model).scorer
        predicted = self.model.predict_proba(X).argmax(axis=1).tolist()
        if score == "random":
            return [(None, code) for code in predicted]
        return list(zip(score_block(score, self.model, X).score.tolist(), predicted, strict=True))

    def _confidence(
        self, rows: list[int], X: Floats32, scores: dict[int, tuple[float | None, int]]
    ) -> dict[int, float]:
        """Return the model's probability of its prediction for each record, for people to see."""
        if self.model is None or not rows:
            return {}
        proba = self.model.predict_proba(X)
        return {row: float(each[scores[row][1]]) for row, each in zip(rows, proba, strict=True)}


def _different(candidates: Candidates, X: Records, *, unless_all: bool = False) -> Candidates:
    """Leave out candidates that equal records, where one of equal records is kept; none where all would be left out."""
    if candidates.content is None or not len(X):
        return candidates
    left = np.flatnonzero(Once.after(X).fresh(candidates.content))
    return candidates if unless_all and not len(left) else candidates.take(left)


def strategy_of(current: Round, model: Model | None) -> Strategy:
    """Return the strategy that a round froze; without a model, the one of a cold start."""
    strategy = Strategy.named(current.strategy)
    return strategy if model is not None else strategy.cold()


def reserve_of(view: View, current: Round) -> int:
    """Return how many records to choose beyond the batch: none beyond the budget, in the last batch."""
    wanted = math.ceil(view.campaign.settings.labelling.reserve * current.k)
    return max(0, min(wanted, view.left(current.labels) - current.k))


def wanted_of(view: View, current: Round, strategy: Strategy) -> int:
    """Return for how many records candidates are kept: a shortlist is long enough for the reserve as well."""
    return current.k + (reserve_of(view, current) if strategy.shortlist == 1 else 0)


def wanted_of_search(view: View, current: Round, strategy: Strategy) -> int:
    """Return the number of records for which a search keeps candidates.

    A shortlist of several records for each one has room for others. A shortlist of one needs more: the explore share
    and the reserve may take some.
    """
    if current.search is None:
        return 0
    count = count_of_search(current.search, current.k)
    if strategy.shortlist > 1:
        return count
    return min(current.k, count + explore_of(view, current) + reserve_of(view, current))


def quotas_of_round(view: View, current: Round, model: Model | None) -> tuple[int, ...]:
    """Return how many records of a round's batch are to be predicted to be of each class; none where none has a share.

    Neither the explore share nor that of a search is part of it. Without a model nothing is predicted, and a class that
    no label names cannot be: its quota would take places from classes that can.
    """
    if current.balance is None or model is None:
        return ()
    labels = np.bincount(view.labels(current.last_answer).codes, minlength=len(current.balance))
    shares = [share if count else 0.0 for share, count in zip(current.balance, labels.tolist(), strict=True)]
    unknown = [model.classes[code] for code, share in enumerate(current.balance) if share and not labels[code]]
    if unknown:
        more = f" and {len(unknown) - _NAMED} other classes" if len(unknown) > _NAMED else ""
        _log.warning(
            "No label names %s yet, so that none can be predicted to be so: search for one.",
            ", ".join(unknown[:_NAMED]) + more,
        )
    return quotas_of(shares, labels.tolist(), max(0, current.k - _beside(view, current)))


def kept_of_quotas(view: View, current: Round, strategy: Strategy, quotas: Sequence[int]) -> tuple[int, ...]:
    """Return how many records of each class are kept for the quotas of a round."""
    return kept_of_classes(strategy, quotas, _beside(view, current))


def _beside(view: View, current: Round) -> int:
    """Return how many records of a batch the strategy does not choose."""
    return explore_of(view, current) + (count_of_search(current.search, current.k) if current.search else 0)


def explore_of(view: View, current: Round) -> int:
    """Return how many records of a round's batch are drawn uniformly."""
    rounds = view.campaign.rounds
    with view.campaign.database.snapshot():
        sizes, explored = rounds.batch_sizes(), len(rounds.explored_rows())
        due = math.fsum(each.explore_share * sizes.get(each.number, 0) for each in rounds.all())
    return explore_count(current.explore_share, due, explored, current.k)


def strategy_of_search(current: Round, model: Model | None) -> Strategy:
    """Return the strategy by which a round's search chooses: the nearest to examples, else the round's own."""
    by_examples = current.search is not None and current.search.by == "like"
    return NEAREST if by_examples else strategy_of(current, model)


def count_of_search(search: Search, k: int) -> int:
    """Return the number of records of a batch of `k` that a search is to find.

    Examples
    --------
    >>> count_of_search(Search(share=0.3), 10), count_of_search(Search(share=0.01), 10)
    (3, 1)
    """
    return max(1, round(search.share * k))
