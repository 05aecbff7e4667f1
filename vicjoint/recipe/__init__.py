"""Recipes: text (file) -> the keys as written (keys), their mistakes in words (check, schema) -> what the
program works with (recipe), all of it by `load_recipe` (load); which keys differ (compare)."""

from vicjoint.recipe.compare import differences, differing
from vicjoint.recipe.file import RecipeError, parse_yaml
from vicjoint.recipe.learning import Learning
from vicjoint.recipe.load import ImportsError, json_schema, load_recipe, read_written, to_yaml
from vicjoint.recipe.recipe import BranchSpec, Recipe, Spec, TaskSpec

__all__ = [
    "BranchSpec",
    "ImportsError",
    "Learning",
    "Recipe",
    "RecipeError",
    "Spec",
    "TaskSpec",
    "differences",
    "differing",
    "json_schema",
    "load_recipe",
    "parse_yaml",
    "read_written",
    "to_yaml",
]
