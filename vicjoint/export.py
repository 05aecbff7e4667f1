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
from safetensors.torch import save_file

from vicjoint.embeddings.encoder import RepresentationModel, hash_of
from vicjoint.embeddings.reading import Origin
from vicjoint.exporting import facts, libraries, programs
from vicjoint.exporting.folder import Format, write_program, write_texts, write_weights
from vicjoint.exporting.reading import Trained, add_step_and_imports, imports_of, is_export, read_trained
from vicjoint.exporting.staging import CARD, check_place, move, settle, staged
from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path
from vicjoint.recipe import RecipeError
from vicjoint.registry import ComponentError


def load_encoder(
    folder, branch: str = "a", step: int | str | None = None, imports: Collection[str] | None = ()
) -> RepresentationModel:
    """The trained encoder of a branch of a run folder or an export, in evaluation mode: "a" or "b", or a name
    of the recipe's `branches`. Its `dim` is the width of y; its `embed` reads files and texts. `step`: of a
    run's checkpoints the one of a step or, with checkpoint.best, the "best"; None: the last. `imports`:
    modules that its recipe may import, for encoders of your own; None: all that it names. Without them a
    folder from elsewhere runs no code: weights are plain numbers. Raises RecipeError where the folder is
    neither, or has no such branch or checkpoint."""
    trained = read_trained(user_path(folder), step, imports)
    return encoder_of(trained, trained.branch(branch))


def encoder_of(trained: Trained, branch: str) -> RepresentationModel:
    """A branch of a trained model, in evaluation mode."""
    step = None if is_export(trained.folder) else trained.step
    origin = Origin(trained.folder, trained.within, branch, step, hash_of(trained.model))
    return RepresentationModel(trained.model, origin).eval()


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
    trained = read_trained(run, step, imports)
    first, branch = branch if format == "safetensors" else None, trained.branch(branch)
    check_place(to)
    with staged(to) as made:
        if format == "safetensors":
            write_weights(trained, made)
        else:
            (made / branch).mkdir()
            encoder = encoder_of(trained, branch)
            file = f"{branch}/model.{format}"
            print(f"{file}: {write_program(trained, encoder, branch, format, made / file)}")
        write_texts(trained, first, made, to)
        if format == "safetensors":
            check_loads(made, trained, imports)
        config = facts.read_object(made / facts.CONFIG)
        if (card := settle(made, to, config["tensors"])) != to / CARD:
            print(f"{to / CARD} was changed by somebody and stays; the new card is {card}")
    return to


def check_loads(made: Path, trained: Trained, imports: Collection[str] | None) -> None:
    """Raises RecipeError where an encoder whose first weights came from elsewhere is another one when it is
    built from the export."""
    views = facts.preprocessing(trained.recipe, trained.model)
    for name, spec in trained.recipe.branches.items():
        if spec.weights == "own" and any(found.spec.get("weights") for found in libraries.encoders(spec)):
            encoder = encoder_of(trained, name)
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
    trained = read_trained(run, step, imports)
    branch = trained.branch(branch or "a")
    encoder = encoder_of(trained, branch)
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
    parser.add_argument("run", type=user_path)
    parser.add_argument(
        "--to",
        type=user_path,
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
    add_step_and_imports(
        parser, "a step that has a checkpoint, or best (with checkpoint.best); the last one is the default"
    )
    options = parser.parse_args(arguments)
    try:
        imports = imports_of(options)
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
