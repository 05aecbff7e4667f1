"""A step waits for nothing that a GPU computes: its numbers are read once the next step is on its way, and
nothing else is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from vicjoint.batch import Batch, Crops
from vicjoint.recipe import load_recipe
from vicjoint.registry import build
from vicjoint.training import loop, nonfinite, steps
from vicjoint.training.build import Parts, build_parts
from vicjoint.training.log import MetricsLog
from vicjoint.training.saving import Saver
from vicjoint.training.stopping import Stopped, StopSignal
from vicjoint.training.trackers import Trackers
from vicjoint.transforms.compose import Uncoloured

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STEPS = 3


class Unread:
    """Tensors with shapes and no values, which say that they are on a GPU: to read one is an error. What the
    processor knows by itself is as ever."""

    def __init__(self, monkeypatch):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda x: True), raising=False)
        monkeypatch.setattr(FakeTensor, "cpu", lambda x: x.item(), raising=False)

    def of(self, view):
        if isinstance(view, torch.Tensor):
            return self.mode.from_tensor(view.detach())
        if isinstance(view, tuple | list):
            return type(view)(map(self.of, view))
        tensors = {name: self.of(x) for name, x in vars(view).items() if isinstance(x, torch.Tensor)}
        return replace(view, **tensors).to("cpu")  # a modality's own kind of view, now without values

    def module(self, module: nn.Module) -> None:
        for part in module.modules():
            for name, p in part.named_parameters(recurse=False):
                part._parameters[name] = nn.Parameter(self.of(p), p.requires_grad)
            for name, b in part.named_buffers(recurse=False):
                part._buffers[name] = self.of(b)


def fit(parts: Parts, folder: Path, monkeypatch, after=lambda step: None) -> list[dict]:
    """The lines of STEPS steps of the loop, of which none saves or measures health."""
    monkeypatch.setattr(steps, "HEALTH_EVERY", 1000)
    monkeypatch.setattr(Saver, "save", lambda *given: None)
    parts.steps, signal, taken = 1000, StopSignal(), []

    def stepped():
        taken.append(len(taken) + 1)
        after(taken[-1])
        signal.asked = len(taken) == STEPS

    folder.mkdir()
    names, batch_size = loop.branch_names(parts)["pairs"], parts.recipe.train.batch_size
    with (
        Trackers(parts.recipe, folder, 0) as trackers,
        MetricsLog(folder, 0, 1000, batch_size, names, trackers) as log,
        pytest.raises(Stopped),
    ):
        loop.fit(parts, folder, 0, log, signal, stepped, Saver(parts, folder))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def fit_unread(parts: Parts, folder: Path, monkeypatch) -> None:
    """Steps of which nothing can be read but their numbers, one step later."""
    unread, events = Unread(monkeypatch), []

    class Numbers:
        def __init__(self, bad, loss, norm, terms):
            assert all(isinstance(value, FakeTensor) for value in (bad, loss, norm, *terms.values()))
            self.loss, self.norm, self.terms = 2.0, 2.0, dict.fromkeys(terms, 2.0)
            events.append("taken")

        def finite(self):
            events.append("read")
            return True

    to = lambda batch, device: Batch(unread.of(batch.a), unread.of(batch.b), batch.group, batch.samples)
    monkeypatch.setattr(nonfinite, "Numbers", Numbers)
    monkeypatch.setattr(steps, "decided_by_device", lambda parts: True)
    monkeypatch.setattr(Batch, "to", to)
    trained = nn.ModuleList([parts.model, *(task.objective for task in parts.tasks)])
    guards = [part for part in trained.modules() if type(part).__name__ == "Guard"]
    for guard in guards:  # it looks at the first step, and then at every 64th
        guard.calls, guard.answers = 1, dict.fromkeys(("a0", "b0", "a1", "b1", "off"), False)
    for part in trained.modules():
        if getattr(part, "has_memory", False):  # its queue takes its width in the first step
            part.queue = torch.randn(len(part.queue), parts.recipe.branches["a"].expander[-1])
    unread.module(trained)
    parts.optimizer = build("optimizer", parts.recipe.optimizer, trained, parts.recipe.train.batch_size)
    lines = fit(parts, folder, monkeypatch)
    assert events == ["taken", *["taken", "read"] * (STEPS - 1), "read"]
    assert [line["loss"] for line in lines] == [2.0] * STEPS


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": {"name": "vicreg", "statistics": "both"}},
        {"objective": {"name": "barlow_twins"}},
        {"objective": {"name": "infonce", "learnable": True}},
        {"objective": {"name": "infonce", "form": "nt_xent"}},
        {"objective": {"name": "infonce", "form": "moco", "queue": 16}, "b": {"weights": "ema"}},
        {"optim": {"name": "lars", "lr": 0.1, "clip": 1.0, "schedule": {"name": "constant"}}},
        {"optim": {"name": "adamw", "lr": 0.1, "max_change": 0.01, "schedule": {"name": "constant"}}},
        {"train": {"steps": 9, "batch_size": 8, "accumulate": 2}},
        {"train": {"steps": 9, "batch_size": 8, "accumulate": 2, "exact": False}},
    ],
    ids=str,
)
def test_a_step_reads_the_numbers_of_the_one_before_and_nothing_else(changes, tmp_path, monkeypatch):
    parts = build_parts(load_recipe(tiny.recipe(evaluate={"probes": []}, **changes)))
    parts.tasks[0].pair.group_of = lambda record, number: number % 3
    fit_unread(parts, tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(
    "name", ["video_next_frame", "audio_video_text", "molecule_image", "protein_text", "imagenet"]
)
def test_encoders_and_modalities_read_nothing(name, tmp_path, monkeypatch):
    overrides = ["data.workers=0", "evaluate.probes=[]", "train.batch_size=16"]
    parts = build_parts(load_recipe(str(RECIPES / f"{name}.yaml"), overrides))
    fit_unread(parts, tmp_path / "run", monkeypatch)


class Reads(nn.Module):
    """An objective that looks at its loss."""

    def forward(self, z_a, z_b, group):
        loss = (z_a - z_b).square().mean()
        return loss if loss > 0 else -loss, {}


def test_a_step_that_reads_is_seen(tmp_path, monkeypatch):
    parts = build_parts(load_recipe(tiny.recipe(evaluate={"probes": []})))
    parts.tasks[0].objective = Reads()
    with pytest.raises(DataDependentOutputException):
        fit_unread(parts, tmp_path / "run", monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "objective",
    [{"name": "vicreg", "statistics": "both"}, {"name": "barlow_twins"}, {"name": "infonce"}],
    ids=str,
)
def test_a_step_on_a_gpu_waits_for_nothing_but_the_one_before(objective, tmp_path, monkeypatch):
    """From the second step on: the first one chooses kernels, and fills the optimizer's state."""
    parts = build_parts(load_recipe(tiny.recipe(evaluate={"probes": []}, objective=objective)))
    parts.tasks[0].pair.group_of = lambda record, number: number % 3
    try:
        fit(parts, tmp_path / "run", monkeypatch, lambda step: torch.cuda.set_sync_debug_mode("error"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_all_views_of_a_batch_are_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (pinned.append(x.shape), x)[1])
    crops, text = [torch.zeros(2, 3), torch.zeros(2, 4)], (torch.zeros(2, 5), torch.ones(2, 5).bool())
    picture = Uncoloured(torch.zeros(2, 3, 6, 6), np.zeros((2, 1)), [])
    batch = Batch(Crops(crops), (*text, picture), torch.arange(2), ["x@0", "y@0"]).pin_memory()
    assert isinstance(batch.a, Crops) and batch.samples == ["x@0", "y@0"] and len(pinned) == 5
