"""Which keys of two recipes differ."""

from typing import Any

from vicjoint.recipe.file import show
from vicjoint.recipe.recipe import Recipe

# where a run is written and shown, how many processes read, how long to wait for them, whether its end is
# evaluated, and how much of that is shown
DO_NOT_COUNT = (
    "out",
    "data.workers",
    "data.timeout",
    "train.timeout",
    "train.trackers",
    "train.tensorboard",  # of checkpoints before train.trackers
    "evaluate.last",
    "evaluate.explorer",
)


def differences(recipe_a: Recipe, recipe_b: Recipe) -> list[str]:
    """One line for each key that differs, with both values, but for those that DO_NOT_COUNT."""
    return differences_of(recipe_a.dump(), recipe_b.dump())


def differences_of(a: dict, b: dict) -> list[str]:
    """`differences` of what `dump` gives: of a recipe that comes with data, which is compared but not loaded
    (it could name `imports`)."""
    return [f"{key}: {' -> '.join(values)}" for key, values in differing([a, b]).items()]


def differing(recipes: list[dict]) -> dict[str, list[str]]:
    """{key: its value in each recipe, or absent} of the keys that differ, of what `dump` gives."""
    flat, found = list(map(_flat, recipes)), {}
    for key in dict.fromkeys(key for recipe in flat for key in recipe):
        values = [(key in recipe, recipe.get(key)) for recipe in flat]
        if key not in DO_NOT_COUNT and any(value != values[0] for value in values):
            found[key] = [show(value) if there else "absent" for there, value in values]
    return found


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(entry, dict) for entry in inner):
            inner = dict(enumerate(inner))
        flat.update(
            _flat(inner, f"{prefix}{key}.")
            if isinstance(inner, dict) and inner
            else {f"{prefix}{key}": inner}
        )
    return flat
