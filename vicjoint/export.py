"""Trained encoders out of a run: `vicjoint.load_encoder(folder, branch)`, and

python -m vicjoint.export RUN --to FOLDER  # safetensors weights and the recipe, without optimizer state
# one encoder's state_dict in its library's own keys (--branch b: the other's);
# of a torchvision ResNet this is the layout of VICReg's published weights
python -m vicjoint.export RUN --to resnet50.pth
"""

import argparse
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vicjoint.embeddings.encoder import Origin, RepresentationModel, hash_of
from vicjoint.files.guard import printable_lines
from vicjoint.model import Model, build_model, current_names
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.registry import nearest
from vicjoint.training import checkpoint
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import best_step, check_run


def load_encoder(
    folder, branch: str = "a", step: int | str | None = None, imports: Collection[str] | None = ()
) -> RepresentationModel:
    """The trained encoder of a branch of a run folder or an export, in evaluation mode: "a" or "b", or a name
    of the recipe's `branches`. Its `dim` is the width of y; its `embed` reads files and texts. `step`: of a
    run's checkpoints the one of a step or, with checkpoint.best, the "best"; None: the last. `imports`:
    modules that its recipe may import, for encoders of your own; None: all that it names. Without them a
    folder from elsewhere runs no code: weights are plain numbers. Raises RecipeError where the folder is
    neither, or has no such branch or checkpoint."""
    folder = Path(folder)
    recipe, model, state, step = read_all(folder, step, imports)
    if branch not in model.branches:
        names = " or ".join(f"'{name}'" for name in model.branches)
        raise RecipeError(
            f"branch: '{branch}' is unknown.{nearest(branch, model.branches)} Expected {names}."
        )
    model.load_state_dict(state)
    return RepresentationModel(model, Origin(folder, recipe, branch, step, hash_of(model))).eval()


def read_model(folder: Path, step: int | str | None, imports: Collection[str] | None):
    """(model as the recipe describes it, trained state) of a run folder or an export."""
    return read_all(folder, step, imports)[1:3]


def read_all(
    folder: Path, step: int | str | None, imports: Collection[str] | None
) -> tuple[Recipe, Model, dict[str, torch.Tensor], int | None]:
    """(recipe, model as it describes it, trained state, its step or None for an export)."""
    check_run(folder, "run folder or an export")
    recipe = load_recipe(folder / "recipe.yaml", check_paths=False, imports=imports)
    if (folder / "model.safetensors").exists():
        if step is not None:
            raise RecipeError(
                f"step: {folder} is an export, which holds one model. Give step with a run folder."
            )
        state, at = load_file(folder / "model.safetensors"), None
    else:
        saved = read_checkpoint(folder, recipe, step)
        state, at = saved["model"], saved["step"]
    with torch.random.fork_rng(devices=[]):
        return recipe, build_model(recipe), current_names(state), at


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


def step_or_best(text: str) -> int | str:
    """What a command's --step says; anything else is refused where checkpoints are read."""
    return int(text) if text.isdigit() else text


def export(run: Path, to: Path, step: int | str | None = None, imports: Collection[str] | None = ()) -> Path:
    """Write model.safetensors and recipe.yaml of a run into the folder `to`."""
    model, state = read_model(run, step, imports)
    model.load_state_dict(state)
    to.mkdir(parents=True, exist_ok=True)
    # `weights: same` makes b the same tensors as a; safetensors wants each tensor once, so they are written
    # as copies
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()},
        to / "model.safetensors",
    )
    shutil.copyfile(run / "recipe.yaml", to / "recipe.yaml")
    return to


def export_encoder(
    run: Path, to: Path, branch: str, step: int | str | None = None, imports: Collection[str] | None = ()
) -> Path:
    """Write the state_dict of one branch's encoder as a .pth or .safetensors file."""
    state = {
        name: tensor.clone().contiguous()
        for name, tensor in load_encoder(run, branch, step, imports).encoder.state_dict().items()
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, to) if to.suffix == ".safetensors" else torch.save(state, to)
    return to


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.export",
        description="Write a run's trained model into a folder, or its encoder into a file.",
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="FOLDER or FILE",
        help="a folder, or a file ending in .pth or .safetensors",
    )
    parser.add_argument(
        "--branch",
        default="a",
        metavar="NAME",
        help="whose encoder goes into a file: a, b, or a name of the recipe's branches",
    )
    parser.add_argument(
        "--step",
        metavar="N",
        type=step_or_best,
        help="a step that has a checkpoint, or best (with checkpoint.best); the last one is the default",
    )
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="import the modules that the run's recipe names: they run code",
    )
    options = parser.parse_args(arguments)
    try:
        imports = None if options.allow_imports else ()
        if options.to.suffix in (".pth", ".safetensors"):
            done = export_encoder(options.run, options.to, options.branch, options.step, imports)
        else:
            done = export(options.run, options.to, options.step, imports)
        print(f"export: {done}")
    except (RecipeError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
