"""The choice of a stored type by evidence: scores of a sample of a pool, by its features as they are and narrowed.

When a pool is built there are no labels and no model. So the scores are those of random linear models of two classes,
which pass through the middle of the records: a record's score is its nearness to the boundary, in the order of which
margin, entropy and least confidence all rank two classes. Half of the models weigh features by their standard
deviations, as a scaler does; half by the range of their middle half, on which outliers have no say: an int8 step grows
with the largest value, and leaves nothing of a heavy-tailed feature's many small ones.

Equal records count once. Where most records are a default, such as all zeros, the boundary would lie among them, and
any type keeps them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.pool.encodings import Floats32, decoder, encoder, scale_of_largest
from dal.selection.order import row_hash

SAMPLED_ROWS = 20_000
SAMPLED_BYTES = 32 * 2**20
LEAST_ROWS = 1000
"""Below them, the best 1 % are fewer than ten records; such a pool is small anyway."""
LEAST_SAMPLED = 1250
"""Of wide records, beyond `SAMPLED_BYTES`: a fifth may be equal to others."""
WIDEST = 16_384
"""Most features of a record that is judged: 1,250 such records take 80 MiB."""
FIRST_ROWS = 2000
"""Of a source that can be read or encoded only once: they wait in memory until the type is known."""
BEST = 0.01
KEPT = 0.95
"""Least share of the best scores that a type must keep to be chosen, by either way to weigh features."""
_TYPES = ("int8", "float16")
_MODELS = 32
_TIE = 1e-6
"""Scores apart by this part of their spread are equal: many records may be, such as duplicates."""
_PART = 1024
_COLUMNS = 32

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Some records of a source, and the largest values of all that were read.

    Attributes
    ----------
    features : ndarray of float32, shape (n, d)
    largest : ndarray of float32, shape (d,)
        Largest finite magnitude of each feature among all records that were read.
    finite : bool
        Whether all values that were read are finite.
    read : int
        Number of records that were read.
    whole : bool
        Whether these are all records of the source, not its first ones.
    """

    features: Floats32
    largest: Floats32
    finite: bool
    read: int
    whole: bool


def sample_of(blocks: Iterable[Floats32], *, whole: bool, most_rows: int = SAMPLED_ROWS) -> Sample:
    """Return the records with the least hashes of their rows: the same ones for any blocks.

    Parameters
    ----------
    blocks : iterable of arrays of float32, shape (n, ...)
        Records, from the first one on.
    whole : bool
        Whether these are all records.
    most_rows : int, default=20,000
        Size of the sample; see `rows_to_judge` for wide records.
    """
    held: list[Floats32] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    largest: Floats32 = np.zeros(1, np.float32)
    bound = np.uint64(2**64 - 1)
    finite, row, n_held, most = True, 0, 0, 0

    def cut() -> None:
        """Keep the records of the least hashes, in their order."""
        nonlocal bound, held, hashes, n_held
        all_hashes = np.concatenate(hashes)
        least = np.sort(np.argpartition(all_hashes, most)[:most])
        held, hashes, n_held = [np.concatenate(held)[least]], [all_hashes[least]], most
        bound = np.max(hashes[0]) if most else np.uint64(0)

    for block in filter(len, blocks):
        features = block.reshape(len(block), -1)
        most = rows_to_judge(features.shape[1], most_rows)
        magnitudes = np.abs(features)
        if not (usual := np.isfinite(magnitudes)).all():
            finite, magnitudes = False, np.where(usual, magnitudes, np.float32(0))
        largest = np.maximum(largest, magnitudes.max(axis=0))
        own = row_hash(np.arange(row, row + len(features)), 0, 0)
        row += len(features)
        below = own <= bound
        if not held or below.any():
            held.append(features[below])
            hashes.append(own[below])
            n_held += len(held[-1])
        if n_held > 2 * most:  # not at each block: a cut copies all that is held
            cut()
    if n_held > most:
        cut()
    kept = np.concatenate(held) if held else np.empty((0, 0), np.float32)
    return Sample(kept, largest, finite, row, whole)


def rows_to_judge(width: int, most_rows: int = SAMPLED_ROWS) -> int:
    """Return the size of a sample of records of `width` features: 32 MiB or 1,250 records; 0 beyond `WIDEST`."""
    return min(most_rows, max(LEAST_SAMPLED, SAMPLED_BYTES // (4 * width))) if width <= WIDEST else 0


@dataclass(frozen=True)
class Evidence:
    """The type that was chosen, and the figures by which it was.

    Attributes
    ----------
    chosen : str
        The narrowest type of int8 and float16 that keeps 0.95 of the best scores, else float32.
    kept : mapping of str to float
        By type, the share of the best 1 % of scores that it keeps.
    error : mapping of str to float
        By type, the root mean square of a score's change, as a part of the scores' standard deviation.
    refused : mapping of str to str
        Types that could not be looked at, and why.
    sampled, read : int
        Number of distinct records in the sample, and of the records that it was drawn from.
    whole : bool
        Whether it was drawn from all records, not from the first ones.
    """

    chosen: str
    kept: Mapping[str, float]
    error: Mapping[str, float]
    refused: Mapping[str, str]
    sampled: int
    read: int
    whole: bool


def dtype_by_evidence(sample: Sample) -> Evidence:
    """Choose the narrowest type that leaves the scores of a sample as they are.

    Parameters
    ----------
    sample : Sample

    Returns
    -------
    Evidence
    """
    X, largest = _distinct(sample.features), sample.largest
    kept: dict[str, float] = {}
    error: dict[str, float] = {}
    refused: dict[str, str] = {}
    if X.shape[1] > WIDEST:
        refused = dict.fromkeys(_TYPES, f"records of more than {WIDEST:,} features are too wide to judge")
    elif len(sample.features) < LEAST_ROWS:
        refused = dict.fromkeys(_TYPES, f"fewer than {LEAST_ROWS:,} records to judge by")
    elif not sample.whole:
        refused["int8"] = "its scale takes a pass over all records"
    elif not sample.finite:
        refused["int8"] = "int8 cannot hold NaN or infinity, and the source does"
    beyond = int(np.isinf(_narrowed(largest[None], "float16", None)).sum())
    if beyond and "float16" not in refused:
        refused["float16"] = f"{beyond} of {len(largest)} features exceed 65,504"
    if types := [name for name in _TYPES if name not in refused]:
        weights = _weights(X)
        full = _scores(X, *weights)
        for name in types:
            values = _narrowed(X, name, scale_of_largest(largest))
            if not full.std(axis=0).any():
                refused[name] = "the records do not differ in numbers"
            elif len(X) < LEAST_ROWS and not np.allclose(values, X, rtol=_TIE, atol=0, equal_nan=True):
                refused[name] = f"fewer than {LEAST_ROWS:,} distinct records to judge by"
            else:
                narrow = _scores(values, *weights)
                kept[name], error[name] = _kept(full, narrow), _error(full, narrow)
    chosen = next((name for name in kept if kept[name] >= KEPT), "float32")
    return Evidence(chosen, kept, error, refused, len(X), sample.read, sample.whole)


def evidence_text(evidence: Mapping[str, Any]) -> str:
    r"""Return a line that says how a type was chosen.

    Parameters
    ----------
    evidence : mapping
        The attributes of an `Evidence`, as a pool keeps them.

    Examples
    --------
    >>> found = Evidence("float16", {"int8": 0.614, "float16": 0.9987}, {}, {}, 20_000, 60_000, True)
    >>> print(evidence_text(vars(found)).replace("; ", ";\n"))
    float16 by evidence: of the best 1 % of scores int8 keeps 0.614, float16 keeps 0.998;
    0.95 is asked (judged by 20,000 distinct of 60,000 records)
    """
    # Rounded down: 0.9496 as 0.950 would look like enough. A billionth more, since 0.57 * 1000 is below 570.
    shares = {name: math.floor(share * 1000 + 1e-9) / 1000 for name, share in evidence["kept"].items()}
    found = [f"{name} keeps {share:.3f}" for name, share in shares.items()]
    reasons = [f"no {name}: {reason}" for name, reason in evidence["refused"].items()]
    of = f"{evidence['sampled']:,} distinct of {'' if evidence['whole'] else 'the first '}{evidence['read']:,} records"
    figures = [f"of the best 1 % of scores {', '.join(found)}; {KEPT} is asked"] if found else []
    return f"{evidence['chosen']} by evidence: {'; '.join([*figures, *reasons])} (judged by {of})"


def _distinct(X: Floats32) -> Floats32:
    """Return the first of each set of records of equal bits, in their order."""
    if not X.size:
        return X
    bits = np.ascontiguousarray(X + np.float32(0))  # -0 becomes 0
    first = np.unique(bits.view(f"V{bits[0].nbytes}").ravel(), return_index=True)[1]
    return X[np.sort(first)]


def _narrowed(X: Floats32, name: str, scale: Floats32 | None) -> Floats32:
    """Return features as they are read after they were stored."""
    scale = scale if name == "int8" else None
    found = np.empty(X.shape, np.float32)
    decoder(name, scale)(encoder(name, scale)(X, 0), found)
    return found


def _weights(X: Floats32) -> tuple[_Floats, _Floats]:
    """Return the centre of each feature, and the weights (d, 2 x models): by deviations, then by quartiles."""
    centre, deviation, middle = np.empty((3, X.shape[1]))
    for start in range(0, X.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        columns = X[:, part].T.astype(np.float64, order="C")  # the squares of large float32 are infinite
        columns[~np.isfinite(columns)] = np.nan
        columns[np.isnan(columns).all(axis=1)] = 0
        differ = np.nanmin(columns, axis=1) < np.nanmax(columns, axis=1)  # the deviation of equal values may be an ulp
        quarter, three_quarters = np.nanquantile(columns, [0.25, 0.75], axis=1)
        centre[part] = np.nanmean(columns, axis=1)
        deviation[part] = np.where(differ, np.nanstd(columns, axis=1), 0)
        middle[part] = np.where(three_quarters > quarter, three_quarters - quarter, deviation[part])
    drawn = np.random.default_rng(0).standard_normal((X.shape[1], 2 * _MODELS))
    units = np.repeat(np.stack([deviation, middle], axis=1), _MODELS, axis=1)
    return centre, np.divide(drawn, units, out=np.zeros_like(drawn), where=units > 0)


def _scores(X: Floats32, centre: _Floats, weights: _Floats) -> _Floats:
    """Return decision values (n, models), a part of the records at a time; a missing feature counts as its mean."""
    found = np.empty((len(X), weights.shape[1]))
    for start in range(0, len(X), _PART):
        away = X[start : start + _PART] - centre
        away[~np.isfinite(away)] = 0
        np.matmul(away, weights, out=found[start : start + _PART])
    return found


def _kept(full: _Floats, narrow: _Floats) -> float:
    """Return the share of the best by narrow features that is among the best by full ones; of ties, any are."""
    k = max(1, round(len(full) * BEST))
    middle, spread = np.median(full, axis=0), full.std(axis=0)
    far, far_narrow = np.abs(full - middle), np.abs(narrow - middle)
    farthest = np.partition(far, k - 1, axis=0)[k - 1] + _TIE * spread
    best = np.argsort(far_narrow, axis=0, kind="stable")[:k]
    shares = (np.take_along_axis(far, best, axis=0) <= farthest).mean(axis=0)
    return float(shares.reshape(2, _MODELS).mean(axis=1).min())


def _error(full: _Floats, narrow: _Floats) -> float:
    spread = full.std(axis=0)
    changes = np.sqrt(((full - narrow) ** 2).mean(axis=0))
    return float(np.median(np.divide(changes, spread, out=np.zeros_like(changes), where=spread > 0)))
