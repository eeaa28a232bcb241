"""Devices of torch, and what depends on them. Torch is imported where a function needs it."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dal._weighing import weighed
from dal.errors import SettingsError

_log = logging.getLogger(__name__)
Encode = Callable[[Sequence[Any]], npt.NDArray[np.float32]]


def state_digest(module: Any) -> str:  # noqa: ANN401 - a module of torch
    """Return a digest of a module's parameters and buffers: names, types, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        plain = value.detach().cpu().contiguous()
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else repr(plain.item()).encode())
    return digest.hexdigest()


def chosen_device(device: str | None) -> str:
    """Return the device to use; refuse one that torch does not see.

    Raises
    ------
    SettingsError
        A GPU is asked for and there is none, or the name is no device.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device is None:
        return "cuda" if cuda else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"`device` must be cpu, cuda or cuda:N, got {device!r}; {error}") from error
    if kind.type == "cuda" and (not cuda or (kind.index or 0) >= torch.cuda.device_count()):
        seen = f"{torch.cuda.device_count()} GPUs" if cuda else "no GPU"
        raise SettingsError(
            f"`device` must be one that torch sees, got {device!r} where it sees {seen}; leave it out, or install a "
            "build of torch for the GPU"
        )
    return device


def fitting(module: Any, encode: Encode, record: Any, room: int, device: str) -> int:  # noqa: ANN401
    """Return how many records a batch may have in some bytes of memory; on a GPU, in half of what is left there."""
    import torch

    _, record_bytes = weighed(module, lambda: encode([record, record]), 2)
    if torch.device(device).type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] // 2
    return room // max(1, record_bytes)


def halved(encode: Encode, batch: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Encode a batch; where a GPU runs out of memory, encode its halves, and warn.

    Raises
    ------
    SettingsError
        A single record does not fit.
    """
    import torch

    try:
        return encode(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise SettingsError(
                "`device` must have memory for one record, got a GPU that ran out of it; shorten or shrink the records"
            ) from error
    # Out of the handler: the error would hold the tensors of the batch.
    half = (len(batch) + 1) // 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _log.warning("a GPU ran out of memory at a batch of %d records: it goes on with %d", len(batch), half)
    return np.concatenate([halved(encode, batch[:half]), halved(encode, batch[half:])])
