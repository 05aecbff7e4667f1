"""SIGReg: embeddings that look like a standard normal distribution from every side.

With p = z a the embeddings along a random direction a of length 1, and c(t), s(t) the means of cos(t p) and
sin(t p) over the batch, which are the real and the imaginary part of p's empirical characteristic function,
the statistic of Epps and Pulley (1983) is

    T = N integral w(t) ((c(t) - w(t))^2 + s(t)^2) dt,   w(t) = exp(-t^2 / 2)

where w is the weight and, too, the characteristic function of a standard normal distribution. The integral is
even, so it is twice that from 0 on: a sum over POINTS points up to LAST, by the trapezoid rule. Its gradient,

    dT / dp_i = 2 integral w(t) t (s(t) cos(t p_i) - (c(t) - w(t)) sin(t p_i)) dt

needs of the other rows only c and s: two numbers for each direction and point are summed over the processes,
and no row travels.
"""

# N samples of the global batch, n of this process, D embedding dimensions, M slices

from collections.abc import Iterator

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.objectives.products import row_blocks
from vicjoint.options import Count, NotNegative
from vicjoint.parts import Objective
from vicjoint.registry import register

POINTS, LAST = 17, 3.0  # of the official code
STEP = LAST / (POINTS - 1)


@register("objective", "sigreg")
class SIGReg(Objective):
    """LeJEPA (Balestriero and LeCun 2025): the embeddings of each branch are pulled towards a standard normal
    distribution, by tests along random directions, and those of a pair to their mean.

    - invariance: weight mean squared distance of z_a and z_b from (z_a + z_b) / 2 over N and D, which is a
      fourth of their mean squared error
    - sigreg: weight (T_a + T_b) / 2, T the mean of the Epps-Pulley statistic over `slices` directions, which
      are drawn anew in each step

    The paper has one weight, lambda: sigreg is lambda and invariance 1 - lambda. T is about 1 for a standard
    normal distribution, and grows with the batch for any other one.
    """

    terms = ("invariance", "sigreg")

    def __init__(self, invariance: NotNegative = 0.95, sigreg: NotNegative = 0.05, slices: Count = 1024):
        super().__init__()
        self.invariance, self.sigreg, self.slices = invariance, sigreg, slices

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D]; `group` is not used. Rows of all processes count. The directions come from torch's
        random state of the first process. Raises ValueError on different shapes or fewer than two samples."""
        check_embeddings("sigreg", z_a, z_b)
        wanted = wants_gradient(z_a), wants_gradient(z_b)
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            terms, gradients = self._compute(wide(z_a), wide(z_b), wanted)
            loss = sum(terms.values())
        return attach(loss, (z_a, gradients[0]), (z_b, gradients[1])), terms

    def _compute(self, z_a: Tensor, z_b: Tensor, wanted: tuple[bool, bool]):
        """({term: weighted value}, gradients of own rows or None)."""
        rows, dim = sum(distributed.row_counts(len(z_a))), z_a.shape[1]
        if rows < 2:
            raise ValueError(f"sigreg needs at least 2 samples in the global batch, got {rows}.")
        slices = directions(dim, self.slices, z_a)
        # DistributedDataParallel averages, the union batch's gradient is the sum
        world = distributed.world_size()
        difference = (z_a - z_b).div_(2)
        distance = distributed.total(difference.square().sum()) / (rows * dim)
        gradients, statistic = [], 0.0
        for z, want, sign in ((z_a, wanted[0], 1), (z_b, wanted[1], -1)):
            along = z @ slices
            value, of_along = epps_pulley(along, rows, want)
            statistic = statistic + value.mean() / 2
            if want:
                pull = (of_along @ slices.T).mul_(world * self.sigreg / (2 * self.slices))
                pull.add_(difference, alpha=sign * world * self.invariance / (rows * dim))
            gradients.append(pull if want else None)
        return {"invariance": self.invariance * distance, "sigreg": self.sigreg * statistic}, gradients


def directions(dim: int, slices: int, like: Tensor) -> Tensor:
    """Random directions of length 1, [D, M], the same on all processes."""
    # from the seed and the step: training seeds torch's random state with both before every step
    own = int(torch.randint(2**62, ()))
    seed = own if distributed.world_size() == 1 else distributed.gather_objects(own)[0]
    generator = torch.Generator(like.device).manual_seed(seed)
    made = torch.randn(dim, slices, generator=generator, device=like.device).to(like.dtype)
    return made.div_(torch.linalg.vector_norm(made, dim=0))


def epps_pulley(along: Tensor, rows: int, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """(T [M] of N rows, of which these are own ones [n, M]; where wanted its gradient with respect to own
    rows [n, M])."""
    t = torch.arange(POINTS, dtype=along.dtype, device=along.device) * STEP
    window = torch.exp(-t.square() / 2)
    weight = 2 * STEP * window
    weight[[0, -1]] /= 2
    sums = along.new_zeros(2, POINTS, along.shape[1])
    for (block,) in row_blocks(along):
        for k, (cos, sin) in enumerate(waves(block)):
            sums[0, k] += cos.sum(0)
            sums[1, k] += sin.sum(0)
    c, s = distributed.total(sums) / rows
    c -= window[:, None]
    statistic = rows * (weight @ (c.square() + s.square()))
    if not wanted:
        return statistic, None
    of_cos, of_sin = ((2 * weight * t)[:, None] * x for x in (s, c))
    gradient = torch.zeros_like(along)
    for block, of_block in row_blocks(along, gradient):
        for k, (cos, sin) in enumerate(waves(block)):
            of_block.addcmul_(cos, of_cos[k][None]).addcmul_(sin, of_sin[k][None], value=-1)
    return statistic, gradient


def waves(along: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """cos(t p) and sin(t p) at each of the points: each turned by one step more than the one before, which is
    several times faster than the functions."""
    turn_cos, turn_sin = torch.cos(along * STEP), torch.sin(along * STEP)
    cos, sin = torch.ones_like(along), torch.zeros_like(along)
    for _ in range(POINTS):
        yield cos, sin
        cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
