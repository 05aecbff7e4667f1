"""Every shipped recipe is right as it stands, runs without data, and begins with what it costs and shows."""

import re
from pathlib import Path

import pytest

from vicjoint import registry
from vicjoint.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.announcement or recipe.tasks[0].source["name"].startswith("sample"), (
        "it needs a without_data block"
    )
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for part in (f"python -m vicjoint.run recipes/{path.name}", "Hardware:", "Expected"):
        assert part in header


def test_the_docs_name_encoders_that_exist():
    """The table of docs/modalities.md, and the README's sentence."""
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([^|]*) \|",
        (ROOT / "docs" / "modalities.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) >= 9
    for modality, cell in rows:
        named = set(re.findall(r"`(\w+)`", re.sub(r"those of `image`( with `channels`)?", "", cell)))
        assert named <= set(registry.list_encoders(modality)), modality
    shipped = (ROOT / "README.md").read_text().split("Shipped: ")[1].split("\n\n")[0]
    known = {name for modality in registry.names("modality") for name in registry.list_encoders(modality)}
    assert set(re.findall(r"`(\w+)`", shipped)) - {"weights"} <= known
