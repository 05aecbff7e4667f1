"""The three failures, each made on purpose, and the words they get."""

import math

import pytest
import tiny
import torch

from vicjoint.metrics import alignment, branch_health, effective_rank, health, spectrum, verdict
from vicjoint.recipe import load_recipe
from vicjoint.training.log import MetricsLog
from vicjoint.training.trackers import Trackers


def made(kind: str):
    torch.manual_seed(0)
    z = torch.randn(256, 32)
    return {
        "healthy": (z, z + 0.1 * torch.randn(256, 32)),
        "collapsed": (1 + 1e-3 * z, 1 + 1e-3 * z),
        "redundant": (z[:, :1].expand(-1, 32) + 1e-3 * z, z),
        "nearly collapsed": (0.2 * z, 0.2 * z),
        "misaligned": (z, torch.randn(256, 32)),
    }[kind]


@pytest.mark.parametrize("kind", ["healthy", "collapsed", "nearly collapsed", "misaligned"])
def test_verdict_names_the_failure(kind):
    z_a, z_b = made(kind)
    said = verdict(health(z_a, z_b), 256, 32)
    assert said.startswith(kind)
    assert sum(word in said for word in ("healthy", "collapsed", "misaligned")) == 1


def test_one_repeated_dimension_is_found():
    values = branch_health(made("redundant")[0])
    assert values["redundancy"] > 0.99 and values["rank"] < 1.1


def test_spectrum_and_effective_rank():
    z = torch.randn(50, 6, dtype=torch.float64) @ torch.diag(
        torch.tensor([5.0, 4, 3, 2, 1, 0.5], dtype=torch.float64)
    )
    expected = torch.linalg.eigvalsh(torch.cov(z.T)).flip(0)
    assert torch.allclose(spectrum(z), expected, rtol=1e-10)
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([0.75, 0.25])) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )


def test_alignment_is_zero_for_equal_and_one_for_strangers():
    z, other = torch.randn(4000, 8), torch.randn(4000, 8)
    assert alignment(z, z) == 0
    assert alignment(z, other) == pytest.approx(1, abs=0.02)


def test_where_the_scale_means_nothing_small_embeddings_are_not_collapsed():
    z, z_b = made("healthy")
    small, flat = health(0.01 * z, 0.01 * z_b), health(0.01 * z + 1, 0.01 * z_b + 1)
    assert "branch sound gives" in verdict(
        flat, 256, 32, False, ("sound", "words")
    ) and "branch a" not in verdict(small, 256, 32, names=("x", "y"))
    assert verdict(small, 256, 32).startswith("collapsed") and verdict(
        small, 256, 32, hinge=False
    ).startswith("healthy")
    assert verdict(flat, 256, 32, hinge=False).startswith("collapsed: branch a")
    assert branch_health(z)["varying"] == pytest.approx(1, abs=0.05) and branch_health(z + 1)[
        "varying"
    ] == pytest.approx(0.5, abs=0.05)


def test_a_run_that_stays_collapsed_says_so_at_a_tenth_of_its_steps(tmp_path, capsys):
    """Once when the verdict begins, once more early in the run; a healthy pair is not mentioned again."""
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    trackers = Trackers(load_recipe(tiny.recipe()), tmp_path, 0)
    rates = {"lr": 0.1, "seconds": 1.0, "waited": 0.0}
    terms = {"variance": 1.0, "invariance": 0.0}
    with MetricsLog(tmp_path, 0, 1000, 32, {"flat": ("a", "b"), "good": ("a", "b")}, trackers) as log:
        for pair in ("flat", "good"):
            log.step(1, pair, 1.0, terms, rates)
        for step in range(20, 300, 20):
            log.step(step, "flat", 1.0, terms, rates, (z * 1e-3, z * 1e-3))
            log.step(step, "good", 1.0, terms, rates, (z, z))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split(";")[0][:60] for line in said] == [
        "step 20: flat: collapsed: branch a gives nearly the same emb",
        "step 20: good: healthy: embeddings vary (mean std 0.93), agr",
        "step 100: flat: collapsed since step 20: branch a gives near",
    ]
