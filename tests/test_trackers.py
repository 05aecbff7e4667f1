"""What TensorBoard, W&B and trackio get of a run: each step once, also of one that was stopped and goes on.
Nothing is sent anywhere."""

import json
import re
import sqlite3

import pytest
import tiny

from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.recipe.compare import differences
from vicjoint.registry import ComponentError
from vicjoint.run import main
from vicjoint.training import loop, steps, trackers
from vicjoint.training.stopping import Stopped
from vicjoint.training.trackers import Trackers


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def recipe(*names, **changes):
    return load_recipe(tiny.recipe(**changes), [f"train.trackers=[{', '.join(names)}]"])


def value(step: int) -> float:
    """One that is found again in any file."""
    return step + 0.7310585


def show(name: str, folder, start: int, end: int) -> None:
    """The steps after `start` up to `end`, and an evaluation, as a run shows and writes them."""
    folder.mkdir(exist_ok=True)
    with Trackers(recipe(name), folder, start) as opened:
        for step in range(start + 1, end + 1):
            opened.step(step, {"loss": value(step)})
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step}) + "\n")
        model = {"top1": value(end * 100), "top1_low": 0.2, "top1_high": 0.3}  # intervals are not shown
        opened.evaluation(end, {"knn": {"model": model, "chance": {"top1": 0.1}}})
        (folder / "evaluation.jsonl").write_text(json.dumps({"step": end}) + "\n{broken")


# ---- each tracker: begun, stopped after step 5, gone on from step 3 to step 8 ----


def test_tensorboard_has_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    show("tensorboard", folder, 0, 5), show("tensorboard", folder, 3, 8)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    points = {event.step: event.value for event in board.Scalars("loss")}
    assert list(points) == list(range(1, 9)) and points[4] == pytest.approx(value(4))
    assert [event.step for event in board.Scalars("loss")] == sorted(points)
    assert [event.step for event in board.Scalars("knn/top1")] == [8], "that of step 5 is to come again"
    text = board.Tensors("recipe/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "name: tiny" in text


def test_wandb_has_each_step_once(tmp_path):
    wandb = pytest.importorskip("wandb")
    folder = tmp_path / "run"
    show("wandb", folder, 0, 5), show("wandb", folder, 3, 8)
    wandb.teardown()  # waits for its process
    first, second = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    number = json.loads((folder / "trackers.json").read_text())["wandb"]
    assert first.name == second.name == f"run-{number}.wandb"
    known = lambda path: [s for s in range(1, 9) if f"{value(s)}".encode() in path.read_bytes()]
    assert known(first) == [1, 2, 3, 4, 5] and known(second) == [6, 7, 8]
    assert str(value(500)).encode() in first.read_bytes() and str(value(800)).encode() in second.read_bytes()
    assert b"tiny_rows" in first.read_bytes(), "the recipe"
    assert f"{tmp_path.name}/run".encode() in first.read_bytes(), "the folder's name"


def test_trackio_has_each_step_once(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (trackio, sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    show("trackio", tmp_path / "run", 0, 5)
    (tmp_path / "elsewhere").mkdir()
    show("trackio", tmp_path / "elsewhere" / "run", 0, 5)
    show("trackio", tmp_path / "run", 3, 8)
    database = sqlite3.connect(tmp_path / "trackio" / "tiny.db")
    found = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    number = json.loads((tmp_path / "run" / "trackers.json").read_text())["trackio"]
    of_run = [(step, json.loads(of)) for run, step, of in found if run == f"{tmp_path.name}/run {number}"]
    assert [(s, of["loss"]) for s, of in of_run if "loss" in of] == [(s, value(s)) for s in range(1, 9)]
    assert [(s, of) for s, of in of_run if "loss" not in of] == [
        (step, {"knn/top1": value(step * 100)}) for step in (5, 8)
    ]
    assert len(found) - len(of_run) == 6, "of the run of the same name elsewhere"
    (config,) = set(database.execute("select config from configs where run_name like ?", [f"%{number}"]))
    assert json.loads(config[0])["source"] == {"name": "tiny_rows"}
    database.close()


# ---- runs ----


class Recorder(trackers.Tracker):
    """Keeps in `given` what it gets; `begun`: what it was told."""

    modules = ["json"]
    given: list[tuple[int, dict]] = []
    begun: list[trackers.Beginning] = []
    open = 0

    def __init__(self, run):
        Recorder.begun.append(run)
        Recorder.open += 1

    def step(self, step, values):
        Recorder.given.append((step, values))

    def close(self):
        Recorder.open -= 1


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Recorder)
    # a second of plots, which no test here looks at
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(Recorder, "given", [])
    monkeypatch.setattr(Recorder, "begun", [])
    return Recorder


def train(folder, *overrides, made=None):
    return loop.train(made or tiny.recipe(), ["train.trackers=[wandb]", f"out={folder}", *overrides])


def test_a_run_shows_its_steps_and_its_evaluations(recorder, tmp_path):
    folder = train(tmp_path / "run", "train.steps=5")
    lines = tiny.metrics(folder)
    of_steps = [(step, values) for step, values in recorder.given if "loss" in values]
    assert [step for step, _ in of_steps] == [1, 2, 3, 4, 5]
    assert all(values["loss"] == line["loss"] for (_, values), line in zip(of_steps, lines))
    last = of_steps[-1][1]
    assert last["health_a/rank"] == lines[-1]["health"]["a"]["rank"] and "health/alignment" in last
    assert {"variance", "lr", "waited"} <= set(last) and all(isinstance(v, float) for v in last.values())
    results = json.loads((folder / "evaluation.json").read_text())["tiny_probe"]["model"]
    evaluations = [(step, values) for step, values in recorder.given if "loss" not in values]
    assert [step for step, _ in evaluations] == [3, 5]
    assert evaluations[-1][1] == {f"tiny_probe/{metric}": value for metric, value in results.items()}
    (begun,) = recorder.begun
    assert (begun.name, begun.known, begun.recipe.name) == (f"{tmp_path.name}/run", False, "tiny")
    assert recorder.open == 0


def test_names_of_several_pairs_begin_with_the_pair(recorder, tmp_path):
    pairs = [{"a": "x", "b": side, "pair": {"name": "tiny_views"}} for side in ("x", "y")]
    made = tiny.recipe(branches={name: tiny.branch() for name in "xy"}, pairs=pairs, evaluate={})
    for key in ("a", "b", "pair"):
        del made[key]
    train(tmp_path / "run", "train.steps=2", made=made)
    assert [next(iter(values)) for _, values in recorder.given] == ["x-x/loss", "x-y/loss"]


def test_a_run_that_goes_on_shows_nothing_twice(recorder, tmp_path, monkeypatch):
    left, update = [9], steps.update

    def stopping(*given):
        update(*given)
        left[0] -= 1
        if not left[0]:
            raise Stopped("stopped")

    monkeypatch.setattr(steps, "update", stopping)
    with pytest.raises(Stopped):
        train(tmp_path / "run")
    assert recorder.open == 0
    monkeypatch.setattr(steps, "update", update)
    train(tmp_path / "run")
    train(tmp_path / "run")  # finished: it is only evaluated again
    assert [step for step, values in recorder.given if "loss" in values] == list(range(1, 15))
    assert [step for step, values in recorder.given if "loss" not in values] == [3, 6, 9, 12, 14]
    assert [run.known for run in recorder.begun] == [False, True, True]
    assert [run.start for run in recorder.begun] == [0, 8, 14] and len(
        {run.id for run in recorder.begun}
    ) == 1


def test_a_tracker_that_comes_later_gets_all_that_follows(recorder, tmp_path):
    folder = tmp_path / "run"
    for names in ("[]", "[wandb]"):
        train(folder, f"train.trackers={names}", "evaluate.every=null")
    assert [(step, list(values)) for step, values in recorder.given] == [
        (14, ["tiny_probe/distance", "tiny_probe/accuracy"])
    ]


# ---- the key ----


def test_trackers_do_not_make_another_recipe():
    assert differences(recipe("wandb"), recipe()) == []


def test_an_old_recipe_means_tensorboard():
    old = lambda value: load_recipe(tiny.recipe(), [f"train.tensorboard={value}"]).train.trackers
    assert old("true") == ["tensorboard"] and old("false") == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        (
            "train.trackers=[wandv]",
            r"train.trackers.0: expected one of 'tensorboard', 'wandb' or 'trackio', got",
        ),
        ("train.trackers=wandb", "train.trackers: expected a list, got 'wandb'."),
        ("train.tensorboard=yes", "train.tensorboard: unknown key. Known: .* trackers."),
    ],
)
def test_wrong_ones_are_refused(wrong, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(tiny.recipe(), [wrong])


def test_what_is_not_installed_is_said_before_a_folder_is_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trackers.TensorBoard, "modules", ["no_such_board"])
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny.recipe()))
    assert main([str(path), "train.trackers=[tensorboard]", f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"train.trackers: tensorboard needs no_such_board .*pip install 'vicjoint\[tensorboard\]'", said
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_of_its_name_is_not_the_library(monkeypatch, tmp_path):
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trackers.WandB, "modules", ["only_a_folder"])
    with pytest.raises(
        ComponentError, match="wandb is not installed, only a folder wandb/ is here: pip install"
    ):
        trackers.check_trackers(["wandb"])


def test_a_tracker_that_cannot_begin_says_why(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise wandb.Error("no key")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        RecipeError, match="wandb cannot begin a run: no key. Log in .* or set WANDB_MODE=off"
    ):
        Trackers(recipe("wandb"), tmp_path, 0)
    assert not (tmp_path / "trackers.json").exists()


def test_those_that_have_begun_are_closed_where_another_cannot(recorder, monkeypatch, tmp_path):
    def cannot(self, run):
        raise RecipeError("no")

    monkeypatch.setattr(trackers.Trackio, "__init__", cannot)
    with pytest.raises(RecipeError, match="^no$"):
        Trackers(recipe("wandb", "trackio"), tmp_path, 0)
    assert len(recorder.begun) == 1 and recorder.open == 0
