"""Recipes: YAML and key=value overrides -> a strict, typed, canonical Recipe. Every mistake comes out at
once, before anything is built.

    recipe = load_recipe("recipes/video_next_frame.yaml", ["train.steps=100", "source.name=video_folder"])
    recipe.train.steps, recipe.tasks[0].source, recipe.announcement
    print(to_yaml(recipe))  # the resolved recipe as written; load_recipe reads it back to the same thing
"""

import sys
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from vicjoint.files.paths import user_path
from vicjoint.recipe.check import (
    check_components,
    check_form,
    check_together,
    in_words,
    load_imports,
    places,
    root_is_a_path,
    takes_text,
)
from vicjoint.recipe.file import (
    RecipeError,
    apply,
    dump_yaml,
    find_recipe,
    parse_overrides,
    plain,
    read_recipe,
)
from vicjoint.recipe.keys import MAPPING, NUMBER, TEXT, Written
from vicjoint.recipe.learning import check_learning
from vicjoint.recipe.recipe import Recipe, canonical
from vicjoint.recipe.schema import with_components


class ImportsError(RecipeError):
    """A recipe that is not the user's own names modules to import."""


def load_recipe(
    recipe: str | Path | dict,
    overrides: list[str] | dict = (),
    check_paths: bool = True,
    imports: Collection[str] | None = None,
) -> Recipe:
    """The recipe of a file, a bare name among the shipped ones, or a mapping, with overrides
    (`["train.steps=10"]` or a mapping).

    check_paths=False skips the check that source.root exists, for uses that need no data. imports: modules
    that may be imported; null: all that the recipe names, for the one that the user runs. A recipe that lies
    in a run folder or an export may come from anybody: of its modules only these are imported, and those that
    this process has already. Raises RecipeError with all mistakes, ImportsError for other modules.
    """
    if isinstance(recipe, dict):
        label, data = "(given as a mapping)", plain(recipe)
    else:
        path = find_recipe(recipe)
        label, data = str(path), read_recipe(path)
    changes, mistakes = parse_overrides(overrides)
    changed = apply(plain(data), changes, mistakes, takes_text)
    # a source that the command line chooses stands: saying that sample data stand in for it would not be true
    chosen = any(keys in (["source"], ["source", "name"]) for keys, _ in changes)
    block = changed.get("without_data")
    if isinstance(block, dict) and block and not chosen and _root(changed) is None:
        # used up: a resolved recipe must not apply it over the command line's values again
        data.pop("without_data", None)
        data = apply(data, [(str(key).split("."), value) for key, value in block.items()], mistakes)
        changes = [change for change in changes if change[0][0] != "without_data"]
        changed = apply(data, changes, [], takes_text)
        changed["announcement"] = (
            f"SAMPLE DATA: source.root is not given, so recipe '{changed.get('name')}' runs on the embedded"
            f" sample, changed by its without_data block ({', '.join(map(str, block))}). Its numbers say"
            " nothing about real data; give source.root=FOLDER."
        )
    elif any(keys[0] == "source" for keys, _ in changes):
        changed.pop("announcement", None)
    if imports is not None:
        refuse_imports(changed.get("imports"), imports, label)
    return check(changed, label, mistakes, check_paths)


def refuse_imports(named, allowed: Collection[str], label: str) -> None:
    named = named if isinstance(named, list) else []
    if refused := [
        module
        for module in named
        if isinstance(module, str) and module not in allowed and module not in sys.modules
    ]:
        raise ImportsError(
            f"recipe {label} wants to import {', '.join(refused)}. A recipe that comes with a run or an"
            " export runs no code of its own. If you trust these modules, say so: --allow-imports, or"
            " load_encoder(folder, imports=[...])."
        )


def _root(data: dict):
    source = data.get("source")
    return source.get("root") if isinstance(source, dict) else None


def check(data: dict, label: str, mistakes: list[str], check_paths: bool = True) -> Recipe:
    """The canonical recipe, with options converted to their types. Raises RecipeError with all mistakes."""
    mistakes = mistakes + load_imports(data.get("imports"))
    a, b = data.get("a"), data.get("b")
    follows = isinstance(a, dict) and isinstance(b, dict) and b.get("weights") in ("same", "ema")
    taken = [key for key in ("modality", "encoder", "expander") if b.get(key) is None] if follows else []
    for key in taken:
        b.pop(key, None)
    of_components = check_components(data)
    for key in taken:
        if key in a:
            b[key] = plain(a[key])
    try:
        written = Written.model_validate(data)
    except ValidationError as error:
        mistakes += [
            words
            for loc, words in wrong_keys(error)
            if not (loc[:1] == ("b",) and loc[1:2] and loc[1] in taken)
        ]
    mistakes += of_components + check_form(data, Written) + check_together(data, follows)
    mistakes += check_learning(data, follows)
    for path, root, source in [
        *places(data, ["source", "root"]),
        *places(data, ["pairs", "*", "source", "root"]),
    ]:
        if check_paths and isinstance(root, str) and root_is_a_path(source):
            mistakes += check_path(".".join(path), root)
    if mistakes:
        raise all_of(mistakes, label)
    return canonical(written)


def check_path(key: str, path: str) -> list[str]:
    try:
        there = user_path(path).exists()
    except ValueError as error:
        return [f"{key}: {error}"]
    missing = (
        f"{key}: {path} does not exist (seen from {Path.cwd()}). Give the path of your data: {key}=PATH."
    )
    return [] if there else [missing]


def wrong_keys(error: ValidationError) -> list[tuple[tuple, str]]:
    """(keys, message) of each mistake."""
    found = [(tuple(p for p in e["loc"] if p not in (TEXT, NUMBER, MAPPING)), e) for e in error.errors()]
    return [(loc, f"{'.'.join(map(str, loc)) or 'a key'}: {in_words(loc, e, Written)}") for loc, e in found]


def all_of(mistakes: list[str], label: str) -> RecipeError:
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return RecipeError(f"recipe {label} has {count}:\n" + "\n".join(f"  {m}" for m in mistakes))


def read_written(path: Path) -> dict:
    """What a run folder's recipe `dump` gives, with every key. Its components are not looked at and nothing
    is imported: it may come from anybody. Raises RecipeError with the mistakes in its keys."""
    try:
        return Written.model_validate(read_recipe(path)).dump()
    except ValidationError as error:
        raise all_of([words for _, words in wrong_keys(error)], str(path)) from None


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe; load_recipe reads it back to the same recipe."""
    return dump_yaml(recipe.dump())


def json_schema() -> dict:
    """JSON schema of recipes, with the components that are registered now and their options."""
    return with_components(Written.model_json_schema())
