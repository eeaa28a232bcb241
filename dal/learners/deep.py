"""Networks of torch as scikit-learn classifiers: trained by the coordinator, saved as safetensors, used by workers.

Importing this module does not import torch. Making a network does.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if

from dal._distribution import needs
from dal.errors import LearnerError
from dal.learners.estimators import last_step

if TYPE_CHECKING:
    from dal.learners._torch import Live, LiveSkorch, Trained

Floats = npt.NDArray[np.floating[Any]]

Made = TypeVar("Made")

PRECISIONS = ("float32", "bfloat16")
_AT_ONCE_BYTES = 32 * 2**20
_LOADING = threading.Lock()
_SKORCH = "skorch.classifier"


def _has_embeddings(estimator: "OnTorch") -> bool:
    return estimator.embedding_width_ > 0


class OnTorch(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A learner that predicts with networks of torch; see `TorchClassifier` for the attributes that all have."""

    members: int
    weights_: tuple[bytes, ...]
    record_bytes_: int
    dropouts_: int
    classes_: npt.NDArray[Any]
    embedding_layer_: str = ""
    embedding_width_: int = 0

    @property
    def predicted_at_once(self) -> int:
        """Records that are predicted at once."""
        raise NotImplementedError

    @property
    def wants_gpu(self) -> bool:
        """Whether it uses a GPU where there is one."""
        raise NotImplementedError

    @property
    def scratch_bytes(self) -> int:
        """Memory that a prediction takes beside the weights, at most."""
        return self.record_bytes_ * self.predicted_at_once

    def predict_proba(self, X: npt.NDArray[Any]) -> Floats:
        """Return the probabilities (n, k)."""
        raise NotImplementedError

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the most probable class of each record."""
        predicted: npt.NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return predicted

    def _take_from(self, trained: "Trained") -> None:
        self.record_bytes_, self.dropouts_ = trained.record_bytes, trained.dropouts
        self.embedding_layer_, self.embedding_width_ = trained.layer, trained.width

    def _check_width(self, X: npt.NDArray[Any], shape: Sequence[int] | None) -> None:
        if shape is not None and X.shape[1:] != (np.prod(shape),):
            raise LearnerError(
                f"`shape` must be that of the pool's records, of {np.prod(X.shape[1:])} features, got {shape}"
            )

    def _once(self, make: "Callable[[Any], Made]") -> "Made":
        """Return the networks of this process; make them, by a function of the module on torch, if there are none."""
        with _LOADING:
            if "_live" not in self.__dict__:
                self._live = make(_torch_module(self))
            live: Made = self._live
            return live

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_live"}


def _torch_module(learner: object) -> Any:  # noqa: ANN401 - a module
    with needs("torch", f"the learner {type(learner).__name__}"):
        from dal.learners import _torch
    return _torch


def _has_committee(estimator: OnTorch) -> bool:
    return getattr(estimator, "members", 1) > 1 or getattr(estimator, "dropouts_", 0) > 0


class TorchClassifier(OnTorch):
    """A network as a classifier: any class or function that makes a `torch.nn.Module`.

    It is trained by AdamW on the cross-entropy of its outputs. Training and prediction use one thread on a processor,
    so the same seed gives the same weights there; with `threads`, the same seed and number of threads do. On a GPU the
    weights of two fits may differ in their last bits.

    Parameters
    ----------
    module : callable
        A class or function of a module that other processes can import, without a lambda. It is called with
        `n_classes`, the number of classes in the labels of a fit, and with `module_args`. The network returns one
        number a class for each record, before a softmax.
    module_args : mapping, optional
        Further arguments of `module`.
    shape : sequence of int, optional
        Shape of a record; by default records are flat. Records of shape (h, w, c), as pools hold images, are given to
        the network as (c, h, w).
    mean, std : float or sequence of float
        Subtracted from the features, and divided by: one for all, or one a channel or feature. A `std` of 255 brings
        images of bytes to the range from 0 to 1.
    device : str, default="auto"
        Of torch, such as ``cuda``; ``auto`` is the first GPU where there is one, and the processor elsewhere.
    precision : {"float32", "bfloat16"}
        Of the products; weights are kept in float32.
    batch_size : int, default=32
        Records of a training step.
    predict_batch_size : int, optional
        Records that are predicted at once; by default as many as take some megabytes, the same everywhere.
    max_epochs : int, default=40
        Passes over the labels.
    learning_rate, weight_decay : float
        Of AdamW.
    early_stopping : bool, default=False
        Whether a share of the labels is held out, and training ends when their loss has not fallen for `patience`
        epochs. The weights of the lowest loss are kept.
    validation_fraction : float, default=0.1
        The share of each class that is held out.
    patience : int, default=5
    class_weight : mapping or "balanced", optional
        As in scikit-learn; keys are names of the campaign's classes.
    warm_start : bool, default=False
        Whether a round's fit starts from the weights of the round before. Layers of another shape, such as the last one
        after a new class, start from scratch.
    members : int, default=1
        Networks of an ensemble, each from a seed derived from `random_state`; their mean is predicted.
    passes : int, default=10
        Members of the committee of a single network that has layers of dropout: each is one set of masks, the same for
        all records.
    threads : int, default=1
        Of the processor, for training.
    random_state : int, default=0

    Attributes
    ----------
    weights_ : tuple of bytes
        Of each member, as safetensors.
    classes_ : ndarray
    n_features_in_ : int
    record_bytes_ : int
        Memory that the prediction of a record takes, at most.
    dropouts_ : int
        Layers of dropout.
    embedding_layer_ : str
        Name of the last layer, where it is a `torch.nn.Linear`; its inputs are the embeddings of records.
    embedding_width_ : int
        Their number; 0 where there is no such layer.

    Examples
    --------
    In a module ``nets``, for ``--estimator nets:learner --trusted nets.SmallNet``::

        class SmallNet(torch.nn.Module):
            def __init__(self, n_classes): ...


        def learner(random_state):
            return TorchClassifier(SmallNet, shape=(28, 28, 1), std=255, random_state=random_state)
    """

    def __init__(
        self,
        module: Callable[..., Any],
        *,
        module_args: Mapping[str, Any] | None = None,
        shape: Sequence[int] | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        device: str = "auto",
        precision: str = "float32",
        batch_size: int = 32,
        predict_batch_size: int | None = None,
        max_epochs: int = 40,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        members: int = 1,
        passes: int = 10,
        threads: int = 1,
        random_state: int = 0,
    ) -> None:
        self.module = module
        self.module_args = module_args
        self.shape = shape
        self.mean = mean
        self.std = std
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.predict_batch_size = predict_batch_size
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.members = members
        self.passes = passes
        self.threads = threads
        self.random_state = random_state

    def fit(self, X: npt.NDArray[Any], y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Train on records (n, d), features or bytes, and their classes (n,).

        With `warm_start`, a network that is fitted is trained further.
        """
        torch = _torch_module(self)
        self._check()
        X = np.asarray(X)
        self._check_width(X, self.shape)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        weights = np.ones(len(codes)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        weights = weights * self._weights_of_classes(codes)[codes]
        starts = getattr(self, "weights_", ()) if self.warm_start else ()
        self.n_features_in_ = X.shape[1]
        trained = [
            torch.trained(self, X, codes, weights, seed, starts[member] if member < len(starts) else None)
            for member, seed in enumerate(np.random.SeedSequence(self.random_state).generate_state(self.members))
        ]
        self.weights_ = tuple(each.weights for each in trained)
        self._take_from(trained[0])
        self.__dict__.pop("_live", None)
        return self

    def start_from(self, fitted: BaseEstimator) -> Self:
        """Let the next fit start from the weights of another estimator, where it has some."""
        self.weights_ = getattr(fitted, "weights_", ())
        return self

    def predict_proba(self, X: npt.NDArray[Any]) -> Floats:
        """Return the probabilities (n, k), the mean over the members of an ensemble."""
        return _mean([live.probabilities(X) for live in self._networks])

    @available_if(_has_embeddings)  # type: ignore[untyped-decorator]
    def predict_embedded(self, X: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the probabilities (n, k), and the embeddings of the first network, from one pass of each network."""
        first, *others = self._networks
        probabilities, embeddings = first.embedded(X)
        return _mean([probabilities, *(live.probabilities(X) for live in others)]), embeddings

    @available_if(_has_committee)  # type: ignore[untyped-decorator]
    def committee_proba(self, X: npt.NDArray[Any]) -> Iterator[Floats]:
        """Yield the probabilities of each member of an ensemble, or under each set of dropout masks."""
        if len(self.weights_) > 1:
            yield from (live.probabilities(X) for live in self._networks)
        else:
            (live,) = self._networks
            yield from (live.probabilities(X, masks=number) for number in range(self.passes))

    @property
    def predicted_at_once(self) -> int:
        """Records that are predicted at once."""
        if self.predict_batch_size is not None:
            return self.predict_batch_size
        # From a constant: the last bits of a product depend on its height, on machines of every size.
        return int(1 << max(3, min(10, (_AT_ONCE_BYTES // self.record_bytes_).bit_length() - 1)))

    @property
    def wants_gpu(self) -> bool:
        """Whether it uses a GPU where there is one."""
        return self.device != "cpu"

    @property
    def _networks(self) -> "list[Live]":
        return self._once(lambda torch: [torch.Live(self, each, len(self.classes_)) for each in self.weights_])

    def _weights_of_classes(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        if self.class_weight is None:
            return np.ones(len(self.classes_))
        if isinstance(self.class_weight, Mapping):
            return np.array([float(self.class_weight.get(each, 1.0)) for each in self.classes_.tolist()])
        counts = np.bincount(codes)
        return len(codes) / (len(counts) * counts)

    def _check(self) -> None:
        is_network = hasattr(self.module, "state_dict") and not isinstance(self.module, type)
        if is_network or not callable(self.module):
            raise LearnerError(
                f"`module` must be a class or function that makes a network, got {type(self.module).__name__};"
                " give the class, and its arguments as module_args"
            )
        if self.precision not in PRECISIONS:
            raise LearnerError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            raise LearnerError(f"`class_weight` must be a mapping or 'balanced', got {self.class_weight!r}")
        at_least_one = ("batch_size", "max_epochs", "patience", "members", "passes", "threads")
        for name in at_least_one if self.predict_batch_size is None else (*at_least_one, "predict_batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise LearnerError(f"`{name}` must be a whole number of at least 1, got {value!r}")
        if not 0 < self.validation_fraction < 1:
            raise LearnerError(f"`validation_fraction` must be between 0 and 1, got {self.validation_fraction!r}")


class SkorchClassifier(OnTorch):
    """A skorch classifier as a learner: skorch trains it, and its weights are saved as safetensors.

    Its outputs beyond the classes of a fit are left out, so its module may have one for each class of the campaign.

    Parameters
    ----------
    net : skorch.NeuralNetClassifier
        Only clones of it are fitted.
    shape, mean, std, passes, random_state
        As of `TorchClassifier`.
    """

    def __init__(
        self,
        net: Any,  # noqa: ANN401 - skorch has no types
        *,
        shape: Sequence[int] | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        passes: int = 10,
        random_state: int = 0,
    ) -> None:
        self.net = net
        self.shape = shape
        self.mean = mean
        self.std = std
        self.passes = passes
        self.random_state = random_state

    def fit(self, X: npt.NDArray[Any], y: npt.ArrayLike) -> Self:
        """Train a clone of the net on records (n, d), features or bytes, and their classes (n,)."""
        torch = _torch_module(self)
        X = np.asarray(X)
        self._check_width(X, self.shape)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self.n_features_in_ = X.shape[1]
        self.__dict__.pop("_live", None)
        trained = torch.trained_by_skorch(self, X, codes.astype(np.int64))
        self.weights_ = (trained.weights,)
        self._take_from(trained)
        return self

    def predict_proba(self, X: npt.NDArray[Any]) -> Floats:
        """Return the probabilities (n, k), as skorch computes them from the outputs."""
        return self._network.probabilities(X)

    @available_if(_has_embeddings)  # type: ignore[untyped-decorator]
    def predict_embedded(self, X: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the probabilities (n, k) and the embeddings, from one pass of the network."""
        found: tuple[Floats, Floats] = self._network.embedded(X)
        return found

    @available_if(_has_committee)  # type: ignore[untyped-decorator]
    def committee_proba(self, X: npt.NDArray[Any]) -> Iterator[Floats]:
        """Yield the probabilities under each set of dropout masks."""
        network = self._network
        yield from (network.probabilities(X, masks=number) for number in range(self.passes))

    @property
    def predicted_at_once(self) -> int:
        """Records that are predicted at once."""
        given = self.net.get_params(deep=False)
        return max(1, int(given.get("iterator_valid__batch_size", given["batch_size"])))

    @property
    def wants_gpu(self) -> bool:
        """Whether it uses a GPU: skorch uses the device of the net, the processor by default."""
        return str(self.net.device) != "cpu"

    @property
    def _network(self) -> "LiveSkorch":
        found: LiveSkorch = self._once(lambda torch: torch.LiveSkorch(self, *self.weights_, len(self.classes_)))
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A net saves itself by pickle. Its parameters describe it as well, and their types are looked at one by one.
        kind, given = type(self.net), self.net.get_params(deep=False)
        usual = kind(self.net.module).get_params(deep=False)
        own = {
            name: value
            for name, value in given.items()
            if name == "module" or (not name.startswith("_") and (name not in usual or value is not usual[name]))
        }
        plain = kind.__module__ == _SKORCH and kind.__name__ == "NeuralNetClassifier"
        return super().__getstate__() | {"net": {"kind": None if plain else kind, "parameters": own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with needs("torch", f"the learner {type(self).__name__}"):
            from skorch import NeuralNetClassifier
        net = state["net"]
        self.__dict__.update(state | {"net": (net["kind"] or NeuralNetClassifier)(**net["parameters"])})


def _mean(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.mean(parts, axis=0)


def deep_of(estimator: BaseEstimator) -> OnTorch | None:
    """Return the learner with networks that predicts, also as the last step of a pipeline; None where none does."""
    last = last_step(estimator)
    return last if isinstance(last, OnTorch) else None


def has_gpu() -> bool:
    """Return whether torch sees a GPU in this process."""
    with needs("torch", "a network"):
        from dal.learners import _torch
    return bool(_torch.device_of("auto").type != "cpu")


def adapted(estimator: Any, random_state: int = 0) -> Any:  # noqa: ANN401 - anybody's object
    """Return a class of networks or a skorch classifier as a learner; return everything else as it is."""
    if is_network_class(estimator):
        return TorchClassifier(estimator, random_state=random_state)
    if any(kind.__module__ == _SKORCH and kind.__name__ == "NeuralNetClassifier" for kind in type(estimator).__mro__):
        return SkorchClassifier(estimator, random_state=random_state)
    return estimator


def is_network_class(found: object) -> bool:
    """Return whether an object is a class of torch networks, without importing torch."""
    return isinstance(found, type) and any(
        kind.__module__ == "torch.nn.modules.module" and kind.__name__ == "Module" for kind in found.__mro__
    )
