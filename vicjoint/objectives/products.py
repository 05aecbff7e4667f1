"""Where the objectives' time goes: symmetric products, and going through memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

IN_CACHE = 2**18  # numbers
LEAST = 128  # rows of a product that is not worth halving


def row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same blocks of rows of each tensor [N, D] (or [N]), so that several steps meet them while they are
    in a CPU's cache; views, to be read or written in place."""
    rows = len(tensors[0]) if tensors[0].is_cuda else IN_CACHE // max(1, tensors[0].shape[1])
    return zip(*(t.split(max(1, rows)) for t in tensors))


def gram(x: Tensor) -> Tensor:
    """x x^T of x [N, D], [N, N]: the half above the diagonal is computed, the other one copied."""
    if x.is_cuda:  # a product saturates it only as a whole
        return x @ x.T
    out = x.new_empty(len(x), len(x))
    _fill_gram(out, x)
    return out


def rows_of_gram(x: Tensor, own: slice) -> Tensor:
    """The rows `own` of x x^T, [n, N]."""
    return gram(x) if len(x[own]) == len(x) else x[own] @ x.T


def _fill_gram(out: Tensor, x: Tensor) -> None:
    if len(x) < 2 * LEAST:
        torch.mm(x, x.T, out=out)
        return
    half = len(x) // 2
    _fill_gram(out[:half, :half], x[:half])
    _fill_gram(out[half:, half:], x[half:])
    torch.mm(x[:half], x[half:].T, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].T
