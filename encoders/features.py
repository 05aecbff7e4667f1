"""Encoders of features: view (x [B, T, input_dim] float, mask [B, T] bool) -> y [B, dim]; a vector is one
token. Padding is masked everywhere. `input_dim` is the modality's.

    encoder: {name: mlp, width: 512, layers: 2}           # of the vector, or of the mean of the tokens
    encoder: {name: transformer, width: 128, layers: 2}   # over the tokens
"""

# B batch, T tokens, D representation

from typing import Literal

from torch import Tensor, nn

from encoders.text import SequenceTransformer, masked_mean
from vicjoint.options import Count, ShareBelowOne
from vicjoint.registry import register_encoder
from vicjoint.tokens import TokenEncoder


@register_encoder("features", "mlp")
class FeaturesMLP(TokenEncoder, nn.Module):
    """`layers` times linear, layer norm, GELU and dropout, then a linear layer to `dim`; of a sequence, over
    the mean of its tokens."""

    def __init__(
        self,
        input_dim: Count = 512,
        width: Count = 512,
        layers: Count = 2,
        dim: Count = 256,
        dropout: ShareBelowOne = 0.0,
    ):
        super().__init__()
        self.dim = dim
        net: list[nn.Module] = []
        for inputs in [input_dim] + [width] * (layers - 1):
            net += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*net, nn.Linear(width, dim))

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        return self.net(masked_mean(*view))

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return view


@register_encoder("features", "transformer")
class FeaturesTransformer(SequenceTransformer):
    """A linear layer to `width` and a small transformer over the tokens; learned positions need the
    modality's length."""

    def __init__(
        self,
        input_dim: Count = 512,
        width: Count = 128,
        layers: Count = 2,
        heads: Count = 4,
        dim: Count = 256,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        length: Count = 1024,
    ):
        super().__init__(nn.Linear(input_dim, width), width, layers, heads, dim, positions, length)
