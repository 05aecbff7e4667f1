"""One recipe on 1, 2 and 4 processes is one run: same samples, same losses, one line for the user."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchrun import torchrun

from vicjoint import distributed
from vicjoint.recipe import load_recipe
from vicjoint.training.build import build_parts

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


def command(folder: Path, processes: int, *arguments: str) -> str:
    """What `python -m ARGUMENTS`, on so many processes, prints."""
    return torchrun(folder, processes, "-m", *arguments, path=[folder]).stdout


def train(folder: Path, processes: int, *overrides: str) -> tuple[list[float], str]:
    """(losses, what was printed)"""
    (folder / "wide.py").write_text(PARTS)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    out = folder / f"{processes}{''.join(overrides)}"
    said = command(folder, processes, "vicjoint.run", "recipe.yaml", f"out={out}", *overrides)
    steps = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [step["loss"] for step in steps if "loss" in step], said


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


@pytest.mark.parametrize(
    "name, batch_size", [("video_next_frame", 32), ("imagenet", 5), ("audio_video_text", 6)]
)
def test_the_same_samples_in_each_step(name, batch_size, monkeypatch):
    """Of each process the consecutive share of one process's batch, also where 5 or 6 are shared by 4."""
    made = load_recipe(
        str(ROOT / "recipes" / f"{name}.yaml"),
        [f"train.batch_size={batch_size}", "data.workers=0", "evaluate.probes=[]"],
    )
    streams = {}

    def steps(rank: int, processes: int) -> list[list[str]]:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        monkeypatch.setattr(distributed, "is_first", lambda: rank == 0)
        parts = build_parts(made)
        for task in parts.tasks:  # read once: what a sample is does not depend on the processes
            monkeypatch.setattr(task.pair, "sample", quickly(task, streams))
        turns = len(parts.tasks)
        with parts.batches(0, 7 * turns, 9 * turns) as batches:
            return [batch.samples for batch, _ in batches]

    alone = steps(0, 1)
    assert all(len(samples) == batch_size for samples in alone) and alone[0] != alone[-1]
    for processes in (2, 4):
        shares = zip(*(steps(rank, processes) for rank in range(processes)), strict=True)
        assert [sum(of_step, []) for of_step in shares] == alone


def quickly(task, kept: dict):
    """A task's `sample` with the views of its first record for all."""
    real = task.pair.sample

    def sample(record, rng):
        if task.number not in kept:
            kept[task.number] = real(record, rng)
        return kept[task.number]

    return sample


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 150), ("test", 70)):
        for i in range(number):
            colour = "red" if i % 2 else "blue"
            (folder / split / colour).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 160, (12, 12, 3)) + 90 * np.eye(3, dtype=int)[2 * (i % 2)]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / colour / f"{i}.png")
    (folder / "test" / "red" / "broken.png").write_bytes(b"no picture")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_evaluation_is_shared_by_the_processes(processes, tmp_path):
    """Three batches of training pictures and two of test pictures, and crops, on several processes: the
    numbers of one."""
    pictures(tmp_path / "pictures")
    recipe = {
        "name": "pictures",
        "source": {"name": "image_folder", "root": "pictures"},
        "pair": {"name": "augment", "size": 12},
        "a": {
            "modality": "image",
            "encoder": {"name": "pooled_conv", "widths": [8], "strides": [2], "pool": 1},
            "expander": [16],
        },
        "b": {"weights": "same"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
        "train": {"steps": 3, "batch_size": 16},
        "data": {"workers": 0, "max_bad_fraction": 1},
        "evaluate": {
            "probes": [
                {"name": "knn"},
                {"name": "linear", "epochs": 2, "rates": [0.1]},
                {"name": "attentive", "epochs": 2},
                {"name": "geometry"},
            ]
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command(tmp_path, 1, "vicjoint.run", "recipe.yaml", "out=run", "evaluate.last=false")
    said, found = {}, {}
    for n in (1, processes):
        said[n] = command(tmp_path, n, "vicjoint.evaluate", "run", "evaluate.every=1", "--json", f"{n}.json")
        found[n] = json.loads((tmp_path / f"{n}.json").read_text())
    assert said[processes].replace(f"{processes}.json", "1.json") == said[1]
    assert set(found[1]) == {"knn", "linear", "attentive", "geometry"} and found[1] == found[processes]
