"""One recipe on 1, 2 and 4 processes is one run: same samples, same losses, one line for the user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# in float64, so that a difference of method is not taken for rounding, which 50 steps make a thousand times
# larger
PARTS = """
import numpy as np
import torch
from torch import nn
from vicjoint.parts import Modality, Pair, Source
from vicjoint.registry import register, register_encoder

torch.set_default_dtype(torch.float64)


@register("source", "wide_rows")
class Rows(Source):
    def __init__(self):
        rows = np.random.default_rng(3).normal(size=(48, 6))
        self.train = [{"id": f"row{i}", "x": row.tolist()} for i, row in enumerate(rows)]
        self.test = self.train[:4]

    def describe(self):
        return f"{len(self.train)} rows of numbers"


@register("modality", "wide_numbers")
class Numbers(Modality):
    def forward(self, raw):
        return raw


@register_encoder("wide_numbers", "normed")
class Normed(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, dim))

    def forward(self, view):
        return self.net(view)


@register("pair", "wide_two")
class Two(Pair):
    def sample(self, record, rng):
        x = np.array([record["x"]])
        return tuple(torch.from_numpy(x + 0.1 * rng.normal(size=x.shape)) for _ in "ab")
"""
RECIPE = {
    "name": "wide",
    "imports": ["wide"],
    "source": {"name": "wide_rows"},
    "branches": {
        name: {"modality": "wide_numbers", "encoder": {"name": "normed"}, "expander": [12, 10]}
        for name in ("a", "b", "c")
    },
    "pairs": [
        {"a": "a", "b": "b", "pair": {"name": "wide_two"}, "objective": {"name": "vicreg"}},
        {"a": "b", "b": "c", "pair": {"name": "wide_two"}, "objective": {"name": "barlow_twins"}},
        {"a": "a", "b": "c", "pair": {"name": "wide_two"}, "objective": {"name": "infonce"}},
    ],
    "train": {"steps": 51, "batch_size": 16, "device": "cpu"},
    "optim": {"name": "adamw", "lr": 0.01, "schedule": {"name": "constant"}},
    "data": {"workers": 0},
}


def train(folder: Path, processes: int, *overrides: str) -> tuple[list[float], str]:
    """(losses, what was printed)"""
    (folder / "wide.py").write_text(PARTS)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    of_several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    out = folder / f"{processes}{''.join(overrides)}"
    done = subprocess.run(
        [sys.executable, *(of_several if processes > 1 else ()), "-m", "vicjoint.run", "recipe.yaml"]
        + [f"out={out}", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [step["loss"] for step in steps if "loss" in step], done.stdout


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_same_losses_on_any_number_of_processes(tmp_path, processes):
    alone, said = train(tmp_path, 1)
    assert len(alone) == 51 and alone[-1] < alone[2]
    losses, said_by_all = train(tmp_path, processes)
    assert losses == pytest.approx(alone, rel=1e-9)
    assert len(said_by_all.splitlines()) == len(said.splitlines()), said_by_all
    assert said_by_all.count("run:") == 1


@pytest.mark.slow
def test_each_process_may_normalise_its_own_rows(tmp_path):
    alone, _ = train(tmp_path, 1)
    apart, _ = train(tmp_path, 2, "train.sync_batch_norm=false")
    assert apart[:3] != pytest.approx(alone[:3], rel=1e-4)
