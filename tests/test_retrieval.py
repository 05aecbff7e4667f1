"""Retrieval and zero-shot classification on pairs whose right answers are known by construction."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from probing import Bare, Given, Listed, bound, measured, missing, model_of, points, refused
from torch import nn

import vicjoint
from vicjoint.modalities.image import Pixels
from vicjoint.parts import Items, Modality, Pair, View
from vicjoint.probes import linear_map, ranking
from vicjoint.probes.linear_map import LinearMap, PrincipalComponents
from vicjoint.probes.retrieval import Group, Retrieval, averaged
from vicjoint.probes.zero_shot import ZeroShot


class Vector(Modality):
    """A cell is numbers between spaces; after the word minus, their opposites."""

    reads = "text"
    baseline = "numbers"

    def read(self, value, rng=None, window=None):
        sign = -1 if value.startswith("minus ") else 1
        return sign * torch.tensor([[float(v) for v in value.removeprefix("minus ").split()]])

    def simple_features(self, raw):
        return raw


class Turned(nn.Module):
    """z = view @ weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, view):
        return view @ self.weight


def model(weight_a, weight_b, predictor=None):
    branches = (Bare(Turned(weight), Vector()) for weight in (weight_a, weight_b))
    return model_of(*branches, predictor and Given(predictor))


class Columns(Pair):
    """Columns a and b; several values stand between |; `key` is a column or None."""

    gives = frozenset({"views", "both", "rows"})

    def __init__(self, key=None):
        self.key = key

    def views(self, record, side, rng=None, read=True):
        if read and record.get("broken") == side:
            raise ValueError("broken on purpose")
        reader = self.readers["ab".index(side)]
        key = record[self.key] if self.key else None
        return [
            View(reader.read(value) if read else None, value, key, f"{record['id']}: {value}")
            for value in record[side].split("|")
        ]


MIXED = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q


def text(x):
    return " ".join(f"{v:.6f}" for v in x)


class Source(Listed):
    """b is a rotated a: a model that knows the rotation is perfect, and so is a linear map."""

    def __init__(self, train=80, test=30):
        rng = np.random.default_rng(0)
        make = lambda split, i: {
            "id": f"{split}{i}",
            "label": f"class {i % 3}",
            "x": rng.normal(size=6) + 4 * (np.arange(6) == i % 3),
        }
        self.train, self.test = (
            [make(split, i) for i in range(n)] for split, n in (("train", train), ("test", test))
        )
        for record in [*self.train, *self.test]:
            x = record.pop("x")
            record["a"], record["b"] = text(x), text(x @ MIXED.numpy())


def columns(source, key=None, b=None):
    return bound(Columns(key), source, (Vector(), b or Vector()))


def rows(probe, source, pair=None, trained=None, untrained=None):
    pair = pair or columns(source)
    assert missing(probe, source, pair) is None
    trained = trained or model(MIXED, torch.eye(6))
    return measured(probe, trained, untrained or model(torch.zeros(6, 6), torch.eye(6)), source, pair)


def test_a_model_that_knows_the_rotation_is_perfect():
    found = rows(Retrieval(), Source())
    assert list(found) == ["model", "random_init", "numbers", "linear_map", "chance"]
    names = [f"{d}_{m}" for d in ("a_to_b", "b_to_a") for m in ("r1", "r5", "r10", "median_rank", "mrr")]
    assert all(list(points(row)) == names for row in found.values())
    assert all(found[row][f"{d}_r1"] == 1 for row in ("model", "linear_map") for d in ("a_to_b", "b_to_a"))
    assert (
        found["chance"]["b_to_a_r1"] == pytest.approx(1 / 30)
        and found["chance"]["b_to_a_median_rank"] == 15.5
    )
    # branch a of the untrained model is constant: all queries find the same, and as candidates all are
    # equally similar, so in the middle
    assert (
        found["random_init"]["a_to_b_r1"] == pytest.approx(1 / 30)
        and found["random_init"]["a_to_b_median_rank"] == 15.5
    )
    assert found["random_init"]["b_to_a_r1"] == 0 and found["random_init"]["b_to_a_median_rank"] == 15.5


def test_features_of_one_kind_are_compared_as_they_are():
    same = Source()
    for record in same.test:
        record["b"] = record["a"]
    assert (
        rows(Retrieval(linear_map=0), same)["numbers"]["a_to_b_r1"] == 1
        and rows(Retrieval(linear_map=0), Source())["numbers"]["a_to_b_r1"] < 0.5
    )
    other = model(MIXED, torch.eye(6))
    other.branches["b"].modality.baseline = "something else"
    assert "numbers" not in rows(Retrieval(), same, trained=other)


def test_the_predictor_of_branch_a_is_used():
    assert (
        rows(Retrieval(), Source(), trained=model(torch.eye(6), torch.eye(6), lambda z: z @ MIXED))["model"][
            "a_to_b_r1"
        ]
        == 1
    )
    assert rows(Retrieval(), Source(), trained=model(torch.eye(6), torch.eye(6)))["model"]["a_to_b_r1"] < 0.5


def test_equal_contents_are_one_candidate():
    """The same b for all records of a class: three candidates, of which one is right; back, each of the 30
    asks for its class's ten."""
    source = Source()
    for record in source.test:
        record["b"] = source.test[int(record["label"][-1])]["b"]
    found = rows(Retrieval(linear_map=0), source)
    assert set(found) == {"model", "random_init", "numbers", "chance"}
    assert found["chance"]["a_to_b_r1"] == found["chance"]["b_to_a_r1"] == pytest.approx(1 / 3)
    assert found["chance"]["a_to_b_r5"] == found["model"]["a_to_b_r5"] == 1, "the first five of three"
    assert found["chance"]["a_to_b_median_rank"] == 2 and found["model"]["b_to_a_r1"] == 1
    # features that were not made for each other, every query by itself in float64: the rank of its class's b
    # among the three, seen from their mean
    z_a, z_b = (
        np.array([[float(v) for v in record[side].split()] for record in source.test]) for side in "ab"
    )
    three = z_b[:3] - z_b[:3].mean(0)
    cosine = (z_a - z_b[:3].mean(0)) @ (three / np.linalg.norm(three, axis=1, keepdims=True)).T
    of = np.array([1 + sum(c > row[i % 3] for c in row) for i, row in enumerate(cosine)])
    assert found["numbers"]["a_to_b_r1"] == pytest.approx(np.mean(of == 1)) and set(of) == {2, 3}
    assert found["numbers"]["a_to_b_mrr"] == pytest.approx(np.mean(1 / of))
    # an encoder that gives everything one embedding: one right and two wrong in a tie have rank 2 in the
    # middle
    collapsed = rows(Retrieval(linear_map=0), source, trained=model(torch.zeros(6, 6), torch.zeros(6, 6)))[
        "model"
    ]
    assert (
        collapsed["a_to_b_r1"] == 0
        and collapsed["a_to_b_median_rank"] == 2
        and collapsed["b_to_a_median_rank"] == 11
    )


@pytest.mark.parametrize("key", [None, "label"])
def test_chance_is_the_mean_over_all_orders_of_the_distinct_candidates(key):
    """Texts that several records share, some of them in two classes, against every order in float64."""
    source = Source(test=7)
    for record, a, b in zip(source.test, "xxyzzuv", "ppqqrsp"):
        record["a"], record["b"] = (text(np.eye(6)[ord(c) % 6] + ord(c)) for c in (a, b))
    source.test[6]["label"] = None
    found = rows(Retrieval(linear_map=0), source, columns(source, key))["chance"]
    for query, other in ("ab", "ba"):
        candidates, ranks = sorted({r[other] for r in source.test}), []
        for asked in source.test:
            answers = {
                r[other]
                for r in source.test
                if r[query] == asked[query] or (key and r["label"] == asked["label"] is not None)
            }
            for order in itertools.permutations(candidates):
                ranks.append(1 + min(order.index(answer) for answer in answers))
        ranks = np.array(ranks, float)
        expected = {
            "r1": (ranks <= 1).mean(),
            "r5": (ranks <= 5).mean(),
            "r10": 1.0,
            "median_rank": np.median(ranks),
            "mrr": (1 / ranks).mean(),
        }
        assert {m: found[f"{query}_to_{other}_{m}"] for m in expected} == {
            m: pytest.approx(v, abs=1e-12) for m, v in expected.items()
        }


def test_a_class_is_the_mean_of_its_distinct_candidates():
    """Class 0 has one b nine times and another once: its mean is in the middle of the two, and every class
    member's content answers."""
    source = Source()
    near = [r for r in source.test if r["label"] == "class 0"]
    for record in near[1:]:
        record["b"] = near[0]["b"]
    seen, original = [], ranking.prototypes

    def watching(z, classes):
        seen.append((z, classes))
        return original(z, classes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "prototypes", watching)
        found = rows(Retrieval(linear_map=0), source, columns(source, key="label"))
    assert sorted(len(z) for z, _ in seen) == [21, 21, 21, 30, 30, 30], (
        "10 + 10 + 1 of b, all 30 of a, for three rows"
    )
    assert found["chance"]["a_to_b_r1"] == pytest.approx((10 / 21 + 10 / 21 + 1 / 21) / 3)


def test_several_values_are_several_items():
    """b holds the right value second, and before it one of no meaning: as candidates either is right, as
    queries each stands for itself."""
    source = Source()
    for record in source.test:
        record["b"] = (
            text(-np.ones(6) + 0.01 * np.random.default_rng(int(record["id"][4:])).normal(size=6))
            + "|"
            + record["b"]
        )
    found = rows(Retrieval(), source)
    assert found["model"]["a_to_b_r1"] == 1 and 0.5 <= found["model"]["b_to_a_r1"] < 0.7
    assert found["chance"]["a_to_b_r1"] == pytest.approx(2 / 60) and found["chance"][
        "b_to_a_r1"
    ] == pytest.approx(1 / 30)


def test_with_a_key_every_sample_of_the_class_is_right():
    source = Source()
    found = rows(Retrieval(), source, columns(source, key="label"))
    assert (
        found["chance"]["a_to_b_r1"]
        == pytest.approx(found["chance"]["a_to_b_class_prototype"])
        == pytest.approx(1 / 3)
    )
    assert found["model"]["a_to_b_class_prototype"] > 0.9 and found["model"]["a_to_b_r1"] == 1
    assert found["linear_map"]["b_to_a_r1"] > 0.9 and found["random_init"]["b_to_a_class_prototype"] == 0


def test_a_second_table_supplies_b():
    """Rows of two tables have only their key in common; a key without a partner is no query."""
    source = Source()
    source.second = {
        "train": [{**r, "id": f"second {r['id']}", "a": None} for r in source.train[::-1]],
        "test": [{**r, "id": f"second {r['id']}", "a": None} for r in source.test[:7]],
    }
    source.test[5]["label"] = source.train[5]["label"] = "nobody's"
    found = rows(Retrieval(), source, columns(source, key="label"))
    assert found["model"]["a_to_b_r1"] > 0.9 and found["linear_map"]["a_to_b_r1"] > 0.8
    # 7 candidates: 3, 2 and 2 of a class; 29 queries: 10, 10 and 9
    assert found["chance"]["a_to_b_r1"] == pytest.approx((10 * 3 + 10 * 2 + 9 * 2) / 29 / 7)
    lonely = Source()
    lonely.second = {"train": lonely.train, "test": [{**r, "label": "else"} for r in lonely.test]}
    with pytest.raises(
        ValueError,
        match="no test sample of one branch has a partner of equal key in the other. Check the pair's key",
    ):
        rows(Retrieval(linear_map=0), lonely, columns(lonely, key="label"))


def test_unreadable_and_limited_records(capsys):
    source = Source()
    source.test[0]["broken"], source.test[29]["broken"] = "a", "b"
    source.train[0]["broken"] = "a"
    found = rows(Retrieval(), source)
    assert (
        found["chance"]["a_to_b_r1"] == pytest.approx(1 / 28)
        and found["model"]["a_to_b_r1"] == found["linear_map"]["a_to_b_r1"] == 1
    )
    assert capsys.readouterr().out.count("broken on purpose") == 3
    assert rows(Retrieval(limit=10), Source())["chance"]["a_to_b_r1"] == pytest.approx(0.1)
    for record in source.test:
        record["broken"] = "a" if record["id"] < "test2" else "b"
    with pytest.raises(ValueError, match="fewer than two test records can be read by both branches"):
        rows(Retrieval(), source)


def test_wrong_uses_are_named():
    with pytest.raises(
        ValueError, match="'retrieval' compares two modalities .* Use pair: {name: cross_modal}"
    ):
        missing(Retrieval(), Source(), Pair())
    with pytest.raises(ValueError, match="'zero_shot' compares two modalities"):
        missing(ZeroShot(), Source(), Pair())
    refused("retrieval", {"limit": 1}, "limit: expected a number at least 2, got 1")
    refused("retrieval", {"linear_map": -1}, "linear_map: expected a number at least 0, got -1")
    for options, message in (
        ({"branch": "c"}, "branch is 'c', expected a or b"),
        ({"prompts": ["a dog"]}, "texts that have {}"),
        ({"prompts": []}, "texts"),
    ):
        with pytest.raises(ValueError, match=message):
            ZeroShot(**options)


# ---- pictures ----


class Picture(Vector):
    reads = "file"

    def read(self, value, rng=None, window=None):
        return (
            torch.tensor([int(float(v) * 20) % 256 for v in value.split()[:3]], dtype=torch.uint8)
            .view(1, 3, 1, 1)
            .expand(1, 3, 4, 5)
        )


def test_pictures_show_what_was_found_first():
    class Corner(Pixels):
        def forward(self, raw):
            return raw.float()[:, :, 0, 0]

    source = Source()
    for record in source.test:
        record["a"] = text(Picture().read(record["b"])[0, :, 0, 0].tolist())
    sees = model_of(Bare(nn.Identity(), Vector()), Bare(nn.Identity(), Corner()))
    pair = columns(source, b=Picture())
    shown = measured(Retrieval(linear_map=0, pictures=4), sees, sees, source, pair)["pictures"]
    assert shown["neighbours"].shape == (4, 5, 4, 5, 3) and shown["good"].all() and "query" not in shown
    assert shown["right"].tolist() == [[True] + [False] * 4] * 4
    assert shown["neighbours"][0, 0, 0, 0].tolist() == [float(v) for v in source.test[0]["a"].split()]
    assert shown["title"][0].startswith(f"test0: {source.test[0]['a']}; first: test0: ")
    # ten queries of one picture: it is shown once, and the other places show others
    for record in source.test[1:10]:
        record["a"], record["b"] = source.test[0]["a"], source.test[0]["b"]
    again = measured(Retrieval(linear_map=0, pictures=4), sees, sees, source, pair)["pictures"]
    assert again["right"].tolist() == [[True] + [False] * 4] * 4 and again["title"][-1].startswith(
        f"test29: {source.test[29]['a']}; first: test29: "
    )
    assert list(shown["captions"]) == ["query, {a}", "retrieved, {b}"], (
        "the report knows the names of the branches"
    )


# ---- the linear map ----


def test_principal_components_are_those_of_the_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(linear_map, "COMPONENTS", 3)
    for n, d in ((30, 8), (8, 30)):
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        assert torch.allclose(PrincipalComponents(x)(x).abs(), (u * s)[:, :3].abs(), atol=1e-10)
    flat = torch.cat([x[:, :1], torch.zeros(8, 5)], 1)
    assert PrincipalComponents(flat)(flat).shape == (8, 1), "directions without variance are no components"


def test_the_linear_map_finds_partners_it_was_not_fitted_on():
    generator = torch.Generator().manual_seed(2)
    a, weight = torch.randn(60, 5, generator=generator), torch.randn(5, 9, generator=generator)
    b = a @ weight + 1
    own = torch.arange(40)
    floor = LinearMap(a[:40], b[:40], ranking.Right((own, own), (own, own)))
    queries, candidates = floor.a_to_b(a[40:], b[40:])
    assert torch.allclose(queries, candidates, atol=1e-3)
    queries, candidates = floor.b_to_a(b[40:], a[40:])
    assert torch.allclose(queries, candidates, atol=1e-3)


def test_the_linear_map_chooses_its_penalty_among_distinct_candidates(monkeypatch):
    asked = []
    monkeypatch.setattr(
        linear_map.ranking,
        "ranks",
        lambda queries, candidates, right: asked.append((len(queries), len(candidates), right)) or np.ones(2),
    )
    a, b, four = torch.randn(40, 5), torch.randn(40, 3), torch.arange(40) % 4
    LinearMap(a, b, ranking.Right((torch.arange(40), four), (torch.arange(40), four)))
    held = asked[0][0]
    assert {(q, c) for q, c, _ in asked} == {(held, 4), (held, held)} and 4 < held < 20, (
        "a to b: four contents; back: all that are held out"
    )
    answers = asked[0][2](slice(None))
    assert answers.shape == (held, 4) and (answers.sum(1) == 1).all() and (answers.sum(0) > 0).all()


# ---- zero-shot ----


def test_zero_shot_by_the_mean_of_training_samples():
    found = rows(ZeroShot(), Source())
    assert found["model"]["accuracy"] > 0.9 and found["random_init"]["accuracy"] == pytest.approx(1 / 3)
    assert found["chance"] == {"accuracy": pytest.approx(1 / 3)}
    assert (
        rows(ZeroShot(branch="b"), Source(), untrained=model(torch.eye(6), torch.eye(6)))["model"]["accuracy"]
        > 0.9
    )


def test_zero_shot_by_prompts():
    """Class i is named by the direction that its samples have in common: unit vector i."""
    source = Source()
    for record in [*source.train, *source.test]:
        record["direction"] = text(np.eye(6)[int(record["label"][-1])] @ MIXED.numpy())
    found = rows(ZeroShot(label="direction", prompts=["{}"]), source)
    assert found["model"]["accuracy"] > 0.9 and found["chance"]["accuracy"] == pytest.approx(1 / 3)
    assert rows(ZeroShot(label="direction", prompts=["minus {}"]), source)["model"]["accuracy"] < 0.3
    # the mean still points their way
    both = rows(ZeroShot(label="direction", prompts=["{}", "{}", "minus {}"]), source)
    assert both["model"] == found["model"]


def test_prompts_need_text():
    source = Source()
    with pytest.raises(
        ValueError, match="prompts need text on branch b, whose modality reads files. Set branch=b"
    ):
        missing(ZeroShot(prompts=["{}"]), source, columns(source, b=Picture()))


def test_classes_that_cannot_be_named_count_as_wrong():
    """b's table lacks class 2: its samples cannot be found, and chance is that of two classes for the
    others."""
    source = Source()
    source.second = {
        split: [r for r in records if r["label"] != "class 2"]
        for split, records in (("train", source.train), ("test", source.test))
    }
    found = rows(ZeroShot(), source)
    assert 0.6 < found["model"]["accuracy"] <= 2 / 3 and found["chance"]["accuracy"] == pytest.approx(1 / 3)


# ---- the real pair, in a run ----


def test_a_run_of_pictures_and_captions(tmp_path, capsys):
    """Real files through cross_modal, the loop, the terminal and the report: captions in a list, one of them
    shared by two pictures."""
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(
            {
                "id": i,
                "picture": f"{i}.png",
                "caption": [f"number {i}", f"picture {i // 2}"],
                "group": ["odd", "even"][i % 2],
                "amount": i / 7,
                "split": "train" if i < 16 else "test",
            }
        )
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    folder = vicjoint.train(
        {
            "name": "captions",
            "source": {"name": "table", "root": str(tmp_path / "table.jsonl")},
            "pair": {"name": "cross_modal", "a": "picture", "b": "caption"},
            "a": {
                "modality": {"name": "image", "size": 16},
                "encoder": {"name": "conv", "width": 4, "dim": 16},
                "expander": [16, 16],
            },
            "b": {
                "modality": {"name": "text", "length": 16},
                "encoder": {"name": "bytes_cnn"},
                "expander": [16, 16],
            },
            "objective": {"name": "vicreg"},
            "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 1}},
            "train": {"steps": 2, "batch_size": 8},
            "data": {"workers": 0},
            "evaluate": {
                "probes": [
                    {"name": "retrieval", "pictures": 4},
                    {"name": "zero_shot", "label": "group", "prompts": ["an {} picture"]},
                    {"name": "linear", "label": "group", "branch": "b", "solver": "ridge"},
                    {"name": "regression", "label": "amount"},
                ]
            },
        },
        [f"out={tmp_path / 'run'}"],
    )
    found = json.loads((folder / "evaluation.json").read_text())
    chance = found["retrieval"]["chance"]
    # 8 pictures and 12 captions, of which 4 are shared by two pictures: two are right for a picture; back,
    # one picture or two
    assert chance["a_to_b_r1"] == pytest.approx(2 / 12) and chance["b_to_a_r1"] == pytest.approx(
        (8 * 1 + 8 * 2) / 16 / 8
    )
    assert {"model", "random_init", "linear_map", "chance"} <= set(found["retrieval"])
    assert (
        found["zero_shot"]["chance"] == {"accuracy": 0.5}
        and "pixels" not in found["linear"]
        and "pixels" in found["regression"]
    )
    assert set(np.load(folder / "pictures.npz")) >= {"retrieval/neighbours", "retrieval/title"}
    report, said = (folder / "report.html").read_text(), capsys.readouterr().out
    assert (
        "retrieved, a" in report
        and "<h4>b to a</h4>" in report
        and "cannot be shown" not in report
        and "b to a" in said
    )


# ---- replicates ----


def wells(doses=1):
    """Twelve things in two wells each, which lie as far on both sides of it as things lie apart."""
    source, rng = Source(test=0), np.random.default_rng(1)
    for i in range(12):
        x, away = rng.normal(size=6).round(2), rng.normal(size=6).round(2) * 3
        for sign in (1, -1):
            record = {"id": f"well {len(source.test)}", "thing": f"{i}", "dose": i % doses}
            source.test.append(record | {"a": text(x), "b": text((x + sign * away) @ MIXED.numpy())})
    return source


def test_the_mean_of_replicates_is_retrieved():
    alone = rows(Retrieval(linear_map=0), wells())
    found = rows(Retrieval(linear_map=0, replicates="thing"), wells())
    for direction in ("a_to_b", "b_to_a"):
        assert found["model"][f"{direction}_r1"] == 1 and alone["model"][f"{direction}_r1"] < 0.9
        assert found["chance"][f"{direction}_r1"] == pytest.approx(1 / 12)
    assert rows(Retrieval(replicates="thing"), wells())["linear_map"]["a_to_b_r1"] == 1


def test_means_contents_and_places_of_replicates():
    z = torch.tensor([[1.0, 2], [3, 4], [10, 20], [0, 1], [7, 7]])
    texts = list("uvwxy")
    items = Items(
        {"model": z}, torch.tensor([0, 1, 2, 4, 5]), torch.zeros(5, dtype=int), texts, [None] * 5, texts,
        texts, [None] * 5,
    )  # fmt: skip
    group = Group(items, torch.tensor([0, 1, 2, 0, 0]), torch.tensor([-1, -1, -1, -1, -1]))
    # record 3 cannot be read; 2 has no name; 4 and 5 are a thing whose only content is that of record 0
    got = averaged(group, ["p", "p", None, "q", "r", "r"])
    assert got.items.rows["model"].tolist() == [[2, 3], [10, 20], [3.5, 4]]
    assert got.items.places.tolist() == [0, 2, 4] and got.items.titles == ["u", "w", "x"]
    assert got.contents.tolist() == [0, 1, 2]
    # one molecule at two doses is two things and one candidate
    same = averaged(
        Group(items, torch.tensor([0, 0, 2, 0, 0]), group.classes), ["p", "p", None, "q", "r", "r"]
    )
    assert same.contents.tolist() == [0, 1, 0]
    classes = torch.tensor([0, 1, -1, 2, 2])
    with pytest.raises(ValueError, match="the records of 'p' do not all have the same key of the pair"):
        averaged(Group(items, group.contents, classes), ["p", "p", None, "q", "r", "r"])
    with pytest.raises(ValueError, match="all test records are replicates of one thing"):
        averaged(group, ["p"] * 6)


def test_a_match_among_controls():
    source = wells()
    found = rows(Retrieval(linear_map=0, replicates="thing", among=3), source)
    assert found["model"]["a_to_b_r1"] == 1
    assert found["chance"]["a_to_b_r1"] == pytest.approx(1 / 4) and found["chance"]["a_to_b_r5"] == 1
    # all are equally similar: the middle of four
    assert found["random_init"]["b_to_a_median_rank"] == found["chance"]["b_to_a_median_rank"] == 2.5
    every = rows(Retrieval(linear_map=0, replicates="thing", among=11), source)
    assert every == rows(Retrieval(linear_map=0, replicates="thing"), source)
    with pytest.raises(
        ValueError, match="among: 12 wrong candidates are asked for, and a query of a_to_b has 11"
    ):
        rows(Retrieval(linear_map=0, replicates="thing", among=12), source)


def test_a_column_of_replicates_that_is_not_there():
    with pytest.raises(ValueError, match="no test record has a value in 'compund'. Correct `replicates`"):
        missing(Retrieval(replicates="compund"), wells(), columns(wells()))
