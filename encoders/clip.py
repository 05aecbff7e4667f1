"""Encoders of clips: view [B, C, T, H, W] float, normalised -> y [B, dim].

encoder: {name: conv_gru, width: 32}  # small CNN per frame, then a GRU: quick on a CPU
encoder: {name: conv_stack, width: 32, frames: 8}  # all frames as channels of one CNN: quicker still
# a CNN per frame, parts of time kept apart: a sentence, a gesture
encoder: {name: conv_time, width: 16, slots: 12}
encoder: {name: frame_and_motion, frames: 4}  # the last frame's y moved on; takes single frames too
encoder: {name: each_frame, image: {name: conv}}  # a y of each frame, for a predictor that looks back
encoder: {name: r3d_18}  # torchvision's video models, random weights
encoder: {name: mvit_v2_s, spatial_size: [64, 64], temporal_size: 8}
# any image encoder + a transformer over time
encoder: {name: frames_transformer, image: {name: resnet18}}
"""

# B batch, C channels, T frames, H height, W width, D representation

from typing import Annotated

import torch
import torchvision
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.video import MViT

from encoders.image import (
    ConvTrunk,
    expect_size,
    load_weights,
    remove_head,
    torchvision_both,
    torchvision_encoder,
    torchvision_tokens,
)
from vicjoint.options import ComponentOf, Count, ShareBelowOne
from vicjoint.registry import ComponentError, build_encoder, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, flat, with_tokens


@register_encoder("clip", "conv_gru")
class ConvGRU(TokenEncoder, nn.Module):
    """A small CNN on each frame, a GRU over time; y joins its last state (motion) with the last frame's
    feature (position), which together say what comes next. Tokens: the same of every frame, y the last."""

    def __init__(self, width: Count = 32, dim: Count = 256, channels: Count = 3):
        super().__init__()
        self.dim = dim
        self.trunk = ConvTrunk(channels, width, coarse=True)
        self.project = nn.Linear(self.trunk.features, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.join = nn.Linear(2 * dim, dim)

    def forward(self, view: Tensor) -> Tensor:
        frames_BTD = self._frames(view)
        _, state = self.gru(frames_BTD)
        return self.join(torch.cat([state[-1], frames_BTD[:, -1]], 1))

    def forward_tokens(self, view: Tensor) -> Tokens:
        frames_BTD = self._frames(view)
        joined_BTD = self.join(torch.cat([self.gru(frames_BTD)[0], frames_BTD], 2))
        return Tokens(joined_BTD, grid=(joined_BTD.shape[1],))

    def _frames(self, view: Tensor) -> Tensor:
        frames = self.project(self.trunk(rearrange(view, "b c t h w -> (b t) c h w")))
        return rearrange(frames, "(b t) d -> b t d", b=view.shape[0])


class OverTime(nn.Module):
    """Features [B, D, T] of any number of steps -> [B, dim]: means over `slots` equal parts of time, kept
    apart, then a linear layer. So y says what was when, to the length of a slot. In training, `dropout` is
    the share of the means that are set to 0.
    """

    def __init__(self, features: int, slots: int, dim: int, dropout: float):
        super().__init__()
        self.slots, self.dropout = slots, nn.Dropout(dropout)
        self.project = nn.Linear(features * slots, dim)

    def forward(self, features_BDT: Tensor) -> Tensor:
        return self.project(
            self.dropout(nn.functional.adaptive_avg_pool1d(features_BDT, self.slots).flatten(1))
        )


def over_time(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    """A convolution of five steps, [B, before, T] -> [B, after, T / stride], with batch norm and ReLU."""
    return [
        nn.Conv1d(before, after, 5, stride, padding=2, bias=False),
        nn.BatchNorm1d(after),
        nn.ReLU(inplace=True),
    ]


@register_encoder("clip", "conv_time")
class ConvTime(TokenEncoder, nn.Module):
    """A small CNN on each frame, as it differs from the clip's mean and from the frame before, a convolution
    over five frames, and means over `slots` parts of time, which are kept apart: for clips of a whole
    sentence or gesture, of any number of frames. Tokens: one for each frame."""

    def __init__(
        self,
        width: Count = 32,
        features: Count = 128,
        slots: Count = 8,
        dim: Count = 256,
        dropout: ShareBelowOne = 0.0,
        channels: Count = 3,
    ):
        super().__init__()
        self.dim = dim
        self.trunk = ConvTrunk(2 * channels, width, coarse=True)
        self.frame = nn.Sequential(
            nn.Linear(self.trunk.features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(inplace=True),
        )
        self.time = nn.Sequential(*over_time(features, features))
        self.slots = OverTime(features, slots, dim, dropout)

    def forward(self, view: Tensor) -> Tensor:
        return self.slots(self._over_time(view))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self._over_time(view))

    def _over_time(self, view: Tensor) -> Tensor:
        features = self.frame(self.trunk.after_first(self._of_differences(view)))
        return self.time(rearrange(features, "(b t) d -> b d t", b=view.shape[0]))

    def _of_differences(self, view: Tensor) -> Tensor:
        """The first convolution over the channels [frame - mean frame, frame - frame before] (nothing before
        the first), [B T, width, h, w]. It is linear, so the differences are taken between its small maps, in
        two thirds of the time."""
        conv = self.trunk.layers[0]
        of_moving, of_change = conv.weight.chunk(2, 1)

        def maps(frames: Tensor, weight: Tensor) -> Tensor:
            return nn.functional.conv2d(
                frames.contiguous(memory_format=torch.channels_last), weight, None, conv.stride, conv.padding
            )

        frames = rearrange(view, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)
        now = maps(frames, of_moving + of_change).unflatten(0, (view.shape[0], -1))
        change = maps(frames, of_change).unflatten(0, (view.shape[0], -1))
        before = torch.cat([change[:, :1], change[:, :-1]], 1)
        return (now - before - maps(view.mean(2), of_moving)[:, None]).flatten(0, 1)


@register_encoder("clip", "conv_stack")
class ConvStack(TokenEncoder, nn.Module):
    """Early fusion: the `frames` frames and their successive differences (which show motion) are channels of
    one small CNN."""

    def __init__(self, width: Count = 32, dim: Count = 256, frames: Count = 8, channels: Count = 3):
        super().__init__()
        self.dim, self.frames = dim, frames
        self.trunk = ConvTrunk(channels * (2 * frames - 1), width)
        self.trunk.layers[0] = OverDifferences(self.trunk.layers[0], frames)
        self.project = nn.Linear(self.trunk.features, dim)

    def forward(self, view: Tensor) -> Tensor:
        return self.project(self.trunk(self._stacked(view)))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self.trunk.map(self._stacked(view)))

    def _stacked(self, view: Tensor) -> Tensor:
        if view.shape[2] != self.frames:
            raise ValueError(
                f"encoder 'conv_stack' was built for {self.frames} frames, got a clip of {view.shape[2]}. "
                "Set the encoder's frames to the pair's frames."
            )
        return rearrange(view, "b c t h w -> b (c t) h w")


class OverDifferences(nn.Module):
    """A convolution whose input channels are, per colour, T frames and their T - 1 successive differences,
    applied to the frames alone [B, C T, H, W]: both are linear, so the weights of the differences are moved
    to the frames, and nothing has to be subtracted.
    """

    def __init__(self, conv: nn.Conv2d, frames: int):
        super().__init__()
        self.conv, self.frames = conv, frames

    def forward(self, x: Tensor) -> Tensor:
        weight = rearrange(self.conv.weight, "o (c k) h w -> o c k h w", k=2 * self.frames - 1)
        of_frames, of_differences = weight.split([self.frames, self.frames - 1], dim=2)
        pad = nn.functional.pad
        # difference k is frame k + 1 minus frame k
        weight = of_frames + pad(of_differences, (0, 0, 0, 0, 1, 0)) - pad(of_differences, (0, 0, 0, 0, 0, 1))
        return nn.functional.conv2d(
            x, rearrange(weight, "o c t h w -> o (c t) h w"), None, self.conv.stride, self.conv.padding
        )


@register_encoder("clip", "frame_and_motion")
class FrameAndMotion(TokenEncoder, nn.Module):
    """y of a clip = y of its last frame + a change, read from that frame and the successive differences
    before it.

    A single frame [B, C, H, W] has a y as well, through the same CNN, so with `b: {weights: same}` both
    branches are one encoder: the clip's prediction starts as an exact copy of its last frame, and what is
    learnt is how frames differ and what moves. Two encoders of their own have to find each other's code
    first, to well below the change from one frame to the next; where that change is small (a talking face),
    they spend most of a short run on it.

    The change starts at zero. `gain` multiplies the differences, which in real video are some hundredths of
    the pixels' range. Tokens: positions of the frame's map, beside them those of the motion's for a clip.
    """

    def __init__(
        self,
        width: Count = 32,
        dim: Count = 256,
        frames: Annotated[int, Field(ge=2)] = 4,
        gain: float = 16.0,
        channels: Count = 3,
    ):
        super().__init__()
        self.dim, self.frames, self.gain = dim, frames, gain
        self.trunk = ConvTrunk(channels, width)
        self.project = nn.Linear(self.trunk.features, dim)
        self.motion = ConvTrunk(channels * frames, width)
        self.change = nn.Linear(self.motion.features, dim)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, view: Tensor) -> Tensor:
        if view.ndim == 4:
            return self.project(self.trunk(view))
        last, seen = self._moving(view)
        return self.project(self.trunk(last)) + self.change(self.motion(seen))

    def forward_tokens(self, view: Tensor) -> Tokens:
        if view.ndim == 4:
            return flat(self.trunk.map(view))
        last, seen = self._moving(view)
        return flat(torch.cat([self.trunk.map(last), self.motion.map(seen)], 1))

    def _moving(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """The last frame, and what the motion is read from: that frame and the differences before it."""
        if view.shape[2] != self.frames:
            raise ValueError(
                f"encoder 'frame_and_motion' was built for {self.frames} frames, got a clip of"
                f" {view.shape[2]}. Set the encoder's frames to the pair's frames."
            )
        last = view[:, :, -1]
        return last, torch.cat([last, rearrange(view.diff(dim=2) * self.gain, "b c t h w -> b (c t) h w")], 1)


@register_encoder("clip", "each_frame")
class EachFrame(TokenEncoder, nn.Module):
    """Any image encoder, `image: {name: conv, ...}`, on each frame by itself. Tokens: y of each frame, in
    order; y of a clip is their mean, and of a single frame [B, C, H, W] its own. With `b: {weights: same}`
    and a predictor that looks back, clips and frames lie in one space, in which the predictor moves on.

    Windows of one video share frames: in training each that is there several times is encoded once, and
    counts once in batch norm."""

    def __init__(self, image: Annotated[dict, ComponentOf("encoder", prefix="image/")]):
        super().__init__()
        self.image = build_encoder("image", **image)
        self.dim = self.image.dim

    def forward(self, view: Tensor) -> Tensor:
        return self._frames(view) if view.ndim == 4 else self.forward_tokens(view).x.mean(1)

    def forward_tokens(self, view: Tensor) -> Tokens:
        clips = view[:, :, None] if view.ndim == 4 else view
        frames = self._frames(rearrange(clips, "b c t h w -> (b t) c h w"))
        return Tokens(rearrange(frames, "(b t) d -> b t d", b=len(view)), grid=(clips.shape[2],))

    def _frames(self, frames: Tensor) -> Tensor:
        if not self.training:  # of one clip no frame comes twice, and an export has fixed shapes
            return self.image(frames)
        first, place = distinct(frames)
        return self.image(frames[first])[place]


def distinct(frames: Tensor) -> tuple[Tensor, Tensor]:
    """(numbers [U] of those of frames [N, C, H, W] that differ, in order; of each frame the place [N] of its
    equal among these)."""
    x = frames.detach().flatten(1).float()
    # two float32 as one integer; sums of products with fixed numbers, which wrap around, tell frames apart
    bits = nn.functional.pad(x, (0, x.shape[1] % 2)).contiguous().view(torch.int64)
    fixed = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (bits.shape[1],), generator=fixed).to(x.device)
    _, place, counts = (bits * factors).sum(1).unique(return_inverse=True, return_counts=True)
    each = torch.arange(len(x), device=x.device)
    first = each.new_full((len(counts),), len(x)).scatter_reduce(0, place, each, "amin")
    if not torch.equal(x[first][place], x):  # no sum of a few numbers is quite sure
        return each, each
    first, order = first.sort()
    return first, order.argsort()[place]


@register_encoder("clip", "frames_transformer")
class FramesTransformer(TokenEncoder, nn.Module):
    """Any image encoder on each frame, `image: {name: resnet18, ...}`, then a transformer over time with a
    learnt position for each frame; y is its class token, normalised. Clips may have up to `max_frames`
    frames. Tokens: the class token and one for each frame."""

    def __init__(
        self,
        image: Annotated[dict, ComponentOf("encoder", prefix="image/")],
        layers: Count = 2,
        heads: Count = 4,
        dim: Count = 256,
        max_frames: Count = 64,
    ):
        super().__init__()
        if dim % heads:
            raise ComponentError(
                f"encoder 'frames_transformer': dim {dim} cannot be shared by {heads} heads. "
                f"Use a multiple of {heads}."
            )
        self.dim, self.max_frames = dim, max_frames
        self.image = build_encoder("image", **image)
        self.project = nn.Linear(self.image.dim, dim)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, max_frames, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )

    def forward(self, view: Tensor) -> Tensor:
        return self.forward_tokens(view).x[:, 0]

    def forward_tokens(self, view: Tensor) -> Tokens:
        B, _, T, _, _ = view.shape
        if T > self.max_frames:
            raise ValueError(
                f"encoder 'frames_transformer' takes at most {self.max_frames} frames, got {T}. "
                "Raise the encoder's max_frames."
            )
        frames = self.image(rearrange(view, "b c t h w -> (b t) c h w"))
        frames_BTD = rearrange(self.project(frames), "(b t) d -> b t d", b=B) + self.position[:, :T]
        return Tokens(self.transformer(torch.cat([self.token.expand(B, -1, -1), frames_BTD], 1)), grid=(T,))


# ---- torchvision's video models, without their heads ----


def _register_video(name: str) -> None:
    if name.startswith("mvit"):

        def build(weights: str | None = None, spatial_size: list[int] = (224, 224), temporal_size: int = 16):
            model = with_tokens(
                mvit(name, tuple(spatial_size), temporal_size), torchvision_tokens, torchvision_both
            )
            model.dim = remove_head(model)
            if weights is not None:
                load_weights(model, name, weights)
            return expect_size(
                model,
                (temporal_size, *spatial_size),
                "Set the encoder's temporal_size to the clip's frames and "
                "spatial_size to its [height, width].",
            )

    else:

        def build(weights: str | None = None):
            model = torchvision_encoder(name, weights)
            if name == "s3d":
                # equal to its fixed 2 x 7 x 7 window at the published 16 x 224 x 224, and smaller clips fit
                # too
                model.avgpool = nn.AdaptiveAvgPool3d(1)
            return model

    build.__qualname__ = build.__name__ = name
    build.__doc__ = f"torchvision's {name} without its classification layer."
    register_encoder("clip", name)(build)


def mvit(name: str, spatial_size: tuple[int, int], temporal_size: int) -> MViT:
    """torchvision's MViT `name` for clips of another size: its builders fix 16 x 224 x 224, so let the
    builder hand its block settings to a recorder in place of a block, and build the model from them."""
    if (
        len(spatial_size) != 2
        or min(*spatial_size, temporal_size) < 1
        or any(s % 32 for s in spatial_size)
        or temporal_size % 2
    ):
        raise ComponentError(
            f"encoder '{name}': spatial_size is {list(spatial_size)} and temporal_size {temporal_size}; "
            "expected [height, width] in multiples of 32 and an even number of frames."
        )
    blocks: list[dict] = []

    def record(**settings) -> nn.Module:
        blocks.append(settings)
        return nn.Identity()

    torchvision.models.get_model_builder(name)(block=record)
    last = blocks[-1]
    return MViT(
        spatial_size=spatial_size,
        temporal_size=temporal_size,
        block_setting=[block["cnf"] for block in blocks],
        stochastic_depth_prob=last[
            "stochastic_depth_prob"
        ],  # it grows with depth: the last block has the model's own
        **{
            key: last[key]
            for key in (
                "residual_pool",
                "residual_with_cls_embed",
                "rel_pos_embed",
                "proj_after_attn",
                "norm_layer",
            )
        },
    )


for _name in torchvision.models.list_models(module=torchvision.models.video):
    _register_video(_name)
