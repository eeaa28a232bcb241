"""Presets: learners by name, and estimators of one's own by `module:object`."""

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dal.errors import LearnerError

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


def _logistic(random_state: int) -> "BaseEstimator":
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=random_state))


def _forest(random_state: int) -> "BaseEstimator":
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=random_state)


def _hgb(random_state: int) -> "BaseEstimator":
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Early stopping would hold back a tenth of the labels, which are what costs here.
    return HistGradientBoostingClassifier(early_stopping=False, random_state=random_state)


def _mlp(random_state: int) -> "BaseEstimator":
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=500, random_state=random_state))


PRESETS: Mapping[str, Callable[[int], "BaseEstimator"]] = {
    "logistic": _logistic,
    "forest": _forest,
    "hgb": _hgb,
    "mlp": _mlp,
}
"""Functions of a seed, by name; scikit-learn is imported when one is called, so that reading the names is cheap."""


def import_estimator(name: str, what: str = "learner") -> "BaseEstimator":
    """Import ``module:object``; call it without arguments if it is a class or a factory.

    Parameters
    ----------
    name : str
        As ``module:object``.
    what : {"learner", "encoder", ...}
        What is wanted, for error messages: a ``learner`` must have `fit`, everything else `transform`.

    Raises
    ------
    LearnerError
        If there is no such module or object, or it cannot be called without arguments.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        presets = f"{', '.join(PRESETS)}, or " if what == "learner" else ""
        raise LearnerError(f"there is no {what} {name!r}; there are {presets}module:object")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LearnerError(f"expected a {what} at {name!r}, but {error}") from error
    wanted = "fit" if what == "learner" else "transform"
    is_factory = isinstance(found, type) or not hasattr(found, wanted)
    if not is_factory:
        return found
    try:
        return found()
    except TypeError as error:
        raise LearnerError(
            f"expected a {what}, which has {wanted}, or what gives one without arguments, at {name!r}: {error}"
        ) from error
