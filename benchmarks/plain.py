"""The objectives as they are usually written, straight from their formulas, for autograd to differentiate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def official(z_a: Tensor, z_b: Tensor) -> Tensor:
    """VICReg in the official form: D x D covariance matrices, off-diagonal entries by reshaping a copy."""
    return 25 * F.mse_loss(z_a, z_b) + variance_covariance(z_a, z_b)


def boolean_mask(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The same with the off-diagonal entries picked by a boolean mask, as lightly and solo-learn do."""
    pick = lambda c: c[~torch.eye(len(c), dtype=torch.bool, device=c.device)]
    return 25 * F.mse_loss(z_a, z_b) + variance_covariance(z_a, z_b, pick)


def off_diagonal_by_reshape(c: Tensor) -> Tensor:
    return c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].flatten()


def variance_covariance(z_a: Tensor, z_b: Tensor, off_diagonal=off_diagonal_by_reshape) -> Tensor:
    """VICReg without its invariance term."""
    loss = 0.0
    for z in (z_a, z_b):
        z = z - z.mean(0)
        loss = loss + 25 * torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2
        covariance = z.T @ z / (len(z) - 1)
        loss = loss + off_diagonal(covariance).pow(2).sum() / z.shape[1]
    return loss


def barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Barlow Twins with its D x D cross-correlation matrix, redundancy weight 0.0051."""
    a, b = (F.batch_norm(z, None, None, training=True, eps=1e-5) for z in (z_a, z_b))
    c = a.T @ b / len(a)
    return (c.diagonal() - 1).pow(2).sum() + 0.0051 * off_diagonal_by_reshape(c).pow(2).sum()


def nt_xent(z_a: Tensor, z_b: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss: cross entropy over the 2N x 2N similarities."""
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    logits = (z @ z.T / temperature).masked_fill(
        torch.eye(len(z), dtype=torch.bool, device=z.device), -math.inf
    )
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z_a)))


def sigreg(z_a: Tensor, z_b: Tensor, slices: Tensor, weight: float = 0.05) -> Tensor:
    """LeJEPA's loss with the directions slices [D, M]: the integrand at every row, direction and point."""
    t = torch.linspace(-3, 3, 33, dtype=z_a.dtype, device=z_a.device)
    normal, middle = torch.exp(-t.square() / 2), (z_a + z_b) / 2
    loss = 0.0
    for z in (z_a, z_b):
        mean = torch.exp(1j * (z @ slices)[..., None] * t).mean(0)
        statistic = len(z) * torch.trapezoid((mean - normal).abs().square() * normal, t)
        loss = loss + weight * statistic.mean() / 2 + (1 - weight) * (z - middle).square().mean() / 2
    return loss


def clip(z_a: Tensor, z_b: Tensor, temperature: float = 0.1) -> Tensor:
    """CLIP's loss: cross entropy in both directions over N x N similarities."""
    a, b = F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(a @ b.T / temperature, own) + F.cross_entropy(b @ a.T / temperature, own)) / 2
