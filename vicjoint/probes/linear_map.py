"""The floor of retrieval between two modalities: a ridge regression between the first principal components of
their simple features.

    floor = LinearMap(train_a_NK, train_b_NL, right)
    queries, candidates = floor.a_to_b(test_a_MK, test_b_CL)      # to be compared by vicjoint.probes.ranking
"""

# N training pairs, M and C test samples, K and L features, P components

import torch
from torch import Tensor

from vicjoint.probes import ranking
from vicjoint.probes.labels import held_out
from vicjoint.probes.ridge import fit_chosen

COMPONENTS = 200
HOLDOUT = 0.2


class LinearMap:
    """Fitted on training pairs alone. Both sides are centred and projected to their first 200 principal
    components (fewer where there are fewer); ridge maps the one to the other, one map for each direction. Its
    penalty is that of the highest mean reciprocal rank on a fifth of the training pairs, held out; of equal
    ones, that of the lowest squared error. `right`: which of the training pairs answer each other.
    """

    def __init__(self, a: Tensor, b: Tensor, right: ranking.Right):
        self.sides = PrincipalComponents(a), PrincipalComponents(b)
        a, b = self.sides[0](a), self.sides[1](b)
        held = torch.from_numpy(held_out(len(a), HOLDOUT))
        right = right.among(held)
        self.maps = tuple(
            fit_map(x, y, held.to(a.device), (right.candidates(1 - of), right.direction(of)))
            for of, (x, y) in enumerate(((a, b), (b, a)))
        )

    def a_to_b(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [M, P], candidates [C, P]) of test features a [M, K] and b [C, L]."""
        fit, penalty = self.maps[0]
        return fit.predict(self.sides[0](a), penalty), self.sides[1](b)

    def b_to_a(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [M, P], candidates [C, P]) of test features b [M, L] and a [C, K]."""
        fit, penalty = self.maps[1]
        return fit.predict(self.sides[1](b), penalty), self.sides[0](a)


def fit_map(x: Tensor, y: Tensor, held: Tensor, right: tuple):
    """(ridge from x [N, P] to y [N, P], its penalty); right: of those held out, (the candidates among the y,
    which of them answer each x)."""
    candidates, rows = right

    def error(predicted: Tensor) -> tuple[float, float]:
        mrr = ranking.metrics(ranking.ranks(predicted, y[held][candidates.to(y.device)], rows))["mrr"]
        return -mrr, float((predicted - y[held]).square().mean())

    return fit_chosen(x, y, held, error, standardize=False)


class PrincipalComponents:
    """x [N, K] -> coordinates [N, P] float64 along the directions of largest variance of the samples it was
    made of."""

    def __init__(self, x: Tensor):
        x = x.double()
        self.mean = x.mean(0)
        x = x - self.mean
        wide = x.shape[1] > len(x)
        values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        values, vectors = values.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
        # beyond: directions without any variance, made of rounding
        vectors = vectors[:, values > 1e-10 * values[0]]
        self.directions = torch.nn.functional.normalize(x.T @ vectors, dim=0) if wide else vectors

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) @ self.directions
