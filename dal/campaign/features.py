"""Features that a campaign keeps of the records it asked, and of its stop set: in a large pool each costs its chunk."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dal._files import Arrays, as_npz, read_npz, write_npz
from dal.campaign.kept import KeptFeatures, Records
from dal.campaign.objects import digest_of
from dal.campaign.store import CampaignStore
from dal.campaign.view import View
from dal.errors import CampaignError
from dal.selection.records import MOST_ASKED

if TYPE_CHECKING:
    from dal.pool import Pool

Rows = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class Features:
    """Read features of records; those of asked records and of the stop set were kept and need no look at the pool.

    Records that are read from the pool are kept then, such as those that were labelled without being asked. Nothing
    here is missed where it is lost: it is a copy of records of the pool.

    Parameters
    ----------
    view : View
        Of the campaign; it opens the pool.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._campaign = view.campaign
        self._opened: dict[str, KeptFeatures] = {}

    def take(self, rows: Rows) -> Floats32:
        """Read features of rows, from the pool only where they were not kept."""
        return self._taken(rows)[0]

    def _taken(self, rows: Rows) -> tuple[Floats32, bool]:
        """Read features of rows, and say whether all of them are kept now."""
        pool = self._pool(rows)
        kept, X = self._kept(pool), np.empty((len(rows), pool.n_features), dtype=np.float32)
        places = kept.find(rows)
        found = places >= 0
        if found.all():
            found = kept.read(places, X)
        elif found.any():
            there = np.flatnonzero(found)
            part = np.empty((len(there), pool.n_features), dtype=np.float32)
            found[there] = kept.read(places[there], part)
            X[there] = part
        missing = np.flatnonzero(~found)
        if not len(missing):
            return X, True
        unread = missing[~self._of_rounds(pool, rows, missing, X)]
        if len(unread):
            X[unread] = pool.take(rows[unread])
        return X, kept.add(rows[missing], X[missing])

    def _of_rounds(self, pool: "Pool", rows: Rows, missing: Rows, X: Floats32) -> npt.NDArray[np.bool_]:
        """Read what is missing out of the files of the rounds that asked it; return which of it was found.

        The kept files lack it in a campaign of an older version, after a restore, or where they cannot be written.
        """
        found = np.zeros(len(missing), dtype=bool)
        asked_in = self._campaign.rounds.rounds_of(rows[missing])
        of_pool = {each.number for each in self._campaign.rounds.all() if each.pool_fingerprint == pool.fingerprint}
        for number in sorted(set(asked_in.tolist()) & of_pool):
            data = self._campaign.objects.find(_name(number))
            arrays = None if data is None else _loaded(data, _name(number))
            if arrays is None:
                continue
            order = np.argsort(arrays["rows"])
            theirs = arrays["rows"][order]
            mine = np.flatnonzero((asked_in == number) & np.isin(rows[missing], theirs))
            X[missing[mine]] = arrays["features"][order[np.searchsorted(theirs, rows[missing[mine]])]]
            found[mine] = True
        return found

    def compared(self, rows: Rows) -> Records | Floats32:
        """Return features of records that others are compared with; of very many, unread ones."""
        return self.take(rows) if len(rows) <= MOST_ASKED else self.records(rows)

    def records(self, rows: Rows) -> Records | Floats32:
        """Return features of rows that are read when they are needed, a part at a time.

        Now, those that were not kept are read from the pool, and all others are checked. An array is returned where
        features cannot be kept.
        """
        kept = self._kept(self._pool(rows))
        order = np.argsort(kept.find(rows), kind="stable")
        parts = [rows[order[start : start + kept.at_once]] for start in range(0, len(rows), kept.at_once)]
        # A damaged record has a place still, where it could not be written again.
        sound = [self._taken(part)[1] for part in parts]
        return Records(kept, kept.find(rows)) if all(sound) else self.take(rows)

    def keep(self, number: int, rows: Rows, X: Floats32) -> None:
        """Keep the features of the records that a round asks."""
        kept = self._kept(self._view.pool)
        self._campaign.objects.write(_name(number), as_npz(rows=rows, features=X))
        kept.add(rows, X)

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

    def _pool(self, rows: Rows) -> "Pool":
        """Return the pool, with its newest records where a row is of them: it may have been appended a moment ago."""
        view = self._view
        return view.grown_pool() if np.max(rows, initial=0) >= view.pool.n_rows else view.pool

    def _kept(self, pool: "Pool") -> KeptFeatures:
        """Return what is kept of a pool: a campaign that moved has features of several."""
        name = digest_of(pool.fingerprint.encode())[:16]
        if name not in self._opened:
            self._opened[name] = KeptFeatures(self._campaign.directory / "features", name, pool.n_features)
        return self._opened[name]


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
