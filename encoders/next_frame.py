"""Encoders of the next frame: view [B, C, H, W] float, normalised -> y [B, dim].

A next frame is an image, so every encoder registered for `image` works here too (conv, resnet18, vit_b_16,
...). This file holds what serves next frames in particular:

    b: {modality: next_frame, encoder: {name: conv_coords, width: 32}}
"""

import torch
from torch import Tensor

from encoders.image import ConvEncoder
from vicjoint.options import Count
from vicjoint.registry import register_encoder
from vicjoint.tokens import Tokens


@register_encoder("next_frame", "conv_coords")
class ConvCoords(ConvEncoder):
    """The small CNN with two more channels, the x and y coordinate of each pixel in [-1, 1] (CoordConv, Liu
    et al. 2018), so that its filters can tell where they are; positions are most of what changes between a
    clip and its next frame.
    """

    def __init__(self, width: Count = 32, dim: Count = 256, channels: Count = 3):
        super().__init__(width, dim, channels + 2)

    def forward(self, view: Tensor) -> Tensor:
        return super().forward(with_coordinates(view))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return super().forward_tokens(with_coordinates(view))

    def forward_both(self, view: Tensor) -> tuple[Tensor, Tokens]:
        return super().forward_both(with_coordinates(view))


def with_coordinates(view: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C + 2, H, W]."""
    B, _, H, W = view.shape
    y = torch.linspace(-1, 1, H, device=view.device, dtype=view.dtype).view(1, 1, H, 1).expand(B, 1, H, W)
    x = torch.linspace(-1, 1, W, device=view.device, dtype=view.dtype).view(1, 1, 1, W).expand(B, 1, H, W)
    return torch.cat([view, x, y], 1)
