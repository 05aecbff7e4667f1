"""Steps that the device decides on and the processor looks at one step later: the same run, bit by bit, as
where each is looked at before its update."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from torchrun import torchrun

import vicjoint
from vicjoint import register, register_encoder
from vicjoint.optim import LimitedAdamW, parameter_groups
from vicjoint.parts import Objective
from vicjoint.recipe import load_recipe
from vicjoint.training import checkpoint, loop, nonfinite, steps
from vicjoint.training.build import build_parts
from vicjoint.training.loop import TrainingError
from vicjoint.training.resuming import restore
from vicjoint.training.saving import Saver

ROOT = Path(__file__).resolve().parents[1]


@register("optimizer", "one_kernel")
def one_kernel(model, global_batch, /, lr: float, max_change: float | None = None):
    """AdamW as it is on GPUs, where it can be held."""
    groups = parameter_groups(model, 0.05)
    if max_change is None:
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return LimitedAdamW(groups, max_change, lr=lr, fused=True)


@register_encoder("tiny_numbers", "breaks")
class Breaks(tiny.Noisy):
    """In training, NaN for one batch in three, which its numbers choose."""

    def forward(self, view):
        y = super().forward(view)
        chosen = (view[0].abs().sum() * 1e4).long() % 3 == 0
        return torch.where(chosen, torch.full_like(y, torch.nan), y) if self.training else y


@register("objective", "counts")
class Counts(Objective):
    """A loss that depends on how often it was asked for."""

    terms = ("distance",)

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z_a, z_b, group=None):
        self.calls += 1
        distance = (z_a - z_b).square().mean()
        return distance * (1 + self.calls), {"distance": distance.detach()}

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


OPTIM = {"name": "one_kernel", "lr": 1e-2, "schedule": {"name": "cosine", "warmup_steps": 2}, "clip": 5.0}
BREAKS = tiny.branch(encoder={"name": "breaks"})
TRAIN = {"steps": 24, "batch_size": 8, "nonfinite": "skip", "nonfinite_limit": 20}
PAIRS = {
    "branches": {"one": tiny.branch(), "two": BREAKS, "three": tiny.branch()},
    "pairs": [
        {"a": a, "b": b, "pair": {"name": "tiny_views"}} for a, b in (("one", "two"), ("one", "three"))
    ],
    "evaluate": {},
    **dict.fromkeys(("a", "b", "pair")),
}
KINDS = {
    "vicreg": {},
    "a limit": {"optim": {**OPTIM, "max_change": 0.01}},
    "lars": {"optim": {**OPTIM, "name": "lars", "lr": 3.0}},
    "a queue and an ema branch": {
        "objective": {"name": "infonce", "form": "moco", "queue": 16},
        "a": BREAKS,
        "b": {"weights": "ema"},
    },
    "a latent": {"predictor": {"name": "mlp", "hidden": 8, "latents": 3}},
    "in parts": {"train": {**TRAIN, "accumulate": 2}},
    "what an objective counts": {"objective": {"name": "counts"}},
    "two tasks": PAIRS,
}


def run(folder: Path, monkeypatch, by_device: bool, **changes) -> Path:
    monkeypatch.setattr(steps, "decided_by_device", lambda parts: by_device)
    monkeypatch.setattr(steps, "HEALTH_EVERY", 5)
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    vicjoint.train(made(**changes), [f"out={folder}"])
    return folder


def made(**changes) -> dict:
    found = tiny.recipe(**{"b": BREAKS, "optim": OPTIM, "train": TRAIN, **changes})
    return {key: value for key, value in found.items() if value is not None}


def compare(a: Path, b: Path) -> list[dict]:
    """The lines of the first run, which are those of the second but for times, as is all that it left."""
    found = []
    for folder in (a, b):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            for name in ("seconds", "waited", "samples_per_second"):
                line.pop(name, None)
            line["skipped"] = line.get("skipped", "").replace(folder.name, "")
        files = {path.name: path.read_text() for path in folder.glob("nonfinite_*.json")}
        files |= {path.name: path.read_text() for path in folder.glob("evaluation.jsonl")}
        kept = checkpoint.steps(folder / "checkpoints")
        states = [checkpoint.load(checkpoint.path_of(folder / "checkpoints", step)) for step in kept]
        found.append((lines, files, kept, states))
    assert found[0][:3] == found[1][:3]
    assert same(found[0][3], found[1][3])
    return found[0][0]


def same(a, b) -> bool:
    """A checkpoint's rate is that of the last step that was taken, in vain or not: each step sets its own."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in ("recipe", "lr"))
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


@pytest.mark.parametrize("kind", KINDS)
def test_steps_left_out_by_the_device_are_as_if_not_taken(kind, tmp_path, monkeypatch):
    at_once, later = (
        run(tmp_path / name, monkeypatch, name == "later", **KINDS[kind]) for name in ("at_once", "later")
    )
    lines = compare(at_once, later)
    assert [line["step"] for line in lines] == list(range(1, 25))
    left_out = [line["step"] for line in lines if line["skipped"]]
    assert 1 < len(left_out) < 20
    if kind == "vicreg":
        assert any(step + 1 in left_out for step in left_out)  # two in a row


def test_a_run_that_stops_leaves_the_weights_before_its_step(tmp_path, monkeypatch):
    train = {**TRAIN, "nonfinite": "stop"}
    for name in ("at_once", "later"):
        with pytest.raises(TrainingError, match=r"step \d+: .* branch b: the encoder's output is the first"):
            run(tmp_path / name, monkeypatch, name == "later", train=train)
    lines = compare(tmp_path / "at_once", tmp_path / "later")
    step = len(lines) + 1
    assert step > 2 and checkpoint.steps(tmp_path / "later/checkpoints")[-1] == step - 1
    nonfinite.replay(load_recipe(made(train=train), [f"out={tmp_path / 'later'}"]), step)
    replayed, written = (
        json.loads((tmp_path / f"later/{name}_{step}.json").read_text()) for name in ("replay", "nonfinite")
    )
    assert replayed["same_samples"] and replayed["branches"] == written["branches"]


def test_the_limit_ends_a_run_before_the_step_that_was_one_too_many(tmp_path, monkeypatch):
    for name in ("at_once", "later"):
        with pytest.raises(
            TrainingError, match="3 steps were left out, train.nonfinite_limit=2 allows no more"
        ):
            run(tmp_path / name, monkeypatch, name == "later", train={**TRAIN, "nonfinite_limit": 2})
    compare(tmp_path / "at_once", tmp_path / "later")


def test_a_step_is_written_down_once_the_next_one_is_on_its_way(tmp_path, monkeypatch):
    """But before an evaluation and a checkpoint."""
    events = []
    for owner, name in (
        (steps, "backward"),
        (nonfinite.Numbers, "finite"),
        (loop, "evaluate"),
        (Saver, "save"),
    ):
        call = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *given, name=name, call=call: (events.append(name), call(*given))[1]
        )
    run(tmp_path / "run", monkeypatch, True, b=tiny.branch(), train={**TRAIN, "steps": 6})
    take, look = "backward", "finite"
    assert events == [
        *(take, take, look, take, look, look, "evaluate"),
        *(take, look, "save", take, take, look, look, "save", "evaluate"),
    ]


def test_a_run_of_another_machine_goes_on_with_the_kernels_of_this_one():
    """Those that can be held, too, and the other way round."""
    recipes = [load_recipe(made(optim={**OPTIM, "name": name})) for name in ("adamw", "one_kernel")]
    for there, here in (recipes, recipes[::-1]):
        parts, other = build_parts(there), build_parts(here)
        steps.Steps(parts, parts.model, Path("."), 0, None, None).take(0, *first_batch(parts), 0.0, 0.0)
        state = {"model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict()}
        fused = other.optimizer.param_groups[0]["fused"]
        restore(other, state | {"objective": parts.tasks[0].objective.state_dict(), "further_objectives": []})
        assert other.optimizer.param_groups[0]["fused"] is fused
        assert all(int(values["step"]) == 1 for values in other.optimizer.state.values())


def first_batch(parts):
    return parts.tasks[0], next(parts.batches_of(parts.tasks[0], 1))[0]


TWO = """
import sys
sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests")
import test_steps, vicjoint
from vicjoint import distributed
from vicjoint.training import loop, steps
distributed.start()
stop, distributed.stop = distributed.stop, lambda: None  # several runs of the same processes
loop.write_report = lambda folder: folder / "report.html"
for kind, parallel in (("lars", "ddp"), ("lars", "fsdp"), ("a queue and an ema branch", "fsdp")):
    for name in ("at_once", "later"):
        steps.decided_by_device = lambda parts: name == "later"
        overrides = [f"out={kind} {parallel}/{name}", f"train.parallel={parallel}", "train.steps=12"]
        vicjoint.train(test_steps.made(**test_steps.KINDS[kind]), overrides)
stop()
"""


@pytest.mark.slow
def test_two_processes_leave_out_the_same_steps_later(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    torchrun(tmp_path, 2, "two.py", str(ROOT))
    for folder in ("lars ddp", "lars fsdp", "a queue and an ema branch fsdp"):
        lines = compare(tmp_path / folder / "at_once", tmp_path / folder / "later")
        assert 1 < sum(bool(line["skipped"]) for line in lines) < 12
