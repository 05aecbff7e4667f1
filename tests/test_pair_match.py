"""Couples that belong together against couples that do not: the probe `pair_match` and retrieval among pairs
only, where the answer is known."""

import math

import numpy as np
import pytest
import torch
from probing import Bare, Listed, bound, measured, missing, model_of, refused
from torch import nn

from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Modality, Pair, View
from vicjoint.probes.labels import evenly, zero_or_one
from vicjoint.probes.pair_match import PairMatch, frequency, similarity
from vicjoint.probes.retrieval import Retrieval

TURN = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q


class Vector(Modality):
    reads, baseline = "text", "numbers"

    def read(self, value, rng=None, window=None):
        return torch.tensor([[float(v) for v in value.split()]])

    def simple_features(self, raw):
        return raw


class Turned(nn.Module):
    def __init__(self, weight, shift=0.0):
        super().__init__()
        self.weight, self.shift = weight, shift

    def forward(self, view):
        return view @ self.weight + self.shift


def model(weight, shift=0.0):
    return model_of(*(Bare(Turned(w, shift), Vector()) for w in (weight, torch.eye(6))))


class Rows(Pair):
    gives = frozenset({"views", "both", "rows"})

    def views(self, record, side, rng=None, read=True):
        if read and record.get("broken") == side:
            raise ValueError("broken on purpose")
        return [View(Vector().read(record[side]) if read else None, record[side])]


class Source(Listed):
    """b is a turned a where label is 1, and another row's where it is 0. Training rows are pairs, and some
    that are not."""

    def __init__(self, train=60, test=40, wrong=0, noise=0.0):
        self.noise = noise
        rng, of_wrong = np.random.default_rng(1), np.random.default_rng(2)
        self.train = [self._row(rng, f"train{i}", 1) for i in range(train)] + [
            self._row(of_wrong, f"wrong{i}", 0) for i in range(wrong)
        ]
        self.test = [self._row(rng, f"test{i}", 1 - i % 2) for i in range(test)]

    def _row(self, rng, name, right):
        x = rng.normal(size=6)
        b = (x if right else rng.normal(size=6)) @ TURN.numpy() + rng.normal(size=6) * self.noise
        return {"id": name, "a": text(x), "b": text(b), "label": str(right)}


def text(x):
    return " ".join(f"{v:.6f}" for v in x)


def rows(probe, source, trained=None):
    pair = bound(Rows(), source)
    assert missing(probe, source, pair) is None
    return measured(probe, trained or model(TURN), model(torch.eye(6)), source, pair)


def test_a_model_that_knows_the_turn_tells_them_apart():
    found = rows(PairMatch(), Source())
    assert (
        found["model"]["auc"] > 0.99
        and found["linear_map"]["auc"] > 0.99
        and 0.2 < found["random_init"]["auc"] < 0.8
    )
    assert found["chance"]["auc"] == 0.5 == found["frequency"]["auc"], "no test cell occurs in training"


def test_the_auc_is_that_of_cosines_from_the_mean():
    """Against a count of couples in numpy, for a model that is neither perfect nor blind; a shift of both
    branches changes nothing."""
    source, weight = Source(), TURN + torch.eye(6)
    a, b = (np.array([[float(v) for v in r[side].split()] for r in source.test]) for side in "ab")
    a = a @ weight.double().numpy()
    mean = np.concatenate([a, b]).mean(0)
    cosine = (
        ((a - mean) * (b - mean)).sum(1) / np.linalg.norm(a - mean, axis=1) / np.linalg.norm(b - mean, axis=1)
    )
    ones = np.array([r["label"] == "1" for r in source.test])
    expected = (cosine[ones][:, None] > cosine[~ones]).mean()
    assert 0.6 < expected < 0.98
    for shift in (0.0, 7.0):
        assert rows(PairMatch(), source, model(weight, shift))["model"]["auc"] == pytest.approx(
            expected, abs=1e-6
        )


def test_the_linear_map_learns_from_pairs_alone():
    """Two wrong training rows for every right one change nothing, and it can be left out."""
    auc = rows(PairMatch(), Source(train=20, noise=1.0))["linear_map"]["auc"]
    assert (
        0.6 < auc < 0.95
        and rows(PairMatch(), Source(train=20, wrong=40, noise=1.0))["linear_map"]["auc"] == auc
    )
    assert "linear_map" not in rows(PairMatch(linear_map=0), Source())


def test_rows_that_one_branch_cannot_read_are_left_out(capsys):
    source, fewer = Source(), Source()
    source.test[3]["broken"], source.test[8]["broken"] = "a", "b"
    fewer.test = [r for i, r in enumerate(fewer.test) if i not in (3, 8)]
    weight = TURN + torch.eye(6)
    assert rows(PairMatch(), source, model(weight)) == rows(PairMatch(), fewer, model(weight))
    assert "test3: broken on purpose" in capsys.readouterr().out
    for r in source.test:
        r["broken"] = None if r["label"] == "1" else "b"
    with pytest.raises(ValueError, match="can read do not have both 0 and 1 in 'label'"):
        rows(PairMatch(), source)


def test_rows_without_a_label_are_left_out():
    source, fewer = Source(), Source()
    source.test[5]["label"] = " "
    fewer.test.pop(5)
    assert rows(PairMatch(), source) == rows(PairMatch(), fewer)


def test_frequency_counts_cells_of_training_pairs():
    known = [{"a": "x", "b": "p"}, {"a": "x", "b": "q"}, {"a": "y", "b": "q"}]
    got = frequency(Rows(), known, [{"a": "x", "b": "q"}, {"a": "y", "b": "p"}, {"a": "new", "b": "r"}])
    assert got.tolist() == pytest.approx([2 * math.log(3), 2 * math.log(2), 0])
    source = Source()
    source.train += [dict(r, id=f"again {r['id']}") for r in source.test if r["label"] == "1"]
    assert rows(PairMatch(), source)["frequency"]["auc"] == 1


def test_similarity_of_equal_and_opposite():
    a = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert torch.allclose(similarity(a, a), torch.ones(2)) and torch.allclose(
        similarity(a, a.flip(0)), -torch.ones(2)
    )


def test_what_cannot_be_probed():
    source = Source()
    for r in source.test:
        r["label"] = 1
    assert (
        missing(PairMatch(), source, Rows())
        == "it needs test rows with 1 and with 0 in 'label'; found 40 and 0."
    )
    source.test[2]["label"] = "maybe"
    with pytest.raises(ValueError, match="pair_match: label of test2 is 'maybe', expected 0 or 1"):
        missing(PairMatch(), source, Rows())
    keyed = CrossModal("a", "b", key="label")
    for pair in (Pair(), keyed):
        with pytest.raises(ValueError, match="'pair_match' compares the two cells of a row"):
            missing(PairMatch(), Source(), pair)
    refused("pair_match", {"linear_map": -1}, "linear_map: expected a number at least 0, got -1")


def test_zeros_and_ones():
    for value, expected in [
        ("0", 0),
        ("1.0", 1),
        ("True", 1),
        (False, 0),
        (1, 1),
        (1.0, 1),
        (" ", None),
        (None, None),
    ]:
        assert zero_or_one({"id": "r", "x": value}, "x", "p") == expected
    assert zero_or_one({"id": "r"}, "x", "p") is None
    with pytest.raises(ValueError, match="p: x of r is 2, expected 0 or 1"):
        zero_or_one({"id": "r", "x": 2}, "x", "p")


def test_places_are_spread_evenly():
    assert evenly(7, None).tolist() == list(range(7)) == evenly(7, 9).tolist()
    assert evenly(9, 3).tolist() == [0, 4, 8] and evenly(0, 5).tolist() == []


def test_retrieval_among_pairs_only():
    """Wrong couples are neither queries, nor candidates, nor training pairs of the linear map."""
    source, pairs = Source(wrong=120), Source()
    pairs.test = [r for r in pairs.test if r["label"] == "1"]
    only, all_of_them = rows(Retrieval(only="label"), source), rows(Retrieval(), source)
    assert (
        only == rows(Retrieval(), pairs)
        and only["model"]["a_to_b_r1"] == 1 == only["linear_map"]["a_to_b_r1"]
    )
    assert all_of_them["model"]["a_to_b_r1"] < 0.7 and only["chance"]["a_to_b_r1"] == pytest.approx(1 / 20)
    with pytest.raises(ValueError, match="no test record has 1 in 'binds'. Correct `only`"):
        missing(Retrieval(only="binds"), source, Rows())
