"""Checks: what a learner must be able to do, tried before the first round and not found out after it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import joblib
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, is_regressor
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import Pipeline

from dal.classes import listed
from dal.errors import LabelError, LearnerError
from dal.learners.deep import OnTorch
from dal.learners.estimators import ends_in, is_committee, kind_of, parameters
from dal.learners.models import Model, score_block, see_block
from dal.learners.network import Floats
from dal.plugins import Carried
from dal.scores import OF_GRADIENTS, takes_committee
from dal.selection.candidates import usable

if TYPE_CHECKING:
    from dal.learners.learner import Learner


_FEW, _MORE = 48, 640
"""Records of the first and second try; some learners need more, such as a PCA of 64 components."""


_MOST_TRIED_BYTES = 256 * 2**20


_TAKES_MISSING: dict[str, bool] = {}
"""Results of `takes_missing` in this process by the hash of an estimator: a replay fits it hundreds of times."""


def check(
    learner: "Learner",
    n_features: int,
    score: str | Carried,
    records: npt.NDArray[np.float32] | None,
    *,
    weighted: bool,
) -> None:
    """Check a learner as `Learner.check` documents it."""
    check_classes(learner.classes)
    check_kind(learner.estimator)
    if weighted and not learner.takes_weights:
        raise LearnerError(f"the fit of {kind_of(learner.estimator)} must take sample_weight: the labels have weights")
    tried = f"made-up records of {n_features} features"
    if records is not None:
        given = records[usable(records, missing=learner.takes_missing(n_features))]
        if len(given):
            records, tried = given, "records of the pool"
        else:
            records = None
    try:
        _check_on(learner, _FEW, n_features, score, records, weighted=weighted)
        return
    except LearnerError:
        pass
    try:
        _check_on(learner, _MORE, n_features, score, records, weighted=weighted)
    except LearnerError as error:
        raise LearnerError(f"tried on {tried}: {error}") from error


def _check_on(
    learner: "Learner",
    n: int,
    n_features: int,
    score: str | Carried,
    records: npt.NDArray[np.float32] | None,
    *,
    weighted: bool,
) -> None:
    """Fit, save, load and score once on `n` records."""
    n = _tried_rows(n, n_features)
    if records is None:
        X, codes = _made_up_records(n, n_features, len(learner.classes))
        others = X
    else:
        X = records[np.arange(n) % len(records)]
        codes, others = _made_up_codes(X, len(learner.classes)), records
    weights = np.ones(len(X)) if weighted else None
    model = learner.try_fit(X, codes, weights)
    if score == OF_GRADIENTS:
        model.layer_inputs(X[:1])
    predicted = model.predict_proba(X)
    check_probabilities(predicted, model.kind)
    loaded = Model.loads(model.dumps(), trusted=learner.trusted)
    # Not bit by bit: see `Learner.fit`.
    if not np.allclose(loaded.predict_proba(X), predicted, rtol=0, atol=1e-4, equal_nan=True):
        raise LearnerError(f"{model.kind} predicts differently after it was saved and loaded")
    if takes_committee(score):
        if not is_committee(loaded.estimator):
            loaded = replace(loaded, bootstraps=learner.bootstraps(X, codes, weights, count=2))
        for member in loaded.committee(X):
            check_probabilities(member, model.kind)
    # As on a worker: the pool holds records that the fit has not seen.
    check_probabilities(loaded.predict_proba(others), model.kind)
    if score != "random":
        sent = loaded.for_score(score)
        seen = see_block(score, sent, others).scored if sent.embedding_width else score_block(score, sent, others)
        scored = seen.score
        check_few(~np.isfinite(scored), f"{model.kind}: the score {score}")


def takes_missing(learner: "Learner", n_features: int) -> bool:
    """Return whether a learner takes missing features, as `Learner.takes_missing` documents it."""
    if isinstance(learner.estimator, OnTorch):  # a network has no way around a gap
        return False
    try:
        key = joblib.hash((learner.estimator, n_features))
    except Exception:  # an estimator that cannot be pickled is tried each time
        return _try_missing(learner, n_features)
    if key not in _TAKES_MISSING:
        _TAKES_MISSING[key] = _try_missing(learner, n_features)
    return _TAKES_MISSING[key]


def _try_missing(learner: "Learner", n_features: int) -> bool:
    for n in _FEW, _tried_rows(_MORE, n_features):
        # Learners of counts refuse numbers around zero, and some scalers leave nothing of small counts.
        numbers = _try_missing_on(learner, *_made_up_records(n, n_features, 2))
        counts = None if numbers else _try_missing_on(learner, *_made_up_counts(n, n_features))
        if numbers is not None or counts is not None:
            return bool(numbers or counts)
    return False


def _try_missing_on(learner: "Learner", X: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]) -> bool | None:
    """Return whether the learner takes these records with gaps; None if it refuses them without gaps, too."""
    try:
        complete = learner.try_fit(X, codes)
        right = (complete.predict_proba(X).argmax(axis=1) == codes).mean()
    except LearnerError:
        return None
    incomplete = X.copy()
    rows = np.arange(len(X))
    # One feature of two records in three, each feature in turn, so that no class lacks one.
    incomplete[rows[rows % 3 > 0], (rows // 3 % X.shape[1])[rows % 3 > 0]] = np.nan
    try:
        for model in (complete, learner.try_fit(incomplete, codes)):
            predicted = model.predict_proba(incomplete)
            if not np.isfinite(predicted).all():
                return False
    except LearnerError:
        return False
    return bool((predicted.argmax(axis=1) == codes).mean() >= right - 0.25)


def check_classes(classes: tuple[str, ...]) -> None:
    """Refuse fewer than two classes, and a name that repeats."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise LabelError(f"`classes` must be at least two different names, got {list(classes)}")


def check_kind(estimator: BaseEstimator) -> None:
    """Refuse anything but a classifier, and settings that leave it without probabilities."""
    if isinstance(estimator, type):
        raise LearnerError(
            f"`estimator` must be an object such as {estimator.__name__}(), got the class {estimator.__name__}"
        )
    if not hasattr(estimator, "fit"):
        raise LearnerError(
            f"`estimator` must be a scikit-learn classifier, got {type(estimator).__name__}, which has no fit"
        )
    if hasattr(estimator, "__sklearn_tags__") and is_regressor(estimator):
        raise LearnerError(f"`estimator` must be a classifier, got the regressor {kind_of(estimator)}")
    for name, value in parameters(estimator).items():
        if ends_in(name, "decision_function_shape") and value == "ovo":
            raise LearnerError(f"`{name}` must be 'ovr', for one decision value a class, got 'ovo'")
        if isinstance(estimator, VotingClassifier | Pipeline) and ends_in(name, "voting") and value == "hard":
            raise LearnerError(f"`{name}` must be 'soft', for probabilities to score by, got 'hard'")


def class_codes(labels: npt.ArrayLike, n_records: int, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return the labels of a fit as codes; refuse other values, and labels of a single class."""
    codes = np.asarray(labels)
    if codes.shape != (n_records,):
        raise LearnerError(f"`labels` must be one a record, got {codes.shape} labels for {n_records} records")
    if n_records and (codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= len(classes)):
        raise LearnerError(
            f"`labels` must be class codes from 0 to {len(classes) - 1}, got {codes.dtype} {np.unique(codes)[:10]}"
        )
    present = np.unique(codes)
    if len(present) < 2:
        names = listed([classes[code] for code in present]) or "none"
        raise LearnerError(
            f"`labels` must be of at least two classes, got {n_records} of one ({names}); label more records, "
            "or import labels of another class"
        )
    return codes.astype(np.int64)


def check_probabilities(probabilities: Floats, kind: str) -> None:
    """Refuse values that are no probabilities, but for a few rows that are not finite."""
    bad = ~np.isfinite(probabilities).all(axis=1)
    check_few(bad, f"{kind}.predict_proba")
    probabilities = probabilities[~bad]
    low, high = float(np.min(probabilities)), float(np.max(probabilities))
    sums = probabilities.sum(axis=1)
    if low < 0 or np.abs(sums - 1).max() > 1e-3:
        raise LearnerError(
            f"`{kind}.predict_proba` must give probabilities, got values from {low:.3g} to {high:.3g} "
            f"with row sums from {np.min(sums):.3g} to {np.max(sums):.3g}"
        )


def check_few(bad: npt.NDArray[np.bool_], what: str) -> None:
    """Refuse an estimator with more than a tenth of bad rows."""
    # A record far from all others may overflow an estimator; a scan then never asks it. Where many do, it is broken.
    if 10 * np.count_nonzero(bad) > len(bad):
        raise LearnerError(f"{what}: {np.count_nonzero(bad)} of {len(bad)} rows hold values that are not finite")


def _tried_rows(n: int, n_features: int) -> int:
    return min(n, max(_FEW, _MOST_TRIED_BYTES // (4 * n_features)))


def _made_up_records(n: int, n_features: int, n_classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    # Three classes at most: with more, few records would leave too few of each for an inner cross-validation.
    codes = np.arange(n) % min(n_classes, 3)
    X = np.random.default_rng(0).standard_normal((n, n_features), dtype=np.float32)
    return X + codes[:, None].astype(np.float32), codes


def _made_up_counts(n: int, n_features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    codes = np.arange(n) % 2
    return np.random.default_rng(0).integers(1, 4, (n, n_features)).astype(np.float32) + codes[:, None], codes


def _made_up_codes(X: npt.NDArray[np.float32], n_classes: int) -> npt.NDArray[np.int64]:
    """Return classes of equal size that can be learned: by the rank of the records along one direction."""
    with np.errstate(all="ignore"):
        largest = np.nanmax(np.abs(np.where(np.isnan(X), 0, X)), axis=0)
        scaled = np.where(np.isnan(X) | (largest == 0), 0, X / np.where(largest == 0, 1, largest))
    along = scaled @ np.random.default_rng(0).standard_normal(X.shape[1])
    codes = np.empty(len(X), dtype=np.int64)
    codes[np.argsort(along, kind="stable")] = np.arange(len(X)) * min(n_classes, 3) // len(X)
    return codes
