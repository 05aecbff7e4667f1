"""A run that is killed and started again ends as the one that was never stopped, bit by bit."""

import json
import os
from pathlib import Path

import pytest
import tiny
import torch

import vicjoint
from vicjoint import distributed
from vicjoint.recipe import load_recipe
from vicjoint.training import checkpoint, resuming
from vicjoint.training.build import build_parts
from vicjoint.training.stopping import seed_everything

PLAIN = tiny.branch(encoder={"name": "noisy", "norm": False})
MOCO = {
    "b": {"weights": "ema", "momentum": 0.9},
    "objective": {"name": "infonce", "form": "moco", "queue": 20},
}
LATENT = {"predictor": {"name": "mlp", "hidden": 8, "latents": 4}}
ANNEALED = {"predictor": {**LATENT["predictor"], "choice": "annealed", "prior": True}}
TOLD = {
    "pair": {"name": "tiny_told", "condition": {}, "bad": ["row3"]},
    "predictor": {"name": "mlp", "hidden": 8},
    "evaluate": {"every": 3, "probes": []},
}
STRAIGHT = {
    "pair": {"name": "tiny_in_time"},
    "objective": {"name": "straightened", "of": {"name": "sigreg", "slices": 8}},
}
PAIRS = {
    "pair": None,
    "a": None,
    "b": None,
    "branches": {name: tiny.branch() for name in ("one", "two", "three")},
    "pairs": [
        {"a": "one", "b": "two", "pair": {"name": "tiny_views"}},
        {"a": "one", "b": "three", "pair": {"name": "tiny_views"}},
    ],
    "objective": {"name": "infonce", "learnable": True},
}
CONFIGURATIONS = {
    "plain": ({}, [], 1),
    "parts, exact": ({}, ["train.accumulate=2"], 1),
    "parts, each by itself": ({}, ["train.accumulate=2", "train.exact=false"], 1),
    "moco: ema and a queue": (MOCO, [], 1),
    "a latent, ema, parts": ({**LATENT, "b": {"weights": "ema", "momentum": 0.9}}, ["train.accumulate=2"], 1),
    "predictor, ema": (
        {"b": {"weights": "ema", "momentum": 0.9}, "predictor": {"name": "mlp", "hidden": 8}},
        [],
        1,
    ),
    "a condition, parts": (TOLD, ["train.accumulate=2", "data.max_bad_fraction=0.5"], 1),
    "shared weights, LARS, bf16": (
        {"b": {"weights": "same"}, "optim": {"name": "lars", "lr": 0.5, "schedule": {"name": "constant"}}},
        ["train.precision=bf16"],
        1,
    ),
    "several pairs": (PAIRS, [], 1),
    "several pairs, by shares": (
        {**PAIRS, "pairs": [PAIRS["pairs"][0] | {"share": 3}, PAIRS["pairs"][1]]},
        [],
        1,
    ),
    "bad samples": (
        {"pair": {"name": "tiny_views", "bad": ["row3", "row11", "row20"]}},
        ["data.max_bad_fraction=0.5"],
        1,
    ),
    "two processes": ({}, [], 2),
    "two processes, a latent": (LATENT, [], 2),
    "an annealed latent, parts": (ANNEALED, ["train.accumulate=2"], 1),
    "two processes, a condition": (TOLD, ["data.max_bad_fraction=0.5"], 2),
    "two processes, sigreg, straightened": (STRAIGHT, ["train.batch_size=12"], 2),
    "two processes, moco, parts": (MOCO, ["train.accumulate=2"], 2),
    "two processes, fsdp": ({}, ["train.parallel=fsdp", "train.checkpoint_activations=true"], 2),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    """For the processes that a test starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tiny.TESTS), str(tiny.TESTS.parent)]))
    monkeypatch.setenv("TINY_FOLDER", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def made(changes: dict) -> dict:
    return {key: value for key, value in tiny.recipe(**changes).items() if value is not None}


SLOW = {
    *("parts, each by itself", "predictor, ema", "a condition, parts", "several pairs, by shares"),
    *("two processes, a latent", "two processes, a condition", "two processes, sigreg, straightened"),
    "two processes, moco, parts",
}  # their parts are in others, too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CONFIGURATIONS]
)
def test_killed_runs_end_like_the_one_that_was_not(name, tmp_path):
    changes, overrides, world = CONFIGURATIONS[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tiny.run(made(changes), [f"out={whole}", *overrides], world=world) == [0] * world
    for place in (
        ("vicjoint.training.steps.backward", 3),
        ("vicjoint.training.steps.backward", 7),
        ("vicjoint.training.loop.evaluate", 2),
    ):
        codes = tiny.run(made(changes), [f"out={killed}", *overrides], kill=place, world=world)
        assert codes[-1] == -9 and 0 not in codes
    assert tiny.run(made(changes), [f"out={killed}", *overrides], world=world) == [0] * world
    tiny.same_end(whole, killed)


KILLED_AT = [
    ("vicjoint.training.checkpoint.write_file", 2),
    ("vicjoint.training.checkpoint.synchronise", 3),
    ("os.replace", 6),
    ("os.replace", 9),
    ("shutil.rmtree", 4),
    ("vicjoint.training.loop.write_json", 1),
    ("vicjoint.training.loop.write_report", 1),
    ("vicjoint.metrics.health", 1),
]


@pytest.mark.parametrize("place", KILLED_AT, ids=str)
def test_a_kill_while_files_are_written(place, tmp_path_factory, tmp_path):
    whole = tmp_path_factory.getbasetemp() / "unbroken"
    if not whole.exists():
        assert tiny.run(tiny.recipe(), [f"out={whole}"]) == [0]
    assert tiny.run(tiny.recipe(), [f"out={tmp_path / 'killed'}"], kill=place) == [-9]
    assert tiny.run(tiny.recipe(), [f"out={tmp_path / 'killed'}"]) == [0]
    tiny.same_end(whole, tmp_path / "killed")


def test_lines_written_after_the_checkpoint_and_torn_ones_are_cut(tmp_path):
    bad = tiny.recipe(
        pair={"name": "tiny_views", "bad": ["row3", "row11"]}, data={"workers": 0, "max_bad_fraction": 0.5}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tiny.run(bad, [f"out={whole}"]) == [0]
    assert tiny.run(bad, [f"out={killed}"], kill=("vicjoint.training.steps.backward", 7)) == [-9]
    assert [line["step"] for line in tiny.metrics(killed)] == [1, 2, 3, 4, 5, 6] and checkpoint.steps(
        killed / "checkpoints"
    ) == [4]
    for name, torn in (
        ("metrics.jsonl", '{"step": 7, "pa'),
        ("evaluation.jsonl", '{"step": 6, "res'),
        ("bad_samples.jsonl", '{"source": "ti'),
    ):
        with open(killed / name, "a") as file:
            file.write(torn)
    assert tiny.run(bad, [f"out={killed}"]) == [0]
    tiny.same_end(whole, killed)


def test_a_kill_before_the_first_checkpoint_starts_again(tmp_path):
    out = [f"out={tmp_path / 'run'}", "train.steps=3", "checkpoint.every=100"]
    for place in (
        ("os.replace", 1),
        ("vicjoint.training.loop.describe", 1),
        ("vicjoint.training.steps.backward", 2),
    ):
        assert tiny.run(tiny.recipe(), out, kill=place) == [-9]
    assert tiny.run(tiny.recipe(), out) == [0]
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [1, 2, 3]


def test_workers_can_change_on_the_way(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tiny.run(tiny.recipe(), [f"out={whole}"]) == [0]
    assert tiny.run(
        tiny.recipe(), [f"out={killed}", "data.workers=1"], kill=("vicjoint.training.steps.backward", 6)
    ) == [-9]
    assert tiny.run(tiny.recipe(), [f"out={killed}", "data.workers=2"]) == [0]
    tiny.same_end(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_three_workers(world, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tiny.run(made(MOCO), [f"out={whole}"], world=world) == [0] * world
    for at in (3, 8):
        assert (
            tiny.run(
                made(MOCO),
                [f"out={killed}", "data.workers=3"],
                kill=("vicjoint.training.steps.backward", at),
                world=world,
            )[-1]
            == -9
        )
    assert tiny.run(made(MOCO), [f"out={killed}", "data.workers=3"], world=world) == [0] * world
    tiny.same_end(whole, killed)


def test_another_number_of_processes_keeps_the_order_of_the_samples(monkeypatch):
    """By the names of the samples; numbers differ in rounding, and in dropout."""
    parts = build_parts(load_recipe(tiny.recipe()))
    alone = [batch.samples for batch, _ in parts.batches(0, 0, 14)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([batch.samples for batch, _ in parts.batches(0, 5, 14)])
    assert [one + two for one, two in zip(*shares)] == alone[5:]
    monkeypatch.undo()
    assert [batch.samples for batch, _ in parts.batches(0, 9, 14)] == alone[9:]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    out = [f"out={tmp_path / 'run'}"]
    assert tiny.run(tiny.recipe(), out, kill=("vicjoint.training.steps.backward", 6), world=2)[-1] == -9
    assert tiny.run(tiny.recipe(), out, kill=("vicjoint.training.steps.backward", 5)) == [-9]
    assert tiny.run(tiny.recipe(), out, world=2) == [0, 0]
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == list(range(1, 15))


def test_an_evaluation_leaves_no_trace_in_training(tmp_path):
    often, never = (
        vicjoint.train(tiny.recipe(), [f"out={tmp_path / str(every)}", f"evaluate.every={every}"])
        for every in (1, 0)
    )
    losses = lambda folder: [line["loss"] for line in tiny.metrics(folder)]
    assert losses(often) == losses(never) and len(losses(never)) == 14
    assert (often / "evaluation.json").read_text() == (never / "evaluation.json").read_text()


def test_dropout_differs_from_step_to_step_and_between_processes():
    """What `seed_everything` must not do: give every step the same numbers."""
    drawn = []
    for numbers in ((0, 1, 5, 0), (0, 1, 6, 0), (0, 1, 5, 1), (1, 1, 5, 0), (0, 1, 5, 0)):
        seed_everything(*numbers)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[4] and len({tuple(d) for d in drawn}) == 4


def test_two_commands_do_not_write_in_one_folder(tmp_path):
    out, said = [f"out={tmp_path / 'run'}"], tmp_path / "said"
    first = tiny.start(
        tiny.recipe(evaluate={"every": 0, "probes": [{"name": "tiny_probe", "seconds": 30}]}), out
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first[0].is_alive()
    assert tiny.run(
        tiny.recipe(evaluate={"every": 0, "probes": [{"name": "tiny_probe", "seconds": 30}]}),
        out,
        stdout=said,
    ) == [2]
    assert (
        f"another process is training in {tmp_path / 'run'}" in said.read_text()
        and "Traceback" not in said.read_text()
    )
    first[0].kill()
    first[0].join()


def test_a_recipe_of_a_checkpoint_is_compared_but_never_loaded(tmp_path, capsys):
    folder = vicjoint.train(tiny.recipe(), [f"out={tmp_path / 'run'}"])
    parts = build_parts(load_recipe(tiny.recipe()))
    state = checkpoint.load_last(folder / "checkpoints")
    assert resuming.misfit(parts, state, parts.recipe) is None
    state["recipe"]["imports"] = ["this_would_fail"]
    assert "differs in imports" in resuming.misfit(parts, state, parts.recipe)
    assert json.loads(json.dumps(state["recipe"]))["optim"]["lr"] == 0.01 and isinstance(folder, Path)
