"""Encoders that begin as those of another run, or of an export: a branch's `weights_from`.

begins = read_beginnings(recipe)      # {branch: Beginning}
model = build_model(recipe, {name: begin.state for name, begin in begins.items()})
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vicjoint.embeddings.encoder import hash_of_state
from vicjoint.files.guard import printable
from vicjoint.files.paths import user_path
from vicjoint.model import current_names
from vicjoint.options import show
from vicjoint.recipe import BranchSpec, Recipe, RecipeError, Spec, load_recipe
from vicjoint.registry import find, nearest, options
from vicjoint.training import checkpoint
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import check_run

EXPORTED = "model.safetensors"


@dataclass(frozen=True)
class Beginning:
    """What a branch begins as. state: tensors of an encoder and its modality, by their names in the branch.
    hash: 12 hexadecimal digits of them. line: what there is to say of it."""

    state: dict[str, Tensor]
    hash: str
    line: str


def read_beginnings(recipe: Recipe) -> dict[str, Beginning]:
    """Of each branch with `weights_from`. Raises RecipeError where the folder is neither a run's nor an
    export, or its encoder another one."""
    return {
        name: read_beginning(spec, spec.learning.weights_from, recipe.imports)
        for name, spec in recipe.branches.items()
        if spec.weights == "own" and spec.learning.weights_from
    }


def read_beginning(spec: BranchSpec, given: str, imports: list[str]) -> Beginning:
    key = f"{spec.key}.weights_from"
    try:
        folder, named = place_of(given)
        check_run(folder, "run folder or an export")
        theirs = load_recipe(folder / "recipe.yaml", check_paths=False, imports=imports)
        branch = named or next(iter(theirs.branches))
        if branch not in theirs.branches:
            known = ", ".join(theirs.branches)
            raise RecipeError(
                f"{folder} has no branch '{branch}'.{nearest(branch, theirs.branches)} Known: {known}."
            )
        exported = (folder / EXPORTED).exists()
        if theirs.branches[branch].learning.train == "lora" and not exported:
            raise RecipeError(
                f"{folder} has adapters beside its weights. Export it, which merges them, and give the"
                f" export: python -m vicjoint.export {folder} --to FOLDER"
            )
        check_same_encoder(spec, theirs.branches[branch], f"branch '{branch}' of {folder}")
        tensors = read_export(folder / EXPORTED) if exported else read_last(folder)
    except (RecipeError, CheckpointError, ValueError) as error:
        raise RecipeError(f"{key}: {error}") from None
    prefix = f"branches.{branch}."
    state = {
        name.removeprefix(prefix): x
        for name, x in current_names(tensors).items()
        if name.startswith((f"{prefix}encoder.", f"{prefix}modality."))
    }
    digits = hash_of_state(state)
    line = f"{spec.name}: its encoder begins as that of branch {branch} of {folder} ({digits})"
    if other := differing(spec.modality, theirs.branches[branch].modality, "modality"):
        line += f"; its modality had {'; '.join(f'{name} {there}' for name, (there, _) in other.items())}"
    return Beginning(state, digits, printable(line))


def place_of(given: str) -> tuple[Path, str | None]:
    """(folder, branch) of FOLDER or FOLDER:BRANCH."""
    whole = user_path(given)
    folder, colon, branch = given.rpartition(":")
    return (whole, None) if whole.exists() or not colon or not folder else (user_path(folder), branch)


def check_same_encoder(own: BranchSpec, theirs: BranchSpec, whose: str) -> None:
    """Raises RecipeError where the two encoders are not built alike."""
    if own.modality["name"] != theirs.modality["name"]:
        raise RecipeError(
            f"{whose} is of modality '{theirs.modality['name']}', and {own.key} of '{own.modality['name']}'."
            " Name a branch of the same modality."
        )
    if other := differing(own.encoder, theirs.encoder, "encoder", f"{own.modality['name']}/"):
        said = "; ".join(f"{name} is {there} there and {here} here" for name, (there, here) in other.items())
        line = yaml.safe_dump(theirs.encoder, default_flow_style=True, sort_keys=False, width=10**6)
        raise RecipeError(
            f"{whose} has another encoder: {said}. Give its own: '{own.key}.encoder={line.strip()}'"
        )


def differing(own: Spec, theirs: Spec, family: str, prefix: str = "") -> dict[str, tuple[str, str]]:
    """{option: (its value in theirs, in own)} where two components differ, defaults filled in. `weights` say
    where the first weights come from, which are not used."""
    filled = []
    for spec in (theirs, own):
        known = options(find(family, prefix + spec["name"]))
        filled.append({name: p.default for name, p in known.items() if p.default is not p.empty} | spec)
    there, here = filled
    names = dict.fromkeys(["name", *there, *here]) if there["name"] == here["name"] else ["name"]
    return {
        name: (show(there.get(name)), show(here.get(name)))
        for name in names
        if name != "weights" and there.get(name) != here.get(name)
    }


def read_last(folder: Path) -> dict[str, Tensor]:
    """The model of a run's last checkpoint."""
    if not checkpoint.steps(folder / "checkpoints"):
        raise RecipeError(f"{folder} has no checkpoint. Run its recipe with out={folder} first.")
    return checkpoint.load_last(folder / "checkpoints")["model"]


def read_export(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"{file} cannot be read: {error}. Export the run again.") from None
