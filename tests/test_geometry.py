"""How embeddings lie: each number where its value is known in closed form, and the probe on a small run."""

import json
import math

import pytest
import tiny
import torch

import vicjoint
from vicjoint import metrics
from vicjoint.probes import geometry


def columns(n: int, d: int) -> torch.Tensor:
    """[N, D] float64: orthonormal columns, each with mean 0."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(x - x.mean(0)).Q


def test_rankme_counts_equal_singular_values():
    x = columns(40, 6)
    assert geometry.rankme(x) == pytest.approx(6, rel=1e-5)
    # two of them with shares 3/4 and 1/4
    two = columns(40, 2) * torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert geometry.rankme(two) == pytest.approx(math.exp(entropy), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_alpha_req_is_the_power_of_the_eigenvalues(alpha):
    k = torch.arange(1, 9, dtype=torch.float64)
    x = columns(50, 8) * k.pow(-alpha / 2)
    assert geometry.alpha_req(x + 7) == pytest.approx(alpha, abs=1e-9)
    # a dimension of rounding alone changes nothing
    assert geometry.alpha_req(torch.cat([x, 1e-9 * columns(50, 1)], 1)) == pytest.approx(alpha, abs=1e-6)


def test_dead_dimensions_are_those_that_hardly_vary():
    x = columns(30, 4) * torch.tensor([1.0, 0.5, 0.009, 0.0])
    assert metrics.dead_share((x + 3).std(0)) == 0.5
    assert metrics.dead_share(torch.zeros(3)) == 1


def test_uniformity_of_opposite_points_and_of_one():
    opposite = torch.tensor([[2.0, 0.0], [-0.5, 0.0]], dtype=torch.float64)
    assert geometry.uniformity(opposite) == pytest.approx(-8)
    assert geometry.uniformity(opposite[:1].expand(4, 2)) == pytest.approx(0)


def test_uniformity_in_parts_is_the_mean_over_pairs(monkeypatch):
    x = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    squared = torch.pdist(torch.nn.functional.normalize(x)).square()
    expected = float(squared.mul(-2).exp().mean().log())
    monkeypatch.setattr(geometry, "AT_ONCE", 70)
    assert geometry.uniformity(x) == pytest.approx(expected, rel=1e-12)


def test_lidar_weighs_what_tells_samples_apart_by_what_does_not():
    means = columns(60, 3) * math.sqrt(59)  # variance 1 in three directions
    assert geometry.lidar(torch.stack([means, means], 1)) == pytest.approx(3, rel=1e-6)
    # the two views differ in the first direction, by 1 each way: variance 2 within samples
    shift = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    values = torch.tensor([1 / (2 + 1e-4), 1e4, 1e4])
    p = values / values.sum()
    expected = math.exp(-(p * p.log()).sum())
    assert geometry.lidar(torch.stack([means + shift, means - shift], 1)) == pytest.approx(expected, rel=1e-4)


def test_alignment_and_gap_look_at_directions():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert geometry.alignment(a, 5 * a) == pytest.approx(0)
    assert geometry.alignment(a, a.flip(0)) == pytest.approx(2)
    assert geometry.gap(a[:1], -a[:1]) == pytest.approx(2)
    assert geometry.gap(a, a.flip(0)) == pytest.approx(0)


def test_the_probe_measures_both_branches_and_what_lies_between(tmp_path):
    probes = [{"name": "geometry"}, {"name": "geometry", "as": "of_y", "space": "representation"}]
    made = tiny.recipe(
        source={"name": "sample_table"},
        pair={"name": "cross_modal", "a": "caption", "b": "caption"},
        a={"modality": {"name": "text", "length": 16}, "encoder": {"name": "words"}, "expander": [8, 4]},
        b={"weights": "same"},
        train={"steps": 2, "batch_size": 8},
        evaluate={"probes": probes},
    )
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    found = json.loads((folder / "evaluation.json").read_text())
    for rows in (found["geometry"], found["of_y"]):
        assert set(rows) == {"model", "random_init"}
        for row in rows.values():
            # one encoder and equal views: branches agree in all
            assert row["a_rankme"] == row["b_rankme"] and row["alignment"] == row["gap"] == 0
            assert -4 < row["a_uniformity"] < 0 < row["lidar"]
    assert 1 < found["geometry"]["model"]["a_rankme"] <= 4 < found["of_y"]["model"]["a_rankme"]
