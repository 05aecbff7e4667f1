"""The folder or file of an export: made beside its place, and put there when all of it has worked."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vicjoint.exporting.facts import CONFIG, is_export, read_object
from vicjoint.recipe import RecipeError

BEFORE = {"recipe.yaml", "model.safetensors"}  # what an export was before 0.2
WEIGHTS = (".safetensors", ".onnx", ".data", ".pt2")
PREFIX = ".export_"  # of the folder in which it is made
CARD, NEW_CARD = "README.md", "README.new.md"


@contextlib.contextmanager
def staged(to: Path) -> Iterator[Path]:
    """An empty folder, on `to`'s disk, that is gone afterwards."""
    near = next(path for path in (to.absolute(), *to.absolute().parents) if path.is_dir())
    with TemporaryDirectory(prefix=PREFIX, dir=near) as made:
        yield Path(made)


def move(made: Path, to: Path) -> None:
    """Put a file in its place, as readable as others: safetensors' files are their owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    made.chmod(0o666 & ~mask)
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, to)


def check_place(to: Path) -> None:
    """Raises RecipeError where a folder of exports would mix with other files."""
    if to.exists() and not to.is_dir():
        raise RecipeError(
            f"--to: {to} is a file. Expected a folder, or a file ending in .pth, .safetensors, .onnx or .pt2."
        )
    there = {path.name for path in to.iterdir() if not path.name.startswith(".")} if to.is_dir() else set()
    if there and not there <= BEFORE and not is_export(to):
        raise RecipeError(f"--to: {to} holds files, but no export. Give an empty or a new folder.")


def of_same_model(to: Path, tensors: str) -> bool:
    """Whether the folder is an export of the model with this digest."""
    return read_object(to / CONFIG).get("tensors") == tensors


def settle(made: Path, to: Path, tensors: str) -> Path:
    """Move the files of a made export into `to`. What another form of the same model has left there stays,
    and so does a card that somebody has changed. Returns where the new card is. Raises RecipeError before
    anything has moved where weights of another model would stay."""
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    if not of_same_model(to, tensors):
        there = (
            {path.relative_to(to) for path in to.rglob("*") if path.suffix in WEIGHTS}
            if to.is_dir()
            else set()
        )
        stale = {path for path in there - set(files) if not path.parts[0].startswith(PREFIX)}
        if stale:
            raise RecipeError(
                f"--to: {to} also has weights of another model: {', '.join(map(str, sorted(stale)[:3]))}."
                " Delete them, or give another folder."
            )
    card = to / CARD
    changed = card.exists() and is_export(to) and checksum(card) != read_object(to / CONFIG).get("card")
    if changed and checksum(card) != checksum(made / CARD):
        os.replace(made / CARD, made / NEW_CARD)
        files = [Path(NEW_CARD) if file == Path(CARD) else file for file in files]
        card = to / NEW_CARD
    for file in sorted(files, key=lambda file: file == Path(CONFIG)):  # it says what the others are
        move(made / file, to / file)
    return card


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
