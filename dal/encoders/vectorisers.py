"""Vectorisers of scikit-learn as encoders."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from dal._threads import one_thread
from dal.encoders.protocol import named_digest
from dal.errors import SettingsError


class VectoriserEncoder:
    """A fitted vectoriser, such as a pipeline of `TfidfVectorizer` and `TruncatedSVD`.

    Parameters
    ----------
    vectoriser : object
        Has `transform`, from texts to (n, d), dense or sparse.
    batch_size : int, default=1024
    """

    def __init__(self, vectoriser: Any, *, batch_size: int = 1024) -> None:  # noqa: ANN401 - an estimator
        try:
            check_is_fitted(vectoriser)
        except NotFittedError as error:
            raise SettingsError(
                "`vectoriser` must be fitted, got one that is not; fit it, or pass it as vectoriser=... to Pool.build, "
                "which fits it"
            ) from error
        except TypeError:  # no estimator of scikit-learn, but it may have `transform`
            if not callable(getattr(vectoriser, "transform", None)):
                raise SettingsError(f"`vectoriser` must have `transform`, got {vectoriser!r}") from None
        self.vectoriser, self.batch_size = vectoriser, batch_size

    @cached_property
    def id(self) -> str:
        """The name of its class, and a digest of all that it has learned."""
        return named_digest(type(self.vectoriser).__qualname__, str(joblib.hash(self.vectoriser)))

    def encode(self, batch: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the features of texts."""
        with one_thread:
            found = self.vectoriser.transform(list(batch))
        return np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float32)
