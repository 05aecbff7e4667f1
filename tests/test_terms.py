"""SIGReg, negatives of one group, and straightening: against float64 formulas written from the definitions,
and answers that are known."""

import math
import re

import pytest
import tiny
import torch
import torch.nn.functional as F

import vicjoint
from benchmarks import plain
from vicjoint.objectives import InfoNCE, SIGReg, Straightened, VICReg, sigreg
from vicjoint.pairs.augment import Augment
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.recipe import RecipeError
from vicjoint.registry import build


def embeddings(n, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * 100 + d)
    z = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_() for x in (z[0], z[0] + 0.7 * z[1] + 0.3))


def close(objective, formula, n, d, group=None, tolerance=1e-10):
    """Value and both gradients, in float64 and in float32."""
    for dtype, most in ((torch.float64, tolerance), (torch.float32, 3e-6)):
        truth, z = embeddings(n, d), embeddings(n, d, dtype)
        torch.manual_seed(5)
        loss, terms = objective(*z, group)
        loss.backward()
        expected = formula(*truth)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=most * 10)
        assert sum(terms.values()).item() == pytest.approx(loss.item(), rel=1e-6) and loss.dtype == dtype
        for x, of_truth in zip(z, truth):
            assert (x.grad - of_truth.grad).norm() <= most * of_truth.grad.norm()


# ---- SIGReg ----


@pytest.mark.parametrize("n, d", [(2, 5), (40, 16), (300, 8)])
def test_sigreg_matches_the_plain_formula(n, d):
    torch.manual_seed(5)
    slices = sigreg.directions(d, 64, torch.zeros(1, dtype=torch.float64))
    slices = torch.stack([slices[:, i] for i in range(64)], 1)
    same = lambda dtype: sigreg.directions(d, 64, torch.zeros(1, dtype=dtype))
    torch.manual_seed(5)
    assert torch.allclose(same(torch.float32).double(), slices, atol=1e-6)
    close(SIGReg(slices=64), lambda a, b: plain.sigreg(a, b, slices), n, d)


def test_sigreg_of_rows_in_several_blocks(monkeypatch):
    from vicjoint.objectives import products

    monkeypatch.setattr(products, "IN_CACHE", 64 * 7)  # seven rows at once
    test_sigreg_matches_the_plain_formula(40, 16)


def test_the_statistic_knows_a_normal_distribution():
    """About 1.01 for standard normal rows of any number: the integral of w (1 - w^2) from -3 to 3. For one
    point N times the integral of w (1 - w)^2, and more for other widths, other places, and other forms."""
    t = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    w = torch.exp(-t.square() / 2)
    generator = torch.Generator().manual_seed(0)
    for rows in (500, 4000):
        z = torch.randn(rows, 400, generator=generator, dtype=torch.float64)
        mean = sigreg.epps_pulley(z, rows, False)[0].mean()
        assert mean.item() == pytest.approx(torch.trapezoid(w * (1 - w * w), t).item(), rel=0.1)
    point, _ = sigreg.epps_pulley(torch.zeros(50, 1, dtype=torch.float64), 50, False)
    assert point.item() == pytest.approx(50 * torch.trapezoid(w * (1 - w).square(), t).item(), rel=1e-2)
    for other in (
        0.8 * z,
        1.3 * z,
        z + 0.3,
        (torch.rand(z.shape, generator=generator).double() - 0.5) * 12**0.5,
    ):
        assert sigreg.epps_pulley(other, rows, False)[0].mean() > 3 * mean


def test_directions_are_new_in_each_step_and_those_of_seed_and_step():
    like = torch.zeros(1)
    torch.manual_seed(1)
    first, second = sigreg.directions(6, 4, like), sigreg.directions(6, 4, like)
    torch.manual_seed(1)
    again = sigreg.directions(6, 4, like)
    assert torch.equal(first, again) and not torch.allclose(first, second)
    assert torch.allclose(first.norm(dim=0), torch.ones(4))


def test_sigreg_makes_a_standard_normal_of_collapsed_embeddings():
    """From nearly one point: after some steps every direction has mean 0 and variance 1."""
    torch.manual_seed(0)
    z = (0.05 * torch.randn(256, 4) + 1).requires_grad_()
    objective, optimizer = SIGReg(slices=64), torch.optim.Adam([z], 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        objective(z, z.detach())[0].backward()
        optimizer.step()
    assert z.mean(0).abs().max() < 0.15 and (z.detach().T.cov() - torch.eye(4)).abs().max() < 0.25


# ---- negatives of one group ----


def within(formula):
    """Of each view's logits those of another group left out, by a mask."""

    def masked(z_a, z_b, group, temperature):
        a, b = F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)
        if formula == "clip":
            logits = (a @ b.T / temperature).masked_fill(group[:, None] != group, -math.inf)
            own = torch.arange(len(a))
            return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        z, twice = torch.cat([a, b]), torch.cat([group, group])
        hidden = (twice[:, None] != twice) | torch.eye(len(z), dtype=torch.bool)
        logits = (z @ z.T / temperature).masked_fill(hidden, -math.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))

    return masked


GROUP = torch.tensor([4, 4, 4, 0, 0, 9, 4, 0, 7, 9])  # 7 is alone


@pytest.mark.parametrize("temperature", [0.2, 0.01], ids=["one shift", "a shift of each row"])
@pytest.mark.parametrize("form", ["clip", "nt_xent"])
def test_negatives_of_one_group_match_a_mask(form, temperature):
    objective = InfoNCE(temperature, form=form, negatives="group")
    close(objective, lambda a, b: within(form)(a, b, GROUP, temperature), 10, 6, GROUP, tolerance=1e-9)


@pytest.mark.parametrize("form", ["clip", "nt_xent"])
def test_one_group_is_all_of_the_batch(form):
    z = embeddings(8, 5)
    every = InfoNCE(0.2, form=form)(*z)[0]
    assert InfoNCE(0.2, form=form, negatives="group")(*z, torch.full((8,), 3))[0].item() == every.item()


@pytest.mark.parametrize("form", ["clip", "nt_xent"])
def test_a_sample_alone_in_its_group_adds_nothing(form):
    z_a, z_b = embeddings(3, 5)
    loss, _ = InfoNCE(0.2, form=form, negatives="group")(z_a, z_b, torch.tensor([1, 1, 2]))
    loss.backward()
    two, _ = InfoNCE(0.2, form=form)(z_a[:2], z_b[:2])
    assert loss.item() == pytest.approx(two.item() * 2 / 3, rel=1e-12)
    assert z_a.grad[2].abs().max() < 1e-15 and z_a.grad[0].abs().max() > 1e-3


def test_a_learnt_temperature_of_group_negatives_gets_its_gradient():
    z_a, z_b = embeddings(10, 6)
    for form in ("clip", "nt_xent"):
        objective = InfoNCE(0.2, learnable=True, form=form, negatives="group").double()
        objective(z_a, z_b, GROUP)[0].backward()
        scale = torch.tensor(5.0, dtype=torch.float64).log().requires_grad_()
        within(form)(z_a, z_b, GROUP, 1 / scale.exp()).backward()
        assert float(objective.log_scale.grad) == pytest.approx(float(scale.grad), rel=1e-6)


# ---- straightening ----


def straightened(windows: int, weight=1.0, of=None) -> Straightened:
    objective = Straightened(of or {"name": "vicreg"}, weight)
    objective.bind(NextFrame(windows=windows))
    return objective


def turns(z, windows):
    """1 - cos of each angle, one by one."""
    return torch.stack(
        [
            1 - F.cosine_similarity(z[i + 1] - z[i], z[i + 2] - z[i + 1], dim=0)
            for first in range(0, len(z), windows)
            for i in range(first, first + windows - 2)
        ]
    ).mean()


@pytest.mark.parametrize("windows, n", [(3, 3), (4, 12)])
def test_straightening_matches_its_definition(windows, n):
    def formula(z_a, z_b):
        return plain.official(z_a, z_b) + 0.7 * (turns(z_a, windows) + turns(z_b, windows)) / 2

    close(straightened(windows, 0.7), formula, n, 5)


def test_a_line_a_corner_and_a_way_back():
    path = lambda *points: torch.tensor(points, dtype=torch.float64)
    line = path((0.0, 0.0), (1.0, 2.0), (3.0, 6.0), (3.5, 7.0))  # at any speed
    corner = path((0.0, 0.0), (1.0, 0.0), (1.0, 5.0), (-1.0, 5.0))
    back = path((0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (2.0, 0.0))
    for z, expected in ((line, 0), (corner, 1), (back, 2)):
        assert straightened(4)(z, z)[1]["straightening"].item() == pytest.approx(expected, abs=1e-12)
    # the turn from one record to the next is none
    two = torch.cat([line, line.flip(0)])
    assert straightened(4)(two, two)[1]["straightening"].item() == pytest.approx(0, abs=1e-12)
    still = path((0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 0.0)).requires_grad_()
    loss, terms = straightened(4)(still, still.detach())
    loss.backward()
    assert terms["straightening"].item() == pytest.approx(0.5, abs=1e-12) and still.grad.isfinite().all()


def test_what_straightening_takes_over_from_its_objective():
    objective = straightened(3, of={"name": "infonce", "learnable": True})
    assert objective.terms == ("contrast", "straightening") and len(list(objective.parameters())) == 1
    said = Straightened({"name": "vicreg", "convention": "vicregl"}).describe(8)
    assert said == VICReg(convention="vicregl").describe(8)
    moco = {"name": "straightened", "of": {"name": "infonce", "form": "moco", "queue": 8}}
    assert Straightened(moco["of"]).has_memory and Straightened.needs_slow_branch(moco) == "of"
    assert Straightened.needs_slow_branch({"of": {"name": "none"}}) is None


# ---- wrong use ----


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: SIGReg()(torch.ones(1, 3), torch.ones(1, 3)),
            "sigreg needs at least 2 samples in the global",
        ),
        (lambda: SIGReg()(torch.ones(4, 3), torch.ones(4, 2)), "sigreg needs two embeddings of one shape"),
        (
            lambda: build("objective", {"name": "sigreg", "slices": 0}),
            "slices: expected a number at least 1, got 0",
        ),
        (
            lambda: InfoNCE(form="moco", queue=4, negatives="group"),
            "objective.negatives: group with form: moco, whose queue knows no groups",
        ),
        (
            lambda: InfoNCE(negatives="group")(torch.ones(4, 3), torch.ones(4, 3)),
            "infonce with negatives: group needs the group of every sample",
        ),
        (
            lambda: InfoNCE(negatives="group")(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4)),
            "4 samples came in as many groups. Set pair.windows above 1, or objective.negatives=all",
        ),
        (
            lambda: Straightened({"name": "vicreg"}).bind(Augment()),
            "this pair gives none in order of time. Use the pair next_frame with windows: 3 or more",
        ),
        (
            lambda: straightened(3, of={"name": "straightened", "of": {"name": "vicreg"}}),
            "objective.of: straightened straightens already",
        ),
        (lambda: straightened(2), "this pair gives 2 in order of time"),
        (
            lambda: straightened(3)(torch.ones(4, 3), torch.zeros(4, 3)),
            "straightened: 4 rows are not made of records with 3 samples each",
        ),
        (
            lambda: Straightened({"name": "vicreg"})(torch.ones(4, 3), torch.zeros(4, 3)),
            "4 rows are not made of records with 0 samples each. Bind it to the pair",
        ),
        (
            lambda: build("objective", {"name": "straightened", "of": {"name": "vicrag"}}),
            "no objective 'vicrag'. Did you mean 'vicreg'?",
        ),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_recipe_without_ordered_samples_is_refused_before_training(tmp_path):
    made = tiny.recipe(objective={"name": "straightened", "of": {"name": "vicreg"}})
    with pytest.raises(RecipeError, match="straightened needs three or more samples of a record in order"):
        vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
