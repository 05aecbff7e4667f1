"""Optimizers and schedules. A schedule is a pure function of the step: a factor for the recipe's learning rate.

Learning rates are absolute for AdamW, and per 256 samples of global batch for LARS (the paper's convention).
"""

import math

import torch
from torch import nn

from vicjoint.registry import build, register


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Biases and normalisation parameters (one dimension or none) get no weight decay and no LARS adaptation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


@register("optimizer", "adamw")
def adamw(model: nn.Module, global_batch: int, /, lr: float, weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.999)):
    """AdamW (Loshchilov and Hutter 2019) with an absolute learning rate."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas)


@register("optimizer", "lars")
def lars(model: nn.Module, global_batch: int, /, lr: float, weight_decay: float = 1e-6, momentum: float = 0.9, eta: float = 0.001):
    """LARS (You, Gitman, Ginsburg 2017) as VICReg uses it; `lr` is per 256 samples of global batch."""
    return LARS(parameter_groups(model, weight_decay), lr * global_batch / 256, momentum, eta)


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step per tensor is scaled by eta |w| / |g|, g including the weight decay. Groups with
    `adapt: False` take plain momentum steps."""

    def __init__(self, params, lr: float, momentum: float, eta: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["adapt"]:
                    update = update.add(p, alpha=group["weight_decay"])
                    p_norm, g_norm = p.norm(), update.norm()
                    usable = (p_norm > 0) & (g_norm > 0)
                    update = update * torch.where(usable, group["eta"] * p_norm / g_norm.clamp_min(1e-30), torch.ones_like(p_norm))
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(update)
                p.sub_(velocity, alpha=group["lr"])


@register("schedule", "cosine")
def cosine(step: int, total: int, /, warmup_steps: int = 0, end: float = 0.0) -> float:
    """Linear warm-up from 1 / warmup_steps, then half a cosine from 1 to `end` (a share of the learning rate). Step counts from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@register("schedule", "constant")
def constant(step: int, total: int, /, warmup_steps: int = 0) -> float:
    """Linear warm-up from 1 / warmup_steps, then 1."""
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: dict, step: int, total: int) -> float:
    """Set every group's rate for this step from its initial one; returns the rate."""
    factor = build("schedule", schedule, step, total)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return optimizer.param_groups[0]["lr"]
