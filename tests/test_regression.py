"""Ridge and the probe `regression`: closed form against float64 references, metrics against hand-made cases
and scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from probing import Bare, Listed, bound, measured, missing, model_of, points, refused
from torch import nn

from vicjoint.parts import Modality, Pair, View
from vicjoint.probes import regression, ridge
from vicjoint.probes.regression import Regression, auc, mid_ranks, number_metrics, pearson
from vicjoint.probes.ridge import Ridge, fit_chosen


@pytest.mark.parametrize("n, d", [(40, 6), (12, 30)])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("rows", [8192, 7])
def test_ridge_solves_its_normal_equations(n, d, standardize, rows, monkeypatch):
    monkeypatch.setattr(ridge, "ROWS_AT_ONCE", rows)
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (n, d)) * np.logspace(-1, 1, d)
    y, test = rng.normal(5, 2, (n, 2)), rng.normal(3, 1, (4, d))
    mean, scale = x.mean(0), x.std(0) if standardize else np.ones(d)
    z = (x - mean) / scale
    penalty = 0.3 * np.square(z).sum() / d
    weight = np.linalg.solve(z.T @ z + penalty * np.eye(d), z.T @ (y - y.mean(0)))
    got = Ridge(torch.from_numpy(x), torch.from_numpy(y), standardize).predict(torch.from_numpy(test), 0.3)
    assert np.allclose(got.numpy(), (test - mean) / scale @ weight + y.mean(0), rtol=1e-9)


def test_a_penalty_means_the_same_at_any_scale():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.randn(30, 1)
    small, large = (Ridge(x * s, y, standardize=False).predict(x * s, 0.1) for s in (1, 1000))
    assert torch.allclose(small, large, atol=1e-6)


def test_constant_features_say_nothing():
    torch.manual_seed(0)
    x = torch.randn(30, 2)
    y = x[:, :1] * 2
    rounding = torch.full((30, 1), 100.0)
    rounding[::2] += 8e-6  # one unit in the last place of float32
    assert rounding.std() > 0
    assert torch.allclose(
        Ridge(torch.cat([x, rounding], 1), y).predict(torch.cat([x, rounding + 5], 1), 1e-6),
        y.double(),
        atol=1e-4,
    )
    assert torch.allclose(
        Ridge(torch.ones(30, 2), y).predict(torch.ones(3, 2), 1e-6), y.double().mean().expand(3, 1)
    )


def test_the_penalty_is_chosen_on_what_is_held_out():
    """Noise: the held-out error falls as the penalty grows. No noise: it grows. The larger of two that are
    equal."""
    torch.manual_seed(0)
    x = torch.randn(40, 20)
    held = torch.arange(40) < 10
    error = lambda y: lambda found: float((found - y[held]).square().mean())
    noise, exact = torch.randn(40, 1), x @ torch.randn(20, 1)
    assert (
        fit_chosen(x, noise, held, error(noise))[1] > 0.5
        and fit_chosen(x, exact, held, error(exact))[1] < 1e-4
    )
    assert fit_chosen(x, exact, held, lambda found: 0.0)[1] == max(ridge.PENALTIES)
    fit, penalty = fit_chosen(x, exact, held, error(exact))
    assert torch.equal(fit.predict(x, penalty), Ridge(x, exact).predict(x, penalty)), (
        "refitted on all training samples"
    )


# ---- metrics ----


def test_ranks_share_the_middle():
    assert mid_ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [4, 1, 4, 2, 4]


def test_auc_counts_couples():
    rng = np.random.default_rng(0)
    score, truth = rng.integers(0, 5, 60).astype(float), rng.integers(0, 2, 60)
    couples = [(p > q) + (p == q) / 2 for p in score[truth == 1] for q in score[truth == 0]]
    assert auc(score, truth) == pytest.approx(np.mean(couples), abs=1e-12)
    assert (
        auc(np.array([0.1, 0.2, 0.9]), np.array([0, 0, 1])) == 1
        and auc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5
    )


def test_metrics_by_hand():
    got = number_metrics(np.array([1.0, 2, 3]), np.array([1.0, 2, 6]))
    assert got == {
        "rmse": pytest.approx(3**0.5),
        "r2": pytest.approx(1 - 9 / 14),
        "spearman": pytest.approx(1),
        "pearson": pytest.approx(5 / math.sqrt(2 * 14)),
    }
    mean = number_metrics(np.full(3, 3.0), np.array([1.0, 2, 6]))
    assert mean["r2"] == pytest.approx(0) and mean["spearman"] == mean["pearson"] == 0
    assert pearson(np.array([1.0, 2]), np.array([3.0, 3])) == 0
    assert regression.binary_metrics(np.array([0.2, 0.6, 0.5]), np.array([0, 1, 1])) == {
        "auc": 1.0,
        "accuracy": pytest.approx(2 / 3),
    }


def test_metrics_match_libraries():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 8, 50).astype(float), rng.normal(size=50).round(1)
    got = number_metrics(x, y)
    assert got["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert got["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    truth = (y > 0).astype(int)
    assert auc(x, truth) == pytest.approx(
        stats.mannwhitneyu(x[truth == 1], x[truth == 0]).statistic / (truth.sum() * (1 - truth).sum())
    )


# ---- the probe ----


class Numbers(Modality):
    baseline = "first"

    def simple_features(self, raw):
        return raw[:, :1]


class Kept(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = torch.tensor(keep)

    def forward(self, raw):
        return raw * self.keep


def model(keep):
    branch = Bare(Kept(keep), Numbers())
    return model_of(branch, branch)


class Views(Pair):
    gives = frozenset({"views"})

    def views(self, record, side, rng=None, read=True):
        if record.get("broken"):
            raise ValueError("broken on purpose")
        return [View(torch.tensor([record["x"]], dtype=torch.float32))]


class Source(Listed):
    """y = 2 x0 + 3 x1, as text; one record of each split is broken, one has no value."""

    def __init__(self):
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(90, 2))
        records = [
            {"id": f"r{i}", "x": x.tolist(), "y": str(2 * x[0] + 3 * x[1]), "sign": str(int(x[1] > 0))}
            for i, x in enumerate(xs)
        ]
        self.train, self.test = records[:60], records[60:]
        for part in (self.train, self.test):
            part[3]["broken"], part[4]["y"] = True, ""


def rows(probe, source=None):
    source = source or Source()
    pair = bound(Views(), source)
    assert missing(probe, source, pair) is None
    return measured(probe, model([1.0, 1.0]), model([0.0, 0.0]), source, pair)


def test_numbers_are_regressed_beside_their_baselines(capsys):
    found = rows(Regression(label="y"))
    assert list(found) == ["model", "random_init", "first", "mean"]
    assert (
        found["model"]["rmse"] < 1e-3 and found["model"]["r2"] > 0.999 and found["model"]["spearman"] > 0.99
    )
    assert found["random_init"]["rmse"] == found["mean"]["rmse"] > 3 and found["mean"]["spearman"] == 0
    assert found["mean"]["rmse"] > found["first"]["rmse"] > 1
    said = capsys.readouterr().out
    assert said.count("broken on purpose") == 2 and "r3" in said and "r63" in said


def test_a_column_of_zeros_and_ones():
    found = rows(Regression(label="sign", kind="binary", branch="b"))
    assert found["model"]["auc"] > 0.95 and found["model"]["auc_low"] > 0.85
    assert set(points(found["model"])) == {"auc", "accuracy", "penalty"}
    assert found["random_init"]["auc"] == found["mean"]["auc"] == 0.5 and found["first"]["auc"] < 0.8


def test_the_test_split_chooses_nothing():
    turned = Source()
    for record in turned.test:
        record["y"] = record["y"] and str(-float(record["y"]))
    straight, contradicted = rows(Regression(label="y")), rows(Regression(label="y"), turned)
    assert (
        straight["model"]["penalty"] == contradicted["model"]["penalty"]
        and contradicted["model"]["spearman"] < -0.99
    )


def test_what_cannot_be_regressed_is_said():
    misses = lambda probe, source=None, pair=None: missing(probe, source or Source(), pair or Views())
    assert "a number in 'label' of the records; found 0 and 0." in misses(Regression())
    with pytest.raises(
        ValueError, match="regression: id of r0 is 'r0', expected a number. Name another label"
    ):
        misses(Regression(label="id"))
    with pytest.raises(ValueError, match="expected 0 or 1. Use kind: number."):
        misses(Regression(label="y", kind="binary"))
    ones = Source()
    for record in ones.test:
        record["sign"] = 1
    assert "both 0 and 1 in 'sign'" in misses(Regression(label="sign", kind="binary"), ones)
    with pytest.raises(ValueError, match="'regression' looks at single views, which this pair does not give"):
        misses(Regression(), pair=Pair())
    refused("regression", {"holdout": 0}, "holdout: expected a number above 0.0, got 0")
