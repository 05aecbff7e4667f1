"""The attentive probe: what a mean hides is found, the test split chooses nothing, tokens stay bounded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from probing import Bare, Listed, bound, data_of, evaluation_of, measured, missing, model_of, points, refused
from torch import nn

import vicjoint
from vicjoint.evaluate import main as evaluate
from vicjoint.parts import Pair, View
from vicjoint.parts import Spread as Along
from vicjoint.probes import attentive
from vicjoint.probes.attentive import Attention, Attentive, in_slots, padded
from vicjoint.probes.classify import Linear
from vicjoint.recipe import RecipeError
from vicjoint.registry import register_encoder
from vicjoint.run import main as run
from vicjoint.tokens import TokenEncoder

T, D = 8, 6


class Places(TokenEncoder, nn.Module):
    """Tokens are the view times a factor [B, T, D], without those that are zero; y is their mean."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.dim, self.factor = D, factor

    def forward_tokens(self, view):
        return self.factor * view, view.any(2)

    def forward(self, view):
        return self.factor * view.mean(1)


class Plain(Pair):
    gives = frozenset({"views", "spread"})

    def views(self, record, side, rng=None, read=True):
        if record.get("broken"):
            raise ValueError("broken on purpose")
        return [View(record["x"][None])]

    def spread(self, record, side, number, between=None):
        return [View(part) for part in record["x"].view(number, 1, -1, D)]


def scenes(train=300, test=200, seed=0) -> Listed:
    """A token at a random place has a mark (number 0), and its number 1 says the class; another one says the
    opposite. The mean of the tokens is zero in all of their numbers."""
    rng = np.random.default_rng(seed)

    def make(i):
        x = rng.normal(size=(T, D))
        sign, (here, there) = 2 * (i % 2) - 1, rng.permutation(T)[:2]
        x[:, :2] = 0
        x[here, 0], x[here, 1], x[there, 1] = 1, sign, -sign
        x -= x.mean(0)
        return {"id": f"r{i}", "label": f"class {i % 2}", "x": torch.from_numpy(x).float()}

    made = [make(i) for i in range(train + test)]
    return Listed(made[:train], made[train:])


def rows(probe, source, untrained=0.0, encoder=Places):
    two = [model_of(*(Bare(encoder(factor)) for _ in "ab")) for factor in (1.0, untrained)]
    return measured(probe, *two, source, bound(Plain(), source))


def quick(**options) -> Attentive:
    return Attentive(**{"rates": [5e-3], "decays": [0.01], "epochs": 20, **options})


def test_attention_finds_what_the_mean_hides():
    """The answer is known: linear on y and the mean of the tokens are at chance, and so is an encoder that
    gives nothing; another one finds it all."""
    source = scenes()
    assert 0.35 < rows(Linear(solver="ridge"), source)["model"]["accuracy"] < 0.65
    found = rows(Attentive(), source)
    assert list(found) == ["model", "random_init", "mean_token", "chance"]
    assert found["model"]["accuracy"] > 0.97 and found["chance"] == {"accuracy": 0.5}
    assert found["model"]["accuracy_low"] <= found["model"]["accuracy"] <= found["model"]["accuracy_high"]
    assert all(0.35 < found[row]["accuracy"] < 0.65 for row in ("random_init", "mean_token"))
    assert found["model"]["rate"] in (1e-3, 5e-3, 2e-2) and found["model"]["decay"] in (0.01, 0.4)


def test_labels_that_say_nothing_give_chance():
    source, rng = scenes(), np.random.default_rng(1)
    for record in [*source.train, *source.test]:
        record["label"] = f"class {rng.integers(2)}"
    assert 0.38 < rows(quick(), source)["model"]["accuracy"] < 0.62


def test_the_same_numbers_each_time_whatever_torch_drew_before():
    torch.manual_seed(1)
    first = rows(quick(epochs=4), scenes())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert rows(quick(epochs=4), scenes()) == first and torch.equal(torch.get_rng_state(), state)


def test_the_test_split_chooses_nothing():
    """With the labels of the test split the other way round all answers stay: each right one is wrong."""
    straight, turned = scenes(), scenes()
    for record in turned.test:
        record["label"] = {"class 0": "class 1", "class 1": "class 0"}[record["label"]]
    probe = lambda: Attentive(rates=[1e-3, 5e-3], epochs=3)
    of, other = (rows(probe(), source)["model"] for source in (straight, turned))
    assert other["accuracy"] == pytest.approx(1 - of["accuracy"])
    assert [of[name] == other[name] for name in ("rate", "decay")] == [True, True]


def test_the_setting_is_the_best_of_the_held_out_samples():
    found = rows(Attentive(rates=[1e-9, 5e-3], decays=[0.01], epochs=12), scenes())
    assert found["model"]["rate"] == 5e-3 and found["model"]["accuracy"] > 0.9


def test_tokens_that_are_none_are_not_seen():
    """Half of the scenes have fewer tokens than the others; what fills them up changes nothing."""
    source = scenes()
    for record in source.train[::2] + source.test[::2]:
        record["x"] = torch.cat([record["x"], torch.zeros(5, D)])
    pair = type("Padded", (Plain,), {"views": padded_views})()
    both = model_of(Bare(Places()), Bare(Places()))
    found = measured(quick(), both, both, source, bound(pair, source))
    assert found["model"]["accuracy"] == pytest.approx(rows(quick(), scenes())["model"]["accuracy"], abs=0.02)
    assert found["model"]["accuracy"] > 0.97


def padded_views(self, record, side, rng=None, read=True):
    x = record["x"]
    return [View(torch.cat([x, x.new_zeros(T + 5 - len(x), D)])[None])]


def test_masked_tokens_have_no_weight_and_none_at_all_is_a_zero():
    torch.manual_seed(0)
    classifier, x = Attention(torch.zeros(D), torch.ones(D), 1, 3), torch.randn(2, 5, D)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    scores = classifier(x, mask)
    assert torch.allclose(scores[1:], classifier(x[1:, :2], mask[1:, :2]), atol=1e-6)
    x[1, 2:] = 1e6
    assert torch.allclose(classifier(x, mask), scores, atol=1e-6)
    source = scenes(60, 20)
    source.test[3]["x"] = torch.zeros(T, D)  # a sample without any token
    assert 0 <= rows(quick(epochs=1), source)["model"]["accuracy"] <= 1


def test_the_attention_is_that_of_one_query():
    """Against the block written with torch's own attention of one query."""
    torch.manual_seed(0)
    dim, heads = 128, 2
    classifier = Attention(torch.randn(dim), torch.rand(dim) + 0.5, 1, 3)
    nn.init.normal_(classifier.query)
    x = torch.randn(4, 7, dim)
    scaled = (x - classifier.mean) / classifier.scale
    values = nn.functional.linear(scaled, classifier.value.weight, classifier.value.bias)
    by_head = values.view(4, 7, heads, -1).transpose(1, 2)
    keys = scaled[:, None].expand(-1, heads, -1, -1)
    query = classifier.query[None, :, None].expand(4, -1, -1, -1)
    scale = (64 / dim) ** 0.5
    pooled = nn.functional.scaled_dot_product_attention(query, keys, by_head, scale=scale).flatten(1)
    expected = classifier.classes(pooled + classifier.hidden(pooled))
    assert torch.allclose(classifier(x, torch.ones(4, 7, dtype=torch.bool)), expected, atol=1e-5)


def moving(train=160, test=80) -> Listed:
    """The class is the window, of four, in which an event is; its tokens are the same in all of them."""
    rng, made = np.random.default_rng(0), []
    for i in range(train + test):
        x = 0.3 * rng.normal(size=(4, 2, D))
        x[i % 4, 0, 0] += 3
        made.append({"id": f"r{i}", "label": f"{i % 4}", "x": torch.from_numpy(x).float()})
    return Listed(made[:train], made[train:])


def test_slots_of_time_are_told_apart():
    """Four windows side by side; in two slots, the first two windows are one; together, all are."""
    source = moving()
    accuracy = {
        pool: rows(quick(rates=[2e-2], epochs=12, windows=4, pool=pool), source)["model"]["accuracy"]
        for pool in ("slots", 2, "mean")
    }
    assert accuracy["slots"] > 0.95 and 0.35 < accuracy[2] < 0.65 and accuracy["mean"] < 0.4


def test_what_is_in_one_of_many_windows_is_found():
    """As in the scenes, but the tokens are those of eight windows, together."""
    source = scenes()
    assert 0.35 < rows(Linear(solver="ridge", windows=8, pool="mean"), source)["model"]["accuracy"] < 0.65
    assert rows(quick(windows=8, pool="mean"), source)["model"]["accuracy"] > 0.95


def test_records_that_cannot_be_read_and_those_without_a_label_are_left_out(capsys):
    source = scenes(80, 40)
    source.train[3]["broken"] = source.test[5]["broken"] = True
    source.train[4]["label"] = None
    both, data = model_of(Bare(Places()), Bare(Places())), data_of(source, bound(Plain(), source))
    evaluation = evaluation_of({"probe": quick(epochs=3)}, data)
    evaluation.check(both, both)
    first = evaluation(both, both)[0]["probe"]
    assert capsys.readouterr().out.count("broken on purpose") == 2
    calls = []
    Places.forward_tokens, before = lambda *given: calls.append(1) or before(*given), Places.forward_tokens
    try:
        again = evaluation(both, both)[0]["probe"]
        assert again == first and len(calls) == 2 + 1  # the model alone: 79 and 39 samples, 64 at once
        calls.clear()
        source.test[6]["broken"] = True
        for part in evaluation._parts.values():
            part.kept = None  # as when the views are too many to be kept
        other = evaluation(both, both)[0]["probe"]
    finally:
        Places.forward_tokens = before
    assert len(calls) == 3 + 2 * 3 and other["random_init"] == other["model"]


def test_the_cost_counts_tokens():
    source = scenes(40, 20)
    both, data = model_of(Bare(Places()), Bare(Places())), data_of(source, bound(Plain(), source))
    evaluation = evaluation_of({"probe": quick(epochs=1), "linear": Linear(solver="ridge")}, data)
    assert evaluation.cost(both, both).samples == 60  # read once for both
    assert sum(part.cost for part in evaluation._parts.values()) == 60 * (2 + 3)
    evaluation(both, both)
    assert sum(part.cost for part in evaluation._parts.values()) == 60 * (1 + 1)


def test_tokens_that_do_not_fit_are_refused_before_training(monkeypatch):
    source = scenes(100, 20)
    both, data = model_of(Bare(Places()), Bare(Places())), data_of(source, bound(Plain(), source))
    # of each sample 8 x 6 float32 for two encoders, and their mean: 408 bytes
    monkeypatch.setattr(attentive, "KEPT_BYTES", 408 * 99)
    message = (
        r"'attentive' keeps the tokens of its 100 training samples, about 8 x 6 each, of 2"
        r" encoders: 0.0 GiB, more than .*. Set samples: 99 or fewer."
    )
    evaluation = evaluation_of({"probe": Attentive()}, data)
    for use in (evaluation.check, evaluation):
        with pytest.raises(ValueError, match=message):
            use(both, both)
    probe = quick(samples=99, epochs=2)
    assert len(probe.wants(data)[0].places) == 99
    evaluation = evaluation_of({"probe": probe}, data)
    evaluation.check(both, both)
    evaluation(both, both)


def test_what_is_kept_is_said_where_it_is_much(monkeypatch, capsys):
    monkeypatch.setattr(attentive, "WORTH_SAYING", 1)
    rows(quick(epochs=1), scenes(60, 20))
    assert "attentive: keeps 0.0 GiB of tokens while it learns" in capsys.readouterr().out


def test_tokens_go_together_by_slot_and_are_filled_up():
    views = [torch.full((n + 1, 3), float(n)) for n in range(5)]
    slots = in_slots(views, Along(windows=5, slots=2))
    assert [x[:, 0].tolist() for x in slots] == [[0, 1, 1], [2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]]
    x, mask = padded([[torch.ones(2, 3)], [torch.ones(1, 3)]], torch.device("cpu"))
    assert x.shape == (2, 2, 3) and x[1, 1].tolist() == [0, 0, 0]
    assert mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": []}, "rates: expected a list of 1 or more"),
        ({"decays": [-1]}, r"decays: expected a number at least 0.0, got \[-1\]"),
        ({"epochs": 0}, "epochs: expected a number at least 1, got 0"),
        ({"samples": 1}, "samples: expected a number at least 2, got 1"),
        ({"holdout": 0}, "holdout: expected a number above 0.0, got 0"),
        ({"windows": 4, "pool": "median"}, "pool: "),
    ],
)
def test_options_out_of_range_are_named(options, message):
    refused("attentive", options, message)


def test_where_there_is_nothing_to_classify():
    source = scenes(20, 20)
    assert missing(Attentive(), source, Plain()) is None
    assert "it needs two classes or more" in missing(Attentive(label="colour"), source, Plain())
    with pytest.raises(ValueError, match="'attentive' classifies single views, which this pair does not"):
        missing(Attentive(), source, Pair())
    with pytest.raises(ValueError, match="attentive: between says where in time to look"):
        Attentive(between=("from", "to"))


# ---- by the commands ----


@register_encoder("image", "test_brightness")
class Brightness(nn.Module):
    """An encoder without tokens."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3)

    def forward(self, view):
        return self.net(view.mean((2, 3)))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict:
    """Pictures of noise with a red or a blue square somewhere, whose opposite is elsewhere."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, number in (("train", 40), ("test", 20)):
        for i in range(number):
            pixels = rng.integers(100, 150, (24, 24, 3))
            y, x = rng.integers(0, 3, 2) * 8
            pixels[y : y + 8, x : x + 8] = (255, 0, 0) if i % 2 else (0, 0, 255)
            to = folder / split / ("red" if i % 2 else "blue")
            to.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(to / f"{i}.png")
    encoder = {"name": "pooled_conv", "widths": [8, 16], "strides": [2, 2], "pool": 1}
    return {
        "name": "pictures",
        "source": {"name": "image_folder", "root": str(folder)},
        "pair": {"name": "augment", "size": 24},
        "a": {"modality": "image", "encoder": encoder, "expander": [16]},
        "b": {"weights": "same"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 1}},
        "train": {"steps": 2, "batch_size": 8},
        "data": {"workers": 0},
        "evaluate": {"probes": []},
    }


def test_by_the_command(recipe, tmp_path, capsys):
    folder = vicjoint.train(recipe, [f"out={tmp_path / 'run'}"])
    probes = "evaluate.probes=[{name: linear, solver: ridge}, {name: attentive, epochs: 5}]"
    assert evaluate([str(folder), probes, "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert "mean_token" in said
    found = json.loads((tmp_path / "found.json").read_text())["attentive"]
    assert set(found) == {"model", "random_init", "mean_token", "chance"}
    assert set(points(found["model"])) == {"accuracy", "rate", "decay"}


def test_an_encoder_without_tokens_is_refused_before_anything_is_written(recipe, tmp_path, capsys):
    alone = recipe | {
        "a": {"modality": "image", "encoder": {"name": "test_brightness"}, "expander": [16]},
        "evaluate": {"probes": [{"name": "attentive"}]},
    }
    words = "encoder Brightness gives y and no tokens. Use what looks at y alone"
    with pytest.raises(RecipeError, match=words):
        vicjoint.train(alone, [f"out={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    for more in ([], ["--dry-run"]):
        assert run([str(tmp_path / "alone.json"), f"out={tmp_path / 'run'}", *more]) == 2
        assert words in capsys.readouterr().err
    folder = vicjoint.train(alone, [f"out={tmp_path / 'run'}", "evaluate.probes=[]"])
    assert evaluate([str(folder), "evaluate.probes=[{name: attentive}]"]) == 2
    assert words in capsys.readouterr().err
