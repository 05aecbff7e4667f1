"""docs/modalities.md, taken at its word: its files are written into an empty folder and run there as a user
would."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ACTIVITIES = {"sitting": 0.0, "walking": 1.8, "running": 3.0, "jumping": 4.5}  # steps per second
WORDS = {
    "sitting": "sitting still",
    "walking": "a slow walk",
    "running": "running fast",
    "jumping": "jumping up and down",
}
RATE_HZ = 50


def blocks() -> dict[str, str]:
    """{file name: text} of the page's blocks of code that begin with one."""
    found = re.findall(
        r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "docs" / "modalities.md").read_text(), re.S
    )
    return dict(found)


def record(rng: np.random.Generator, activity: str) -> tuple[np.ndarray, np.ndarray]:
    """The same seconds of two sensors, [T, 6] each: gravity, a swing at the activity's rate, noise."""
    time = np.arange(rng.integers(150, 250)) / RATE_HZ
    swing = np.sin(2 * np.pi * ACTIVITIES[activity] * rng.uniform(0.9, 1.1) * time + rng.uniform(0, 6))[
        :, None
    ]
    sides = (swing * rng.uniform(0.5, 1.0, 6) + [0, 0, 1, 0, 0, 0] for _ in range(2))
    return tuple(side + 0.1 * rng.normal(size=side.shape) for side in sides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page's files, and a table of 64 recordings: csv files of the wrist, npy files of the ankle."""
    root, rng = tmp_path_factory.mktemp("inertial"), np.random.default_rng(0)
    for name, text in blocks().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with open(root / "recordings.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["wrist", "ankle", "text", "activity"])
        for i in range(64):
            activity = list(ACTIVITIES)[i % 4]
            wrist, ankle = record(rng, activity)
            for place in ("wrist", "ankle"):
                (root / place).mkdir(exist_ok=True)
            np.savetxt(root / f"wrist/{i:02}.csv", wrist, delimiter=",", fmt="%.4f")
            np.save(root / f"ankle/{i:02}.npy", ankle)
            table.writerow([f"wrist/{i:02}.csv", f"ankle/{i:02}.npy", WORDS[activity], activity])
    return root


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_the_page_has_the_files_that_are_run_here():
    encoders = {f"encoders/{name}.py" for name in ("patches", "pieces", "inertial")}
    assert set(blocks()) == encoders | {"inertial.yaml"}
    code = [line for line in blocks()["encoders/patches.py"].splitlines() if line.strip()]
    assert len(code) == 10


def test_recordings_and_their_descriptions(folder):
    done = python(folder, "-m", "vicjoint.run", "inertial.yaml", "out=text")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "text" / "evaluation.json").read_text())
    assert set(results["linear"]) == {"model", "random_init", "spectrum", "chance"}
    for metric in ("a_to_b_r1", "b_to_a_r1"):
        assert results["retrieval"]["model"][metric] > results["retrieval"]["chance"][metric] + 0.2
    loaded = python(
        folder,
        "-c",
        "import numpy, vicjoint, torch\ne = vicjoint.load_encoder('text')\nraw ="
        " e.modality.read('wrist/00.csv')\nsecond = e.modality.read('wrist/00.csv', window=(0.5,"
        " 1.0))[0].T.numpy()\nassert numpy.allclose(second, numpy.loadtxt('wrist/00.csv',"
        " delimiter=',')[25:75])\nagain = vicjoint.load_encoder('text')\nprint(list(raw.shape),"
        " list(e(raw).shape), e.dim, torch.equal(e(raw), again(raw)), vicjoint.list_encoders('inertial'))",
    )
    assert loaded.stdout.strip() == "[1, 6, 100] [1, 64] 64 True ['conv']", loaded.stderr


def test_the_same_seconds_of_two_sensors_and_a_broken_file(folder):
    (folder / "wrist" / "01.csv").write_text("1,2,3\n4,5,6\n")
    done = python(
        folder,
        "-m",
        "vicjoint.run",
        "inertial.yaml",
        "pair={name: cross_modal, a: wrist, b: ankle, seconds: 2.0}",
        "b={weights: same}",
        "out=sensors",
        "train.steps=12",
        "data.workers=0",
        "data.max_bad_fraction=0.5",
        "source.split_by=wrist",
    )
    assert done.returncode == 0, done.stderr
    assert {"linear", "retrieval"} == set(json.loads((folder / "sensors" / "evaluation.json").read_text()))
    bad = [json.loads(line) for line in (folder / "sensors" / "bad_samples.jsonl").read_text().splitlines()]
    assert bad and all(
        "wrist/01.csv: an array of shape [2, 3], expected finite numbers [T, 6]" in line["cause"]
        for line in bad
    )


MISTAKES = {
    "a.modality={name: inertail}": "a.modality.name: no modality 'inertail'. Did you mean 'inertial'?",
    "a.encoder={name: conv, widht: 8}": (
        "encoder 'inertial/conv' takes no option 'widht'. Did you mean 'width'?"
    ),
    "a.modality={name: inertial, augment: [{name: trun}]}": (
        "no transform 'inertial/trun'. Did you mean 'inertial/turn'?"
    ),
}


def test_mistakes_are_named_and_the_encoder_of_ten_lines_is_there(folder):
    done = python(
        folder,
        "-c",
        "import vicjoint, torch\nfrom vicjoint.run import main\ncodes = [main(['inertial.yaml', mistake,"
        f" 'out=wrong']) for mistake in {list(MISTAKES)}]\ne = vicjoint.build_encoder('image', 'patches',"
        " width=16)\nprint(codes, 'patches' in vicjoint.list_encoders('image'), list(e(torch.zeros(2, 3, 64,"
        " 64)).shape), e.dim)",
    )
    assert done.stdout.strip() == "[2, 2, 2] True [2, 16] 16", done.stderr
    for message in MISTAKES.values():
        assert message in done.stderr
    assert not (folder / "wrong").exists()


def test_the_encoder_with_tokens_gives_them(folder):
    done = python(
        folder,
        "-c",
        "import vicjoint, torch\nfrom vicjoint.tokens import tokens_of\ne = vicjoint.build_encoder('image',"
        " 'pieces', width=16)\nx, mask, grid = tokens_of(e, view := torch.ones(2, 3, 64, 64))\nprint("
        "list(x.shape), bool(mask.all()), grid, torch.allclose(x.mean(1), e(view)))",
    )
    assert done.stdout.strip() == "[2, 64, 16] True (8, 8) True", done.stderr
