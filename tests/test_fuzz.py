"""Random YAML, mutated recipes and random overrides give a recipe or a RecipeError, and nothing else."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vicjoint.recipe import Recipe, RecipeError, load_recipe, parse_yaml, to_yaml

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {path.stem: path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))}
BASE = {
    "name": "fuzz",
    "source": {"name": "sample_images"},
    "pair": {"name": "augment"},
    "a": {"modality": "image", "encoder": {"name": "conv"}, "expander": [8]},
    "b": {"weights": "same"},
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
    "train": {"steps": 2, "batch_size": 4},
    "evaluate": {"probes": [{"name": "knn"}]},
    "without_data": {"train.steps": 1},
}
WORDS = sorted(
    {
        "name",
        "source",
        "pair",
        "pairs",
        "branches",
        "a",
        "b",
        "train",
        "steps",
        "weights",
        "ema",
        "same",
        "encoder",
        "modality",
        "image",
        "clip",
        "text",
        "table",
        "augment",
        "cross_modal",
        "root",
        "without_data",
        "evaluate",
        "probes",
        "vicreg",
        "schedule",
        "optim",
        "expander",
        "0",
        "out",
    }
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=12)
    | st.sampled_from(["*", "&a", "1e400", ".inf", "\0", "\ud800", "${x}", "../..", "~", "null"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(SCALARS.filter(lambda v: v == v), inner, max_size=3)
    ),
    max_leaves=8,
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def tried(recipe, overrides=()) -> bool:
    """Whether it gives a recipe, which its own YAML gives back."""
    try:
        made = load_recipe(recipe, overrides, check_paths=False)
    except RecipeError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return False
    assert isinstance(made, Recipe)
    assert load_recipe(parse_yaml(to_yaml(made), "again"), check_paths=False).dump() == made.dump()
    return True


def mutated(value, rng: random.Random, new):
    """A copy with one place, anywhere in it, replaced, left out or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        what = rng.random()
        if what < 0.12:
            del copy[key]
        elif what < 0.24 and isinstance(copy, dict):
            copy[new if isinstance(new, (str, int, float, bool, type(None))) else str(new)] = copy[key]
        else:
            copy[key] = mutated(copy[key], rng, new)
        return copy
    return new


def no_imports(value) -> None:
    """Random modules are not imported: some of the standard library's do something."""
    if isinstance(value, dict):
        value.pop("imports", None)
        for inner in value.values():
            no_imports(inner)


@QUICK
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                *WORDS,
                ": ",
                "- ",
                "\n",
                "  ",
                "{",
                "}",
                "[",
                "]",
                "!!python/object:os.system",
                "&x ",
                "*x",
                "'",
                '"',
                "#",
                "|",
                "\t",
                "? ",
                "---\n",
                "!!binary ",
                "!!set ",
                "<<: ",
            ]
        ),
        max_size=25,
    ).map("".join)
)
def test_any_text_is_yaml_or_a_clear_error(text):
    try:
        parse_yaml(text, "text")
    except RecipeError as error:
        assert str(error).startswith("text")


@QUICK
@given(VALUES)
def test_any_value_is_a_recipe_or_a_clear_error(value):
    if isinstance(value, dict):
        no_imports(value)
        assert not tried(value)


@QUICK
@given(
    st.sampled_from([BASE, *(parse_yaml(text, name) for name, text in SHIPPED.items())]),
    st.integers(0, 2**32),
    VALUES,
    st.integers(1, 4),
)
def test_mutated_recipes(recipe, seed, new, times):
    rng = random.Random(seed)
    for _ in range(times):
        recipe = mutated(recipe, rng, new)
    if isinstance(recipe, dict):
        no_imports(recipe)
        tried(recipe)


@QUICK
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS) | st.text(max_size=4), min_size=1, max_size=4).map(".".join),
            VALUES,
        ),
        max_size=3,
    )
)
def test_random_overrides(changes):
    overrides = []
    for key, value in changes:
        try:
            overrides.append(f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}")
        except (yaml.YAMLError, UnicodeEncodeError):
            overrides.append(f"{key}={value}")
    tried(BASE, [o for o in overrides if not o.startswith("imports")])
    tried(BASE, {key: value for key, value in changes if not key.startswith("imports")})


@QUICK
@given(st.sampled_from(sorted(SHIPPED)), st.integers(0, 2**32), st.integers(1, 12))
def test_damaged_files(tmp_path_factory, name, seed, times):
    rng, content = random.Random(seed), bytearray(SHIPPED[name].encode())
    for _ in range(times):
        place = rng.randrange(len(content))
        what = rng.random()
        if what < 0.3:
            content[place] = rng.randrange(256)
        elif what < 0.6:
            del content[place : place + rng.randrange(1, 30)]
        else:
            content[place:place] = content[
                (again := rng.randrange(len(content))) : again + rng.randrange(1, 30)
            ]
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(bytes(content))
    if b"imports" not in content:
        tried(path)


def test_the_base_is_a_recipe():
    assert tried(BASE) and tried(BASE, ["train.steps=5"])


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([BASE, *(parse_yaml(text, name) for name, text in SHIPPED.items())]),
    st.integers(0, 2**32),
    VALUES,
    st.integers(1, 6),
)
def test_many_mutated_recipes(recipe, seed, new, times):
    test_mutated_recipes.hypothesis.inner_test(recipe, seed, new, times)
