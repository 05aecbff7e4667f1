"""VICReg against an independent float64 formula, written with loops over the definitions of the paper."""

import math

import numpy as np
import pytest
import torch

from vicjoint.objectives import VICReg


def reference(z_a, z_b, invariance=25.0, variance=(25.0, 25.0), covariance=(1.0, 1.0), groups=None):
    """Terms in float64 numpy; `groups` None: global statistics, else within groups."""
    n, d = z_a.shape
    terms = {"invariance": invariance * float(np.mean((z_a - z_b) ** 2)), "variance": 0.0, "covariance": 0.0}
    for z, w_v, w_c in zip((z_a, z_b), variance, covariance):
        if groups is None:
            cov = np.cov(z, rowvar=False, ddof=1).reshape(d, d)
        else:
            cov = np.zeros((d, d))
            for g in np.unique(groups):
                rows = z[groups == g] - z[groups == g].mean(0)
                cov += sum(np.outer(r, r) for r in rows)
            cov /= n - len(np.unique(groups))
        terms["variance"] += w_v / 2 * sum(max(0.0, 1 - math.sqrt(cov[j, j] + 1e-4)) for j in range(d)) / d
        terms["covariance"] += w_c * sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return terms


def embeddings(n, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * 100 + d)
    mix = torch.randn(d, d, generator=generator, dtype=dtype) / d**0.5
    z_a = torch.randn(n, d, generator=generator, dtype=dtype) @ mix
    return z_a, 0.7 * z_a + 0.2 * torch.randn(n, d, generator=generator, dtype=dtype) + 3


@pytest.mark.parametrize("n, d", [(2, 3), (8, 8), (16, 4), (6, 20)])
def test_terms_match_the_definition(n, d):
    z_a, z_b = embeddings(n, d)
    loss, terms = VICReg()(z_a, z_b)
    expected = reference(z_a.numpy(), z_b.numpy())
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=1e-10)
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-10)


@pytest.mark.parametrize("statistics, share", [("within", 1), ("both", 0.5), ("both", 0.2)])
def test_statistics_within_groups(statistics, share):
    z_a, z_b = embeddings(12, 5)
    groups = np.array([0, 0, 0, 7, 7, 3, 3, 3, 3, 3, 7, 9])
    objective = VICReg(variance={"a": 25, "b": 10}, covariance={"a": 1, "b": 3}, statistics=statistics, within_share=share)
    _, terms = objective(z_a, z_b, torch.from_numpy(groups))
    weights = dict(variance=(25.0, 10.0), covariance=(1.0, 3.0))
    within = reference(z_a.numpy(), z_b.numpy(), groups=groups, **weights)
    over_all = reference(z_a.numpy(), z_b.numpy(), **weights)
    expected = {k: share * within[k] + (1 - share) * over_all[k] for k in within}
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=1e-10)


def test_recorded_values():
    """The official convention on numbers small enough for paper: column variances 1/4 and 13/48 (a), 1 and 13/12 (b),
    covariances -1/4 and -1. solo-learn (variance not halved) and VICRegL (covariance halved) would give other values."""
    z_a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.25]], dtype=torch.float64)
    _, terms = VICReg()(z_a, 2 * z_a)
    by_hand = {"invariance": 25 * 2.3125 / 6, "covariance": 2 * 0.0625 / 2 + 2 * 1 / 2,
               "variance": 25 / 2 * ((1 - 0.2501**0.5) + (1 - (13 / 48 + 1e-4) ** 0.5)) / 2}
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(by_hand, rel=1e-12)


def test_gradient_matches_finite_differences():
    z_a, z_b = (z.requires_grad_() for z in embeddings(6, 4))
    group = torch.tensor([0, 0, 1, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda a, b: VICReg(statistics="both")(a, b, group)[0], (z_a, z_b))


def test_float32_inside_autocast():
    z_a, z_b = embeddings(64, 32, torch.float32)
    plain, _ = VICReg()(z_a, z_b)
    with torch.autocast("cpu", torch.bfloat16):
        inside, terms = VICReg()(z_a.bfloat16().float(), z_b)
        half, _ = VICReg()(z_a.bfloat16(), z_b.bfloat16())
    assert inside.dtype == half.dtype == torch.float32
    assert float(half) == pytest.approx(float(plain), rel=2e-2)
    assert not any(t.requires_grad for t in terms.values())


@pytest.mark.parametrize("make, message", [
    (lambda: VICReg(statistics="local"), "objective.statistics: 'local' is unknown. Expected one of: global, within, both."),
    (lambda: VICReg(within_share=1.5), "objective.within_share: 1.5 is not a share"),
    (lambda: VICReg(variance={"a": 1}), "objective.variance: {'a': 1}"),
    (lambda: VICReg()(torch.zeros(4, 3), torch.zeros(4, 2)), r"got \[4, 3\] and \[4, 2\]"),
    (lambda: VICReg()(torch.zeros(1, 3), torch.zeros(1, 3)), "at least 2 samples"),
    (lambda: VICReg(statistics="within")(torch.zeros(4, 3), torch.zeros(4, 3)), "needs the group of every sample"),
    (lambda: VICReg(statistics="both")(torch.zeros(4, 3), torch.zeros(4, 3), torch.arange(4)), "Set pair.windows above 1"),
])
def test_wrong_use_is_named(make, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}") if "{" in message else message):
        make()
