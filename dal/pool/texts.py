"""Texts of a table as a source of a pool, through a vectoriser of scikit-learn."""

import heapq
import itertools
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from dal._threads import one_thread
from dal.errors import SourceError
from dal.pool.fields import as_field, as_kind
from dal.pool.sources import BLOCK_BYTES, MAX_FEATURES, Block, Identity
from dal.pool.tables import Rows
from dal.selection.order import row_hash

FITTED_ON = 50_000
"""Texts that a vectoriser is fitted on, where it is not fitted yet: drawn from the whole table, the same every time."""


class Texts:
    """The rows of a table, a column of texts turned into features; the text stays a display field.

    Parameters
    ----------
    table : Rows
        Gives blocks without features, whose fields hold the texts.
    column : str
    vectoriser : object
        Has `transform`, from texts to numbers. One that is not fitted is copied, and fitted on a sample of the table:
        with seed 0 where it has none, on one thread, so that a build that goes on gets the same features.
    """

    def __init__(self, table: Rows, column: str, vectoriser: Any) -> None:  # noqa: ANN401 - an estimator
        if isinstance(vectoriser, type) or not callable(getattr(vectoriser, "transform", None)):
            raise SourceError(
                f"a vectoriser has transform, from texts to numbers; got {vectoriser!r}. One of scikit-learn is "
                "make_pipeline(TfidfVectorizer(), TruncatedSVD(100))"
            )
        self._table, self._column, self._given = table, column, vectoriser
        self._fitted: Any = vectoriser if _is_fitted(vectoriser) else None
        self.n_rows: int | None = table.n_rows
        self.single = table.single
        if self.single and self._fitted is None:
            raise SourceError(
                "a vectoriser that is not fitted reads the texts twice, and this source is read only once"
            )

    @property
    def fitted(self) -> bool:
        """Whether the vectoriser came fitted."""
        return self._fitted is not None

    @property
    def identity(self) -> Identity | None:
        """The table, and the vectoriser as it was given."""
        try:
            digest = joblib.hash(self._given)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise SourceError(
                f"the vectoriser cannot be told from another one, since it cannot be pickled: {error}. Use named "
                "functions of a module instead of lambdas"
            ) from error
        table = self._table.identity
        return None if table is None else {**table, "text": self._column, "vectoriser": digest}

    @property
    def told(self) -> Mapping[str, Any]:
        """The names of the columns that are ids and texts."""
        return {"ids": self._table.columns.ids, "text": self._column}

    def blocks(self, start: int) -> Iterator[Block]:
        """Vectorise the texts from row `start` on."""
        if self._fitted is None:
            self._fitted = self._fit()
        row, step = start, 0
        for block in self._table.blocks(start):
            texts = self._texts(block, row)
            # Blocks of a table are cut for what is in the table, and features may be much wider.
            step = step or max(1, BLOCK_BYTES // (4 * self._features(texts[:1], row).shape[1]))
            for at in range(0, len(texts), step):
                part = slice(at, at + step)
                ids = None if block.ids is None else block.ids[part]
                fields = {name: values[part] for name, values in block.fields.items()}
                yield Block(self._features(texts[part], row + at), ids, fields)
            row += len(texts)

    def _texts(self, block: Block, row: int) -> list[str]:
        """Return the texts of a block, "" where there is none."""
        values = as_field(self._column, block.fields[self._column], row, len(block.features))
        texts: list[str] = as_kind(values, "text", self._column, row).fill_null("").to_pylist()
        return texts

    def _fit(self) -> Any:  # noqa: ANN401 - an estimator
        sample: list[tuple[int, int, str]] = []
        row = 0
        for block in self._table.blocks(0):
            texts = self._texts(block, row)
            hashes = row_hash(np.arange(row, row + len(texts)), 0, 0).tolist()
            drawn = zip(hashes, range(row, row + len(texts)), texts, strict=True)
            sample = heapq.nsmallest(FITTED_ON, itertools.chain(sample, drawn))
            row += len(texts)
        vectoriser = clone(self._given)
        seeds = [name for name, value in vectoriser.get_params().items() if _is_seed(name) and value is None]
        vectoriser.set_params(**dict.fromkeys(seeds, 0))
        try:
            with one_thread:
                return vectoriser.fit([text for _, _, text in sorted(sample, key=lambda each: each[1])])
        except ValueError as error:
            raise SourceError(
                f"the vectoriser cannot be fitted on {len(sample):,} texts of {self._column!r}: {error}"
            ) from error

    def _features(self, texts: list[str], row: int) -> npt.NDArray[np.float32]:
        told = f"the vectoriser, on the texts from row {row} on,"
        try:
            with one_thread:
                found: Any = self._fitted.transform(texts)
        except (ValueError, TypeError, AttributeError) as error:
            raise SourceError(f"{told} fails: {error}") from error
        try:
            found = found if sparse.issparse(found) else np.asarray(found)
        except ValueError as error:
            raise SourceError(f"{told} gives rows of different lengths: {error}") from error
        if found.ndim != 2 or found.shape[0] != len(texts):
            raise SourceError(f"{told} gives {found.shape}; one row a text was expected")
        if found.shape[1] > MAX_FEATURES:
            raise SourceError(
                f"{told} gives {found.shape[1]:,} columns, and records have at most {MAX_FEATURES:,} features: put a "
                "TruncatedSVD behind it"
            )
        dense = found.toarray() if sparse.issparse(found) else found
        if dense.dtype.kind not in "fiub":
            raise SourceError(f"{told} gives {dense.dtype}, and numbers were expected")
        with np.errstate(over="ignore"):
            features: npt.NDArray[np.float32] = dense.astype(np.float32)
        return features


def _is_seed(name: str) -> bool:
    return name == "random_state" or name.endswith("__random_state")


def _is_fitted(vectoriser: Any) -> bool:  # noqa: ANN401 - an estimator
    try:
        check_is_fitted(vectoriser)
    except NotFittedError:
        return False
    except (TypeError, AttributeError):  # not of scikit-learn: it has `transform`, and is taken as it is
        return True
    return True
