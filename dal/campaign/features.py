"""Features that a campaign keeps of the records it asked, and of its stop set: in a large pool each costs its chunk."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dal._files import Arrays, as_npz, read_npz, write_npz
from dal.campaign.store import CampaignStore
from dal.campaign.view import View
from dal.errors import CampaignError

Rows = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class Features:
    """Read features of records; those of asked records and of the stop set were kept and need no look at the pool.

    Nothing here is missed where it is lost: it is a copy of records of the pool.

    Parameters
    ----------
    view : View
        Of the campaign; it opens the pool.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._campaign = view.campaign

    def take(self, rows: Rows) -> Floats32:
        """Read features of rows, from the pool only where they were not kept."""
        view = self._view
        # A label may be of a record that was appended a moment ago.
        pool = view.grown_pool() if np.max(rows, initial=0) >= view.pool.n_rows else view.pool
        found = np.zeros(len(rows), dtype=bool)
        X = np.empty((len(rows), pool.n_features), dtype=np.float32)
        for each in self._campaign.rounds.all():
            # What a round kept before the campaign moved to another pool are features of that one.
            here = each.opened_at is not None and each.pool_fingerprint == pool.fingerprint
            kept = self._kept(each.number) if here else None
            if kept is not None and len(kept["rows"]):
                order = np.argsort(kept["rows"])
                known = kept["rows"][order]
                position = np.minimum(np.searchsorted(known, rows), len(known) - 1)
                mine = known[position] == rows
                X[mine] = kept["features"][order[position[mine]]]
                found |= mine
        X[~found] = pool.take(rows[~found])
        return X

    def keep(self, number: int, rows: Rows, X: Floats32) -> None:
        """Keep the features of the records that a round asks."""
        self._campaign.objects.write(_name(number), as_npz(rows=rows, features=X))

    def stop_set(self, count: int) -> Floats32:
        """Read the features of the stop set."""
        rows, path = self._view.stop_rows(count), self._campaign.directory / "stop-set.npz"
        kept = _loaded(path) if path.exists() else None
        pool = np.array(self._view.pool.fingerprint)
        if kept is None or not np.array_equal(kept["rows"], rows) or not np.array_equal(kept.get("pool"), pool):
            kept = {"rows": rows, "features": self._view.pool.take(rows), "pool": pool}
            write_npz(path, kept)
        X: Floats32 = kept["features"]
        return X

    def _kept(self, number: int) -> Arrays | None:
        data = self._campaign.objects.find(_name(number))
        return None if data is None else _loaded(data, _name(number))


def features_of(campaign: CampaignStore, rows: Rows) -> Floats32:
    """Read features of rows, from the pool only where they were not kept when the record was asked."""
    return Features(View(campaign)).take(rows)


def _loaded(source: Path | bytes, name: str = "") -> Arrays | None:
    """Read arrays that can be made again; None if they were torn by a power cut."""
    try:
        return read_npz(source, name)
    except CampaignError as error:
        _log.warning("%s. It is made again.", error)
        return None


def _name(number: int) -> str:
    return f"rounds/{number:04d}-features.npz"
