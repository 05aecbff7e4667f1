"""docs/recipe_reference.md is what its command writes, and has every key, component and option."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter

from vicjoint import registry
from vicjoint.recipe import json_schema, reference
from vicjoint.registry import register

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe_reference.md"


def test_the_page_is_what_the_command_writes(tmp_path, capsys):
    assert reference.main(["--to", str(tmp_path / "page.md")]) == 0
    written = (tmp_path / "page.md").read_text("utf-8")
    assert PAGE.read_text("utf-8") == written, (
        "out of date: python -m vicjoint.recipe.reference --to docs/recipe_reference.md"
    )
    assert reference.main([]) == 0
    assert capsys.readouterr().out == written


def blocks() -> dict[str, str]:
    """{heading, below another one as "source `table`": text below it}"""
    found, above = {}, ""
    for marks, heading, below in re.findall(r"^(#+) (.+)\n((?:(?!#).*\n?)*)", PAGE.read_text("utf-8"), re.M):
        above = above if marks == "###" else heading
        found[f"{above} {heading}" if marks == "###" else heading] = below
    return found


def test_every_key_is_there():
    found, schema = blocks(), json_schema()
    assert set(re.findall(r"^\| `(\w+)`", found["Keys"], re.M)) == set(schema["properties"])
    for section in ("train", "data", "evaluate", "checkpoint"):
        there = schema["$defs"][section.capitalize()]["properties"]
        assert set(re.findall(r"^\| `(\w+)`", found[section], re.M)) == set(there)
    assert "| `batch_size` | whole number at least 2 | required | samples in a global batch" in found["train"]
    assert "| `every` | whole number at least 0 or null | `null` |" in found["evaluate"]
    assert "| `source` | [source](#source) or null |" in found["Keys"]
    assert "list of [probe](#probe)" in found["evaluate"] and "[modality](#modality)" in PAGE.read_text(
        "utf-8"
    )


def test_every_shipped_component_is_there_with_its_options():
    found = blocks()
    assert set(registry.FAMILIES) <= set(found)
    alone = 0
    for family in registry.FAMILIES:
        for name in registry.names(family):
            part = registry.find(family, name)
            if not reference.shipped(part):
                continue
            rows = found.get(f"{family} `{name}`")
            if rows is None:  # one of a library's
                assert "torchvision" in reference.sentence(part)
                continue
            alone += 1
            options = re.findall(r"^\| `(\w+)`", rows, re.M)
            assert options == list(registry.options(part)), name
            assert reference.text(reference.sentence(part)) in rows
    assert alone > 60
    assert "| `augment` | list of [transform](#transform) or null | `null` |" in found["modality `audio`"]


def test_links_on_the_page_have_headings():
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in blocks()}
    links = set(re.findall(r"\]\(#([\w-]+)\)", PAGE.read_text("utf-8")))
    assert links <= anchors and {"source", "train", "a-b-branchesname", "pairsnumber"} <= links


def test_parts_of_tests_and_users_are_not_on_it():
    @register("schedule", "of_a_user")
    def of_a_user(step, total, epoch, /):
        """Constant."""
        return 1.0

    try:
        assert "of_a_user" not in reference.reference()
    finally:
        registry._components["schedule"].pop("of_a_user")


@pytest.mark.parametrize(
    "annotation, words",
    [
        (int, "whole number"),
        (Annotated[float, Field(gt=0, le=1)], "number above 0 and at most 1"),
        (bool | None, "true or false or null"),
        (Literal["a", "b"], "`a`, `b`"),
        (list[str], "list: text"),
        (tuple[float, float], "list of 2: number"),
        (Annotated[list[int], Field(min_length=1)], "list of 1 or more: whole number"),
        (dict[str, float] | float, "mapping of name to number or number"),
        (dict, "mapping"),
    ],
)
def test_types_in_words(annotation, words):
    assert reference.kind(TypeAdapter(annotation).json_schema()) == words


@pytest.mark.parametrize(
    "docstring, sentence",
    [
        ("One. Two.", "One."),
        ("After Wu et al. 2018, e.g. this. More.", "After Wu et al. 2018, e.g. this."),
        ("Does it?\nYes.", "Does it?"),
        ("In the convention:\n\n- one", "In the convention."),
        ("No end", "No end."),
    ],
)
def test_first_sentences(docstring, sentence):
    part = lambda: None
    part.__doc__ = docstring
    assert reference.sentence(part) == sentence


def test_what_is_no_markdown_stays_text():
    assert reference.text("runs/<name> * `<a*b>` x*y") == "runs/&lt;name> \\* `<a*b>` x\\*y"
    assert reference.markdown(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_defaults_are_as_in_a_recipe():
    assert [reference.yaml(value) for value in (None, True, 1e-06, "clip", "", [1, 2])] == [
        *("null", "true", json.dumps(1e-06), "clip", '""', "[1, 2]")
    ]
