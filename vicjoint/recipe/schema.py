"""JSON schema of recipes, for editors that complete and check YAML: pydantic's schema of the keys with the
registered components.

schema = with_components(Recipe.model_json_schema())      # vicjoint.recipe.json_schema() does this
"""

import inspect

from pydantic import PydanticUserError, TypeAdapter

from vicjoint import registry
from vicjoint.options import options_of
from vicjoint.recipe.check import ONE_PAIR, SEVERAL_PAIRS
from vicjoint.recipe.file import plain


def with_components(schema: dict) -> dict:
    """`schema`, which pydantic makes of Recipe, with the components registered now and their options. Changes
    `schema`."""
    keys, sections = schema["properties"], schema["$defs"]
    of_pair = sections["PairOfBranches"]["properties"]
    for place in (keys, of_pair):
        for key in ("source", "pair", "objective"):
            place[key] = {"description": place[key]["description"]} | component_schema(key)
    keys["predictor"]["anyOf"] = [component_schema("predictor"), {"type": "null"}]
    clip = sections["Optim"]["properties"]["clip"]
    sections["Optim"] = component_schema(
        "optimizer", {"schedule": component_schema("schedule"), "clip": clip}
    )
    sections["Evaluate"]["properties"]["probes"]["items"] = component_schema(
        "probe", {"as": {"type": "string", "pattern": r"^\w[\w.+-]*$"}}
    )
    branch, modalities = sections["Branch"], registry.names("modality")
    branch["properties"]["modality"] = {"anyOf": [{"enum": modalities}, component_schema("modality")]}
    branch["allOf"] = [_encoders_of(m) for m in modalities]
    whole = {"$ref": "#/$defs/Branch", "required": branch.pop("required")}
    follows = {"properties": {"weights": {"enum": ["same", "ema"]}}, "required": ["weights"]}
    described = lambda key, rule: {"description": keys[key]["description"]} | rule
    keys["a"] = described("a", whole)
    keys["b"] = described(
        "b", {"$ref": "#/$defs/Branch", "if": follows, "else": {"required": whole["required"]}}
    )
    keys["branches"] = described(
        "branches", {"type": "object", "minProperties": 1, "additionalProperties": whole}
    )
    keys["pairs"] = described(
        "pairs", {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/PairOfBranches"}}
    )
    schema["oneOf"] = [
        {"title": "one pair", "required": ["source", *ONE_PAIR, "objective"], "not": _any_of(SEVERAL_PAIRS)},
        {
            "title": "several pairs",
            "required": list(SEVERAL_PAIRS),
            "not": _any_of(ONE_PAIR),
            "allOf": [
                {"if": {"not": {"required": [key]}}, "then": _in_each_pair(key)}
                for key in ("source", "objective")
            ],
        },
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _any_of(keys: tuple[str, ...]) -> dict:
    return {"anyOf": [{"required": [key]} for key in keys]}


def _in_each_pair(key: str) -> dict:
    return {"properties": {"pairs": {"items": {"required": [key]}}}}


def _encoders_of(modality: str) -> dict:
    """The rule that a branch of this modality, given by name or as a component, takes one of its encoders."""
    chosen = {"anyOf": [{"const": modality}, {"type": "object", "properties": {"name": {"const": modality}}}]}
    encoder = component_schema("encoder", names=registry.list_encoders(modality), prefix=f"{modality}/")
    return {
        "if": {"properties": {"modality": chosen}, "required": ["modality"]},
        "then": {"properties": {"encoder": encoder}},
    }


def component_schema(
    family: str, own: dict = {}, names: list[str] | None = None, prefix: str = "", within: tuple = ()
) -> dict:
    """`{name: one of the registered, options of that one}`; `own` are further keys of the recipe's inside the
    component. within: the components that hold it, which it does not hold again."""
    names = registry.names(family) if names is None else names
    names = [name for name in names if registry.find(family, prefix + name) not in within]
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": names}},
        "oneOf": [_one_component(name, registry.find(family, prefix + name), own, within) for name in names],
    }


def _one_component(name: str, component, own: dict, within: tuple) -> dict:
    known, within = options_of(component), (*within, component)
    options = {
        key: option_schema(known.adapters[key], p.default, within) for key, p in known.parameters.items()
    }
    return {
        "title": name,
        "properties": {"name": {"const": name}} | options | own,
        "required": ["name", *known.required, *(key for key in own if key == "schedule")],
        "additionalProperties": known.takes_any,
    }


def option_schema(adapter: TypeAdapter, default, within: tuple = ()) -> dict:
    try:
        schema = adapter.json_schema()
    except PydanticUserError:  # a type that YAML has no values of
        schema = {}
    # references would not hold inside the recipe's schema
    schema = {} if "$defs" in schema else _with_inner(schema, within)
    return schema if default is inspect.Parameter.empty else schema | {"default": plain(default)}


def _with_inner(schema, within: tuple):
    """The schema of an option, with those of the components that it holds
    (`vicjoint.options.ComponentOf`)."""
    if isinstance(schema, list):
        return [_with_inner(part, within) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "component" in schema:
        family, prefix = schema["component"]
        names = [
            name
            for name in registry.names(family)
            if name.startswith(prefix) and ("/" in name) == bool(prefix)
        ]
        names = [name.removeprefix(prefix) for name in names]
        return component_schema(family, names=names, prefix=prefix, within=within)
    return {key: _with_inner(part, within) for key, part in schema.items()}
