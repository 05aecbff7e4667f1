"""The pages and the version, taken at their word: examples run, rooms exist, halves are apart, links lead
somewhere."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vicjoint
from vicjoint.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
RECIPE = """
name: tones
source: {name: tones, number: 40}
pair: {name: out_of_tune, column: pitch, cents: 30}
a: {modality: number, encoder: {name: two_layers, dim: 8}, expander: [16, 4]}
b: {modality: number, encoder: {name: two_layers}, expander: [16, 4]}
predictor: {name: linear_step}
objective: {name: near_and_wide}
optim: {name: sgd, lr: 0.01, schedule: {name: halve, every: 4}}
train: {steps: 6, batch_size: 8}
data: {workers: 0}
evaluate: {probes: [{name: spread, branch: b}]}
"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---- the version ----


def test_the_version_is_one():
    assert 'dynamic = ["version"]' in read("pyproject.toml")
    assert f"({vicjoint.__version__})" in read("CHANGELOG.md") or f"## {vicjoint.__version__} " in read(
        "CHANGELOG.md"
    )
    for installed in importlib.metadata.distributions(name="vicjoint"):
        where = json.loads(installed.read_text("direct_url.json") or "{}").get("url")
        if where == ROOT.as_uri():
            assert installed.version == vicjoint.__version__, "pip install -e . again: its version is older"


# ---- the examples of CONTRIBUTING.md ----


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A user's folder, with a file for each example."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "encoders").mkdir()
    for number, text in enumerate(examples()):
        (folder / "encoders" / f"example_{number}.py").write_text(text, encoding="utf-8")
    (folder / "tones.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_an_example_of_each_family_and_it_is_registered(place):
    named = re.findall(r'@register\("(\w+)", "([\w/]+)"\)', "".join(examples()))
    encoders = re.findall(r'@register_encoder\("(\w+)", "(\w+)"\)', "".join(examples()))
    named += [("encoder", "/".join(two)) for two in encoders]
    assert {family for family, _ in named} == set(FAMILIES)
    code = f"from vicjoint.registry import find\nfor part in {named}: print(find(*part).__module__)"
    modules = python(place, "-c", code).split()
    assert len(modules) == len(named) and all(module.startswith("encoders.example_") for module in modules)


def test_the_examples_are_a_run(place):
    said = python(place, "-m", "vicjoint.run", "tones.yaml", "out=run")
    assert said.splitlines()[-1] == "run: run"
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"invariance", "variance"} <= set(lines[-1]) and lines[-1]["lr"] == 0.005
    table = json.loads((place / "run" / "evaluation.json").read_text())["spread"]
    assert set(table) == {"model", "random_init", "simple"} and all(row["std"] > 0 for row in table.values())


def test_the_transform_turns(place):
    code = (
        "import numpy as np, torch\nfrom vicjoint.registry import build\n"
        "turn, pixels = build('transform', {'name': 'quarter_turns'}, 2), torch.arange(12).view(3, 2, 2)\n"
        "rng = np.random.default_rng(0)\n"
        "print(len({turn(pixels, rng).numpy().tobytes() for _ in range(50)}))"
    )
    assert python(place, "-c", code).strip() == "4"


# ---- docs/architecture.md ----


def rooms() -> dict[str, str]:
    """{path: what it is} of the page's layout."""
    (block,) = re.findall(r"```\n(vicjoint/\n.*?)```", read("docs/architecture.md"), re.S)
    found, folder = {}, ""
    for line in block.splitlines():
        if line.strip():
            indent, name, words = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
            folder = folder if indent else name
            found[folder + name if indent else name] = words
    return found


def test_rooms_exist():
    missing = [name for name in rooms() if not (ROOT / name).exists()]
    assert not missing and len(rooms()) > 30


def modules(room: Path) -> list[Path]:
    return sorted(room.rglob("*.py")) if room.is_dir() else [room]


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, as `vicjoint/NAME`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vicjoint":
            found |= {(node.module + "." + alias.name).split(".")[1] for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vicjoint.")}
    return {f"vicjoint/{name}" for name in found}


def test_reading_and_learning_know_nothing_of_each_other():
    half = {
        side: {
            name.rstrip("/").removesuffix(".py"): name
            for name, words in rooms().items()
            if words.startswith(side)
        }
        for side in ("reading", "learning")
    }
    assert len(half["reading"]) > 6 and len(half["learning"]) > 4
    for own, other in (("reading", "learning"), ("learning", "reading")):
        for name in half[own].values():
            for path in modules(ROOT / name):
                assert not imported(path) & set(half[other]), f"{path.relative_to(ROOT)}: of {own}"


# ---- lists and links ----


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_whose_types_are_checked_exist():
    (block,) = re.findall(r"\[tool.pyright\].*?include = \[(.*?)\]", read("pyproject.toml"), re.S)
    assert all((ROOT / name).exists() for name in re.findall(r'"(.+?)"', block))
