"""How embeddings lie, without a label: probe `geometry`.

evaluate: {probes: [{name: geometry}]}
evaluate: {probes: [{name: geometry, space: representation}]}
"""

# N samples, D width, V views of a sample

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vicjoint.metrics import DEAD, dead_share, effective_rank
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Space, Want
from vicjoint.registry import register

EPSILON = 1e-7  # RankMe's, beside each share
WITHIN = 1e-4  # LiDAR's, added to the covariance within samples
AT_ONCE = 2**24  # similarities at a time


@register("probe", "geometry")
class Geometry(Probe):
    """What the vectors of the test samples look like in `space`: how many directions they use, how near the
    two views of a sample are beside those of others, how far apart the branches lie. No number here
    says that an encoder is good; a drop of one beside random_init or another run says where to look.

    Each branch: rankme, alpha_req, dead_share, uniformity. Both, where their widths are equal: lidar,
    alignment, gap. Rows: model; random_init: the same encoders before training.
    """

    needs = frozenset({"views"})
    refusal = (
        "evaluate.probes: 'geometry' looks at single views, which this pair does not give. Leave it out."
    )
    explains = {
        "rankme": Metric("RankMe: exp of the entropy of the singular values; at most samples and width"),
        "alpha_req": Metric(
            "alpha-ReQ: how fast the covariance's eigenvalues fall, k^-alpha; near 1 is even", None
        ),
        "dead_share": Metric(
            f"share of dimensions with less than {DEAD} of the largest standard deviation", "lower"
        ),
        "uniformity": Metric(
            "log mean exp(-2 distance^2) between directions; -4 for an even sphere", "lower"
        ),
        "lidar": Metric("LiDAR: effective number of directions that tell samples apart, both views taken"),
        "alignment": Metric("mean squared distance between the directions of a sample's two views", "lower"),
        "gap": Metric("distance between the branches' mean directions, 0 to 2", "lower"),
    }

    def __init__(self, space: Space = "embedding"):
        self.space = space

    def wants(self, data: EvaluationData) -> list[Want]:
        return [Want(side, "test", rows=("model", "random_init"), space=self.space) for side in ("a", "b")]

    def measure(self, features: Features) -> Iterator[tuple[str, float]]:
        a, b = (features.items(want) for want in features.wants)
        both = torch.isin(a.places, b.places), torch.isin(b.places, a.places)
        for row in a.rows:
            y = a.rows[row].double(), b.rows[row].double()
            for side, x in zip("ab", y):
                yield f"{row}/{side}_rankme", rankme(x)
                yield f"{row}/{side}_alpha_req", alpha_req(x)
                yield f"{row}/{side}_dead_share", dead_share(x.std(0))
                yield f"{row}/{side}_uniformity", uniformity(x)
            if y[0].shape[1] == y[1].shape[1]:
                x_a, x_b = (x[kept.to(x.device)] for x, kept in zip(y, both))
                yield f"{row}/lidar", lidar(torch.stack([x_a, x_b], 1))
                yield f"{row}/alignment", alignment(x_a, x_b)
                yield f"{row}/gap", gap(x_a, x_b)


def rankme(x: Tensor) -> float:
    """exp of the entropy of the singular values of x [N, D], as shares of their sum (Garrido et al. 2023,
    equation 1): between 1 and min(N, D)."""
    values = torch.linalg.svdvals(x)
    p = values / values.sum().clamp_min(1e-30) + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))


def alpha_req(x: Tensor) -> float:
    """alpha of the power law k^-alpha that the eigenvalues of the covariance of x [N, D] follow best, by
    least squares of their logarithms (Agrawal et al. 2022, section 2). Eigenvalues of rounding are left
    out."""
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    values = values[values > values.max() * 1e-10]
    if len(values) < 2:
        return float("nan")
    k = torch.arange(1, len(values) + 1, dtype=torch.float64, device=x.device).log()
    k = k - k.mean()
    return float(-(k * values.log()).sum() / k.square().sum())


def uniformity(x: Tensor) -> float:
    """log of the mean of exp(-2 |u_i - u_j|^2) over pairs i < j of the directions u of x [N, D] (Wang and
    Isola 2020, section 4.1): 0 where all are one, near -4 where they fill the sphere."""
    directions, total = normalize(x), 0.0
    for some in directions.split(max(1, AT_ONCE // len(x))):
        # of unit vectors |u - v|^2 is 2 - 2 u v; each pair counts twice, and each with itself as 1
        total += float(torch.exp(4 * (some @ directions.T).clamp_max(1) - 4).sum())
    return math.log(max((total - len(x)) / (len(x) * (len(x) - 1)), 1e-300))


def lidar(x: Tensor) -> float:
    """Effective rank of the linear discriminant analysis of x [N, V, D], the V views of a sample being a
    class (Thilak et al. 2024, equations 1 to 4): what varies between samples, measured by what varies within
    them. Here V is 2, the two branches; the paper draws 50 views, so its numbers are not these."""
    means = x.mean(1)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / (len(x) - 1)
    inside = (x - means[:, None]).flatten(0, 1)
    within = inside.T @ inside / (len(x) * (x.shape[1] - 1))
    values, vectors = torch.linalg.eigh(
        within + WITHIN * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    )
    whiten = vectors / values.sqrt()
    return effective_rank(torch.linalg.eigvalsh(whiten.T @ between @ whiten).clamp_min(0))


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance of the directions of a [N, D] and b [N, D], row by row (Wang and Isola 2020,
    section 4.1): 0 to 4, about 2 for unrelated ones."""
    return float((normalize(a) - normalize(b)).square().sum(1).mean())


def gap(a: Tensor, b: Tensor) -> float:
    """Distance between the mean directions of a [N, D] and b [M, D] (Liang et al. 2022, section 2.1)."""
    return float((normalize(a).mean(0) - normalize(b).mean(0)).norm())
