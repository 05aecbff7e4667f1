"""A run goes on with moved data; with other data, or to another length, only where the recipe says so."""

import json
import math
import shutil
from pathlib import Path

import pytest
from two_texts import recipe, rows

import vicjoint
from vicjoint import evaluate, export
from vicjoint.data.fingerprint import differing, fingerprint
from vicjoint.parts import Source
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.recipe.compare import by_kind, shortly
from vicjoint.training import checkpoint, loop, resuming

RECIPE = recipe(4, checkpoint={"every": 2, "keep": 9})
MORE = ["train.seed=3", "train.accumulate=2"]
LONGER = ["train.steps=8", "checkpoint.may_change=[length]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("t.csv").write_text(rows(*range(20)))
        vicjoint.train(RECIPE, ["out=run"])
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    return Path("run")


def on(*overrides: str):
    return vicjoint.train(RECIPE, ["out=run", *overrides])


def test_data_that_have_moved_are_the_same(run, capsys):
    Path("elsewhere").mkdir()
    shutil.move("t.csv", "elsewhere/renamed.csv")
    with pytest.raises(RecipeError, match="source.root: t.csv does not exist .*source.root=PATH"):
        on()
    on("source.root=elsewhere/renamed.csv")
    assert load_recipe("run/recipe.yaml").tasks[0].source["root"] == "elsewhere/renamed.csv"
    capsys.readouterr()
    assert evaluate.main(["run"]) == 0  # by the recipe of the command that went on last
    assert "other data" not in capsys.readouterr().out
    assert evaluate.main(["run", "--write", "source.root=elsewhere/renamed.csv"]) == 0
    assert export.main(["run", "--to", "exported"]) == 0


@pytest.mark.parametrize(
    "now, said",
    [
        ([i for i in range(20) if i not in (3, 8)], "train records: 15 then, 14 now; table: test records: 5"),
        (range(24), "train records: 15 then, 18 now; table: test records: 5 then, 6 now"),
        ([*range(1, 20), 0][::-1], "train records: others, or in another order"),
        ([0, 41, *range(2, 20)], "train records: others, or in another order"),
    ],
)
def test_other_data_are_said_and_refused_unless_asked_for(run, now, said, capsys):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    Path("t.csv").write_text(rows(*now))
    with pytest.raises(RecipeError) as refused:
        on()
    assert said in str(refused.value) and "checkpoint.may_change=[data]" in str(refused.value)
    assert evaluate.main(["run"]) == 2
    assert (
        f"source: other data than those that the run was trained on. table: {said}" in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    on("checkpoint.may_change=[data]", *LONGER[:1], "checkpoint.may_change=[data,length]")
    assert f"going on with other data. table: {said}" in capsys.readouterr().out
    on(*LONGER)  # now these are the run's


def test_other_data_may_be_evaluated(run, capsys):
    Path("other.csv").write_text(rows(*range(100, 140)))
    before = (run / "evaluation.json").read_bytes()
    assert evaluate.main(["run", "source.root=other.csv"]) == 0
    assert "other data than those that the run was trained on" in capsys.readouterr().out
    assert (run / "evaluation.json").read_bytes() == before


def test_a_run_is_made_longer(run, capsys):
    first = json.loads((run / "evaluation.json").read_text())
    with pytest.raises(RecipeError, match=r"another length \(train.steps: 4 -> 8\).*may_change=\[length\]"):
        on("train.steps=8")
    assert load_recipe("run/recipe.yaml").train.steps == 4
    capsys.readouterr()
    on(*LONGER)
    rate = lambda step, steps: 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
    assert (
        "going on from step 4 of 8 in run\ntrain.steps: 4 -> 8: the schedule is that of 8 steps from here"
        f" on, so the learning rate goes from {rate(3, 4):.2g} to {rate(4, 8):.2g}\n"
    ) in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    expected = [rate(i, 4) for i in range(4)] + [rate(i, 8) for i in range(4, 8)]
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert json.loads((run / "evaluation.jsonl").read_text()) == {"step": 4, "results": first}
    on("train.steps=8")  # the run's length now
    assert evaluate.main(["run", "--step", "2"]) == 0
    with pytest.raises(RecipeError, match="train: 3 steps, but the run in run has taken 8. Give more"):
        on("train.steps=3", LONGER[1])


def test_checkpoints_that_do_not_know_their_data_are_compared_by_their_place(run, monkeypatch):
    """Those of earlier versions."""
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: {k: v for k, v in load(path).items() if k != "data"})
    on()
    shutil.move("t.csv", "u.csv")
    with pytest.raises(RecipeError, match="trained on other data. source.root: 't.csv' -> 'u.csv'."):
        on("source.root=u.csv")
    on("source.root=u.csv", "checkpoint.may_change=[data]")


def test_what_differs_is_said_shortly(run):
    with pytest.raises(RecipeError) as refused:
        on(
            "a.encoder={name: words, width: 8}",
            "optim={name: lars, lr: 1, schedule: {name: constant}}",
            *MORE,
        )
    said = str(refused.value)
    assert said.count("\n") == 7 and "  and 2 more\n" in said and len(said) < 600 and "a.encoder.name" in said
    assert shortly(list("abcdefg")) == ["a", "b", "c", "d", "e", "and 2 more"]
    assert shortly(list("abcdef")) == list("abcdef")
    state = checkpoint.load_last(run / "checkpoints")
    state["recipe"]["optim"] = dict.fromkeys("abcdefghi", 1)
    reason = resuming.misfit(None, state, load_recipe("run/recipe.yaml"))
    assert reason.startswith("it is of another recipe, which differs in ") and " more" in reason


def test_keys_by_what_they_mean_to_a_run():
    recipe = lambda **source: {"source": source, "pairs": [{"source": source}]}
    found = by_kind(recipe(root="a", column="c"), recipe(root="b", column="d"))
    assert [line.split(":")[0] for line in found["place"]] == ["source.root", "pairs.0.source.root"]
    assert [line.split(":")[0] for line in found["other"]] == ["source.column", "pairs.0.source.column"]


def test_a_second_table_counts():
    class Two(Source):
        def __init__(self, second):
            self.train, self.test = [{"id": "a"}], [{"id": "b"}]
            self.second = {"train": second, "test": self.test}

    before, now = (fingerprint(Two([{"id": name}])) for name in "cd")
    assert differing(before, now) == ["train (second) records: others, or in another order"]
    assert differing(before, before) == [] and before["train"][0] == 1
