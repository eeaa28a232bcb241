"""A network that is measured; it needs torch."""

import torch
from torch import nn


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
