"""What an encoder that does not learn gives of the training records, kept on disk: a branch then reads y in
place of files.

store = Store(folder)
store.write(keys, y)                             # whole or absent, and safe beside other writers
pair = reading_kept(task.pair, {"b": reader})    # its samples hold `Encoded` views of b
"""

# N values, D representation

import contextlib
import copy
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vicjoint.batch import Encoded
from vicjoint.data.errors import READ_ERRORS
from vicjoint.files.cells import as_path, compared
from vicjoint.parts import Modality, Pair, Raw, Record, Side, Source
from vicjoint.recipe import Recipe, RecipeError

TRIED = 8  # records, one of which can be read, as a rule

Value = Any
"""What a modality's `read` takes."""


# ---- on disk ----


class Rows(NamedTuple):
    """Where values stand in a store: number of the part, -1 where it is in none, and the row in it; int64 [N]
    each."""

    part: np.ndarray
    row: np.ndarray


class Store:
    """A folder of parts: NAME.npy, float32 [n, D], and NAME.keys.npy, the keys of its rows, which is written
    after it: a part without keys is none. Nothing is ever changed, and a part's name is that of its keys, so
    several processes may write here at once. It travels to processes that read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: list[str] = []
        self._open: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}  # each process opens files for itself

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Where values with these keys are, as far as they are known now."""
        new = {path.name.removesuffix(".keys.npy") for path in self.folder.glob("*.keys.npy")}
        self.names += sorted(new - set(self.names))
        known = {
            key: (number, row)
            for number, name in enumerate(self.names)
            for row, key in enumerate(np.load(self.folder / f"{name}.keys.npy", allow_pickle=False).tolist())
        }
        found = np.array([known.get(key, (-1, -1)) for key in keys], np.int64).reshape(-1, 2)
        return Rows(found[:, 0], found[:, 1])

    def write(self, keys: Sequence[bytes], y: np.ndarray) -> None:
        """Add y float32 [n, D] of new keys. Raises OSError where it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(b"".join(keys), digest_size=12).hexdigest()
        for file, array in ((f"{name}.npy", y), (f"{name}.keys.npy", np.array(keys))):
            handle, temporary = tempfile.mkstemp(".tmp", dir=self.folder)
            try:
                with open(handle, "wb") as out:
                    np.save(out, array)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(temporary, self.folder / file)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def read(self, part: int, row: int) -> torch.Tensor:
        """y float32 [1, D] of one row."""
        if part not in self._open:
            path = self.folder / f"{self.names[part]}.npy"
            self._open[part] = np.load(path, mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(self._open[part][row : row + 1]))


def name_of(value: Value) -> bytes:
    """32 characters, equal for equal values."""
    text = compared(value).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()


def key_of(value: Value, is_file: bool) -> bytes:
    """The same of a value and of the file's size and time of change, where it is in one. Raises OSError."""
    path = value.get("path") if isinstance(value, dict) and "bytes" not in value else value
    if not is_file or not isinstance(path, str):
        return name_of(value)
    at = os.stat(path)
    return name_of(f"{compared(value)} {at.st_size} {at.st_mtime_ns}")


# ---- what a pair reads by ----


class Stand(Modality):
    """Takes the place of a reader: a pair hands it values, a file in a tar file or a cell as it is."""

    def __init__(self, reader: Modality):
        super().__init__()
        self.reader = (reader,)  # in a tuple: it is no part of this module
        self.reads, self.timed, self.suffixes = reader.reads, reader.timed, (".tar",)


class Draws(Exception):
    """A reader takes random numbers."""


class NoChance:
    """In place of random numbers: whoever takes one does not read the same each time."""

    def __getattr__(self, name: str):
        raise Draws


class Listing(Stand):
    """Reads nothing: its views are the values."""

    def read(self, value: Value, rng=None, window=None) -> Raw:
        if window is not None:
            raise Draws  # of time: in training it lies anywhere
        return value

    def seconds(self, value: Value) -> float:
        raise Draws  # it is asked for a window that both branches have in common


class KeptReader(Stand):
    """Its views are rows of a store. `names`: of the values, in order; rows: where they are."""

    def __init__(self, reader: Modality, store: Store, names: np.ndarray, rows: Rows):
        super().__init__(reader)
        self.store, self.names, self.rows = store, names, rows

    def read(self, value: Value, rng=None, window=None) -> Encoded:
        """y of a value. Raises ValueError or OSError for one that could not be read when the others were."""
        name = name_of(value)
        at = int(np.searchsorted(self.names, name))
        if at == len(self.names) or self.names[at] != name or self.rows.part[at] < 0:
            read_as_trained(self.reader[0], value)  # raises, with the cause
            raise ValueError("it could not be read when features were computed. Start the run again")
        return Encoded(self.store.read(int(self.rows.part[at]), int(self.rows.row[at])))


def read_as_trained(reader: Modality, value: Value) -> Raw:
    """The view that training sees of a value each time. Raises Draws where it is not the same each time, and
    as the modality does."""
    takes_all = reader.reads == "text" or ".tar" in reader.suffixes
    with contextlib.nullcontext(value) if takes_all else as_path(value) as named:
        return reader.read(named, NoChance())  # type: ignore[arg-type]


def with_readers(pair: Pair, stands: Mapping[Side, Modality]) -> Pair:
    """The pair, bound as it is, but for the readers of some sides."""
    other = copy.copy(pair)
    a, b = pair.readers
    other.read_by((stands.get("a", a), stands.get("b", b)), pair.video_backend)
    return other


def values_of(pair: Pair, records: Sequence[Record], side: Side) -> Iterator[list[Value]]:
    """What a pair would have the reader of one side read of each record; nothing is read. A record whose cell
    holds no value has none. Raises Draws where training draws a window of time."""
    listing = with_readers(pair, {side: Listing(pair.readers["ab".index(side)])})
    for record in records:
        try:
            yield [view.raw for view in listing.views(record, side)]
        except READ_ERRORS:
            yield []


# ---- before training ----


def kept_sides(recipe: Recipe, a: str, b: str) -> list[tuple[Side, str]]:
    """(side, branch) of the two that read kept features."""
    sides: list[tuple[Side, str]] = [("a", a), ("b", b)]
    return [(side, name) for side, name in sides if recipe.branches[name].learning.cache]


def check_kept(recipe: Recipe, a: str, b: str, pair: Pair, source: Source) -> None:
    """Raises RecipeError where a branch that is to read kept features does not see the same of a record each
    time."""
    for side, name in kept_sides(recipe, a, b):
        key, modality = recipe.branches[name].key, recipe.branches[name].modality["name"]
        if not pair.uses_readers:
            raise RecipeError(
                f"{key}.cache: features are kept of views that are the same each time, and the pair reads"
                f" and draws them itself. Leave out {key}.cache, or choose a pair that reads through the"
                " modality, such as cross_modal."
            )
        records = source.records("train", side)
        try:
            for values in values_of(pair, [records[i] for i in range(min(TRIED, len(records)))], side):
                for value in values:
                    with contextlib.suppress(*READ_ERRORS):
                        read_as_trained(pair.readers["ab".index(side)], value)
        except Draws:
            raise RecipeError(drawn(key, modality)) from None


def drawn(key: str, modality: str) -> str:
    return (
        f"{key}.cache: features are kept of views that are the same each time, and modality '{modality}'"
        " draws at random in training: a crop, a window of time, words. Let it read without (an image:"
        f" {key}.modality.transforms=[]), or leave out {key}.cache."
    )
