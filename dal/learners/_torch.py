"""torch beyond its public face to dal, in one place: networks are made, trained, saved and asked here.

Only `dal.learners.deep` imports this module, and only when a network is needed.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from sklearn.base import clone
from torch.nn import functional

from dal._threads import one_thread
from dal._weighing import weighed
from dal.errors import LearnerError

if TYPE_CHECKING:
    from dal.learners.deep import SkorchClassifier, TorchClassifier

Floats32 = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

_DROPOUTS = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d)
_FITTING = threading.RLock()
"""torch draws from one generator for the process: two fits at once would share its numbers."""
_MASKS = threading.local()
"""The number of the masks of dropout that a thread asks for; none outside a committee."""
_SEEN = threading.local()
"""The inputs of a network's last layer that a thread collects; none where they are not wanted."""


class Trained(NamedTuple):
    """A network after training.

    Attributes
    ----------
    weights : bytes
        As safetensors.
    record_bytes : int
        Memory that the prediction of a record takes, at most.
    dropouts : int
        Layers of dropout.
    layer : str
        Name of the last layer, where it is linear; else empty.
    width : int
        Its number of inputs; else 0.
    """

    weights: bytes
    record_bytes: int
    dropouts: int
    layer: str
    width: int


def device_of(name: str) -> torch.device:
    """Return the device of a name; refuse one that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LearnerError(f"`device` must be one that this machine has, got {name!r}: {reason}") from error
    return device


def trained(
    settings: "TorchClassifier",
    X: npt.NDArray[Any],
    codes: Codes,
    weights: npt.NDArray[np.float64],
    seed: int,
    start: bytes | None,
) -> Trained:
    """Train a network from a seed, or from the weights of another one.

    Parameters
    ----------
    settings : TorchClassifier
    X : ndarray of shape (n, d)
    codes : ndarray of shape (n,)
        Classes, from 0.
    weights : ndarray of shape (n,)
        Of the records.
    seed : int
    start : bytes, optional
        Weights to start from, as safetensors; layers of another shape start from the seed.
    """
    device, n_classes = device_of(settings.device), len(settings.classes_)
    with _FITTING, _seeded(int(seed), device), _threads(settings.threads):
        network = made(settings, n_classes).to(device)
        tried = _tried(network, settings, X[:2], n_classes, device)
        if start is not None:
            _start_from(network, start)
        _train(network, settings, X, codes, weights, np.random.default_rng(seed), device)
        return _trained(network, tried)


def made(settings: "TorchClassifier", n_classes: int) -> Any:  # noqa: ANN401 - a module of torch
    """Return a network that is not trained."""
    name = getattr(settings.module, "__qualname__", repr(settings.module))
    try:
        network = settings.module(n_classes=n_classes, **(settings.module_args or {}))
    except Exception as error:  # anybody's code, with anybody's exceptions
        raise LearnerError(f"`{name}` must make a network when it is called with n_classes, got {error!r}") from error
    if not isinstance(network, torch.nn.Module):
        raise LearnerError(f"`{name}` must make a torch.nn.Module, got {type(network).__name__}")
    return network.float()


class Live:
    """A trained network in this process."""

    def __init__(self, settings: "TorchClassifier", weights: bytes, n_classes: int) -> None:
        self._settings, self._n_classes = settings, n_classes
        self._device = device_of(settings.device)
        self._at_once = settings.predicted_at_once
        with _FITTING, _seeded(0, self._device):
            network = made(settings, n_classes)
            if any(isinstance(each, torch.nn.parameter.UninitializedParameter) for each in network.parameters()):
                with torch.no_grad():
                    network.eval()(_tensor(np.zeros((2, settings.n_features_in_), np.float32), settings, "cpu"))
        _load(network, weights)
        self._network = network.to(self._device).eval()
        _watch_dropouts(self._network, settings.random_state)
        _watch_last_layer(self._network, settings.embedding_layer_)

    def embedded(self, X: npt.NDArray[Any]) -> tuple[Floats32, Floats32]:
        """Return the probabilities (n, k) and the inputs of the last layer (n, width), from one pass."""
        return _with_inputs(lambda: self.probabilities(X), len(X))

    def probabilities(self, X: npt.NDArray[Any], masks: int | None = None) -> Floats32:
        """Return the probabilities (n, k), without gradients.

        Parameters
        ----------
        X : ndarray of shape (n, d)
        masks : int, optional
            Number of a set of masks of dropout.
        """
        found, start = np.empty((len(X), self._n_classes), np.float32), 0
        with _asking(masks):
            while start < len(X):
                stop = min(start + self._at_once, len(X))
                part = self._forward(X[start:stop])
                if part is not None:
                    found[start:stop] = part
                    start = stop
        return found

    def _forward(self, X: npt.NDArray[Any]) -> Floats32 | None:
        """Return the probabilities of a batch; None, with a smaller batch from now on, where memory does not do."""
        settings, seen = self._settings, getattr(_SEEN, "inputs", None)
        before = len(seen or ())
        try:
            with torch.inference_mode(), _autocast(settings, self._device):
                outputs = self._network(_tensor(X, settings, self._device))
                _check_outputs(outputs, len(X), self._n_classes)
                part: Floats32 = functional.softmax(outputs.float(), dim=1).cpu().numpy()
                return part
        except torch.OutOfMemoryError as error:
            if seen is not None:
                del seen[before:]
            if len(X) == 1:
                raise LearnerError(f"`device` {self._device} must have memory for one record, got {error}") from error
            self._at_once = max(1, min(self._at_once, len(X)) // 2)
        _emptied(self._device)
        warnings.warn(
            f"{self._device} has no memory to predict {len(X)} records at once: {self._at_once} from now on",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def trained_by_skorch(settings: "SkorchClassifier", X: npt.NDArray[Any], codes: Codes) -> Trained:
    """Let skorch train a clone of a net; as `trained`."""
    net = clone(settings.net).set_params(verbose=0)
    with _FITTING, _seeded(settings.random_state, device_of(net.device)):
        records = _tensor(X, settings, "cpu")
        net.fit(records.numpy(), codes)
        network = net.module_.eval()
        tried = _weighed(network, records[:2].to(net.device))
    return _trained(network, tried)


class LiveSkorch:
    """A net that skorch has trained, in this process."""

    def __init__(self, settings: "SkorchClassifier", weights: bytes, n_classes: int) -> None:
        self._settings, self._n_classes = settings, n_classes
        self._net = clone(settings.net).set_params(verbose=0, callbacks=None)
        device_of(self._net.device)
        with _FITTING, _seeded(0, torch.device("cpu")):
            self._net.initialize()
        _load(self._net.module_, weights)
        _watch_dropouts(self._net.module_, settings.random_state)
        _watch_last_layer(self._net.module_, settings.embedding_layer_)

    def embedded(self, X: npt.NDArray[Any]) -> tuple[Floats32, Floats32]:
        """Return the probabilities (n, k) and the inputs of the last layer (n, width); as of `Live`."""
        return _with_inputs(lambda: self.probabilities(X), len(X))

    def probabilities(self, X: npt.NDArray[Any], masks: int | None = None) -> Floats32:
        """Return the probabilities (n, k); as of `Live`."""
        with _asking(masks):
            found = np.asarray(self._net.predict_proba(_tensor(X, self._settings, "cpu").numpy()))
        if found.ndim != 2 or found.shape[1] < self._n_classes:
            raise LearnerError(f"`net` must return the shape {(len(X), self._n_classes)}, got {found.shape}")
        found = found[:, : self._n_classes].astype(np.float32)
        return found / found.sum(axis=1, keepdims=True) if found.size else found


# -- inside ----------------------------------------------------------------------------------------------------------


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the process's generator as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _asking(masks: int | None) -> Iterator[None]:
    """Apply a set of masks of dropout, and use one thread of the processor."""
    _MASKS.number = masks
    try:
        with one_thread:  # again, because torch may have been imported within a context of it
            yield
    finally:
        _MASKS.number = None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Train on this number of threads of the processor; callers hold it at one, see `dal._threads`."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _autocast(settings: "TorchClassifier", device: torch.device) -> Any:  # noqa: ANN401 - torch has no types here
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _emptied(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _tensor(X: npt.NDArray[Any], settings: "TorchClassifier | SkorchClassifier", device: torch.device | str) -> Any:  # noqa: ANN401
    """Return records as the network takes them; bytes travel to a GPU as bytes."""
    # Read-only arrays, as those of a pool, give a warning.
    records = torch.from_numpy(X if X.flags.writeable else X.copy()).to(device).to(torch.float32)
    axis = -1
    if settings.shape is not None:
        records = records.reshape(len(records), *settings.shape)
        if len(settings.shape) == 3:
            records, axis = records.permute(0, 3, 1, 2), 1
    if settings.mean != 0:
        records = records - _along(settings.mean, axis, records)
    if settings.std != 1:
        records = records / _along(settings.std, axis, records)
    return records.contiguous()


def _along(value: Any, axis: int, records: Any) -> Any:  # noqa: ANN401
    """Return one number, or one for each entry of an axis, in a shape that fits the records."""
    of_axis = torch.as_tensor(value, dtype=torch.float32, device=records.device)
    return of_axis if of_axis.ndim == 0 else of_axis.reshape([-1, *[1] * (records.ndim - 1 - axis % records.ndim)])


def _check_outputs(outputs: Any, n: int, n_classes: int) -> None:  # noqa: ANN401 - anybody's network
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (n, n_classes):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise LearnerError(f"`module` must return the shape {(n, n_classes)}, one number a class, got {got}")


def _tried(
    network: Any,  # noqa: ANN401
    settings: "TorchClassifier",
    X: npt.NDArray[Any],
    n_classes: int,
    device: torch.device,
) -> "_Tried":
    """Predict some records, and return what they show of the network."""
    with _autocast(settings, device):
        tried = _weighed(network.eval(), _tensor(X, settings, device))
    _check_outputs(tried.outputs, len(X), n_classes)
    return tried


class _Tried(NamedTuple):
    """A network's outputs of some records, the memory that one takes at most, and the layer that gave the outputs."""

    outputs: Any
    record_bytes: int
    last: Any


def _trained(network: Any, tried: _Tried) -> Trained:  # noqa: ANN401
    names = [name for name, layer in network.named_modules() if layer is tried.last]
    width = tried.last.in_features if names and names[0] else 0
    return Trained(_saved(network), tried.record_bytes, _count_dropouts(network), names[0] if width else "", int(width))


def _weighed(network: Any, records: Any) -> _Tried:  # noqa: ANN401
    """Predict some records, and return what they show of the network."""
    linear = list[tuple[Any, Any, Any]]()

    def passed(layer: Any, given: Any, returned: Any) -> None:  # noqa: ANN401
        if isinstance(layer, torch.nn.Linear):
            linear.append((layer, tuple(given[0].shape), tuple(returned.shape)))

    with torch.no_grad():  # not in inference mode: layers may make their weights here
        outputs, most = weighed(network, lambda: network(records), len(records), passed)
    own = 3 * records.element_size() * records.numel() // len(records)
    return _Tried(outputs, max(own, most), _last_of(linear, outputs))


def _last_of(linear: list[tuple[Any, Any, Any]], outputs: Any) -> Any:  # noqa: ANN401
    """Return the linear layer that was passed last, where it gave a record's outputs from numbers of it; else None.

    Of the outputs alone, a softmax may follow. A layer that is passed several times has no one input.
    """
    if not linear or not isinstance(outputs, torch.Tensor):
        return None
    last, given, returned = linear[-1]
    once = sum(layer is last for layer, _, _ in linear) == 1
    return last if once and returned == tuple(outputs.shape) and len(given) == 2 else None


def _count_dropouts(network: Any) -> int:  # noqa: ANN401
    return sum(isinstance(layer, _DROPOUTS) for layer in network.modules())


def _train(
    network: Any,  # noqa: ANN401
    settings: "TorchClassifier",
    X: npt.NDArray[Any],
    codes: Codes,
    weights: npt.NDArray[np.float64],
    rng: np.random.Generator,
    device: torch.device,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    held = _held_out(codes, settings.validation_fraction, rng) if settings.early_stopping else np.empty(0, np.int64)
    learned = np.setdiff1d(np.arange(len(X)), held)
    best, kept, since = np.inf, None, 0
    at_once = settings.batch_size
    for epoch in range(settings.max_epochs):
        network.train()
        # Of almost one size: a batch of one record is too few for layers that normalise over a batch.
        for part in np.array_split(rng.permutation(learned), -(-len(learned) // settings.batch_size)):
            optimizer.zero_grad(set_to_none=True)
            loss, at_once = _backward(network, settings, X, codes, weights, part, device, at_once)
            if not np.isfinite(loss):
                raise LearnerError(
                    f"`module` must give a finite loss, got {loss} in epoch {epoch + 1}; lower learning_rate, or scale"
                    " the features by mean and std"
                )
            optimizer.step()
        if len(held):
            network.eval()
            now = _loss(network, settings, X, codes, weights, held, device, at_once)
            since += 1
            if now < best:
                best, kept, since = now, {name: each.clone() for name, each in network.state_dict().items()}, 0
            if since == settings.patience:
                break
    if kept is not None:
        network.load_state_dict(kept)
    network.eval()


def _held_out(codes: Codes, share: float, rng: np.random.Generator) -> Codes:
    """Return positions of the records that are held out: a share of each class, but never all of it."""
    parts = []
    for code in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == code))
        parts.append(own[: min(len(own) - 1, round(share * len(own)))])
    return np.sort(np.concatenate(parts))


def _losses(network: Any, settings: "TorchClassifier", X: Any, codes: Any, weights: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return the sum of the weighted losses of some records."""
    with _autocast(settings, device):
        outputs = network(_tensor(X, settings, device)).float()
    of_records = functional.cross_entropy(outputs, torch.as_tensor(codes, device=device), reduction="none")
    return (of_records * torch.as_tensor(weights, dtype=torch.float32, device=device)).sum()


def _backward(
    network: Any,  # noqa: ANN401
    settings: "TorchClassifier",
    X: npt.NDArray[Any],
    codes: Codes,
    weights: npt.NDArray[np.float64],
    part: Codes,
    device: torch.device,
    at_once: int,
) -> tuple[float, int]:
    """Add up the gradients of a step; return the loss and the records that memory has room for at once.

    Where it has no room for all, they are taken in turns. The step is the same, but for layers that normalise over a
    batch.
    """
    while True:
        try:
            loss = 0.0
            for positions in np.array_split(part, -(-len(part) // at_once)):
                losses = _losses(network, settings, X[positions], codes[positions], weights[positions], device)
                share = losses / float(weights[part].sum())
                share.backward()
                loss += float(share.detach())
            return loss, at_once
        except torch.OutOfMemoryError as error:
            if at_once == 1:
                raise LearnerError(f"`device` {device} must have memory for one record, got {error}") from error
            before, at_once = min(at_once, len(part)), max(1, min(at_once, len(part)) // 2)
        network.zero_grad(set_to_none=True)
        _emptied(device)
        warnings.warn(
            f"{device} has no memory to train on {before} records at once: {at_once} in turns from now on",
            RuntimeWarning,
            stacklevel=2,
        )


def _loss(
    network: Any,  # noqa: ANN401
    settings: "TorchClassifier",
    X: npt.NDArray[Any],
    codes: Codes,
    weights: npt.NDArray[np.float64],
    held: Codes,
    device: torch.device,
    at_once: int,
) -> float:
    """Return the mean loss of the records that are held out."""
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(held, -(-len(held) // at_once)):
            total += float(_losses(network, settings, X[part], codes[part], weights[part], device))
    return total / float(weights[held].sum())


def _saved(network: Any) -> bytes:  # noqa: ANN401
    # A tensor that two layers share is saved twice, and given to both again.
    tensors = {name: each.detach().cpu().contiguous().clone() for name, each in network.state_dict().items()}
    return bytes(save(tensors))


def _weights(data: bytes) -> dict[str, Any]:
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise LearnerError(f"the weights must be safetensors, got {len(data)} bytes: {error}") from error


def _load(network: Any, data: bytes) -> None:  # noqa: ANN401
    try:
        network.load_state_dict(_weights(data))
    except RuntimeError as error:
        raise LearnerError(
            f"the weights must be those of {type(network).__name__}, which has changed since they were saved: {error}"
        ) from error


def _start_from(network: Any, data: bytes) -> None:  # noqa: ANN401
    own, saved = network.state_dict(), _weights(data)
    network.load_state_dict(
        {name: saved[name] if name in saved and saved[name].shape == each.shape else each for name, each in own.items()}
    )


def _watch_last_layer(network: Any, name: str) -> None:  # noqa: ANN401
    """Let a network's last layer hand its inputs to a thread that collects them."""

    def collect(_: Any, given: Any) -> None:  # noqa: ANN401
        inputs = getattr(_SEEN, "inputs", None)
        if inputs is not None:
            inputs.append(given[0].detach().float().cpu().numpy())

    if name:
        network.get_submodule(name).register_forward_pre_hook(collect)


def _with_inputs(predict: Callable[[], Floats32], rows: int) -> tuple[Floats32, Floats32]:
    """Predict, and return the inputs of the last layer as well."""
    _SEEN.inputs = inputs = list[Floats32]()
    try:
        found = predict()
    finally:
        _SEEN.inputs = None
    if sum(map(len, inputs)) != rows:
        raise LearnerError(
            f"`module` must pass its last layer once a record, got {sum(map(len, inputs))} times of {rows}"
        )
    return found, np.concatenate(inputs)


def _watch_dropouts(network: Any, seed: int) -> None:  # noqa: ANN401
    """Let layers of dropout apply the masks that a thread asks for: the same for every record."""
    layers = [layer for layer in network.modules() if isinstance(layer, _DROPOUTS)]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(_masking(number, seed))


def _masking(layer_number: int, seed: int) -> Callable[[Any, Any, Any], Any]:
    kept: dict[tuple[int, tuple[int, ...]], Any] = {}

    def mask(layer: Any, _: Any, output: Any) -> Any:  # noqa: ANN401
        asked = getattr(_MASKS, "number", None)
        if asked is None:
            return None
        # Of Dropout1d to 3d, a whole channel is dropped.
        shape = output.shape[1:] if type(layer) is torch.nn.Dropout else (output.shape[1], *[1] * (output.ndim - 2))
        if (asked, tuple(shape)) not in kept:
            rng = np.random.default_rng([seed, layer_number, asked])
            drawn = (rng.random(tuple(shape)) >= layer.p) / max(1 - layer.p, 1e-9)
            kept[asked, tuple(shape)] = torch.as_tensor(drawn, dtype=torch.float32, device=output.device)
        return output * kept[asked, tuple(shape)].to(output.dtype)

    return mask
