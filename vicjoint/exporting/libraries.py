"""Encoders and tokenizers of other libraries, in a folder of an export, in their libraries' own forms.

EXPORT/a/            AutoModel.from_pretrained reads it; or model.safetensors, the state_dict of the
                     torchvision or timm model without its classifier; and the files of a tokenizer
EXPORT/a/image/      the same of an encoder inside of an encoder, where the recipe gives it weights

    write(model, recipe, folder)
    recipe = within(load_recipe(...), folder)    # weights and tokenizers from there, not from where they were
"""

import dataclasses
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from vicjoint.files.guard import printable
from vicjoint.library import LibraryPart
from vicjoint.model import Model
from vicjoint.options import options_of
from vicjoint.recipe import BranchSpec, Learning, Recipe, Spec
from vicjoint.registry import find

WEIGHTS = "model.safetensors"
PLAIN = ("torchvision", "timm")  # libraries whose models are encoders as they are


class Inside(NamedTuple):
    """An encoder of a branch: the branch's own (keys ()) or one inside of it, by the options that lead to it,
    which are also the names of the modules."""

    keys: tuple[str, ...]
    spec: Spec
    registered: str
    """Its name in the registry, with the modality's."""

    def folder(self, branch: str) -> str:
        return "/".join((branch, *self.keys))


def encoders(branch: BranchSpec) -> Iterator[Inside]:
    yield from inside((), branch.encoder, f"{branch.modality['name']}/")


def inside(keys: tuple[str, ...], spec: Spec, prefix: str) -> Iterator[Inside]:
    yield Inside(keys, spec, prefix + spec["name"])
    for key, mark in options_of(find("encoder", prefix + spec["name"])).components.items():
        if mark.family == "encoder" and isinstance(spec.get(key), dict):
            yield from inside((*keys, key), spec[key], mark.prefix)


def library(module: nn.Module | None) -> Literal["transformers", "torchvision", "timm"] | None:
    """Whose model an encoder is."""
    if isinstance(module, LibraryPart):
        return "transformers"
    name = type(module).__module__.split(".")[0]
    return name if name in PLAIN else None


def write(model: Model, recipe: Recipe, to: Path) -> None:
    """Write the encoders of libraries, and tokenizers, below `to`. Of a branch with the weights of a nothing
    is: they are a's."""
    for name, spec in recipe.branches.items():
        if spec.weights == "same":
            continue
        branch = model.branches[name]
        modules = dict(branch.encoder.named_modules())
        for found in encoders(spec):
            module = modules.get(".".join(found.keys))
            if module is not None and (not found.keys or found.spec.get("weights")):
                write_encoder(module, to, found.folder(name))
        if isinstance(branch.modality, LibraryPart):
            (to / name).mkdir(exist_ok=True)
            branch.modality.save(to / name)
            if not any((to / name).iterdir()):
                (to / name).rmdir()


def write_encoder(module: nn.Module, to: Path, place: str) -> None:
    """Write an encoder into a new folder, to/place, where it is a library's. One that its library cannot
    write is named on the terminal: its tensors are in the export all the same."""
    if library(module) is None:
        return
    folder = to / place
    folder.mkdir(parents=True)
    try:
        if isinstance(module, LibraryPart):
            module.save(folder)
        else:
            save_file(plain(module.state_dict()), folder / WEIGHTS, {"format": "pt"})
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        shutil.rmtree(folder)
        cause = printable((str(error).splitlines() or [type(error).__name__])[0])
        print(f"{place}: not written in the form of {library(module)}: {cause}")


def written(model: Model, recipe: Recipe, exists: Callable[[str], bool]) -> list[tuple[str, str, Spec]]:
    """(folder, library, component) of the encoders that `write` has written. exists: of a path in the
    export."""
    found = []
    for name, spec in recipe.branches.items():
        modules = dict(model.branches[name].encoder.named_modules())
        for encoder in encoders(spec):
            whose = library(modules.get(".".join(encoder.keys)))
            if whose and exists(f"{encoder.folder(name)}/{WEIGHTS}"):
                found.append((encoder.folder(name), whose, encoder.spec))
    return found


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share nothing, which safetensors would refuse."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def within(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of an export, whose weights and tokenizers are in its folder where `write` put them."""
    branches = {name: branch_within(spec, folder) for name, spec in recipe.branches.items()}
    return dataclasses.replace(recipe, branches=branches)


def branch_within(branch: BranchSpec, folder: Path) -> BranchSpec:
    name = "a" if branch.weights == "same" else branch.name
    moved: dict[tuple[str, ...], Spec] = {}
    for found in encoders(branch):
        encoder = find("encoder", found.registered)
        moved[found.keys] = options_within(encoder, found.spec, folder / found.folder(name))
    modality = options_within(find("modality", branch.modality["name"]), branch.modality, folder / name)
    encoder = with_options(branch.encoder, moved)
    # nothing is left to learn: an export has no adapters
    return dataclasses.replace(
        branch, modality=branch.modality | modality, encoder=encoder, learning=Learning()
    )


def options_within(part: Callable, spec: Spec, folder: Path) -> Spec:
    """Those options of a part that named something elsewhere, which is now in a folder of the export."""
    if inspect.isclass(part) and issubclass(part, LibraryPart):
        there = {option: (folder / file, folder) for option, file in part.saved.items()}
    else:
        there = {"weights": (folder / WEIGHTS, folder / WEIGHTS)}
    return {
        option: str(value) for option, (file, value) in there.items() if spec.get(option) and file.is_file()
    }


def with_options(spec: Spec, moved: dict[tuple[str, ...], Spec], keys: tuple[str, ...] = ()) -> Spec:
    spec = {
        key: with_options(value, moved, (*keys, key)) if isinstance(value, dict) else value
        for key, value in spec.items()
    }
    return spec | moved.get(keys, {})
