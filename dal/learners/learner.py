"""Learners: what dal needs from a scikit-learn classifier, and the fitted models that travel to the workers."""

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import joblib
import numpy as np
import numpy.typing as npt
import skops.io
from scipy import sparse
from scipy.special import expit
from sklearn import config_context
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from dal._threads import one_thread
from dal.classes import codes_of
from dal.errors import LabelError, LearnerError
from dal.learners.trees import FORESTS, Trees
from dal.scores import (
    OF_COMMITTEE,
    OF_GRADIENTS,
    OF_ONE_MODEL,
    Scored,
    of_committee,
    of_decisions,
    of_gradients,
    of_probabilities,
)
from dal.selection.strategy import usable

if TYPE_CHECKING:
    from distributed import Client

Floats = npt.NDArray[np.floating[Any]]

# Parts of scikit-learn's own estimators that skops does not list as safe by itself. None runs code when it is loaded.
_TRUSTED = (
    "collections.OrderedDict",
    "functools.partial",  # what it calls is looked at by itself
    "numpy.dtype",
    "scipy.interpolate._bsplines.BSpline",
    "scipy.interpolate._bsplines._BSpline",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
_TRUSTED_PARTS = (
    "scipy.sparse.",
    "sklearn.calibration.",
    "sklearn.feature_selection.",
    "sklearn.gaussian_process.",
    "sklearn.metrics._dist_metrics.",
    "sklearn.neighbors.",
    "sklearn.neural_network.",
)

# Rows scored at once where a learner cares; measured, see the scan's study of tile heights.
_TILE_ROWS = {
    "HistGradientBoostingClassifier": 4096,
    "RandomForestClassifier": 8192,
    "ExtraTreesClassifier": 8192,
}

_FORMAT = 2
_FORMATS = (1, 2)
"""The first one fitted estimators on the campaign's own codes, and did not say whether they take missing values."""


def _logistic(random_state: int) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=random_state))


def _forest(random_state: int) -> RandomForestClassifier:
    return RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=random_state)


def _hgb(random_state: int) -> HistGradientBoostingClassifier:
    # Early stopping would hold back a tenth of the labels, which are what costs here.
    return HistGradientBoostingClassifier(early_stopping=False, random_state=random_state)


def _mlp(random_state: int) -> Pipeline:
    return make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=500, random_state=random_state))


_PRESETS: Mapping[str, Callable[[int], BaseEstimator]] = {
    "logistic": _logistic,
    "forest": _forest,
    "hgb": _hgb,
    "mlp": _mlp,
}


_ENSEMBLES = (*FORESTS, VotingClassifier, BaggingClassifier)
FROM_ARRAYS = (*FORESTS, BaggingClassifier)
"""Those that take the names off their records before a member gets them."""

_BY_CLASS = ("class_weight", "class_weights", "sampling_strategy")
"""Parameters that may be mappings from a class to something."""

_FEW, _MORE = 48, 640
"""Records that a learner is tried on: some need more, as a PCA of 64 components does."""
_MOST_TRIED_BYTES = 256 * 2**20

_TAKES_MISSING: dict[str, bool] = {}
"""What was found out in this process, by the hash of an estimator: a replay fits it hundreds of times."""

_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "identity": lambda values: values,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda values: np.maximum(values, 0, out=values),
}
"""What follows a layer, by scikit-learn's names; what is given may be overwritten."""

BOOTSTRAPS = 10
"""Members of a committee that is made of a single learner."""

BLOCK_BYTES = 256 * 2**10
LEAST_BLOCK_ROWS = 64
FOLDED_MEANS = 4.0
"""A feature's mean, in its deviations, up to which a scaler is put into the coefficients."""


class Learner:
    """A scikit-learn classifier, and the classes of the campaign.

    Nothing is validated before `check`.

    Parameters
    ----------
    estimator
        Any classifier or pipeline with `predict_proba` or `decision_function`; only clones of it are fitted. Of a
        dask-ml ``ParallelPostFit`` or ``Incremental``, the estimator inside is taken.
    classes
        Names of all classes of the campaign; their positions are the class codes.
    trusted
        Types, as ``"module.Class"``, that a saved model may hold beside those of scikit-learn; loading runs their code.
    """

    def __init__(self, estimator: BaseEstimator, classes: Sequence[str], *, trusted: Sequence[str] = ()) -> None:
        self.estimator = _unwrapped(estimator)
        self.classes = tuple(classes)
        self.trusted = tuple(trusted)

    @classmethod
    def named(cls, name: str, classes: Sequence[str], *, random_state: int = 0, trusted: Sequence[str] = ()) -> Self:
        """Make the learner that a setting names.

        Parameters
        ----------
        name
            ``logistic``, ``forest``, ``hgb``, ``mlp``, or ``module:object``, where the object is an estimator or gives
            one when called without arguments.
        classes, trusted
            As for `Learner`.
        random_state
            Seed of the presets; an estimator of your own keeps the one that it has.

        Raises
        ------
        LearnerError
            If there is no such preset, module or object.

        Examples
        --------
        >>> Learner.named("sklearn.naive_bayes:GaussianNB", ["cat", "dog"]).estimator
        GaussianNB()
        """
        preset = _PRESETS.get(name)
        estimator = preset(random_state) if preset else imported(name)
        return cls(estimator, classes, trusted=trusted)

    @classmethod
    def of(
        cls,
        learner: str | BaseEstimator,
        classes: Sequence[str],
        *,
        random_state: int = 0,
        trusted: Sequence[str] = (),
    ) -> Self:
        """Make a learner of what is given as one: a name, as in `named`, or an estimator."""
        if isinstance(learner, str):
            return cls.named(learner, classes, random_state=random_state, trusted=trusted)
        return cls(learner, classes, trusted=trusted)

    def dumps(self) -> bytes:
        """Save the estimator, not fitted, as a skops archive.

        Raises
        ------
        LearnerError
            If the estimator holds something that cannot be saved.
        """
        return _archived({"format": _FORMAT, "estimator": _cloned(self.estimator)}, _kind(self.estimator))

    @classmethod
    def loads(cls, data: bytes, classes: Sequence[str], *, trusted: Sequence[str] = ()) -> Self:
        """Load what `dumps` saved, without running code of types that are not trusted."""
        return cls(_load(data, trusted)["estimator"], classes, trusted=trusted)

    def check(
        self,
        n_features: int,
        score: str = "margin",
        *,
        records: npt.NDArray[np.float32] | None = None,
        weighted: bool = False,
    ) -> None:
        """Try the learner the way a round uses it, so that it is refused before the first round and not after it.

        Parameters
        ----------
        n_features
            Width of the pool's records.
        score
            What records will be scored by; some scores need more than probabilities.
        records
            Some records of the pool, (n, d): counts, categories and shares are no normal numbers. Without any that the
            learner could be given, made-up normal ones are tried.
        weighted
            Whether labels will have weights.

        Raises
        ------
        LabelError
            With fewer than two classes, or a name that repeats.
        LearnerError
            If the estimator is no classifier, cannot be cloned or fitted, gives no probabilities or not what the score
            needs, or does not come back from a file as it was.
        """
        _check_classes(self.classes)
        _check_kind(self.estimator)
        if weighted and not self.takes_weights:
            raise LearnerError(f"the fit of {_kind(self.estimator)} must take sample_weight: the labels have weights")
        told = f"made-up records of {n_features} features"
        if records is not None:
            given = records[usable(records, missing=self.takes_missing(n_features))]
            if len(given):
                records, told = given, "records of the pool"
            else:
                records = None
        try:
            self._try_on(_FEW, n_features, score, records, weighted=weighted)
            return
        except LearnerError:
            pass
        try:
            self._try_on(_MORE, n_features, score, records, weighted=weighted)
        except LearnerError as error:
            raise LearnerError(f"tried on {told}: {error}") from error

    def takes_missing(self, n_features: int) -> bool:
        """Say whether the learner takes records with missing (NaN) features: it is tried on made-up ones.

        It does if a fit on complete records and a fit on incomplete ones both give probabilities of incomplete ones,
        and the second predicts them hardly worse than a fit on complete records predicts complete ones. What an
        estimator says of itself is not looked at: the tag of a pipeline is that of its first step.

        Parameters
        ----------
        n_features
            Width of the records.
        """
        try:
            key = joblib.hash((self.estimator, n_features))
        except Exception:  # what cannot be pickled is tried each time
            return self._tried_missing(n_features)
        if key not in _TAKES_MISSING:
            _TAKES_MISSING[key] = self._tried_missing(n_features)
        return _TAKES_MISSING[key]

    def _tried_missing(self, n_features: int) -> bool:
        for n in _FEW, _tried_rows(_MORE, n_features):
            # Numbers around zero are nothing to a learner of counts, and some scalers leave nothing of small counts.
            made = _made_up_records(n, n_features, 2), _made_up_counts(n, n_features)
            found = [self._tried_missing_on(*each) for each in made]
            if any(each is not None for each in found):
                return any(found)
        return False

    def _tried_missing_on(self, X: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]) -> bool | None:
        """Say whether the learner takes such records with gaps; None if it does not take them without any either."""
        try:
            complete = self._try_fit(X, codes)
            right = (complete.predict_proba(X).argmax(axis=1) == codes).mean()
        except LearnerError:
            return None
        incomplete = X.copy()
        rows = np.arange(len(X))
        # One feature of two records in three, each feature in turn, so that no class lacks one.
        incomplete[rows[rows % 3 > 0], (rows // 3 % X.shape[1])[rows % 3 > 0]] = np.nan
        try:
            for model in (complete, self._try_fit(incomplete, codes)):
                predicted = model.predict_proba(incomplete)
                if not np.isfinite(predicted).all():
                    return False
        except LearnerError:
            return False
        return bool((predicted.argmax(axis=1) == codes).mean() >= right - 0.25)

    @property
    def takes_weights(self) -> bool:
        """Whether a weight can be given to each record."""
        estimator = self.estimator
        while isinstance(estimator, Pipeline):
            # Records that a step draws again are no longer those that have the weights.
            if any(hasattr(step, "fit_resample") for _, step in estimator.steps):
                return False
            estimator = estimator.steps[-1][1]
        return bool(has_fit_parameter(estimator, "sample_weight"))

    def fit(
        self,
        X: npt.ArrayLike,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        committee: bool = False,
    ) -> "Model":
        """Fit a clone of the estimator on one thread.

        The model is given as it comes back from its file. Saving may change the layout of an array in memory, and with
        it the last bits of a prediction; so what is used here is the same that workers load.

        Parameters
        ----------
        X
            Records, (n, d); taken as float32.
        labels
            Class codes, (n,): positions in `classes`. Not all of them need to be there.
        sample_weight
            Weights of the records, (n,).
        committee
            Whether the model will be asked for a committee. Where the estimator is none by itself, ten clones are
            fitted beside it, each on a bootstrap of every class's records.

        Raises
        ------
        LearnerError
            If fewer than two classes are among the labels, or the estimator refuses the data, or cannot be saved.
        """
        model = self.try_fit(X, labels, sample_weight, committee=committee)
        model = replace(model, takes_missing=self.takes_missing(model.n_features))
        return Model.loads(model.dumps(), trusted=self.trusted)

    def _bootstraps(
        self, X: npt.ArrayLike, labels: npt.ArrayLike, sample_weight: npt.ArrayLike | None, count: int = BOOTSTRAPS
    ) -> tuple[BaseEstimator, ...]:
        """Fit clones on bootstraps, resampled within each class: no member may miss a rare one."""
        records, codes = np.asarray(X, dtype=np.float32), np.asarray(labels)
        rng = np.random.default_rng(0)
        members = []
        for _ in range(count):
            parts = [np.flatnonzero(codes == code) for code in np.unique(codes)]
            drawn = np.concatenate([part[rng.integers(0, len(part), len(part))] for part in parts])
            weights = None if sample_weight is None else np.asarray(sample_weight)[drawn]
            members.append(self._try_fit(records[drawn], codes[drawn], weights).estimator)
        return tuple(members)

    def try_fit(
        self,
        X: npt.ArrayLike,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        committee: bool = False,
    ) -> "Model":
        """Fit as `fit` does, without the way through a file: for a model that is looked at once and thrown away.

        Its predictions may differ in their last bits from those of a model that was saved.
        """
        model = self._try_fit(X, labels, sample_weight)
        if committee and not _is_committee(model.estimator):
            model = replace(model, bootstraps=self._bootstraps(X, labels, sample_weight))
        return model

    def _try_fit(self, X: npt.ArrayLike, labels: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> "Model":
        records = np.ascontiguousarray(X, dtype=np.float32)
        codes = _class_codes(labels, len(records), self.classes)
        # A feature that no labelled record has yet is no reason to refuse a fit, as some estimators do.
        if (absent := np.isnan(records).all(axis=0)).any():
            records = np.where(absent, np.float32(0), records)
        # Some estimators want the classes of a fit to be 0 to k-1, and a fit may not have seen all of the campaign's.
        seen, encoded = np.unique(codes, return_inverse=True)
        estimator = _for_classes(_single_threaded(_cloned(self.estimator)), seen, self.classes)
        weights = {} if sample_weight is None else {_weight_name(estimator): np.asarray(sample_weight)}
        with warnings.catch_warnings(record=True) as caught, one_thread, _plain_scikit_learn():
            warnings.simplefilter("always")
            try:
                estimator.fit(records, encoded, **weights)
            except Exception as error:
                raise LearnerError(
                    f"{_kind(estimator)} could not be fitted on {len(codes)} labels of {len(seen)} classes: {error}"
                ) from error
        said = dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in caught)
        return Model(
            estimator, self.classes, records.shape[1], _codes_of(estimator, seen), tuple(said), trusted=self.trusted
        )

    def tuned(
        self, X: npt.ArrayLike, labels: npt.ArrayLike, grid: Mapping[str, Sequence[Any]], client: "Client"
    ) -> Self:
        """Search the estimator's parameters by five-fold cross-validation on the cluster.

        Parameters
        ----------
        X, labels
            As for `fit`.
        grid
            Values to try of each parameter, named as in ``estimator.get_params()``.
        client
            Client of the cluster that fits the folds.

        Returns
        -------
        Learner
            With the parameters of the best mean accuracy, not fitted.

        Raises
        ------
        LearnerError
            If the estimator has no such parameter, or the labels cannot be fitted.
        """
        # Takes seconds to import, and nothing else here needs it.
        from dask_ml.model_selection import GridSearchCV

        unknown = set(grid) - set(_parameters(self.estimator))
        if unknown:
            raise LearnerError(
                f"{_kind(self.estimator)} has no {sorted(unknown)}; it has {sorted(_parameters(self.estimator))}"
            )
        records = np.ascontiguousarray(X, dtype=np.float32)
        codes = _class_codes(labels, len(records), self.classes)
        seen, encoded = np.unique(codes, return_inverse=True)
        estimator = _for_classes(_single_threaded(_cloned(self.estimator)), seen, self.classes)
        search = GridSearchCV(estimator, grid, cv=5, scoring="accuracy", scheduler=client, refit=False)
        with client.as_current():  # dask-ml waits for its futures on the current client, whatever its scheduler is
            search.fit(records, encoded)
        best = int(np.argmax(search.cv_results_["mean_test_score"]))
        estimator = _cloned(self.estimator).set_params(**search.cv_results_["params"][best])
        return type(self)(estimator, self.classes, trusted=self.trusted)

    def _try_on(
        self,
        n: int,
        n_features: int,
        score: str,
        records: npt.NDArray[np.float32] | None,
        *,
        weighted: bool,
    ) -> None:
        n = _tried_rows(n, n_features)
        if records is None:
            X, codes = _made_up_records(n, n_features, len(self.classes))
            others = X
        else:
            X = records[np.arange(n) % len(records)]
            codes, others = _made_up_codes(X, len(self.classes)), records
        weights = np.ones(len(X)) if weighted else None
        model = self.try_fit(X, codes, weights)
        if score == OF_GRADIENTS:
            model.layer_inputs(X[:1])
        predicted = model.predict_proba(X)
        _check_probabilities(predicted, model.kind)
        loaded = Model.loads(model.dumps(), trusted=self.trusted)
        # not bit by bit: see `fit`
        if not np.allclose(loaded.predict_proba(X), predicted, rtol=0, atol=1e-4, equal_nan=True):
            raise LearnerError(f"{model.kind} predicts differently after it was saved and loaded")
        if score in OF_COMMITTEE:
            if not _is_committee(loaded.estimator):
                loaded = replace(loaded, bootstraps=self._bootstraps(X, codes, weights, count=2))
            for member in loaded.committee(X):
                _check_probabilities(member, model.kind)
        # As on a worker: records that the fit has not seen are among those of the pool.
        _check_probabilities(loaded.predict_proba(others), model.kind)
        if score != "random":
            scored = score_block(score, loaded.for_score(score), others).score
            _check_few(~np.isfinite(scored), f"{model.kind}: the score {score}")


@one_thread
def score_block(name: str, model: "Model", X: npt.NDArray[np.float32]) -> Scored:
    """Score a block of records with a model.

    A network, which a logistic regression is as well, is scored from its decision values, computed class-major by
    products of blocks: the same as from ``predict_proba`` within 1e-6, and twice as fast. With hidden layers, either is
    as near to the exact value as single precision allows.

    Returns
    -------
    Scored
        ``predicted`` holds positions in ``model.seen``.
    """
    try:
        return _scored(name, model, X)
    except LearnerError:
        raise
    except Exception as error:  # of a step before the last one: anybody's code, with anybody's exceptions
        raise LearnerError(f"a step before {model.kind} refused records of shape {X.shape}: {error}") from error


def _scored(name: str, model: "Model", X: npt.NDArray[np.float32]) -> Scored:
    if name in OF_ONE_MODEL and model.network is not None:
        with np.errstate(all="ignore"):
            return of_decisions(name, model.network.decisions(X), len(model.classes))
    # Columns of unseen classes are zero and never the first; all classes count, for the score's normalisation.
    if name in OF_COMMITTEE:
        scored = of_committee(name, model.committee(X))
    elif name == OF_GRADIENTS:
        scored = of_gradients(model.predict_proba(X), model.layer_inputs(X))
    else:
        scored = of_probabilities(name, model.predict_proba(X))
    return scored._replace(predicted=np.searchsorted(model.seen, scored.predicted))


@dataclass(frozen=True, eq=False)
class Network:
    """Decision values as matrix products: of a logistic regression, and of a network with layers before that.

    ``predict_proba`` is their softmax; where there is one, its sigmoid is the probability of the second class seen.

    Parameters
    ----------
    coef
        (C', h), float32; columns contiguous, which is the faster side for short blocks.
    intercept
        (C',).
    hidden
        Weights (d, h) and intercepts (h,) of the layers before, the first one first.
    activation
        Name of what follows each of those.
    steps
        What is done to the records before; None where the products take them as they are.
    """

    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[Any]
    hidden: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    activation: str
    steps: Pipeline | None

    @property
    def block_rows(self) -> int:
        """Height of a block, a power of two: of 256 KiB, so that it is in the core's cache when it is multiplied."""
        width = len(self.hidden[0][0]) if self.hidden else self.coef.shape[1]
        most = max(LEAST_BLOCK_ROWS, BLOCK_BYTES // (4 * width))
        return int(1 << (most.bit_length() - 1))

    @one_thread
    def decisions(self, X: npt.NDArray[np.float32]) -> Floats:
        """Decision values of records, class-major: (C', n)."""
        records = X if self.steps is None else _rows_of(_transformed(self.steps, X))
        values = np.empty((len(self.coef), len(X)), dtype=np.float32)
        for start in range(0, len(X), self.block_rows):
            part = slice(start, start + self.block_rows)
            self.decide(records[part], values[:, part])
        return values

    def decide(self, block: Any, values: Floats) -> None:  # noqa: ANN401 - records, dense or sparse
        """Fill `values`, (C', n), with the decision values of one block of records that need no steps.

        All values of a record with a feature that is not finite are not finite either.
        """
        finite: npt.NDArray[np.bool_] | None = None
        for weights, intercepts in self.hidden:
            sums = block @ weights
            sums += intercepts
            # What is not finite makes every sum over the features so, but an activation may hide it.
            finite = np.isfinite(sums[:, 0]) if finite is None else finite
            block = _ACTIVATIONS[self.activation](sums)
        if sparse.issparse(block):
            values[:] = (block @ self.coef.T).T
        else:
            np.matmul(self.coef, block.T, out=values)
        values += self.intercept[:, None]
        if finite is not None:
            values[:, ~finite] = np.nan


def _network(estimator: BaseEstimator) -> Network | None:
    last = _last_step(estimator)
    if type(last) is LogisticRegression:
        # One-versus-rest is no softmax.
        if last.coef_.dtype != np.float32 or (last.solver == "liblinear" and len(last.coef_) > 1):
            return None
        layers = [(last.coef_.T, last.intercept_)]
        activation = "identity"
    elif type(last) is MLPClassifier:
        if last.coefs_[0].dtype != np.float32:
            return None
        layers = list(zip(last.coefs_, last.intercepts_, strict=True))
        activation = last.activation
    else:
        return None
    steps = _steps_before(estimator)
    if steps is not None and (folded := _folded(steps, *layers[0])) is not None:
        layers[0], steps = folded, None
    *hidden, (weights, intercept) = layers
    return Network(np.asfortranarray(weights.T), intercept, tuple(hidden), activation, steps)


def _folded(
    steps: Pipeline, weights: npt.NDArray[np.float32], intercept: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Put a StandardScaler into the first layer's weights, which saves two passes over the records.

    Only where every feature's mean is within a few of its deviations: far from zero, the product would subtract large
    numbers from each other in single precision, and no longer equal ``predict_proba`` within 1e-6.
    """
    scaler = steps[0]
    plain = len(steps) == 1 and type(scaler) is StandardScaler and scaler.with_mean and scaler.with_std
    if not plain or np.max(np.abs(scaler.mean_) / scaler.scale_) > FOLDED_MEANS:
        return None
    scaled = weights.astype(np.float64) / scaler.scale_[:, None]
    return scaled.astype(np.float32), (intercept - scaler.mean_ @ scaled).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted learner. Made by `Learner.fit` or `Model.loads`, and never changed.

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
        What the estimator warned of while it was fitted, such as a fit that did not converge.
    trusted
        Types that a process which loads the saved model must trust beside those of scikit-learn.
    bootstraps
        Clones of the estimator fitted on bootstraps, where a committee was wanted and the estimator is none.
    takes_missing
        Whether records with missing (NaN) features may be asked of it; see `Learner.takes_missing`.
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
        return _kind(self.estimator)

    @cached_property
    def seen(self) -> npt.NDArray[np.int64]:
        """Codes of the classes that the fit has seen, in the order of the estimator's columns."""
        return np.asarray(self.codes, dtype=np.int64)

    @property
    def tile_rows(self) -> int | None:
        """How many rows at once suit the estimator; None where it does not matter."""
        return _TILE_ROWS.get(self.kind)

    @cached_property
    def network(self) -> Network | None:
        """The decision values of a logistic regression or a network as matrix products; None of any other estimator."""
        return _network(self.estimator)

    @one_thread
    def decision_function(self, X: npt.NDArray[np.float32]) -> Floats | None:
        """Give the decision values (n, C') of the classes seen, where C' may be 1 if they are two; None without any."""
        if not hasattr(self.estimator, "decision_function"):
            return None
        values = self._called("decision_function", X)
        values = values.reshape(len(values), -1)
        columns = 1 if len(self.seen) == 2 and values.shape[1] != 2 else len(self.seen)
        return self._checked(values, X.shape[0], columns, "decision_function")

    @one_thread
    def predict_proba(self, X: npt.NDArray[np.float32]) -> Floats:
        """Probabilities (n, C) of all classes of the campaign; 0 for those that the fit has not seen.

        An estimator that has only a `decision_function` gives the softmax of its values (the sigmoid for two classes):
        these order the records, but are not calibrated.

        Raises
        ------
        LearnerError
            If what the estimator returns has another shape. A row of it that is not finite, as of a record so far from
            all others that the estimator overflows, is given as it is.
        """
        return self._aligned(self._seen_probabilities(X))

    def _aligned(self, probabilities: Floats) -> Floats:
        if np.array_equal(self.seen, np.arange(len(self.classes))):
            return probabilities
        aligned = np.zeros((len(probabilities), len(self.classes)), dtype=probabilities.dtype)
        aligned[:, self.seen] = probabilities
        return aligned

    def committee(self, X: npt.NDArray[np.float32]) -> Iterator[Floats]:
        """Probabilities (n, C) of one member of the committee after another; never of all at once.

        The members are the trees of a forest, the estimators of a ``VotingClassifier`` or ``BaggingClassifier``, what
        an estimator's own method ``committee_proba(X)`` yields, such as passes with different dropout masks (the same
        masks for all records), or else the bootstraps of the fit.

        Raises
        ------
        LearnerError
            If there is no committee.
        """
        last = _last_step(self.estimator)
        ensemble = _is_committee(self.estimator)
        if not ensemble and not self.bootstraps:
            raise LearnerError(f"this {self.kind} has no committee: fit it with committee=True")
        # Bootstraps are whole pipelines; members of a pipeline's last step take what its first steps give.
        records = _before_last(self.estimator, X) if ensemble else X
        if hasattr(last, "committee_proba"):
            for probabilities in last.committee_proba(records):
                yield self._aligned(self._checked(np.asarray(probabilities), len(X), len(self.seen), "committee_proba"))
            return
        if isinstance(last, FROM_ARRAYS):
            # Their members are fitted on what the ensemble makes of its records, which has no names of columns.
            records = _rows_of(records)
        for model, columns in self._members:
            yield model.predict_proba(records if columns is None else records[:, columns])

    @cached_property
    def _members(self) -> "list[tuple[Model, npt.NDArray[np.integer[Any]] | None]]":
        last = _last_step(self.estimator)
        if not isinstance(last, _ENSEMBLES):
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
        """Give what goes into the last, linear softmax layer (n, h): of a logistic regression, or of a network.

        Sparse, where a logistic regression is given sparse records.

        Raises
        ------
        LearnerError
            If the estimator has no such layer.
        """
        last = _last_step(self.estimator)
        records = _before_last(self.estimator, X)
        if isinstance(last, LogisticRegression):
            return _rows_of(records)
        if not isinstance(last, MLPClassifier):
            raise LearnerError(
                f"expected gradient lengths are those of a linear softmax layer, which {self.kind} has not: use"
                " LogisticRegression or MLPClassifier, or another score"
            )
        activate, records = _ACTIVATIONS[last.activation], _rows_of(records)
        for weights, intercepts in zip(last.coefs_[:-1], last.intercepts_[:-1], strict=True):
            records = activate(records @ weights + intercepts)
        return records

    def for_score(self, score: str) -> "Model":
        """Give a copy for workers that will ask for this score alone: of a forest, mostly without its own trees.

        Those are most of its bytes, and the trees as they are laid out for scoring a third of them.
        """
        # The first steps of a pipeline may give values that only scikit-learn's own trees know what to do with.
        if type(self.estimator) not in FORESTS or self._trees is None or score in (*OF_COMMITTEE, OF_GRADIENTS):
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
        """SHA-256 of what `dumps` gives."""
        return hashlib.sha256(self.dumps()).hexdigest()

    @cached_property
    def _archive(self) -> bytes:
        # Kept, because an archive carries the time: saved twice, a model would have two digests.
        content = {
            "format": _FORMAT,
            "estimator": self.estimator,
            "classes": list(self.classes),
            "n_features": self.n_features,
            "codes": list(self.codes),
            "takes_missing": self.takes_missing,
            "warnings": list(self.warnings),
            # An archive each: saving takes the square of the number of parts, which boosting has thousands of.
            "bootstraps": [_archived({"format": _FORMAT, "estimator": each}, self.kind) for each in self.bootstraps],
        }
        return _archived(content, self.kind)

    @classmethod
    def loads(cls, data: bytes, trusted: Sequence[str] = ()) -> Self:
        """Load what `dumps` saved, without running code of types that are not trusted.

        Raises
        ------
        LearnerError
            If the data is no model, or holds types that are neither scikit-learn's nor `trusted`.
        """
        content = _load(data, trusted)
        model = cls(
            content["estimator"],
            tuple(content["classes"]),
            int(content["n_features"]),
            tuple(content["codes"] if "codes" in content else content["estimator"].classes_.tolist()),
            tuple(content["warnings"]),
            tuple(trusted),
            tuple(_load(each, trusted)["estimator"] for each in content.get("bootstraps", ())),
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
        return Trees.of(_last_step(self.estimator))

    def _called(self, method: str, X: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        try:
            # What overflows shows in the result, which is looked at; a warning for every tile says no more.
            with np.errstate(all="ignore"), _plain_scikit_learn():
                if method == "predict_proba" and self._trees is not None:
                    records = _before_last(self.estimator, X)
                    probabilities = None if sparse.issparse(records) else self._trees.predict_proba(np.asarray(records))
                    if probabilities is not None:
                        return probabilities
                return np.asarray(getattr(self.estimator, method)(X))
        except Exception as error:  # anybody's code, with anybody's exceptions
            raise LearnerError(f"{self.kind}.{method} refused records of shape {X.shape}: {error}") from error

    def _checked(self, values: npt.NDArray[Any], rows: int, columns: int, method: str) -> Floats:
        if values.shape != (rows, columns):
            raise LearnerError(f"{self.kind}.{method}: expected shape {(rows, columns)}, got {values.shape}")
        return values


def _unwrapped(estimator: BaseEstimator) -> BaseEstimator:
    """Take the estimator out of dask-ml's wrappers, known by name because importing dask-ml takes seconds."""
    while any(
        kind.__module__.startswith("dask_ml.") and kind.__name__ == "ParallelPostFit"
        for kind in type(estimator).__mro__
    ):
        estimator = estimator.estimator
    return estimator


def imported(name: str, what: str = "learner") -> BaseEstimator:
    """Import an estimator that is named as module:object, or is given by what is named so.

    Raises
    ------
    LearnerError
        There is no such module or object.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        presets = f"{', '.join(_PRESETS)}, or " if what == "learner" else ""
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


def _check_classes(classes: tuple[str, ...]) -> None:
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise LabelError(f"expected at least two classes, no name twice, got {list(classes)}")


def _check_kind(estimator: BaseEstimator) -> None:
    if isinstance(estimator, type):
        raise LearnerError(f"expected an estimator such as {estimator.__name__}(), got the class {estimator.__name__}")
    if not hasattr(estimator, "fit"):
        raise LearnerError(f"expected a scikit-learn classifier, got {type(estimator).__name__}, which has no fit")
    if hasattr(estimator, "__sklearn_tags__") and is_regressor(estimator):
        raise LearnerError(f"expected a classifier, got the regressor {_kind(estimator)}")
    for name, value in _parameters(estimator).items():
        if _ends(name, "decision_function_shape") and value == "ovo":
            raise LearnerError(f"expected one decision value a class: set {name}='ovr' instead of 'ovo'")
        if isinstance(estimator, VotingClassifier | Pipeline) and _ends(name, "voting") and value == "hard":
            raise LearnerError(f"votes alone are no probabilities to score by: set {name}='soft' instead of 'hard'")


def _codes_of(estimator: BaseEstimator, seen: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Give the codes of an estimator's columns, which was fitted on the numbers of the classes seen."""
    numbers = getattr(estimator, "classes_", None)
    if numbers is None:
        raise LearnerError(f"{_kind(estimator)} is no classifier: it has no classes_ after its fit")
    if len(numbers) == 0 or not set(np.asarray(numbers).tolist()) <= set(range(len(seen))):
        raise LearnerError(
            f"{_kind(estimator)}.classes_: expected some of the codes it was fitted on, 0 to {len(seen) - 1}, got"
            f" {numbers!r}"
        )
    return tuple(seen[np.asarray(numbers, dtype=np.int64)].tolist())


def _for_classes(estimator: BaseEstimator, seen: npt.NDArray[np.int64], classes: tuple[str, ...]) -> BaseEstimator:
    """Put what is set by class, such as class_weight, in terms of the numbers that a fit knows the classes by."""
    number = {code: position for position, code in enumerate(seen.tolist())}
    changed = {}
    for name, value in _parameters(estimator).items():
        if isinstance(value, Mapping) and any(_ends(name, each) for each in _BY_CLASS):
            codes = codes_of(list(value), classes, what=name, codes=True).tolist()
            settings = zip(codes, value.values(), strict=True)
            changed[name] = {number[code]: setting for code, setting in settings if code in number}
    return estimator.set_params(**changed) if changed else estimator


def _check_probabilities(probabilities: Floats, kind: str) -> None:
    bad = ~np.isfinite(probabilities).all(axis=1)
    _check_few(bad, f"{kind}.predict_proba")
    probabilities = probabilities[~bad]
    low, high = float(np.min(probabilities)), float(np.max(probabilities))
    sums = probabilities.sum(axis=1)
    if low < 0 or np.abs(sums - 1).max() > 1e-3:
        raise LearnerError(
            f"{kind}.predict_proba: expected probabilities, got values from {low:.3g} to {high:.3g} "
            f"with row sums from {np.min(sums):.3g} to {np.max(sums):.3g}"
        )


def _check_few(bad: npt.NDArray[np.bool_], what: str) -> None:
    # A scan asks no record that overflows an estimator, being far from all others; where many do, it is broken.
    if 10 * np.count_nonzero(bad) > len(bad):
        raise LearnerError(f"{what}: {np.count_nonzero(bad)} of {len(bad)} rows hold values that are not finite")


def _class_codes(labels: npt.ArrayLike, n_records: int, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    codes = np.asarray(labels)
    if codes.shape != (n_records,):
        raise LearnerError(f"expected one label a record, got {codes.shape} labels for {n_records} records")
    if n_records and (codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= len(classes)):
        raise LearnerError(
            f"expected class codes from 0 to {len(classes) - 1}, got {codes.dtype} {np.unique(codes)[:10]}"
        )
    present = np.unique(codes)
    if len(present) < 2:
        names = ", ".join(classes[code] for code in present) or "none"
        raise LearnerError(
            f"expected labels of at least two classes, got {n_records} of one ({names}): label more records, "
            "or import labels of another class"
        )
    return codes.astype(np.int64)


def _cloned(estimator: BaseEstimator) -> BaseEstimator:
    try:
        return clone(estimator)
    except (TypeError, RuntimeError) as error:
        raise LearnerError(f"{_kind(estimator)} cannot be cloned as scikit-learn does it: {error}") from error


def _parameters(estimator: BaseEstimator) -> dict[str, Any]:
    return dict(estimator.get_params(deep=True)) if hasattr(estimator, "get_params") else {}


def _single_threaded(estimator: BaseEstimator) -> BaseEstimator:
    """Set every `n_jobs` to 1, however deep; None is left alone: it means 1, and some estimators warn of any number."""
    numbers = [name for name, value in _parameters(estimator).items() if _ends(name, "n_jobs") and value is not None]
    return estimator.set_params(**dict.fromkeys(numbers, 1))


def _ends(name: str, parameter: str) -> bool:
    """Whether a name such as ``bagging__estimator__n_jobs`` ends in this parameter."""
    return name.rpartition("__")[2] == parameter


def _last_step(estimator: BaseEstimator) -> BaseEstimator:
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _steps_before(estimator: BaseEstimator) -> Pipeline | None:
    """Give the steps that change a record before the last step of a pipeline gets it; None where there are none.

    Those that draw records again (imbalanced-learn's) do so in a fit alone.
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
def _transformed(steps: Pipeline, X: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401 - what the last of them gives
    with _plain_scikit_learn():
        for _, step in steps.steps:
            X = step.transform(X)
    return X


def _before_last(estimator: BaseEstimator, X: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401 - as above
    """Give the records as the last step of a pipeline gets them: dense, sparse, or a data frame."""
    steps = _steps_before(estimator)
    return X if steps is None else _transformed(steps, X)


def _rows_of(records: Any) -> Any:  # noqa: ANN401 - see above
    """Give records from which rows and columns can be taken by number: an array, or a sparse one by rows."""
    return records.tocsr() if sparse.issparse(records) else np.asarray(records)


@contextmanager
def _plain_scikit_learn() -> Iterator[None]:
    """Set aside what a user has configured for all of scikit-learn: a worker is another process, without it."""
    with config_context(transform_output="default", assume_finite=False):
        yield


def _is_committee(estimator: BaseEstimator) -> bool:
    last = _last_step(estimator)
    return isinstance(last, _ENSEMBLES) or hasattr(last, "committee_proba")


def _kind(estimator: BaseEstimator) -> str:
    return type(_last_step(estimator)).__name__


def _weight_name(estimator: BaseEstimator) -> str:
    if not isinstance(estimator, Pipeline):
        return "sample_weight"
    name, last = estimator.steps[-1]
    return f"{name}__{_weight_name(last)}"


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


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
    """Cut records into classes of one size that can be learned: by their rank along one direction."""
    with np.errstate(all="ignore"):
        largest = np.nanmax(np.abs(np.where(np.isnan(X), 0, X)), axis=0)
        scaled = np.where(np.isnan(X) | (largest == 0), 0, X / np.where(largest == 0, 1, largest))
    along = scaled @ np.random.default_rng(0).standard_normal(X.shape[1])
    codes = np.empty(len(X), dtype=np.int64)
    codes[np.argsort(along, kind="stable")] = np.arange(len(X)) * min(n_classes, 3) // len(X)
    return codes


def _archived(content: dict[str, Any], kind: str) -> bytes:
    try:
        return bytes(skops.io.dumps(content))
    except Exception as error:
        raise LearnerError(f"{kind} cannot be saved with skops: {error}") from error


def _load(data: bytes, trusted: Sequence[str]) -> dict[str, Any]:
    try:
        found = skops.io.get_untrusted_types(data=data)
    except Exception as error:
        raise LearnerError(
            f"expected a model saved by dal, got {len(data)} bytes that skops cannot read: {error}"
        ) from error
    own = [name for name in found if name in _TRUSTED or name.startswith(_TRUSTED_PARTS)]
    _check_foreign([name for name in found if name not in {*own, *trusted}])
    try:
        content = skops.io.loads(data, trusted=[*own, *trusted])
    except Exception as error:
        raise LearnerError(f"the saved model cannot be loaded: {error}") from error
    if not isinstance(content, dict):
        raise LearnerError(f"expected a model saved by dal, got a saved {type(content).__name__}")
    if content.get("format") not in _FORMATS:
        raise LearnerError(f"expected a model of format {_FORMAT}, got format {content.get('format')!r}")
    return content


def _check_foreign(names: Sequence[str]) -> None:
    nameless = [name for name in names if "<" in name or name.startswith("__main__.")]
    if nameless:
        raise LearnerError(
            f"the model holds {', '.join(nameless)}, which other processes cannot find by name when they load it: "
            "define it at the top level of a module that they can import, without a lambda"
        )
    if names:
        raise LearnerError(
            f"the model holds types that are not trusted: {', '.join(names)}. "
            f"If you trust their code, name them: trusted={list(names)!r}"
            f" ({' '.join(f'--trust {name}' for name in names)})"
        )
