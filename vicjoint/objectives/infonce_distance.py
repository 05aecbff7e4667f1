"""InfoNCE by squared distance, among the samples of a group: which moment of a video follows a clip?"""

# N samples of the global batch, n of this process, D embedding dimensions

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.options import Positive
from vicjoint.parts import Objective, Pair
from vicjoint.registry import register


@register("objective", "infonce_distance")
class InfoNCEDistance(Objective):
    """Cross entropy of telling z_b of a sample from those of its group (windows of one video) by squared
    distance from z_a, which is what next_frame_retrieval measures: of each sample the softmax of
    -|z_a - z_b|^2 / (D temperature) over the z_b of its group.

    Lengths of embeddings matter, as they do not for `infonce`, and what a group shares does not help. With
    the pair next_frame and a short `stretch`, the others are frames a moment before or after the target, the
    last ones of the clip among them. A sample that is alone in its group adds nothing. Where the pair gives
    targets of several steps (`horizon`), each is told from those of its own step.
    """

    terms = ("contrast",)

    def __init__(self, temperature: Positive = 0.02):
        super().__init__()
        self.temperature, self.targets = temperature, 1

    def bind(self, pair: Pair) -> None:
        self.targets = pair.targets

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D], the targets of a sample one after the other; group [n] int64. Rows of all
        processes count. Raises ValueError on different shapes, without groups, or where no group has two
        samples."""
        check_embeddings("infonce_distance", z_a, z_b)
        if group is None:
            raise ValueError("infonce_distance needs the group of every sample.")
        group = group * self.targets + torch.arange(len(group), device=group.device) % self.targets
        counts = distributed.row_counts(len(z_a))
        rows, own = sum(counts), distributed.own_rows(counts)
        everyone = distributed.gather(group, counts)
        if len(everyone.unique()) == rows:
            raise ValueError(
                f"infonce_distance needs a group with at least two samples; {rows} samples came in as many"
                " groups. Set pair.windows above 1, or use the objective infonce."
            )
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            a, b = wide(z_a), distributed.gather(wide(z_b), counts)
            scale = 1 / (a.shape[1] * self.temperature)
            # |a|^2 is the same for every candidate of a row
            logits = scale * (2 * a @ b.T - b.square().sum(1))
            logits.masked_fill_((group[:, None] != everyone[None]).to(a.device), -torch.inf)
            log_p = logits.log_softmax(1)
            of_own = log_p.diagonal(own.start)
            loss = distributed.total(-of_own.sum()) / rows
            # of the loss by each logit
            slope = log_p.exp()
            slope.diagonal(own.start).sub_(1)
            # DistributedDataParallel averages, the union batch's gradient is the sum
            slope *= 2 * scale * distributed.world_size() / rows
            of_a = slope @ b
            of_b = distributed.total(slope.T @ a - slope.sum(0)[:, None] * b)[own]
        known = ((z, of) for z, of in ((z_a, of_a), (z_b, of_b)) if wants_gradient(z))
        return attach(loss, *known), {"contrast": loss}
