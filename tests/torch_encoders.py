"""Encoders of torch that tests and their processes import."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dal.encoders import TorchEncoder
from tests.packaged import image_model

torch = pytest.importorskip("torch", reason="make test-torch runs it")

SIDE = 48


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Preprocess a picture as EfficientNet-Lite0 was trained on, but small."""
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


def pictures() -> TorchEncoder:
    return TorchEncoder(image_model, as_tensor, batch_size=16)


def broken() -> torch.nn.Module:
    """Load weights that do not fit."""
    module = torch.nn.Linear(2, 2)
    module.load_state_dict({"weight": torch.zeros(3, 3)})
    return module


class Tight(torch.nn.Module):
    """Sums its inputs; it runs out of memory beyond some records."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.sum(1, keepdim=True)


def letters(text: str) -> torch.Tensor:
    """Count letters."""
    return torch.tensor([float(text.count(each)) for each in "abcdefghijklmnopqrstuvwxyz"])


class Homed(torch.nn.Linear):
    """Refuses to encode on a worker that has no GPU, as its environment says."""

    def __init__(self) -> None:
        super().__init__(26, 20_000)  # so heavy that it does not travel with each group
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if "NETS_NO_GPU" in os.environ:
            raise RuntimeError("this worker declares no GPU")
        return super().forward(batch)[:, :4]


class Two(torch.nn.Module):
    """Returns two tensors."""

    def forward(self, batch: torch.Tensor) -> Sequence[Any]:
        return batch, batch


def letters_network() -> torch.nn.Module:
    """Make a small network that takes counts of letters."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(26, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8))


class Cramped(torch.nn.Sequential):
    """A small network that runs out of memory beyond some records."""

    def __init__(self, most: int) -> None:
        super().__init__(*letters_network())
        self.most = most

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch)


def by_letters() -> TorchEncoder:
    """Make an encoder that takes no time, and can be trained."""
    return TorchEncoder(letters_network, letters, batch_size=16)
