"""What the model would say of a record that no round asked: a gold one must look like the others."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from dal.campaign import Campaign, Leased
from dal.errors import DalError
from dal.learners.models import Model
from dal.web.records import Records

Guess = tuple[int, float | None]

_log = logging.getLogger(__name__)


class Guesses:
    """Gives the suggestion of every record that is served, whether a round predicted it or not.

    Parameters
    ----------
    campaign : Campaign
    records : Records
        The pool's.
    """

    def __init__(self, campaign: Campaign, records: Records) -> None:
        self._campaign = campaign
        self._records = records
        self._working = threading.Lock()
        self._for: tuple[int, frozenset[int]] = (0, frozenset())
        self._known: dict[int, Guess] | None = {}

    def of(self, served: Sequence[Leased]) -> dict[int, Guess]:
        """Give the class that the round's model predicts for each record, and its probability.

        Where the model cannot be asked about gold records, nobody is shown what it says of any.
        """
        told = {each.row: each.suggestion for each in served if each.suggestion is not None}
        wanted = max((each.round for each in served), default=0), frozenset(self._campaign.gold())
        if not all(wanted):
            return told
        # All of them at once, whoever is served what: a request must not take longer for holding one.
        with self._working:
            if wanted != self._for:
                self._known, self._for = self._predicted(*wanted), wanted
            known = self._known
        if known is None:
            return {}
        return told | {each.row: known[each.row] for each in served if each.row in known and each.suggestion is None}

    def _predicted(self, number: int, gold: frozenset[int]) -> dict[int, Guess] | None:
        digest, rows = self._campaign.round(number).model, sorted(gold)
        if digest is None:
            return {}
        try:
            model = Model.loads(self._campaign.load_model(digest), self._campaign.settings.trusted)
            # Nobody is asked of records that the model cannot be given, but gold may be such.
            missing = np.nan if model.takes_missing else 0.0
            X = np.nan_to_num(self._records.features(rows), nan=missing, posinf=0.0, neginf=0.0)
            proba = np.nan_to_num(model.predict_proba(X))  # of a record too far from all others, nothing is said
        except DalError as error:
            _log.warning("No suggestions are shown in round %d: %s", number, error)
            return None
        codes = proba.argmax(axis=1)
        return {row: (int(code), float(each[code])) for row, code, each in zip(rows, codes, proba, strict=True)}
