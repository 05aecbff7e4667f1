"""What an evaluation reads and encodes, and how often: all probes of a run see the same features."""

import re
import time
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from probing import Bare, Listed, bound, data_of, evaluation_of, measured, missing, model_of
from torch import nn

from vicjoint.data import Readers, TimeLimit
from vicjoint.parts import Modality, Pair, Probe, View, Want
from vicjoint.parts import Spread as Along
from vicjoint.probes import evaluation as evaluations
from vicjoint.probes import features
from vicjoint.probes.classify import KNN, Linear
from vicjoint.probes.regression import Regression
from vicjoint.probes.retrieval import Retrieval
from vicjoint.recipe import load_recipe
from vicjoint.training.build import build_parts


class Vector(Modality):
    baseline = "numbers"

    def __init__(self):
        super().__init__()
        self.simple = []

    def simple_features(self, raw):
        self.simple.append(len(raw))
        return raw


class Scaled(nn.Module):
    """Counts the samples that it encodes."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.seen = factor, []

    def forward(self, view):
        self.seen.append(len(view))
        return view * torch.tensor(self.factor)


class Numbers(Pair):
    """Three numbers for each branch; counts what it reads. Records may be slow or broken. Top level and
    without local state, so that it travels to the processes that read."""

    gives = frozenset({"views", "both", "rows", "crops"})

    def __init__(self):
        self.read = []

    def views(self, record, side, rng=None, read=True):
        self.read.append((record["id"], side, rng is not None))
        if record.get("hangs"):
            time.sleep(20)
        if record.get("broken"):
            raise ValueError("broken on purpose")
        raw = torch.tensor([record["x"]], dtype=torch.float32)
        if rng is not None:
            raw = raw + float(rng.uniform(0, 0.1))
        return [View(raw, f"{side}{record['id']}", None, record["id"])]


def records(train=40, test=20):
    rng = np.random.default_rng(0)

    def make(split, i):
        x = rng.normal(size=3) + 3 * np.eye(3)[i % 3]
        return {"id": f"{split}{i}", "label": f"class {i % 3}", "x": x.tolist(), "y": x[0] if i % 2 else None}

    return Listed(*([make(split, i) for i in range(n)] for split, n in (("train", train), ("test", test))))


def model(factor=1.0):
    factors = torch.tensor([1.0, factor, factor]).tolist()
    return model_of(*(Bare(Scaled(factors), Vector()) for _ in "ab"))


def encoded(of) -> dict[str, int]:
    """Samples through each branch's encoder, forgotten afterwards."""
    found = {name: sum(branch.encoder.seen) for name, branch in of.branches.items()}
    for branch in of.branches.values():
        branch.encoder.seen.clear()
    return found


@pytest.fixture(autouse=True)
def no_trial(monkeypatch):
    """Estimates read and encode a few samples; tests of counts do without."""
    monkeypatch.setattr(evaluations, "WORTH_TRYING", 10**9)


PROBES = {
    "knn": lambda: KNN(k=[5], pictures=0),
    "linear": lambda: Linear(rates=[0.1], epochs=5, crops=False),
    "retrieval": lambda: Retrieval(pictures=0),
}


def test_every_view_is_read_once_and_encoded_once_for_each_row():
    source, trained, untrained = records(), model(), model(0.1)
    pair = bound(Numbers(), source)
    evaluation = evaluation_of({name: make() for name, make in PROBES.items()}, data_of(source, pair))
    first, _ = evaluation(trained, untrained)
    assert Counter(pair.read) == {
        (record["id"], side, False): 1 for record in [*source.train, *source.test] for side in "ab"
    }
    # knn and linear look at a of both splits; retrieval at the test split of both, and fits its floor, of
    # simple features, on the training split
    assert encoded(trained) == encoded(untrained) == {"a": 60, "b": 20}
    simple = [sum(branch.modality.simple) for branch in trained.branches.values()]
    assert simple == [60, 60]

    again, _ = evaluation(trained, untrained)
    assert again == first and len(pair.read) == 120, "raw views that fit are kept"
    assert encoded(trained) == {"a": 60, "b": 20} and encoded(untrained) == {"a": 0, "b": 0}
    assert [sum(branch.modality.simple) for branch in trained.branches.values()] == simple
    for name, make in PROBES.items():
        assert measured(make(), trained, untrained, source, bound(Numbers(), source)) == first[name]


def test_raw_views_that_do_not_fit_are_read_again(monkeypatch):
    monkeypatch.setattr(features, "KEPT_BYTES", 100)
    source, trained = records(), model()
    pair = bound(Numbers(), source)
    evaluation = evaluation_of({"knn": PROBES["knn"]()}, data_of(source, pair))
    assert evaluation(trained, model(0.1)) == evaluation(trained, model(0.1))
    assert set(Counter(pair.read).values()) == {2} and len(pair.read) == 120


def test_fixed_features_that_do_not_fit_are_computed_again(monkeypatch):
    monkeypatch.setattr(features, "FIXED_BYTES", 100)
    source, untrained = records(), model(0.1)
    evaluation = evaluation_of({"knn": PROBES["knn"]()}, data_of(source, bound(Numbers(), source)))
    assert evaluation(model(), untrained) == evaluation(model(), untrained)
    assert encoded(untrained) == {"a": 120, "b": 0}


@pytest.mark.parametrize("probe", ["knn", "linear", "ridge", "crops"])
def test_rows_that_training_does_not_change_are_settled_once(probe):
    """The first evaluation settles them; a later one, of a model that has learnt, costs the model alone."""
    make = {
        **PROBES,
        "ridge": lambda: Linear(solver="ridge", crops=False),
        "crops": lambda: Linear(rates=[0.1], epochs=3),
    }[probe]
    source, untrained, trained = records(), model(0.1), model(0.0)
    evaluation = evaluation_of({probe: make()}, data_of(source, bound(Numbers(), source)))
    first, _ = evaluation(model(), untrained)
    encoded(untrained)
    later, _ = evaluation(trained, untrained)
    assert encoded(untrained) == {"a": 0, "b": 0} and encoded(trained)["a"] == 60 + 40 * 3 * (
        probe == "crops"
    )
    assert later[probe] == measured(make(), model(0.0), model(0.1), source, bound(Numbers(), source))
    assert {row: later[probe][row] == first[probe][row] for row in first[probe]} == {
        row: row != "model" for row in ("model", "random_init", "numbers", "chance")
    }


class Flashes(Pair):
    """Ten seconds, one of which is bright; a view tells the second and its brightness."""

    gives = frozenset({"views", "spread"})

    def views(self, record, side, rng=None, read=True):
        return self.spread(record, side, 1)

    def spread(self, record, side, number, between=None):
        low, high = between or (0, 10)
        times = [low + (i + 0.5) * (high - low) / number for i in range(number)]
        raw = [torch.tensor([[float(int(t) == record["second"]), 0.0, 1.0]]) for t in times]
        return [View(x, f"{record['id']} {t}", None, record["id"]) for x, t in zip(raw, times)]


def flashing():
    def make(split, i):
        early = i % 2 == 0
        return {
            "id": f"{split}{i}", "label": "early" if early else "late", "second": i % 5 + 5 * (not early),
            "from": 0 if early else 5, "to": "5" if early else "10",
        }  # fmt: skip

    return Listed(*([make(split, i) for i in range(40)] for split in ("train", "test")))


@pytest.mark.parametrize(
    "options, right",
    [
        ({"windows": 10}, True),
        ({"windows": 10, "pool": 2}, True),
        ({"windows": 10, "pool": "mean"}, False),
        ({}, False),
    ],
)
def test_slots_keep_what_was_when(options, right):
    source = flashing()
    found = measured(
        Linear(solver="ridge", **options), model(), model(0.1), source, bound(Flashes(), source)
    )["model"]
    assert found["accuracy"] == 1 if right else found["accuracy"] < 0.7


def test_windows_lie_between_the_seconds_of_a_label():
    source, trained = flashing(), model()
    data = data_of(source, bound(Flashes(), source))
    probe = Asks(np.arange(40), Along(5, 5, ("from", "to")))
    results, _ = evaluation_of({"asks": probe}, data)(trained, model(0.1))
    x = torch.tensor(results["asks"]["model"]["all"])
    assert x.shape == (40, 15) and encoded(trained)["a"] == 200
    assert x.view(40, 3, 5)[:, 0].argmax(1).tolist() == [record["second"] % 5 for record in source.test]


@pytest.mark.parametrize(
    "options, pair, message",
    [
        ({"between": ["from", "to"]}, Flashes, "knn: between says where in time to look, which windows do"),
        ({"windows": 4, "pool": 5}, Flashes, "knn: pool is 5, expected at most as many slots as windows (4)"),
        ({"windows": 4}, Numbers, "'knn' has windows: 4, but this pair has no windows along time"),
        (
            {"windows": 4, "between": ["form", "to"]},
            Flashes,
            "between names form, which records do not have. Did you mean 'from'?",
        ),
    ],
)
def test_wrong_windows_are_named(options, pair, message):
    source = flashing()
    with pytest.raises(ValueError, match=re.escape(message)):
        missing(KNN(**options), source, bound(pair(), source))


def test_a_record_without_its_seconds_is_left_out(capsys):
    source = flashing()
    source.test[3] |= {"from": 7, "to": ""}
    probe = KNN(k=[3], windows=5, between=["from", "to"], pictures=0)
    measured(probe, model(), model(0.1), source, bound(Flashes(), source))
    assert (
        "test3: from and to are 7 and '', expected seconds, the start before the end"
        in capsys.readouterr().out
    )


class Asks(Probe):
    """The numbers of the records that it gets of those that it asks for, and what the model makes of them."""

    def __init__(self, places, spread=None):
        self.places, self.spread = np.array(places), spread

    def wants(self, data):
        return [Want("a", "test", self.places, ("model",), spread=self.spread)]

    def measure(self, features):
        items = features.items(self.wants(features.data)[0])
        yield "model/places", items.places.tolist()
        yield "model/first", items.rows["model"][:, 0].tolist()
        yield "model/all", items.rows["model"].tolist()


def test_probes_that_want_different_records_get_their_own_of_one_reading():
    source, asked = records(), {"one": [1, 4, 9], "other": [4, 5]}
    pair = bound(Numbers(), source)
    probes = {name: Asks(places) for name, places in asked.items()}
    found, _ = evaluation_of(probes, data_of(source, pair))(model(), model())
    assert [record for record, *_ in pair.read] == ["test1", "test4", "test5", "test9"]
    for name, places in asked.items():
        assert found[name]["model"]["places"] == places
        assert found[name]["model"]["first"] == pytest.approx([source.test[i]["x"][0] for i in places])


@pytest.mark.parametrize("kept", [0, 2**20])
def test_a_record_that_hangs_or_breaks_is_left_out_and_named_once(kept, capsys, monkeypatch):
    monkeypatch.setattr(features, "KEPT_BYTES", kept)
    source, fewer = records(), records()
    source.test[2]["hangs"], source.test[5]["broken"] = True, True
    fewer.test = [record for i, record in enumerate(fewer.test) if i not in (2, 5)]
    pair, limit, began = bound(Numbers(), source), TimeLimit(0.3), time.monotonic()
    probes = {name: PROBES[name]() for name in ("knn", "retrieval")}
    evaluation = evaluation_of(probes, data_of(source, pair), limit=limit)
    first, again = (evaluation(model(), model(0.1))[0] for _ in range(2))
    assert time.monotonic() - began < 10
    assert first == again
    for name, probe in probes.items():
        assert measured(probe, model(), model(0.1), fewer, bound(Numbers(), fewer)) == first[name]
    said = capsys.readouterr().out
    # once for each branch, whatever the number of probes and evaluations
    assert said.count("evaluation leaves out test2: not read within 0.3 s (data.timeout)") == 2
    assert said.count("evaluation leaves out test5: broken on purpose") == 2


def test_random_crops_say_what_they_cost_and_are_read_by_one_set_of_readers(capsys, monkeypatch):
    opened = []

    class Watched(Readers):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(sum(map(len, self.batches)))

    monkeypatch.setattr(features, "Readers", Watched)
    source = records()
    pair = bound(Numbers(), source)
    evaluation = evaluation_of({"linear": Linear(rates=[0.1], epochs=7)}, data_of(source, pair))
    words = evaluation.cost(model(), model()).words()
    assert re.fullmatch(
        r"evaluation \(linear\): 60 samples and 7 epochs of random crops, 280 in all: about \d+ s", words
    )
    pair.read.clear()
    evaluation(model(), model(0.1))
    assert sum(cropped for *_, cropped in pair.read) == 7 * 40 and sorted(opened) == [20, 40, 280]
    assert "random crops" not in capsys.readouterr().out, "a quick evaluation says nothing"

    monkeypatch.setattr(evaluations, "WORTH_TRYING", 0)
    monkeypatch.setattr(evaluations, "QUICK_SECONDS", 0)
    during = []
    monkeypatch.setattr(
        Linear, "measure", lambda probe, features: during.append(capsys.readouterr().out) or iter(())
    )
    evaluation(model(), model(0.1))
    assert "and 7 epochs of random crops, 280 in all: about" in during[0], "before it starts"


def test_a_bar_counts_the_samples(monkeypatch):
    bars = []

    class Bar(features.tqdm):
        def __init__(self, *given, **options):
            super().__init__(*given, **{**options, "leave": True, "delay": 0, "mininterval": 0})
            bars.append(self)

    monkeypatch.setattr(features, "tqdm", Bar)
    source = records()
    probes = {"knn": PROBES["knn"](), "crops": Linear(rates=[0.1], epochs=3, holdout=0.5)}
    evaluation = evaluation_of(probes, data_of(source, bound(Numbers(), source)))
    evaluation(model(), model())
    # 60 views through three rows, and three epochs of crops
    assert (bars[0].n, bars[0].total, bars[0].desc) == (300, 300, "evaluate: crops")
    evaluation(model(), model())
    assert (bars[1].n, bars[1].total) == (180, 180), "two of the rows are kept"


class Draws(Probe):
    """Two epochs of random crops, as the model sees them."""

    def wants(self, data):
        return [Want("a", "train", rows=("model",), epochs=2)]

    def measure(self, features):
        order = lambda epoch: np.random.default_rng(epoch).permutation(40)
        found = list(features.crops(self.wants(features.data)[0], order, 16))
        yield (
            "model/crops",
            [(epoch, places.tolist(), rows["model"].tolist()) for epoch, rows, places in found],
        )


def test_workers_change_nothing_and_crops_are_drawn_by_epoch_and_record(monkeypatch):
    source, results = records(), []
    monkeypatch.setattr(features, "WORTH_WORKERS", 0)
    for workers in (0, 1):
        pair = bound(Numbers(), source)
        evaluation = evaluation_of({"knn": PROBES["knn"](), "draws": Draws()}, data_of(source, pair), workers)
        results.append(evaluation(model(), model(0.1)))
        assert bool(pair.read) == (workers == 0), "another process reads"
    assert results[0] == results[1]
    crops = results[0][0]["draws"]["model"]["crops"]
    assert [epoch for epoch, *_ in crops] == [0, 0, 0, 1, 1, 1]
    first, second = (
        {place: x for epoch, places, xs in crops if epoch == e for place, x in zip(places, xs)}
        for e in (0, 1)
    )
    assert first.keys() == second.keys() and not any(first[place] == second[place] for place in first)


# ---- a user's probe, from vicjoint/parts alone ----


class Spread(Probe):
    """Mean distance of the test samples from their mean, by the representation of one branch."""

    needs = frozenset({"views"})
    scope = "branch"

    def __init__(self, branch: str = "a"):
        self.branch = branch

    def wants(self, data):
        return [Want(self.branch, "test")]

    def measure(self, features):
        for row, x in features.items(self.wants(features.data)[0]).rows.items():
            row = features.baseline(self.branch) if row == "simple" else row
            yield f"{row}/spread", float((x - x.mean(0)).norm(dim=1).mean())


def test_a_probe_sees_arrays_and_no_model():
    source = records()
    found = measured(Spread(), model(2.0), model(0.0), source, bound(Numbers(), source))
    x = np.array([record["x"] for record in source.test])
    spread = lambda x: pytest.approx(np.linalg.norm(x - x.mean(0), axis=1).mean(), rel=1e-5)
    assert found == {
        "model": {"spread": spread(x * [1, 2, 2])},
        "random_init": {"spread": spread(x * [1, 0, 0])},
        "numbers": {"spread": spread(x)},
    }


def test_a_probe_of_other_records_does_not_take_part_in_theirs():
    """Regression wants every second record; knn's numbers are those of all."""
    source = records()
    both = {"knn": PROBES["knn"](), "regression": Regression(label="y")}
    found, _ = evaluation_of(both, data_of(source, bound(Numbers(), source)))(model(), model(0.1))
    for name, probe in both.items():
        assert measured(probe, model(), model(0.1), source, bound(Numbers(), source)) == found[name]


def test_random_crops_of_several_probes_are_counted_each(monkeypatch):
    source = records()
    for record in source.train[10:]:
        record["few"] = None
    for record in [*source.train[:10], *source.test]:
        record["few"] = record["label"]
    probes = {
        "held": Linear(rates=[0.1, 1.0], epochs=3, holdout=0.5),
        "few": Linear(rates=[0.1], epochs=5, label="few"),
    }
    pair = bound(Numbers(), source)
    evaluation = evaluation_of(probes, data_of(source, pair))
    cost = evaluation.cost(model(), model(), 10**9)
    evaluation(model(), model())
    assert cost.epochs == 8 and cost.crops == sum(cropped for *_, cropped in pair.read)


def test_a_record_that_can_be_read_no_more_takes_its_kept_features_along(monkeypatch):
    monkeypatch.setattr(features, "KEPT_BYTES", 0)
    source, fewer = records(), records()
    evaluation = evaluation_of({"knn": PROBES["knn"]()}, data_of(source, bound(Numbers(), source)))
    evaluation(model(), model(0.1))
    source.train[3]["broken"] = source.test[7]["broken"] = True
    fewer.train.pop(3), fewer.test.pop(7)
    found = evaluation(model(), model(0.1))[0]["knn"]
    assert found == measured(PROBES["knn"](), model(), model(0.1), fewer, bound(Numbers(), fewer))


def test_training_keeps_the_watch_on_its_own_readers():
    """A time limit knows the processes of one reading: an evaluation that reads with others must not take its
    place."""
    parts = build_parts(load_recipe(tiny.recipe()))
    parts.limit.watch(2)
    rows = parts.limit.rows
    parts.evaluation.reader.limit.watch(1)
    assert parts.limit.rows is rows and parts.evaluation.reader.limit.seconds == parts.limit.seconds
