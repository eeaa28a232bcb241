"""Texts of a table as the source of a pool, through a vectoriser of scikit-learn."""

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
from dal.pool.sizes import SIZES, Sizes
from dal.pool.sources import MAX_FEATURES, Block, Identity
from dal.pool.tables import Rows
from dal.selection.order import row_hash

FITTED_ON = 50_000


class Texts:
    """The rows of a table with a column of texts turned into features; the text stays a display field.

    Parameters
    ----------
    table : Rows
        Yields blocks without features, whose fields hold the texts.
    column : str
        Name of the column of texts.
    vectoriser : object
        Has `transform`, from texts to numbers. An unfitted one is cloned and fitted on a sample of the table, on one
        thread and with seed 0 for unset random states, so that a resumed build gets the same features.
    sizes : Sizes, optional
        Of the blocks.
    fitted_on : int, default=50_000
        Texts to fit an unfitted vectoriser on: a sample of the whole table, the same one every time.

    Raises
    ------
    SourceError
        The vectoriser has no `transform`, or must be fitted on a source that is read only once.
    """

    def __init__(
        self,
        table: Rows,
        column: str,
        vectoriser: Any,  # noqa: ANN401 - an estimator
        sizes: Sizes = SIZES,
        *,
        fitted_on: int = FITTED_ON,
    ) -> None:
        if isinstance(vectoriser, type) or not callable(getattr(vectoriser, "transform", None)):
            raise SourceError(
                f"`vectoriser` must have `transform`, from texts to numbers, got {vectoriser!r}; use for example "
                "make_pipeline(TfidfVectorizer(), TruncatedSVD(100)) of scikit-learn"
            )
        self._table, self._column, self._given = table, column, vectoriser
        self._sizes, self._fitted_on = sizes, fitted_on
        self._fitted: Any = vectoriser if _is_fitted(vectoriser) else None
        self.n_rows: int | None = table.n_rows
        self.single = table.single
        if self.single and self._fitted is None:
            raise SourceError(
                "`vectoriser` must be fitted for a source that is read only once, got one that is not fitted; fit it "
                "first"
            )

    @property
    def fitted(self) -> bool:
        """Whether the vectoriser was passed fitted."""
        return self._fitted is not None

    @property
    def identity(self) -> Identity | None:
        """The table's identity and a digest of the vectoriser as passed."""
        try:
            digest = joblib.hash(self._given)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise SourceError(
                f"`vectoriser` must be picklable, because its digest identifies it: {error}; use named functions of a "
                "module instead of lambdas"
            ) from error
        table = self._table.identity
        return None if table is None else {**table, "text": self._column, "vectoriser": digest}

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Names of the columns of ids and texts."""
        return {"ids": self._table.columns.ids, "text": self._column}

    def blocks(self, start: int) -> Iterator[Block]:
        """Vectorise the texts from row `start` on."""
        if self._fitted is None:
            self._fitted = self._fit()
        row, step = start, 0
        for block in self._table.blocks(start):
            texts = self._texts(block, row)
            # Blocks of a table are sized by the table's columns; the vectoriser's features may be much wider.
            step = step or self._sizes.rows_of_block(4 * self._features(texts[:1], row).shape[1])
            for at in range(0, len(texts), step):
                part = slice(at, at + step)
                ids = None if block.ids is None else block.ids[part]
                fields = {name: values[part] for name, values in block.fields.items()}
                yield Block(self._features(texts[part], row + at), ids, fields)
            row += len(texts)

    def _texts(self, block: Block, row: int) -> list[str]:
        """Return the texts of a block; a gap becomes ""."""
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
            sample = heapq.nsmallest(self._fitted_on, itertools.chain(sample, drawn))
            row += len(texts)
        vectoriser = clone(self._given)
        seeds = [name for name, value in vectoriser.get_params().items() if _is_seed(name) and value is None]
        vectoriser.set_params(**dict.fromkeys(seeds, 0))
        try:
            with one_thread:
                return vectoriser.fit([text for _, _, text in sorted(sample, key=lambda each: each[1])])
        except ValueError as error:
            raise SourceError(
                f"`vectoriser` cannot be fitted on {len(sample):,} texts of {self._column!r}: {error}"
            ) from error

    def _features(self, texts: list[str], row: int) -> npt.NDArray[np.float32]:
        which = f"`vectoriser`, on the texts from row {row} on,"
        try:
            with one_thread:
                found: Any = self._fitted.transform(texts)
        except (ValueError, TypeError, AttributeError) as error:
            raise SourceError(f"{which} fails: {error}") from error
        try:
            found = found if sparse.issparse(found) else np.asarray(found)
        except ValueError as error:
            raise SourceError(f"{which} must return rows of one length, got {error}") from error
        if found.ndim != 2 or found.shape[0] != len(texts):
            raise SourceError(f"{which} must return one row a text, got shape {found.shape} for {len(texts)} texts")
        if found.shape[1] > MAX_FEATURES:
            raise SourceError(
                f"{which} must return at most {MAX_FEATURES:,} columns, got {found.shape[1]:,}; put a TruncatedSVD "
                "behind it"
            )
        dense = found.toarray() if sparse.issparse(found) else found
        if dense.dtype.kind not in "fiub":
            raise SourceError(f"{which} must return numbers, got {dense.dtype}")
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
    except (TypeError, AttributeError):  # not an estimator of scikit-learn, but it has `transform`: assume it fitted
        return True
    return True
