"""Networks that are measured, and their pictures; all of it needs torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from PIL import Image


class SmallNet(nn.Module):
    """Two convolutions and a linear layer, for grey pictures of 28 x 28."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.25),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(512, n_classes),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one number a class."""
        outputs: torch.Tensor = self.layers(images)
        return outputs


@dataclass(frozen=True)
class Resized:
    """A picture as EfficientNet-Lite wants it; the preprocessing of an encoder.

    Attributes
    ----------
    side : int
        In pixels.
    """

    side: int

    def __call__(self, picture: "Image.Image") -> torch.Tensor:
        """Return the tensor of a picture."""
        pixels = np.asarray(picture.convert("RGB").resize((self.side, self.side)), np.float32)
        return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)
