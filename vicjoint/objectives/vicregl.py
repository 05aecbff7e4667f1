"""VICRegL: VICReg of whole views and, beside it, of the cells of their maps.

objective: {name: vicregl, alpha: 0.75}

The formulas are those of facebookresearch/VICRegL (main_vicregl.py). Cells of the two maps of a picture are
matched, and each slot, a place in the list of matches, has VICReg of its own over the batch:

    invariance   mean of (x - y)^2 over slots, N and L
    variance     mean over slots of (v_x + v_y) / 2, v = mean_j relu(1 - sqrt(var_j + 1e-4))
    covariance   mean over slots of (c_x + c_y) / 2, c = sum of squared off-diagonal covariances / L

Across processes sums over the batch are exchanged, no rows: L for a mean and L^2 for a covariance matrix of
each slot.
"""

# N samples of the global batch, n of this process, T cells of a map, M matches, L width of a cell's embedding

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from vicjoint import distributed
from vicjoint.batch import WithCells
from vicjoint.objectives.gradient import attach, wants_gradient, wide
from vicjoint.objectives.spread import Weights, hinge_and_pull, slope
from vicjoint.objectives.vicreg import VICReg
from vicjoint.options import Count, NotNegative, Share
from vicjoint.parts import Objective, Pair
from vicjoint.registry import register

EXPANDER = (512, 512, 512)


@register("objective", "vicregl")
class VICRegL(Objective):
    """VICRegL (Bardes, Ponce, LeCun 2022): alpha times VICReg of z, and 1 - alpha times a local term, of the
    cells of the encoder's maps. Weights are meant as in the official code (`convention: vicregl` of vicreg).

    An expander of their own (`expander`: its widths) embeds the cells. Each cell of one map is matched with
    the nearest of the other, in both directions: by place in the picture, where the `matches` nearest pairs
    are kept, and by embedding, where the `feature_matches` nearest are kept; null: all, as in the official
    code. The local term is the sum of both kinds, each the mean of both directions, of VICReg with the same
    weights, whose statistics each place in the list of matches (in the order of their cells) has for itself.

    It needs the pair augment with two views, and an encoder that gives a map of rows and columns.
    """

    terms = (
        *("invariance", "variance", "covariance"),
        *("local_invariance", "local_variance", "local_covariance"),
    )

    def __init__(
        self,
        alpha: Share = 0.75,
        invariance: NotNegative = 25.0,
        variance: NotNegative = 25.0,
        covariance: NotNegative = 1.0,
        matches: Count = 20,
        feature_matches: Count | None = None,
        expander: Annotated[list[Count], Field(min_length=1)] = EXPANDER,
    ):
        super().__init__()
        self.whole = VICReg(invariance, variance, covariance, convention="vicregl")
        self.alpha, self.matches, self.feature_matches = alpha, matches, feature_matches
        # a quarter: each kind of matches has two directions, and each direction two sides
        share = 1 - alpha
        self.invariance = share * invariance / 2
        self.spread = Weights(share * variance / 4, share * covariance / 4)

    @classmethod
    def local_expander(cls, options: Mapping[str, Any]) -> list[int]:
        return list(options.get("expander", EXPANDER))

    def bind(self, pair: Pair) -> None:
        """Raises ValueError where the pair gives no two views of one picture that say where they look."""
        pair.give_boxes()

    def forward(
        self, z_a: WithCells, z_b: WithCells, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b of n samples; rows of all processes count. Raises ValueError where they have no cells,
        these differ in width, or there are fewer than two samples."""
        check_cells(z_a, z_b)
        loss, terms = self.whole(z_a.z, z_b.z, group)
        terms = {name: self.alpha * term for name, term in terms.items()}
        wanted = [wants_gradient(view.cells) for view in (z_a, z_b)]
        with torch.no_grad(), torch.autocast(z_a.cells.device.type, enabled=False):
            local, gradients = self._local(z_a, z_b)
        known = [
            (view.cells, of if wants else None) for view, of, wants in zip((z_a, z_b), gradients, wanted)
        ]
        return self.alpha * loss + attach(sum(local.values()), *known), terms | local

    def _local(self, a: WithCells, b: WithCells) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """({term: weighted value}, gradients of the cells of a and b, [n, T, L] each)."""
        rows = sum(distributed.row_counts(len(a.cells)))
        cells_a, cells_b = wide(a.cells), wide(b.cells)
        of_a, of_b = torch.zeros_like(cells_a), torch.zeros_like(cells_b)
        terms = dict.fromkeys(self.terms[3:], cells_a.new_zeros(()))
        there, back = (cells_a, a.places, of_a), (cells_b, b.places, of_b)
        for (one, places, of_one), (other, other_places, of_other) in ((there, back), (back, there)):
            by_place = nearest(places, other_places, self.matches)
            by_cell = nearest(one, other, self.feature_matches)
            for own, theirs in (by_place, by_cell):
                values, of_x, of_y = self._slots(take(one, own), take(other, theirs), rows)
                put_back(of_x, own, of_one)
                put_back(of_y, theirs, of_other)
                terms = {name: term + value for (name, term), value in zip(terms.items(), values)}
        return terms, (of_a, of_b)

    def _slots(self, x: Tensor, y: Tensor, rows: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """([weighted invariance, variance, covariance], gradients of x and y) of matched cells [n, M, L] of
        `rows` samples on all processes."""
        n, slots, width = x.shape
        # DistributedDataParallel averages, the union batch's gradient is the sum
        world, entries = distributed.world_size(), rows * slots * width
        difference = x - y
        invariance = self.invariance / entries * distributed.total(difference.square().sum())
        pull = difference * (2 * self.invariance * world / entries)
        weights = Weights(self.spread.variance / slots, self.spread.covariance / slots, world)
        (hinge_x, off_x, of_x), (hinge_y, off_y, of_y) = (spread(z, rows, weights) for z in (x, y))
        variance, covariance = weights.variance * (hinge_x + hinge_y), weights.covariance * (off_x + off_y)
        return [invariance, variance, covariance], of_x + pull, of_y - pull


def spread(z: Tensor, rows: int, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """(hinge, covariance, each summed over slots; gradient of their weighted sum) of own rows z [n, M, L]: as
    `by_covariance` of spread.py, each slot by itself."""
    width, freedom = z.shape[2], rows - 1
    x = z.transpose(0, 1)
    for _ in range(2):  # again: the first mean is rounded
        x = x - distributed.total(x.sum(1, keepdim=True)) / rows
    c = distributed.total(x.transpose(1, 2) @ x)
    diagonal = c.diagonal(dim1=1, dim2=2)
    hinge, pull = hinge_and_pull(diagonal.clone(), freedom, weights, width)
    diagonal.zero_()
    off = c.square().sum() / (width * freedom**2)
    c.mul_(slope(weights, freedom, width))
    diagonal.copy_(pull)
    return hinge, off, (x @ c).transpose(0, 1)


def nearest(one: Tensor, other: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """(cells of one, the cells of the other nearest to them), [n, M] each, from positions [n, T, K] and
    [n, T', K]: of the M = `most` cells that have the nearest ones (None, or more than there are: all), in
    order."""
    # by differences: a product loses the digits of small distances
    distances = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    least, theirs = distances.min(2)
    order = least.sort(dim=1, stable=True).indices[:, :most]
    own = order.sort(1).values
    return own, theirs.gather(1, own)


def take(cells: Tensor, numbers: Tensor) -> Tensor:
    """The cells [n, M, L] with these numbers [n, M] of cells [n, T, L]."""
    return cells.gather(1, numbers[:, :, None].expand(-1, -1, cells.shape[2]))


def put_back(gradient: Tensor, numbers: Tensor, total: Tensor) -> None:
    """Add the gradient of what `take` gave to that of the cells, `total` [n, T, L]."""
    # a product, not scatter_add: the same bits every time on a GPU too
    chosen = torch.nn.functional.one_hot(numbers, total.shape[1]).to(total.dtype)
    total.baddbmm_(chosen.transpose(1, 2), gradient)


def check_cells(z_a: WithCells, z_b: WithCells) -> None:
    for z in (z_a, z_b):
        if not isinstance(z, WithCells):
            raise ValueError(
                "vicregl needs embeddings of the cells of a map (vicjoint.batch.WithCells), got"
                f" {type(z).__name__}. Bind it to the pair before the first step."
            )
    a, b = z_a.cells, z_b.cells
    if (len(a), a.shape[2]) != (len(b), b.shape[2]):
        raise ValueError(
            f"vicregl needs cells of one width of the same samples, got {list(a.shape)} and {list(b.shape)}."
        )
