"""kNN and linear probes: votes by hand, SGD against torch's, what is left out and why."""

import math

import numpy as np
import pytest
import torch
from probing import Bare, Listed, bound, measured, missing, model_of, points, refused
from torch import nn

from vicjoint.modalities.image import Pixels
from vicjoint.parts import Modality, Pair, View
from vicjoint.probes.classify import KNN, Heads, Linear, votes
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import chance, classified, held_out


def test_votes_by_hand():
    bank = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    queries = torch.tensor([[4.0, 0.0]])
    scores = votes(bank, labels, queries, [1, 2, 200], 0.5, 3)
    diagonal = math.exp(math.sqrt(0.5) / 0.5)
    assert scores[1].tolist() == [[pytest.approx(math.exp(2)), 0, 0]]
    assert scores[2].tolist() == [[pytest.approx(math.exp(2)), pytest.approx(diagonal), 0]]
    assert scores[200].tolist() == [[pytest.approx(math.exp(2)), pytest.approx(diagonal + 1), 0]]


def test_votes_in_parts_are_the_same(monkeypatch):
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(50, 4), torch.randint(3, (50,)), torch.randn(20, 4)
    whole = votes(bank, labels, queries, [5], 0.07, 3)[5]
    parts = torch.cat([votes(bank, labels, q[None], [5], 0.07, 3)[5] for q in queries])
    assert torch.allclose(whole, parts, rtol=1e-5)


def test_shares():
    scores = torch.eye(7)[[0, 1, 2, 3]] + torch.arange(7) * 0.01  # the right class first, then 6, 5, 4, 3
    found = classified(scores, torch.tensor([0, 1, 6, 0]))
    assert points(found) == {"accuracy": 0.5, "top5": 0.75}
    # five of three classes say nothing
    assert points(classified(torch.eye(3), torch.arange(3))) == {"accuracy": 1.0}
    assert chance(10) == {"accuracy": 0.1, "top5": 0.5} and chance(4) == {"accuracy": 0.25}


def test_an_interval_is_that_of_a_mean():
    """Half of 400 answers are right: 0.5 +- 1.96 standard errors of a binomial share; the same each time."""
    right = np.arange(400) % 2
    share = lambda n: {"share": float(right[n].mean())}
    found = with_intervals(share, 400)
    reach = 1.96 * (0.25 / 400) ** 0.5
    expected = {"share": 0.5, "share_low": 0.5 - reach, "share_high": 0.5 + reach}
    assert found == {name: pytest.approx(value, abs=0.006) for name, value in expected.items()}
    assert with_intervals(share, 400) == found


def test_the_items_of_a_record_are_drawn_together():
    """Four queries a video that are all right or all wrong say no more than one: the interval is that of 100
    videos, twice as wide as that of 400 queries; with unequal numbers of items, all are counted."""
    video = np.repeat(np.arange(100), 4)
    right = video % 2
    found = with_intervals(lambda n: {"share": float(right[n].mean())}, video)
    reach = 1.96 * (0.25 / 100) ** 0.5
    assert found["share_low"] == pytest.approx(0.5 - reach, abs=0.012)
    assert found["share_high"] == pytest.approx(0.5 + reach, abs=0.012)
    uneven = with_intervals(lambda n: {"count": len(n)}, ["x", "x", "x", "y"])
    assert (uneven["count"], uneven["count_low"], uneven["count_high"]) == (4, 2, 6)


def test_heads_are_independent_sgd_runs():
    """Each head, step by step, is torch's SGD at its own rate on its own cross-entropy."""
    torch.manual_seed(1)
    rates, cosine = [0.02, 0.5], [1.0, 0.75, 0.25]
    heads = Heads(6, 4, rates, "cpu")
    data = [(torch.randn(16, 6), torch.randint(4, (16,))) for _ in cosine]
    references = []
    for i, rate in enumerate(rates):
        layer = nn.Linear(6, 4).double()
        with torch.no_grad():
            layer.weight.copy_(heads.weight[i])
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=1e-6)
        for (y, labels), share in zip(data, cosine):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(y.double()), labels).backward()
            optimizer.step()
        references.append(layer)
    for (y, labels), share in zip(data, cosine):
        heads.step(y, labels, share)
    for i, layer in enumerate(references):
        assert torch.allclose(heads.weight[i].double(), layer.weight, atol=1e-6) and torch.allclose(
            heads.bias[i].double(), layer.bias, atol=1e-6
        )
    assert torch.allclose(heads(data[0][0])[1].double(), references[1](data[0][0].double()), atol=1e-5)


class Brightness(nn.Module):
    """Represents a view by the brightness of its first pixels, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, view):
        return view.flatten(1)[:, :3] * self.factor


class Floats(Pixels):
    """Images as numbers from 0 to 255."""

    def forward(self, raw):
        return raw.float()


def model(factor):
    return model_of(*(Bare(Brightness(f), Floats()) for f in (factor, 1 - factor)))


class Plain(Pair):
    gives = frozenset({"views", "crops"})

    def views(self, record, side, rng=None, read=True):
        if record.get("broken"):
            raise ValueError("broken on purpose")
        raw = torch.tensor(record["value"], dtype=torch.uint8).view(1, 3, 1, 1)
        return [View(raw if rng is None else (raw.float() + float(rng.uniform(0, 5))).to(torch.uint8))]

    def sample(self, record, rng):
        return self.views(record, "a")[0].raw, self.views(record, "b")[0].raw


class Source(Listed):
    """Class c has channel c bright; one record of each split is broken, one has no label, one test record a
    class of its own."""

    def __init__(self, classes=3, train=60, test=30):
        rng = np.random.default_rng(0)
        make = lambda i: {
            "id": f"r{i}",
            "label": f"class {i % classes}",
            "value": [int(v) for v in rng.integers(0, 60, 3) + 150 * (np.arange(3) == i % classes)],
        }
        self.train, self.test = [make(i) for i in range(train)], [make(i) for i in range(test)]
        self.train[4]["broken"] = self.test[4]["broken"] = True
        self.train[5]["label"] = self.test[5]["label"] = None
        self.test[7]["label"] = "unseen"


def rows(probe, source=None, pair=None):
    """Branch a of the model represents, b does not; the untrained one is the other way round."""
    source = source or Source()
    found = measured(probe, model(1.0), model(0.0), source, bound(pair or Plain(), source))
    return found, found.pop("pictures", None)


def test_knn_tells_what_the_representation_knows(capsys):
    found, pictures = rows(KNN(k=[5, 20], pictures=4))
    assert points(found["model"]) == {"accuracy": 1.0, "accuracy_k20": pytest.approx(1.0, abs=0.1)}
    assert found["model"]["accuracy_low"] == found["model"]["accuracy_high"] == 1
    assert (
        found["random_init"]["accuracy"] < 0.5
        and found["pixels"]["accuracy"] == 1.0
        and found["chance"]["accuracy"] == pytest.approx(1 / 3)
    )
    said = capsys.readouterr().out
    assert said.count("evaluation leaves out r4: broken on purpose") == 2  # once in each split
    assert (
        pictures["query"].shape == (4, 1, 1, 3)
        and pictures["neighbours"].shape == (4, 5, 1, 1, 3)
        and pictures["good"].all()
    )
    assert (
        pictures["views"].shape == (4, 2, 1, 1, 3)
        and "class 0; the nearest is class 0" in pictures["title"][0]
    )


@pytest.mark.parametrize("crops", [False, True])
def test_linear_sweeps_its_rates(crops):
    found, _ = rows(Linear(rates=[1e-9, 0.01, 0.1], epochs=30, crops=crops, holdout=0.3))
    assert found["model"]["accuracy"] == 1.0 and found["model"]["rate"] > 1e-9
    assert found["random_init"]["accuracy"] < 0.5 and set(found["pixels"]) == {
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "rate",
    }


def test_the_rate_is_chosen_without_the_test_split():
    """Test labels that contradict training do not change which rate is reported."""
    source, turned = Source(), Source()
    for record in turned.test:
        record["label"] = {"class 0": "class 1", "class 1": "class 2", "class 2": "class 0"}.get(
            record["label"]
        )
    probe = lambda: Linear(rates=[1e-9, 0.05], epochs=20, crops=False, holdout=0.3)
    straight, contradicted = rows(probe(), source)[0], rows(probe(), turned)[0]
    assert straight["model"]["rate"] == contradicted["model"]["rate"] == 0.05
    assert straight["model"]["accuracy"] == 1 and contradicted["model"]["accuracy"] == 0


def test_what_cannot_be_probed_is_said():
    source = Source()
    assert missing(KNN(), source, Plain()) is None
    flat = Source()
    flat.train = [r | {"label": None} for r in flat.train]
    assert (
        "it needs two classes or more, and test samples of them, in 'label' of the records; found 0 classes"
        in missing(KNN(), flat, Plain())
    )
    assert "'colour'" in missing(Linear(label="colour"), source, Plain())
    with pytest.raises(
        ValueError, match="evaluate.probes: 'knn' classifies single views, which this pair does not give"
    ):
        missing(KNN(), source, Pair())


@pytest.mark.parametrize(
    "probe, options, message",
    [
        ("knn", {"k": []}, r"k: expected a list of 1 or more, got \[\]"),
        ("knn", {"k": [5, 0]}, r"k: expected a number above 0, got \[5, 0\]"),
        ("knn", {"temperature": 0}, "temperature: expected a number above 0.0, got 0"),
        ("linear", {"rates": []}, "rates: expected a list of 1 or more"),
        ("linear", {"epochs": 0}, "epochs: expected a number above 0, got 0"),
        ("linear", {"holdout": 1}, "holdout: expected a number below 1.0, got 1"),
    ],
)
def test_options_out_of_range_are_named(probe, options, message):
    refused(probe, options, message)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rates": [0.1, 1]}, "linear: holdout is 0, .* above 0 to choose among 2 learning rates"),
        ({"solver": "ridge"}, "linear: holdout is 0, .* above 0 to choose among penalties"),
    ],
)
def test_a_choice_needs_samples_that_are_held_out(options, message):
    with pytest.raises(ValueError, match=message):
        Linear(holdout=0, **options)


def test_ridge_classifies_and_does_not_look_at_the_test_split():
    source, turned = Source(), Source()
    for record in turned.test:
        record["label"] = {"class 0": "class 1", "class 1": "class 2", "class 2": "class 0"}.get(
            record["label"]
        )
    straight, contradicted = (rows(Linear(solver="ridge", holdout=0.3), s)[0] for s in (source, turned))
    assert (
        straight["model"]["accuracy"] == straight["pixels"]["accuracy"] == 1
        and straight["random_init"]["accuracy"] < 0.5
    )
    assert contradicted["model"]["accuracy"] == contradicted["model"]["accuracy_high"] == 0
    assert contradicted["model"]["penalty"] == straight["model"]["penalty"]


def test_branch_b_is_looked_at_where_asked():
    for probe in (
        KNN(k=[5], branch="b", pictures=0),
        Linear(epochs=20, crops=False, branch="b"),
        Linear(solver="ridge", branch="b"),
    ):
        found, _ = rows(probe)
        assert found["random_init"]["accuracy"] == 1 and found["model"]["accuracy"] < 0.5


class Words(Modality):
    """The first of a tuple of tensors."""

    baseline = "lengths"

    def forward(self, raw):
        return raw[0].float()

    def simple_features(self, raw):
        return raw[1].sum(1, keepdim=True).float()


class Texts(Pair):
    """Raw views that are tuples (ids [1, L], mask [1, L]); no crops; branch b has one value."""

    gives = frozenset({"views"})

    def views(self, record, side, rng=None, read=True):
        value = torch.tensor(record["value"])[None] if side == "a" else torch.ones(1, 3, dtype=torch.long)
        return [View((value, value > 100))]

    def sample(self, record, rng):
        return self.views(record, "a")[0].raw, self.views(record, "b")[0].raw


def test_views_that_are_no_images_have_no_crops_and_no_pictures():
    branch, source = Bare(nn.Identity(), Words()), Source()
    both, pair = model_of(branch, branch), bound(Texts(), source)
    for probe in (KNN(k=[5]), Linear(epochs=5, rates=[0.001])):
        assert missing(probe, source, pair) is None
        found = measured(probe, both, both, source, pair)
        assert found["model"]["accuracy"] > 0.9 and found["lengths"]["accuracy"] < 0.6
        assert "pictures" not in found
    assert measured(KNN(k=[5], branch="b"), both, both, source, pair)["model"]["accuracy"] < 0.5, (
        "b has one value for all"
    )
    with pytest.raises(ValueError, match="'linear' has crops: true, but this pair has no random crops"):
        missing(Linear(crops=True), source, pair)


def test_something_is_held_out_and_something_is_left():
    for n in range(2, 60):
        for share in (0.01, 0.5, 0.99):
            assert 0 < held_out(n, share).sum() < n
    assert not held_out(50, 0.0).any() and not held_out(1, 0.9).any()
