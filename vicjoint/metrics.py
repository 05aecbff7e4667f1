"""Health of a run: the three failures of joint embedding, measured on a batch of embeddings and said in plain
words.

collapse: different inputs, the same embedding; misalignment: similar inputs, different embeddings;
redundancy: dimensions that repeat each other.
"""

# N samples, D embedding dimensions

import torch
from torch import Tensor

COLLAPSED_STD = 0.1  # mean standard deviation; the hinge asks for 1
SHRUNK_STD = 0.25
# of the mean square that varies: what is left of the standard deviation where its scale means nothing
COLLAPSED_SHARE = 0.01
DEAD = 0.01  # of the largest standard deviation among the dimensions
MISALIGNED = 0.8  # 1 means that pairs are no closer than strangers
REDUNDANT = 0.05  # effective rank over the rank that N and D allow


@torch.no_grad()
def health(z_a: Tensor, z_b: Tensor) -> dict:
    """{a: {std, varying, dead_share, rank, redundancy}, b: {...}, alignment} of embeddings [N, D]; see
    `branch_health` and `alignment`."""
    return {"a": branch_health(z_a), "b": branch_health(z_b), "alignment": alignment(z_a, z_b)}


def branch_health(z: Tensor) -> dict[str, float]:
    """std: mean standard deviation per dimension. varying: share of the mean square that is variance.
    dead_share: dimensions that hold nothing. rank: effective rank (Roy and Vetterli 2007). redundancy: mean
    absolute off-diagonal correlation.
    """
    centred = z.double() - z.double().mean(0)
    std = (centred.square().sum(0) / max(1, len(z) - 1)).sqrt()
    scaled = centred / std.clamp_min(1e-12) / max(1, len(z) - 1) ** 0.5
    correlation = (scaled.T @ scaled).abs()
    dim = z.shape[1]
    redundancy = (correlation.sum() - correlation.diagonal().sum()) / max(1, dim * (dim - 1))
    varying = std.square().sum() / z.double().square().sum(1).mean().clamp_min(1e-30)
    return {
        "std": float(std.mean()),
        "varying": float(varying),
        "dead_share": dead_share(std),
        "rank": effective_rank(spectrum(z)),
        "redundancy": float(redundancy),
    }


def dead_share(std: Tensor) -> float:
    """Share of dimensions whose standard deviation, of [D], is below a hundredth of the largest one; 1 where
    none varies."""
    return float((std <= DEAD * std.max()).double().mean())


def spectrum(z: Tensor) -> Tensor:
    """Eigenvalues of the covariance matrix of z [N, D], descending, [min(N, D)] float64. Rows that are not
    finite are left out: one of them must not end a run that has trained to its last step."""
    z = z[torch.isfinite(z).all(1)]
    if not len(z):
        return torch.zeros(0, dtype=torch.float64)
    centred = z.double() - z.double().mean(0)
    return torch.linalg.svdvals(centred).square() / max(1, len(z) - 1)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues: 1 for a line, D for a sphere."""
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    p = (eigenvalues / total).clamp_min(1e-30)
    return float(torch.exp(-(p * p.log()).sum()))


def alignment(z_a: Tensor, z_b: Tensor) -> float:
    """Mean squared distance of a pair over that of two strangers: 0 when pairs agree, about 1 when they are
    unrelated."""
    paired = (z_a - z_b).double().square().sum(1).mean()
    strangers = (
        z_a.double().var(0).sum()
        + z_b.double().var(0).sum()
        + (z_a.double().mean(0) - z_b.double().mean(0)).square().sum()
    )
    return float(paired / strangers.clamp_min(1e-12))


def latent_usage(usage: Tensor) -> dict[str, float]:
    """Of the share of samples that chose each latent [K]. perplexity: exp of the entropy, 1 where one latent
    does all, K where all are used alike. most_used: the largest share."""
    p = usage.double() / usage.double().sum()
    return {"perplexity": float(torch.exp(-torch.special.xlogy(p, p).sum())), "most_used": float(p.max())}


def verdict(
    state: dict, samples: int, dim: int, hinge: bool = True, names: tuple[str, str] = ("a", "b")
) -> str:
    """One line in plain words for `health(...)` of `samples` x `dim` embeddings. `hinge`: the objective asks
    for a standard deviation of 1; else (Barlow Twins, InfoNCE) the embeddings' scale means nothing. `names`:
    of branches a and b."""
    troubles = []
    for branch, values in zip(names, (state["a"], state["b"])):
        flat = values["std"] < COLLAPSED_STD if hinge else values["varying"] < COLLAPSED_SHARE
        cure = (
            "lower the learning rate, limit its steps (adamw: optim.max_change=0.01) or raise the variance"
            " weight"
            if hinge
            else "lower the learning rate or enlarge the batch"
        )
        if flat or values["rank"] < 1.5:
            troubles.append(
                f"collapsed: branch {branch} gives nearly the same embedding for different inputs "
                f"(mean std {values['std']:.3f}, effective rank {values['rank']:.1f}); {cure}"
            )
        elif hinge and values["std"] < SHRUNK_STD:
            troubles.append(
                f"nearly collapsed: the embeddings of branch {branch} have shrunk (mean std"
                f" {values['std']:.3f}, the hinge asks for 1); {cure}"
            )
        elif values["rank"] < REDUNDANT * min(samples - 1, dim):
            troubles.append(
                f"redundant: the dimensions of branch {branch} repeat each other (effective rank"
                f" {values['rank']:.1f} of {min(samples - 1, dim)} possible); raise the covariance weight"
            )
    if state["alignment"] > MISALIGNED and not any(t.startswith("collapsed") for t in troubles):
        troubles.append(
            f"misaligned: pairs are hardly closer than strangers (ratio {state['alignment']:.2f}, 1 ="
            " unrelated); train longer or raise the invariance weight"
        )
    if troubles:
        return "; ".join(troubles)
    std, rank = (min(state[branch][name] for branch in "ab") for name in ("std", "rank"))
    return (
        f"healthy: embeddings vary{f' (mean std {std:.2f})' if hinge else ''}, agree in pairs and do not"
        f" repeat themselves (effective rank {rank:.0f} of {min(samples - 1, dim)} possible)"
    )
