"""Train an encoder of torch, with a linear head, on records whose classes are known. Torch is imported where needed."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dal.encoders.devices import halved
from dal.errors import SettingsError

_log = logging.getLogger(__name__)
Codes = npt.NDArray[np.int64]
_HEAD_STEPS = 100
_HEAD_DECAY = 1e-3


@dataclass(frozen=True)
class Tuning:
    """The way an encoder is trained.

    Parameters
    ----------
    epochs : int, default=10
        Passes over the labels.
    learning_rate : float, default=2e-5
        Of AdamW, for the encoder; the head learns ten times as fast. Suits large models that were trained before.
    batch_size : int, default=16
    random_state : int, default=0
    """

    epochs: int = 10
    learning_rate: float = 2e-5
    batch_size: int = 16
    random_state: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise SettingsError(f"`learning_rate` must be above 0, got {self.learning_rate}")


class Tunable:
    """An encoder of torch whose weights can be trained and replaced.

    The weights travel with it: workers need no file of them.
    """

    _weights: bytes | None = None
    device: str | None

    @property
    def wants_gpu(self) -> bool:
        """Whether it uses a GPU where there is one."""
        return self.device is None or not self.device.startswith("cpu")

    @property
    def id(self) -> str:
        """Name and digest, as of every encoder."""
        raise NotImplementedError

    @property
    def trained(self) -> Any:  # noqa: ANN401 - a module of torch
        """The module that is trained."""
        raise NotImplementedError

    def forward(self, batch: Sequence[Any]) -> Any:  # noqa: ANN401 - a tensor
        """Return the features of a batch as a tensor (n, d) that gradients pass."""
        raise NotImplementedError

    def with_weights(self, weights: bytes) -> Self:
        """Return an encoder with other weights, given as safetensors."""
        other = copy.deepcopy(self)  # without what was loaded, as it travels
        other._weights = weights
        return other

    def _replaced(self, module: Any) -> Any:  # noqa: ANN401
        """Load the weights of this encoder into a module, where it has some."""
        if self._weights is None:
            return module
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            module.load_state_dict(load(self._weights))
        except (SafetensorError, RuntimeError) as error:
            raise SettingsError(
                f"`weights` must be those of {type(module).__name__}, got others: {error}; name its own file"
            ) from error
        return module


def tuned(
    encoder: Tunable,
    prepared: Callable[[Codes], tuple[Codes, Sequence[Any]]],
    codes: Codes,
    how: Tuning,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Train an encoder on records of known classes; return its weights as safetensors.

    First the head alone is fitted to the features as they are, then both are trained, which spoils the features less
    than a head that begins at random (Kumar et al. 2022). Layers that normalise over a batch keep their statistics, so
    a GPU without the memory for a batch takes it in turns and makes the same step. The encoder that is passed stays as
    it is.

    Parameters
    ----------
    encoder : Tunable
    prepared : callable
        From positions of records to those that can be encoded, and their prepared values for `forward`.
    codes : ndarray of shape (n,), int64
        Classes of the records, from 0.
    how : Tuning
    progress : callable, optional
        Called with the epochs done and of all.

    Raises
    ------
    SettingsError
        If the records are of fewer than two classes, none can be encoded, the loss is no number, or a GPU has no memory
        for a single record.
    """
    import torch
    from safetensors.torch import save
    from torch.nn import functional

    classes, codes = np.unique(codes, return_inverse=True)
    if len(classes) < 2:
        raise SettingsError(f"`labels` must be of two classes at least, got {len(classes)}; label more records first")
    encoder = copy.deepcopy(encoder)
    module, rng = encoder.trained, np.random.default_rng(how.random_state)
    device = next(module.parameters()).device

    def features(batch: Sequence[Any]) -> Any:  # noqa: ANN401 - a tensor
        return functional.normalize(encoder.forward(batch).float(), dim=1)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(how.random_state)
        known, found = list[Codes](), list[npt.NDArray[np.float32]]()
        with torch.inference_mode():
            for part in np.array_split(np.arange(len(codes)), -(-len(codes) // how.batch_size)):
                kept, batch = prepared(part)
                if len(kept):
                    known.append(kept)
                    found.append(halved(lambda some: features(some).cpu().numpy(), batch))
        if not known:
            raise SettingsError("`source` must hold labelled records that can be encoded, got none")
        usable = np.concatenate(known)
        plain = torch.as_tensor(np.concatenate(found), device=device)
        head = _head(plain, torch.as_tensor(codes[usable], device=device), len(classes))
        for layer in module.modules():
            layer.train(not isinstance(layer, torch.nn.modules.batchnorm._BatchNorm))
        optimizer = torch.optim.AdamW(
            [
                {"params": [each for each in module.parameters() if each.requires_grad]},
                {"params": head.parameters(), "lr": 10 * how.learning_rate},
            ],
            lr=how.learning_rate,
        )
        at_once = how.batch_size
        for epoch in range(how.epochs):
            for part in np.array_split(rng.permutation(usable), -(-len(usable) // how.batch_size)):
                kept, batch = prepared(part)
                targets = torch.as_tensor(codes[kept], device=device)
                loss, at_once = _backward(lambda some: head(features(some)), optimizer, batch, targets, at_once)
                if not np.isfinite(loss):
                    raise SettingsError(
                        f"`learning_rate` must keep the loss finite, got {loss} in epoch {epoch + 1}; lower it"
                    )
                optimizer.step()
            if progress is not None:
                progress(epoch + 1, how.epochs)
    state = {name: each.detach().cpu().contiguous().clone() for name, each in module.state_dict().items()}
    return bytes(save(state))


def _backward(
    outputs: Callable[[Sequence[Any]], Any],
    optimizer: Any,  # noqa: ANN401 - of torch
    batch: Sequence[Any],
    targets: Any,  # noqa: ANN401 - a tensor
    at_once: int,
) -> tuple[float, int]:
    """Compute the gradients of a step; return the loss, and the number of records that memory has room for at once."""
    import torch
    from torch.nn import functional

    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            loss = 0.0
            for start in range(0, len(batch), at_once):
                some = slice(start, start + at_once)
                share = functional.cross_entropy(outputs(batch[some]), targets[some], reduction="sum") / len(batch)
                share.backward()
                loss += float(share.detach())
        except torch.OutOfMemoryError as error:
            if at_once == 1:
                raise SettingsError(
                    "`device` must have memory to train on one record, got a GPU that ran out of it; shorten or shrink"
                    " the records"
                ) from error
        else:
            return loss, at_once
        # Out of the handler: the error would hold the tensors of the batch.
        before, at_once = min(at_once, len(batch)), max(1, min(at_once, len(batch)) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning("a GPU has no memory to train on %d records at once: it takes %d in turns", before, at_once)


def _head(features: Any, codes: Any, n_classes: int) -> Any:  # noqa: ANN401 - tensors, a module
    """Fit a linear layer to features as they are, to convergence."""
    import torch
    from torch.nn import functional

    head = torch.nn.Linear(features.shape[1], n_classes).to(features.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_HEAD_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Any:  # noqa: ANN401 - a tensor
        optimizer.zero_grad()
        value = functional.cross_entropy(head(features), codes) + _HEAD_DECAY * head.weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return head
