"""One recipe with several seeds: the runs, and what their results have in common."""

import json
import statistics

import pytest
import tiny

from vicjoint.recipe import RecipeError, to_yaml
from vicjoint.recipe.load import load_recipe
from vicjoint.report.tables import together
from vicjoint.run import main
from vicjoint.training import seeds as several
from vicjoint.training.seeds import parse_seeds, train_seeds
from vicjoint.training.stopping import Stopped


@pytest.mark.parametrize(
    "text, seeds", [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("7,0-1,1", [7, 0, 1]), (" 1 , 2", [1, 2])]
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "4-1", "a", "1-", "-1", "0..3"])
def test_others_are_refused(text):
    with pytest.raises(RecipeError, match="is not known. Expected numbers and ranges, such as 0-4 or 0,3"):
        parse_seeds(text)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(load_recipe(tiny.recipe(train={"steps": 3, "batch_size": 8}))))
    return path


def test_runs_are_those_of_each_seed_alone_and_their_mean_is_shown(recipe, tmp_path, capsys):
    folder = tmp_path / "all"
    assert main([str(recipe), "--seeds", "3,5", f"out={folder}"]) == 0
    said = capsys.readouterr().out
    assert main([str(recipe), "train.seed=5", f"out={tmp_path / 'alone'}"]) == 0
    five = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    assert json.loads((folder / "seed-5" / "evaluation.json").read_text()) == five
    three = json.loads((folder / "seed-3" / "evaluation.json").read_text())
    written = json.loads((folder / "seeds.json").read_text())
    assert written["seeds"] == [3, 5] and set(written["results"]) == set(five)
    for probe, rows in five.items():
        assert f"{probe}: mean and spread of 2 seeds" in said
        for row, metrics in rows.items():
            for name, value in metrics.items():
                both = [three[probe][row][name], value]
                mean, spread = statistics.fmean(both), abs(both[0] - both[1]) / 2**0.5
                found = written["results"][probe][row][name]
                assert found["values"] == both and found["mean"] == pytest.approx(mean)
                assert found["spread"] == pytest.approx(spread)
                assert (f"{mean:.3f} ±{spread:.3f}" in said) or spread < 1e-3
    assert said.splitlines()[-1] == f"run: {folder}"


def test_only_what_all_seeds_have_is_compared():
    found = [{"knn": {"model": {"top1": 1.0, "top5": 1.0}}, "x": {}}, {"knn": {"model": {"top1": 0.0}}}]
    assert together(found) == {
        "knn": {"model": {"top1": {"mean": 0.5, "spread": pytest.approx(0.5**0.5), "values": [1.0, 0.0]}}}
    }


def test_a_stop_says_how_all_of_them_go_on(recipe, tmp_path, monkeypatch):
    def stop(*_):
        raise Stopped("stopped at step 2")

    monkeypatch.setattr(several, "train", stop)
    with pytest.raises(
        Stopped, match=f"stopped at step 2\nWith .* --seeds with out={tmp_path / 'all'} goes on"
    ):
        train_seeds(str(recipe), [f"out={tmp_path / 'all'}"], [0, 1])


def test_without_an_evaluation_there_is_nothing_to_compare(recipe):
    with pytest.raises(RecipeError, match="--seeds: compares evaluations. Set evaluate.last: true"):
        train_seeds(str(recipe), ["evaluate.last=false"], [0, 1])


def test_one_process_at_a_time(recipe, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(RecipeError, match="--seeds: runs one process at a time"):
        train_seeds(str(recipe), [], [0, 1])
