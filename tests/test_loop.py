"""The whole pipeline on small real mp4 files: run folder, resume, health, failures, two processes, a user's
own encoder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrun import torchrun

import vicjoint
from vicjoint.parts import Pair
from vicjoint.recipe import RecipeError
from vicjoint.samples.videos import make_videos
from vicjoint.training import checkpoint
from vicjoint.video import Video

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "made"
    make_videos(folder, train=12, test=4, frames=24, size=32, seed=0, progress=False)
    return folder


def recipe(videos: Path, **changes) -> dict:
    return {
        "name": "tiny",
        "source": {"name": "video_folder", "root": str(videos)},
        "pair": {"name": "next_frame", "frames": 4, "stride": 2, "size": 32, "windows": 4},
        "a": {
            "modality": "clip",
            "encoder": {"name": "conv_gru", "width": 4, "dim": 16},
            "expander": [32, 32],
        },
        "b": {
            "modality": "next_frame",
            "encoder": {"name": "conv", "width": 4, "dim": 16},
            "expander": [32, 32],
        },
        "objective": {"name": "vicreg", "statistics": "both"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 2}},
        "train": {"steps": 6, "batch_size": 16},
        "data": {"workers": 0},
        "evaluate": {"probes": [{"name": "next_frame_retrieval", "queries": 2}]},
        "checkpoint": {"every": 3},
        **changes,
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "step_00000006")["model"]


def test_a_run_leaves_its_folder(videos, tmp_path, capsys):
    folder = vicjoint.train(recipe(videos), [f"out={tmp_path / 'run'}", "evaluate.every=4"])
    steps = lines(folder)
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5, 6]
    for s in steps:
        assert (
            s["loss"] == pytest.approx(s["invariance"] + s["variance"] + s["covariance"], rel=1e-5)
            and s["seconds"] > 0
        )
    rows = json.loads((folder / "evaluation.json").read_text())["next_frame_retrieval"]
    baselines = {"copy_last", "extrapolation", "mean", "pixels", "pixels_extrapolation", "chance", "ceiling"}
    assert set(rows) == {"model", "random_init"} | baselines
    assert all(0 <= rows["model"][m] <= 1 for m in ("r1", "r5", "mrr", "all_r1", "copy_rate"))
    assert json.loads((folder / "evaluation.jsonl").read_text())["step"] == 4
    for name in ("recipe.yaml", "environment.json", "spectrum.json", "pictures.npz", "report.html"):
        assert (folder / name).exists(), name
    assert "next_frame_retrieval after 6 steps" in capsys.readouterr().out

    encoder = vicjoint.load_encoder(folder, "b")
    assert encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, encoder.dim)


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(videos, tmp_path, monkeypatch):
    whole = vicjoint.train(recipe(videos), [f"out={tmp_path / 'whole'}"])
    from vicjoint.training import steps

    take, calls = steps.backward, []

    def dies_at_the_fifth(*given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return take(*given)

    monkeypatch.setattr(steps, "backward", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        vicjoint.train(recipe(videos), [f"out={tmp_path / 'stopped'}"])
    monkeypatch.setattr(steps, "backward", take)
    stopped = vicjoint.train(recipe(videos), [f"out={tmp_path / 'stopped'}"])
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(stopped).values()))
    assert [(s["step"], s["loss"]) for s in lines(whole)] == [(s["step"], s["loss"]) for s in lines(stopped)]
    assert (whole / "evaluation.json").read_text() == (stopped / "evaluation.json").read_text()


def test_a_different_recipe_does_not_overwrite_a_run(videos, tmp_path):
    out = f"out={tmp_path / 'run'}"
    vicjoint.train(recipe(videos), [out, "train.steps=1"])
    with pytest.raises(RecipeError, match="holds a run of a different recipe. It differs in:\n  optim.lr"):
        vicjoint.train(recipe(videos), [out, "train.steps=1", "optim.lr=0.1"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.accumulate=2"],
        ["train.precision=bf16"],
        ["optim.clip=0.5"],
        ["predictor={name: mlp, hidden: 8}"],
        ["optim={name: lars, lr: 0.1, schedule: {name: constant}}"],
    ],
)
def test_options_of_the_loop(videos, tmp_path, overrides):
    folder = vicjoint.train(
        recipe(videos), [f"out={tmp_path / 'run'}", "train.steps=2", "evaluate.probes=[]", *overrides]
    )
    assert all(np.isfinite(s["loss"]) for s in lines(folder))


def test_variance_weight_zero_is_reported_as_collapsed(videos, tmp_path, capsys):
    folder = vicjoint.train(
        recipe(videos),
        [
            f"out={tmp_path / 'run'}",
            "train.steps=80",
            "objective.variance=0",
            "objective.covariance=0",
            "optim.lr=3e-3",
            "evaluate.probes=[]",
        ],
    )
    said = lines(folder)[-1]["verdict"]
    assert (
        said.startswith("collapsed: branch")
        and "gives nearly the same embedding for different inputs" in said
    )
    assert "collapsed" in (folder / "report.html").read_text()


def test_a_loss_that_is_not_finite_stops_before_the_update(videos, tmp_path):
    from vicjoint.training.loop import TrainingError

    with pytest.raises(
        TrainingError, match=r"step \d+: .*(invariance|gradient norm).* is not finite. Nothing was updated"
    ):
        vicjoint.train(
            recipe(videos),
            [
                f"out={tmp_path / 'run'}",
                "optim.lr=1e30",
                "train.steps=5",
                "optim.clip=1e30",
                "optim.schedule={name: constant}",
            ],
        )


def test_bad_videos_are_replaced_and_named(videos, tmp_path):
    root = tmp_path / "some_bad"
    root.mkdir()
    for i, path in enumerate(sorted(videos.rglob("*.mp4"))):
        (root / path.name).write_bytes(path.read_bytes() if i % 4 else path.read_bytes()[:300])
    run = [f"out={tmp_path / 'run'}", f"source.root={root}"]
    folder = vicjoint.train(recipe(videos), [*run, "data.max_bad_fraction=0.9"])
    named = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    assert named and all(
        n["source"] == "video_folder" and n["cause"] and not int(n["sample"].split(".")[0][-3:]) < 0
        for n in named
    )
    assert len(lines(folder)) == 6
    code = command(
        recipe(videos),
        [f"out={tmp_path / 'strict'}", f"source.root={root}", "data.max_bad_fraction=0"],
        tmp_path,
    )
    assert (
        code.returncode == 1
        and "data.max_bad_fraction=0.0 allows 0" in code.stderr
        and "Traceback" not in code.stderr
    )


def command(made: dict, overrides: list[str], cwd: Path, **environment) -> subprocess.CompletedProcess:
    (cwd / "recipe.yaml").write_text(json.dumps(made))
    return subprocess.run(
        [sys.executable, "-m", "vicjoint.run", "recipe.yaml", *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
    )


MY_ENCODER = """
import torch
from vicjoint import register_encoder

@register_encoder("clip", "mine")
class Mine(torch.nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.dim = width
        self.net = torch.nn.Conv3d(3, width, 3, stride=2)

    def forward(self, view):
        return self.net(view).mean((2, 3, 4))
"""


def test_a_users_own_encoder_from_another_folder_with_spawned_workers(videos, tmp_path):
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "mine.py").write_text(MY_ENCODER)
    done = command(
        recipe(videos),
        ["a.encoder={name: mine, width: 6}", "data.workers=2", "train.steps=2", "out=mine_run"],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "run: mine_run"
    assert "a.encoder" not in done.stderr and (tmp_path / "mine_run" / "report.html").exists()


def test_two_processes_train_one_model(videos, tmp_path):
    run = ["train.steps=3", "evaluate.probes=[]", "objective.statistics=both"]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(videos)))
    torchrun(tmp_path, 2, "-m", "vicjoint.run", "recipe.yaml", "out=two", *run)
    two = lines(tmp_path / "two")
    assert [s["step"] for s in two] == [1, 2, 3]


def test_a_signal_saves_and_the_same_command_goes_on(videos, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(videos)))
    arguments = [
        sys.executable,
        "-m",
        "vicjoint.run",
        "recipe.yaml",
        "out=run",
        "train.steps=150",
        "checkpoint.every=1000",
        "evaluate.probes=[]",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 75 and "a checkpoint is saved" in said and "Traceback" not in said
    done = len(lines(tmp_path / "run"))
    again = command(recipe(videos), arguments[4:], tmp_path)
    assert again.returncode == 0 and f"going on from step {done} of 150" in again.stdout
    assert [s["step"] for s in lines(tmp_path / "run")] == list(range(1, 151))


def test_an_encoder_that_does_not_fit_its_views_is_a_wrong_recipe(videos, tmp_path):
    done = command(recipe(videos), ["a.encoder={name: conv_stack, frames: 7, width: 4}", "out=run"], tmp_path)
    assert (
        done.returncode == 2
        and "built for 7 frames, got a clip of 4" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "barlow_twins"},
        {"name": "infonce", "form": "nt_xent"},
        {"name": "infonce", "learnable": True},
        {"name": "infonce", "negatives": "group"},
        {"name": "sigreg", "slices": 16},
        {"name": "straightened", "of": {"name": "vicreg"}},
        {"name": "vicreg", "convention": "solo_learn", "statistics": "both"},
    ],
    ids=str,
)
def test_a_method_is_a_row_of_options(videos, tmp_path, objective, capsys):
    folder = vicjoint.train(
        recipe(videos, objective=objective),
        [f"out={tmp_path / 'run'}", "train.steps=2", "train.accumulate=2"],
    )
    steps = lines(folder)
    terms = json.loads((folder / "environment.json").read_text())["terms"]
    assert all(s["loss"] == pytest.approx(sum(s[t] for t in terms), rel=1e-5) for s in steps)
    said = (
        "the weights are meant as solo_learn means them; in the official convention, at width 32: invariance"
        " 25, variance 50, covariance 1"
    )
    assert (said in capsys.readouterr().out) == ("convention" in objective)


@vicjoint.register("pair", "two_frames")
class TwoFrames(Pair):
    """Two random frames of a video, as they are."""

    def sample(self, record, rng):
        with Video(record["path"], "pyav") as video:
            frames = torch.from_numpy(
                video.read(sorted(rng.choice(video.info.frames, 2, replace=False).tolist()))
            ).permute(0, 3, 1, 2)
        return frames[:1], frames[1:]


def test_moco_with_its_ema_branch_and_queue_is_resumed_exactly(videos, tmp_path):
    branch = {"modality": "image", "encoder": {"name": "conv", "width": 4, "dim": 16}, "expander": [32, 32]}
    moco = recipe(
        videos,
        pair={"name": "two_frames"},
        a=branch,
        b={"weights": "ema", "momentum": 0.9},
        evaluate={"probes": []},
        objective={"name": "infonce", "form": "moco", "queue": 20},
        train={"steps": 6, "batch_size": 8, "accumulate": 2},
    )
    with pytest.raises(RecipeError, match="moco .* Set b.weights=ema"):
        vicjoint.train(moco, ["b={weights: own, momentum: 0.996}"])
    whole = vicjoint.train(moco, [f"out={tmp_path / 'whole'}"])
    first = vicjoint.train(moco, [f"out={tmp_path / 'stopped'}"])
    # as if it had been killed after its checkpoint at step 3
    shutil.rmtree(first / "checkpoints" / "step_00000006")
    again = vicjoint.train(moco, [f"out={first}"])
    ends = [checkpoint.load(f / "checkpoints" / "step_00000006") for f in (whole, again)]
    assert all(
        torch.equal(a, b)
        for part in ("model", "objective")
        for a, b in zip(ends[0][part].values(), ends[1][part].values())
    )
    assert (
        ends[0]["objective"]["queue"].norm(dim=1).allclose(torch.ones(20))
        and int(ends[0]["objective"]["place"]) == 48 % 20
    )
    assert not torch.equal(
        ends[0]["model"]["branches.a.encoder.project.weight"],
        ends[0]["model"]["branches.b.encoder.project.weight"],
    )
