"""Presets: learners by name, and estimators of one's own by `module:object`."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dal import plugins
from dal.errors import LearnerError

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


MANY = "sgd"
"""The preset for many labels: `logistic`, fitted in bounded memory."""


def _logistic(random_state: int) -> "BaseEstimator":  # noqa: ARG001 - nothing is drawn
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    from dal.learners.penalty import TunedLogisticRegression

    # Named as scikit-learn's own, for grids of C that people have.
    return Pipeline([("standardscaler", StandardScaler()), ("logisticregression", TunedLogisticRegression())])


def _head(random_state: int) -> "BaseEstimator":
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    # Of embeddings the direction counts. Their products with a few labels' weights are small, so the penalty must be.
    # No choice by the labels there are has paid (decision 0022).
    return make_pipeline(Normalizer(), LogisticRegression(C=100, max_iter=1000, random_state=random_state))


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


def _sgd(random_state: int) -> "BaseEstimator":
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from dal.learners.blocks import InBlocks

    # A network without hidden layers is a logistic regression. SGDClassifier takes as long, is one against the others,
    # and is not scored by products of matrices (decision 0034).
    return InBlocks(make_pipeline(StandardScaler(), MLPClassifier((), random_state=random_state)))


class Preset(Protocol):
    """A learner by name: a function of a seed that returns a scikit-learn classifier, not fitted.

    Imports of heavy libraries belong into its body. Estimators of other libraries than scikit-learn need their types
    in the setting ``trusted``, because models are loaded without running code that is not known.

    See Also
    --------
    dal.testing.LearnerContract : the tests to subclass for a preset of one's own.

    Examples
    --------
    >>> def nearest(random_state):
    ...     from sklearn.neighbors import KNeighborsClassifier
    ...
    ...     return KNeighborsClassifier(n_neighbors=3)
    >>> nearest(random_state=0)
    KNeighborsClassifier(n_neighbors=3)
    """

    def __call__(self, random_state: int) -> "BaseEstimator":
        """Return a classifier that is not fitted.

        Parameters
        ----------
        random_state : int
            Decides what the fit draws: the same seed gives the same model.
        """


PRESETS: Mapping[str, Preset] = {
    "logistic": _logistic,
    "head": _head,
    "forest": _forest,
    "hgb": _hgb,
    "mlp": _mlp,
    MANY: _sgd,
}
"""Functions of a seed, by name; scikit-learn is imported when one is called, so that reading the names is cheap."""


def chosen_or_default(estimator: Any, encoder: str | None) -> Any:  # noqa: ANN401 - as `Learner.of` takes it
    """Return the learner that was chosen; where none was, the name of the preset that suits the pool.

    Parameters
    ----------
    estimator : str, estimator or Preset
        Empty where none was chosen.
    encoder : str or None
        The id of the encoder that made the pool's features: they are embeddings where there is one.
    """
    if isinstance(estimator, str) and not estimator:
        return "logistic" if encoder is None else "head"
    return estimator


def import_estimator(name: str, what: str = "estimator", random_state: int = 0) -> "BaseEstimator":
    """Return the estimator that a name stands for.

    Parameters
    ----------
    name : str
        ``module:object``, or of a learner the name of an entry point in the group ``dal.learners``. A class or a
        factory is called without arguments, a function that has the parameter `random_state` with that. A class of
        `torch` networks becomes a :class:`dal.learners.deep.TorchClassifier`.
    what : {"estimator", "vectoriser", ...}
        What is wanted, for error messages: an ``estimator`` must have `fit`, everything else `transform`.
    random_state : int, default=0

    Raises
    ------
    LearnerError
        If there is no such module or object, or it cannot be called so.
    """
    is_learner = what == "estimator"
    slot = plugins.Slot(what, "dal.learners" if is_learner else None, tuple(PRESETS) * is_learner, LearnerError)
    found = plugins.find(name, slot)
    wanted = "fit" if is_learner else "transform"
    if is_learner:
        from dal.learners.deep import adapted  # brings scikit-learn, which the names of the presets do without

        found = adapted(found, random_state)
    if not isinstance(found, type) and hasattr(found, wanted):
        return found
    return made(found, wanted, name, random_state)


def made(factory: Any, wanted: str, name: str, random_state: int) -> "BaseEstimator":  # noqa: ANN401 - anybody's
    """Return what a class, a factory or a preset gives when it is called."""
    seeded = inspect.isfunction(factory) and "random_state" in plugins.parameter_names(factory)
    try:
        return factory(**{"random_state": random_state} if seeded else {})
    except TypeError as error:
        raise LearnerError(
            f"`{name}` must have {wanted}, or give what has it when it is called without arguments, got"
            f" {type(factory).__name__}; {error}."
        ) from error
