"""The loss of several predictions of one target, by any objective with a squared error.

With weights w_k that sum to 1, sum_k w_k |p_k - z|^2 = |p - z|^2 + sum_k w_k |p_k - p|^2, p = sum_k w_k p_k.
The first part is what an objective does with p and z; the second is added here, `pull` times. So the target
branch learns by the objective alone.
"""

# B batch, K predictions, E embedding

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.batch import Futures
from vicjoint.objectives.gradient import wide
from vicjoint.parts import Objective


class OfFutures(Objective):
    """`objective` of `vicjoint.batch.Futures` and z_b. The invariance counts every prediction by its weight.
    `prior`, where there is one: the cross-entropy of their probabilities to the weights. Raises ValueError
    for an objective without a squared error."""

    def __init__(self, objective: Objective, prior: bool):
        super().__init__()
        if objective.pull(1) is None:
            raise ValueError(
                f"objective: {type(objective).__name__} has no squared error that several predictions could"
                " share (predictor.choice: annealed, predictor.prior). Use the objective vicreg, or leave"
                " these out."
            )
        self.objective, self.prior = objective, prior
        self.terms = (*objective.terms, *(("prior",) if prior else ()))

    def pull(self, dim: int) -> float | None:
        return self.objective.pull(dim)

    def describe(self, dim: int) -> str | None:
        return self.objective.describe(dim)

    def forward(
        self, z_a: Futures, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a of B rows, z_b [B, E]; group as the objective needs it. Rows of all processes count."""
        loss, terms = self.objective(z_a.z, z_b, group)
        counts = distributed.row_counts(len(z_b))
        # DistributedDataParallel averages over the processes, while the union batch's gradient is the sum
        share = distributed.world_size() / sum(counts)
        with torch.autocast(z_b.device.type, enabled=False):
            middle, predictions = wide(z_a.z).detach()[:, None], wide(z_a.predictions)
            apart = ((predictions - middle).square().sum(2) * z_a.weights).sum()
            added = {"invariance": self.pull(z_b.shape[1]) * share * apart}
            if self.prior:
                said = wide(z_a.scores).log_softmax(1)
                added["prior"] = -share * (said * z_a.weights).sum()
        world = distributed.world_size()
        values = distributed.total(torch.stack([value.detach() for value in added.values()])) / world
        for name, value in zip(added, values):
            terms = {**terms, name: terms.get(name, 0.0) + value}
            loss = loss + added[name] + (value - added[name]).detach()
        return loss, terms
