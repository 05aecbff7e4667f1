"""Trained encoders out of a run: `vicjoint.load_encoder(folder, branch)`, and

python -m vicjoint.export RUN --to FOLDER  # weights, facts and a model card, without optimizer state
python -m vicjoint.export RUN --to FOLDER --format onnx  # or pt2: a program, raw view to y
# one encoder's state_dict in its library's own keys (--branch b: the other's);
# of a torchvision ResNet this is the layout of VICReg's published weights
python -m vicjoint.export RUN --to resnet50.pth
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vicjoint.exporting import facts, libraries, programs
from vicjoint.exporting.folder import Format, Trained, write_program, write_texts, write_weights
from vicjoint.exporting.staging import CARD, check_place, move, settle, staged
from vicjoint.files.guard import printable_lines
from vicjoint.model import Branch, Model, build_model, current_names
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.registry import ComponentError, nearest
from vicjoint.training import checkpoint
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import best_step, check_run


class RepresentationModel(nn.Module):
    """Raw view (uint8 pixels, ...) -> representation y [B, dim]: the modality's normalisation and the
    encoder."""

    def __init__(self, branch: Branch):
        super().__init__()
        self.modality, self.encoder, self.dim = branch.modality, branch.encoder, branch.encoder.dim

    def forward(self, view):
        return self.encoder(self.modality(view))


def load_encoder(
    folder, branch: str = "a", step: int | str | None = None, imports: Collection[str] | None = ()
) -> RepresentationModel:
    """The trained encoder of a branch of a run folder or an export, in evaluation mode: "a" or "b", or a name
    of the recipe's `branches`. Its `dim` is the width of y. `step`: of a run's checkpoints the one of a step
    or, with checkpoint.best, the "best"; None: the last. `imports`: modules that its recipe may import, for
    encoders of your own; None: all that it names. Without them a folder from elsewhere runs no code: weights
    are plain numbers. Raises RecipeError where the folder is neither, or has no such branch or checkpoint."""
    model, state = read_model(Path(folder), step, imports)
    check_branch(branch, model)
    model.load_state_dict(state)
    return RepresentationModel(model.branches[branch]).eval()


def check_branch(branch: str, model: Model) -> None:
    if branch not in model.branches:
        names = " or ".join(f"'{name}'" for name in model.branches)
        raise RecipeError(
            f"branch: '{branch}' is unknown.{nearest(branch, model.branches)} Expected {names}."
        )


def read_model(folder: Path, step: int | str | None, imports: Collection[str] | None):
    """(model as the recipe describes it, trained state) of a run folder or an export."""
    recipe, state, _ = read_run(folder, step, imports)
    return build_in(folder, recipe, state), state


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


def build_in(folder: Path, recipe: Recipe, state: dict[str, Tensor]) -> Model:
    """The model that a recipe in this folder describes. Raises RecipeError where the state does not fit."""
    recipe = libraries.within(recipe, folder) if is_export(folder) else recipe
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe)
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


def step_or_best(text: str) -> int | str:
    """What a command's --step says; anything else is refused where checkpoints are read."""
    return int(text) if text.isdigit() else text


def export(
    run: Path,
    to: Path,
    step: int | str | None = None,
    imports: Collection[str] | None = (),
    branch: str | None = None,
    format: Format = "safetensors",
) -> Path:
    """Write the trained model of a run into the folder `to`, for others: its weights in a `format`
    (safetensors: all branches; onnx, pt2: one, as a program), facts, and a model card. branch: that of a
    program; of weights, the one that from_pretrained then gives by default; None: the recipe's first. Where
    something fails, `to` is as it was: RecipeError."""
    first = branch if format == "safetensors" else None
    trained, branch = read_trained(run, step, imports, branch)
    check_place(to)
    with staged(to) as made:
        if format == "safetensors":
            write_weights(trained, made)
        else:
            (made / branch).mkdir()
            encoder = RepresentationModel(trained.model.branches[branch]).eval()
            file = f"{branch}/model.{format}"
            print(f"{file}: {write_program(trained, encoder, branch, format, made / file)}")
        write_texts(trained, first, made, to)
        if format == "safetensors":
            check_loads(made, trained, imports)
        config = facts.read_object(made / facts.CONFIG)
        if (card := settle(made, to, config["tensors"])) != to / CARD:
            print(f"{to / CARD} was changed by somebody and stays; the new card is {card}")
    return to


def read_trained(
    run: Path, step: int | str | None, imports: Collection[str] | None, branch: str | None
) -> tuple[Trained, str]:
    """(trained model, the name of a branch of it)."""
    recipe, state, step = read_run(run, step, imports)
    model = build_in(run, recipe, state)
    branch = branch or next(iter(model.branches))
    check_branch(branch, model)
    model.load_state_dict(state)
    return Trained(run, recipe, model.eval(), step), branch


def check_loads(made: Path, trained: Trained, imports: Collection[str] | None) -> None:
    """Raises RecipeError where an encoder whose first weights came from elsewhere is another one when it is
    built from the export."""
    views = facts.preprocessing(trained.recipe, trained.model)
    for name, spec in trained.recipe.branches.items():
        if spec.weights == "own" and any(found.spec.get("weights") for found in libraries.encoders(spec)):
            encoder = RepresentationModel(trained.model.branches[name]).eval()
            again = load_encoder(made, name, imports=imports)
            if "shape" in views[name]:
                raw = programs.sample(views[name], programs.TRACED)
                worst, most = programs.compare(encoder, again, raw)
                if worst > programs.ALLOWED * most:
                    raise RecipeError(
                        f"{trained.encoder_name(name)} gives another y when it is built from the export, by"
                        f" {worst:.1e}: more than its tensors depends on where its weights came from. Export"
                        " its state_dict alone: --to FILE.safetensors."
                    )


def export_encoder(
    run: Path,
    to: Path,
    branch: str | None,
    step: int | str | None = None,
    imports: Collection[str] | None = (),
) -> Path:
    """Write one branch's encoder as a file: its state_dict as .pth or .safetensors, or the program raw view
    to y as .onnx or .pt2."""
    trained, branch = read_trained(run, step, imports, branch or "a")
    encoder = RepresentationModel(trained.model.branches[branch]).eval()
    with staged(to) as folder:
        made = folder / to.name
        if to.suffix == ".pth":
            torch.save(libraries.plain(encoder.encoder.state_dict()), made)
        elif to.suffix == ".safetensors":
            save_file(libraries.plain(encoder.encoder.state_dict()), made)
        else:
            format: programs.Format = "onnx" if to.suffix == ".onnx" else "pt2"
            print(f"{to.name}: {write_program(trained, encoder, branch, format, made)}")
        for file in folder.iterdir():  # a large program has its numbers in a second file
            move(file, to.parent / file.name)
    return to


FILES = (".pth", ".safetensors", ".onnx", ".pt2")


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
        help=f"a folder, or a file ending in {', '.join(FILES)}",
    )
    parser.add_argument(
        "--branch",
        metavar="NAME",
        help="whose encoder goes into a file or a program, and is the default of from_pretrained: a, b, or a"
        " name of the recipe's branches",
    )
    parser.add_argument(
        "--format",
        choices=get_args(Format),
        help="of the weights in a folder: safetensors, the default, for all branches; onnx or pt2: a program"
        " for one",
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
        if options.to.suffix in FILES:
            if options.format and options.to.suffix != f".{options.format}":
                raise RecipeError(
                    f"--format: {options.format} does not fit the file {options.to}. Leave it out, or give a"
                    " folder."
                )
            done = export_encoder(options.run, options.to, options.branch, options.step, imports)
        else:
            format = options.format or "safetensors"
            done = export(options.run, options.to, options.step, imports, options.branch, format)
        print(f"export: {done}")
    except (RecipeError, ComponentError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
