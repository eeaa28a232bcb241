"""Networks and learners of torch that tests name as a user would: `tests.nets:learner`."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from dal.learners.deep import TorchClassifier

FEW = 500
"""Records that are no batch of a scan."""


class Dense(nn.Module):
    """A layer, dropout, a layer."""

    def __init__(self, n_classes: int, width: int = 16, n_features: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, n_classes)
        )

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(X)
        return out


class Lazy(nn.Module):
    """The width of the input is found when the first records come."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.LazyLinear(n_classes))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(X)
        return out


class Images(nn.Module):
    """A small convolutional network; it insists on pictures of one channel, channels first, from 0 to 1."""

    def __init__(self, n_classes: int, channels: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
            nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(4 * channels, n_classes),
        )  # fmt: skip

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        assert X.shape[1] == 1
        assert 0 <= float(X.min()) <= float(X.max()) <= 1
        out: torch.Tensor = self.layers(X.view(len(X), *X.shape[1:]))
        return out


class Wide(Dense):
    """One output too many."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes + 1)


class Undefined(Dense):
    """Outputs that are no numbers, but in training."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        out = super().forward(X)
        return out if self.training else out * float("nan")


class Exploding(Dense):
    """A loss that is no number."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return super().forward(X) * float("inf")


class Cramped(Dense):
    """A device that holds four records at once in training and eight in prediction."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if len(X) > (4 if self.training else 8):
            raise torch.OutOfMemoryError("CUDA out of memory, as it is simulated here")
        return super().forward(X)


class Full(Dense):
    """A device that holds no record."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if not self.training and len(X) == 2:
            return super().forward(X)  # the two that are tried first
        raise torch.OutOfMemoryError("CUDA out of memory, as it is simulated here")


class Mortal(Images):
    """Kill the process once, in the middle of a fit or of a scan: the file that NETS_KILL names says where."""

    passes: ClassVar[Counter[str]] = Counter()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        file = Path(os.environ.get("NETS_KILL", os.devnull))
        doing = "fit" if self.training else "scan" if len(X) > FEW else "predict"
        self.passes[doing] += 1
        if file.is_file() and file.read_text() == f"{doing} {self.passes[doing]}":
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(X)


def pictures(n_classes: int) -> Images:
    """Make a network, as a function does."""
    return Images(n_classes, channels=6)


def mortal(random_state: int) -> TorchClassifier:
    """Return a learner that may be killed."""
    return TorchClassifier(Mortal, shape=(8, 8, 1), std=255, max_epochs=10, batch_size=32, random_state=random_state)


def learner(random_state: int) -> TorchClassifier:
    """Return a learner of pictures of 8 x 8 bytes."""
    return TorchClassifier(Images, shape=(8, 8, 1), std=255, max_epochs=12, random_state=random_state)


class Placed(Images):
    """Refuse to predict on a worker that has no GPU, as its environment says; its weights say where it was fitted."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.register_buffer("process", torch.tensor(os.getpid()))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if "NETS_NO_GPU" in os.environ:
            raise RuntimeError("this worker declares no GPU")
        return super().forward(X)


def placed(random_state: int) -> TorchClassifier:
    """Return a learner that wants a GPU."""
    return TorchClassifier(Placed, shape=(8, 8, 1), std=255, max_epochs=4, random_state=random_state)
