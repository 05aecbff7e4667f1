"""recipes/imagenet.yaml: the published set-up key by key, steps of it against an independent float64
reference, official weights in and out."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vicjoint
from vicjoint.accumulate import backward
from vicjoint.batch import Batch
from vicjoint.export import main as export_command
from vicjoint.optim import set_learning_rate
from vicjoint.recipe import load_recipe
from vicjoint.registry import ComponentError
from vicjoint.training import loop


def published():
    return load_recipe("imagenet", ["source.root=/"])


def test_every_number_is_that_of_the_published_code():
    """Defaults of main_vicreg.py and its README's commands, augmentations.py, evaluate.py and resnet.py's
    zero_init_residual=True."""
    recipe = published().written
    assert recipe.announcement is None
    assert (recipe.a.encoder.name, recipe.a.encoder.zero_init_residual, recipe.a.expander) == (
        "resnet50",
        True,
        [8192, 8192, 8192],
    )
    assert recipe.b.weights == "same" and recipe.predictor is None
    objective = recipe.objective
    assert (objective.invariance, objective.variance, objective.covariance) == (25, 25, 1) and not hasattr(
        objective, "statistics"
    )
    optim = recipe.optim
    assert (optim.name, optim.weight_decay, optim.momentum, optim.eta, optim.clip) == (
        "lars",
        1e-6,
        0.9,
        0.001,
        None,
    )
    # 0.2 for 1000 epochs, as the header says
    assert (optim.lr, recipe.train.epochs, recipe.train.batch_size) == (0.3, 100, 2048)
    assert dict(optim.schedule) == {"name": "cosine", "warmup_epochs": 10, "end": 0.001, "zero_first": True}
    jitter = {
        "name": "colour_jitter",
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "p": 0.8,
    }
    for view, blur, solarize in (
        (recipe.dump()["pair"]["a"], 1.0, 0.0),
        (recipe.dump()["pair"]["b"], 0.1, 0.2),
    ):
        assert [dict(t) for t in view] == [
            {"name": "random_resized_crop", "area": [0.08, 1.0], "interpolation": "bicubic"},
            {"name": "horizontal_flip", "p": 0.5},
            jitter,
            {"name": "greyscale", "p": 0.2},
            {"name": "gaussian_blur", "p": blur, "sigma": [0.1, 2.0]},
            {"name": "solarize", "p": solarize},
        ]
    knn, linear = recipe.evaluate.probes
    assert (knn.name, knn.k, knn.temperature) == ("knn", [20, 200], 0.07)
    # README: --lr-head 0.02; evaluate.py: 100 epochs
    assert (linear.name, linear.rates, linear.epochs) == ("linear", [0.02], 100)


def rate_by_hand(step: int, epochs: int, steps_per_epoch: int, base: float, batch: int) -> float:
    """adjust_learning_rate of main_vicreg.py, from its description: 10 epochs linear from 0, then a cosine to
    a thousandth."""
    top, warm, all_steps = base * batch / 256, 10 * steps_per_epoch, epochs * steps_per_epoch
    if step < warm:
        return top * step / warm
    fraction = (1 + math.cos(math.pi * (step - warm) / (all_steps - warm))) / 2
    return top * fraction + top / 1000 * (1 - fraction)


def test_the_schedule_of_the_whole_run():
    schedule = dict(published().schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3 * 2048 / 256)
    steps_per_epoch = 1_281_167 // 2048
    for step in (0, 1, 3000, 6249, 6250, 6251, 30_000, 62_499):
        found = set_learning_rate(optimizer, schedule, step, 100 * steps_per_epoch, float(steps_per_epoch))
        assert found == pytest.approx(
            rate_by_hand(step, 100, steps_per_epoch, 0.3, 2048), rel=1e-12, abs=1e-15
        )


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The recipe with a small ResNet, expander and batch, in float64; everything else as published."""
    rng = np.random.default_rng(0)
    for i in range(16):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        )
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(
        "imagenet",
        [
            f"source.root={tmp_path / 'photos'}",
            "a.encoder.name=resnet18",
            "a.encoder.zero_init_residual=true",
            "a.expander=[24, 24, 24]",
            "train.batch_size=8",
            "train.epochs=12",
            "train.precision=fp32",
            "train.device=cpu",
            "data.workers=0",
            "evaluate.probes=[]",
        ],
    )
    parts = loop.build_parts(recipe)
    parts.model.double().train()
    return parts


def loss_by_hand(z_a, z_b):
    """Sections 4.1 and A of the paper in the published code's normalisation."""
    n, d = z_a.shape
    total = 25 * ((z_a - z_b) ** 2).sum() / (n * d)
    for z in (z_a, z_b):
        centred = z - z.sum(0) / n
        covariance = torch.einsum("ni,nj->ij", centred, centred) / (n - 1)
        deviation = torch.sqrt(torch.diagonal(covariance) + 1e-4)
        total = total + 25 * torch.clamp(1 - deviation, min=0).sum() / d / 2
        total = total + (covariance**2).sum() / d - (torch.diagonal(covariance) ** 2).sum() / d
    return total


def test_steps_of_the_whole_set_up_against_a_reference(parts):
    """Three steps from one start: loss, and every parameter after momentum, trust ratios, exclusions and the
    schedule."""
    branch = copy.deepcopy(parts.model.branches["a"])
    blocks = [m for m in branch.encoder.modules() if isinstance(m, type(branch.encoder.layer1[0]))]
    assert len(blocks) == 8 and not any(block.bn2.weight.any() for block in blocks)
    velocity = {name: torch.zeros_like(p) for name, p in branch.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    steps_per_epoch, total = 30, 360
    for step in (150, 151, 330):  # in the middle of the warm-up, which ends at 300, and on the cosine
        view_a, view_b = (
            torch.rand(8, 3, 40, 40, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        # ours
        lr = set_learning_rate(parts.optimizer, parts.recipe.schedule, step, total, float(steps_per_epoch))
        pair = Batch(view_a, view_b, torch.arange(8), [str(i) for i in range(8)])
        parts.optimizer.zero_grad()
        double_input(parts.model.branches["a"].modality)
        loss, terms, _ = backward(parts.model, parts.tasks[0].objective, pair, parts.recipe.train)
        parts.optimizer.step()
        # by hand
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
            for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        z_a, z_b = (branch.expander(branch.encoder((view - mean) / std)) for view in (view_a, view_b))
        expected = loss_by_hand(z_a, z_b)
        gradients = torch.autograd.grad(expected, list(branch.parameters()))
        rate = rate_by_hand(step, 12, steps_per_epoch, 0.3, 8)
        assert lr == pytest.approx(rate, rel=1e-12)
        with torch.no_grad():
            for (name, p), gradient in zip(branch.named_parameters(), gradients):
                if p.ndim != 1:  # biases and norms: no decay, no adaptation
                    gradient = gradient + 1e-6 * p
                    if p.norm() > 0 and gradient.norm() > 0:
                        gradient = gradient * 0.001 * p.norm() / gradient.norm()
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= rate * velocity[name]
        assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
        for (name, ours), (_, by_hand) in zip(
            parts.model.branches["a"].named_parameters(), branch.named_parameters()
        ):
            assert torch.allclose(ours, by_hand, rtol=1e-6, atol=1e-9), name
    assert max(float(v.abs().max()) for v in velocity.values()) > 0


def double_input(modality: nn.Module) -> None:
    """Normalise in float64: the modality's own arithmetic is float32, which would hide differences of the
    rest."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    modality.forward = lambda x: (x - mean) / std


# ---- weights ----


class Official(nn.Module):
    """The published resnet.py's one difference from torchvision's ResNet: a padding layer of 1 before a first
    convolution that pads 2."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.encoder.conv1.padding = (2, 2)

    def forward(self, x):
        return self.encoder(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.fixture
def official():
    torch.manual_seed(3)
    model = vicjoint.build_encoder("image", "resnet18", zero_init_residual=True)
    for p in model.parameters():  # random, also where initialisation is not
        nn.init.normal_(p, std=0.05)
    return Official(model).eval()


def layout(model: Official) -> dict:
    return dict(model.encoder.state_dict())


@pytest.mark.parametrize("wrapped", [False, True])
def test_official_weights_come_in(official, tmp_path, wrapped):
    """Both published files: resnet50.pth, the backbone alone, and resnet50_fullckpt.pth, of the distributed
    model with its projector."""
    state = layout(official)
    if wrapped:
        state = {
            "epoch": 100,
            "model": (
                {f"module.backbone.{k}": v for k, v in state.items()}
                | {"module.projector.0.weight": torch.zeros(2, 2)}
            ),
            "optimizer": {"state": {}, "param_groups": []},
        }
    torch.save(state, tmp_path / "resnet.pth")
    encoder = vicjoint.build_encoder("image", "resnet18", weights=str(tmp_path / "resnet.pth")).eval()
    x = torch.randn(2, 3, 65, 64)
    with torch.no_grad():
        assert torch.allclose(encoder(x), official(x), atol=1e-6) and encoder(x).abs().mean() > 0


def test_a_full_checkpoint_without_a_backbone_is_named(tmp_path):
    torch.save({"model": {"module.head.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ComponentError, match="do not fit this model"):
        vicjoint.build_encoder("image", "resnet18", weights=str(tmp_path / "x.pth"))


def test_weights_go_back_out(parts, official, tmp_path, capsys):
    """A run's encoder, exported as one file, is the published layout: strict loading into the official model,
    equal outputs."""
    run = vicjoint.train(parts.recipe.dump() | {"out": str(tmp_path / "run")}, ["train.steps=2"])
    assert export_command([str(run), "--to", str(tmp_path / "resnet.pth")]) == 0
    assert "resnet.pth" in capsys.readouterr().out
    state = torch.load(tmp_path / "resnet.pth", weights_only=True)
    official.encoder.load_state_dict(state, strict=True)
    encoder = vicjoint.load_encoder(run)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), official(encoder.modality(pixels)), atol=1e-5)
    assert export_command([str(run), "--to", str(tmp_path / "b.safetensors"), "--branch", "b"]) == 0
    again = vicjoint.build_encoder("image", "resnet18", weights=str(tmp_path / "b.safetensors"))
    assert all(
        torch.equal(x, y) for x, y in zip(again.state_dict().values(), encoder.encoder.state_dict().values())
    )
