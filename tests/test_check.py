"""python -m vicjoint.check: everything is read once, what is bad is grouped and counted, and the exit code
says which it is."""

import json
import os

import numpy as np
import pytest
import torch
from faults import FAULTS, GOOD
from PIL import Image

from vicjoint import check, run
from vicjoint.recipe import load_recipe


def recipe(root, **changes) -> dict:
    branch = {"modality": "image", "encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [8]}
    return {
        "name": "look",
        "source": {"name": "image_folder", "root": str(root)},
        "pair": {"name": "augment", "size": 16},
        "a": branch,
        "b": branch,
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
        "train": {"steps": 1, "batch_size": 4},
        "data": {"workers": 0},
        **changes,
    }


def write(folder, made) -> str:
    (folder / "recipe.yaml").write_text(json.dumps(made))
    return str(folder / "recipe.yaml")


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)).save(root / split / f"{i}.png")
    return root


def test_clean_bad_and_wrong(pictures, tmp_path, capsys):
    path = write(tmp_path, recipe(pictures))
    assert check.main([path]) == 0
    said = capsys.readouterr()
    assert (
        "0 of 12 records cannot be read (6 train, 6 test)" in said.out
        and "all can be read" in said.out
        and "check: 100%" in said.err
    )

    (pictures / "train" / "1.png").write_bytes(b"")
    (pictures / "train" / "2.png").write_bytes(b"")
    (pictures / "test" / "3.png").write_bytes(b"<script>")
    (pictures / "train" / "\x1b[2J.png").write_bytes(b"no picture at all, 4 words")
    assert check.main([path, "--json", str(tmp_path / "found.json"), "data.max_bad_fraction=0.6"]) == 1
    said = capsys.readouterr().out
    assert "4 of 13 records cannot be read (7 train, 6 test)" in said
    assert "3 are for training, 42.86%: with data.max_bad_fraction=0.6 a run replaces them" in said
    assert (
        "  2 x " in said
        and "train/1.png (train), train/2.png (train)" in said
        and "the file is empty (0 bytes)" in said
    )
    assert "\\x1b[2J.png (train)" in said and "\x1b[2J" not in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["records"] == 13 and found["bad"] == 4 and found["records_per_second"] > 0
    assert {(e["part"], e["sample"]) for e in found["pairs"][0]["bad"]} == {
        ("train", "train/1.png"),
        ("train", "train/2.png"),
        ("test", "test/3.png"),
        ("train", "train/\x1b[2J.png"),
    }
    assert (
        check.main([path]) == 1
        and "data.max_bad_fraction=0.01 a run stops at them" in capsys.readouterr().out
    )

    assert check.main([path, "source.root=/no/such/folder"]) == 2 and check.main([path, "pair.size=1"]) == 2
    assert check.main([path, "--json", "/no/such/folder/x.json", "data.max_bad_fraction=0.6"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_processes_find_the_same(pictures, tmp_path):
    (pictures / "train" / "1.png").write_bytes(b"")
    one = check.check(load_recipe(recipe(pictures)))
    two = check.check(load_recipe(recipe(pictures), ["data.workers=1"]))
    assert one["pairs"] == two["pairs"] and one["bad"] == 1


def test_several_pairs_and_a_second_table_each_by_its_own_columns(tmp_path):
    place = tmp_path / "files"
    place.mkdir()
    rows = [
        {
            "id": f"r{i}",
            "picture": GOOD["image"](place, i),
            "sound": GOOD["audio"](place, i),
            "words": f"{i} dogs",
            "digit": str(i % 2),
            "split": "test" if i > 5 else "train",
        }
        for i in range(8)
    ]
    rows[1]["picture"], rows[2]["sound"], rows[6]["words"] = (
        str(place / "no.png"),
        str(place / "good0.png"),
        "",
    )
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    second = [
        {
            "id": f"s{i}",
            "drawn": GOOD["image"](place, 20 + i),
            "digit": str(i % 2),
            "split": "test" if i > 3 else "train",
        }
        for i in range(6)
    ]
    second[5]["drawn"] = str(place / "nothing.png")
    (tmp_path / "second.jsonl").write_text("\n".join(map(json.dumps, second)))
    conv = {"encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [8]}
    branches = {
        "picture": {"modality": {"name": "image", "size": 16}, **conv},
        "words": {"modality": "text", "encoder": {"name": "bytes_cnn", "width": 8}, "expander": [8]},
        "sound": {
            "modality": {"name": "audio", "seconds": 0.2},
            "encoder": {"name": "conv_mel", "width": 4},
            "expander": [8],
        },
    }
    table = {"name": "table", "root": str(tmp_path / "t.jsonl")}
    made = recipe(
        tmp_path,
        source=table,
        branches=branches,
        pairs=[
            {"a": "picture", "b": "words", "pair": {"name": "cross_modal", "a": "picture", "b": "words"}},
            {
                "a": "sound",
                "b": "picture",
                "pair": {"name": "cross_modal", "a": "sound", "b": "drawn", "key": "digit"},
                "source": {**table, "second": str(tmp_path / "second.jsonl")},
            },
        ],
    )
    for key in ("pair", "a", "b"):
        del made[key]
    found = check.check(load_recipe(made))
    first, keyed = found["pairs"]
    assert [(e["part"], e["sample"]) for e in first["bad"]] == [("train", "r1")]
    assert first["bad"][0]["cause"].endswith("no.png: no such file")
    left_out = "picture-words: 1 of 2 test records have what the pair reads; it leaves out the others"
    assert first["left_out"] == [left_out] and keyed["left_out"] == []
    assert [(e["part"], e["sample"]) for e in keyed["bad"]] == [("train", "r2"), ("second test", "s5")]
    assert keyed["records"] == {"train": 6, "test": 2, "second train": 4, "second test": 2}
    assert (
        left_out in check.in_words(found, 0.01)
        and "picture-words: 1 of 7 records" in (said := check.in_words(found, 0.01))
        and "sound-picture: 2 of 14 records" in said
    )


def test_films_are_read_by_windows(tmp_path):
    root = tmp_path / "films"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for name in ("cut", "good"):
            content = (root / f"{name}.mp4", GOOD["video"](root / split, 0 if name == "good" else 1))[1]
            os.rename(content, root / split / f"{name}.mp4")
    for split in ("train", "test"):
        (root / split / "cut.mp4").write_bytes((root / split / "cut.mp4").read_bytes()[:500])
    made = recipe(
        root,
        source={"name": "video_folder", "root": str(root)},
        pair={"name": "next_frame", "frames": 3, "size": 16, "windows": 2},
        a={"modality": "clip", "encoder": {"name": "conv_gru", "width": 4, "dim": 8}, "expander": [8]},
        b={"modality": "next_frame", "encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [8]},
    )
    found = check.check(load_recipe(made))["pairs"][0]
    assert [(e["part"], e["sample"]) for e in found["bad"]] == [
        ("train", "train/cut.mp4"),
        ("test", "test/cut.mp4"),
    ]


def test_a_reader_that_hangs_or_dies_is_named(pictures, tmp_path, monkeypatch, capsys):
    import time

    monkeypatch.setattr(
        "vicjoint.pairs.augment.read_record",
        lambda record: time.sleep(5) if record["id"] == "train/2.png" else torch.zeros(3, 20, 20),
    )
    monkeypatch.setattr("vicjoint.pairs.augment.Augment.sample", lambda self, record, rng: None)
    found = check.check(load_recipe(recipe(pictures), ["data.timeout=0.3"]))["pairs"][0]
    assert [(e["sample"], e["cause"]) for e in found["bad"]] == [
        ("train/2.png", "not read within 0.3 s (data.timeout)")
    ]

    def dies(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault.")

    monkeypatch.setattr("vicjoint.pairs.augment.read_record", dies)
    assert check.main([write(tmp_path, recipe(pictures))]) == 1
    said = capsys.readouterr().err
    assert (
        "died or stopped answering (DataLoader worker (pid 7) is killed" in said
        and "train/0.png" in said
        and "Traceback" not in said
    )


def test_kinds_leave_out_what_differs():
    assert check.kind("/a/b 1.png: 3 channel(s)") == check.kind("/c/d 22.png: 4 channel(s)")
    assert check.kind("'CCO' is not") == check.kind("'C(' is not") != check.kind("'CCO' has not")
    assert len({check.kind(f.cause or "") for f in FAULTS["text"].values()}) > 4


# ---- what was found, and what is not used ----


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """Three classes; in testing one of them is spelt differently, and a file that is no picture."""
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    for split, names in (("train", ("cat", "dog", "fox")), ("valid", ("CAT", "dog", "fox"))):
        for name in names:
            for i in range(4):
                path = tmp_path / "in" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)).save(path)
    (tmp_path / "in" / "train" / "notes.txt").write_text("-")
    return tmp_path / "in"


def test_a_run_says_what_it_found_and_what_it_does_not_use(classes, tmp_path, capsys):
    """In the same words on the terminal, in environment.json, on the page and by check."""
    probes = [{"name": "knn", "k": [1]}, {"name": "linear", "solver": "ridge"}]
    path = write(tmp_path, recipe(classes, evaluate={"probes": probes}))
    found = f"image_folder {classes}: 12 train, 12 test images of 3 classes; passed over: 1 .txt"
    unused = "knn, linear: 4 of 12 test records have a class that training lacks: CAT (4)"
    assert run.main([path, f"out={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [found, unused]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["source"] == found and environment["unused"] == unused
    page = (tmp_path / "run" / "report.html").read_text()
    assert found in page and unused in page
    assert check.main([path, "--json", str(tmp_path / "found.json")]) == 0
    said, checked = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "found.json").read_text())
    assert found in said and unused in said
    assert checked["unused"] == [unused] and checked["pairs"][0]["source"] == found


def test_ordinary_data_are_one_short_line(classes, tmp_path, capsys):
    (classes / "train" / "notes.txt").unlink()
    (classes / "valid" / "CAT").rename(classes / "valid" / "cat")
    path = write(tmp_path, recipe(classes, evaluate={"probes": [{"name": "knn", "k": [1]}]}))
    assert check.main([path]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"image_folder {classes}: 12 train, 12 test images of 3 classes"
    )


def test_a_split_without_classes_says_so(classes, tmp_path, capsys):
    for i, image in enumerate(sorted(classes.glob("valid/*/*.png"))):
        image.rename(classes / "valid" / f"{i}.png")
    path = write(tmp_path, recipe(classes, evaluate={"probes": [{"name": "knn", "k": [1]}]}))
    assert check.main([path]) == 0
    assert (
        "probe knn is left out: it needs two classes or more, and test samples of them, in 'label' of the"
        " records; found 3 classes. 12 of 12 test records have no 'label'."
    ) in capsys.readouterr().out.splitlines()


def test_the_verdict_is_that_of_a_run(classes, tmp_path, capsys):
    """One of twelve is more than a hundredth, and one may be bad all the same."""
    (classes / "train" / "cat" / "0.png").write_bytes(b"")
    path = write(tmp_path, recipe(classes, evaluate={"probes": []}))
    for most, verdict in ((0.01, "replaces"), (0, "stops at")):
        assert check.main([path, f"data.max_bad_fraction={most}"]) == 1
        assert f"with data.max_bad_fraction={most} a run {verdict} them" in capsys.readouterr().out
        assert run.main(
            [path, f"data.max_bad_fraction={most}", f"out={tmp_path / str(most)}", "train.steps=4"]
        ) == (0 if most else 1)
        capsys.readouterr()
