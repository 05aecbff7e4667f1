"""Barlow Twins, without the D x D cross-correlation matrix where N < D."""

# N samples of the global batch, n of this process, D embedding dimensions

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.objectives.products import row_blocks, rows_of_gram
from vicjoint.objectives.spread import BLOCK, Guard
from vicjoint.parts import Objective
from vicjoint.registry import register

EPSILON = 1e-5  # of the batch norm


@register("objective", "barlow_twins")
class BarlowTwins(Objective):
    """Barlow Twins (Zbontar et al. 2021): with C = z_a^T z_b / N the cross-correlation of the embeddings,
    each column normalised over the batch (biased variance + 1e-5, as the official code's batch norm),

    - invariance: weight sum_j (1 - C_jj)^2
    - redundancy: weight redundancy sum over j != k of C_jk^2

    Where N < D the second sum is <z_a z_a^T, z_b z_b^T> / N^2 - sum_j C_jj^2 and its gradient needs only
    those N x N matrices.
    """

    terms = ("invariance", "redundancy")

    def __init__(self, redundancy: float = 0.0051, weight: float = 1.0):
        super().__init__()
        self.redundancy, self.weight = redundancy, weight
        self.guard = Guard()

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D]; `group` is not used. Rows of all processes count. Raises ValueError on different
        shapes or fewer than two samples."""
        check_embeddings("barlow_twins", z_a, z_b)
        wanted = wants_gradient(z_a), wants_gradient(z_b)
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            terms, gradients = self._compute(z_a, z_b, wanted)
            loss = sum(terms.values())
        return attach(loss, (z_a, gradients[0]), (z_b, gradients[1])), terms

    def _compute(self, z_a: Tensor, z_b: Tensor, wanted: tuple[bool, bool]):
        counts = distributed.row_counts(len(z_a))
        rows, own = sum(counts), distributed.own_rows(counts)
        if rows < 2:
            raise ValueError(f"barlow_twins needs at least 2 samples in the global batch, got {rows}.")
        (a, scale_a), (b, scale_b) = normalise(wide(z_a), rows), normalise(wide(z_b), rows)
        diagonal = distributed.total(column_products(a, b)) / rows
        pull = -2 * (1 - diagonal) / rows  # of the diagonal, on the other branch's embeddings
        redundancy = 2 * self.redundancy / rows
        if rows < z_a.shape[1]:
            all_a, all_b = distributed.gather(a, counts), distributed.gather(b, counts)
            off, grad_a, grad_b = self._by_rows(all_a, all_b, own, diagonal, pull, redundancy, wanted)
        else:
            off, grad_a, grad_b = by_correlation(a, b, rows, pull, redundancy, wanted)
        terms = {
            "invariance": self.weight * (1 - diagonal).square().sum(),
            "redundancy": self.weight * self.redundancy * off,
        }
        # DistributedDataParallel averages, the union batch's gradient is the sum
        factor = self.weight * distributed.world_size()
        gradients = [
            None if gradient is None else through_norm(gradient, z, scale * factor, rows)
            for gradient, z, scale in ((grad_a, a, scale_a), (grad_b, b, scale_b))
        ]
        return terms, gradients

    def _by_rows(self, a, b, own, diagonal, pull, redundancy, wanted):
        """Gram form on the gathered rows: (off-diagonal sum, gradients of own rows)."""
        rows = len(a)
        gram_a, gram_b = (rows_of_gram(z, own) for z in (a, b))
        squared = distributed.total((gram_a * gram_b).sum()) / rows**2
        off = squared - diagonal.square().sum()
        self.guard.next_step()
        if self.guard.too_few_digits("off", off, squared):
            off, grad_a, grad_b = exact(a, b, own, redundancy, wanted)
        else:
            pull = pull - redundancy * diagonal
            grad_a = (gram_b @ a).mul_(redundancy / rows) if wanted[0] else None
            grad_b = (gram_a @ b).mul_(redundancy / rows) if wanted[1] else None
        for gradient, other in ((grad_a, b), (grad_b, a)):
            if gradient is not None:
                gradient.addcmul_(other[own], pull[None])
        return off.clamp_min(0), grad_a, grad_b


def normalise(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(own rows normalised per column over the global batch, 1 / standard deviation)."""
    z, squares = torch.empty_like(x), x.new_zeros(x.shape[1])
    mean = distributed.total(x.sum(0)) / rows
    for x_block, block in row_blocks(x, z):
        torch.sub(x_block, mean, out=block)
    mean = distributed.total(z.sum(0)) / rows  # again: the first mean is rounded
    for (block,) in row_blocks(z):
        block.sub_(mean)
        squares += (block * block).sum(0)
    scale = torch.rsqrt(distributed.total(squares) / rows + EPSILON)
    return z.mul_(scale), scale


def through_norm(gradient: Tensor, z: Tensor, scale: Tensor, rows: int) -> Tensor:
    """Gradient with respect to the embeddings before `normalise`. The gradient's column means are zero
    already: it is made of centred columns."""
    along = distributed.total(column_products(gradient, z)) / rows
    for block, z_block in row_blocks(gradient, z):
        block.addcmul_(z_block, along[None], value=-1).mul_(scale)
    return gradient


def column_products(x: Tensor, y: Tensor) -> Tensor:
    """sum_i x_ij y_ij, [D]."""
    return sum((x_block * y_block).sum(0) for x_block, y_block in row_blocks(x, y))


def by_correlation(
    a: Tensor, b: Tensor, rows: int, pull: Tensor, redundancy: float, wanted: tuple[bool, bool]
):
    """The D x D form on own rows [n, D]: (off-diagonal sum, gradients)."""
    c = distributed.total(a.T @ b) / rows
    off = c.fill_diagonal_(0).square().sum()
    c.mul_(redundancy).diagonal().copy_(pull)
    return off, b @ c.T if wanted[0] else None, a @ c if wanted[1] else None


def exact(a: Tensor, b: Tensor, own: slice, redundancy: float, wanted: tuple[bool, bool]):
    """The same, block by block, where the Gram form would lose too many digits; the diagonal's pull is not in
    its gradients."""
    off = a.new_zeros(())
    grad_a = torch.zeros_like(a[own]) if wanted[0] else None
    grad_b = torch.empty_like(b[own]) if wanted[1] else None
    for start in range(0, a.shape[1], BLOCK):
        columns = slice(start, min(start + BLOCK, a.shape[1]))
        block = (a.T @ b[:, columns]) / len(a)
        block[columns].fill_diagonal_(0)
        off += block.square().sum()
        if grad_a is not None:
            grad_a.addmm_(b[own, columns], block.T, alpha=redundancy)
        if grad_b is not None:
            grad_b[:, columns] = (a[own] @ block).mul_(redundancy)
    return off, grad_a, grad_b
