"""Objectives against independent float64 formulas, written from the definitions of their papers."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.objective import hard_cases
from vicjoint.objectives import BarlowTwins, InfoNCE, VICReg, spread
from vicjoint.registry import build


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
    objective = VICReg(
        variance={"a": 25, "b": 10}, covariance={"a": 1, "b": 3}, statistics=statistics, within_share=share
    )
    _, terms = objective(z_a, z_b, torch.from_numpy(groups))
    weights = dict(variance=(25.0, 10.0), covariance=(1.0, 3.0))
    within = reference(z_a.numpy(), z_b.numpy(), groups=groups, **weights)
    over_all = reference(z_a.numpy(), z_b.numpy(), **weights)
    expected = {k: share * within[k] + (1 - share) * over_all[k] for k in within}
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=1e-10)


def test_recorded_values():
    """The official convention on numbers small enough for paper: column variances 1/4 and 13/48 (a), 1 and
    13/12 (b), covariances -1/4 and -1. solo-learn (variance not halved) and VICRegL (covariance halved) would
    give other values.
    """
    z_a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.25]], dtype=torch.float64)
    _, terms = VICReg()(z_a, 2 * z_a)
    by_hand = {
        "invariance": 25 * 2.3125 / 6,
        "covariance": 2 * 0.0625 / 2 + 2 * 1 / 2,
        "variance": 25 / 2 * ((1 - 0.2501**0.5) + (1 - (13 / 48 + 1e-4) ** 0.5)) / 2,
    }
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


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: build("objective", {"name": "vicreg", "statistics": "local"}),
            "statistics: expected one of 'global', 'within' or 'both', got 'local'",
        ),
        (
            lambda: build("objective", {"name": "vicreg", "within_share": 1.5}),
            "within_share: expected a number at most 1.0, got 1.5",
        ),
        (lambda: VICReg(variance={"a": 1}), "objective.variance: {'a': 1}"),
        (
            lambda: VICReg(invariance={"a": 25, "c": 5}),
            (
                "objective.invariance: {'a': 25, 'c': 5} has the branches ['a', 'c']. Expected one number, or"
                " {a: number"
            ),
        ),
        (lambda: VICReg()(torch.zeros(4, 3), torch.zeros(4, 2)), r"got \[4, 3\] and \[4, 2\]"),
        (lambda: VICReg()(torch.zeros(1, 3), torch.zeros(1, 3)), "at least 2 samples"),
        (
            lambda: VICReg(statistics="within")(torch.zeros(4, 3), torch.zeros(4, 3)),
            "needs the group of every sample",
        ),
        (
            lambda: VICReg(statistics="both")(torch.zeros(4, 3), torch.zeros(4, 3), torch.arange(4)),
            "Set pair.windows above 1",
        ),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message) if "{" in message else message):
        make()


def test_weights_are_described_by_branch():
    said = VICReg(invariance={"a": 25, "b": 5}, convention="vicregl").describe(8)
    assert (
        said
        == "objective: the weights are meant as vicregl means them; in the official convention, at width 8:"
        " invariance a 25, b 5, variance 25, covariance 0.5"
    )


# ---- forms and digits ----


def gradients(loss_of, z_a, z_b, dtype):
    """(loss, gradients of both) in `dtype`."""
    z = [x.to(dtype).clone().requires_grad_() for x in (z_a, z_b)]
    loss = loss_of(*z)
    loss.backward()
    return loss.item(), [x.grad for x in z]


def relative(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("n, d", [(2, 64), (6, 20), (32, 64), (64, 64), (64, 20), (300, 8)])
def test_gradient_matches_autograd_of_the_plain_formula(n, d):
    """Gram form and covariance form, which are chosen by shape."""
    z_a, z_b = embeddings(n, d)
    truth, expected = gradients(plain.official, z_a, z_b, torch.float64)
    value, got = gradients(lambda a, b: VICReg()(a, b)[0], z_a, z_b, torch.float64)
    assert value == pytest.approx(truth, rel=1e-10)
    assert max(relative(g, e) for g, e in zip(got, expected)) < 1e-10


@pytest.mark.parametrize("n, d", [(6, 20), (32, 64), (64, 20)])
@pytest.mark.parametrize("w_a, w_b", [(25, 5), (3, 0), (0, 7)])
def test_invariance_pulls_each_branch_by_its_own_weight(n, d, w_a, w_b):
    """Against autograd of w_a MSE(z_a, z_b held) + w_b MSE(z_a held, z_b) and the other terms; the value is
    the weights' mean times MSE."""
    z_a, z_b = embeddings(n, d)

    def by_autograd(a, b):
        rest = plain.official(a, b) - 25 * F.mse_loss(a, b)
        return w_a * F.mse_loss(a, b.detach()) + w_b * F.mse_loss(a.detach(), b) + rest

    truth, expected = gradients(by_autograd, z_a, z_b, torch.float64)
    objective = VICReg(invariance={"a": w_a, "b": w_b})
    value, got = gradients(lambda a, b: objective(a, b)[0], z_a, z_b, torch.float64)
    assert max(relative(g, e) for g, e in zip(got, expected)) < 1e-10
    mean_squared = float(F.mse_loss(z_a, z_b))
    assert value == pytest.approx(truth - (w_a + w_b) / 2 * mean_squared, rel=1e-10)
    assert float(objective(z_a, z_b)[1]["invariance"]) == pytest.approx(
        (w_a + w_b) / 2 * mean_squared, rel=1e-12
    )
    for wanted in (0, 1):  # one branch without a gradient: the other one's is the same
        z = [z_a.clone().requires_grad_(wanted == 0), z_b.clone().requires_grad_(wanted == 1)]
        objective(*z)[0].backward()
        assert torch.equal(z[wanted].grad, got[wanted]) and z[1 - wanted].grad is None


def test_a_weight_of_each_branch_changes_nothing_where_they_are_equal():
    z_a, z_b = embeddings(12, 6, torch.float32)
    one, of_one = gradients(lambda a, b: VICReg(invariance=7)(a, b)[0], z_a, z_b, torch.float32)
    two, of_two = gradients(
        lambda a, b: VICReg(invariance={"a": 7, "b": 7})(a, b)[0], z_a, z_b, torch.float32
    )
    assert one == two and all(torch.equal(g, e) for g, e in zip(of_one, of_two))


def covariance_only(z_a, z_b):
    total = 0.0
    for z in (z_a, z_b):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        total = total + (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]
    return total


@pytest.mark.parametrize("case", hard_cases())
def test_digits_survive_hard_cases(case):
    """float32 against float64 of the same numbers: value to 1e-5, gradient error at most twice that of a
    covariance matrix."""
    z = hard_cases()[case].float()
    _, expected = gradients(covariance_only, z, z.flip(0), torch.float64)
    truth = float(covariance_only(z.double(), z.flip(0).double()))
    _, of_plain = gradients(covariance_only, z, z.flip(0), torch.float32)
    value, got = gradients(
        lambda a, b: VICReg(invariance=0, variance=0)(a, b)[0], z, z.flip(0), torch.float32
    )
    assert value == pytest.approx(truth, rel=1e-5)
    for g, p, e in zip(got, of_plain, expected):
        assert relative(g, e) <= max(2 * relative(p, e), 5e-7)


def test_no_hard_case_is_easy(monkeypatch):
    """Without the guard some of those cases lose their digits, so the test above tests something."""
    monkeypatch.setattr(spread.Guard, "LEAST", 0.0)
    lost = 0
    for z in hard_cases().values():
        z = z.float()
        truth = float(covariance_only(z.double(), z.flip(0).double()))
        lost += abs(float(VICReg(invariance=0, variance=0)(z, z.flip(0))[0]) / truth - 1) > 1e-3
    assert lost >= 2


def test_exact_by_blocks_is_reached_and_right(monkeypatch):
    """Two rows of columns that cannot be certified: N > D / 2, uncorrelated columns."""
    monkeypatch.setattr(spread, "BLOCK", 7)
    called = []
    by_blocks = spread.exact_by_blocks
    monkeypatch.setattr(spread, "exact_by_blocks", lambda *given: called.append(1) or by_blocks(*given))
    x = torch.randn(24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orthogonal, _ = torch.linalg.qr(x - x.mean(0))
    z = torch.cat(
        [
            orthogonal,
            1e-4 * torch.randn(24, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        ],
        1,
    )
    truth, expected = gradients(covariance_only, z, z, torch.float64)
    value, got = gradients(lambda a, b: VICReg(invariance=0, variance=0)(a, b)[0], z, z, torch.float64)
    assert called
    assert value == pytest.approx(truth, rel=1e-9)
    assert max(relative(g, e) for g, e in zip(got, expected)) < 1e-9


def test_the_guard_reads_a_gpu_only_now_and_then():
    class OnGPU(float):
        is_cuda, reads = True, 0

        def __lt__(self, other):
            OnGPU.reads += 1
            return float(self) < other

    guard = spread.Guard()
    answers = []
    for call in range(130):
        guard.next_step()
        answers.append(guard.too_few_digits("a0", OnGPU(0.0 if call >= 10 else 1.0), 1.0))
    assert OnGPU.reads == 3 and answers[0] is False and answers[63] is False and answers[64] is True


def test_half_precision_inputs():
    """bfloat16: the only error left is the gradient's own rounding. float16 with standard deviation 6 at N =
    2048 stays finite."""
    z_a, z_b = (z.bfloat16() for z in embeddings(256, 512, torch.float32))
    _, expected = gradients(plain.official, z_a, z_b, torch.float64)
    _, got = gradients(lambda a, b: VICReg()(a, b)[0], z_a, z_b, torch.bfloat16)
    assert got[0].dtype == torch.bfloat16 and max(relative(g, e) for g, e in zip(got, expected)) < 2e-3
    z = 6 * torch.randn(2048, 256, generator=torch.Generator().manual_seed(0))
    value, got = gradients(lambda a, b: VICReg()(a, b)[0], z, z.flip(0), torch.float16)
    assert math.isfinite(value) and got[0].dtype == torch.float16 and got[0].isfinite().all()


def test_a_loss_scale_keeps_small_float16_gradients():
    z_a, z_b = (z.half().requires_grad_() for z in embeddings(512, 256, torch.float32))
    (VICReg(invariance=1e-4, variance=0, covariance=0)(z_a, z_b)[0] * 65536).backward()
    expected = 65536 * 2e-4 * (z_a.detach().double() - z_b.detach().double()) / z_a.numel()
    assert relative(z_a.grad, expected) < 1e-3


@pytest.mark.parametrize(
    "objective",
    [VICReg(), BarlowTwins(), InfoNCE(0.1), InfoNCE(0.1, form="nt_xent")],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.parametrize("n, d", [(8, 32), (32, 8)])
def test_no_gradient_no_work_for_it(objective, n, d):
    """The products of the gradient are made only for a branch that wants one."""

    def in_place_product(_, left, right, **__):
        return 2 * left[0] * left[1] * right[1]

    def products(grad_a, grad_b):
        z_a, z_b = embeddings(n, d)
        with FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.addmm_: in_place_product}
        ) as counter:
            loss, _ = objective(z_a.requires_grad_(grad_a), z_b.requires_grad_(grad_b))
        return counter.get_total_flops(), loss

    both, loss = products(True, True)
    none, without = products(False, False)
    with torch.no_grad():
        under_no_grad, _ = products(True, True)
    assert none == under_no_grad <= 0.67 * both and not without.requires_grad
    assert loss.item() == pytest.approx(without.item(), rel=1e-12)
    one, _ = products(True, False)
    assert one <= both


# ---- conventions ----


def solo_learn(z_a, z_b, variance, covariance):
    return F.mse_loss(z_a, z_b) * 25 + sum(
        variance * F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() + covariance * covariance_only(z, z) / 2
        for z in (z_a, z_b)
    )


@pytest.mark.parametrize(
    "convention, theirs",
    [
        ("official", lambda a, b: plain.official(a, b)),
        ("vicregl", lambda a, b: plain.official(a, b) - covariance_only(a, b) / 2),
        ("solo_learn", lambda a, b: solo_learn(a, b, 25, 1)),
        ("eb_jepa", lambda a, b: solo_learn(a, b, 25, 1 / (a.shape[1] - 1))),
    ],
)
def test_conventions_of_other_projects(convention, theirs):
    """Each formula as its project writes it, and the weights it comes to in ours."""
    z_a, z_b = embeddings(12, 5)
    loss, _ = VICReg(convention=convention)(z_a, z_b)
    assert float(loss) == pytest.approx(float(theirs(z_a, z_b)), rel=1e-10)
    weights = VICReg(convention=convention).official_weights(5)
    assert float(VICReg(**weights)(z_a, z_b)[0]) == pytest.approx(float(loss), rel=1e-12)
    assert VICReg(invariance={"a": 9, "b": 2}, convention=convention).official_weights(5)["invariance"] == {
        "a": 9.0,
        "b": 2.0,
    }


# ---- Barlow Twins and InfoNCE ----

OTHERS = {
    "barlow_twins": (BarlowTwins(), plain.barlow_twins),
    **{f"clip {t}": (InfoNCE(t), lambda a, b, t=t: plain.clip(a, b, t)) for t in (0.5, 0.1, 0.01)},
    **{
        f"nt_xent {t}": (InfoNCE(t, form="nt_xent"), lambda a, b, t=t: plain.nt_xent(a, b, t))
        for t in (0.5, 0.1, 0.01)
    },
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("n, d", [(40, 100), (64, 64), (100, 24)])
def test_other_objectives_match_the_plain_formula(name, n, d):
    objective, formula = OTHERS[name]
    z_a, z_b = embeddings(n, d)
    z_b = z_a + 2 * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth, expected = gradients(formula, z_a, z_b, torch.float64)
    value, got = gradients(lambda a, b: objective(a, b)[0], z_a, z_b, torch.float64)
    assert value == pytest.approx(truth, rel=1e-9)
    assert max(relative(g, e) for g, e in zip(got, expected)) < 1e-9
    _, of_plain = gradients(formula, z_a, z_b, torch.float32)
    _, of_ours = gradients(lambda a, b: objective(a, b)[0], z_a, z_b, torch.float32)
    for g, p, e in zip(of_ours, of_plain, expected):
        assert relative(g, e) <= max(2 * relative(p, e), 1e-5)


def test_barlow_twins_keeps_its_digits_where_the_gram_form_cancels():
    """A few columns that agree and are uncorrelated, the rest constant: off-diagonal entries are tiny beside
    the diagonal."""
    x = torch.randn(64, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orthogonal, _ = torch.linalg.qr(x - x.mean(0))
    z = torch.cat([8 * orthogonal, torch.ones(64, 108, dtype=torch.float64)], 1)
    z = z + 1e-6 * torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective = BarlowTwins(redundancy=1.0)
    truth, _ = gradients(lambda a, b: plain.barlow_twins(a, b), z, z, torch.float64)
    _, terms = objective(z.float(), z.float())
    _, exact = objective(z, z)
    assert float(terms["redundancy"]) == pytest.approx(float(exact["redundancy"]), rel=1e-2)


@pytest.mark.parametrize("form", ["clip", "nt_xent"])
def test_a_learnt_temperature_gets_its_gradient(form):
    z_a, z_b = embeddings(12, 6)
    objective = InfoNCE(0.2, learnable=True, form=form).double()
    objective(z_a, z_b)[0].backward()
    scale = torch.tensor(5.0, dtype=torch.float64).log().requires_grad_()
    {"clip": plain.clip, "nt_xent": plain.nt_xent}[form](z_a, z_b, 1 / scale.exp()).backward()
    assert float(objective.log_scale.grad) == pytest.approx(float(scale.grad), rel=1e-6)


def test_the_queue_holds_earlier_batches():
    """Against cross entropy over (own partner, queue), while the queue fills, goes round, and is taken up
    from a checkpoint."""
    objective = InfoNCE(0.2, form="moco", queue=10)
    held = None
    for step in range(4):
        z_a, z_b = (torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + i)) for i in (0, 1))
        z_a.requires_grad_()
        loss, _ = objective(z_a, z_b)
        loss.backward()
        if held is not None:
            a, b = (
                F.normalize(z_a.detach().double(), dim=1).requires_grad_(),
                F.normalize(z_b.double(), dim=1),
            )
            logits = torch.cat([(a * b).sum(1, keepdim=True), a @ held.double().T], 1) / 0.2
            expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        held = objective.queue.clone()
        places = [(4 * step + i) % 10 for i in range(4)]
        assert torch.allclose(held[places], F.normalize(z_b, dim=1))
    again = InfoNCE(0.2, form="moco", queue=10)
    again.load_state_dict(objective.state_dict())
    assert again(z_a, z_b)[0].item() == objective(z_a, z_b)[0].item()
    objective.eval()
    before = objective.queue.clone()
    objective(z_a, z_b)
    assert torch.equal(before, objective.queue)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: build("objective", {"name": "infonce", "temperature": 0}),
            "temperature: expected a number above 0.*, got 0",
        ),
        (
            lambda: build("objective", {"name": "infonce", "form": "simclr"}),
            "form: expected one of 'clip', 'nt_xent' or 'moco', got 'simclr'",
        ),
        (lambda: InfoNCE(form="moco"), "objective.queue: 0 with form: moco. Expected a length"),
        (lambda: InfoNCE(queue=5), "objective.queue: 5 with form: clip"),
        (
            lambda: InfoNCE(form="moco", queue=5)(torch.ones(4, 3), torch.ones(4, 3).requires_grad_()),
            "Set b.weights: ema",
        ),
        (lambda: InfoNCE()(torch.ones(1, 3), torch.ones(1, 3)), "infonce needs at least 2 samples"),
        (lambda: BarlowTwins()(torch.ones(1, 3), torch.ones(1, 3)), "barlow_twins needs at least 2 samples"),
        (
            lambda: BarlowTwins()(torch.ones(4, 3), torch.ones(4, 2)),
            r"barlow_twins needs two embeddings of one shape",
        ),
        (
            lambda: build("objective", {"name": "vicreg", "convention": "lightly"}),
            "convention: expected one of .*, got 'lightly'",
        ),
    ],
)
def test_wrong_use_of_the_others_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
