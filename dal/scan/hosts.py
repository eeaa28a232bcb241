"""Prove, before a pass starts, that the hosts can read the pool and have the memory for it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

from dal.compute.asking import ask_hosts, workers_of
from dal.compute.ready import awake, ready
from dal.errors import ClusterError, ClusterLost
from dal.learners.models import Model
from dal.plugins import Carried
from dal.pool import Pool
from dal.scan import plan
from dal.scan.plan import Limits
from dal.scan.run import Run
from dal.scan.worker.kernel import Cells, Order
from dal.scan.worker.probe import Host, examine, score_trouble
from dal.scores import takes_committee
from dal.selection.candidates import Capacity

_log = logging.getLogger(__name__)

_COMFORTABLE = 0.7
"""Of a worker's memory; beyond it Dask begins to write data to the disk, then to pause the worker."""


@dataclass(frozen=True)
class _Hosts:
    cells_usable: bool
    notes: tuple[str, ...]


_PROVEN: "WeakKeyDictionary[Client, dict[tuple[str, str, Cells | None], Host]]" = WeakKeyDictionary()
"""Findings by address, pool and cells: the rounds of a campaign ask each worker once."""


def probed(
    client: Client, pool: Pool, cells: Cells | None, seconds: float, say: Callable[[str], None] = lambda _: None
) -> _Hosts:
    """Prove on every host that the pool can be read; note where cells cannot be used and where hosts differ."""
    compared = ready(client, seconds, say)
    answers = _ask_each_host(client, pool, cells, seconds, say)
    for address, host in answers.items():
        if host.pool_trouble is not None:
            raise ClusterError(
                f"The worker at {address} cannot read the pool {pool.path} ({host.pool_trouble}): its store must be"
                " reachable under this name from every host."
            )
    notes = []
    troubled = {address: host.cells_trouble for address, host in answers.items() if host.cells_trouble is not None}
    if troubled and cells is not None:
        address, trouble = next(iter(troubled.items()))
        notes.append(
            f"The worker at {address} cannot use {cells.place} ({trouble}): cells are computed again in this pass. Put"
            " the campaign where all hosts can write to save that time."
        )
    kinds = sorted({host.kernels for host in answers.values()})
    if len(kinds) > 1:
        notes.append(
            f"The workers' linear algebra differs ({'; '.join(', '.join(kind) for kind in kinds)}): last bits of scores"
            " may depend on which worker computes them, and a repeated scan may choose otherwise among near-equals."
        )
    for note in notes:
        _log.warning("%s", note)
    return _Hosts(not troubled, (*compared, *notes))


def _ask_each_host(
    client: Client, pool: Pool, cells: Cells | None, seconds: float, say: Callable[[str], None]
) -> Mapping[str, Host]:
    workers = workers_of(client)
    proven = _PROVEN.setdefault(client, {})
    known = {address: proven[address, pool.path, cells] for address in workers if (address, pool.path, cells) in proven}
    answers = asked(
        client, examine, pool, cells, seconds=seconds, say=say, known=[workers[each].host for each in known]
    )
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"The worker at {address} cannot run dal ({type(answer).__name__}: {answer}): it needs the same"
                " version of dal and its dependencies as this process."
            ) from answer
    # What was in the way may be mended before the next pass.
    sound = {address: host for address, host in answers.items() if host.pool_trouble is host.cells_trouble is None}
    proven.update({(address, pool.path, cells): host for address, host in sound.items()})
    return known | answers


def asked(
    client: Client,
    function: Callable[..., Any],
    *arguments: object,
    seconds: float,
    say: Callable[[str], None] = lambda _: None,
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """Ask a worker of each host; see :func:`dal.compute.asking.ask_hosts`.

    A host of which no worker answers is left out: the scan itself survives such deaths.

    Raises
    ------
    ClusterError
        If none answers.
    """
    while True:
        with awake(client):
            answers = ask_hosts(client, function, *arguments, seconds=seconds, known=known, say=say)
        if answers or known:
            return answers
        if client.nthreads():
            raise ClusterLost(
                f"No worker of {client} answered within {seconds:.0f} s: look at their logs, and run again."
            )
        ready(client, seconds, say)  # all of them left meanwhile


def prove_score(client: Client, score: str | Carried, seconds: float) -> None:
    """Refuse hosts that cannot import a score of a user's own, before the pass starts."""
    if isinstance(score, str):
        return
    for address, trouble in asked(client, score_trouble, score, seconds=seconds).items():
        if trouble is not None:
            raise ClusterError(f"The worker at {address} cannot use the strategy's score: {trouble}")


def keeps_features(order: Order, pool: Pool, limits: Limits) -> bool:
    """Return whether workers keep the features of candidates until the end of the pass."""
    return order.carry and plan.candidate_bytes(order.capacity, pool.n_features) <= limits.kept_bytes


def predicted(run: Run) -> plan.WorkerBytes:
    """Predict the memory of a worker in this pass, without what it may fetch ahead."""
    n_classes = len(run.model.classes) if run.model else 0
    return worker_bytes(run.pool, run.order, n_classes, run.model, run.limits)


def worker_bytes(
    pool: Pool, order: Order, n_classes: int, model: Model | None, limits: Limits = plan.LIMITS
) -> plan.WorkerBytes:
    """Predict the memory of a worker in a pass, without what it may fetch ahead.

    Parameters
    ----------
    pool : Pool
    order : Order
        Its codebook is not looked at.
    n_classes : int
        Of the model; 0 without one.
    model : Model or None
    limits : Limits
    """
    order = replace(order, carry=keeps_features(order, pool, limits))
    width = pool.n_features if order.carry else 0
    beside = order.inner + plan.proba_numbers(order.proba, n_classes)
    return plan.worker_bytes(
        tile=order.tile,
        n_features=pool.n_features,
        itemsize=pool.dtype.itemsize,
        chunk_rows=pool.chunk_rows,
        # A committee's sums stand beside the probabilities of the member at work.
        n_classes=n_classes * (2 if takes_committee(order.score) else 1),
        n_cells=order.capacity.cells,
        kept_bytes=plan.candidate_bytes(order.capacity, width + beside),
        slack=order.slack,
        candidate=plan.candidate_bytes(Capacity(1, 0, 0), width + beside),
        model_bytes=len(model.dumps()) if model else 0,
        # A tile's embeddings are there twice as they are joined from those of its batches.
        scratch_bytes=model.scratch_bytes + 2 * 4 * order.tile * order.inner if model else 0,
        limits=limits,
    )


def refuse_too_small(client: Client, run: Run, only: Collection[str] = ()) -> int:
    """Refuse workers with less memory than the pass is predicted to take, before it starts.

    Parameters
    ----------
    client : Client
    run : Run
    only : collection of str
        Addresses of the workers that will score; empty where all do.

    Returns
    -------
    int
        Bytes that each thread may fetch ahead: as much as is of use, or as the smallest worker has left.
    """
    need, ahead = predicted(run), run.pool.ahead_bytes
    for address, (_, threads, limit, _) in workers_of(client).items():
        if only and address not in only:
            continue
        if limit and need.for_threads(threads) > limit:
            raise ClusterError(
                f"The worker at {address} has {limit / 2**20:,.0f} MiB for {threads} threads; this scan takes about"
                f" {need.for_threads(threads) / 2**20:,.0f} MiB there ({need}). Start workers with more memory or fewer"
                " threads, or ask for a smaller batch."
            )
        if limit:
            ahead = min(ahead, int(_COMFORTABLE * limit - need.for_threads(threads)) // threads)
    return max(ahead, 0)
