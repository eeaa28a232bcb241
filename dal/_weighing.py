"""The memory that a network of torch takes to predict; torch is imported where a function needs it."""

from collections.abc import Callable
from typing import Any, TypeVar

Outputs = TypeVar("Outputs")
Passed = Callable[[Any, tuple[Any, ...], Any], None]


def weighed(
    module: Any,  # noqa: ANN401 - a module of torch
    predict: Callable[[], Outputs],
    n_records: int,
    passed: Passed | None = None,
) -> tuple[Outputs, int]:
    """Predict some records; return the outputs, and the bytes that a record takes at most.

    Without gradients a layer's input and output are there at once, with a copy of either that some products make.

    Parameters
    ----------
    module : torch.nn.Module
    predict : callable
        Passes the records through the module.
    n_records : int
    passed : callable, optional
        Called with each layer that has no layers inside, its positional arguments, and its result.
    """
    import torch

    most = 0

    def weigh(layer: Any, given: Any, named: Any, returned: Any) -> None:  # noqa: ANN401
        nonlocal most
        held = (*given, *named.values(), *(returned if isinstance(returned, tuple | list) else (returned,)))
        tensors = [each for each in held if isinstance(each, torch.Tensor)]
        most = max(most, sum(each.element_size() * each.numel() for each in tensors))
        if passed is not None:
            passed(layer, given, returned)

    layers = [layer for layer in module.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(weigh, with_kwargs=True) for layer in layers]
    try:
        outputs = predict()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, 3 * most // n_records
