"""Score spans in a worker process: the job of a pass, the model that travels with it, the tasks that are sent."""

import pickle
import re
import threading
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import cloudpickle
import numpy as np
import numpy.typing as npt
from distributed import get_worker
from numcodecs import Blosc

from dal.compute.plugins import brought
from dal.learners.models import Model, needs_members
from dal.plugins import Carried
from dal.pool import Pool
from dal.pool.ahead import AHEAD_BYTES
from dal.scan.plan import Interval
from dal.scan.worker.kept import Kept
from dal.scan.worker.kernel import Cells, Order, SpanResult, Task, score_span
from dal.scan.worker.record import encode

Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def key_of(name: str, number: int, interval: Interval) -> str:
    """Return a key for a task of a pass, from which a worker sees the rows that it is going to read.

    Examples
    --------
    >>> key_of("dal-scan-a1f0", 7, Interval(0, 64))
    'dal-score-a1f0-7-0-64'
    """
    return f"dal-score-{name.rpartition('-')[2]}-{number}-{interval.start}-{interval.stop}"


_KEY = re.compile(r"dal-score-(\w+)-\d+-(\d+)-(\d+)")


@dataclass(frozen=True)
class Job:
    """The inputs of a pass; a plugin brings them once to every worker, and to those that join later.

    Attributes
    ----------
    ahead : int
        Bytes that each thread may fetch ahead.
    """

    pool: Pool
    packed_model: tuple[bytes, ...]
    model_digest: str
    order: Order
    cells: Cells | None
    ahead: int = AHEAD_BYTES

    def model(self) -> Model | None:
        """Load the model, unless this process has just used it."""
        if not self.packed_model:
            return None
        key = (self.model_digest, needs_members(self.order.score))
        with _loading:
            if key not in _LAST_MODEL:
                _LAST_MODEL.clear()
                _LAST_MODEL[key] = pickle.loads(b"".join(map(_PACKING.decode, self.packed_model)))
            return _LAST_MODEL[key]


_PACKING = Blosc("lz4", shuffle=Blosc.NOSHUFFLE)


def packed(model: Model | None, score: str | Carried) -> tuple[bytes, ...]:
    """Pack a model for the workers; return nothing without a model.

    By pickle, because skops takes twenty times as long for a forest, and compressed: Dask takes half a second to bring
    40 MB to two workers, and a sixth of that with this.
    """
    if model is None:
        return ()
    # Without its archive, which is as large as itself.
    pickled = cloudpickle.dumps(model.for_score(score))
    most = 2**30  # Blosc takes less than 2 GiB at a time
    return tuple(_PACKING.encode(pickled[start : start + most]) for start in range(0, len(pickled), most))


_loading = threading.Lock()


_LAST_MODEL: dict[tuple[str, bool], Model] = {}
"""By digest, and whether the members of a committee are there."""


class Loaded:
    """A job in a worker process."""

    def __init__(self, name: str, job: Job) -> None:
        self._name = name
        self.job = job
        self.kept = Kept(job.order)
        self._ahead = job.pool.read_ahead(budget=job.ahead)
        self._of_thread = threading.local()

    def moved(self, key: object, state: str) -> None:
        """Fetch ahead for a task that waits for a thread, and cancel that where the task is taken away.

        Parameters
        ----------
        key : object
            Of any task of this worker.
        state : str
            The task's new state.
        """
        found = _KEY.fullmatch(key) if self._ahead is not None and isinstance(key, str) else None
        if found is None or self._ahead is None or not self._name.endswith(found[1]):
            return
        start, stop = int(found[2]), int(found[3])
        if state == "ready":
            self._ahead.expect_rows(start, stop)
        elif state in ("released", "forgotten"):
            self._ahead.forget((start, stop))

    def score(self, task: Task) -> SpanResult:
        """Score a span, or a tile that is sounded for its thresholds."""
        job, order, cells = self.job, self.job.order, self.job.cells
        thresholds = task.thresholds
        if task.sounded is None:
            thresholds = self.kept.raised(thresholds)
        else:
            order = replace(order, capacity=task.sounded, carry=False, inner=0, proba=0)
            # The span that this tile is part of will write the cells, perhaps at the same time.
            cells = None if cells is None or cells.write else cells
        # Taken away meanwhile: a span that fails leaves its reader in the middle of a chunk.
        reader = self._of_thread.__dict__.pop("reader", None) or job.pool.reader(self._ahead)
        found = score_span(job.pool, job.model(), order, task.interval, task.excluded, thresholds, cells, reader)
        self._of_thread.reader = reader
        return found if task.sounded is not None else self.kept.take_from(found)


BEGUN = "dal-begun"
"""The topic to which workers log the pass and the rows of each span that they begin; schedulers keep topics."""


class Sent(NamedTuple):
    """The record of a span, see :mod:`dal.scan.worker.record`, and the address of its worker."""

    worker: str
    record: bytes


def _loaded(name: str) -> Loaded:
    return cast("Loaded", brought(name))


def score_task(name: str, task: Task) -> Sent:
    """Score a span of the pass of this name."""
    worker = get_worker()
    if task.sounded is None:
        # A worker that dies says nothing of the work that is lost with it, so it says first that it begins.
        worker.log_event(BEGUN, (name, *task.interval))
    return Sent(worker.address, encode(_loaded(name).score(task)))


def kept_features(name: str, rows: Rows) -> tuple[Rows, Floats32]:
    """Return the features that this process keeps of these rows."""
    return _loaded(name).kept.features(rows)


def taken_features(name: str, rows: Rows) -> Floats32:
    """Read the features of rows from the pool."""
    return _loaded(name).job.pool.take(rows)
