"""The network, and how an image file becomes its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import digits

__all__ = ["DigitsNet", "decode"]


def decode(data: bytes, path: str) -> tuple[Tensor, int]:
    """Return the image as float32[1, 8, 8] from 0 to 1, and its label.

    It stands at module level because a worker process under spawn imports it by name.

    Raises
    ------
    ValueError
        If the bytes are no image of the digits or the folder is no label.
    """
    pixels = torch.from_numpy(digits.decode(data, path).copy())
    return pixels.to(torch.float32).div(digits.MAX_GREY).unsqueeze(0), digits.label_of(path)


class DigitsNet(nn.Module):
    """A small convolutional network: float32[n, 1, 8, 8] → logits, float32[n, 10].

    Parameters
    ----------
    channels
        Feature maps of the first convolution; the others have twice as many.
    dropout
        Share of the last hidden layer that is dropped in training.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(1, channels),
            # A stride rather than max pooling: CUDA's gradient of the latter adds in any order.
            _convolution(channels, 2 * channels, stride=2),
            _convolution(2 * channels, 2 * channels),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * (digits.SIDE // 2) ** 2, digits.LABELS),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return one logit per label."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
