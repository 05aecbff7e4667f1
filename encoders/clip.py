"""Encoders of clips: two small ones for the CPU, torchvision's video models, and any image encoder with a transformer over time.

A view is [B, 3, T, H, W] float, normalised; y is [B, dim].
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from encoders.image import ConvEncoder, WithoutHead, torchvision_model
from vicjoint.registry import ComponentError, build_encoder, register_encoder

TORCHVISION = ("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t", "swin3d_s", "swin3d_b")
MVIT = ("mvit_v1_b", "mvit_v2_s")


@register_encoder("clip", "conv_stack")
class ConvStack(nn.Module):
    """The small `conv` on all frames at once, stacked as channels together with the differences from each frame to the next
    (early fusion): motion is seen at full resolution, for about the price of one frame. `frames` is the pair's T."""

    def __init__(self, frames: int = 8, width: int = 32, dim: int = 256):
        super().__init__()
        self.frames, self.dim = frames, dim
        self.conv = ConvEncoder(width, dim, channels=3 * (2 * frames - 1))

    def forward(self, view: Tensor) -> Tensor:
        if view.shape[2] != self.frames:
            raise ComponentError(f"conv_stack was built for {self.frames} frames and got a clip of {view.shape[2]}. Set its option frames to pair.frames.")
        stacked = torch.cat([view, view.diff(dim=2)], 2)
        return self.conv(rearrange(stacked, "b c t h w -> b (t c) h w"))


@register_encoder("clip", "conv_gru")
class ConvGRU(nn.Module):
    """The small `conv` on each frame and a GRU over time. y is the last state beside the last frame's features, so `dim` of
    the module is twice the option. Any T."""

    def __init__(self, width: int = 32, dim: int = 128):
        super().__init__()
        self.conv = ConvEncoder(width, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.dim = 2 * dim

    def forward(self, view: Tensor) -> Tensor:
        frames = self.conv(rearrange(view, "b c t h w -> (b t) c h w"))
        states, _ = self.gru(rearrange(torch.relu(frames), "(b t) d -> b t d", b=len(view)))
        return torch.cat([states[:, -1], rearrange(frames, "(b t) d -> b t d", b=len(view))[:, -1]], 1)


@register_encoder("clip", "frames_transformer")
class FramesTransformer(nn.Module):
    """Any image encoder on each frame (`image: {name: resnet18, ...}`) and a transformer over time with learned positions; y is
    the state of the last frame, which sees all the others. `max_frames` bounds T."""

    def __init__(self, image: dict = {"name": "conv"}, dim: int = 256, layers: int = 2, heads: int = 4, max_frames: int = 64):
        super().__init__()
        options = dict(image)
        if "name" not in options:
            raise ComponentError(f"frames_transformer.image: {image} has no name. Expected e.g. {{name: resnet18}}.")
        self.image = build_encoder("image", options.pop("name"), **options)
        self.dim, self.max_frames = dim, max_frames
        self.project = nn.Linear(self.image.dim, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(max_frames, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.time = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, view: Tensor) -> Tensor:
        frames = view.shape[2]
        if frames > self.max_frames:
            raise ComponentError(f"frames_transformer takes up to {self.max_frames} frames and got {frames}. Raise its option max_frames.")
        tokens = self.project(self.image(rearrange(view, "b c t h w -> (b t) c h w")))
        tokens = rearrange(tokens, "(b t) d -> b t d", t=frames) + self.positions[:frames]
        return self.time(tokens)[:, -1]


class MViT(WithoutHead):
    """A multiscale vision transformer. Its positions fix the clip's size, and torchvision builds it for 16 frames of 224 x 224."""

    EXPECTED = (16, 224, 224)

    def forward(self, view: Tensor) -> Tensor:
        if tuple(view.shape[2:]) != self.EXPECTED:
            raise ComponentError(f"mvit takes clips of {list(self.EXPECTED)} (T, H, W) and got {list(view.shape[2:])}. "
                                 "Set pair.frames=16 and pair.size=224.")
        return super().forward(view)


def _register_torchvision(name: str, kind: type[WithoutHead]) -> None:
    def build(weights: str | None = None) -> nn.Module:
        return kind(torchvision_model(name, weights))
    build.__doc__ = f"torchvision's {name} without its head; see `torchvision_model` for `weights`."
    build.__qualname__ = f"torchvision {name}"
    register_encoder("clip", name)(build)


for _name in TORCHVISION + MVIT:
    _register_torchvision(_name, MViT if _name in MVIT else WithoutHead)
