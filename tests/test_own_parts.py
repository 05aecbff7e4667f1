"""A modality, a pair and a probe of a user, written from vicjoint/parts alone, each under 40 lines, in a
module that the recipe imports; run as a user runs them."""

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

MODALITY = '''
import torch
from vicjoint import register, register_encoder
from vicjoint.parts import Modality


@register("modality", "temperatures")
class Temperatures(Modality):
    """A day's temperatures, "12.5 13 ...": float [1, 24], in tens of degrees."""

    reads = "text"
    baseline = "mean"

    def read(self, value, rng=None, window=None):
        x = torch.tensor([[float(v) for v in value.split()]]) / 10
        if x.shape[1] != 24:
            raise ValueError(f"a day has {x.shape[1]} temperatures, expected 24")
        return x if rng is None else x + 0.01 * torch.from_numpy(rng.normal(size=x.shape)).float()

    def simple_features(self, raw):
        return raw.mean(1, keepdim=True)


@register_encoder("temperatures", "line")
class Line(torch.nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.dim = width
        self.net = torch.nn.Sequential(torch.nn.Linear(24, width), torch.nn.Tanh())

    def forward(self, view):
        return self.net(view)
'''

PAIR = '''
from vicjoint import register
from vicjoint.parts import Pair, View


@register("pair", "next_day")
class NextDay(Pair):
    """A day of a station, and the day after it."""

    uses_readers = True
    gives = frozenset({"views"})

    def __init__(self, today: str, tomorrow: str):
        self.columns = {"a": today, "b": tomorrow}

    def _read(self, record, side, rng=None):
        return self.readers["ab".index(side)].read(record[self.columns[side]], rng)

    def sample(self, record, rng):
        return self._read(record, "a", rng), self._read(record, "b", rng)

    def views(self, record, side, rng=None, read=True):
        return [View(self._read(record, side) if read else None, record["id"], title=record["id"])]

    def group_of(self, record, number):
        return int(record["station"])
'''

PROBE = '''
import torch
from vicjoint import register
from vicjoint.parts import Metric, Probe, Want


@register("probe", "warmer")
class Warmer(Probe):
    """Do warm days lie apart from cold ones? The distance of their means over the spread of all."""

    needs = frozenset({"views"})
    scope = "branch"
    explains = {"apart": Metric("distance of the means of warm and cold days, in standard deviations")}

    def __init__(self, label: str = "warm", branch: str = "a"):
        self.label, self.branch = label, branch

    def misses(self, data):
        return None if self.label in data.records("test")[0] else f"there is no column '{self.label}'"

    def wants(self, data):
        return [Want(self.branch, "test")]

    def measure(self, features):
        items = features.items(self.wants(features.data)[0])
        records = features.data.records("test", self.branch)
        warm = torch.tensor([records[place][self.label] == "1" for place in items.places.tolist()])
        for row, y in items.rows.items():
            row = features.baseline(self.branch) if row == "simple" else row
            yield f"{row}/apart", float((y[warm].mean(0) - y[~warm].mean(0)).norm() / y.std(0).norm())
'''

RECIPE = """
name: days
imports: [parts.modality, parts.pair, parts.probe]
source: {name: table, root: days.csv}
pair: {name: next_day, today: today, tomorrow: tomorrow}
a: {modality: temperatures, encoder: {name: line}, expander: [32, 32]}
b: {weights: same}
objective: {name: vicreg}
optim: {name: adamw, lr: 1e-2, schedule: {name: constant}}
train: {steps: 30, batch_size: 16}
data: {workers: 0}
evaluate: {probes: [{name: warmer}, {name: warmer, label: windy, as: windy}]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("days"), np.random.default_rng(0)
    (root / "parts").mkdir()
    for name, text in {"modality": MODALITY, "pair": PAIR, "probe": PROBE}.items():
        (root / "parts" / f"{name}.py").write_text(text)
    (root / "days.yaml").write_text(RECIPE)
    with open(root / "days.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "today", "tomorrow", "station", "warm"])
        for i in range(80):
            mean = rng.normal(10, 8)
            days = [mean + 3 * np.sin(np.arange(24) / 4) + rng.normal(size=24) for _ in range(2)]
            texts = [" ".join(f"{t:.1f}" for t in day) for day in days]
            table.writerow([f"day {i}", *texts, i % 4, int(mean > 10)])
    return root


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vicjoint.run", "days.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("text", [MODALITY, PAIR, PROBE])
def test_each_is_short_and_knows_parts_alone(text):
    assert len(text.strip().splitlines()) < 40
    assert set(re.findall(r"from (vicjoint\S*) import", text)) == {"vicjoint", "vicjoint.parts"}


def test_they_run(folder):
    done = run(folder, "out=run")
    assert done.returncode == 0, done.stderr
    assert "probe windy is left out: there is no column 'windy'" in done.stdout
    (rows,) = json.loads((folder / "run" / "evaluation.json").read_text()).values()
    assert set(rows) == {"model", "random_init", "mean"} and rows["mean"]["apart"] > 1
    page = (folder / "run" / "report.html").read_text()
    assert "distance of the means of warm and cold days" in page


def test_a_part_that_inherits_nothing_is_told_what_to_inherit(folder):
    (folder / "parts" / "bare.py").write_text(
        PAIR.replace("class NextDay(Pair)", "class NextDay").replace("next_day", "bare")
    )
    done = run(folder, "imports=[parts.bare]", "out=bare")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pair 'bare'" in done.stderr and "Write class NextDay(Pair)" in done.stderr
