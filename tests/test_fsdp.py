"""`train.parallel: fsdp` is the run of ddp: the same losses, checkpoints that go on anywhere, and half of the
memory on each of two processes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrun import torchrun

import vicjoint
from vicjoint.export import main as export
from vicjoint.model import make_expander
from vicjoint.training import checkpoint, loop, parallel, shards
from vicjoint.training.checkpoint import CheckpointError

# in float64; blocks are units whatever their size
PARTS = """
import random
import numpy as np
import torch
from torch import nn
from vicjoint.parts import Modality, Pair, Source
from vicjoint.registry import register, register_encoder
from vicjoint.training import parallel

torch.set_default_dtype(torch.float64)
parallel.LEAST = 1


@register("source", "deep_rows")
class Rows(Source):
    def __init__(self):
        rows = np.random.default_rng(3).normal(size=(40, 6))
        self.train = [{"id": f"row{i}", "x": row.tolist()} for i, row in enumerate(rows)]
        self.test = self.train[:7]

    def describe(self):
        return f"{len(self.train)} rows of numbers"


@register("modality", "deep_numbers")
class Numbers(Modality):
    def forward(self, raw):
        return raw


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.dropout = dropout
        self.inner = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)
        )

    def forward(self, x):
        noisy = self.training and self.dropout
        factor = 1 + 0.1 * (np.random.rand() + random.random()) if noisy else 1.0
        return x + factor * self.inner(x)


@register_encoder("deep_numbers", "deep")
class Deep(nn.Module):
    def __init__(self, dim: int = 8, dropout: float = 0.2):
        super().__init__()
        self.dim, self.gate = dim, nn.Parameter(torch.tensor(1.0))
        self.first = nn.Linear(6, 17)
        self.blocks = nn.ModuleList([Block(17, dropout) for _ in range(2)])
        self.last = nn.Linear(17, dim)

    def forward(self, view):
        x = self.first(view)
        for block in self.blocks:
            x = block(x)
        return self.last(self.gate * x)


@register("pair", "deep_two")
class Two(Pair):
    gives = frozenset({"views"})

    def sample(self, record, rng):
        x = np.array([record["x"]])
        return tuple(torch.from_numpy(x + 0.1 * rng.normal(size=x.shape)) for _ in "ab")
"""
BRANCH = {"modality": "deep_numbers", "encoder": {"name": "deep"}, "expander": [14, 10]}
RECIPE = {
    "name": "deep",
    "imports": ["deep_parts"],
    "source": {"name": "deep_rows"},
    "pair": {"name": "deep_two"},
    "a": BRANCH,
    "b": BRANCH,
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-2, "schedule": {"name": "constant"}, "clip": 1.0},
    "train": {"steps": 8, "batch_size": 8, "device": "cpu"},
    "data": {"workers": 0},
    "checkpoint": {"every": 4, "keep": 9},
    "evaluate": {"explorer": 0},
}
SEVERAL = {
    "branches": {name: BRANCH for name in ("one", "two", "three")},
    "pairs": [{"a": a, "b": b, "pair": {"name": "deep_two"}} for a, b in (("one", "two"), ("one", "three"))],
    "objective": {"name": "infonce", "learnable": True},
    "optim": {**RECIPE["optim"], "max_change": 0.01},
}
LARS = {"name": "lars", "lr": 0.5, "schedule": {"name": "constant"}, "clip": 2.0}
STILL = BRANCH | {"encoder": {"name": "deep", "dropout": 0.0}}  # the same on any number of processes
PLAIN = RECIPE | {"a": STILL, "b": STILL}
RECIPES = {
    "plain": PLAIN,
    "random numbers": RECIPE,
    "ema, predictor, parts, lars": RECIPE
    | {"b": {"weights": "ema", "momentum": 0.9}, "predictor": {"name": "mlp", "hidden": 8}, "optim": LARS}
    | {"train": {**RECIPE["train"], "accumulate": 2}},
    "several": {key: value for key, value in RECIPE.items() if key not in "ab" and key != "pair"} | SEVERAL,
    "same weights, a latent, parts by themselves": RECIPE
    | {"b": {"weights": "same"}, "predictor": {"name": "mlp", "hidden": 8, "latents": 3}}
    | {"train": {**RECIPE["train"], "accumulate": 2, "exact": False}, "objective": {"name": "barlow_twins"}},
}
SEPARATE = """
import json, shutil, time
from pathlib import Path
import torch
import vicjoint
from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.training import checkpoint, loop, parallel, shards

loop.write_report = lambda folder: folder / "report.html"
distributed.start()
stop, distributed.stop = distributed.stop, lambda: None  # many runs of the same processes
RANK, FSDP = distributed.rank(), "train.parallel=fsdp"
torch.manual_seed(1)


def train(recipe, name, *changes):
    return vicjoint.train(recipe, [f"out={name}", *changes])
"""
COMPARE = (
    SEPARATE
    + """
for name, recipe in json.loads(Path("recipes.json").read_text()).items():
    train(recipe, f"{name} ddp")
    again = "random" in name or "parts" in name
    train(recipe, f"{name} fsdp", FSDP, *["train.checkpoint_activations=true"] * again)
recipe = json.loads(Path("recipes.json").read_text())["plain"]

# goes on from step 4: the same number of processes
if RANK == 0:
    shutil.copytree("plain fsdp", "cut")
    shutil.rmtree("cut/checkpoints/step_00000008")
distributed.barrier()
train(recipe, "cut", FSDP)

# a share of everything, on each process
parts = loop.build_parts(loop.load_recipe(recipe, [FSDP]))
everything = 8 * sum(p.numel() for p in parts.model.parameters())
parallel.shard(parts)
forward = parallel.wrap(parts)
batch, _ = next(parts.batches_of(parts.tasks[0], 1))
backward(forward, parts.tasks[0].objective, batch, parts.recipe.train)[0]
held = {}
for p in parts.model.parameters():
    own = {"weights": p, "gradients": p.grad}
    parts.optimizer.step()
    own |= {"optimizer": parts.optimizer.state[p]["exp_avg"]}
    for what, x in own.items():
        x = x.to_local() if hasattr(x, "to_local") else x
        held[what] = held.get(what, 0) + x.numel() * x.element_size()
Path(f"held{RANK}.json").write_text(json.dumps({k: v / everything for k, v in held.items()}))

# written while steps are taken; one that cannot be written is told by every process
steps, original, slow = [], shards.finished, {"left": 1}
def later(writing):
    original(writing)
    while slow["left"] and len(Path("slow/metrics.jsonl").read_text().splitlines()) < 6:
        time.sleep(0.01)
    slow["left"] = 0
    steps.append(len(Path("slow/metrics.jsonl").read_text().splitlines()))
shards.finished = later
train(recipe, "slow", FSDP)
assert steps[0] >= 6, steps
shards.finished = original
def full(folder):
    if RANK == 1 and "step_00000004" in str(folder):
        raise OSError(28, "No space left on device")
    return files(folder)
files, shards.own_files = shards.own_files, full
try:
    train(recipe, "full", FSDP)
    raise SystemExit("nothing was said")
except checkpoint.CheckpointError as error:
    assert "step_00000004 cannot be written: [Errno 28] No space left" in str(error), error
    assert "There is none before it" in str(error), error
distributed.barrier()
assert not list(Path("full/checkpoints").iterdir())
stop()
"""
)
GO_ON = SEPARATE + 'train(json.loads(Path("recipes.json").read_text())["plain"], "on 4", FSDP)\nstop()\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "deep_parts.py").write_text(PARTS)
    (folder / "recipes.json").write_text(json.dumps(RECIPES))
    (folder / "compare.py").write_text(COMPARE)
    (folder / "go_on.py").write_text(GO_ON)
    torchrun(folder, 2, "compare.py", path=[folder])
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    """This process alone, with the runs of two."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(parallel, "LEAST", parallel.LEAST)
    before = torch.get_default_dtype()
    yield trained
    torch.set_default_dtype(before)


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


def end(run: Path) -> dict:
    return checkpoint.load(run / "checkpoints" / "step_00000008")


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_run_as_ddp(trained, name):
    """Where there are random numbers or parts, activations are computed again, too."""
    expected, got = losses(trained / f"{name} ddp"), losses(trained / f"{name} fsdp")
    assert len(expected) == 8 and len(set(expected)) == 8
    assert got == pytest.approx(expected, rel=1e-9)
    one, other = end(trained / f"{name} ddp"), end(trained / f"{name} fsdp")
    assert one["model"].keys() == other["model"].keys()
    for key, x in one["model"].items():
        assert x.dtype == other["model"][key].dtype and torch.allclose(x, other["model"][key], atol=1e-6), key
    assert (trained / f"{name} fsdp/checkpoints/step_00000008/shards").is_dir()


def test_each_process_holds_half(trained):
    for rank in (0, 1):
        held = json.loads((trained / f"held{rank}.json").read_text())
        assert held.keys() == {"weights", "gradients", "optimizer"}
        assert all(0.42 < share < 0.58 for share in held.values()), held  # 17 rows are 9 and 8


def test_goes_on_bit_by_bit(trained):
    assert losses(trained / "cut") == losses(trained / "plain fsdp")
    one, other = end(trained / "plain fsdp"), end(trained / "cut")
    assert all(torch.equal(x, other["model"][name]) for name, x in one["model"].items())
    states = [state["optimizer"]["state"] for state in (one, other)]
    assert all(torch.equal(x["exp_avg"], states[1][n]["exp_avg"]) for n, x in states[0].items())
    # and as ddp on another number
    assert not list((trained / "cut/checkpoints").glob("*.tmp"))


def cut(folder: Path, name: str, of: str) -> Path:
    """A copy of a run that was stopped after step 4."""
    shutil.copytree(folder / of, folder / name)
    shutil.rmtree(folder / name / "checkpoints/step_00000008")
    return folder / name


def test_goes_on_alone(here, capsys):
    expected = losses(here / "plain fsdp")
    run = cut(here, "on 1", "plain fsdp")
    vicjoint.train(PLAIN, [f"out={run}"])
    assert "going on from step 4 of 8" in capsys.readouterr().out
    assert losses(run)[:4] == expected[:4] and losses(run) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_what_was_ddp_goes_on_sharded_on_four(trained):
    expected, here = losses(trained / "plain ddp"), trained
    cut(here, "on 4", "plain ddp")
    torchrun(here, 4, "go_on.py", path=[here])
    assert losses(here / "on 4") == pytest.approx(expected, rel=1e-9)
    assert (here / "on 4/checkpoints/step_00000008/shards").is_dir()


def test_exports_are_those_of_a_whole_checkpoint(here):
    for of, name in (("plain fsdp", "sharded"), ("plain ddp", "whole")):
        shutil.copytree(here / of, here / name)
    path = here / "whole/checkpoints"
    shutil.rmtree(path)
    checkpoint.save(path, 8, end(here / "sharded"), keep=1)
    for name in ("sharded", "whole"):
        assert export([str(here / name), "--to", str(here / f"{name} export")]) == 0
    one, other = (here / f"{name} export/model.safetensors" for name in ("sharded", "whole"))
    assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 1000


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, said",
    [(flip, "is damaged"), (os.unlink, "FileNotFoundError"), (lambda p: p.write_bytes(b""), "0 bytes")],
)
def test_a_damaged_share_is_named_and_the_checkpoint_before_is_taken(trained, tmp_path, harm, said, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained / "plain fsdp/checkpoints", folder)
    path = sorted((folder / "step_00000008/shards").iterdir())[1]
    harm(path)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(folder / "step_00000008")
    assert checkpoint.load_last(folder)["step"] == 4
    assert f"checkpoint {folder}/step_00000008 cannot be used" in capsys.readouterr().out


# ---- parts of a model ----


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.dim = 4
        wide = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4)))
        self.stages = nn.Sequential(nn.Linear(4, 4), wide, nn.ModuleList([nn.Sequential(nn.Linear(4, 4))]))
        self.words = nn.Linear(4, 4)


def test_blocks_are_the_parts_of_lists_and_sequences():
    model = Tied()
    found = parallel.blocks(model)
    assert found == [model.stages[1][0], model.stages[1][1], model.stages[2][0]]
    assert parallel.blocks(make_expander(4, [4, 4])) == []


def test_a_weight_that_is_used_twice_is_left_to_what_holds_both(monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 1)
    encoder = Tied()
    branch = nn.Module()
    branch.encoder, branch.expander = encoder, make_expander(4, [4, 4])
    branch.expanders = lambda: [branch.expander]
    model = nn.Module()
    model.branches, model.predictor, model.prior = nn.ModuleDict({"one": branch}), None, None
    free = parallel.units(model)
    assert free == [*parallel.blocks(encoder), encoder, branch.expander]
    encoder.stages[1][0][0].weight = encoder.words.weight
    assert parallel.units(model) == free[1:]
    branch.expander[0].weight = encoder.words.weight
    assert parallel.units(model) == free[1:3]


def test_computed_again_changes_no_bit_and_counts_once():
    def run(module):
        torch.manual_seed(0)
        x = torch.randn(6, 5, requires_grad=True)
        module(x).square().sum().backward()
        return [x.grad, *(p.grad for p in module.parameters()), *module.buffers()]

    nets = []
    for _ in range(2):
        torch.manual_seed(1)
        nets.append(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)))
    nets[1].forward = parallel.computed_again(nets[1])
    for one, other in zip(*map(run, nets)):
        assert torch.equal(one, other)
    assert int(nets[1][1].num_batches_tracked) == 1
    assert shards.FOLDER == "shards"
