"""Every key of a recipe and every component with its options, as a page of the docs.

python -m vicjoint.recipe.reference --to docs/recipe_reference.md

Made of what checks a recipe: pydantic's schema of the keys, and the registry's components with their
signatures and docstrings.
"""

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vicjoint import registry
from vicjoint.files.write import write_text
from vicjoint.options import options_of
from vicjoint.recipe.file import FAMILY
from vicjoint.recipe.keys import Written
from vicjoint.recipe.schema import option_schema

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {  # title: (definition in the schema, where its keys are in FAMILY)
    "optim": ("Optim", "optim."),
    "train": ("Train", "train."),
    "data": ("Data", "data."),
    "evaluate": ("Evaluate", "evaluate."),
    "checkpoint": ("Checkpoint", "checkpoint."),
    "a, b, branches.NAME": ("Branch", "a."),
    "pairs.NUMBER": ("PairOfBranches", "pairs.*."),
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}
BOUNDS = {  # also by pydantic's names, for a bound on something that may be null or stands in a list
    "minimum": "at least",
    "ge": "at least",
    "exclusiveMinimum": "above",
    "gt": "above",
    "maximum": "at most",
    "le": "at most",
    "exclusiveMaximum": "below",
    "lt": "below",
    "multipleOf": "a multiple of",
}
INTRODUCTION = """\
# Recipe reference

Every key of a recipe, and every component with its options. A command writes this page, from what checks a
recipe; do not edit it:

    python -m vicjoint.recipe.reference --to docs/recipe_reference.md

[recipes.md](recipes.md) explains recipes. `python -m vicjoint.run --list` also has components of your own,
and `--schema` prints all this as JSON schema, for editors.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vicjoint.recipe.reference")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write it there; else it is printed")
    options = parser.parse_args(arguments)
    if options.to:
        write_text(options.to, reference())
    else:
        print(reference(), end="")
    return 0


def reference() -> str:
    """The page, as Markdown. Components of a user's own are not on it."""
    blocks = [INTRODUCTION, *keys(), "# Components\n"]
    for family in registry.FAMILIES:
        blocks += [f"## {family}\n", introduction(family)]
        blocks += [component(names, of) for names, of in alike(family)]
    return "\n".join(blocks)


# ---- keys ----


def keys() -> Iterator[str]:
    schema = Written.model_json_schema()
    yield "# Keys\n"
    yield table_of(schema["properties"], "", schema.get("required", []))
    for title, (definition, place) in SECTIONS.items():
        section = schema["$defs"][definition]
        yield f"## {title}\n"
        yield table_of(section["properties"], place, section.get("required", []))


def table_of(properties: dict[str, dict], place: str, required: list[str]) -> str:
    rows = [
        [
            f"`{key}`",
            kind_of(place + key, schema),
            "required" if key in required else default_of(schema),
            text(schema.get("description", "")),
        ]
        for key, schema in properties.items()
    ]
    return markdown(["key", "takes", "default", "meaning"], rows)


def kind_of(key: str, schema: dict) -> str:
    """What a key takes; components by their family."""
    if family := FAMILY.get(key):
        return link(family) + (" or null" if {"type": "null"} in schema.get("anyOf", []) else "")
    if family := FAMILY.get(f"{key}.*"):
        return f"list of {link(family)}"
    return kind(schema)


def link(family: str) -> str:
    return f"[{family}](#{family})"


# ---- components ----


def introduction(family: str) -> str:
    """What a component of the family is, and the keys that take one."""
    contract = registry.CONTRACTS.get(family)
    places = [f"`{named(key)}`" for key, of in FAMILY.items() if of == family]
    where = f"Keys: {', '.join(places)}." if places else "In options of other components."
    return f"{text(sentence(contract))} {where}\n" if contract else f"{where}\n"


def named(key: str) -> str:
    return key.replace("branches.*", "branches.NAME").replace("*", "NUMBER")


def shipped(part: Callable) -> bool:
    file = Path(inspect.getsourcefile(inspect.unwrap(part)) or "").resolve()
    return any(file.is_relative_to(ROOT / folder) for folder in ("vicjoint", "encoders"))


def alike(family: str) -> Iterator[tuple[list[str], Callable]]:
    """(names, one of them) of shipped components, where those that differ in nothing but their name, as a
    library's models do, are one."""
    found: dict[tuple, list[str]] = {}
    for name in filter(lambda name: shipped(registry.find(family, name)), registry.names(family)):
        part = registry.find(family, name)
        own = name.rpartition("/")[2]
        key = (sentence(part).replace(own, "NAME"), str(list(registry.options(part).values())))
        found.setdefault(key, []).append(name)
    for names in found.values():
        yield names, registry.find(family, names[0])


def component(names: list[str], part: Callable) -> str:
    more = " and others of its library (`--list`)" if len(names) > 1 else ""
    known = options_of(part)
    rows = []
    for key, parameter in known.parameters.items():
        schema = option_schema(known.adapters[key], parameter.default)
        mark = known.components.get(key)
        takes = component_kind(schema, mark.family) if mark else kind(schema)
        rows.append([f"`{key}`", takes, "required" if key in known.required else default_of(schema)])
    options = markdown(["option", "takes", "default"], rows) if rows else "No options.\n"
    others = "\nOther options are handed on.\n" if known.takes_any else ""
    return f"### `{names[0]}`{more}\n\n{text(sentence(part))}\n\n{options}{others}"


def component_kind(schema: dict, family: str) -> str:
    """Of an option that holds components."""
    nullable = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    lists = "list of " if any(part.get("type") == "array" for part in nullable) else ""
    return lists + link(family) + (" or null" if len(nullable) < len(schema.get("anyOf", [schema])) else "")


def sentence(part: Callable) -> str:
    """The first one of the docstring."""
    paragraph = " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())
    end = re.search(r"(?<!et al)(?<!e\.g)(?<!i\.e)[.?!](?=\s|$)", paragraph)
    return paragraph[: end.end()] if end else paragraph.rstrip(",:") + "."


# ---- words ----


def kind(schema: dict) -> str:
    """What a JSON schema asks for, in words."""
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(kind, several)))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{yaml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return section(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        return array(schema)
    if isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of name to {kind(schema['additionalProperties'])}"
    bounds = [f"{words} {yaml(schema[key])}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([TYPES.get(schema.get("type", ""), "anything"), " and ".join(bounds)]).strip()


def array(schema: dict) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    size = f" of {least}" if least == most is not None else f" of {least} or more" if least else ""
    parts = dict.fromkeys(map(kind, schema.get("prefixItems", [schema.get("items", {})])))
    return f"list{size}: {' or '.join(parts)}"


def section(definition: str) -> str:
    title = next((title for title, (name, _) in SECTIONS.items() if name == definition), "")
    anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"[keys](#{anchor})" if title else definition.lower()


def default_of(schema: dict) -> str:
    return (
        f"`{yaml(schema.get('default'))}`"
        if not isinstance(schema.get("default"), dict)
        else "those of its keys"
    )


def yaml(value) -> str:
    """A value as a recipe writes it, on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def text(words: str) -> str:
    """Words that are no Markdown or HTML, but for what they have in backticks."""
    plain = [part.replace("<", "&lt;").replace("*", "\\*") for part in words.split("`")[::2]]
    code = words.split("`")[1::2]
    return "`".join(part for two in itertools.zip_longest(plain, code) for part in two if part is not None)


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
