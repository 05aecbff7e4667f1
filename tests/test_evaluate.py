"""The evaluation at a run's end, and the same one later, by its command."""

import json

import pytest
import tiny

import vicjoint
from vicjoint.evaluate import main


def test_the_last_evaluation_may_wait(tmp_path, capsys):
    made = tiny.recipe(train={"steps": 3, "batch_size": 8})
    whole = vicjoint.train(made, [f"out={tmp_path / 'whole'}"])
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}", "evaluate.last=false"])
    said = capsys.readouterr().out
    assert f"not evaluated (evaluate.last: false): python -m vicjoint.evaluate {folder}" in said
    assert not (folder / "evaluation.json").exists() and (folder / "report.html").exists()
    assert main([str(folder)]) == 0
    assert (folder / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Eight steps, with checkpoints after four and eight, of a recipe with one probe."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return vicjoint.train(tiny.recipe(train={"steps": 8, "batch_size": 8}), [f"out={folder}"])


def files(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_probes_and_data_leave_the_run_as_it_is(run, tmp_path, capsys):
    before = files(run)
    probes = "evaluate.probes=[{name: tiny_probe, as: again}]"
    assert main([str(run), probes, "source.rows=50", "--json", str(tmp_path / "found.json")]) == 0
    assert "again after 8 steps" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    own = json.loads((run / "evaluation.json").read_text())
    # eight other rows are its test records now: another distance
    assert set(found) == {"again"} and found["again"] != own["tiny_probe"]
    assert files(run) == before


def test_the_same_probes_give_the_runs_own_numbers(run, tmp_path):
    assert main([str(run), "data.workers=1", "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(
        (run / "evaluation.json").read_text()
    )


def test_any_checkpoint_is_evaluated_as_it_was_then(run, tmp_path, capsys):
    made = tiny.recipe(
        train={"steps": 8, "batch_size": 8}, evaluate={"every": 4, "probes": [{"name": "tiny_probe"}]}
    )
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    assert main([str(folder), "--step", "4", "--json", str(tmp_path / "found.json")]) == 0
    assert "tiny_probe after 4 steps" in capsys.readouterr().out
    then = json.loads((folder / "evaluation.jsonl").read_text().splitlines()[0])
    assert then["step"] == 4 and json.loads((tmp_path / "found.json").read_text()) == then["results"]
    assert main([str(folder), "--step", "4", "--write", "data.workers=0"]) == 0
    assert "tiny_probe after 4 steps" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text()) == then["results"]


def test_the_run_is_written_anew_where_asked(tmp_path):
    folder = vicjoint.train(tiny.recipe(train={"steps": 2, "batch_size": 8}), [f"out={tmp_path / 'run'}"])
    assert main([str(folder), "evaluate.probes=[{name: tiny_probe, as: again}]", "--write"]) == 0
    assert set(json.loads((folder / "evaluation.json").read_text())) == {"again"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("optim.lr=1", "optim.lr: changes nothing in an evaluation. Expected a key of evaluate, source,"),
        ("evaluate.probes=[{name: tiny_prob}]", "tiny_probe"),
        ("a.expander=[16, 10]", "expander"),
        ("--step=5", "has no checkpoint of step 5. Expected one of 4, 8, or best."),
    ],
)
def test_what_cannot_be_asked_is_said(run, given, said, capsys):
    before = files(run)
    assert main([str(run), given]) == 2
    assert said in capsys.readouterr().err and files(run) == before
