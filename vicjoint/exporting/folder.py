"""The files of an export, written into a folder.

README.md, config.json, preprocessor_config.json, evaluation.json, recipe.yaml
model.safetensors        format safetensors: the whole model, and each branch's encoder in its library's
a/                       own form, where it has one (libraries.py)
a/model.onnx, .pt2       format onnx, pt2: branch a as a program (programs.py)
"""

import shutil
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError
from safetensors.torch import save_file
from torch import nn

from vicjoint.exporting import facts, libraries, programs
from vicjoint.exporting.card import card
from vicjoint.exporting.reading import Trained
from vicjoint.exporting.staging import CARD, checksum, of_same_model
from vicjoint.files.write import write_json
from vicjoint.recipe import RecipeError

Format = Literal["safetensors", "onnx", "pt2"]


def write_weights(trained: Trained, made: Path) -> None:
    # `weights: same` makes b the same tensors as a; safetensors wants each tensor once, so they are written
    # as copies
    state = libraries.plain(trained.model.state_dict())
    save_file(state, made / libraries.WEIGHTS, {"format": "pt"})
    libraries.write(trained.model, trained.recipe, made)


def write_program(
    trained: Trained, encoder: nn.Module, branch: str, format: programs.Format, to: Path
) -> str:
    """Write a branch's encoder, modality included, and give a line about its check."""
    view = facts.preprocessing(trained.recipe, trained.model)[branch]
    return programs.write(encoder, to, format, view, trained.encoder_name(branch))


def write_texts(trained: Trained, first: str | None, made: Path, to: Path) -> None:
    """All but the weights: of those in `made`, and of the same model's in `to`. first: the branch that
    from_pretrained gives where none is named; None: as `to` says, or the recipe's first."""
    recipe, model = trained.recipe, trained.model
    config = facts.config(trained.folder, recipe, model, trained.step)
    known = [folder for folder in (to, trained.folder) if of_same_model(folder, config["tensors"])]
    kept = facts.read_object(known[0] / facts.CONFIG)["branch"] if known else next(iter(recipe.branches))
    config["branch"] = first or kept
    evaluation = facts.evaluation(trained.folder, trained.step)
    preprocessing = facts.preprocessing(recipe, model)
    places = [made, to] if of_same_model(to, config["tensors"]) else [made]
    exists = lambda file: any((place / file).is_file() for place in places)
    models = libraries.written(model, recipe, exists)
    files = [(name, f"{name}/model.{form}", form) for name in recipe.branches for form in ("onnx", "pt2")]
    found = [program for program in files if exists(program[1])]
    shutil.copyfile(trained.folder / "recipe.yaml", made / "recipe.yaml")
    try:
        text = card(config, evaluation, preprocessing, recipe, models, found)
    except (ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise RecipeError(
            f"{trained.folder}: its {facts.CONFIG}, environment.json or {facts.EVALUATION} is of another form"
            f" than this program writes ({error}). Mend it, or delete it to go without."
        ) from error
    (made / CARD).write_text(text, encoding="utf-8")
    write_json(made / facts.CONFIG, config | {"card": checksum(made / CARD)})
    write_json(made / "preprocessor_config.json", preprocessing)
    if evaluation:
        write_json(made / facts.EVALUATION, evaluation)
