"""Estimators: the scikit-learn conventions that dal relies on, and the few places where estimators differ."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.pipeline import Pipeline

from dal._threads import one_thread
from dal.classes import codes_of
from dal.errors import LearnerError
from dal.learners.blocks import InBlocks, inside
from dal.learners.trees import FORESTS

ENSEMBLES = (*FORESTS, VotingClassifier, BaggingClassifier)


FROM_ARRAYS = (*FORESTS, BaggingClassifier)
"""Ensembles that give their members plain arrays, without names of columns."""


_BY_CLASS = ("class_weight", "class_weights", "sampling_strategy")
"""Parameters that may map a class to a setting."""


def unwrapped(estimator: BaseEstimator) -> BaseEstimator:
    """Return the estimator inside dask-ml's wrappers, known by name because importing dask-ml takes seconds.

    That of an ``Incremental`` is fitted in blocks.
    """
    in_blocks = False
    while names := {kind.__name__ for kind in type(estimator).__mro__ if kind.__module__.startswith("dask_ml.")}:
        if "ParallelPostFit" not in names:
            break
        in_blocks |= "Incremental" in names
        estimator = estimator.estimator
    return InBlocks(estimator) if in_blocks else estimator


def cloned(estimator: BaseEstimator) -> BaseEstimator:
    """Return a clone that is not fitted."""
    try:
        return clone(estimator)
    except (TypeError, RuntimeError) as error:
        raise LearnerError(f"{kind_of(estimator)} cannot be cloned as scikit-learn does it: {error}") from error


def kind_of(estimator: BaseEstimator) -> str:
    """Return the class name of the estimator, or of the last step of a pipeline."""
    return type(last_step(estimator)).__name__


def parameters(estimator: BaseEstimator) -> dict[str, Any]:
    """Return all parameters, those of nested estimators included."""
    return dict(estimator.get_params(deep=True)) if hasattr(estimator, "get_params") else {}


def ends_in(name: str, parameter: str) -> bool:
    """Return whether a name such as ``bagging__estimator__n_jobs`` ends in this parameter."""
    return name.rpartition("__")[2] == parameter


def single_threaded(estimator: BaseEstimator) -> BaseEstimator:
    """Set every `n_jobs` to 1, but for None: it means 1 as well, and some estimators warn of any number."""
    numbers = [name for name, value in parameters(estimator).items() if ends_in(name, "n_jobs") and value is not None]
    return estimator.set_params(**dict.fromkeys(numbers, 1))


def last_step(estimator: BaseEstimator) -> BaseEstimator:
    """Return the last step of a pipeline, or the estimator itself."""
    estimator = inside(estimator)
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def steps_before(estimator: BaseEstimator) -> Pipeline | None:
    """Return the steps of a pipeline that transform a record before the last step; None if there are none.

    Steps that resample records (imbalanced-learn's) are left out: they act in a fit only.
    """
    if not isinstance(estimator, Pipeline):
        return None
    steps = [
        (name, step)
        for name, step in estimator.steps[:-1]
        if step is not None and step != "passthrough" and hasattr(step, "transform")
    ]
    return Pipeline(steps) if steps else None


@one_thread
def transformed(steps: Pipeline, X: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401 - an array, a sparse one or a data frame
    """Return the records after all of `steps`."""
    with plain_scikit_learn():
        for _, step in steps.steps:
            X = step.transform(X)
    return X


def before_last(estimator: BaseEstimator, X: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401 - as above
    """Return the input of the last step of a pipeline: dense, sparse, or a data frame."""
    steps = steps_before(estimator)
    return X if steps is None else transformed(steps, X)


def rows_of(records: Any) -> Any:  # noqa: ANN401 - see above
    """Return records that can be indexed by row and column number: an array, or a sparse one by rows."""
    return records.tocsr() if sparse.issparse(records) else np.asarray(records)


@contextmanager
def plain_scikit_learn() -> Iterator[None]:
    """Run scikit-learn with its default configuration: a worker does not have the user's."""
    with config_context(transform_output="default", assume_finite=False):
        yield


def is_committee(estimator: BaseEstimator) -> bool:
    """Return whether the estimator has members with probabilities of their own."""
    last = last_step(estimator)
    return isinstance(last, ENSEMBLES) or hasattr(last, "committee_proba")


def weight_name(estimator: BaseEstimator) -> str:
    """Return the argument of `fit` that takes the weights of records."""
    if not isinstance(estimator, Pipeline):
        return "sample_weight"
    name, last = estimator.steps[-1]
    return f"{name}__{weight_name(last)}"


def columns_of(estimator: BaseEstimator, seen: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Return the class codes of the columns of an estimator that was fitted on the numbers of the classes seen."""
    numbers = getattr(estimator, "classes_", None)
    if numbers is None:
        raise LearnerError(f"{kind_of(estimator)} is no classifier: it has no classes_ after its fit")
    if len(numbers) == 0 or not set(np.asarray(numbers).tolist()) <= set(range(len(seen))):
        raise LearnerError(
            f"`{kind_of(estimator)}.classes_` must be some of the codes it was fitted on, 0 to {len(seen) - 1}, got"
            f" {numbers!r}"
        )
    return tuple(seen[np.asarray(numbers, dtype=np.int64)].tolist())


def for_classes(estimator: BaseEstimator, seen: npt.NDArray[np.int64], classes: tuple[str, ...]) -> BaseEstimator:
    """Translate settings by class, such as class_weight, from names to the numbers of the classes in a fit."""
    number = {code: position for position, code in enumerate(seen.tolist())}
    changed = {}
    for name, value in parameters(estimator).items():
        if isinstance(value, Mapping) and any(ends_in(name, each) for each in _BY_CLASS):
            codes = codes_of(list(value), classes, what=name, codes=True).tolist()
            settings = zip(codes, value.values(), strict=True)
            changed[name] = {number[code]: setting for code, setting in settings if code in number}
    return estimator.set_params(**changed) if changed else estimator
