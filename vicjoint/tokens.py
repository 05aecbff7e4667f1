"""The contract of encoders that give what they see before they pool it: tokens.

    class Mine(TokenEncoder, torch.nn.Module):
        def forward_tokens(self, view):                 # [B, C, H, W] -> [B, H' W', D] and the grid
            return flat(self.net(view))

        def forward(self, view):
            return self.forward_tokens(view).x.mean(1)  # y [B, dim]

Inherited beside nn.Module by encoders that have tokens; the others are encoders as they are.
"""

# B batch, T tokens, D their width

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

SPECIAL = 5  # tokens before the patches that are none: a class token and four registers


class Tokens(NamedTuple):
    """x: [B, T, D] float. mask: [B, T] bool, False at what is no token; None: all are. grid: how many cells
    there are along each axis, (H', W') of pictures, (T', H', W') of clips, (T',) along time, (bands, T') of
    spectrograms. The last tokens are its cells, row by row; those before them, such as a class token, stand
    outside of it. None: the encoder knows of none."""

    x: Tensor
    mask: Tensor | None = None
    grid: tuple[int, ...] | None = None


class TokenEncoder:
    """An encoder with tokens: positions of a map, patches, frames, steps of time, words, residues, atoms."""

    def forward_tokens(self, view: Any) -> Tensor | tuple[Tensor, Tensor] | Tokens:
        """The last features before they are pooled to y, [B, T, D] float: T >= 1 and D are the encoder's own.
        Where views of a batch differ in length (tokens, mask [B, T] bool), False at what is no token; where
        tokens lie on a grid Tokens, such as `flat` gives of a map. A class token is one of them. Where y is
        the mean of the tokens, D is `dim`. Raises as `forward` does."""
        raise NotImplementedError(f"encoder '{type(self).__name__}' has no method forward_tokens(view)")

    def forward_both(self, view: Any) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | Tokens]:
        """(y [B, dim], tokens) of a view, for training on both. Here in two passes; an encoder that knows how
        takes one."""
        return cast(Any, self).forward(view), self.forward_tokens(view)

    @property
    def token_dim(self) -> int:
        """Their width D, where it is not `dim`."""
        return cast(Any, self).dim


def flat(maps: Tensor) -> Tokens:
    """A map [B, D, ...] of any number of dimensions -> tokens [B, T, D] and their grid."""
    return Tokens(maps.flatten(2).transpose(1, 2), grid=tuple(maps.shape[2:]))


def on_grid(x: Tensor, grid: Sequence[int]) -> Tokens:
    """Tokens x [B, T, D] of a transformer with the grid of its patches; without one where there are fewer
    tokens than patches, or many more."""
    return Tokens(x, grid=tuple(grid) if 0 <= x.shape[1] - math.prod(grid) <= SPECIAL else None)


def of_patches(x: Tensor, view: Tensor, side: Any) -> Tokens:
    """What a library's model of pictures gives last, a map [B, D, H', W'], or tokens [B, T, D] of patches of
    `side` pixels of view [B, C, H, W], where that is a whole number."""
    if x.ndim > 3:
        return flat(x)
    return on_grid(x, [size // side for size in view.shape[2:]]) if isinstance(side, int) else Tokens(x)


def with_tokens(
    model: nn.Module,
    forward_tokens: Callable[[Any, Any], Any],
    forward_both: Callable[[Any, Any], Any] | None = None,
) -> nn.Module:
    """A library's model as it is, names of tensors included, which is a TokenEncoder now:
    `forward_tokens(model, view)`, and `forward_both(model, view)`; None: in two passes."""
    model.__class__ = _with_tokens(type(model), forward_tokens, forward_both)
    return model


@functools.cache
def _with_tokens(kind: type, forward_tokens: Callable, forward_both: Callable | None) -> type:
    methods = {"forward_tokens": forward_tokens, "__module__": kind.__module__}
    if forward_both is not None:
        methods["forward_both"] = forward_both
    return type(kind.__name__, (TokenEncoder, kind), methods)


def token_encoder(encoder: nn.Module) -> TokenEncoder:
    """The encoder. Raises ValueError where it gives no tokens."""
    if not isinstance(encoder, TokenEncoder):
        raise ValueError(
            f"encoder {type(encoder).__name__} gives y and no tokens. Use what looks at y alone (the probe"
            " linear, the level pooled), or let the encoder inherit vicjoint.tokens.TokenEncoder and write"
            " its forward_tokens(view)."
        )
    return encoder


def tokens_of(encoder: nn.Module, view: Any) -> Tokens:
    """Tokens of an encoder, x float32 and with a mask. Raises ValueError where it gives none."""
    return _checked(encoder, token_encoder(encoder).forward_tokens(view))


def steps_of(encoder: nn.Module, view: Any) -> Tensor:
    """y of each step along the time of a view, [B, T, D] float32: the tokens of an encoder that gives one for
    each step. Raises ValueError where they are something else."""
    given = token_encoder(encoder).forward_tokens(view)
    x, _, grid = _checked(encoder, given)
    masked = isinstance(given, tuple) and len(given) > 1 and given[1] is not None
    if masked or grid != (x.shape[1],) or x.shape[2] != cast(Any, encoder).dim:
        raise ValueError(
            f"encoder {type(encoder).__name__}: its tokens, {x.shape[1]} of width {x.shape[2]} on"
            f" {'no grid' if grid is None else list(grid)}, are no y (width {cast(Any, encoder).dim}) of each"
            " step of time, at which this predictor looks back. Use the encoder each_frame, or a predictor of"
            " one embedding, such as mlp."
        )
    return x


def each_step(module: nn.Module, x: Tensor) -> Tensor:
    """A module of rows on [B, D], or on each step of [B, T, D]."""
    return module(x) if x.ndim == 2 else module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def y_and_map_of(encoder: nn.Module, view: Any) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """(y [B, dim], the cells of its map [B, H' W', D] float32, their grid) of views of pictures, in one pass
    where the encoder takes one. Raises ValueError where it gives no map."""
    y, given = token_encoder(encoder).forward_both(view)
    x, _, grid = _checked(encoder, given)
    if grid is None or len(grid) != 2:
        raise ValueError(
            f"encoder {type(encoder).__name__} gives tokens on {'no grid' if grid is None else list(grid)}."
            " Comparing the cells of two maps needs rows and columns, [H', W']. Choose another encoder, or an"
            " objective of y alone, such as vicreg."
        )
    return y, x[:, x.shape[1] - math.prod(grid) :], (grid[0], grid[1])


def _checked(encoder: nn.Module, given: Any) -> Tokens:
    """What an encoder gave as tokens, x float32 and with a mask."""
    name = type(encoder).__name__
    found: Any = given if isinstance(given, tuple) else (given,)
    x, mask, grid = Tokens(*found)
    if x.ndim != 3 or (mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2])):
        of_mask = "" if mask is None else f" and a mask {str(mask.dtype)[6:]} {list(mask.shape)}"
        raise ValueError(
            f"encoder {name}: forward_tokens gave {list(x.shape)}{of_mask}. Expected tokens [B, T, D], or"
            " (tokens, mask [B, T] bool)."
        )
    if grid is not None and math.prod(grid) > x.shape[1]:
        raise ValueError(
            f"encoder {name}: forward_tokens gave {x.shape[1]} tokens on a grid {list(grid)}. Expected a"
            " token for each of its cells."
        )
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return Tokens(x.float(), mask, grid)
