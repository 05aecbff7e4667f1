"""Which keys of two recipes differ."""

from typing import Any

from vicjoint.recipe.file import show
from vicjoint.recipe.recipe import Recipe

# where a run is written, how many processes read, how long to wait for them, and whether its end is evaluated
DO_NOT_COUNT = ("out", "data.workers", "data.timeout", "train.timeout", "evaluate.last")


def differences(recipe_a: Recipe, recipe_b: Recipe) -> list[str]:
    """One line for each key that differs, with both values; where a run is written, how many processes read,
    and how long to wait for them do not count."""
    return differences_of(recipe_a.dump(), recipe_b.dump())


def differences_of(a: dict, b: dict) -> list[str]:
    """`differences` of what `dump` gives: of a recipe that comes with data, which is compared but not loaded
    (it could name `imports`)."""
    a, b = _flat(a), _flat(b)
    return [
        f"{key}: {show(a[key]) if key in a else 'absent'} -> {show(b[key]) if key in b else 'absent'}"
        for key in dict.fromkeys([*a, *b])
        if key not in DO_NOT_COUNT and (key in a, a.get(key)) != (key in b, b.get(key))
    ]


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
