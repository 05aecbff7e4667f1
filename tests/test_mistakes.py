"""What a user does wrong with recipes, tables and folders: one clear message, exit code 2, no traceback,
nothing written."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vicjoint import registry, run

ROOT = Path(__file__).resolve().parents[1]
CONV = {"encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [8]}
TABLE = {
    "name": "m",
    "source": {"name": "table", "root": "t.csv"},
    "pair": {"name": "cross_modal", "a": "picture", "b": "words"},
    "a": {"modality": {"name": "image", "size": 16}, **CONV},
    "b": {"modality": "text", "encoder": {"name": "bytes_cnn", "width": 8}, "expander": [8]},
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
    "train": {"steps": 1, "batch_size": 2},
    "data": {"workers": 0},
    "evaluate": {"probes": []},
}
FOLDER = {
    **TABLE,
    "source": {"name": "image_folder", "root": "pictures"},
    "pair": {"name": "augment", "size": 16},
    "a": {"modality": "image", **CONV},
    "b": {"weights": "same"},
}
GOOD_CSV = "id,picture,words\n" + "".join(f"r{i},pictures/{i}.png,{i} dogs\n" for i in range(6))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for i in range(6):
        Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)).save(f"pictures/{i}.png")
    Path("t.csv").write_text(GOOD_CSV)
    Path("table.yaml").write_text(json.dumps(TABLE))
    Path("folder.yaml").write_text(json.dumps(FOLDER))
    return tmp_path


def csv(text) -> callable:
    return lambda: Path("t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def yaml_file(text) -> callable:
    return lambda: Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def empty_folder():
    for path in Path("pictures").iterdir():
        path.unlink()


def one_picture():
    for path in sorted(Path("pictures").iterdir())[1:]:
        path.unlink()


def run_before():
    assert run.main(["folder.yaml", "out=before", "train.seed=1"]) == 0


MISTAKES = {
    "no recipe": (None, [], "no recipe given. Usage:"),
    "no such recipe": (
        None,
        ["nothing.yaml"],
        "no recipe 'nothing.yaml': no such file. Shipped recipes: audio_video, ",
    ),
    "no such recipe by name": (
        None,
        ["fashion_mnits"],
        "no recipe 'fashion_mnits': no such file (nor fashion_mnits.yaml). Did you mean 'fashion_mnist'?",
    ),
    "a folder as recipe": (None, ["pictures"], "no recipe 'pictures'"),
    "a picture as recipe": (
        lambda: yaml_file(Path("pictures/0.png").read_bytes())(),
        ["r.yaml"],
        "recipe r.yaml cannot be read as UTF-8 text",
    ),
    "an empty recipe": (yaml_file(""), ["r.yaml"], "recipe r.yaml is not a mapping of keys"),
    "a list": (
        yaml_file("- a\n- b\n"),
        ["r.yaml"],
        "is not a mapping of keys such as `name: ...`; it holds ['a', 'b']",
    ),
    "a tab": (
        yaml_file("name: x\ntrain:\n\tsteps: 3\n"),
        ["r.yaml"],
        "recipe r.yaml, line 3, column 1: found character '\\t'",
    ),
    "an open bracket": (
        yaml_file("name: x\nsource: {name: table\n"),
        ["r.yaml"],
        "recipe r.yaml, line 3, column 1: expected ',' or '}'",
    ),
    "code in YAML": (
        yaml_file("name: !!python/object/apply:os.system ['touch owned']\n"),
        ["r.yaml"],
        "python/object/apply:os.system",
    ),
    "an argument without =": (
        None,
        ["table.yaml", "train.steps"],
        "argument 'train.steps': expected key=value",
    ),
    "an unknown key": (
        None,
        ["table.yaml", "train.step=3"],
        "train.step: unknown key. Did you mean 'steps'?",
    ),
    "no such folder": (
        None,
        ["folder.yaml", "source.root=picture"],
        "source.root: picture does not exist (seen from",
    ),
    "a folder that is a file": (None, ["folder.yaml", "source.root=t.csv"], "is a file, expected a folder"),
    "a folder without pictures": (empty_folder, ["folder.yaml"], "no image below"),
    "one picture": (one_picture, ["folder.yaml"], "only one file (0.png), expected two or more"),
    "a table that is a folder": (
        None,
        ["table.yaml", "source.root=pictures"],
        "is a folder, expected a csv, tsv, json, jsonl or parquet file",
    ),
    "a table of another kind": (
        lambda: Path("t.csv").rename("t.xlsx"),
        ["table.yaml", "source.root=t.xlsx"],
        "ends in '.xlsx', expected one of .csv",
    ),
    "an empty csv": (csv(""), ["table.yaml"], "is empty, expected a header line and at least two rows"),
    "a header only": (
        csv("id,picture,words\n"),
        ["table.yaml"],
        "is empty, expected a header line and at least two rows",
    ),
    "no header": (
        csv("\n".join(GOOD_CSV.splitlines()[1:])),
        ["table.yaml"],
        "pair.a: column 'picture' is not in the table; columns: ",
    ),
    "a comma too many": (
        csv(GOOD_CSV + "r9,pictures/1.png,a dog, a cat\n"),
        ["table.yaml"],
        "line 8: 4 fields, the header has 3. Put quotes around",
    ),
    "another encoding": (
        csv(GOOD_CSV.encode() + "r9,pictures/1.png,café\n".encode("latin-1")),
        ["table.yaml"],
        "is not UTF-8: invalid continuation byte at byte",
    ),
    "a column twice": (
        csv(GOOD_CSV.replace("id,picture", "words,picture")),
        ["table.yaml"],
        "has two columns named 'words'",
    ),
    "a wrong split": (
        csv("id,picture,words,split\nr1,pictures/1.png,a,train\nr2,pictures/2.png,b,hold\n"),
        ["table.yaml"],
        "line 3: split is 'hold', expected one of train",
    ),
    "no test rows": (
        csv("id,picture,words,split\nr1,pictures/1.png,a,train\nr2,pictures/2.png,b,train\n"),
        ["table.yaml"],
        "no row of column 'split' says test",
    ),
    "wrong paths": (
        csv(GOOD_CSV.replace("picture,", "path,").replace("pictures/", "images/")),
        ["table.yaml", "pair.a=path"],
        "none of the first 6 files exists",
    ),
    "broken JSON lines": (
        lambda: Path("t.jsonl").write_text('{"picture": "a"}\n{"picture": \n'),
        ["table.yaml", "source.root=t.jsonl"],
        "line 2: is not JSON",
    ),
    "no parquet": (
        lambda: Path("t.parquet").write_text("no parquet"),
        ["table.yaml", "source.root=t.parquet"],
        "cannot read",
    ),
    "a batch that no part divides": (
        None,
        ["folder.yaml", "train.batch_size=5", "train.accumulate=2"],
        "train.accumulate: 5 records a batch cannot be cut into 2",
    ),
    "out is a file": (None, ["folder.yaml", "out=t.csv"], "out: t.csv is a file"),
    "out holds other files": (None, ["folder.yaml", "out=pictures"], "out: pictures holds files but no run"),
    "out holds another run": (
        run_before,
        ["folder.yaml", "out=before", "train.seed=2"],
        "holds a run of a different recipe. It differs in:\n  train.seed: 1 -> 2",
    ),
    "a table without files": (
        None,
        ["folder.yaml", "source={name: table, root: t.csv}"],
        (
            "pair 'augment' reads one file of every record, and those of source 'table' have none; they have"
            " picture, words. In a table, name the column with the files: source.column=COLUMN. Cells are"
            " read by"
        ),
    ),
    "videos of a table without files": (
        None,
        [str(ROOT / "recipes" / "video_next_frame.yaml"), "source={name: table, root: t.csv}"],
        "pair 'next_frame' reads one file",
    ),
    "an encoder of another name": (
        None,
        ["folder.yaml", "a.encoder={name: resnet_50}"],
        "a.encoder.name: no encoder 'image/resnet_50'. Did you mean 'image/resnet50'? Known for image: ",
    ),
    "a weight of one branch": (
        None,
        ["table.yaml", "objective={name: vicreg, invariance: {a: 25}}"],
        "objective.invariance: {'a': 25.0} has the branches ['a']. Expected",
    ),
    "a view too small": (
        None,
        ["folder.yaml", "pair.size=2"],
        "pair.size: expected a number at least 8, got 2.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_message(name, capsys):
    prepare, arguments, cause = MISTAKES[name]
    if prepare:
        prepare()
    capsys.readouterr()
    before = sorted(Path(".").rglob("*"))
    assert run.main(arguments) == 2
    said = capsys.readouterr()
    assert cause in said.err and "Traceback" not in said.err + said.out
    assert len(said.err.strip().splitlines()) <= 4 and sorted(Path(".").rglob("*")) == before


@pytest.mark.parametrize(
    "command, folder, cause",
    [
        ("evaluate", "runs/7", "runs/7: no such folder. Expected a run folder, such as"),
        ("evaluate", "pictures", "pictures has no recipe.yaml. Expected a run folder"),
        ("export", "runs/7", "runs/7: no such folder. Expected a run folder or an export"),
        ("export", "pictures", "pictures has no recipe.yaml. Expected a run folder or"),
        ("report.page", "runs/7", "'runs/7' is not a folder. Expected a run folder"),
    ],
)
def test_other_commands_say_what_is_not_a_run(command, folder, cause, capsys):
    main = importlib.import_module(f"vicjoint.{command}").main
    before = sorted(Path(".").rglob("*"))
    assert main([folder, *(["--to", "exported"] if command == "export" else [])]) == 2
    said = capsys.readouterr()
    assert (
        cause in said.err
        and len(said.err.splitlines()) == 1
        and not said.out
        and sorted(Path(".").rglob("*")) == before
    )


def test_a_list_that_nobody_reads_to_its_end(place):
    done = subprocess.run(
        f"{sys.executable} -m vicjoint.run --list | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "modality\n", "")


def test_the_names_of_many_are_cut_short():
    names = [f"n{i:03}" for i in range(90)]
    assert registry.some(names) == ", ".join(names[:20]) + ", ... (90 in all: python -m vicjoint.run --list)"
    assert registry.some(names[:22]) == ", ".join(names[:22]) and registry.some([]) == "none"


def test_the_command_itself(place):
    yaml_file("name: [1, 2\n")()
    done = subprocess.run(
        [sys.executable, "-m", "vicjoint.run", "r.yaml"],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.strip() and "Traceback" not in done.stderr
