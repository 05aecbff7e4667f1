"""Variance and covariance of one branch's embeddings, with their gradient in the same pass.

With X the centred embeddings [N, D], s_j = sum_i X_ij^2, m the degrees of freedom and sd_j = sqrt(s_j / m +
1e-4):

    hinge        mean_j relu(1 - sd_j)
    covariance   off / (D m^2),   off = sum of (X^T X)_jk^2 over j != k

Where N < D the covariance matrix is never made: off = ||X X^T||^2 - ||s||^2, the Gram form. The gradient of v
hinge + c covariance is a (X X^T) X + X (w - a s) there, and X (a C0 + diag(w)) where D <= N (C0 is X^T X with
a zero diagonal), with a = 4 c / (D m^2) and w_j = -v / (D m sd_j) below the hinge, else 0. Its columns have
mean zero, so centring needs no backward.

The subtraction in the Gram form loses digits when the off-diagonal entries are small beside the diagonal.
`Guard` watches that, and `exact` is the form without a subtraction.

Three forms for W processes, of the same value: gathered rows, columns exchanged so that each process holds
D / W of them, and a summed covariance matrix; forms.py says which is cheapest. On one process that is rows
for N < D and covariance for D <= N.
"""

# N samples of the global batch, n of this process, D embedding dimensions, G groups, W processes, K heavy
# columns, R the rest

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vicjoint import distributed
from vicjoint.objectives.products import gram, row_blocks, rows_of_gram

EPSILON = 1e-4
BLOCK = 1024  # columns of the covariance matrix that `exact` holds at once


@dataclass
class Weights:
    """Of one branch: the loss is `variance` hinge + `covariance` covariance; the gradient is multiplied by
    `scale` as well."""

    variance: float
    covariance: float
    scale: float = 1.0

    def of(self, share: float) -> "Weights":
        return Weights(self.variance, self.covariance, self.scale * share)


class Groups:
    """Which rows share a mean: all of them, or those of one group. `group` [N] are ids of all rows, of all
    processes; `device`: where the rows are. Groups are counted where the ids are, which on a GPU waits."""

    def __init__(self, rows: int, group: Tensor | None = None, device: torch.device | None = None):
        self.rows, self.member = rows, None
        if group is None:
            if rows < 2:
                raise ValueError(f"vicreg needs at least 2 samples in the global batch, got {rows}.")
            self.freedom = rows - 1
            return
        _, *found = group.unique(return_inverse=True, return_counts=True)
        self.member, self.count = (x.to(device, non_blocking=True) for x in found)
        self.freedom = rows - len(self.count)
        if self.freedom < 1:
            raise ValueError(
                f"statistics within groups need a group with at least two samples; {rows} samples came in"
                f" {len(self.count)} groups. Set pair.windows above 1, or objective.statistics=global."
            )

    def centre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of all rows minus their group's mean, and their squared column sums s [D]."""
        return self._centre(x, slice(None), lambda sums: sums)

    def centre_own(self, x: Tensor, own: slice) -> Tensor:
        """Embeddings of this process's rows minus their group's mean over all processes."""
        return self._centre(x, own, distributed.total)[0]

    def _centre(self, x: Tensor, own: slice, total) -> tuple[Tensor, Tensor]:
        centred, s = torch.empty_like(x), x.new_zeros(x.shape[1])
        member = (
            torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.member is None
            else self.member[own]
        )
        means = self._means(x, member, total)
        for x_block, block, of in row_blocks(x, centred, member):
            torch.sub(x_block, self._of_rows(means, of), out=block)
        # again: the first mean is rounded, and with a large offset that would show in the gradient
        means = self._means(centred, member, total)
        for block, of in row_blocks(centred, member):
            block.sub_(self._of_rows(means, of))
            s += (block * block).sum(0)
        return centred, s

    def _means(self, x: Tensor, member: Tensor, total) -> Tensor:
        """[1, D] or [G, D]."""
        if self.member is None:
            return total(x.sum(0, keepdim=True)) / self.rows
        # a product, not index_add: the same bits every time on a GPU too
        belongs = torch.zeros(len(self.count), len(x), dtype=x.dtype, device=x.device)
        belongs[member, torch.arange(len(x), device=x.device)] = 1
        return total(belongs @ x) / self.count[:, None].to(x.dtype)

    def _of_rows(self, means: Tensor, member: Tensor) -> Tensor:
        return means if self.member is None else means[member]


class Guard(nn.Module):
    """Decides whether the Gram form keeps enough digits: off must be at least a 64th of what it is subtracted
    from.

    Reading that number makes a GPU wait, so there it is read on every 64th call and the answer kept in
    between.
    """

    LEAST, EVERY = 1 / 64, 64

    def __init__(self):
        super().__init__()
        self.calls, self.answers = 0, {}

    def next_step(self) -> None:
        self.calls += 1

    def too_few_digits(self, which: str, off: Tensor, of: Tensor) -> bool:
        every = self.EVERY if off.is_cuda else 1
        if which not in self.answers or (self.calls - 1) % every == 0:
            self.answers[which] = bool(off < self.LEAST * of)
        return self.answers[which]

    def get_extra_state(self) -> dict:
        return {"calls": self.calls, "answers": self.answers}

    def set_extra_state(self, state: dict) -> None:
        self.calls, self.answers = state["calls"], state["answers"]


def hinge_and_pull(s: Tensor, freedom: int, weights: Weights, dim: int) -> tuple[Tensor, Tensor]:
    """From the squared column sums: sum_j relu(1 - sd_j) / D, and w_j."""
    sd = torch.sqrt(s / freedom + EPSILON)
    pull = torch.where(sd < 1, -weights.variance * weights.scale / (dim * freedom) / sd, torch.zeros_like(sd))
    return torch.relu(1 - sd).sum() / dim, pull


def by_rows(
    x: Tensor, own: slice, groups: Groups, weights: Weights, gradient: Tensor | None, guard: Guard, which: str
):
    """Gram form on the gathered rows x [N, D]; adds to `gradient` [n, D] of own rows. Returns (hinge,
    covariance)."""
    dim, freedom = x.shape[1], groups.freedom
    x, s = groups.centre(x)
    hinge, pull = hinge_and_pull(s, freedom, weights, dim)
    own_gram = rows_of_gram(x, own)
    squared = distributed.total_later(own_gram.square().sum())  # the processes go on while it is summed
    a = slope(weights, freedom, dim)
    if not is_safe(s, len(x)) and guard.too_few_digits(which, squared() - s.dot(s), squared()):
        del own_gram
        off = exact(x, own, a, gradient)
    else:
        if gradient is not None:
            gradient.addmm_(own_gram, x, alpha=a)
            pull = pull - a * s
        off = squared() - s.dot(s)
    if gradient is not None:
        gradient.addcmul_(x[own], pull[None])
    return hinge, off.clamp_min(0) / (dim * freedom**2)


def by_columns(
    x: Tensor, dim: int, groups: Groups, weights: Weights, gradient: Tensor | None, guard: Guard, which: str
):
    """Gram form on all rows of own columns, x [N, D / W]; adds to `gradient` of the same shape. Returns
    (hinge, covariance), or None where too few digits are left and the rows have to be gathered."""
    freedom = groups.freedom
    x, s = groups.centre(x)
    hinge, pull = hinge_and_pull(s, freedom, weights, dim)
    sums = distributed.total(torch.cat([gram(x).flatten(), torch.stack([hinge, s.dot(s)])]))
    whole, (hinge, subtracted) = sums[:-2].view(len(x), len(x)), sums[-2:]
    squared = whole.square().sum()
    if guard.too_few_digits(which, squared - subtracted, squared):
        return None
    if gradient is not None:
        a = slope(weights, freedom, dim)
        gradient.addmm_(whole, x, alpha=a).addcmul_(x, (pull - a * s)[None])
    return hinge, (squared - subtracted).clamp_min(0) / (dim * freedom**2)


def by_covariance(x: Tensor, own: slice, groups: Groups, weights: Weights, gradient: Tensor | None):
    """Covariance form on own rows x [n, D]; adds to `gradient` [n, D]. Returns (hinge, covariance)."""
    dim, freedom = x.shape[1], groups.freedom
    x = groups.centre_own(x, own)
    c = distributed.total(gram(x.T))
    s = c.diagonal().clone()
    hinge, pull = hinge_and_pull(s, freedom, weights, dim)
    off = c.fill_diagonal_(0).square().sum()
    if gradient is not None:
        c.mul_(slope(weights, freedom, dim)).diagonal().copy_(pull)
        gradient.addmm_(x, c)
    return hinge, off / (dim * freedom**2)


def slope(weights: Weights, freedom: int, dim: int) -> float:
    return 4 * weights.covariance * weights.scale / (dim * freedom**2)


def exact(x: Tensor, own: slice, a: float, gradient: Tensor | None) -> Tensor:
    """off of the centred rows x [N, D], and a times its gradient's half for own rows, without cancellation:
    the fewest heavy columns K are taken out so that the Gram form is safe for the rest R,

        off = off(K) + 2 ||X_K^T X_R||^2 + ||X_R X_R^T||^2 - ||s_R||^2,

    and where they would be too many, the covariance matrix is made block by block. No collective: all rows
    are here.
    """
    s = (x * x).sum(0, dtype=torch.float64)
    order = s.argsort(descending=True)
    heavy = heavy_columns(s[order], len(x))
    if heavy > len(x) // 2:
        return exact_by_blocks(x, own, a, gradient)
    x_K, x_R = x[:, order[:heavy]], x[:, order[heavy:]]
    c_KK = gram(x_K.T).fill_diagonal_(0)
    c_KR = x_K.T @ x_R
    gram_R = gram(x_R)
    s_R = (x_R * x_R).sum(0)
    if gradient is not None:
        of_K = torch.addmm(x_K[own] @ c_KK, x_R[own], c_KR.T)
        of_R = torch.addmm(x_K[own] @ c_KR, gram_R[own], x_R).addcmul_(x_R[own], s_R[None], value=-1)
        gradient.index_add_(1, order, torch.cat([of_K, of_R], 1), alpha=a)
    return c_KK.square().sum() + 2 * c_KR.square().sum() + (gram_R.square().sum() - s_R.dot(s_R))


def is_safe(s: Tensor, rows: int) -> bool:
    """Whether the squared column sums alone show that the Gram form keeps its digits (see `heavy_columns`);
    not asked on a GPU, which would have to wait for the answer."""
    return not s.is_cuda and bool(s.sum().square() >= 2 * rows * s.dot(s))


def heavy_columns(s: Tensor, rows: int) -> int:
    """How many of the largest squared column sums s [D] (descending) to take out so that ||X X^T||^2 >= (sum
    s)^2 / (N - 1) exceeds ||s||^2 twice over for the rest: then at most one bit is lost. D where no number is
    enough."""
    sums, squares = (v.flip(0).cumsum(0).flip(0) for v in (s, s * s))
    safe = (sums * sums >= 2 * rows * squares).nonzero()
    return int(safe[0]) if len(safe) else len(s)


def exact_by_blocks(x: Tensor, own: slice, a: float, gradient: Tensor | None) -> Tensor:
    off = x.new_zeros(())
    for start in range(0, x.shape[1], BLOCK):
        columns = slice(start, min(start + BLOCK, x.shape[1]))
        block = x.T @ x[:, columns]
        block[columns].fill_diagonal_(0)
        off += block.square().sum()
        if gradient is not None:
            gradient[:, columns].addmm_(x[own], block, alpha=a)
    return off
