"""A batch in parts: with `train.exact` the gradient of the whole batch, whatever the objective."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vicjoint.accumulate import backward
from vicjoint.batch import Batch
from vicjoint.objectives import BarlowTwins, InfoNCE, VICReg

GROUP = torch.arange(4).repeat_interleave(3)


class Model(nn.Module):
    def __init__(self, *layers: nn.Module, ema: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 16), *layers, nn.Tanh(), nn.Linear(16, 24)).double()
        self.ema = ema

    def forward(self, a, b, pair=0):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.ema):
            z_b = self.net(b)
        return self.net(a), z_b


def train(accumulate, exact=True):
    return SimpleNamespace(accumulate=accumulate, exact=exact, precision="fp32")


def pair():
    views = torch.randn(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(views[0], views[1], GROUP, ["x"] * 12)


def gradients(model, objective, options):
    torch.manual_seed(7)
    loss, terms, embeddings = backward(model, objective, pair(), options, gradient_b=not model.ema)
    return loss, terms, embeddings, [p.grad for p in [*model.parameters(), *objective.parameters()]]


@pytest.mark.parametrize(
    "objective",
    [
        lambda: VICReg(statistics="both"),
        lambda: BarlowTwins(),
        lambda: InfoNCE(0.2, learnable=True).double(),
        lambda: InfoNCE(0.2, form="moco", queue=9),
    ],
    ids=["vicreg", "barlow_twins", "infonce", "moco"],
)
def test_parts_give_the_gradient_of_the_whole_batch(objective, request):
    ema = "moco" in request.node.callspec.id
    whole = gradients(Model(ema=ema), objective(), train(1))
    parts = gradients(Model(ema=ema), objective(), train(4))
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-12)
    assert {k: float(v) for k, v in parts[1].items()} == pytest.approx(
        {k: float(v) for k, v in whole[1].items()}, rel=1e-12
    )
    assert torch.allclose(parts[2][0], whole[2][0], rtol=1e-12)
    for of_parts, of_whole in zip(parts[3], whole[3]):
        assert torch.allclose(of_parts, of_whole, rtol=1e-11, atol=1e-14)


def test_without_exact_each_part_has_its_own_statistics():
    whole = gradients(Model(), VICReg(), train(1))
    parts = gradients(Model(), VICReg(), train(4, exact=False))
    assert abs(float(parts[0]) - float(whole[0])) > 1e-3


def test_dropout_is_the_same_in_both_passes_and_batch_norm_counts_once():
    """The embeddings the objective saw are those that are differentiated: without that, this gradient would
    be wrong."""
    model = Model(nn.BatchNorm1d(16), nn.Dropout(0.5))
    _, _, (z_a, _), exact = gradients(model, VICReg(), train(4))
    assert int(model.net[1].num_batches_tracked) == 8  # four parts of two views

    by_hand = Model(nn.BatchNorm1d(16), nn.Dropout(0.5))
    torch.manual_seed(7)
    views = list(zip(*(by_hand(part.a, part.b) for part in pair().split(4))))
    z_a_by_hand, z_b_by_hand = (torch.cat(z) for z in views)
    VICReg()(z_a_by_hand, z_b_by_hand)[0].backward()
    assert torch.equal(z_a, z_a_by_hand.detach())
    for got, parameter in zip(exact, by_hand.parameters()):
        assert torch.allclose(got, parameter.grad, rtol=1e-10, atol=1e-14)
    for got, expected in zip(model.buffers(), by_hand.buffers()):
        assert torch.equal(got, expected)
