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
        self._for: tuple[int, frozenset[int]] = (0, frozenset())
        self._known: dict[int, Guess] | None = {}

    def of(self, served: Sequence[Leased]) -> dict[int, Guess]:
        """Return the class that the round's model predicts for each record, and its probability.

        If the model cannot predict gold records, no suggestion is returned for any record: a missing one would show
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
        wanted = max((each.round for each in served), default=0), frozenset(self._campaign.answers.gold())
        if not all(wanted):
            return predicted
        # All gold records at once, for every request: one that holds a gold record must not take longer.
        with self._working:
            if wanted != self._for:
                self._known, self._for = self._predicted(*wanted), wanted
            known = self._known
        if known is None:
            return {}
        return predicted | {
            each.row: known[each.row] for each in served if each.row in known and each.suggestion is None
        }

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
