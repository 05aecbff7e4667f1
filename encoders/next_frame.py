"""Encoders for a next frame alone. Every image encoder works for it too, by its name.

A view is [B, 3, H, W] float, normalised; y is [B, dim].
"""

import torch
from torch import Tensor, nn

from encoders.image import ConvEncoder
from vicjoint.registry import register_encoder


@register_encoder("next_frame", "conv_coordinates")
class ConvCoordinates(nn.Module):
    """The small `conv` with two more channels that hold each pixel's x and y in [-1, 1] (CoordConv, Liu et al. 2018)."""

    def __init__(self, width: int = 32, dim: int = 256):
        super().__init__()
        self.conv = ConvEncoder(width, dim, channels=5)
        self.dim = dim

    def forward(self, view: Tensor) -> Tensor:
        batch, _, height, width = view.shape
        y = torch.linspace(-1, 1, height, device=view.device, dtype=view.dtype).view(1, 1, height, 1).expand(batch, 1, height, width)
        x = torch.linspace(-1, 1, width, device=view.device, dtype=view.dtype).view(1, 1, 1, width).expand(batch, 1, height, width)
        return self.conv(torch.cat([view, x, y], 1))
