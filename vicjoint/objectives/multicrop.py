"""Multi-crop: an objective over several crops of each sample on branch a and one view on branch b."""

# B samples, K crops of each on branch a, E embedding

from torch import Tensor

from vicjoint.parts import Objective


class MultiCrop(Objective):
    """The mean of `objective` over the K pairs (crop of a, view of b). z_a and z_b are [B K, E], sample by
    sample; the rows of z_b of one sample are equal."""

    def __init__(self, objective: Objective, crops: int):
        super().__init__()
        if objective.has_memory:
            raise ValueError(
                f"pair.views: {crops} crops of branch a would put each view of b into the queue as often. "
                "Use another objective.form than moco, or leave out pair.views."
            )
        self.objective, self.crops, self.terms = objective, crops, objective.terms

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        crops_of_a, view_b = z_a.unflatten(0, (-1, self.crops)), z_b.unflatten(0, (-1, self.crops))[:, 0]
        each = [self.objective(crops_of_a[:, crop], view_b, group) for crop in range(self.crops)]
        terms = {name: sum(terms[name] for _, terms in each) / self.crops for name in self.terms}
        return sum(loss for loss, _ in each) / self.crops, terms

    def describe(self, dim: int) -> str | None:
        return self.objective.describe(dim)
