"""Schedules as pure functions, and optimizer steps against float64 formulas."""

import math

import pytest
import torch
from torch import nn

from vicjoint.optim import adamw, constant, cosine, lars, set_learning_rate


def test_cosine():
    assert [cosine(s, 110, warmup_steps=10) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine(60, 110, warmup_steps=10, end=0.2) == pytest.approx(
        0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 2))
    )
    assert cosine(110, 110, warmup_steps=10, end=0.2) == pytest.approx(0.2)
    assert constant(3, 10, warmup_steps=8) == pytest.approx(0.5) and constant(9, 10, warmup_steps=8) == 1


def layer():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def test_lars_step():
    model = layer()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = lars(model, 512, lr=0.3, weight_decay=0.1, momentum=0.9, eta=0.01)
    rate = 0.3 * 512 / 256
    velocity = [torch.zeros_like(p) for p in before]
    for _ in range(2):
        optimizer.step()
        for i, p in enumerate(before):
            g = list(model.parameters())[i].grad
            if p.ndim > 1:
                g = g + 0.1 * p
                g = g * 0.01 * p.norm() / g.norm()
            velocity[i] = 0.9 * velocity[i] + g
            before[i] = p - rate * velocity[i]
    for p, expected in zip(model.parameters(), before):
        assert torch.allclose(p, expected, atol=1e-12)


def test_biases_and_norms_are_not_decayed():
    optimizer = adamw(layer(), 64, lr=1e-2, weight_decay=0.5)
    decayed, kept = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.5
    assert {p.ndim for p in kept["params"]} == {1} and kept["weight_decay"] == 0


def test_no_step_moves_a_matrix_by_more_than_its_share():
    """The matrix takes AdamW's step, cut to a hundredth of its norm; what is no matrix takes all of it."""
    free, limited = layer(), layer()
    before = limited[0].weight.detach().clone()
    adamw(free, 64, lr=0.1).step()
    adamw(limited, 64, lr=0.1, max_change=0.01).step()
    whole = free[0].weight - before
    expected = before + whole * 0.01 * before.norm() / whole.norm()
    assert torch.allclose(limited[0].weight, expected, rtol=1e-12)
    assert torch.equal(limited[0].bias, free[0].bias) and torch.equal(limited[1].weight, free[1].weight)


def test_a_step_within_the_limit_is_adamws_to_the_bit():
    free, limited = layer(), layer()
    for _ in range(3):
        for model, options in ((free, {}), (limited, {"max_change": 0.5})):
            adamw(model, 64, lr=1e-4, **options).step()
    assert all(torch.equal(*two) for two in zip(free.parameters(), limited.parameters()))


def test_a_matrix_of_zeros_can_begin():
    model = layer()
    nn.init.zeros_(model[0].weight)
    adamw(model, 64, lr=0.1, max_change=0.01).step()
    assert float(model[0].weight.detach().norm()) == pytest.approx(0.01 * 1e-3 * 12**0.5)


def test_the_schedule_scales_the_initial_rate_each_time():
    optimizer = adamw(layer(), 64, lr=1e-2)
    rates = [
        set_learning_rate(optimizer, {"name": "cosine", "warmup_steps": 4}, s, 12) for s in (1, 1, 3, 12)
    ]
    assert rates == pytest.approx([5e-3, 5e-3, 1e-2, 0.0])
