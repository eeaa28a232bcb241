"""Search: what a person looks for, checked at the door before any work."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dal.campaign.schema import Search
from dal.errors import InputError
from dal.pool import Pool
from dal.pool.condition import Condition
from dal.selection.candidates import usable

MOST_EXAMPLES = 1000
"""Each record of the pool is compared with each of them."""
MARKED_SHARE = 0.3
"""Of the batch, that is searched for where people have marked records on the pages."""
_NAMED = 5

Like = str | Sequence[str] | npt.NDArray[np.floating]
"""Record ids, or the features of records that need not be in the pool."""


def search_of(pool: Pool, like: Like | None, where: str | None, share: float) -> Search:
    """Return the search for records that a person describes.

    Parameters
    ----------
    pool : Pool
    like : str, sequence of str, ndarray of shape (m, d), or None
        Examples: record ids of the pool, or features.
    where : str or None
        A condition, as :meth:`dal.pool.condition.Condition.on` reads it.
    share : float
        Of the batch; at most what the explore share leaves.

    Raises
    ------
    InputError
        If an example is not in the pool, or cannot be compared with its records, the condition cannot be read, or the
        share is none.
    """
    if not 0 < share <= 1:
        raise InputError(f"`share` must be above 0 and at most 1, got {share}; pass a share, such as 0.3")
    rows: tuple[int, ...] = ()
    examples: tuple[tuple[float, ...], ...] = ()
    if where is not None:
        Condition.on(where, pool)
    if like is None:
        return Search(where=where, share=share)
    if isinstance(like, np.ndarray) and like.dtype.kind in "fiu":
        examples = _examples(pool, like)
    else:
        rows = _rows(pool, [like] if isinstance(like, str) else list(like))
    if not rows and not examples:
        raise InputError("`like` must hold at least one example, got none; pass an id or features")
    if len(rows) + len(examples) > MOST_EXAMPLES:
        raise InputError(
            f"`like` must hold at most {MOST_EXAMPLES:,} examples, got {len(rows) + len(examples):,}; choose some"
        )
    return Search(rows, examples, where, share)


def _rows(pool: Pool, record_ids: list[str]) -> tuple[int, ...]:
    if strange := [each for each in record_ids if not isinstance(each, str)]:
        raise InputError(
            f"`like` must hold record ids as str, or be an array of features, got {strange[0]!r}; pass either"
        )
    rows = pool.rows_of(record_ids)
    unknown = [record_id for record_id, row in zip(record_ids, rows.tolist(), strict=True) if row < 0]
    if unknown:
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        named = ", ".join(map(repr, unknown[:_NAMED]))
        raise InputError(f"`like` must name records of {pool.path}, got {named}{more}; name others")
    rows = np.unique(rows)
    lost = rows[~usable(pool.take(rows), missing=pool.asks_missing)]
    if len(lost):
        named = ", ".join(map(repr, pool.record_ids(lost[:_NAMED])))
        raise InputError(f"`like` must name records with finite features, got {named}; name others")
    return tuple(rows.tolist())


def _examples(pool: Pool, X: npt.NDArray[np.floating]) -> tuple[tuple[float, ...], ...]:
    found = np.asarray(X, dtype=np.float32)
    if found.ndim == 1:
        found = found[None]
    found = found.reshape(len(found), -1)
    if found.shape[1] != pool.n_features:
        raise InputError(
            f"`like` must hold {pool.n_features} features, as {pool.path}, got {found.shape[1]}; pass one record a row"
        )
    if not usable(found, missing=pool.asks_missing).all():
        raise InputError("`like` must hold finite features, got missing or infinite ones; leave such examples out")
    return tuple(tuple(example) for example in found.tolist())


def read_likes(texts: Sequence[str], pool: Pool) -> Like:
    """Read examples as the command line names them: record ids, and CSV files of ids or of features.

    A text names a file if it ends in .csv or .tsv and is no id of the pool. Files have a column ``record_id``, or all
    columns that became features of the pool.

    Raises
    ------
    InputError
        If a file holds neither, or cannot be read.
    """
    known = pool.rows_of(texts) >= 0
    of_files = [not at and text.lower().endswith((".csv", ".tsv")) for text, at in zip(texts, known, strict=True)]
    found = [_read(Path(text), pool) for text, is_file in zip(texts, of_files, strict=True) if is_file]
    ids = [text for text, is_file in zip(texts, of_files, strict=True) if not is_file]
    ids += [each for part in found if isinstance(part, list) for each in part]
    features = [part for part in found if not isinstance(part, list)]
    if not features:
        return ids
    return np.concatenate([pool.take(_rows(pool, ids)) if ids else features[0][:0], *features])


def _read(path: Path, pool: Pool) -> list[str] | npt.NDArray[np.float32]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns, records = list(lines.fieldnames or ()), list(lines)
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path} must be a CSV file in UTF-8, got: {error}; name another") from error
    if "record_id" in columns:
        return [each["record_id"] or "" for each in records]
    features = pool.feature_names
    if len(features) != pool.n_features or not set(features) <= set(columns):
        named = "" if len(features) != pool.n_features else f", or the features {', '.join(features[:_NAMED])}, ..."
        raise InputError(
            f"{path} must have a column record_id{named}, got {', '.join(columns) or 'nothing'}; add such columns"
        )
    try:
        values = [[float(each[name] or "nan") for name in features] for each in records]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} must hold numbers as features, got: {error}; mend them") from error
    return np.array(values, dtype=np.float32).reshape(len(values), len(features))
