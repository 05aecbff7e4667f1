"""A trained model from a run folder or an export.

trained = read_trained(Path("runs/image_text/1"), step=None, imports=())
"""

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vicjoint.exporting import facts, libraries
from vicjoint.model import Model, build_model, current_names
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.registry import nearest
from vicjoint.training import checkpoint
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import best_step, check_run


def add_step_and_imports(parser: argparse.ArgumentParser, step: str) -> None:
    """The options of a command that reads a trained model; `step`: what --step means to it."""
    parser.add_argument("--step", metavar="N", type=step_or_best, help=step)
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="import the modules that the run's recipe names: they run code",
    )


def step_or_best(text: str) -> int | str:
    """What --step says; anything else is refused where checkpoints are read."""
    return int(text) if text.isdigit() else text


def imports_of(options: argparse.Namespace) -> Collection[str] | None:
    """What `imports` of load_recipe is by --allow-imports."""
    return None if options.allow_imports else ()


@dataclass
class Trained:
    """A trained model of a run folder, or of an export. step: None where an export does not say it."""

    folder: Path
    recipe: Recipe
    model: Model
    step: int | None

    @property
    def within(self) -> Recipe:
        """The recipe with weights and tokenizers where the folder has them."""
        return recipe_within(self.folder, self.recipe)

    def branch(self, name: str | None) -> str:
        """The name of a branch; None: the first one. Raises RecipeError where there is none of this name."""
        known = self.model.branches
        if name is not None and name not in known:
            names = " or ".join(f"'{name}'" for name in known)
            raise RecipeError(f"branch: '{name}' is unknown.{nearest(name, known)} Expected {names}.")
        return name or next(iter(known))

    def encoder_name(self, branch: str) -> str:
        """For messages."""
        spec = self.recipe.branches[branch]
        return f"encoder '{spec.modality['name']}/{spec.encoder['name']}' of branch '{branch}'"


def read_trained(folder: Path, step: int | str | None, imports: Collection[str] | None) -> Trained:
    """In evaluation mode, adapters merged. Raises RecipeError where the folder is neither a run's nor an
    export."""
    recipe, state, at = read_run(folder, step, imports)
    model = build_in(folder, recipe, state)
    model.load_state_dict(state)
    for branch in model.branches.values():
        branch.merge()
    return Trained(folder, recipe, model.eval(), at)


def read_run(
    folder: Path, step: int | str | None, imports: Collection[str] | None
) -> tuple[Recipe, dict[str, Tensor], int | None]:
    """(recipe, trained state, its step, None where an export does not say it) of a run folder or an
    export."""
    check_run(folder, "run folder or an export")
    recipe = load_recipe(folder / "recipe.yaml", check_paths=False, imports=imports)
    if not is_export(folder):
        saved = read_checkpoint(folder, recipe, step)
        return recipe, current_names(saved["model"]), saved["step"]
    if step is not None:
        raise RecipeError(f"step: {folder} is an export, which holds one model. Give step with a run folder.")
    config = facts.read_object(folder / facts.CONFIG)
    return recipe, current_names(read_weights(folder)), config.get("training", {}).get("step")


def is_export(folder: Path) -> bool:
    return (folder / libraries.WEIGHTS).exists() or facts.is_export(folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """An export's tensors. Raises RecipeError where they are missing or damaged."""
    file = folder / libraries.WEIGHTS
    if not file.exists():
        there = ", ".join(sorted(str(p.relative_to(folder)) for p in folder.glob("*/model.*"))) or "nothing"
        raise RecipeError(
            f"{folder} is an export without {file.name}; it has {there}. Export the run there in the default"
            " format, too."
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as opened:
            pointer = opened.read(40).startswith(b"version https://git-lfs")
        cause = "it is a pointer of Git LFS, not the file (git lfs pull)" if pointer else str(error)
        raise RecipeError(
            f"{file} cannot be read: {cause}. Export the run, or fetch the file, again."
        ) from None


def recipe_within(folder: Path, recipe: Recipe) -> Recipe:
    return libraries.within(recipe, folder) if is_export(folder) else recipe


def build_in(folder: Path, recipe: Recipe, state: dict[str, Tensor]) -> Model:
    """The model that a recipe in this folder describes. Raises RecipeError where the state does not fit."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe_within(folder, recipe))
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        raise RecipeError(
            f"{folder}: its weights do not fit its recipe.yaml: {', '.join(wrong[:3])} ({len(wrong)} tensors"
            " are missing, unknown or of another shape). One of the two files is of another model."
        )
    return model


def read_checkpoint(run: Path, recipe: Recipe, step: int | str | None) -> dict:
    """The state of a run's checkpoint: the newest that can be read, that of a step, or the `best` one. Raises
    RecipeError where there is none."""
    folder = run / "checkpoints"
    there = checkpoint.steps(folder)
    if not there:
        raise RecipeError(f"{run} has no checkpoint. Run its recipe with out={run} first.")
    try:
        if step is None:
            return checkpoint.load_last(folder)
        if step == "best":
            if recipe.checkpoint.best is None:
                raise RecipeError(
                    f"step: best: the recipe of {run} does not say what is best. Give a step, or train with"
                    " checkpoint.best=PROBE/METRIC."
                )
            step = best_step(run, recipe.checkpoint.best, last=there[-1])
        if step not in there:
            raise RecipeError(
                f"step: {run} has no checkpoint of step {step}. Expected one of {', '.join(map(str, there))},"
                " or best."
            )
        return checkpoint.load(checkpoint.path_of(folder, step))
    except CheckpointError as error:
        raise RecipeError(str(error)) from error
