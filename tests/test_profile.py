"""`--profile`: the time of some steps taken apart."""

import gzip
import json

import pytest
import tiny

from vicjoint.run import main
from vicjoint.training.profiling import PHASES, REST


def run(folder, *arguments: str) -> int:
    (folder / "recipe.json").write_text(json.dumps(tiny.recipe()))
    out = folder / "run"
    return main([str(folder / "recipe.json"), f"out={out}", "train.steps=12", "data.workers=0", *arguments])


def test_a_step_is_taken_apart(tmp_path, capsys):
    assert run(tmp_path, "--profile", "4") == 0
    said = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert (said["first_step"], said["steps"]) == (6, 4)
    parts = {row["part"]: row for row in said["rows"]}
    assert list(parts) == [*PHASES, REST]
    assert all(row["seconds"] > 0 for row in parts.values())
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in parts)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Time of a step" in page and all(f"<td>{name}</td>" in page for name in parts)
    with gzip.open(tmp_path / "run" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(e.get("name") == "optimizer" and e.get("ph") == "X" for e in events) == 4


@pytest.mark.parametrize("steps", ["8", "-1"])
def test_more_steps_than_there_are(tmp_path, capsys, steps):
    assert run(tmp_path, "--profile", steps) == 2
    said = capsys.readouterr().err
    assert f"--profile: {steps} steps after 5 to warm up do not fit between steps 0 and 12." in said
