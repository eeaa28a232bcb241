"""The door of the scan: one pass over the pool, on this process or on a Dask cluster."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.errors import ContainsArrayError, ContainsGroupError, NodeNotFoundError

from dal.compute.client import connect
from dal.errors import ScanError, SettingsError
from dal.learners.models import Model
from dal.places import Nodes, NotOurs, Place, Url, for_zarr, place_of
from dal.pool import Pool
from dal.pool.condition import Condition
from dal.scan import plan
from dal.scan.journal import Journal
from dal.scan.plan import LIMITS, Limits
from dal.scan.run import Progress, Run, Scan
from dal.scan.waves import Carried, Waves
from dal.scan.worker.kernel import NO_CELL, Cells, Order
from dal.selection.candidates import leading
from dal.selection.codebook import Codebook
from dal.selection.familiar import Copies, Familiar
from dal.selection.once import Once
from dal.selection.order import row_hash
from dal.selection.search import Likeness
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from dal.compute.client import Connectable

Rows = npt.NDArray[np.int64]

_ANYWHERE_BYTES = 2**28
"""Every coordinator has so much memory; of more it is looked up how much there is."""

SAMPLE_ROWS = 20_000
SAMPLE_BYTES = 128 * 2**20
"""Of the sample in which cells are found; a few copies of it are made."""

WRITTEN = "codebook"
"""The attribute that says by which codebook the cells were written, once all of them are."""

MARK, CELLS = "dal", "cells"
"""The attribute, and its value, by which dal knows the cells that it wrote."""

_MOVE_IT = "move it, or name another place for the cells"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)

_log = logging.getLogger(__name__)


def scan(
    pool: Pool,
    model: Model | None,
    strategy: Strategy,
    k: int,
    exclude: Rows | Sequence[int] = (),
    *,
    random_state: int = 0,
    round: int = 0,
    codebook: Codebook | None = None,
    cells: Cells | None = None,
    client: Connectable = None,
    journal: Journal | None = None,
    progress: Callable[[Progress], None] | None = None,
    with_features: bool = False,
    skip_failed: bool = False,
    missing: bool = False,
    likeness: Likeness | Copies | None = None,
    where: Condition | None = None,
    waves: Waves | None = None,
    carried: Carried | None = None,
    per_class: Sequence[int] = (),
    familiar: Familiar | None = None,
    once: Once | None = None,
    limits: Limits = LIMITS,
) -> Scan:
    """Score every record of the pool and keep the candidates for a batch of `k`.

    The result equals a full sort of the pool by key under capacities fixed before the pass, for any chunking, span
    size, number of workers, order of completion, retry or restart.

    Parameters
    ----------
    pool : Pool
    model : Model or None
        None, in a cold start, scores by hash alone.
    strategy : Strategy
    k : int
        Size of the batch that is to be chosen.
    exclude : array of int64, default=()
        Rows that are not to be asked, in any order.
    random_state, round : int, default=0
        The two numbers that all draws of a round are hashed with.
    codebook : Codebook, optional
        Needed where the strategy spreads over cells; see :func:`sample_codebook`.
    cells : Cells, optional
        Where the cell of each row is kept from one pass to the next; without it they are computed each time.
    client : distributed.Client, Cluster or str, optional
        Where the pass runs, see :func:`dal.compute.client.connect`. Without one: in this process, on several threads
        where dal's own kernels score, see :class:`Limits`.
    journal : Journal, optional
        Keeps finished spans, so that the same pass, begun again, goes on.
    progress : callable, optional
        Called with a :class:`Progress` after each span.
    with_features : bool, default=False
        Bring the features of the candidates along even if the selector does not look at them.
    skip_failed : bool, default=False
        On a cluster, leave out rows that fail every time, and say so in the summary, instead of ending in an error: a
        span that fails is scored again in its smallest units, of whole tiles and chunks, and only these are left out.
    missing : bool, default=False
        Without a model, whether records with missing (NaN) features may be asked; a model knows that itself.
    likeness : Likeness or Copies, optional
        The score of a search, or of near-duplicates, in place of the strategy's; without a model.
    where : Condition, optional
        What records must meet to be kept; all are counted in the summary.
    waves : Waves, optional
        Score the pool wave after wave of whole blocks, until the last row that is kept is good enough, instead of all
        of it. The result is exact over these blocks, and depends on nothing else. Cells are read where they are stored,
        and not written.
    carried : Carried, optional
        Rows to score again beside the waves, such as the candidates of the pass before. Excluded rows are left out.
    per_class : sequence of int, default=()
        For each class code, how many of the best of the records that the model predicts to be of it are kept as well:
        see :func:`dal.selection.balance.kept_of_classes`.
    familiar : Familiar, optional
        Records that are not kept, because they are near-duplicates of records asked before; see
        :func:`dal.selection.batch.familiar`. Where all are, the pass is run again and keeps them: people disagree, and
        an empty batch would end a campaign. A search finds nothing then.
    once : Once, optional
        Of equal records one is kept, the best by key, and none that equals a record asked before, unless all do; see
        :func:`dal.selection.batch.once`. Where records are drawn, equal ones are drawn as one, with the odds of all.
    limits : Limits, optional
        Sizes and times by which the pass is cut and watched.

    Returns
    -------
    Scan
        Candidates ascending by row, with features as embeddings where the selector looks at them; none where every row
        was asked before or is invalid.

    Raises
    ------
    SettingsError
        If the strategy needs a model or a codebook that is not there, or more candidates than memory here has room for;
        or where waves are wanted of scores that are hashes.
    SpanError
        If a span fails every time; the message names it.
    ClusterError
        If the cluster is lost or makes no progress.
    """
    if journal is not None:
        strategy.text  # noqa: B018 - refused where no text names its parts: a journal is found again by it
    order = _order(pool, model, strategy, k, random_state, round, codebook, limits)
    takes_missing = missing if model is None else model.takes_missing
    capacity = order.capacity._replace(per_class=tuple(per_class))
    asks = takes_missing and pool.asks_missing
    order = replace(order, capacity=capacity, missing=asks, where=where, familiar=familiar, once=once)
    if likeness is not None:
        order = replace(order, likeness=likeness, capacity=likeness.capacity(order.capacity))
    if with_features:
        order = replace(order, carry=True)
    _refuse_too_many(pool, order, strategy, model, limits)
    excluded = np.unique(np.asarray(exclude, dtype=np.int64))
    # A copy: the array that a former pass has opened may have been replaced since.
    used = replace(cells) if cells is not None and order.capacity.cells else None
    if waves is not None:
        if model is None or order.score == "random":
            raise SettingsError(f"`waves` must be None where records are ranked by a hash, got {waves}")
        used = None if used is not None and used.write else used
    if carried is not None:
        carried = carried.without(excluded)
    unit = plan.unit_rows(order.tile, pool.write_rows)
    if used is not None and used.write and _create_cells(used.place, pool.n_rows, unit) and journal:
        journal.clear()  # its spans wrote their cells into an array that is gone
    with connect(client) as connected:

        def kept(order: Order, journal: Journal | None) -> Scan:
            if connected is None:
                return Run(pool, model, order, excluded, used, journal, progress, limits, waves, carried).in_process()
            # Only here: a pass in this process imports nothing of Dask.
            from dal.scan.cluster import scan_on_cluster

            return scan_on_cluster(
                connected,
                pool,
                model,
                order,
                excluded,
                used,
                journal,
                progress,
                limits,
                waves,
                carried,
                skip_failed=skip_failed,
            )

        # A journal keeps one pass. Once the second has begun, the first is known to have found nothing.
        leaves_out = familiar is not None or (once is not None and len(once.known) > 0)
        asks_again, again = leaves_out and likeness is None and where is None, None
        if journal is not None and leaves_out:
            digests = [each and each.digest() for each in (familiar, once)]
            named = (digests, random_state, round, model and model.digest, pool.fingerprint)
            again = journal.of_second_pass(hashlib.sha256(repr(named).encode()).hexdigest())
        found = None if asks_again and again is not None and again.is_begun else kept(order, journal)
        if found is None or (asks_again and not len(found.candidates)):
            found = kept(replace(order, familiar=None, once=once and once.again()), again)
    return found if model is None else with_proba(found, model, _n_proba(strategy, model))


def with_proba(found: Scan, model: Model, most: int) -> Scan:
    """Attach the `most` largest class probabilities to candidates that carry none, for selectors that look at them.

    The model is asked once more, for the candidates alone: they are few, and most scores need no probabilities.
    """
    candidates = found.candidates
    if not most or candidates.proba is not None:
        return found
    predicted = model.predict_in_blocks(candidates.embeddings)
    proba, classes = zip(*(leading(block, most) for block in predicted), strict=True)
    told = None if classes[0] is None else np.concatenate(classes)
    return replace(found, candidates=replace(candidates, proba=np.concatenate(proba), classes=told))


def _n_proba(strategy: Strategy, model: Model | None) -> int:
    """Return how many class probabilities of a candidate the strategy looks at."""
    if model is None or not strategy.traits.proba:
        return 0
    return min(len(model.classes), strategy.traits.classes or len(model.classes))


def _order(
    pool: Pool,
    model: Model | None,
    strategy: Strategy,
    k: int,
    seed: int,
    round: int,
    codebook: Codebook | None,
    limits: Limits,
) -> Order:
    if k < 1:
        raise SettingsError(f"`k` must be at least 1, got {k}.")
    if model is None and strategy.score != "random":
        raise SettingsError(
            f"`model` must be fitted for the score {strategy.scorer!r}, got None; use strategy.cold() without a model."
        )
    if model is not None and model.n_features != pool.n_features:
        raise SettingsError(
            f"`model` must be fitted on the {pool.n_features} features of {pool.path}, got {model.n_features}."
        )
    capacity = strategy.capacity(k, pool.n_rows, len(codebook.centers) if codebook else None)
    if capacity.cells and codebook is None:
        raise SettingsError(
            "`codebook` must be given, as this strategy spreads over cells, got None; pass"
            " sample_codebook(pool, n_cells, random_state)."
        )
    tile = plan.tile_rows(pool.n_features, model.tile_rows if model else None, limits)
    order = Order(strategy.scorer, capacity, tile, seed, round, codebook if capacity.cells else None, carry=False)
    return with_wanted(order, model, strategy)


def with_wanted(order: Order, model: Model | None, strategy: Strategy) -> Order:
    """Return an order with all that the strategy's selector looks at beside scores."""
    carry = strategy.traits.features
    # A score that is a hash asks no model, and a pass of the model would be its whole cost.
    inner = model.embedding_width if model is not None and carry and strategy.score != "random" else 0
    return replace(order, carry=carry, inner=inner, proba=_n_proba(strategy, model) if inner else 0)


def memory_here(pool: Pool, order: Order, strategy: Strategy, model: Model | None) -> int:
    """Predict the memory that the candidates of a pass take in this process, in bytes.

    Parameters
    ----------
    pool : Pool
    order : Order
    strategy : Strategy
    model : Model or None
    """
    n_classes = len(model.classes) if model else 0
    return plan.coordinator_bytes(
        order.capacity,
        pool.n_rows,
        replace(order, carry=False).slack,
        carried=order.inner + plan.proba_numbers(order.proba, n_classes),
        n_features=pool.n_features if order.carry else 0,
        added=plan.proba_numbers(_n_proba(strategy, model), n_classes),
    )


def _refuse_too_many(pool: Pool, order: Order, strategy: Strategy, model: Model | None, limits: Limits) -> None:
    """Refuse a pass whose candidates would not fit into the memory of this process, before it begins."""
    need, has = memory_here(pool, order, strategy, model), limits.coordinator_bytes
    if has is None:
        if need <= _ANYWHERE_BYTES:
            return
        from distributed.system import MEMORY_LIMIT  # only here: a pass in this process imports nothing of Dask

        has = int(MEMORY_LIMIT)
    if need > has:
        rows = min(order.capacity.rows, pool.n_rows)
        narrower = f", or a network with fewer than {order.inner:,} embeddings" if order.inner else ""
        raise SettingsError(
            f"`k` must leave memory for the candidates on the coordinator, which has {has / 2**20:,.0f} MiB, got"
            f" {rows:,} candidates, which take about {need / 2**20:,.0f} MiB; ask for a smaller batch, a shortlist"
            f" below {strategy.shortlist}{narrower}, or run the coordinator where there is more memory"
        )


def sample_codebook(pool: Pool, n_cells: int, random_state: int) -> Codebook:
    """Find the space in which records are compared, and its cells, from a sample of the pool.

    At most 64 blocks of 4,096 rows are read, evenly spread, and 20,000 of their rows or 128 MiB used: the same ones for
    any chunking.

    Parameters
    ----------
    pool : Pool
    n_cells : int
    random_state : int

    Returns
    -------
    Codebook
    """
    size = min(SAMPLE_ROWS, max(n_cells, SAMPLE_BYTES // (4 * pool.n_features)))
    return Codebook.fit(pool.take(sample_rows(pool.n_rows, random_state, size)), n_cells, random_state)


def sample_rows(n_rows: int, seed: int, size: int = SAMPLE_ROWS, blocks: int = 64, block_rows: int = 4096) -> Rows:
    """Draw rows by hash out of evenly spread blocks, so that few chunks need reading.

    Examples
    --------
    >>> sample_rows(5, seed=0).tolist()
    [0, 1, 2, 3, 4]
    """
    n_blocks = -(-n_rows // block_rows)
    chosen = np.arange(n_blocks) if n_blocks <= blocks else np.arange(blocks) * n_blocks // blocks
    rows = np.concatenate([np.arange(b * block_rows, min((b + 1) * block_rows, n_rows)) for b in chosen.tolist()])
    return np.sort(rows[np.argsort(row_hash(rows, seed, 2), kind="stable")[:size]])


def stored_cells(path: str | Path | Url, n_rows: int, codebook: Codebook) -> Cells:
    """Return the cells at `path`, for a pass to read or to write.

    They are read where a pass over `n_rows` rows with this codebook has written all of them, see :func:`cells_written`.

    Parameters
    ----------
    path : path or URL
    n_rows : int
        Of the pool.
    codebook : Codebook
    """
    place = place_of(path)
    try:
        array = _opened_cells(place)
    except _UNREADABLE:
        array = None
    written = array is not None and array.shape == (n_rows,) and array.attrs.get(WRITTEN) == codebook.digest()
    return Cells(place, write=not written)


def cells_written(cells: Cells, codebook: Codebook) -> None:
    """Mark stored cells as whole, once the pass that wrote them needs its journal no more."""
    zarr.open_array(for_zarr(cells.place), mode="r+").update_attributes({WRITTEN: codebook.digest()})


def _opened_cells(place: Place) -> zarr.Array[Any] | None:
    try:
        return zarr.open_array(for_zarr(place), mode="r")
    except (FileNotFoundError, NodeNotFoundError):
        return None


def _create_cells(place: Place, n_rows: int, unit: int) -> bool:
    """Make the array of cells unless it is there; one chunk a unit, so that no two spans ever write the same chunk.

    Raises
    ------
    ScanError
        Something else lies there; it is left alone.
    """
    chunks = (min(unit, n_rows),)
    try:
        there = _opened_cells(place)
    except _UNREADABLE as error:
        _put_aside(place, error)
        there = None
    if there is None and isinstance(place, Path) and not _is_free(place):
        raise ScanError(f"{place} holds something that dal did not write; {_MOVE_IT}")
    if there is not None:
        if there.attrs.get(MARK) != CELLS and WRITTEN not in there.attrs:
            raise ScanError(f"{place} is an array that dal did not write; {_MOVE_IT}")
        if there.shape == (n_rows,) and there.chunks == chunks and there.dtype == np.dtype("uint16"):
            return False
        try:
            Nodes.found(place, ["c", "zarr.json"]).delete()
        except NotOurs as error:
            raise ScanError(f"{error}; nothing was deleted") from error
    try:
        zarr.create_array(
            for_zarr(place),
            shape=(n_rows,),
            chunks=chunks,
            dtype="uint16",
            fill_value=NO_CELL,
            compressors=None,
            attributes={MARK: CELLS},
        )
    except (ContainsArrayError, ContainsGroupError) as error:
        raise ScanError(f"{place} holds something that dal did not write; {_MOVE_IT}") from error
    return True


def _is_free(place: Path) -> bool:
    """Return whether a place holds nothing, or only what a killed creation has left."""
    if not place.is_dir():
        return not place.exists() and not place.is_symlink()
    return all(re.fullmatch(r"zarr\.[0-9a-f]{32}\.partial", entry.name) for entry in place.iterdir())


def _put_aside(place: Place, error: Exception) -> None:
    """Rename cells whose metadata is torn, as by a power cut: it no longer shows who wrote them."""
    if not isinstance(place, Path) or not isinstance(error, JSONDecodeError | UnicodeDecodeError):
        raise ScanError(f"the cells at {place} cannot be read: {error}; restore them, or remove them") from error
    names = (place.with_name(f"{place.name}.unreadable-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists() and not name.is_symlink())
    place.rename(aside)
    _log.warning(
        "The stored cells at %s cannot be read (%s): they are computed again; the old ones are %s.", place, error, aside
    )
