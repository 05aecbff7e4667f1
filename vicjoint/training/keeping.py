"""Before training: what the encoders with `cache: features` give of all training records is computed once,
and kept in the cache folder.

keep_features(parts)  # its streams then read y from there
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vicjoint import distributed
from vicjoint.batch import concatenate, to_device
from vicjoint.data import READ_ERRORS, Readers, Reads, TimeLimit
from vicjoint.data.kept import (
    Draws,
    KeptReader,
    Store,
    Value,
    drawn,
    kept_sides,
    key_of,
    name_of,
    read_as_trained,
    values_of,
    with_readers,
)
from vicjoint.embeddings.encoder import hash_of
from vicjoint.files.cache import cache_root
from vicjoint.files.write import write_json
from vicjoint.model import Branch
from vicjoint.parts import Modality, Side
from vicjoint.recipe import RecipeError
from vicjoint.training.build import Parts, Task

AT_ONCE = 64  # views in one forward pass
OF_A_PART = 1024  # rows that are written at once
COMPARED = 4  # kept rows that are computed again
MOST = 0.02  # difference, relative to the largest number, that another machine or batch may make


@dataclass
class Wanted:
    """The values of a branch, each once: its key in the store, by its name."""

    values: dict[bytes, Value]
    keys: dict[bytes, bytes]


def keep_features(parts: Parts) -> None:
    """Compute what is not kept yet, on all processes together, and let the streams of `parts` read it. Raises
    RecipeError where a view is not the same each time, or kept features are of another encoder, and OSError
    where they cannot be written."""
    stands: dict[int, dict[Side, Modality]] = {}
    of_branch: dict[str, list[tuple[Task, Side]]] = {}
    for task in parts.tasks:
        for side, name in kept_sides(parts.recipe, task.spec.a, task.spec.b):
            of_branch.setdefault(name, []).append((task, side))
    for name, places in of_branch.items():
        task, side = places[0]
        reader = task.pair.readers["ab".index(side)]
        kept = keep_branch(parts, name, reader, places)
        for task, side in places:
            stands.setdefault(task.number, {})[side] = kept
    for number, of_task in stands.items():
        parts.pairs_of_kept[number] = with_readers(parts.tasks[number].pair, of_task)


def keep_branch(parts: Parts, name: str, reader: Modality, places: list[tuple[Task, Side]]) -> KeptReader:
    wanted = list_values(reader, places)
    store = store_of(parts, name)
    work = Encoding(parts, name, reader, store)
    names = sorted(wanted.keys)
    keys = [wanted.keys[n] for n in names]
    missing = lambda: [n for n, part in zip(names, store.find(keys).part) if part < 0]
    new = set(missing())
    known = [n for n in names if n not in new][:COMPARED]
    work.compare([(wanted.keys[n], wanted.values[n]) for n in known])
    todo = distributed.from_first(missing)  # before any of them writes
    share = todo[distributed.rank() :: distributed.world_size()]
    bad = work.compute([(wanted.keys[n], wanted.values[n]) for n in share], len(todo))
    bad = sum(distributed.gather_objects(bad, patient=True))
    if len(left := missing()) > bad:  # the cache folder is not the same for all processes
        work.compute([(wanted.keys[n], wanted.values[n]) for n in left], len(left))
    return KeptReader(reader, store, np.array(names, "S32"), store.find(keys))


def list_values(reader: Modality, places: list[tuple[Task, Side]]) -> Wanted:
    """What the branch reads in training. A file that is not there is not wanted: training says so itself."""
    wanted = Wanted({}, {})
    for task, side in places:
        records = task.evaluated.records("train", side)
        bar = tqdm(
            values_of(task.pair, records, side),
            desc="list files and texts",
            total=len(records),
            leave=False,
            delay=1,
            disable=distributed.rank() > 0,
        )
        for value in (value for values in bar for value in values):
            try:
                wanted.keys.setdefault(found := name_of(value), key_of(value, reader.reads == "file"))
                wanted.values[found] = value
            except OSError:
                continue
    return wanted


def store_of(parts: Parts, name: str) -> Store:
    """The folder for what these weights give of what this modality reads."""
    spec, recipe = parts.recipe.branches[name], parts.recipe
    about = {
        "weights": hash_of(parts.model.branches[name].encoder),
        "encoder": spec.encoder,
        "modality": spec.modality,
        "precision": recipe.train.precision,
        "video_backend": recipe.data.video_backend,
    }
    text = json.dumps(about, sort_keys=True, default=str)
    folder = cache_root() / "features" / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    if distributed.rank() == 0 and not (folder / "about.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "about.json", about)
    return Store(folder)


class ReadValues(Reads):
    """Number of a value -> its view as training sees it, an Exception where it cannot be read."""

    def __init__(self, reader: Modality, values: Sequence[Value], limit: TimeLimit):
        self.reader, self.values, self.limit = reader, values, limit

    def __getitem__(self, place: int) -> tuple[int, Any]:
        try:
            with self.limit.reading(0, place, str(place)):
                return place, read_as_trained(self.reader, self.values[place])
        except (*READ_ERRORS, Draws) as error:
            return place, error

    def name(self, number: int, index: int) -> str:
        return str(index)


def collate(read: list[tuple[int, Any]]) -> tuple[list[int], Any, int, bool]:
    """(numbers of the values that could be read, their views, how many could not, whether any view was drawn
    at random)."""
    good = [(place, view) for place, view in read if not isinstance(view, Exception)]
    raw = concatenate([view for _, view in good]) if good else None
    drawn = any(isinstance(view, Draws) for _, view in read)
    return [place for place, _ in good], raw, len(read) - len(good), drawn


class Encoding:
    """Reads and encodes values of one branch into its store."""

    def __init__(self, parts: Parts, name: str, reader: Modality, store: Store):
        self.parts, self.reader, self.store = parts, reader, store
        self.branch: Branch = parts.model.branches[name]
        self.key = parts.recipe.branches[name].key
        self.modality = parts.recipe.branches[name].modality["name"]

    def compute(self, todo: list[tuple[bytes, Value]], everywhere: int) -> int:
        """Write y of (key, value); returns how many could not be read. `everywhere`: of all processes."""
        bad, began = 0, time.perf_counter()
        keys: list[bytes] = []
        ys: list[np.ndarray] = []
        bar = tqdm(
            total=len(todo),
            desc=f"{self.key}: features",
            unit="sample",
            leave=False,
            delay=1,
            dynamic_ncols=True,
            disable=distributed.rank() > 0,
        )
        try:
            for places, y, wrong in self.encoded([value for _, value in todo]):
                if bar.n == 0 and y is not None:
                    seconds = (time.perf_counter() - began) * len(todo) / (len(places) + wrong)
                    self.say(everywhere, seconds, y.shape[1])
                bad += wrong
                keys += [todo[place][0] for place in places]
                ys += [] if y is None else [y]
                if len(keys) >= OF_A_PART:
                    self.store.write(keys, np.concatenate(ys))
                    keys, ys = [], []
                bar.update(len(places) + wrong)
        finally:
            bar.close()
            if keys:  # a run that is stopped loses nothing
                self.store.write(keys, np.concatenate(ys))
        return bad

    def say(self, number: int, seconds: float, dim: int) -> None:
        took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        distributed.say(
            f"{self.key}.cache: features of {number:,} samples are computed once: about {took},"
            f" {number * dim * 4 / 2**20:.1f} MiB in {self.store.folder}"
        )

    @torch.no_grad()
    def encoded(self, values: list[Value]) -> Iterator[tuple[list[int], np.ndarray | None, int]]:
        """(numbers of the values, y float32 [n, D], how many of the batch could not be read), batch by
        batch. Raises RecipeError for a view that is drawn at random."""
        recipe, device = self.parts.recipe, self.parts.device
        batches = [list(range(i, min(i + AT_ONCE, len(values)))) for i in range(0, len(values), AT_ONCE)]
        workers = recipe.data.workers if len(batches) > 4 else 0
        reads = ReadValues(self.reader, values, TimeLimit(recipe.data.timeout))
        self.branch.eval()
        with Readers(reads, batches, collate, workers) as readers:
            for places, raw, bad, random in readers:
                if random:
                    raise RecipeError(drawn(self.key, self.modality))
                y = None
                if places:
                    bf16 = recipe.train.precision == "bf16"
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        y = self.branch.represent(to_device(raw, device)).float().cpu().numpy()
                yield places, y, bad

    def compare(self, known: list[tuple[bytes, Value]]) -> None:
        """Raises RecipeError where kept features are not what the encoder gives now."""
        rows = self.store.find([key for key, _ in known])
        for places, y, _ in self.encoded([value for _, value in known]):
            kept = [self.store.read(rows.part[place], rows.row[place])[0].numpy() for place in places]
            y, kept = np.nan_to_num(0 if y is None else y), np.nan_to_num(kept)
            if np.abs(y - kept).max(initial=0) <= MOST * np.abs(kept).max(initial=0):
                continue
            raise RecipeError(
                f"{self.key}.cache: the features in {self.store.folder} are not what the encoder gives now,"
                " although its weights are the same: its code, a library or a tokenizer has changed. Delete"
                " the folder, and they are computed again."
            )
