"""Ranks of right answers, their metrics, and what both are by chance. Nothing here knows where embeddings
come from.

    right = Right((a_contents, b_contents), together)  # which candidates answer which query
    ranks_Q = ranks(queries_QE, items_NE[right.candidates(1)], right.direction(0))               # 1 is best
    metrics(ranks_Q)  # r1, r5, r10, median_rank, mrr
"""

# N items, Q queries, C candidates, E embedding, K classes

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

AT_ONCE = 2**24  # similarities at a time
FIRST = (1, 5, 10)


def ranks(
    queries: Tensor, candidates: Tensor, right: Callable[[slice], Tensor], among: int | None = None
) -> np.ndarray:
    """Rank [Q] of the best right candidate of each query among the wrong ones, by `centred` cosine
    similarity; wrong ones that are exactly as similar count half, so that one right answer among equals gets
    the middle rank and a collapsed encoder gains nothing from its ties.

    `right(part)` gives bool [part, C]: every row has a right one. among: how many of the wrong candidates of
    each query count, drawn at random, the same in each call; None: all. Embeddings that are not finite are
    similar to nothing.
    """
    draws = torch.Generator().manual_seed(0)
    found = [torch.zeros(0, device=queries.device)]
    queries, candidates = centred(queries, candidates)
    for first in range(0, len(queries), step := max(1, AT_ONCE // len(candidates))):
        part = slice(first, first + step)
        similarity = (queries[part] @ candidates.T).nan_to_num(nan=-torch.inf)
        is_right = right(part)
        wrong = (~is_right if among is None else drawn(~is_right, among, draws)).to(similarity.device)
        is_right = is_right.to(similarity.device)
        best = similarity.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
        found.append(1 + (wrong & (similarity > best)).sum(1) + (wrong & (similarity == best)).sum(1) / 2)
    return torch.cat(found).double().cpu().numpy()


def drawn(wrong: Tensor, number: int, draws: torch.Generator) -> Tensor:
    """Of each row's candidates that `wrong` [Q, C] marks, `number` at random; every row has so many."""
    order = torch.rand(wrong.shape, generator=draws).masked_fill(~wrong, 2.0)
    return torch.zeros_like(wrong).scatter(1, order.topk(number, largest=False).indices, True)


def centred(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Directions, of length 1, of queries [Q, E] and candidates [C, E] as seen from the mean of the
    candidates. Their products are the similarities here: cosine, since nothing keeps the embeddings of two
    branches to one length, and by distance a few short ones would be nearest to many queries; from the mean,
    since VICReg's terms look at deviations from it and leave it where it happens to be.
    """
    mean = candidates[candidates.isfinite().all(1)].mean(0)
    return normalize(queries - mean), normalize(candidates - mean)


def metrics(of: np.ndarray) -> dict[str, float]:
    """Of ranks [Q]: share within the first 1, 5 and 10, median, and mean of 1 / rank."""
    return {
        **{f"r{k}": float((of <= k).mean()) for k in FIRST},
        "median_rank": float(np.median(of)),
        "mrr": float((1 / of).mean()),
    }


def chance(candidates: int | np.ndarray, right: np.ndarray) -> dict[str, float]:
    """The same for a random order of C candidates (or of each query's own number of them, [Q]), of which
    right [Q] answer each query: exact expectations
    (the rank of the best right one is above k if the first k are all wrong), and the median of all queries'
    ranks together."""
    each = np.stack([np.broadcast_to(candidates, right.shape), right], 1)
    kinds, times = np.unique(each, axis=0, return_counts=True)
    candidates = int(each[:, 0].max())
    # above[k]: probability that a query's rank is above k, k = 0..C
    above = np.zeros(candidates + 1)
    for (own, count), share in zip(kinds, times / len(right)):
        left = np.arange(own)
        above[: own + 1] += share * np.concatenate(
            [[1.0], np.cumprod(np.clip(own - count - left, 0, None) / (own - left))]
        )
    within = 1 - above
    at = -np.diff(above)
    lower, upper = np.argmax(within >= 0.5 - 1e-12), np.argmax(within > 0.5 + 1e-12)
    return {
        **{f"r{k}": float(within[min(k, candidates)]) for k in FIRST},
        "median_rank": float(lower + upper) / 2,
        "mrr": float((at / np.arange(1, candidates + 1)).sum()),
    }


class Right:
    """Which candidates answer which queries. Items of a and b have a content (a number, equal for equal texts
    or files) and may have a class.

    Every item is a query; a candidate is a content, however many items have it: copies have one embedding, so
    they would fill the first ranks without offering any choice. An a answers a b, and the other way, where
    some record holds both of their contents, or where the query's class (-1: none) is that of an item with
    the candidate's content."""

    def __init__(
        self,
        contents: tuple[Tensor, Tensor],
        together: tuple[Tensor, Tensor],
        classes: tuple[Tensor, Tensor] | None = None,
    ):
        """contents, classes: of the items of a [N] and b [M]; together: the contents of a and of b that stand
        in one record, equally long."""
        self.contents, self.classes = contents, classes
        self.table = torch.zeros([int(c.max()) + 1 for c in contents], dtype=torch.bool)
        self.table[together] = True

    def among(self, kept: Tensor) -> "Right":
        """The same for some of the items only, where a and b are rows of pairs: kept bool [N]."""
        classes = self.classes and tuple(c[kept] for c in self.classes)
        contents = tuple(c[kept] for c in self.contents)
        return Right(contents, contents, classes)

    def candidates(self, side: int) -> Tensor:
        """The candidates [C] of side a (0) or b (1): the first item of each content, in order."""
        return first_of_each(self.contents[side])

    def direction(self, of: int) -> Callable[[slice], Tensor]:
        """For queries from a (0) or b (1): part of the queries -> bool [part, C]."""
        other = 1 - of
        candidates = self.contents[other][self.candidates(other)]
        table = (self.table if of == 0 else self.table.T)[:, candidates]
        if self.classes is not None:
            classed = torch.zeros(
                self.table.shape[other], int(max(c.max() for c in self.classes)) + 2, dtype=torch.bool
            )
            classed[self.contents[other], self.classes[other]] = True
            classed[:, -1] = False  # -1: no class
            classed = classed[candidates].T

        def rows(part: slice) -> Tensor:
            found = table[self.contents[of][part]]
            return found if self.classes is None else found | classed[self.classes[of][part]]

        return rows


def first_of_each(numbers: Tensor) -> Tensor:
    """Places, in order, of the first of equal numbers [N], or of equal rows [N, 2]."""
    return torch.from_numpy(np.sort(np.unique(numbers.numpy(), axis=0, return_index=True)[1]))


def numbered(contents: list, known: dict) -> Tensor:
    """Numbers [N], equal for equal contents (None: -1); `known` keeps them, so that another list is numbered
    alike."""
    return torch.tensor(
        [-1 if c is None else known.setdefault(c, len(known)) for c in contents], dtype=torch.long
    )


def counts(right: Callable[[slice], Tensor], queries: int, candidates: int) -> np.ndarray:
    """How many candidates are right for each query, [Q]."""
    step = max(1, AT_ONCE // candidates)
    return torch.cat([right(slice(first, first + step)).sum(1) for first in range(0, queries, step)]).numpy()


def prototypes(z: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of each class [K, E], its number [K]) of embeddings z [N, E] with class numbers [N]; -1 is left
    out."""
    kinds = classes.unique()
    kinds = kinds[kinds >= 0]
    return torch.stack([z[classes == kind].mean(0) for kind in kinds]), kinds
