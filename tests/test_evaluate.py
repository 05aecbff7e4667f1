"""The evaluation at a run's end, and the same one later, by its command."""

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
