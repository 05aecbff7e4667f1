"""From items to the parts of a file: they are read by processes where that pays, encoded beside the reading,
and written part by part.

Rows are numbered before they are read (a file has as many as windows, a bad one counts as one). Batch b is
the rows from b `at_once` on, part p those from p PART_ROWS on: functions of the items alone.
"""

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vicjoint.batch import concatenate
from vicjoint.data import READ_ERRORS, Readers, Reads, TimeLimit
from vicjoint.embeddings.encoder import Beside, Level, RepresentationModel, finite
from vicjoint.embeddings.items import Columns, Data, Item, encodable
from vicjoint.embeddings.reading import Chunk, ItemReader, Place, ReadItems, collate
from vicjoint.embeddings.store import PART_ROWS, Bad, Store, StoreError
from vicjoint.embeddings.surprises import ERROR
from vicjoint.parts import Raw, Space
from vicjoint.probes.features import size_in_bytes
from vicjoint.sliding import Span
from vicjoint.tokens import Tokens

MOST_BYTES = 1 << 26  # of raw views in one forward pass
MOST_VIEWS = {"cpu": 64, "cuda": 256}  # in one forward pass; powers of 2, which divide a part
TRIED = 100  # items, of which the first that can be read says how large views are
WORTH_SECONDS = 20.0  # of reading, from which processes that read are worth their start
MOST_WORKERS = 16
TOKEN_ROWS = 64  # of a part, where a row is many tokens
COUNTED = 16  # files whose windows a process counts at once
UNREADABLE = -1  # the count of a file that could not be opened
HALF = 65504.0  # the largest float16


def progress(what: str, unit: str, total: int | None = None, done: int = 0) -> tqdm:
    return tqdm(
        total=total, initial=done, desc=what, unit=unit, delay=0.5, mininterval=0.5, dynamic_ncols=True
    )


@dataclass
class Job:
    """How items become rows."""

    encoder: RepresentationModel
    every: float | None
    space: Space
    dtype: str
    workers: int | None
    level: Level = "pooled"
    surprise: bool = False

    @property
    def part_rows(self) -> int:
        """Rows of a part, bad ones counted."""
        return PART_ROWS if self.level == "pooled" else min(PART_ROWS, TOKEN_ROWS)

    @property
    def group_parts(self) -> int | None:
        """Parts that are held at once; None: as many as the store holds."""
        return None if self.level == "pooled" else 1

    def encode(self, raw: Raw) -> Any:
        """What `finite` takes."""
        if self.surprise:
            return self.encoder.encode_followed(raw, self.space)
        return (
            self.encoder.encode(raw, self.space)
            if self.level == "pooled"
            else self.encoder.encode_tokens(raw)
        )

    @property
    def reader(self) -> ItemReader:
        return self.encoder.reader.with_targets() if self.surprise else self.encoder.reader

    @property
    def unit(self) -> str:
        """What a row is of."""
        return "item" if self.every is None else "window"

    def processes(self, seconds: float) -> int:
        """That read, where one would take so long."""
        if self.workers is not None:
            return self.workers
        if seconds < WORTH_SECONDS:
            return 0
        cores = os.cpu_count() or 1
        # without a GPU, encoding needs the cores too
        return min(MOST_WORKERS, max(1, cores // 2 if self.encoder.device.type == "cpu" else cores - 1))


class Done(NamedTuple):
    """rows: bad ones counted. seconds: that it took; encoding: of these, while the encoder was at work."""

    rows: int
    seconds: float
    encoding: float

    def words(self, unit: str) -> str:
        return (
            f"read and encoded {self.rows:,} {unit}s in {self.seconds:.1f} s,"
            f" {self.rows / self.seconds:,.0f} a second; the encoder was at work"
            f" {min(1, self.encoding / self.seconds):.0%} of the time"
        )


def work(job: Job, data: Data, columns: Columns, items: int, store: Store) -> Done | None:
    """Read and encode what the parts do not hold yet; None where they hold all."""
    at_once, seconds = sized(job, data, store.manifest.get("at_once"))
    store.keep(at_once=at_once)
    counts = None if job.every is None else counted(job, data, items, store.folder / "windows")
    total = items if counts is None else int(nominal(counts).sum())
    first = store.parts * job.part_rows
    if first >= total:
        return None
    places = Places(data, counts, at_once, total, first)
    processes = job.processes(seconds * (total - first))
    encode = Beside(job.encode)
    reads, part, began = ReadItems(job.reader, job.every, at_once), PartRows(job, columns), time.monotonic()
    bar = progress("embed", job.unit, total, first)
    with job.encoder.evaluating(), bar, Readers(reads, places, collate, processes) as readers:
        for number, (chunk, x) in enumerate(encode(readers)):
            part.add(chunk, x, places.take(number))
            end = min(first + (number + 1) * at_once, total)
            bar.update(min(at_once, total - first - number * at_once))
            if end % job.part_rows == 0 or end == total:
                store.write((end - 1) // job.part_rows, *part.take())
    return Done(total - first, time.monotonic() - began, encode.seconds)


def sized(job: Job, data: Data, known: int | None) -> tuple[int, float]:
    """(views in one forward pass, seconds to read one), by the first item that can be read."""
    most = known or min(MOST_VIEWS[job.encoder.device.type], job.part_rows)
    for item in itertools.islice(data, TRIED):
        try:
            for _ in range(2):  # the first loads libraries
                began = time.perf_counter()
                raw, number = first_views(job, item)
                seconds = (time.perf_counter() - began) / number
        except READ_ERRORS:
            continue
        while known is None and most > 1 and most * size_in_bytes(raw) > MOST_BYTES * number:
            most //= 2
        return most, seconds
    return most, 0.0


def first_views(job: Job, item: Item) -> tuple[Raw, int]:
    """Some views of an item, and their number."""
    if isinstance(item.value, Exception):
        raise item.value
    if job.every is None:
        return job.reader.read(item.value), 1
    with job.reader.slide(item.value, job.every) as sliding:
        views = list(sliding.read(0, 4))
        return concatenate(views), len(views)


class CountWindows(Reads):
    """Items by number and value -> how many windows they have, or UNREADABLE."""

    def __init__(self, reader: ItemReader, every: float):
        self.reader, self.every, self.limit = reader, every, TimeLimit(reader.timeout)

    def name(self, number: int, index: int) -> str:
        return str(index)

    def __getitem__(self, place: Place) -> int:
        try:
            with self.limit.reading(0, place.number, str(place.number)):
                if isinstance(place.value, Exception):
                    return UNREADABLE
                with self.reader.slide(place.value, self.every) as sliding:
                    return len(sliding.spans)
        except READ_ERRORS:
            return UNREADABLE


def counted(job: Job, data: Data, items: int, path: Path) -> np.ndarray:
    """Windows of each item [items]; those that were counted before are in the file at `path`."""
    known = path.stat().st_size // 4 if path.exists() else 0
    if known < items:
        with open(path, "r+b" if known else "wb") as file, progress("count", "file", items, known) as bar:
            file.truncate(4 * known)
            file.seek(0, os.SEEK_END)
            places = Places(data, None, COUNTED, items, known)
            began = time.perf_counter()
            counting = CountWindows(job.reader, job.every or 0.0)
            first = next(item for item in itertools.islice(data, known, None))
            counting[Place(known, first.value)]
            processes = job.processes((time.perf_counter() - began) * (items - known))
            with Readers(counting, places, list, processes) as readers:
                for number, found in enumerate(readers):
                    places.take(number)
                    file.write(np.array(found, np.int32).tobytes())
                    file.flush()
                    bar.update(len(found))
    return np.fromfile(path, np.int32)


def nominal(counts: np.ndarray) -> np.ndarray:
    """Rows that are made ready for items: a bad one counts as one."""
    return np.where(counts == UNREADABLE, 1, counts).astype(np.int64)


class Places(Sequence):
    """Batches of places, `at_once` rows each, from row `first` on, of items that come one after the other.
    Held are the batches that were asked for and not taken. counts: windows of each item, or None."""

    def __init__(
        self, items: Iterable[Item], counts: np.ndarray | None, at_once: int, total: int, first: int
    ):
        self._coming = self._batches(iter(items), None if counts is None else counts.tolist(), at_once, first)
        self._length = -(-(total - first) // at_once)
        self._held: dict[int, tuple[list[Place], dict[int, Item]]] = {}
        self._next = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> list[Place]:
        while self._next <= number:
            self._held[self._next] = next(self._coming)
            self._next += 1
        return self._held[number][0]

    def take(self, number: int) -> dict[int, Item]:
        """The items of a batch, by number, which is not asked for any more."""
        return self._held.pop(number)[1]

    @staticmethod
    def _batches(
        items: Iterator[Item], counts: list[int] | None, at_once: int, first: int
    ) -> Iterator[tuple[list[Place], dict[int, Item]]]:
        row, room, places, held = 0, at_once, [], {}
        for number, item in enumerate(items):
            count = 1 if counts is None else counts[number]
            at, end = 0, max(count, 1) if count else 0
            if row < first:
                at = min(end, first - row)
                row += at
            while at < end:
                last = min(end, at + room)
                # of an unreadable one no window is read
                places.append(Place(number, item.value, at, last if count >= 0 else count))
                held[number] = item
                row, room, at = row + last - at, room - (last - at), last
                if not room:
                    yield places, held
                    room, places, held = at_once, [], {}
        if places:
            yield places, held


class PartRows:
    """The rows of a part, while they come."""

    def __init__(self, job: Job, columns: Columns):
        self.job, self.columns = job, columns
        self._clear()

    def _clear(self) -> None:
        self.items: list[Item] = []
        self.spans: list[Span] = []
        self.x: list[Any] = []
        self.bad: list[Bad] = []

    def add(self, chunk: Chunk, x: Any, items: dict[int, Item]) -> None:
        if x is not None:
            self.x.append(finite(chunk, x))
        for number, span in chunk.rows:
            self.items.append(items[number])
            self.spans.append(span or (0.0, 0.0))
        for number, span, cause in chunk.bad:
            self.bad.append(Bad(encodable(items[number].name), encodable(cause), span and span[0]))

    def take(self) -> tuple[Any, list[Bad]]:
        """(pyarrow table, bad ones); those that come then belong to the next part."""
        import pyarrow

        arrays = {"item": pyarrow.array([encodable(item.name) for item in self.items], pyarrow.string())}
        if self.job.level == "pooled":
            width = self.job.encoder.width(self.job.space)
            x = torch.cat([torch.zeros(0, width + self.job.surprise), *self.x])
            values = self._values(x[:, :width].contiguous())
            arrays["embedding"] = pyarrow.FixedSizeListArray.from_arrays(values, width)
            if self.job.surprise:
                arrays[ERROR] = pyarrow.array(x[:, width].double().numpy())
        else:
            tokens: list[Tokens] = list(itertools.chain.from_iterable(self.x))
            values = self._values(torch.cat([torch.zeros(0), *(one.x.flatten() for one in tokens)]))
            widths = [one.x.shape[1] for one in tokens for _ in one.x]
            every = pyarrow.ListArray.from_arrays(offsets(widths), values)
            arrays["embedding"] = pyarrow.ListArray.from_arrays(
                offsets([len(one.x) for one in tokens]), every
            )
            arrays["token_grid"] = pyarrow.array([one.grid for one in tokens], pyarrow.list_(pyarrow.int32()))
        if self.job.every is not None:
            for i, name in enumerate(("start_seconds", "end_seconds")):
                arrays[name] = pyarrow.array([span[i] for span in self.spans], pyarrow.float64())
        own = zip(self.columns.fields(), self.columns.arrays([item.row for item in self.items]))
        arrays |= {field.name: array for field, array in own}
        bad = self.bad
        self._clear()
        return pyarrow.table(arrays), bad

    def _values(self, x: Tensor) -> Any:
        """All numbers of x in a row, as the file holds them."""
        import pyarrow

        if self.job.dtype == "float16" and len(x) and (largest := float(x.abs().max())) > HALF:
            raise StoreError(f"--dtype: float16 holds numbers up to {HALF:g}, got {largest:g}. Use float32.")
        return pyarrow.array(x.numpy().astype(self.job.dtype).reshape(-1))


def offsets(lengths: list[int]) -> np.ndarray:
    """Where each list of so many values begins, and the last one ends."""
    return np.cumsum([0, *lengths]).astype(np.int32)
