"""Every command that README and docs print can be given: recipes and overrides load, options exist."""

import re
import shlex
from pathlib import Path

import pytest

from vicjoint import run
from vicjoint.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
OWN = ("inertial.yaml", "name: mine", "name: patches")  # a user's files, which other tests write
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments after `python -m vicjoint.run`) of each command in an indented block."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ {4}.*?python -m vicjoint\.run (.*)$", text, re.M):
            line = line.replace('"$SMALL"', "").replace(" STEP", " 3")
            if not any(own in line for own in OWN):
                found.append((page.name, shlex.split(line, comments=True)))
    return found


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: str(value)[:60])
def test_a_printed_run_is_a_recipe(page, arguments):
    given = run.parse(arguments)
    if given.recipe and not given.recipe.isupper():  # RECIPE stands for any
        load_recipe(ROOT / given.recipe if "/" in given.recipe else given.recipe, given.overrides, False)


def test_there_are_commands():
    assert len(commands()) > 30


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\bdocs/[\w]+\.(?:md|jpg|png)", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
