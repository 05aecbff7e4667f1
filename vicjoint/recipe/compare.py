"""Which keys of two recipes differ, and which of them a run may go on with."""

import re
from typing import Any

from pydantic import ValidationError

from vicjoint.recipe.file import show
from vicjoint.recipe.keys import Written
from vicjoint.recipe.recipe import Recipe

# where a run is written and shown, how many processes read, how long to wait for them, how the work is spread
# over processes and memory, whether its end is evaluated, and how much of that is shown
DO_NOT_COUNT = (
    "out",
    "data.workers",
    "data.timeout",
    "train.timeout",
    "train.parallel",
    "train.checkpoint_activations",
    "train.trackers",
    "train.tensorboard",  # of checkpoints before train.trackers
    "evaluate.last",
    "evaluate.explorer",
    "checkpoint.may_change",
)
# where data and first weights lie: whether they are the same is for their fingerprints to say
PLACE = re.compile(r"(pairs\.\d+\.)?source\.(root|second|test)|(a|b|branches\.[^.]+)\.weights_from")
LENGTH = re.compile(r"train\.(steps|epochs)")
MOST_LINES = 5


def differences(recipe_a: Recipe, recipe_b: Recipe) -> list[str]:
    """One line for each key that differs, with both values, but for those that DO_NOT_COUNT."""
    return [line for lines in by_kind(recipe_a.dump(), recipe_b.dump()).values() for line in lines]


def by_kind(before: dict, now: dict) -> dict[str, list[str]]:
    """`differences` of what `dump` gives (a recipe that comes with data is not loaded: it could name
    `imports`), by what they mean to a run that goes on: place, where its data lie; length; other, which makes
    it another run."""
    found: dict[str, list[str]] = {"place": [], "length": [], "other": []}
    for key, values in differing([filled(before), now]).items():
        kind = "place" if PLACE.fullmatch(key) else "length" if LENGTH.fullmatch(key) else "other"
        found[kind].append(f"{key}: {' -> '.join(values)}")
    return found


def filled(recipe: dict) -> dict:
    """What `dump` gave in an earlier version, with the defaults of keys that came later."""
    try:
        return Written.model_validate(recipe).dump()
    except ValidationError:  # damaged, or of another version: every key that differs is named
        return recipe


def shortly(lines: list[str]) -> list[str]:
    """The first lines for a message, and how many more there are."""
    more = len(lines) - MOST_LINES
    return lines if more <= 1 else [*lines[:MOST_LINES], f"and {more} more"]


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
