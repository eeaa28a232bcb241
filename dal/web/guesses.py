"""Suggestions for records that no round predicted: gold records must look like all others."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from dal.campaign import CampaignStore, Leased
from dal.errors import DalError
from dal.learners.models import Model
from dal.web.records import Records

Guess = tuple[int, float | None]

_log = logging.getLogger(__name__)

_ROUNDS = 4  # whose gold records are remembered; people are served records of two rounds, and hold a few of others


class Guesses:
    """Suggestions for all records that are served, whether a round predicted them or not.

    Parameters
    ----------
    campaign : Campaign
    records : Records
        The records of the pool.
    """

    def __init__(self, campaign: CampaignStore, records: Records) -> None:
        self._campaign = campaign
        self._records = records
        self._working = threading.Lock()
        self._gold: frozenset[int] = frozenset()
        self._known: dict[int, dict[int, Guess] | None] = {}  # by round

    def of(self, served: Sequence[Leased]) -> dict[int, Guess]:
        """Return the class that the model of its round predicts for each record, and its probability.

        If a model cannot predict gold records, no suggestion is returned for any record: a missing one would show
        which are gold.

        Parameters
        ----------
        served : sequence of Leased

        Returns
        -------
        dict of int to (int, float or None)
            By row: class code and probability.
        """
        predicted = {each.row: each.suggestion for each in served if each.suggestion is not None}
        numbers, gold = {each.round for each in served}, frozenset(self._campaign.answers.gold())
        if not numbers or not gold:
            return predicted
        # All gold records at once, for every request: one that holds a gold record must not take longer.
        with self._working:
            if gold != self._gold:
                self._known, self._gold = {}, gold
            for number in numbers - self._known.keys():
                self._known[number] = self._predicted(number, gold)
            known = {number: self._known[number] for number in numbers}
            self._known = dict(sorted(self._known.items())[-_ROUNDS:])
        if None in known.values():
            return {}
        guessed = {each.row: (known[each.round] or {}).get(each.row) for each in served if each.suggestion is None}
        return predicted | {row: guess for row, guess in guessed.items() if guess is not None}

    def _predicted(self, number: int, gold: frozenset[int]) -> dict[int, Guess] | None:
        chosen, rows = self._campaign.rounds.get(number), sorted(gold)
        digest = chosen.model
        # Features of another pool, that the campaign moved to or away from, mean nothing to the model.
        if digest is None or chosen.pool_fingerprint != self._campaign.pool_fingerprint:
            return {}
        try:
            model = Model.loads(self._campaign.rounds.load_model(digest), self._campaign.settings.trusted)
            # Records that the model cannot take are never asked, but gold records may be such.
            missing = np.nan if model.takes_missing else 0.0
            X = np.nan_to_num(self._records.features(rows), nan=missing, posinf=0.0, neginf=0.0)
            proba = np.nan_to_num(model.predict_proba(X))  # NaN for a record too far from all others
        except DalError as error:
            _log.warning("No suggestions are shown in round %d: %s", number, error)
            return None
        codes = proba.argmax(axis=1)
        return {row: (int(code), float(each[code])) for row, code, each in zip(rows, codes, proba, strict=True)}
