"""The contract of encoders that give what they see before they pool it: tokens.

    class Mine(TokenEncoder, torch.nn.Module):
        def forward_tokens(self, view):               # [B, C, H, W] -> [B, H' W', D]
            return flat(self.net(view))

        def forward(self, view):
            return self.forward_tokens(view).mean(1)  # y [B, dim]

Inherited beside nn.Module by encoders that have tokens; the others are encoders as they are.
"""

# B batch, T tokens, D their width

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TokenEncoder:
    """An encoder with tokens: positions of a map, patches, frames, steps of time, words, residues, atoms."""

    def forward_tokens(self, view: Any) -> Tensor | tuple[Tensor, Tensor]:
        """The last features before they are pooled to y, [B, T, D] float: T >= 1 and D are the encoder's own.
        Where views of a batch differ in length (tokens, mask [B, T] bool), False at what is no token. A class
        token is one of them. Where y is the mean of the tokens, D is `dim`. Raises as `forward` does."""
        raise NotImplementedError(f"encoder '{type(self).__name__}' has no method forward_tokens(view)")


def flat(maps: Tensor) -> Tensor:
    """A map [B, D, ...] of any number of dimensions -> tokens [B, T, D]."""
    return maps.flatten(2).transpose(1, 2)


def with_tokens(model: nn.Module, forward_tokens: Callable[[Any, Any], Any]) -> nn.Module:
    """A library's model as it is, names of tensors included, which is a TokenEncoder now:
    `forward_tokens(model, view)`."""
    model.__class__ = _with_tokens(type(model), forward_tokens)
    return model


@functools.cache
def _with_tokens(kind: type, forward_tokens: Callable) -> type:
    methods = {"forward_tokens": forward_tokens, "__module__": kind.__module__}
    return type(kind.__name__, (TokenEncoder, kind), methods)


def tokens_of(encoder: nn.Module, view: Any) -> tuple[Tensor, Tensor]:
    """(tokens [B, T, D] float32, mask [B, T] bool) of an encoder. Raises ValueError where it gives none."""
    name = type(encoder).__name__
    if not isinstance(encoder, TokenEncoder):
        raise ValueError(
            f"encoder {name} gives y and no tokens, and to look at y alone is what the probe linear does. Use"
            " linear, or let the encoder inherit vicjoint.tokens.TokenEncoder and write its"
            " forward_tokens(view)."
        )
    found = encoder.forward_tokens(view)
    x, mask = found if isinstance(found, tuple) else (found, None)
    if x.ndim != 3 or (mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2])):
        of_mask = "" if mask is None else f" and a mask {str(mask.dtype)[6:]} {list(mask.shape)}"
        raise ValueError(
            f"encoder {name}: forward_tokens gave {list(x.shape)}{of_mask}. Expected tokens [B, T, D], or"
            " (tokens, mask [B, T] bool)."
        )
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x.float(), mask
