"""A discrete latent: which prediction is chosen, what its gradient reaches, and that parts and processes
choose as one."""

import copy
import functools
import os
import socket

import numpy as np
import pytest
import tiny
import torch
from probing import Given
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vicjoint
from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.batch import Batch, Futures
from vicjoint.latents import Choice, energies
from vicjoint.metrics import latent_usage
from vicjoint.model import Branch, Model
from vicjoint.objectives import VICReg
from vicjoint.objectives.futures import OfFutures
from vicjoint.parts import Modality, Predictor
from vicjoint.predictors import MLP
from vicjoint.recipe import RecipeError
from vicjoint.recipe.keys import Train
from vicjoint.registry import register
from vicjoint.training import loop

B, K, E = 12, 4, 6


def embeddings(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(B, K, E, dtype=torch.float64, generator=generator).to(dtype),
        torch.randn(B, E, dtype=torch.float64, generator=generator).to(dtype),
    )


def nearest(predictions, z_b) -> list[int]:
    """By hand, in float64."""
    p, z = predictions.detach().double().numpy(), z_b.detach().double().numpy()
    return [
        int(
            np.argmin(
                [sum((p[i, k, e] - z[i, e]) ** 2 for e in range(z.shape[1])) for k in range(p.shape[1])]
            )
        )
        for i in range(len(z))
    ]


# ---- the choice ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_nearest_prediction_is_chosen(dtype):
    predictions, z_b = embeddings(dtype)
    found = nearest(predictions, z_b)
    assert len(set(found)) == K
    chosen = Choice(K)(predictions, z_b)
    assert (
        torch.equal(chosen, torch.stack([predictions[i, k] for i, k in enumerate(found)]))
        and chosen.dtype == dtype
    )


def test_in_training_a_latent_in_much_use_has_to_be_nearer_by_more():
    predictions, z_b = embeddings()
    choice = Choice(K)
    choice.usage.copy_(torch.tensor([0.0, 0.1, 0.2, 0.7]))
    p, z, u = predictions.numpy(), z_b.numpy(), choice.usage.double().numpy()
    expected = [
        int(np.argmin([((p[i, k] - z[i]) ** 2).sum() * max(K * u[k], 1e-6) ** 0.25 for k in range(K)]))
        for i in range(B)
    ]
    found = nearest(predictions, z_b)
    assert expected != found and expected.count(3) < found.count(3) and expected.count(0) > found.count(0)
    assert torch.equal(choice(predictions, z_b), predictions[torch.arange(B), torch.tensor(expected)])
    # outside of training there is no conscience
    assert torch.equal(choice.eval()(predictions, z_b), predictions[torch.arange(B), torch.tensor(found)])


def test_no_latent_dies_where_one_is_nearest_to_everything():
    """Four predictions that learn, one of which begins in the middle of the targets and three further
    away."""
    targets = torch.eye(K).repeat(25, 1)
    for conscience in (True, False):
        torch.manual_seed(0)
        places = nn.Parameter(
            torch.tensor([0.25, 0.6, 0.7, 0.8])[:, None].repeat(1, K) + 0.01 * torch.randn(K, K)
        )
        choice, optimizer = Choice(K), torch.optim.SGD([places], 0.2)
        for _ in range(600):
            if not conscience:
                choice.usage.fill_(1 / K)
            choice(places.expand(len(targets), -1, -1), targets).sub(targets).square().sum(
                1
            ).mean().backward()
            optimizer.step(), optimizer.zero_grad()
            choice.after_step()
        in_use = len(set(nearest(places.expand(len(targets), -1, -1), targets)))
        assert in_use > 2 and choice.usage.min() > 0.1 if conscience else in_use == 1


def test_energies_are_precise_where_half_precision_is_not():
    """Squares of far targets: in bfloat16 both energies are equal, and the first would be taken."""
    predictions, z_b = (
        torch.zeros(1, 2, 400, dtype=torch.bfloat16),
        torch.full((1, 400), 16.0, dtype=torch.bfloat16),
    )
    predictions[0, 1, 0] = 1.0
    assert torch.equal(Choice(2)(predictions, z_b)[0], predictions[0, 1])


def test_the_gradient_reaches_the_chosen_prediction_and_the_target_alone():
    predictions, z_b = (z.requires_grad_() for z in embeddings())
    VICReg()(Choice(K)(predictions, z_b), z_b)[0].backward()
    chosen = torch.tensor(nearest(predictions, z_b))
    reached = predictions.grad.abs().sum(2) > 0
    assert torch.equal(reached, nn.functional.one_hot(chosen, K).bool())

    alone, target = (
        predictions.detach()[torch.arange(B), chosen].requires_grad_(),
        z_b.detach().clone().requires_grad_(),
    )
    VICReg()(alone, target)[
        0
    ].backward()  # the target's gradient is the objective's; none comes through the choice
    assert torch.equal(z_b.grad, target.grad) and torch.equal(
        predictions.grad[torch.arange(B), chosen], alone.grad
    )


def test_usage_follows_the_choices_of_training_alone():
    predictions, z_b = embeddings()
    choice = Choice(K)
    choice.eval()(predictions, z_b)
    assert not choice.counts.any()
    choice.train()(predictions, z_b)
    expected = np.bincount(nearest(predictions, z_b), minlength=K)
    assert choice.counts.tolist() == expected.tolist()
    choice.after_step()
    assert (
        choice.usage.tolist() == pytest.approx((0.98 / K + 0.02 * expected / B).tolist())
        and not choice.counts.any()
    )
    assert latent_usage(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx({"perplexity": 2, "most_used": 0.5})
    assert latent_usage(torch.tensor([0.0, 1.0])) == pytest.approx({"perplexity": 1, "most_used": 1})


def test_the_best_guess_has_the_smallest_expected_energy_and_does_not_see_the_target():
    predictions, _ = embeddings()
    choice = Choice(K)
    choice.usage.copy_(torch.tensor([0.3, 0.4, 0.3, 0.0]))
    p, expected = predictions.numpy(), []
    for i in range(B):
        energies = [
            sum(w * ((p[i, k] - p[i, j]) ** 2).sum() for j, w in enumerate(choice.usage.double().tolist()))
            for k in range(K)
        ]
        expected.append(int(np.argmin(energies)))
    assert torch.equal(
        choice.guess(predictions, choice.usage.expand(B, -1)),
        predictions[torch.arange(B), torch.tensor(expected)],
    )
    assert len(set(expected)) > 1


# ---- the model ----


class Linear(nn.Module):
    dim = 8

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, view):
        return self.net(view)


def joint(weights="own", layers=1, dropout=0.0, predictor=None):
    """Without batch norm where layers is 1, so that parts of a batch embed like the whole."""
    torch.manual_seed(0)
    branch = lambda: Branch(Modality(), Linear(dropout), [E])
    a = branch()
    b = {"own": branch, "same": lambda: a, "ema": lambda: copy.deepcopy(a)}[weights]()
    ema = {"b": ("a", 0.99)} if weights == "ema" else None
    predictor = predictor or MLP(E, hidden=7, layers=layers, latents=K)
    return Model({"a": a, "b": b}, [("a", "b")], ema, predictor).double()


def batch():
    views = torch.randn(2, B, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(views[0], views[1], torch.arange(4).repeat_interleave(3), ["x"] * B)


def options(accumulate):
    return Train(steps=1, batch_size=B, accumulate=accumulate, precision="fp32")


def test_each_latent_joins_its_vector_to_z_a_by_one_matrix():
    """The sum behind the first layer is the layer over z_a with the vector appended."""
    torch.manual_seed(0)
    predictor = MLP(E, hidden=7, layers=3, latents=K).double().eval()
    z_a = embeddings()[1]
    first = predictor.net[0]
    longer = nn.Linear(E + 7, 7).double()
    with torch.no_grad():
        longer.weight.copy_(torch.cat([first.weight, torch.eye(7, dtype=torch.float64)], 1))
        longer.bias.copy_(first.bias)
    for k in range(K):
        by_hand = predictor.net[1:](longer(torch.cat([z_a, predictor.values[k].expand(B, -1)], 1)))
        assert torch.allclose(predictor(z_a)[:, k], by_hand, rtol=1e-12)


def test_for_annealed_each_latent_has_a_last_layer_of_its_own():
    torch.manual_seed(0)
    predictor = MLP(E, hidden=7, layers=3, latents=K, choice="annealed").double().eval()
    z_a = embeddings()[1]
    found = predictor(z_a)
    before, last = predictor.net[:-1](z_a), predictor.net[-1].weight.unflatten(0, (K, E))
    assert found.shape == (B, K, E)
    for k in range(K):
        assert torch.allclose(found[:, k], before @ last[k].T, rtol=1e-12)


def test_one_latent_is_none():
    torch.manual_seed(0)
    one = MLP(E, hidden=7)
    torch.manual_seed(0)
    same = MLP(E, hidden=7, latents=1)
    assert one.state_dict().keys() == same.state_dict().keys() == {"net." + k for k in one.net.state_dict()}
    assert torch.equal(one(torch.ones(3, E)), same(torch.ones(3, E)))
    model = joint(predictor=one)
    assert (
        model.choice is None
        and model.usage is None
        and model.predictions(torch.ones(3, E).double()).shape == (3, 1, E)
    )


@pytest.mark.parametrize("weights", ["own", "same", "ema"])
def test_the_model_chooses_with_the_target_in_sight_and_guesses_without(weights):
    model, pair = joint(weights), batch()
    z_a, z_b = model(pair.a, pair.b)
    predictions = model.predictions(model.branches["a"](pair.a))
    found = nearest(predictions, z_b)
    assert predictions.shape == (B, K, E) and torch.equal(
        z_a, predictions[torch.arange(B), torch.tensor(found)]
    )
    assert len(set(found)) > 1 and z_b.requires_grad == (weights != "ema")
    assert torch.equal(
        model.predict(model.branches["a"](pair.a)), model.choice.guess(predictions, model.usage.expand(B, -1))
    )
    VICReg()(z_a, z_b)[0].backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {
        name for name, _ in model.named_parameters() if weights != "ema" or not name.startswith("branches.b.")
    }
    assert [bool(row.any()) for row in model.predictor.values.grad] == [k in found for k in range(K)]


def test_parts_give_the_gradient_of_the_whole_batch():
    found = []
    for accumulate in (1, 4):
        model = joint()
        loss, _, (z_a, _) = backward(model, VICReg(statistics="both"), batch(), options(accumulate))
        assert model.choice.counts.sum() == B  # two passes, counted once
        found.append((loss, z_a, model.choice.counts.clone(), [p.grad for p in model.parameters()]))
    whole, parts = found
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-12) and torch.equal(parts[2], whole[2])
    assert torch.allclose(parts[1], whole[1], rtol=1e-12)
    for of_parts, of_whole in zip(parts[3], whole[3]):
        assert torch.allclose(of_parts, of_whole, rtol=1e-10, atol=1e-14)


def test_both_passes_choose_the_same_with_dropout_and_batch_norm():
    model, choices = joint(layers=2, dropout=0.5), []
    original = model.choice.forward
    model.choice.forward = lambda p, z: choices.append(nearest(p, z)) or original(p, z)
    backward(model, VICReg(), batch(), options(3))
    assert choices[:3] == choices[3:] and len({tuple(c) for c in choices[:3]}) > 1


@register("predictor", "test_two_ways")
class TwoWays(Predictor):
    def __init__(self, dim: int, /, wrong: bool = False):
        super().__init__()
        self.latents, self.wrong = 2, wrong
        self.move = nn.Parameter(torch.randn(dim))

    def forward(self, z_a):
        found = torch.stack([z_a - self.move, z_a + self.move], 1)
        return found.transpose(0, 1) if self.wrong else found


def test_predictors_of_users_with_and_without_a_latent(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda folder: folder)
    plain = joint(predictor=Given(nn.Linear(E, E)))
    assert plain.latents == 1 and plain(batch().a, batch().b)[0].shape == (B, E)
    folder = vicjoint.train(
        tiny.recipe(predictor={"name": "test_two_ways"}),
        [f"out={tmp_path / 'run'}", "train.steps=2", "evaluate.every=0"],
    )
    assert tiny.metrics(folder)[-1]["latents"].keys() == {"perplexity", "most_used"}
    with pytest.raises(
        RecipeError,
        match=(
            r"predictor TwoWays states latents=2 and gave \[2, 1, 12\] for z_a \[1, 12\]. Expected \[1, 2,"
            r" 12\]"
        ),
    ):
        vicjoint.train(
            tiny.recipe(predictor={"name": "test_two_ways", "wrong": True}), [f"out={tmp_path / 'wrong'}"]
        )


@pytest.mark.parametrize("latents", [0, -3, 65])
def test_a_number_of_latents_that_makes_no_sense(latents):
    with pytest.raises(
        RecipeError,
        match=(
            f"predictor.latents: (expected a number at least 1, got {latents}|{latents} is not a number of"
            " predictions)"
        ),
    ):
        vicjoint.train(tiny.recipe(predictor={"name": "mlp", "latents": latents}))


# ---- runs ----

LATENT = {"name": "mlp", "hidden": 8, "latents": K}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.precision=bf16"],
        ["train.accumulate=2"],
        ["train.accumulate=2", "train.exact=false"],
        ["b.weights=ema"],
    ],
    ids=str,
)
def test_a_run_logs_usage_and_its_encoders_load(tmp_path, overrides, monkeypatch):
    if overrides:  # the page of one run is enough
        monkeypatch.setattr(loop, "write_report", lambda folder: folder)
    changes = {"predictor": LATENT, **({"b": {"weights": "ema"}} if "b.weights=ema" in overrides else {})}
    folder = vicjoint.train(
        tiny.recipe(**changes), [f"out={tmp_path / 'run'}", *[o for o in overrides if not o.startswith("b.")]]
    )
    used = tiny.metrics(folder)[-1]["latents"]
    assert 1 <= used["perplexity"] <= K and 1 / K <= used["most_used"] <= 1
    assert overrides or "Latents in use" in (folder / "report.html").read_text()
    state = vicjoint.training.checkpoint.load_last(folder / "checkpoints")["model"]
    assert state["choice.usage"].sum() == pytest.approx(1) and not state["choice.counts"].any()
    assert (state["choice.usage"] - 1 / K).abs().max() > 0.01
    assert vicjoint.load_encoder(folder, imports=["tiny"])(torch.zeros(2, 6)).shape == (2, 8)


def test_a_run_without_a_latent_does_not_speak_of_it(tmp_path):
    folder = vicjoint.train(
        tiny.recipe(predictor={"name": "mlp", "hidden": 8}), [f"out={tmp_path / 'run'}", "train.steps=2"]
    )
    assert "health" in tiny.metrics(folder)[-1] and not any(
        "latents" in line for line in tiny.metrics(folder)
    )
    assert "Latents" not in (folder / "report.html").read_text()


# ---- several processes ----


def three_steps(make, accumulate, wrap, split):
    """(gradients of the last, parameters, its loss and terms, usage)."""
    model, objective = make(), VICReg(statistics="both")
    if model.several:
        objective = OfFutures(objective, model.prior is not None)
    optimizer = torch.optim.SGD([*model.parameters()], 0.05)
    forward = wrap(model)
    for step in range(3):
        model.begin_step(step / 6)
        loss, terms, _ = backward(forward, objective, split(batch()), options(accumulate))
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    losses = torch.stack([loss.detach(), *(value.detach() for value in terms.values())])
    return gradients, [*model.parameters()], losses, model.usage.clone()


def with_prior():
    return several(choice="nearest")


def learns_as(make, rank: int, alone) -> None:
    for accumulate in (1, 2):
        shared = three_steps(make, accumulate, DistributedDataParallel, lambda pair: pair.split(2)[rank])
        assert torch.allclose(shared[3], alone[3], rtol=1e-6), (make, accumulate, shared[3], alone[3])
        for got, expected in zip((*shared[0], *shared[1], shared[2]), (*alone[0], *alone[1], alone[2])):
            assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12), (make, accumulate)
        both = distributed.gather_objects([p.detach().numpy().tobytes() for p in (*shared[1], shared[3])])
        assert both[0] == both[1], (make, accumulate)


def one_of_two(rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    models = [joint, with_prior, several, functools.partial(several, prior=False)]
    alone = [three_steps(make, 1, lambda model: model, lambda pair: pair) for make in models]
    distributed.start(timeout_seconds=30)
    for make, expected in zip(models, alone):
        learns_as(make, rank, expected)
    distributed.stop()


def test_two_processes_with_different_data_choose_and_learn_as_one():
    context = tiny.forking()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=one_of_two, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    assert tiny.finish(processes, 120) == [0, 0]


# ---- annealed, and the prior ----


def several(prior=True, choice="annealed"):
    torch.manual_seed(0)
    branches = {name: Branch(Modality(), Linear(), [E]) for name in "ab"}
    predictor = MLP(E, hidden=7, layers=1, latents=K, choice=choice, prior=prior)
    head = nn.Linear(E, K) if prior else None
    return Model(branches, [("a", "b")], predictor=predictor, prior=head).double()


def test_weights_are_softmin_of_the_energies_and_cool_down():
    predictions, z_b = embeddings()
    choice = Choice(K, annealed=True)
    for done, tau in ((0.0, 1.0), (0.25, 0.02**0.5), (0.5, 0.02), (1.0, 0.02)):
        choice.begin_step(done)
        found = choice.weigh(predictions, z_b).numpy()
        energy = ((predictions - z_b[:, None]) ** 2).sum(2).numpy()
        expected = np.exp(-energy / (np.float32(tau) * energy.mean(1, keepdims=True)))
        expected = 0.02 / K + 0.98 * expected / expected.sum(1, keepdims=True)
        assert found == pytest.approx(expected, rel=1e-5) and found.sum(1) == pytest.approx(1)
    assert choice.counts.sum() == pytest.approx(4 * B)
    one_hot = choice.eval().weigh(predictions, z_b)
    assert torch.equal(one_hot.argmax(1), torch.tensor(nearest(predictions, z_b))) and one_hot.sum() == B


def test_annealed_predictions_part_where_a_past_has_two_futures():
    """z_b is z_a turned by 45 degrees one way or the other: half of their distance is 0.71, where one
    prediction alone ends. A latent's vector that is joined to z_a would be forgotten while all learn
    alike."""
    torch.manual_seed(0)
    predictor, choice = MLP(2, hidden=32, latents=2, choice="annealed"), Choice(2, annealed=True)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=0.01)
    for step in range(400):
        angle = 2 * np.pi * torch.rand(64)
        turned = angle + np.pi / 4 * (2.0 * torch.randint(2, (64,)) - 1)
        z_a, z_b = (torch.stack([a.cos(), a.sin()], 1) for a in (angle, turned))
        choice.begin_step(step / 400)
        found = predictor(z_a)
        (choice.weigh(found, z_b) * energies(found, z_b)).sum(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert energies(predictor.eval()(z_a), z_b).amin(1).sqrt().mean() < 0.2


def test_equal_energies_of_zero_are_no_division_by_zero():
    choice = Choice(K, annealed=True)
    assert choice.weigh(torch.zeros(2, K, E), torch.zeros(2, E)) == pytest.approx(1 / K)


def test_the_loss_counts_every_prediction_by_its_weight():
    """As a sum of K squared errors written down by hand, with the gradient of each part."""
    predictions, z_b = (z.requires_grad_() for z in embeddings())
    weights = Choice(K, annealed=True).weigh(predictions, z_b)
    scores = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
    mean = (weights[:, :, None] * predictions).sum(1)
    plain = VICReg(invariance={"a": 3, "b": 3}, variance=0, covariance=0)
    loss, terms = OfFutures(plain, prior=True)(Futures(mean, predictions, weights, scores), z_b)
    got = torch.autograd.grad(loss, (predictions, z_b, scores))
    error = (weights * (predictions - z_b[:, None]).square().sum(2)).sum() * 3 / (B * E)
    entropy = -(scores.log_softmax(1) * weights).sum() / B
    expected = torch.autograd.grad(error + entropy, (predictions, z_b, scores))
    for one, other in zip(got, expected):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert (
        loss.item()
        == pytest.approx((error + entropy).item())
        == pytest.approx(sum(t.item() for t in terms.values()))
    )
    assert terms["invariance"].item() == pytest.approx(error.item())


def test_a_model_gives_futures_with_probabilities_and_its_prior_sees_no_gradient_of_the_encoder():
    model, pair = several(), batch()
    z_a, z_b = model(pair.a, pair.b)
    assert isinstance(z_a, Futures) and not z_a.weights.requires_grad
    (-z_a.scores.log_softmax(1) * z_a.weights).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "prior.weight",
        "prior.bias",
    }
    predictions, probabilities = model.eval().futures(pair.a)
    assert predictions.shape == (B, K, E) and torch.allclose(probabilities.sum(1), torch.ones(B))
    assert torch.equal(predictions, model.predictions(model.branches["a"](pair.a)))
    assert torch.equal(probabilities, model.scores(model.branches["a"](pair.a)).float().softmax(1))
    without = several(prior=False)
    without.choice.usage.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert without.futures(pair.a)[1][5].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("prior", [True, False])
def test_parts_give_the_annealed_gradient_of_the_whole_batch(prior):
    found = []
    for accumulate in (1, 4):
        model = several(prior)
        objective = OfFutures(VICReg(statistics="both"), prior)
        loss, terms, _ = backward(model, objective, batch(), options(accumulate))
        assert sum(map(float, terms.values())) == pytest.approx(float(loss)) and ("prior" in terms) == prior
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([loss, model.choice.counts.clone(), *gradients])
    assert len(found[0]) == 2 + len([*several(prior).parameters()])
    for whole, parts in zip(*found):
        assert torch.allclose(parts, whole, rtol=1e-6 if whole.dtype == torch.float32 else 1e-9, atol=1e-12)


def test_an_objective_without_a_squared_error_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="objective: BarlowTwins has no squared error that several predict"):
        vicjoint.train(
            tiny.recipe(predictor={**LATENT, "choice": "annealed"}, objective={"name": "barlow_twins"}),
            [f"out={tmp_path / 'run'}"],
        )


def test_an_annealed_run_logs_its_prior_and_keeps_no_temperature(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda folder: folder)
    recipe = tiny.recipe(predictor={**LATENT, "choice": "annealed", "prior": True})
    whole = vicjoint.train(recipe, [f"out={tmp_path / 'whole'}"])
    lines = tiny.metrics(whole)
    assert (
        all(line["prior"] > 0 for line in lines)
        and "choice.tau" not in vicjoint.training.checkpoint.load_last(whole / "checkpoints")["model"]
    )
    model = vicjoint.training.checkpoint.load_last(whole / "checkpoints")["model"]
    assert model["choice.usage"].sum() == pytest.approx(1, abs=1e-5)
