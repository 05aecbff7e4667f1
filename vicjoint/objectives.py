"""What training minimises. `loss, terms = objective(z_a, z_b, group)`; terms are weighted, detached and sum to the loss.

Computed in float32 whatever autocast says, on the whole global batch whatever the number of processes.
"""

# N samples of the global batch, D embedding dimensions, G groups

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vicjoint.distributed import gather
from vicjoint.registry import register

Weight = float | dict[str, float]
Statistics = Literal["global", "within", "both"]


@register("objective", "vicreg")
class VICReg(nn.Module):
    """Variance-Invariance-Covariance Regularization (Bardes, Ponce, LeCun 2022), in the official code's convention:

    - invariance: mean squared error between z_a and z_b over N and D (eq. 5 divided by D);
    - variance: (v_a + v_b) / 2, v = mean_j relu(1 - sqrt(var_j + 1e-4)), unbiased variance (eq. 1, 2);
    - covariance: c_a + c_b, c = sum of squared off-diagonal entries of the covariance matrix / D (eq. 3, 4).

    `variance` and `covariance` are one weight, or one per branch: `{a: 25, b: 10}`.

    `statistics` says around what the variance and covariance are taken:
    global: the mean of the batch; within: the mean of each sample's group (N - G degrees of freedom); both: a share
    `within_share` of the second and the rest of the first.
    With several windows of one video in a batch, "global" is satisfied by naming the video; "within" asks the embedding to
    vary over time too.
    """

    terms = ("invariance", "variance", "covariance")

    def __init__(self, invariance: float = 25.0, variance: Weight = 25.0, covariance: Weight = 1.0, statistics: Statistics = "global",
                 within_share: float = 0.5):
        super().__init__()
        if statistics not in get_args(Statistics):
            raise ValueError(f"objective.statistics: '{statistics}' is unknown. Expected one of: {', '.join(get_args(Statistics))}.")
        if not 0 <= within_share <= 1:
            raise ValueError(f"objective.within_share: {within_share} is not a share. Expected a number from 0 to 1.")
        self.invariance = invariance
        self.variance = _per_branch("variance", variance)
        self.covariance = _per_branch("covariance", covariance)
        self.statistics, self.within_share = statistics, within_share

    def forward(self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [B, D]; group [B] int64, needed unless statistics is "global". Rows of all processes count.
        Raises ValueError on different shapes, fewer than two samples, or groups without two samples in any of them."""
        if z_a.shape != z_b.shape or z_a.ndim != 2:
            raise ValueError(f"vicreg needs two embeddings of one shape [B, D], got {list(z_a.shape)} and {list(z_b.shape)}.")
        with torch.autocast(z_a.device.type, enabled=False):
            z_a, z_b = gather(_at_least_float32(z_a)), gather(_at_least_float32(z_b))
            group = None if group is None else gather(group)
            terms = {"invariance": self.invariance * (z_a - z_b).square().mean()}
            v_a, c_a = self._spread(z_a, group)
            v_b, c_b = self._spread(z_b, group)
            terms["variance"] = (self.variance["a"] * v_a + self.variance["b"] * v_b) / 2
            terms["covariance"] = self.covariance["a"] * c_a + self.covariance["b"] * c_b
            loss = terms["invariance"] + terms["variance"] + terms["covariance"]
        return loss, {name: value.detach() for name, value in terms.items()}

    def _spread(self, z: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.statistics == "global":
            return variance_covariance(*centre(z))
        if group is None:
            raise ValueError(f"vicreg with statistics: {self.statistics} needs the group of every sample; this pair gives none.")
        within = variance_covariance(*centre(z, group))
        if self.statistics == "within":
            return within
        over_all, share = variance_covariance(*centre(z)), self.within_share
        return tuple(share * w + (1 - share) * o for w, o in zip(within, over_all))


def centre(z: Tensor, group: Tensor | None = None) -> tuple[Tensor, int]:
    """z [N, D] minus its mean, or minus each group's mean, and the degrees of freedom that remain."""
    if group is None:
        if len(z) < 2:
            raise ValueError(f"vicreg needs at least 2 samples in the global batch, got {len(z)}.")
        return z - z.mean(0), len(z) - 1
    _, member, count = group.unique(return_inverse=True, return_counts=True)
    freedom = len(z) - len(count)
    if freedom < 1:
        raise ValueError(
            f"statistics within groups need a group with at least two samples; {len(z)} samples came in {len(count)} groups. "
            "Set pair.windows above 1, or objective.statistics=global."
        )
    means = z.new_zeros(len(count), z.shape[1]).index_add_(0, member, z) / count[:, None].to(z.dtype)
    return z - means[member], freedom


def variance_covariance(centred: Tensor, freedom: int) -> tuple[Tensor, Tensor]:
    """The hinge on the standard deviation (mean over D) and the squared off-diagonal covariance (sum / D) of centred [N, D]."""
    variance = (centred * centred).sum(0) / freedom
    hinge = torch.relu(1 - torch.sqrt(variance + 1e-4)).mean()
    covariance = centred.T @ centred / freedom
    off_diagonal = covariance - torch.diag_embed(covariance.diagonal())  # never subtract sums: that cancels
    return hinge, off_diagonal.square().sum() / centred.shape[1]


def _at_least_float32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _per_branch(term: str, weight: Weight) -> dict[str, float]:
    if not isinstance(weight, dict):
        return {"a": float(weight), "b": float(weight)}
    if set(weight) != {"a", "b"}:
        raise ValueError(f"objective.{term}: {weight} has the branches {sorted(weight)}. Expected one number, or {{a: number, b: number}}.")
    return {branch: float(value) for branch, value in weight.items()}
