"""Every shipped recipe is right as it stands, runs without data, and begins with what it costs and shows."""

from pathlib import Path

import pytest

from vicjoint.config import load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.announcement or recipe.source.name.startswith("sample"), "it needs a without_data block"
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for part in (f"python -m vicjoint.run recipes/{path.name}", "Hardware:", "Expected"):
        assert part in header
