"""Run folders and exports that version 0.1.0 wrote (tests/old_runs, by tests/tiny.py of that time): they
load, evaluate and go on."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

import vicjoint
from vicjoint import evaluate
from vicjoint.recipe import load_recipe
from vicjoint.training import checkpoint

OLD = Path(__file__).parent / "old_runs"
RUNS = {"one_pair": ["a", "b"], "three_pairs": ["video", "audio", "text"]}
STOPPED = 8  # of 14 steps: the checkpoint that is there


@pytest.fixture(params=RUNS)
def run(request, tmp_path) -> Path:
    """A copy of a run folder."""
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


@pytest.fixture(autouse=True)
def one_thread():
    """As they were recorded: a few steps of AdamW make much of the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in tiny.metrics(folder)]


def test_it_goes_on_and_ends_as_it_did(run, capsys):
    before, results = losses(run), json.loads((run / "evaluation.json").read_text())
    vicjoint.train(load_recipe(run / "recipe.yaml", imports=["tiny"]).dump(), [f"out={run}"])
    assert f"going on from step {STOPPED} of 14" in capsys.readouterr().out
    assert losses(run) == pytest.approx(before, rel=1e-3) and len(before) == 14
    after = json.loads((run / "evaluation.json").read_text())
    for probe, rows in results.items():
        assert after[probe]["model"]["distance"] == pytest.approx(rows["model"]["distance"], rel=1e-2)
    # the export was made of the finished run
    view = torch.linspace(-1, 1, 18).view(3, 6)
    for branch in RUNS[run.name]:
        trained, exported = (
            vicjoint.load_encoder(folder, branch, imports=["tiny"])
            for folder in (run, OLD / f"{run.name}_export")
        )
        torch.testing.assert_close(trained(view), exported(view), rtol=0.05, atol=0.02)


def test_its_encoders_load(run):
    for branch in RUNS[run.name]:
        encoder = vicjoint.load_encoder(run, branch, step=STOPPED, imports=["tiny"])
        state = checkpoint.load(checkpoint.path_of(run / "checkpoints", STOPPED))["model"]
        old = f"{'' if run.name == 'one_pair' else 'branches.'}{branch}.encoder.net.0.weight"
        assert torch.equal(encoder.encoder.net[0].weight, state[old])


def test_it_is_evaluated(run):
    (run / "evaluation.json").unlink()
    assert evaluate.main([str(run), "--allow-imports"]) == 0
    assert all("model" in rows for rows in json.loads((run / "evaluation.json").read_text()).values())
