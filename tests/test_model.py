"""Branches and weight sharing."""

import copy

import pytest
import torch
from torch import nn

from vicjoint.modalities.image import Pixels
from vicjoint.model import Branch, Model, make_expander
from vicjoint.predictors import MLP


class Mean(nn.Module):
    """y = mean over space, so that outputs can be computed by hand."""

    dim = 3

    def forward(self, view):
        return view.mean((2, 3))


def branch():
    return Branch(Pixels(), Mean(), [8, 4])


def test_expander_is_linear_norm_relu_and_a_last_linear_without_bias():
    kinds = [type(m).__name__ for m in make_expander(5, [8, 8, 4])]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert make_expander(5, [8, 4])[-1].bias is None and make_expander(5, [8, 4])[-1].out_features == 4


def test_pixels_are_normalised_the_same_from_bytes_and_floats():
    pixels = torch.randint(0, 256, (2, 3, 4, 5, 5), dtype=torch.uint8)
    expected = (
        pixels.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    assert torch.allclose(Pixels()(pixels).double(), expected, atol=1e-5)
    assert torch.allclose(Pixels()(pixels.float() / 255).double(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="has 1 channels"):
        Pixels()(pixels[:, :1])


@pytest.mark.parametrize("weights", ["own", "same", "ema"])
def test_weights_of_branch_b(weights):
    torch.manual_seed(0)
    a = branch()
    b = {"own": branch, "same": lambda: a, "ema": lambda: copy.deepcopy(a)}[weights]()
    model = Model({"a": a, "b": b}, [("a", "b")], {"b": ("a", 0.9)} if weights == "ema" else None)
    views = torch.rand(6, 3, 4, 4)
    z_a, z_b = model(views, views)
    assert z_a.shape == z_b.shape == (6, 4)
    assert z_b.requires_grad == (weights != "ema")
    assert torch.equal(z_a, z_b) == (weights != "own")
    before = a.expander[0].weight.clone()
    with torch.no_grad():
        a.expander[0].weight.add_(1)
    b_before = b.expander[0].weight.clone()
    model.after_step()
    expected = {"own": b_before, "same": before + 1, "ema": before + 0.1}[weights]
    assert torch.allclose(b.expander[0].weight, expected)


def test_predictor_keeps_the_width():
    assert MLP(6, hidden=10)(torch.rand(4, 6)).shape == (4, 6)


def test_branches_register_each_weight_once_and_go_by_the_number_of_the_task():
    torch.manual_seed(0)
    branches = {name: branch() for name in ("x", "y", "z")}
    model = Model(branches, [("x", "y"), ("z", "x"), ("y", "y")]).eval()
    assert (
        len(list(model.parameters()))
        == len(set(model.parameters()))
        == 3 * len(list(branches["x"].parameters()))
    )
    assert {name.split(".")[1] for name in model.state_dict()} == {"x", "y", "z"}
    views = torch.rand(2, 6, 3, 4, 4)
    for number, two in enumerate([("x", "y"), ("z", "x"), ("y", "y")]):
        z_a, z_b = model(views[0], views[1], number)
        assert torch.equal(z_a, branches[two[0]](views[0])) and torch.equal(z_b, branches[two[1]](views[1]))
    two = model.between("y", "z")
    assert two.side("a") is branches["y"] and two.side("b") is branches["z"]
    for side, name in (("a", "y"), ("b", "z")):
        y = two.represent(side, views[0])
        assert torch.equal(two.embed(side, y), branches[name](views[0]))
