"""Images, next frames and clips: uint8 pixels with channels first -> normalised float views."""

import torch
from torch import Tensor, nn

from vicjoint.modalities.base import Modality
from vicjoint.registry import register

SIMPLE_SIDE = 32  # pixels, of what an image is averaged to as its simple features
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register("modality", "image")
@register("modality", "next_frame")
@register("modality", "clip")
class Pixels(Modality):
    """uint8 [B, C, (T,) H, W] in 0..255 -> float view of the same shape, (x / 255 - mean) / std per channel.
    A float input is taken to be in [0, 1] already. `mean` and `std` have one number per channel."""

    baseline = "pixels"

    def __init__(self, mean: list[float] = IMAGENET_MEAN, std: list[float] = IMAGENET_STD):
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"modality: mean {list(mean)} and std {list(std)} need one number per channel each, std above 0.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] != len(self.mean):
            raise ValueError(f"a view of shape {list(pixels.shape)} has {pixels.shape[1]} channels; this modality's mean has {len(self.mean)}.")
        shape = (1, -1) + (1,) * (pixels.ndim - 2)
        scale = 1 / (255 * self.std) if pixels.dtype == torch.uint8 else 1 / self.std
        return (pixels * scale.view(shape)).sub_((self.mean / self.std).view(shape))  # the product of bytes and floats is float

    def simple_features(self, raw: Tensor) -> Tensor:
        """The pixels in [0, 1], averaged to at most 32 x 32; of a clip, to at most 16 x 16 in each frame."""
        x = raw.float() / 255 if raw.dtype == torch.uint8 else raw
        side = SIMPLE_SIDE if x.ndim == 4 else SIMPLE_SIDE // 2
        if max(x.shape[-2:]) > side:
            x = nn.functional.adaptive_avg_pool2d(x.flatten(0, -4), side)
        return x.reshape(len(raw), -1)
