"""The explorer of a run: test items of every kind of pair, with right and wrong neighbours, linked from its
report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_embed import FUTURE, film, picture
from test_explore import data

import vicjoint
from vicjoint.evaluate import main
from vicjoint.probes.features import Reader
from vicjoint.report.page import write_report
from vicjoint.training import loop
from vicjoint.training.exploring import some_of_each, with_partners

LEARNING = {
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
    "train": {"steps": 2, "batch_size": 4},
    "data": {"workers": 0},
}
PICTURE = {
    "modality": {"name": "image", "size": 16},
    "encoder": {"name": "conv", "width": 4, "dim": 8},
    "expander": [6],
}
WORDS = {
    "modality": "text",
    "encoder": {"name": "bytes_cnn", "width": 4, "layers": 1, "dim": 5},
    "expander": [6],
    "weights": "own",
}
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """12 pictures in class folders, half of them for testing, and a table of them: of the test rows 0 and 3
    share their words, 1 and 4 their picture; and films."""
    root = tmp_path_factory.mktemp("data")
    lines = ["picture,words,colour,split"]
    for split in ("train", "test"):
        for i in range(6):
            path = f"pictures/{split}/{COLOURS[i % 3]}/{i}.png"
            picture(root / path, i)
            shown = path if i != 4 else f"pictures/{split}/green/1.png"
            words = "red" if i in (0, 3) else f"words {i}"
            lines.append(f"{shown},{words} of {split},{COLOURS[i % 3]},{split}")
    (root / "index.csv").write_text("\n".join(lines))
    for split in ("train", "test"):
        for i in range(2):
            film(root / "videos" / split / f"{i}.mp4", 1.5, i, sound=False)
    return root


@pytest.fixture
def no_report(monkeypatch):
    """Half a second of plots that a test does not look at."""
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")


def paired(root, probes=({"name": "retrieval", "linear_map": 0},), **changes) -> dict:
    return {
        "name": "paired",
        "source": {"name": "table", "root": str(root / "index.csv")},
        "pair": {"name": "cross_modal", "a": "picture", "b": "words"},
        "a": PICTURE,
        "b": WORDS,
        "evaluate": {"probes": list(probes)},
        **LEARNING,
        **changes,
    }


def items(found: dict) -> list[str]:
    return [str(item).removesuffix(" of test").rsplit("/")[-1] for item in found["items"]]


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    return vicjoint.train(paired(root), [f"out={tmp_path_factory.mktemp('run') / 'run'}"])


def test_partners_are_those_that_retrieval_counts(run):
    found = data(run / "explorer")
    assert [(c["name"], c["modality"], c["count"]) for c in found["clouds"]] == [
        ("a", "image", 5),
        ("b", "text", 5),
    ]
    named = items(found)
    right = {named[i]: sorted(named[k] for k in row) for i, row in enumerate(found["partners"])}
    assert right == {
        "0.png": ["red"],
        "1.png": ["words 1", "words 4"],
        "2.png": ["words 2"],
        "3.png": ["red"],
        "5.png": ["words 5"],
        "red": ["0.png", "3.png"],
        "words 1": ["1.png"],
        "words 2": ["2.png"],
        "words 4": ["1.png"],
        "words 5": ["5.png"],
    }
    assert [name is None for name in found["picture"]] == [False] * 5 + [True] * 5
    said = {column["name"]: column["values"] for column in found["columns"]}
    assert said["colour"] == ["red", "green", "blue", "red", "blue", "red", "green", "blue", "green", "blue"]
    assert said["record"][0] == "row 7" and "folder" not in said


def test_the_neighbours_are_those_of_the_evaluation(run):
    found, model = data(run / "explorer"), json.loads((run / "evaluation.json").read_text())
    first = [found["near"][1]["numbers"][i][0] in found["partners"][i] for i in range(5)]
    # of six rows, the picture that two of them share asks twice
    share = (sum(first) + first[1]) / 6
    assert share == pytest.approx(model["retrieval"]["model"]["a_to_b_r1"])


def test_what_is_encoded_already_is_not_encoded_again(root, tmp_path, monkeypatch, no_report):
    calls, encode = [], Reader.encode
    monkeypatch.setattr(
        Reader, "encode", lambda self, part, m: (calls.append(part.side), encode(self, part, m))
    )
    vicjoint.train(paired(root), [f"out={tmp_path / 'run'}"])
    assert calls == ["a", "b"]
    vicjoint.train(paired(root, probes=[]), [f"out={tmp_path / 'other'}"])
    assert calls == ["a", "b"] * 2 and len(data(tmp_path / "other" / "explorer")["items"]) == 10


def test_the_report_links_to_it_where_it_is(run, tmp_path, capsys):
    html = (run / "report.html").read_text()
    (address,) = re.findall(r'<a href="([^"]*)">', html)
    assert address == "explorer/index.html" and (run / address).exists()
    moved = (run / "explorer" / "index.html").rename(tmp_path / "index.html")
    assert "<a " not in write_report(run).read_text()
    moved.rename(run / "explorer" / "index.html")
    assert main([str(run), "--write", "evaluate.explorer=4"]) == 0
    said = capsys.readouterr().out
    assert f"explorer: {run / 'explorer' / 'index.html'} (4 test items, made in" in said
    assert len(data(run / "explorer")["items"]) == 4
    # the two chosen pictures find their words
    assert all(data(run / "explorer")["partners"])
    assert main([str(run), "--write", "evaluate.explorer=0"]) == 0
    assert "explorer" not in capsys.readouterr().out and not list(run.glob("explorer/media"))
    assert "<a " not in (run / "report.html").read_text()


def test_a_class_is_right_where_both_views_are_of_one_image(root, tmp_path, no_report):
    made = {
        "name": "views",
        "source": {"name": "image_folder", "root": str(root / "pictures")},
        "pair": {"name": "augment", "size": 16},
        "a": PICTURE | {"modality": "image"},
        "b": {"weights": "same"},
        "evaluate": {"probes": [{"name": "knn", "label": "label"}]},
        **LEARNING,
    }
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    found = data(folder / "explorer")
    assert found["columns"][found["right"]] == {
        "name": "label",
        "values": ["blue", "blue", "green", "green", "red", "red"],
    }
    assert found["partners"] is None and all(found["picture"]) and len(found["clouds"]) == 1


def test_an_empty_label_is_no_class(root, tmp_path, no_report):
    paths = sorted((root / "pictures").rglob("*.png"))
    label = lambda i: "" if i % 4 == 0 else ("dark", "light")[i % 2]
    lines = [f"{path},{label(i)},{'test' if i < 8 else 'train'}" for i, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    made = {
        "name": "views",
        "source": {"name": "table", "root": str(tmp_path / "t.csv"), "column": "path", "split": "split"},
        "pair": {"name": "augment", "size": 16},
        "a": PICTURE | {"modality": "image"},
        "b": {"weights": "same"},
        **LEARNING,
    }
    found = data(vicjoint.train(made, [f"out={tmp_path / 'run'}"]) / "explorer")
    values = found["columns"][found["right"]]["values"]
    assert sorted(values) == ["dark", "dark", "light", "light", "light", "light"]


def test_a_clip_plays_and_the_frame_after_it_is_its_partner(root, tmp_path, no_report):
    text = FUTURE.replace("ROOT", str(root)).replace("batch_size: 4", "batch_size: 2")
    (tmp_path / "future.yaml").write_text(text)
    folder = vicjoint.train(tmp_path / "future.yaml", [f"out={tmp_path / 'run'}", "data.workers=0"])
    found = data(folder / "explorer")
    assert [c["name"] for c in found["clouds"]] == ["a's prediction", "b"]
    assert found["partners"] == [[2], [3], [0], [1]]
    assert all(found["clip"][:2]) and found["clip"][2:] == [None, None] and all(found["picture"])
    start, end = found["seconds"][0]
    assert 0 < start < end < 1.5 and end - start == pytest.approx(5 / 24, abs=1e-3)
    assert items(found)[2:] == ["0.mp4", "1.mp4"] and found["cause"] == [""] * 4


def test_every_task_has_its_page(root, tmp_path):
    made = paired(root)
    pairs = {"a": "picture", "b": "words", "pair": made.pop("pair")}
    words = {key: value for key, value in WORDS.items() if key != "weights"}
    made |= {"branches": {"picture": made.pop("a"), "words": words}}
    made["pairs"] = [
        pairs,
        pairs | {"a": "words", "b": "picture", "pair": {"name": "cross_modal", "a": "words", "b": "picture"}},
    ]
    del made["b"]
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    links = re.findall(r'<a href="([^"]*)">([^<]*)', (folder / "report.html").read_text())
    assert links == [(f"explorer/{name}/index.html", name) for name in ("picture-words", "words-picture")]
    assert data(folder / "explorer" / "words-picture")["clouds"][0]["reads"] == "text"


def test_a_key_makes_partners(root, tmp_path, no_report):
    pair = {"name": "cross_modal", "a": "picture", "b": "words", "key": "colour"}
    folder = vicjoint.train(paired(root, pair=pair), [f"out={tmp_path / 'run'}"])
    found = data(folder / "explorer")
    named = items(found)
    assert sorted(named[k] for k in found["partners"][named.index("2.png")]) == ["words 2", "words 5"]


def test_a_page_that_cannot_be_made_does_not_end_the_run(root, tmp_path, capsys):
    folder = vicjoint.train(paired(root), [f"out={tmp_path / 'run'}", "evaluate.last=false"])
    assert not (folder / "explorer").exists()
    (folder / "explorer").mkdir()
    (folder / "explorer" / "notes.txt").write_text("mine")
    assert main([str(folder)]) == 0
    said = capsys.readouterr()
    assert (
        "explorer: there is no page: to: " in said.out + said.err
        and "holds other files" in said.out + said.err
    )
    assert "<a " not in (folder / "report.html").read_text()
    assert [path.name for path in (folder / "explorer").iterdir()] == ["notes.txt"]


def test_which_items_are_shown():
    assert some_of_each(["x", "y", None, "x", "y", "x"], 4).tolist() == [0, 1, 4, 5]
    many = some_of_each([i % 50 for i in range(1000)], 40)  # four classes of ten
    assert len(many) == 40 and len({i % 50 for i in many.tolist()}) == 4
    has = np.array([True, False, False, True, True, False])
    assert with_partners(has, 2).tolist() == [0, 4] and with_partners(has, 4).tolist() == [0, 1, 3, 4]
    assert with_partners(has, 9).tolist() == [0, 1, 2, 3, 4, 5] and with_partners(~has & has, 2).tolist() == [
        0,
        5,
    ]
