"""Learners: a scikit-learn classifier and the classes of a campaign, fitted on one thread."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import has_fit_parameter

from dal._distribution import needs
from dal._threads import one_thread
from dal.errors import LearnerError
from dal.learners import checks
from dal.learners.archive import FORMAT, archived, load
from dal.learners.blocks import InBlocks, Source, inside, part_of
from dal.learners.checks import class_codes
from dal.learners.deep import TorchClassifier, adapted, deep_of, has_gpu
from dal.learners.estimators import (
    cloned,
    columns_of,
    for_classes,
    is_committee,
    kind_of,
    last_step,
    parameters,
    plain_scikit_learn,
    single_threaded,
    unwrapped,
    weight_name,
)
from dal.learners.models import Model
from dal.learners.penalty import TunedLogisticRegression
from dal.learners.presets import PRESETS, Preset, import_estimator, made
from dal.plugins import Carried

if TYPE_CHECKING:
    from distributed import Client


BOOTSTRAPS = 10
"""Members of the committee of an estimator that is none by itself."""


class Learner:
    """A scikit-learn classifier, and the classes of the campaign.

    Nothing is validated before `check`.

    Parameters
    ----------
    estimator
        Any classifier or pipeline with `predict_proba` or `decision_function`; only clones of it are fitted. Of a
        dask-ml ``ParallelPostFit`` the estimator inside is taken, and that of an ``Incremental`` is fitted in blocks.
        A class of `torch` networks becomes a :class:`dal.learners.deep.TorchClassifier`, a skorch classifier a
        :class:`dal.learners.deep.SkorchClassifier`.
    classes
        Names of all classes of the campaign; their positions are the class codes.
    trusted
        Types, as ``"module.Class"``, that a saved model may hold beside those of scikit-learn; loading runs their code.
    """

    def __init__(self, estimator: BaseEstimator, classes: Sequence[str], *, trusted: Sequence[str] = ()) -> None:
        self.estimator = adapted(unwrapped(estimator))
        self.classes = tuple(classes)
        self.trusted = tuple(trusted)

    @classmethod
    def named(cls, name: str, classes: Sequence[str], *, random_state: int = 0, trusted: Sequence[str] = ()) -> Self:
        """Return the learner of a preset, or of an estimator named as ``module:object``.

        Parameters
        ----------
        name
            ``logistic``, ``head``, ``forest``, ``hgb``, ``mlp``, ``sgd``, the name of an entry point in the group
            ``dal.learners``, or ``module:object``, where the object is an estimator, or a class or function that
            returns one when it is called without arguments, or with `random_state`.
        classes, trusted
            As for `Learner`.
        random_state
            Seed of the presets, built in or of your own; an estimator keeps the one that it has.

        Raises
        ------
        LearnerError
            If there is no such preset, module or object.

        Examples
        --------
        >>> Learner.named("sklearn.naive_bayes:GaussianNB", ["cat", "dog"]).estimator
        GaussianNB()
        """
        preset = PRESETS.get(name)
        estimator = preset(random_state) if preset else import_estimator(name, random_state=random_state)
        return cls(estimator, classes, trusted=trusted)

    @classmethod
    def of(
        cls,
        learner: str | BaseEstimator | Preset,
        classes: Sequence[str],
        *,
        random_state: int = 0,
        trusted: Sequence[str] = (),
    ) -> Self:
        """Return the learner of a name, as in `named`, of an estimator, or of a preset of your own."""
        if isinstance(learner, str):
            return cls.named(learner, classes, random_state=random_state, trusted=trusted)
        if inspect.isfunction(learner):
            learner = made(learner, "fit", learner.__qualname__, random_state)
        return cls(adapted(learner, random_state), classes, trusted=trusted)

    def dumps(self) -> bytes:
        """Save the estimator, not fitted, as a skops archive.

        Raises
        ------
        LearnerError
            If the estimator holds something that cannot be saved.
        """
        return archived({"format": FORMAT, "estimator": cloned(self.estimator)}, kind_of(self.estimator))

    @classmethod
    def loads(cls, data: bytes, classes: Sequence[str], *, trusted: Sequence[str] = ()) -> Self:
        """Load what `dumps` saved, without running code of types that are not trusted."""
        return cls(load(data, trusted)["estimator"], classes, trusted=trusted)

    def check(
        self,
        n_features: int,
        score: str | Carried = "margin",
        *,
        records: npt.NDArray[np.float32] | None = None,
        weighted: bool = False,
    ) -> None:
        """Fit, save, load and score once, as a round does; refuse a learner that cannot, before the first round.

        Parameters
        ----------
        n_features
            Width of the pool's records.
        score
            What records will be scored by; some scores need more than probabilities.
        records
            Some records of the pool, (n, d): learners of counts or categories refuse normal numbers. If none of them is
            usable, made-up normal ones are tried.
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
        checks.check(self, n_features, score, records, weighted=weighted)

    def takes_missing(self, n_features: int) -> bool:
        """Return whether the learner takes records with missing (NaN) features: try it on made-up ones.

        It does if a fit on complete records and a fit on incomplete ones both give probabilities of incomplete ones,
        and the second predicts them hardly worse than a fit on complete records predicts complete ones. The tags of
        the estimator are not read: those of a pipeline are the tags of its first step.

        Parameters
        ----------
        n_features
            Width of the records.
        """
        return checks.takes_missing(self, n_features)

    @property
    def takes_weights(self) -> bool:
        """Whether a weight can be given to each record."""
        estimator = self.estimator
        if isinstance(estimator, InBlocks):
            return estimator.takes_weights
        while isinstance(estimator, Pipeline):
            # Records that a step draws again are no longer those that have the weights.
            if any(hasattr(step, "fit_resample") for _, step in estimator.steps):
                return False
            estimator = estimator.steps[-1][1]
        return bool(has_fit_parameter(estimator, "sample_weight"))

    @property
    def compares_directions(self) -> bool:
        """Whether the learner divides each record by its length first, so that its direction alone counts."""
        estimator = inside(self.estimator)
        first = estimator.steps[0][1] if isinstance(estimator, Pipeline) else None
        return isinstance(first, Normalizer) and first.norm == "l2"

    @property
    def fits_in_blocks(self) -> bool:
        """Whether a fit reads its records block by block, so that they need not be in memory."""
        return isinstance(self.estimator, InBlocks)

    @property
    def starts_warm(self) -> bool:
        """Whether a fit starts from the model of the round before."""
        network = deep_of(self.estimator)
        return isinstance(network, TorchClassifier) and network.warm_start

    @property
    def needs_other_gpu(self) -> bool:
        """Whether it would be fitted on a GPU, and this process sees none."""
        network = deep_of(self.estimator)
        return network is not None and network.wants_gpu and not has_gpu()

    def fit(
        self,
        X: npt.ArrayLike | Source,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        committee: bool = False,
        parent: "Model | None" = None,
    ) -> "Model":
        """Fit a clone of the estimator on one thread.

        The model is saved and loaded before it is returned. Saving may change the layout of an array in memory, and
        with it the last bits of a prediction: this way the caller and the workers use the same bits.

        Parameters
        ----------
        X
            Records, (n, d); taken as float32. They may be read in parts, where the learner is fitted in blocks.
        labels
            Class codes, (n,): positions in `classes`. Not all of them need to be there.
        sample_weight
            Weights of the records, (n,).
        committee
            Whether the model must have a committee. If the estimator is none by itself, ten clones are fitted as well,
            each on a bootstrap of every class's records.
        parent
            Model of the round before, from which a network with `warm_start` starts.

        Raises
        ------
        LearnerError
            If fewer than two classes are among the labels, or the estimator refuses the data, or cannot be saved.
        """
        model = self.try_fit(X, labels, sample_weight, committee=committee, parent=parent)
        model = replace(model, takes_missing=self.takes_missing(model.n_features))
        return Model.loads(model.dumps(), trusted=self.trusted)

    def bootstraps(
        self,
        X: npt.ArrayLike | Source,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None,
        count: int = BOOTSTRAPS,
    ) -> tuple[BaseEstimator, ...]:
        """Fit clones on bootstraps, resampled within each class so that no member misses a rare one."""
        records, codes = self._records(X), np.asarray(labels)
        rng = np.random.default_rng(0)
        members = []
        for _ in range(count):
            parts = [np.flatnonzero(codes == code) for code in np.unique(codes)]
            drawn = np.concatenate([part[rng.integers(0, len(part), len(part))] for part in parts])
            weights = None if sample_weight is None else np.asarray(sample_weight)[drawn]
            members.append(self._fit_once(part_of(records, drawn), codes[drawn], weights).estimator)
        return tuple(members)

    def try_fit(
        self,
        X: npt.ArrayLike | Source,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        committee: bool = False,
        parent: "Model | None" = None,
    ) -> "Model":
        """Fit as `fit` does, without saving and loading: for a model that is used once and thrown away.

        Its predictions may differ in their last bits from those of a model that was saved.
        """
        model = self._fit_once(X, labels, sample_weight, parent)
        if committee and not is_committee(model.estimator):
            model = replace(model, bootstraps=self.settled(model).bootstraps(X, labels, sample_weight))
        return model

    def settled(self, model: "Model") -> Self:
        """Return the learner with what a model of it has chosen by its labels: its fits choose nothing more."""
        last = last_step(model.estimator)
        if not isinstance(last, TunedLogisticRegression):
            return self
        estimator = cloned(self.estimator)
        last_step(estimator).set_params(C=last.C_, least_C=last.C_)
        return type(self)(estimator, self.classes, trusted=self.trusted)

    def _records(self, X: npt.ArrayLike | Source) -> Source:
        """Return records that can be indexed: as an array, unless a fit reads them in parts."""
        if self.fits_in_blocks and hasattr(X, "part"):
            return cast("Source", X)
        return np.ascontiguousarray(cast("npt.ArrayLike", X), dtype=np.float32)

    def _fit_once(
        self,
        X: npt.ArrayLike | Source,
        labels: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        parent: "Model | None" = None,
    ) -> "Model":
        records = self._records(X)
        codes = class_codes(labels, len(records), self.classes)
        # A feature that no labelled record has yet is no reason to refuse a fit, as some estimators do.
        if isinstance(records, np.ndarray) and (absent := np.isnan(records).all(axis=0)).any():
            records = np.where(absent, np.float32(0), records)
        # Some estimators want the classes of a fit to be 0 to k-1, and a fit may not have seen all of the campaign's.
        seen, encoded = np.unique(codes, return_inverse=True)
        estimator = for_classes(single_threaded(cloned(self.estimator)), seen, self.classes)
        if parent is not None and self.starts_warm:
            last_step(estimator).start_from(last_step(parent.estimator))
        weights = {} if sample_weight is None else {weight_name(estimator): np.asarray(sample_weight)}
        with warnings.catch_warnings(record=True) as caught, one_thread, plain_scikit_learn():
            warnings.simplefilter("always")
            try:
                estimator.fit(records, encoded, **weights)
            except Exception as error:
                raise LearnerError(
                    f"{kind_of(estimator)} could not be fitted on {len(codes)} labels of {len(seen)} classes: {error}"
                ) from error
        estimator = inside(estimator)
        warned = dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in caught)
        return Model(
            estimator, self.classes, records.shape[1], columns_of(estimator, seen), tuple(warned), trusted=self.trusted
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
        with needs("tune", "a search of parameters"):
            from dask_ml.model_selection import GridSearchCV  # takes seconds, and nothing else here needs it

        unknown = set(grid) - set(parameters(self.estimator))
        if unknown:
            raise LearnerError(
                f"{kind_of(self.estimator)} has no {sorted(unknown)}; it has {sorted(parameters(self.estimator))}"
            )
        records = np.ascontiguousarray(X, dtype=np.float32)
        codes = class_codes(labels, len(records), self.classes)
        seen, encoded = np.unique(codes, return_inverse=True)
        estimator = for_classes(single_threaded(cloned(self.estimator)), seen, self.classes)
        search = GridSearchCV(estimator, grid, cv=5, scoring="accuracy", scheduler=client, refit=False)
        with client.as_current():  # dask-ml waits for its futures on the current client, whatever its scheduler is
            search.fit(records, encoded)
        best = int(np.argmax(search.cv_results_["mean_test_score"]))
        estimator = cloned(self.estimator).set_params(**search.cv_results_["params"][best])
        return type(self)(estimator, self.classes, trusted=self.trusted)
