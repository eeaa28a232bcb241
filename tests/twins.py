"""Two campaigns that must ask the same: one undisturbed in this process, one on a cluster, where scans are slow."""

import time
from pathlib import Path

import numpy as np
import zarr

import dal
from tests import broken_learners
from tests.broken_learners import SLOWING, Slowed

TILE = 16_384
ROUNDS = 3


class Twins:
    """Make the pool of both, the campaign `campaign` in a folder, and the batches of its twin.

    Attributes
    ----------
    environment
        Of the workers: they take two seconds a tile, until :meth:`hurry`.
    """

    def __init__(self, folder: Path, tiles: int) -> None:
        self.folder = folder
        self._slowing = folder / "slow"
        self._slowing.touch()
        self.environment = {SLOWING: str(self._slowing)}
        rng = np.random.default_rng(3)
        self.y = rng.integers(0, 2, TILE * tiles)
        X = rng.normal(np.eye(3)[self.y] * 1.5, 1.0).astype(np.float32)
        zarr.create_array(folder / "pool.zarr", shape=X.shape, chunks=(TILE, 3), dtype=X.dtype)[:] = X
        here, self.campaign = (self._made(name) for name in ("here", "campaign"))
        self.batches = []
        for number in range(1, ROUNDS + 1):
            assert isinstance(here.next_batch(), dal.Batch)
            self.batches.append(self._answered(here, number))

    def _made(self, name: str) -> dal.Campaign:
        return dal.Campaign.create(
            self.folder / name,
            self.folder / "pool.zarr",
            ["a", "b"],
            batch_size=20,
            random_state=5,
            estimator=Slowed(2.0),
            trusted=broken_learners.NAMES,
            stop=[f"max_rounds={ROUNDS}"],
        )

    def _answered(self, campaign: dal.Campaign, number: int) -> list[int]:
        asked = campaign.rounds.batch(number)
        rows = np.array([each.row for each in asked])
        campaign.label([each.record_id for each in asked], self.y[rows])
        return [int(row) for row in rows]

    def hurry(self) -> None:
        """End the slow part of a scan."""
        self._slowing.unlink()

    def slow_down(self) -> None:
        """Begin another slow part."""
        self._slowing.touch()

    def answer(self, number: int) -> list[int]:
        """Answer a batch of the campaign; give its rows."""
        return self._answered(self.campaign, number)

    def wait_for_span(self) -> None:
        """Wait until the journal of the campaign has a span, written by another process."""
        while not any(path.stat().st_size for path in self.folder.glob("campaign/journal/*/spans")):
            time.sleep(0.1)  # polls another process's files; the test's own limit ends it

    def wait_for(self, number: int, status: str) -> None:
        """Wait until a round of the campaign has come so far, in another process."""
        while (last := self.campaign.rounds.last) is None or (last.number, last.status) != (number, status):
            time.sleep(0.2)  # polls another process's database; the test's own limit ends it
