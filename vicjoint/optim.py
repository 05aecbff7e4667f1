"""Optimizers and schedules. A schedule is a pure function of the step: a factor for the recipe's learning
rate.

Learning rates are absolute for AdamW, and per 256 samples of global batch for LARS (the paper's convention).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vicjoint import distributed
from vicjoint.options import Natural, NotNegative, PositiveShare, Share, ShareBelowOne
from vicjoint.registry import build, register


class Rate(NamedTuple):
    """How a parameter learns beside the others: a factor of the learning rate, and its weight decay; None:
    the optimizer's."""

    factor: float = 1.0
    weight_decay: float | None = None


class Rated(nn.Module):
    """A module some of whose parameters learn at rates of their own."""

    def rates(self) -> Iterator[tuple[nn.Parameter, Rate]]:
        raise NotImplementedError(f"'{type(self).__name__}' has no method rates()")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Biases and normalisation parameters (one dimension or none) get no weight decay and no LARS
    adaptation. Parameters with a rate of their own, in any `Rated` of the model, follow in groups with a
    `lr_factor`."""
    rates = {p: rate for module in model.modules() if isinstance(module, Rated) for p, rate in module.rates()}
    found: dict[tuple[Rate, bool], list[nn.Parameter]] = {(Rate(), True): [], (Rate(), False): []}
    for p in model.parameters():
        if p.requires_grad:
            found.setdefault((rates.get(p, Rate()), p.ndim > 1), []).append(p)
    groups = []
    for (rate, matrix), parameters in found.items():
        decay = weight_decay if rate.weight_decay is None else rate.weight_decay
        group = {"params": parameters, "weight_decay": decay if matrix else 0.0, "adapt": matrix}
        groups.append(group if rate == Rate() else group | {"lr_factor": rate.factor})
    return groups


@register("optimizer", "adamw")
def adamw(
    model: nn.Module,
    global_batch: int,
    /,
    lr: NotNegative,
    weight_decay: NotNegative = 0.05,
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999),
    max_change: PositiveShare | None = None,
):
    """AdamW (Loshchilov and Hutter 2019) with an absolute learning rate. `max_change`: no step moves a weight
    matrix by more than this share of its norm, such as 0.01; null: by whatever the rate says."""
    groups = parameter_groups(model, weight_decay)
    # on GPUs one kernel, which can be told on the device to change nothing
    fused = all(p.is_cuda for group in groups for p in group["params"]) or None
    if max_change is None:
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    return LimitedAdamW(groups, max_change, lr=lr, betas=betas, fused=fused)


class LimitedAdamW(torch.optim.AdamW):
    """AdamW whose step moves no weight matrix by more than `max_change` of its Frobenius norm: the trust
    ratio of LARS and LAMB (You et al. 2020, algorithm 2) as a limit. Adam's steps have one size whatever the
    gradient's; once a branch's embeddings shrink, so do the weights behind them, and steps of the old size
    shake them by more than they learn: the branch stays collapsed. Groups with `adapt: False` are free. A
    matrix of zeros counts as one of entries of LEAST, so that it can begin."""

    LEAST = 1e-3

    def __init__(self, params, max_change: float, **settings):
        super().__init__(params, **settings)
        self.max_change = max_change

    @torch.no_grad()
    def step(self, closure=None):
        limited = [
            p for group in self.param_groups if group["adapt"] for p in group["params"] if p.grad is not None
        ]
        before = [p.clone() for p in limited]
        loss = super().step(closure)
        for p, old in zip(limited, before):
            change = p - old
            most = self.max_change * norm(old).clamp_min(self.LEAST * math.sqrt(old.numel()))
            share = most / norm(change).clamp_min(1e-30)
            p.copy_(torch.where(share < 1, old + share * change, p))
        return loss


@register("optimizer", "lars")
def lars(
    model: nn.Module,
    global_batch: int,
    /,
    lr: NotNegative,
    weight_decay: NotNegative = 1e-6,
    momentum: ShareBelowOne = 0.9,
    eta: NotNegative = 0.001,
):
    """LARS (You, Gitman, Ginsburg 2017) as VICReg uses it; `lr` is per 256 samples of global batch."""
    return LARS(parameter_groups(model, weight_decay), lr * global_batch / 256, momentum, eta)


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step per tensor is scaled by eta |w| / |g|, g including the weight decay. Groups
    with `adapt: False` take plain momentum steps. Where `found_inf`, a flag on the device, is 1, a step
    changes nothing."""

    _step_supports_amp_scaling = True  # so torch's GradScaler asks for it
    found_inf: Tensor | None = None

    def __init__(self, params, lr: float, momentum: float, eta: float):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["adapt"]:
                    update = update.add(p, alpha=group["weight_decay"])
                    p_norm, g_norm = norm(p), norm(update)
                    usable = (p_norm > 0) & (g_norm > 0)
                    update = update * torch.where(
                        usable, group["eta"] * p_norm / g_norm.clamp_min(1e-30), torch.ones_like(p_norm)
                    )
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                if self.found_inf is None:
                    velocity.mul_(group["momentum"]).add_(update)
                    p.sub_(velocity, alpha=group["lr"])
                else:
                    moved = velocity.mul(group["momentum"]).add_(update)
                    held = self.found_inf > 0
                    p.copy_(torch.where(held, p, p.sub(moved, alpha=group["lr"])))
                    velocity.copy_(torch.where(held, velocity, moved))


def norm(x: Tensor) -> Tensor:
    """Of the whole tensor, where processes hold shares of it."""
    return distributed.whole(x.norm())


@register("schedule", "cosine")
def cosine(
    step: int,
    total: int,
    epoch: float = math.inf,
    /,
    warmup_steps: Natural = 0,
    warmup_epochs: NotNegative = 0.0,
    end: Share = 0.0,
    zero_first: bool = False,
) -> float:
    """Linear warm-up, then half a cosine from 1 to `end` (a share of the learning rate). Step counts from 0,
    `epoch` is its length in steps; the warm-up lasts `warmup_steps`, or `warmup_epochs`. It starts from one
    step's share, or with `zero_first` from 0 (VICReg's code).
    """
    warmup = warmup_length(epoch, warmup_steps, warmup_epochs)
    if step < warmup:
        return (step + (0 if zero_first else 1)) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@register("schedule", "constant")
def constant(
    step: int,
    total: int,
    epoch: float = math.inf,
    /,
    warmup_steps: Natural = 0,
    warmup_epochs: NotNegative = 0.0,
) -> float:
    """Linear warm-up from one step's share over `warmup_steps`, or `warmup_epochs`, then 1."""
    warmup = warmup_length(epoch, warmup_steps, warmup_epochs)
    return (step + 1) / warmup if step < warmup else 1.0


def warmup_length(epoch: float, steps: int, epochs: float) -> int:
    """Steps of warm-up. Raises ValueError where both lengths are given."""
    if steps and epochs:
        raise ValueError(
            f"optim.schedule: warmup_steps={steps} and warmup_epochs={epochs} are both given. Give one."
        )
    return round(epochs * epoch) if epochs else steps


def set_learning_rate(
    optimizer: torch.optim.Optimizer, schedule: dict, step: int, total: int, epoch: float = math.inf
) -> float:
    """Set every group's rate for this step from its initial one; returns the rate of parameters without a
    factor of their own. `epoch`: its length in steps."""
    factor = build("schedule", schedule, step, total, epoch)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor * group.get("lr_factor", 1.0)
    return optimizer.param_groups[0]["lr"]
