"""Losses and gradients that are not finite: stop or skip, what is written down, and playing the step
again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchrun import torchrun

import vicjoint
from vicjoint import metrics, run
from vicjoint.training import nonfinite
from vicjoint.training.loop import TrainingError

ROOT = Path(__file__).resolve().parents[1]
BAD_STEP = 3  # from 1


@vicjoint.register_encoder("image", "breaks_on_white")
class BreaksOnWhite(torch.nn.Module):
    """Gives `value` for a view that is all white. where: in the representation or, by a square root of 0, in
    the gradient alone."""

    def __init__(self, value: float = float("inf"), where: str = "forward"):
        super().__init__()
        self.dim, self.value, self.where = 8, value, where
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2),
            torch.nn.BatchNorm2d(8),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )

    def forward(self, view):
        y = self.net(view)
        white = (view.flatten(1).amin(1) > 2.2).float()[:, None]
        if self.where == "gradient":
            # 0, with a gradient of 0 / 0
            return y + (y * (1 - white)).pow(2).sum(1, keepdim=True).sqrt() * white
        return torch.where(white.bool(), torch.full_like(y, self.value), y)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twenty pictures; one is white."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(20):
        pixels = (
            np.full((16, 16, 3), 255, np.uint8)
            if i == 5
            else rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        )
        Image.fromarray(pixels).save(root / ("white.png" if i == 5 else f"{i}.png"))
    return root


def recipe(root: Path, **changes) -> dict:
    crop = [{"name": "random_resized_crop", "area": [0.9, 1.0]}]
    return {
        "name": "broken",
        "source": {"name": "image_folder", "root": str(root), "test_fraction": 0.1},
        "pair": {"name": "augment", "size": 16, "a": crop, "b": crop},
        "a": {"modality": "image", "encoder": {"name": "conv", "width": 4, "dim": 16}, "expander": [16, 8]},
        "b": {"modality": "image", "encoder": {"name": "breaks_on_white"}, "expander": [16, 8]},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
        "train": {"steps": 8, "batch_size": 6, "nonfinite": "skip"},
        "data": {"workers": 0},
        "evaluate": {"probes": []},
        "checkpoint": {"every": 100},
        **changes,
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_steps_are_left_out_counted_and_change_nothing(pictures, tmp_path, capsys):
    folder = vicjoint.train(recipe(pictures), [f"out={tmp_path / 'run'}"])
    steps = lines(folder)
    left_out = [s for s in steps if s.get("skipped")]
    assert len(steps) == 8 and 2 <= len(left_out) <= 3  # once an epoch of three steps
    for s in left_out:
        assert s["loss"] is None and s["invariance"] is None and s["seconds"] > 0
        written = json.loads((folder / f"nonfinite_{s['step']}.json").read_text())
        assert len(written["samples"]) == 6 and any(
            name.startswith("white.png@") for name in written["samples"]
        )
        assert written["branches"]["b"]["samples"][0]["sample"].startswith("white.png@")
        assert (
            "branch b: the encoder's output is the first that is not finite" in s["skipped"]
            and "invariance=" in s["skipped"]
        )
        assert "branch a" not in written["began"]
    assert all(np.isfinite(s["loss"]) for s in steps if not s.get("skipped"))
    state = vicjoint.load_encoder(folder, "b").state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())  # running statistics too
    assert int(state["encoder.net.1.num_batches_tracked"]) == 8 - len(left_out)
    assert (
        f"<div>steps left out (not finite)<b>{len(left_out)}</b></div>"
        in (folder / "report.html").read_text()
    )


def test_the_limit_counts_the_steps_of_the_whole_run(pictures, tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"step \d: .* 2 steps were left out, train.nonfinite_limit=1 allows no more. Lower optim.lr",
    ):
        vicjoint.train(recipe(pictures), [f"out={tmp_path / 'run'}", "train.nonfinite_limit=1"])
    # the one before the checkpoint is counted on going on
    with pytest.raises(TrainingError, match="2 steps were left out"):
        vicjoint.train(recipe(pictures), [f"out={tmp_path / 'run'}", "train.nonfinite_limit=1"])


@pytest.mark.parametrize(
    "encoder, cause",
    [
        (
            {"name": "breaks_on_white"},
            (
                r"invariance=(inf|nan).* is not finite; branch b: the encoder's output is the first that is"
                r" not finite"
            ),
        ),
        (
            {"name": "breaks_on_white", "where": "gradient"},
            r"gradient norm=nan is not finite; both embeddings are finite, only the loss or its gradient",
        ),
        (
            {"name": "breaks_on_white", "value": 1e30},
            r"(invariance|covariance)=inf.* is not finite; both embeddings are finite",
        ),
    ],
)
def test_a_run_stops_and_its_step_can_be_played_again(pictures, tmp_path, capsys, encoder, cause):
    made = recipe(pictures)
    made["b"]["encoder"], made["train"]["nonfinite"] = encoder, "stop"
    if encoder.get("value") == 1e30:
        made["b"]["expander"] = [8]  # no batch norm that would bring it back
    out = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=rf"step \d: {cause}[^.]*\. Nothing was updated by this step\."
    ) as error:
        vicjoint.train(made, [f"out={out}"])
    step = int(str(error.value).split(":")[0].split()[1])
    assert f"--replay {step}" in str(error.value) and "train.nonfinite=skip" in str(error.value)
    written = json.loads((out / f"nonfinite_{step}.json").read_text())

    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    capsys.readouterr()
    assert run.main([str(tmp_path / "recipe.yaml"), f"out={out}", "--replay", str(step)]) == 0
    said = capsys.readouterr().out
    assert "the same samples as were written down" in said and "white.png@" in said or encoder.get("where")
    if step > 1:
        assert f"in the weights of the checkpoint after step {step - 1};" in said
    played = json.loads((out / f"replay_{step}.json").read_text())
    assert (
        played["samples"] == written["samples"]
        and played["terms"] == written["terms"]
        and played["began"] == written["began"]
    )
    if encoder.get("where"):
        assert played["gradients_not_finite"] and "gradients that are not finite: branches.b." in said


def test_a_healthy_step_can_be_looked_into_and_its_numbers_are_those_of_the_run(pictures, tmp_path, capsys):
    made = recipe(pictures)
    made["b"]["encoder"] = {"name": "conv", "width": 4, "dim": 16}
    out = tmp_path / "run"
    vicjoint.train(made, [f"out={out}", "train.steps=4", "checkpoint.every=2", "checkpoint.keep=9"])
    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    command = [
        str(tmp_path / "recipe.yaml"),
        f"out={out}",
        "train.steps=4",
        "checkpoint.every=2",
        "checkpoint.keep=9",
    ]
    capsys.readouterr()
    assert run.main([*command, "--replay", "3"]) == 0
    said = capsys.readouterr().out
    assert (
        "in the weights of the checkpoint after step 2; 6 samples, nothing was written down of this step"
        in said
    )
    assert "both embeddings are finite\n" in said
    played, trained = json.loads((out / "replay_3.json").read_text()), lines(out)[2]
    assert played["loss"] == pytest.approx(trained["loss"], rel=1e-6) and played["gradients_not_finite"] == []
    assert run.main([*command, "--replay", "4"]) == 0
    assert "of the checkpoint after step 2, 1 steps earlier than it ran in" in capsys.readouterr().out
    assert run.main([*command, "--replay", "1"]) == 0
    assert "as initialised: no checkpoint from before step 1 is there" in capsys.readouterr().out
    assert json.loads((out / "replay_1.json").read_text())["loss"] == pytest.approx(
        lines(out)[0]["loss"], rel=1e-6
    )
    for wrong, cause in (
        (["--replay", "5"], "step 5 is not one of this run, expected 1 to 4"),
        (["out=nowhere", "--replay", "1"], "expected out=FOLDER"),
    ):
        assert run.main([*command, *wrong]) == 2
        assert cause in capsys.readouterr().err


def test_the_spectrum_leaves_out_rows_that_are_not_finite():
    z = torch.randn(20, 4)
    broken = torch.cat([z, torch.tensor([[1.0, float("nan"), 0, 0]])])
    assert (
        torch.equal(metrics.spectrum(broken), metrics.spectrum(z)) and len(metrics.spectrum(broken[-1:])) == 0
    )


def test_findings_of_several_processes_are_one():
    stage = lambda bad, low, high: {
        "values": 10,
        "not_finite": bad,
        "min": low,
        "max": high,
        "mean_abs": 1.0,
        "std": 1.0,
    }
    of = [
        {"a": {**{s: stage(0, -1, 1) for s in nonfinite.STAGES}, "samples": []}},
        {
            "a": {
                "view": stage(0, -2, 1),
                "representation": stage(3, -1, 5),
                "embedding": stage(10, 0, 0),
                "samples": [{"sample": "x@0"}],
            }
        },
    ]
    found = nonfinite.merged(of)["a"]
    assert found["representation"]["not_finite"] == 3 and found["representation"]["values"] == 20
    assert (found["view"]["min"], found["representation"]["max"]) == (-2, 5) and found["samples"] == [
        {"sample": "x@0"}
    ]
    assert (
        nonfinite.first_place({"a": found})
        == "branch a: the encoder's output is the first that is not finite"
    )


TWO = """
import json, sys
sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests")
import test_nonfinite, vicjoint
from pathlib import Path
vicjoint.train(test_nonfinite.recipe(Path(sys.argv[2])), ["out=" + sys.argv[3], *sys.argv[4:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_processes_leave_out_the_same_steps(pictures, tmp_path, parallel):
    one = vicjoint.train(recipe(pictures), [f"out={tmp_path / 'one'}"])
    (tmp_path / "two.py").write_text(TWO)
    torchrun(tmp_path, 2, "two.py", str(ROOT), str(pictures), "two", f"train.parallel={parallel}")
    steps = [[s["step"] for s in lines(folder) if s.get("skipped")] for folder in (one, tmp_path / "two")]
    assert steps[0] == steps[1] and steps[0]
    for step in steps[0]:
        a, b = (
            json.loads((folder / f"nonfinite_{step}.json").read_text()) for folder in (one, tmp_path / "two")
        )
        assert a["samples"] == b["samples"] and a["began"] == b["began"]
        assert [s["sample"] for s in a["branches"]["b"]["samples"]][:1] == [
            s["sample"] for s in b["branches"]["b"]["samples"]
        ][:1]


def test_a_queue_is_as_before_the_step_that_is_left_out():
    """Also one that took its width in that step, and a place that a step replaces by another tensor."""
    from types import SimpleNamespace

    from vicjoint.objectives import InfoNCE

    objective = InfoNCE(form="moco", queue=4)
    parts = SimpleNamespace(
        model=torch.nn.BatchNorm1d(3),
        tasks=[SimpleNamespace(objective=objective)],
        recipe=SimpleNamespace(train=None),
    )
    watch = nonfinite.Watch(parts, Path("."), 0)
    for _ in range(2):  # the first batch gives the queue its width; the second only fills it
        watch.remember()
        before = {name: b.clone() for name, b in objective.named_buffers()}
        objective(torch.randn(2, 3), torch.randn(2, 3))
        assert int(objective.place) != int(before["place"])
        watch.go_back()
        for name, b in objective.named_buffers():
            assert b.shape == before[name].shape and torch.equal(b, before[name]), name
        objective(torch.randn(2, 3), torch.randn(2, 3))
