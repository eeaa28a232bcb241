"""Models: fitted learners, their probabilities, committees and scores, saved and loaded."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from dal._threads import one_thread
from dal.errors import LearnerError
from dal.learners.archive import FORMAT, archived, load
from dal.learners.deep import deep_of
from dal.learners.estimators import (
    ENSEMBLES,
    FROM_ARRAYS,
    before_last,
    is_committee,
    kind_of,
    last_step,
    plain_scikit_learn,
    rows_of,
    steps_before,
)
from dal.learners.network import ACTIVATIONS, Floats, Network, network_of
from dal.learners.trees import FORESTS, Trees
from dal.plugins import Carried
from dal.scores import (
    OF_COMMITTEE,
    OF_DROPOUT,
    OF_GRADIENTS,
    OF_ONE_MODEL,
    Scored,
    of_committee,
    of_decisions,
    of_dropout,
    of_gradients,
    of_own,
    of_probabilities,
)
from dal.selection.order import uniform

# Rows scored at once where a learner cares; measured, see the scan's study of tile heights.
_TILE_ROWS = {
    "HistGradientBoostingClassifier": 4096,
    "RandomForestClassifier": 8192,
    "ExtraTreesClassifier": 8192,
}

_NETWORK_TILE_ROWS = 1024

PREDICTED_AT_ONCE = 8192
"""Records whose class probabilities are there at a time."""

Made = TypeVar("Made")


@one_thread
def score_block(name: str | Carried, model: "Model", X: npt.NDArray[np.float32]) -> Scored:
    """Score a block of records with a model.

    Networks, logistic regressions included, are scored from their decision values, computed class-major by products of
    blocks: the same as from ``predict_proba`` within 1e-6, and twice as fast. With hidden layers, either is as near to
    the exact value as single precision allows.

    Returns
    -------
    Scored
        ``predicted`` holds positions in ``model.seen``.
    """
    return _named(model, X, lambda: _scored(name, model, X))


class Seen(NamedTuple):
    """A block of records as a model that has embeddings sees it.

    Attributes
    ----------
    scored : Scored
    proba : ndarray of shape (n, C)
    embeddings : ndarray of shape (n, width), float32
    """

    scored: Scored
    proba: Floats
    embeddings: npt.NDArray[np.float32]


@one_thread
def see_block(name: str | Carried, model: "Model", X: npt.NDArray[np.float32]) -> Seen:
    """Score a block of records as `score_block` does, with the probabilities and the embeddings of the same pass.

    A committee takes the passes of its members, and this one.
    """

    def seen() -> Seen:
        proba, embeddings = model.predict_embedded(X)
        return Seen(_scored(name, model, X, (proba, embeddings)), proba, embeddings)

    return _named(model, X, seen)


def _named(model: "Model", X: npt.NDArray[np.float32], work: Callable[[], Made]) -> Made:
    """Name the learner in errors of the steps before it."""
    try:
        return work()
    except LearnerError:
        raise
    except Exception as error:  # of a step before the last one: anybody's code, with anybody's exceptions
        raise LearnerError(f"a step before {model.kind} refused records of shape {X.shape}: {error}") from error


def _scored(
    name: str | Carried,
    model: "Model",
    X: npt.NDArray[np.float32],
    embedded: tuple[Floats, npt.NDArray[np.float32]] | None = None,
) -> Scored:
    def probabilities() -> Floats:
        return embedded[0] if embedded else model.predict_proba(X)

    if isinstance(name, Carried):
        scored = of_own(name, probabilities(), lambda: model.committee(X), lambda: (X, model))
        return scored._replace(predicted=np.searchsorted(model.seen, scored.predicted))
    if name == OF_DROPOUT:
        plain = _scored("margin", model, X)
        masked = (_dropped(X, mask) for mask in dropout_masks(X.shape[1]))
        return of_dropout(plain, (_scored("margin", model, each).predicted for each in masked))
    if name in OF_ONE_MODEL and model.network is not None:
        with np.errstate(all="ignore"):
            return of_decisions(name, model.network.decisions(X), len(model.classes))
    # Columns of unseen classes are zero and never the first; all classes count, for the score's normalisation.
    if name in OF_COMMITTEE:
        scored = of_committee(name, model.committee(X))
    elif name == OF_GRADIENTS:
        scored = of_gradients(probabilities(), embedded[1] if embedded else model.layer_inputs(X))
    else:
        scored = of_probabilities(name, probabilities())
    return scored._replace(predicted=np.searchsorted(model.seen, scored.predicted))


MASKS, DROPPED = 3, 0.75
"""Passes with dropout of the features, and its rate: the values of DropQuery's authors."""


def dropout_masks(width: int) -> npt.NDArray[np.float32]:
    """Draw the masks (n, `width`) of the score `dropout`, by hash of pass and column: the same for all records.

    Columns that stay are raised in proportion, as dropout does.
    """
    drawn = np.stack([uniform(np.arange(width), each, 0) for each in range(MASKS)])
    return (drawn >= DROPPED).astype(np.float32) / np.float32(1 - DROPPED)


def _dropped(X: npt.NDArray[np.float32], mask: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Multiply records by a mask; values that overflow stay finite, as learners refuse infinite ones."""
    most = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        masked: npt.NDArray[np.float32] = np.clip(X * mask, -most, most)
    return masked


def needs_members(score: str | Carried) -> bool:
    """Return whether a score asks more of a forest than its probabilities."""
    return isinstance(score, Carried) or score in (*OF_COMMITTEE, OF_GRADIENTS)


def finite(proba: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return probabilities (n, C), of which a record has only zeros where a model predicts nothing finite of it.

    One far from all others may overflow an estimator.

    Examples
    --------
    >>> finite(np.array([[0.25, 0.75], [np.nan, 1.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    return np.where(np.isfinite(proba).all(axis=1, keepdims=True), proba, 0.0).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted learner, as `Learner.fit` or `Model.loads` returns it. Immutable.

    Parameters
    ----------
    estimator
        The fitted estimator.
    classes
        Names of all classes of the campaign.
    n_features
        Width of the records.
    codes
        Codes of the classes that the estimator's columns stand for: it was fitted on the numbers 0 to k-1.
    warnings
        Warnings of the fit, such as that it did not converge.
    trusted
        Types beside those of scikit-learn that a process must trust to load the saved model.
    bootstraps
        Clones fitted on bootstraps, if a committee was wanted and the estimator is none.
    takes_missing
        Whether it predicts records with missing (NaN) features; see `Learner.takes_missing`.
    """

    estimator: BaseEstimator
    classes: tuple[str, ...]
    n_features: int
    codes: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    bootstraps: tuple[BaseEstimator, ...] = ()
    takes_missing: bool = False

    @property
    def kind(self) -> str:
        """Class name of the estimator, of the last step where it is a pipeline."""
        return kind_of(self.estimator)

    @property
    def chosen(self) -> str:
        """The choice of the fit by its labels, in words, such as of a penalty; empty of most estimators."""
        found = getattr(last_step(self.estimator), "chosen_", "")
        return found if isinstance(found, str) else ""

    @cached_property
    def seen(self) -> npt.NDArray[np.int64]:
        """Codes of the classes that the fit has seen, in the order of the estimator's columns."""
        return np.asarray(self.codes, dtype=np.int64)

    @property
    def tile_rows(self) -> int | None:
        """Rows at once that suit the estimator; None if it does not matter."""
        network = deep_of(self.estimator)
        if network is not None:
            # Several batches, because a tile has its own cost. Few, because a pool's last tile is padded.
            return max(network.predicted_at_once, _NETWORK_TILE_ROWS)
        return _TILE_ROWS.get(self.kind)

    @property
    def scratch_bytes(self) -> int:
        """Memory that scoring takes beside the records and the model, where the estimator knows it; else 0."""
        network = deep_of(self.estimator)
        return 0 if network is None else network.scratch_bytes

    @property
    def wants_gpu(self) -> bool:
        """Whether it predicts on a GPU where there is one."""
        network = deep_of(self.estimator)
        return network is not None and network.wants_gpu

    @property
    def is_compiled(self) -> bool:
        """Whether dal's own products or trees score records by one model: no code of others, and none that locks."""
        if self.network is not None:
            return self.network.steps is None
        return steps_before(self.estimator) is None and self._trees is not None

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings that the estimator gives with its probabilities; 0 where it gives none."""
        last = last_step(self.estimator)
        return int(last.embedding_width_) if hasattr(last, "predict_embedded") else 0

    @one_thread
    def predict_embedded(self, X: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.float32]]:
        """Return the probabilities (n, C) and the estimator's own embeddings (n, `embedding_width`) of records.

        Raises
        ------
        LearnerError
            If the estimator has none, or returns other shapes.
        """
        last, records, method = last_step(self.estimator), np.asarray(X, dtype=np.float32), "predict_embedded"
        if not self.embedding_width:
            raise LearnerError(f"`estimator` must have the method {method}, got {self.kind}, which has none")
        try:
            with np.errstate(all="ignore"), plain_scikit_learn():
                proba, embeddings = map(np.asarray, last.predict_embedded(before_last(self.estimator, records)))
        except Exception as error:  # anybody's code, with anybody's exceptions
            raise LearnerError(f"{self.kind}.{method} refused records of shape {records.shape}: {error}") from error
        self._checked(embeddings, len(records), self.embedding_width, method)
        return (
            self._aligned(self._checked(proba, len(records), len(self.seen), method)),
            embeddings.astype(np.float32, copy=False),
        )

    @cached_property
    def network(self) -> Network | None:
        """The decision values of a logistic regression or a network as matrix products; None of any other estimator."""
        return network_of(self.estimator)

    @one_thread
    def decision_function(self, X: npt.NDArray[np.float32]) -> Floats | None:
        """Return the decision values (n, C') of the classes seen; None without any. Of two classes C' may be 1."""
        if not hasattr(self.estimator, "decision_function"):
            return None
        values = self._called("decision_function", X)
        values = values.reshape(len(values), -1)
        columns = 1 if len(self.seen) == 2 and values.shape[1] != 2 else len(self.seen)
        return self._checked(values, X.shape[0], columns, "decision_function")

    @cached_property
    def classes_(self) -> npt.NDArray[np.str_]:
        """Names of all classes of the campaign, in the order of the columns of `predict_proba`."""
        return np.asarray(self.classes)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.str_]:
        """Return the name of the most probable class of each record; the first of equals.

        Parameters
        ----------
        X
            Records, (n, d), as for `predict_proba`.

        Raises
        ------
        LearnerError
            If the estimator refuses the records, or returns probabilities that are not finite.
        """
        probabilities = self.predict_proba(X)
        if bad := np.count_nonzero(~np.isfinite(probabilities).all(axis=1)):
            raise LearnerError(
                f"{self.kind}: `X` must give finite probabilities, {bad} of {len(probabilities)} rows do not"
            )
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_in_blocks(self, X: npt.NDArray[np.float32]) -> Iterator[Floats]:
        """Yield what `predict_proba` returns, block by block: a thousand classes of all records may take gigabytes."""
        for start in range(0, max(len(X), 1), PREDICTED_AT_ONCE):
            yield self.predict_proba(X[start : start + PREDICTED_AT_ONCE])

    def predict_proba(self, X: npt.ArrayLike) -> Floats:
        """Return the probabilities (n, C) of all classes of the campaign; 0 for classes that the fit has not seen.

        An estimator that has only a `decision_function` gives the softmax of its values (the sigmoid for two classes):
        these order the records, but are not calibrated.

        Parameters
        ----------
        X
            Records, (n, d); taken as float32.

        Raises
        ------
        LearnerError
            If the estimator returns another shape. Rows that are not finite are returned as they are: a record far from
            all others may overflow the estimator.
        """
        return self._proba(np.asarray(X, dtype=np.float32))

    @one_thread
    def _proba(self, X: Any) -> Floats:  # noqa: ANN401 - of a member: any output of the steps before it
        return self._aligned(self._seen_probabilities(X))

    def _aligned(self, probabilities: Floats) -> Floats:
        if np.array_equal(self.seen, np.arange(len(self.classes))):
            return probabilities
        aligned = np.zeros((len(probabilities), len(self.classes)), dtype=probabilities.dtype)
        aligned[:, self.seen] = probabilities
        return aligned

    def committee(self, X: npt.NDArray[np.float32]) -> Iterator[Floats]:
        """Yield the probabilities (n, C) of one member of the committee after another, never of all at once.

        Members are the trees of a forest, the estimators of a ``VotingClassifier`` or ``BaggingClassifier``, the items
        of the estimator's method ``committee_proba(X)``, such as passes with different dropout masks (the same masks
        for all records), or else the bootstraps of the fit.

        Raises
        ------
        LearnerError
            If there is no committee.
        """
        last = last_step(self.estimator)
        ensemble = is_committee(self.estimator)
        if not ensemble and not self.bootstraps:
            raise LearnerError(f"this {self.kind} has no committee: fit it with committee=True")
        # Bootstraps are whole pipelines; members of a pipeline's last step take what its first steps give.
        records = before_last(self.estimator, X) if ensemble else X
        if hasattr(last, "committee_proba"):
            for probabilities in last.committee_proba(records):
                yield self._aligned(self._checked(np.asarray(probabilities), len(X), len(self.seen), "committee_proba"))
            return
        if isinstance(last, FROM_ARRAYS):
            # Their members are fitted on plain arrays, which have no names of columns.
            records = rows_of(records)
        for model, columns in self._members:
            yield model._proba(records if columns is None else records[:, columns])

    @cached_property
    def _members(self) -> "list[tuple[Model, npt.NDArray[np.integer[Any]] | None]]":
        last = last_step(self.estimator)
        if not isinstance(last, ENSEMBLES):
            return [(replace(self, estimator=each, bootstraps=()), None) for each in self.bootstraps]
        chosen = getattr(last, "estimators_features_", [None] * len(last.estimators_))
        # Ensembles number the classes they have seen from 0.
        codes = [self.seen[np.asarray(each.classes_, dtype=np.int64)] for each in last.estimators_]
        return [
            (replace(self, estimator=each, codes=tuple(own.tolist()), bootstraps=()), columns)
            for each, own, columns in zip(last.estimators_, codes, chosen, strict=True)
        ]

    @one_thread
    def layer_inputs(self, X: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401 - dense or sparse
        """Return the inputs (n, h) of the last, linear softmax layer of a logistic regression or a network.

        Sparse, if a pipeline gives its logistic regression sparse records.

        Raises
        ------
        LearnerError
            If the estimator has no such layer.
        """
        if self.embedding_width:
            return self.predict_embedded(X)[1]
        last = last_step(self.estimator)
        records = before_last(self.estimator, X)
        if isinstance(last, LogisticRegression):
            return rows_of(records)
        if not isinstance(last, MLPClassifier):
            raise LearnerError(
                f"`expected_gradient_length` must have a linear softmax layer, got {self.kind}; use"
                " LogisticRegression, MLPClassifier or a network of torch, or another score"
            )
        activate, records = ACTIVATIONS[last.activation], rows_of(records)
        for weights, intercepts in zip(last.coefs_[:-1], last.intercepts_[:-1], strict=True):
            records = activate(records @ weights + intercepts)
        return records

    def for_score(self, score: str | Carried) -> "Model":
        """Return a copy for workers that compute this score only: of a forest, mostly without scikit-learn's trees.

        These are most of a forest's bytes; the flat trees that replace them take a third.
        """
        # The first steps of a pipeline may give values that only scikit-learn's own trees can handle.
        if type(self.estimator) not in FORESTS or self._trees is None or needs_members(score):
            return replace(self)
        emptied = copy(self.estimator)
        emptied.estimators_ = []
        alone = replace(self, estimator=emptied)
        alone.__dict__["_trees"] = self._trees
        return alone

    def dumps(self) -> bytes:
        """Save as a skops archive.

        Raises
        ------
        LearnerError
            If the estimator holds something that cannot be saved.
        """
        return self._archive

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the saved model."""
        return hashlib.sha256(self.dumps()).hexdigest()

    @cached_property
    def _archive(self) -> bytes:
        # Kept, because an archive carries the time: saved twice, a model would have two digests.
        content = {
            "format": FORMAT,
            "estimator": self.estimator,
            "classes": list(self.classes),
            "n_features": self.n_features,
            "codes": list(self.codes),
            "takes_missing": self.takes_missing,
            "warnings": list(self.warnings),
            # An archive each: saving takes the square of the number of parts, which boosting has thousands of.
            "bootstraps": [archived({"format": FORMAT, "estimator": each}, self.kind) for each in self.bootstraps],
        }
        return archived(content, self.kind)

    @classmethod
    def loads(cls, data: bytes, trusted: Sequence[str] = ()) -> Self:
        """Load what `dumps` saved, without running code of types that are not trusted.

        Raises
        ------
        LearnerError
            If the data is no model, or holds types that are neither scikit-learn's nor `trusted`.
        """
        content = load(data, trusted)
        model = cls(
            content["estimator"],
            tuple(content["classes"]),
            int(content["n_features"]),
            tuple(content["codes"] if "codes" in content else content["estimator"].classes_.tolist()),
            tuple(content["warnings"]),
            tuple(trusted),
            tuple(load(each, trusted)["estimator"] for each in content.get("bootstraps", ())),
            bool(content.get("takes_missing")),
        )
        model.__dict__["_archive"] = data
        return model

    def _seen_probabilities(self, X: npt.NDArray[np.float32]) -> Floats:
        if hasattr(self.estimator, "predict_proba"):
            return self._checked(self._called("predict_proba", X), X.shape[0], len(self.seen), "predict_proba")
        values = self.decision_function(X)
        if values is None:
            raise LearnerError(
                f"{self.kind} has neither predict_proba nor decision_function: there is nothing to score by"
            )
        return _softmax(np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values)

    @cached_property
    def _trees(self) -> Trees | None:
        return Trees.of(last_step(self.estimator))

    def _called(self, method: str, X: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        try:
            # What overflows shows in the result, which is looked at; a warning for every tile says no more.
            with np.errstate(all="ignore"), plain_scikit_learn():
                if method == "predict_proba" and self._trees is not None:
                    records = before_last(self.estimator, X)
                    probabilities = None if sparse.issparse(records) else self._trees.predict_proba(np.asarray(records))
                    if probabilities is not None:
                        return probabilities
                return np.asarray(getattr(self.estimator, method)(X))
        except Exception as error:  # anybody's code, with anybody's exceptions
            raise LearnerError(f"{self.kind}.{method} refused records of shape {X.shape}: {error}") from error

    def _checked(self, values: npt.NDArray[Any], rows: int, columns: int, method: str) -> Floats:
        if values.shape != (rows, columns):
            raise LearnerError(f"`{self.kind}.{method}` must give the shape {(rows, columns)}, got {values.shape}")
        return values


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
