"""VICReg. The formulas, and the forms they are computed in, stand in spread.py."""

# N samples of the global batch, n of this process, D embedding dimensions, W processes

from typing import Literal

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.objectives.forms import best_form
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.objectives.products import row_blocks
from vicjoint.objectives.spread import Groups, Guard, Weights, by_columns, by_covariance, by_rows
from vicjoint.options import Share
from vicjoint.parts import Objective
from vicjoint.registry import register

Weight = float | dict[str, float]
Statistics = Literal["global", "within", "both"]
Convention = Literal["official", "vicregl", "solo_learn", "eb_jepa"]


@register("objective", "vicreg")
class VICReg(Objective):
    """Variance-Invariance-Covariance Regularization (Bardes, Ponce, LeCun 2022), in the official code's
    convention:

    - invariance: mean squared error between z_a and z_b over N and D (eq. 5 divided by D);
    - variance: (v_a + v_b) / 2, v = mean_j relu(1 - sqrt(var_j + 1e-4)), unbiased variance (eq. 1, 2);
    - covariance: c_a + c_b, c = sum of squared off-diagonal entries of the covariance matrix / D (eq. 3, 4).

    Each weight is one number, or one per branch: `{a: 25, b: 10}`. Of `invariance` these are how strongly the
    squared error pulls each branch: z_a gets the gradient of w_a MSE(z_a, z_b) with z_b held fixed, z_b that
    of w_b MSE with z_a held fixed, and the term's value is (w_a + w_b) / 2 MSE. With b: 0 only a follows, and
    b learns from its other terms (and, where it is in other pairs, from these). `convention` says by whose
    formulas the weights are meant; `official_weights` gives what they are in the official one.

    `statistics` says around what the variance and covariance are taken:
    global: the mean of the batch; within: the mean of each sample's group (N - G degrees of freedom); both: a
    share `within_share` of the second and the rest of the first. With several windows of one video in a
    batch, "global" can be satisfied by naming the video; "within" asks the embedding to vary over time.
    """

    terms = ("invariance", "variance", "covariance")

    def __init__(
        self,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
        statistics: Statistics = "global",
        within_share: Share = 0.5,
        convention: Convention = "official",
    ):
        super().__init__()
        self.invariance = _per_branch("invariance", invariance)
        self.variance = _per_branch("variance", variance)
        self.covariance = _per_branch("covariance", covariance)
        self.statistics, self.within_share, self.convention = statistics, within_share, convention
        self.guard = Guard()

    def official_weights(self, dim: int) -> dict[str, dict[str, float]]:
        """The weights in the official convention, for embeddings of width `dim`."""
        variance, covariance = {
            "official": (1, 1),
            "vicregl": (1, 1 / 2),  # averages the covariance of the two branches
            "solo_learn": (2, 1),  # adds their variances
            "eb_jepa": (
                2,
                1 / max(1, dim - 1),
            ),  # adds their variances, and averages the covariance's D (D - 1) entries
        }[self.convention]
        return {
            "invariance": dict(self.invariance),
            "variance": {k: variance * v for k, v in self.variance.items()},
            "covariance": {k: covariance * v for k, v in self.covariance.items()},
        }

    def pull(self, dim: int) -> float:
        return self.official_weights(dim)["invariance"]["a"] / dim

    def describe(self, dim: int) -> str | None:
        """What to say of the weights before training, where they are not the official ones."""
        if self.convention == "official":
            return None
        said = []
        for name, weight in self.official_weights(dim).items():
            each = sorted(set(weight.values()))
            said.append(
                f"{name} {each[0]:.4g}"
                if len(each) == 1
                else f"{name} a {weight['a']:.4g}, b {weight['b']:.4g}"
            )
        return (
            f"objective: the weights are meant as {self.convention} means them; in the official convention,"
            f" at width {dim}: {', '.join(said)}"
        )

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D]; group [n] int64, needed unless statistics is "global". Rows of all processes
        count. Raises ValueError on different shapes, fewer than two samples, or groups without two samples in
        any of them.
        """
        check_embeddings("vicreg", z_a, z_b)
        wanted = {"a": wants_gradient(z_a), "b": wants_gradient(z_b)}
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            terms, gradients = self._compute({"a": z_a, "b": z_b}, group, wanted)
            loss = sum(terms.values())
        return attach(loss, (z_a, gradients["a"]), (z_b, gradients["b"])), terms

    def _compute(self, z: dict[str, Tensor], group: Tensor | None, wanted: dict[str, bool]):
        """({term: weighted value}, {branch: gradient of own rows or None})."""
        counts = distributed.row_counts(len(z["a"]))
        rows, dim, scale = sum(counts), z["a"].shape[1], distributed.world_size()
        official = self.official_weights(dim)
        # DistributedDataParallel averages over the processes, while the union batch's gradient is the sum:
        # hence `scale`
        slopes = {
            branch: 2 * weight * scale / (rows * dim) for branch, weight in official["invariance"].items()
        }
        distance, gradients = apart(wide(z["a"]), wide(z["b"]), slopes, wanted)
        distance = distributed.total_later(distance)
        parts = self._statistics(rows, group, counts, z["a"].device)
        variance, covariance = 0.0, 0.0
        self.guard.next_step()
        size = max(x.element_size() for x in z.values())
        form = best_form(rows, dim, len(counts), size, len(parts))
        everyone = gather_both(z, counts) if form == "rows" else {"a": None, "b": None}
        for branch in ("a", "b"):
            weights = Weights(official["variance"][branch] / 2, official["covariance"][branch], scale)
            hinge, off_diagonal = spread(
                form,
                z[branch],
                everyone[branch],
                parts,
                weights,
                gradients[branch],
                self.guard,
                branch,
                counts,
            )
            variance = variance + weights.variance * hinge
            covariance = covariance + weights.covariance * off_diagonal
        invariance = (
            (official["invariance"]["a"] + official["invariance"]["b"]) / 2 * distance() / (rows * dim)
        )
        return {"invariance": invariance, "variance": variance, "covariance": covariance}, gradients

    def _statistics(
        self, rows: int, group: Tensor | None, counts: list[int], device: torch.device
    ) -> list[tuple[Groups, float]]:
        """What the statistics are taken around, and the share of each."""
        if self.statistics == "global":
            return [(Groups(rows), 1.0)]
        if group is None:
            raise ValueError(
                f"vicreg with statistics: {self.statistics} needs the group of every sample; this pair gives"
                " none."
            )
        within = Groups(rows, distributed.gather(group, counts), device)
        if self.statistics == "within":
            return [(within, 1.0)]
        return [(within, self.within_share), (Groups(rows), 1 - self.within_share)]


def apart(
    z_a: Tensor, z_b: Tensor, slopes: dict[str, float], wanted: dict[str, bool]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Sum of squares of z_a - z_b, and per branch its slope times that difference, with the sign of its
    gradient, where wanted."""
    difference = torch.empty_like(z_a)
    gradients = {
        "a": difference if wanted["a"] else None,
        "b": torch.empty_like(z_b) if wanted["b"] else None,
    }
    distance = z_a.new_zeros(())
    for a, b, d, minus in row_blocks(
        z_a, z_b, difference, difference if gradients["b"] is None else gradients["b"]
    ):
        torch.sub(a, b, out=d)
        distance += (d * d).sum()
        if wanted["b"]:
            torch.mul(d, -slopes["b"], out=minus)
        d.mul_(slopes["a"])
    return distance, gradients


def gather_both(z: dict[str, Tensor], counts: list[int]) -> dict[str, Tensor | None]:
    """All processes' rows of both branches, in one exchange."""
    if len(counts) == 1:
        return z
    a, b = distributed.gather(torch.cat([z["a"], z["b"]], 1), counts).split(z["a"].shape[1], 1)
    return {"a": a, "b": b}


def spread(
    form: str,
    z: Tensor,
    everyone: Tensor | None,
    parts: list[tuple[Groups, float]],
    weights: Weights,
    gradient: Tensor | None,
    guard: Guard,
    branch: str,
    counts: list[int],
) -> tuple[Tensor, Tensor]:
    """(hinge, covariance) of one branch in one of the forms of forms.py, each the sum of `parts` by their
    shares, from own rows z [n, D] or, for the form "rows", all rows `everyone` [N, D]; adds the gradient of
    own rows to `gradient`."""
    own = distributed.own_rows(counts)
    if form == "covariance":
        z = wide(z)
        found = [by_covariance(z, own, groups, weights.of(share), gradient) for groups, share in parts]
    elif form == "columns":
        found = _spread_by_columns(z, parts, weights, gradient, guard, branch, counts)
    else:
        found = [
            by_rows(wide(everyone), own, groups, weights.of(share), gradient, guard, f"{branch}{i}")
            for i, (groups, share) in enumerate(parts)
        ]
    return tuple(sum(share * value[i] for value, (_, share) in zip(found, parts)) for i in (0, 1))


def _spread_by_columns(z, parts, weights, gradient, guard, branch, counts):
    columns = wide(distributed.to_columns(z, counts))
    of_columns = None if gradient is None else torch.zeros_like(columns)
    found = []
    for i, (groups, share) in enumerate(parts):
        which = f"{branch}{i}"
        value = by_columns(columns, z.shape[1], groups, weights.of(share), of_columns, guard, which)
        if value is None:
            all_rows = wide(distributed.gather(z, counts))
            value = by_rows(
                all_rows, distributed.own_rows(counts), groups, weights.of(share), gradient, guard, which
            )
        found.append(value)
    if gradient is not None:
        gradient += distributed.to_rows(of_columns, counts, z.shape[1])
    return found


def _per_branch(term: str, weight: Weight) -> dict[str, float]:
    if not isinstance(weight, dict):
        return {"a": float(weight), "b": float(weight)}
    if set(weight) != {"a", "b"}:
        raise ValueError(
            f"objective.{term}: {weight} has the branches {sorted(weight)}. Expected one number, or {{a:"
            " number, b: number}."
        )
    return {branch: float(value) for branch, value in weight.items()}
