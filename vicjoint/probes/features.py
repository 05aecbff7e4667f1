"""Where an evaluation reads and encodes: every view once, and once through each row's encoder, whatever the
number of probes that look at it.

A `Part` is one branch of one split as one pair reads it. It gathers what all probes want of it, reads the
union, and keeps what training does not change (random_init, simple features, raw views as far as there is
room) for the run. `FeaturesOf` is what one probe sees of that (vicjoint.parts.Features).
"""

# N items, B batch, D representation, E embedding

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vicjoint import distributed
from vicjoint.batch import concatenate, to_device
from vicjoint.data import READ_ERRORS, Readers, Reads, TimeLimit, cause_of
from vicjoint.files.guard import printable
from vicjoint.model import Two
from vicjoint.parts import EvaluationData, Items, Probe, Raw, Record, Side, Space, Split, Spread, View, Want
from vicjoint.probes.spread import pooled, seconds_of

AT_ONCE = 64  # views in one forward pass
KEPT_BYTES = 2**29  # raw views of a part that are kept for the next evaluation
FIXED_BYTES = 2**30  # features of a part that are kept for the run
WORTH_WORKERS = 20_000  # views from which starting worker processes pays

NONE = "evaluation: none of the samples that a probe asks for can be read."


class Found(NamedTuple):
    """What was read of the record with this number, or why it cannot be read."""

    number: int
    value: Any
    cause: str | None


class OfRecords(Reads):
    """(record's number, epoch) -> Found. Epoch -1: as in evaluation."""

    def __init__(self, records: Sequence[Record], limit: TimeLimit):
        self.records, self.limit = records, limit

    def of(self, number: int, epoch: int) -> Any:
        """Raises as a pair's `sample` does."""
        raise NotImplementedError

    def __getitem__(self, place: tuple[int, int]) -> Found:
        number, epoch = place
        try:
            with self.limit.reading(0, number, self.records[number]["id"]):
                return Found(number, self.of(number, epoch), None)
        except READ_ERRORS as error:
            return Found(number, None, cause_of(error))

    def name(self, number: int, index: int) -> str:
        return self.records[index]["id"]


class Views(OfRecords):
    """The views of a part's records; from epoch 0 on one that is cropped at random."""

    def __init__(self, part: "Part", limit: TimeLimit):
        super().__init__(part.records, limit)
        self.pair, self.side, self.every, self.spread = part.data.pair, part.side, part.every, part.spread

    def of(self, number: int, epoch: int) -> list[View]:
        if self.spread is not None:
            record = self.records[number]
            return self.pair.spread(record, self.side, self.spread.windows, seconds_of(record, self.spread))
        rng = np.random.default_rng([epoch, number, 2]) if epoch >= 0 else None
        views = self.pair.views(self.records[number], self.side, rng)
        return views if self.every else views[:1]


class Own(OfRecords):
    """What a probe reads by itself, of test records."""

    def __init__(self, measure: "Measure", limit: TimeLimit):
        super().__init__(measure.data.records("test"), limit)
        self.probe, self.pair = measure.probe, measure.data.pair

    def of(self, number: int, epoch: int) -> Any:
        return self.probe.read(self.records[number], self.pair)


@dataclass
class Chunk:
    """Raw views of some records, and of each the number of its record and its number among the views of
    that."""

    raw: Raw
    places: Tensor
    numbers: Tensor
    views: list[View]  # without what was read
    bad: list[tuple[int, str]]


def collate(read: list[Found]) -> Chunk:
    bad = [(found.number, found.cause) for found in read if found.cause]
    good = [(view, found.number, n) for found in read for n, view in enumerate(found.value or ())]
    raw = concatenate([view.raw for view, _, _ in good]) if good else None
    places, numbers = torch.tensor([place for _, place, _ in good]), torch.tensor([n for _, _, n in good])
    return Chunk(raw, places, numbers, [view._replace(raw=None) for view, _, _ in good], bad)


def say_left_out(record: Record, cause: str) -> None:
    distributed.say(f"evaluation leaves out {printable(record['id'])}: {printable(cause)}")


@dataclass(eq=False)
class Part:
    """One branch of one split, and all that is wanted, read and encoded of it. `fixed`: features that stay
    the same for the run, {(row, space): a tensor a chunk}."""

    data: EvaluationData
    side: Side
    split: Split
    records: Sequence[Record]
    spread: Spread | None = None
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    wanted: set[tuple[str, Space]] = field(default_factory=set)
    every: bool = False
    epochs: int = 0
    crops: int = 0  # of all epochs
    of_tokens: list[str] = field(default_factory=list)  # rows whose tokens are wanted, for each that wants
    kept: list[Chunk] | None = None  # of this process's share
    fixed: dict[tuple[str, Space], list[Tensor]] = field(default_factory=dict)
    version: int = 0  # how often other records could be read than before, which ends what was fixed
    features: dict[tuple[str, Space], list[Tensor]] = field(default_factory=dict)
    seen: list[Chunk] = field(default_factory=list)  # without their raw views
    named: set[int] = field(default_factory=set)  # bad records that the terminal has named
    speed: tuple[float, float] | None = None  # seconds to read a view, and to encode one by one model

    def add(self, want: Want) -> None:
        if want.epochs:
            self.epochs += want.epochs
            self.crops += want.epochs * len(self.all_or(want.places))
            return
        self.places = np.union1d(self.places, self.all_or(want.places))
        if want.tokens:
            self.of_tokens += want.rows
            return
        self.wanted |= {key_of(row, want.space) for row in want.rows}
        self.every |= want.every

    def all_or(self, places: np.ndarray | None) -> np.ndarray:
        return np.arange(len(self.records)) if places is None else places

    def holds(self, want: Want) -> bool:
        """Whether all of it is encoded."""
        return (
            all(key_of(row, want.space) in self.features for row in want.rows)
            and self.every >= want.every
            and bool(np.isin(self.all_or(want.places), self.places).all())
        )

    @property
    def windows(self) -> int:
        """Views of a record along its time; 1: there is one."""
        return self.spread.windows if self.spread else 1

    @property
    def views(self) -> int:
        """Views to read."""
        return len(self.places) * self.windows

    @property
    def cost(self) -> int:
        """Views to encode, each for one row, in the next evaluation."""
        rows = len({row for row, space in self.wanted if (row, space) not in self.fixed})
        return self.views * (rows + len(self.of_tokens))


def part_of(want: Want) -> tuple[Side, Split, Spread | None]:
    """Wants of one part are read together."""
    return want.side, want.split, want.spread


def key_of(row: str, space: Space) -> tuple[str, Space]:
    """Where the features of a row are: simple ones have no embedding."""
    return row, "representation" if row == "simple" else space


class Reader:
    """What all parts of an evaluation share: how records are read, and the models that encode them.
    `together`: whether all processes are here, each to read and encode every W-th batch."""

    def __init__(self, workers: int, limit: TimeLimit, device: torch.device):
        self.workers, self.limit, self.device = workers, limit, device
        self.bar: tqdm | None = None
        self.together = False

    def processes(self, views: int) -> int:
        """How many processes read so many views: none beside this one where there are few."""
        return self.workers if views > WORTH_WORKERS else 0

    def share(self, batches: list) -> list:
        """The batches that this process reads."""
        return batches[distributed.rank() :: distributed.world_size()] if self.together else batches

    def everyone(self, own: Iterator, batches: list) -> Iterator:
        """What all processes make of `batches`, in order; `own`: what this one makes of its share."""
        return distributed.shared(own, len(batches)) if self.together else own

    def read(
        self, reads: Reads, batches: list, collate: Callable, make: Callable[[list, Any], Any]
    ) -> Iterator:
        """make(batch, what was read of it), on this process, of every batch."""

        def own() -> Iterator:
            share = self.share(batches)
            with Readers(reads, share, collate, self.processes(sum(map(len, share)))) as readers:
                yield from map(make, share, readers)

        return self.everyone(own(), batches)

    def chunks(self, part: Part, make: Callable[[Chunk], Any]) -> Iterator[tuple[Chunk, Any]]:
        """(the evaluation views of some records, without what was read, and make(chunk), on the CPU), of all.
        Chunks are read, or kept. Bad records are named once."""
        at_once = split(part.places, max(1, AT_ONCE // part.windows))
        batches = [[(int(p), -1) for p in some] for some in at_once]
        kept, size = [], 0

        def made(_, chunk: Chunk) -> tuple[Chunk, Any]:
            nonlocal kept, size
            size += 0 if chunk.raw is None else size_in_bytes(chunk.raw)
            if size > KEPT_BYTES:
                kept = None
            if kept is not None:
                kept.append(chunk)
            return replace(chunk, raw=None), None if chunk.raw is None else make(chunk)

        # what is kept is this process's share, or all of it
        keeps = self.together or distributed.world_size() == 1
        if keeps and part.kept is not None:
            found = self.everyone((made(None, chunk) for chunk in part.kept), batches)
        else:
            found = self.read(Views(part, self.limit), batches, collate, made)
        for chunk, value in found:
            for place, cause in chunk.bad:
                if place not in part.named:
                    part.named.add(place)
                    say_left_out(part.records[place], cause)
            if value is not None:
                yield chunk, value
        part.kept = kept if keeps else part.kept

    def encode(self, part: Part, models: dict[str, Two]) -> None:
        """Fill `part.features` with all that is wanted of it."""
        wanted = {key for key in part.wanted if key not in part.fixed}
        part.features = {key: [] for key in wanted} | part.fixed
        if not wanted:
            return
        before, part.seen = part.seen, []
        spaces = {row: {space for r, space in wanted if r == row} for row, _ in sorted(wanted)}

        def encode(chunk: Chunk) -> dict[tuple[str, Space], Tensor]:
            raw = to_device(chunk.raw, self.device)
            return {
                (row, space): self.to_send(pooled(x, part.spread) if part.spread else x)
                for row in spaces
                for space, x in encoded(models, row, part.side, raw, spaces[row])
            }

        for chunk, found in self.chunks(part, encode):
            for key, x in found.items():
                part.features[key].append(x.to(self.device))
            self.advance(len(chunk.places) * len(spaces))
            first = slice(None, None, part.windows)  # of each record
            part.seen.append(
                Chunk(None, chunk.places[first], chunk.numbers[first], chunk.views[first], chunk.bad)
            )
        if not part.seen:
            raise ValueError(f"evaluation: none of the {len(part.places)} samples can be read.")
        if part.fixed and any(not torch.equal(*two) for two in zip(places_of(before), places_of(part.seen))):
            part.fixed, part.version = {}, part.version + 1
            self.encode(part, models)
            return
        for key in wanted:
            if key[0] != "model" and sum(map(size_in_bytes, part.features[key])) <= FIXED_BYTES:
                part.fixed[key] = part.features[key]

    def to_send(self, x: Tensor) -> Tensor:
        """Where it is, or on the CPU where it goes to other processes."""
        return x.cpu() if self.together else x

    def advance(self, samples: int) -> None:
        if self.bar is not None:
            self.bar.update(samples)


def places_of(chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
    """Numbers of the records [N], and of their views among those of a record [N]."""
    return torch.cat([c.places for c in chunks]), torch.cat([c.numbers for c in chunks])


def encoded(
    models: dict[str, Two], row: str, side: Side, raw: Raw, spaces: set[Space]
) -> Iterator[tuple[Space, Tensor]]:
    """Features float32 of raw views on their device, in each of the spaces; nothing where the row has
    none."""
    if row == "simple":
        x = models["model"].simple(side, raw)
        yield from [] if x is None else ((space, x.float()) for space in spaces)
        return
    y = models[row].represent(side, raw)
    for space in spaces:
        yield space, (y if space == "representation" else models[row].embed(side, y)).float()


def of_records(x: Tensor, mask: Tensor, windows: int) -> list[list[Tensor]]:
    """Tokens [N W, T, D] of the W views of N records, those that `mask` bool [N W, T] marks; a zero for a
    view without any."""
    found = [each[kept] if kept.any() else each.new_zeros(1, each.shape[1]) for each, kept in zip(x, mask)]
    return [found[i : i + windows] for i in range(0, len(found), windows)]


@dataclass
class Measure:
    """A probe on two branches, and the name of its results. `kept`: what it remembers for the run; `values`:
    what it has read by itself; `wants`: what it asks for."""

    name: str
    probe: Probe
    data: EvaluationData
    kept: dict[tuple, Any] = field(default_factory=dict)
    values: list[Any] | None = None

    def __post_init__(self):
        self.wants = self.probe.wants(self.data)


class FeaturesOf:
    """What one probe sees: `vicjoint.parts.Features`."""

    def __init__(self, measure: Measure, reader: Reader, parts: dict[tuple, Part], models: dict[str, Two]):
        self.data, self.device, self.latents = measure.data, reader.device, models["model"].latents
        self.wants = measure.wants
        self._measure, self._reader, self._parts, self._models = measure, reader, parts, models

    def items(self, want: Want) -> Items:
        part = self._parts[part_of(want)]
        if not part.features:
            self._reader.encode(part, self._models)
        places, numbers = places_of(part.seen)
        views = [view for chunk in part.seen for view in chunk.views]
        found = {row: part.features[key_of(row, want.space)] for row in want.rows}
        rows = {row: torch.cat(chunks) for row, chunks in found.items() if chunks}
        chosen = torch.isin(places, torch.from_numpy(part.all_or(want.places)))
        if not want.every:
            chosen &= numbers == 0
        if not chosen.any():
            raise ValueError(NONE)
        _, *said = map(list, zip(*views))  # contents, keys, titles, items, seconds
        items = Items(rows, places, numbers, *said)
        return items if chosen.all() else items.only(chosen)

    @torch.no_grad()
    def crops(
        self, want: Want, order: Callable[[int], np.ndarray], at_once: int
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        part = self._parts[part_of(want)]
        epochs = [order(epoch) for epoch in range(want.epochs)]
        batches = [
            [(int(p), epoch) for p in some] for epoch, of in enumerate(epochs) for some in split(of, at_once)
        ]

        def encode(_, chunk: Chunk) -> tuple[dict[str, Tensor], Tensor] | None:
            if chunk.raw is None:
                return None
            raw, rows = to_device(chunk.raw, self.device), {}
            for row in want.rows:
                for _, x in encoded(self._models, row, want.side, raw, {want.space}):
                    rows[row] = self._reader.to_send(x)
            return rows, chunk.places

        found = self._reader.read(Views(part, self._reader.limit), batches, collate, encode)
        for batch, value in zip(batches, found):
            self._reader.advance(len(batch))
            if value is not None:
                rows, places = value
                yield batch[0][1], {row: x.to(self.device) for row, x in rows.items()}, places

    @torch.no_grad()
    def tokens(self, want: Want) -> Iterator[tuple[dict[str, list[list[Tensor]]], Tensor]]:
        part = self._parts[part_of(want)]
        wanted, some = torch.from_numpy(part.all_or(want.places)), False

        def encode(chunk: Chunk) -> tuple[dict[str, list[list[Tensor]]], Tensor] | None:
            chosen = (torch.isin(chunk.places, wanted) & (chunk.numbers < part.windows)).nonzero()[:, 0]
            if not len(chosen):
                return None
            raw, rows, here = to_device(chunk.raw, self.device), {}, chosen.to(self.device)
            for row in want.rows:
                x, mask = self._models[row].side(want.side).tokens(raw)
                chosen_x, chosen_mask = map(self._reader.to_send, (x[here], mask[here]))
                rows[row] = of_records(chosen_x, chosen_mask, part.windows)
            return rows, chunk.places[chosen][:: part.windows]

        for chunk, found in self._reader.chunks(part, encode):
            self._reader.advance(len(chunk.places) * len(want.rows))
            some = True
            yield found
        if not some:
            raise ValueError(NONE)
        part.of_tokens = [row for row in part.of_tokens if row == "model"]  # the others do not change

    def baseline(self, side: Side) -> str:
        return self._models["model"].baseline(side)

    def read(self) -> list[Any]:
        measure = self._measure
        if measure.values is None:
            measure.values = self._read_all()
        return measure.values

    def _read_all(self) -> list[Any]:
        own, values = Own(self._measure, self._reader.limit), []
        batches = [[(number, -1)] for number in range(len(own.records))]
        for found in self._reader.read(own, batches, list, lambda _, read: read[0]):
            self._reader.advance(1)
            if found.cause:
                say_left_out(own.records[found.number], found.cause)
            elif found.value is not None:
                values.append(found.value)
        return values

    @torch.no_grad()
    def represent(self, row: str, side: Side, raw: Sequence[Raw]) -> list[Tensor]:
        return [self._models[row].represent(side, to_device(some, self.device)) for some in raw]

    @torch.no_grad()
    def embed(self, row: str, side: Side, y: Sequence[Tensor], every: bool = False) -> Tensor:
        two = self._models[row]
        of = two.predictions if every else lambda some: two.embed(side, some)
        return torch.cat([of(some).float() for some in y])

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        kept, key = self._measure.kept, (name, *(part.version for part in self._parts.values()))
        if key not in kept:
            kept[key] = compute()
        return kept[key]

    def picture(self, side: Side, split: Split, place: int, number: int = 0) -> np.ndarray | None:
        views = self.data.pair.views(self.data.records(split, side)[place], side)
        return as_picture(views[number].raw)

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], Any]]:
        with progress_bar(total, desc=what) as bar:
            yield bar.update


def progress_bar(total: int, **options: Any) -> tqdm:
    """Of samples; the first process's alone is seen."""
    quiet = distributed.rank() > 0
    return tqdm(
        total=total, unit="sample", leave=False, delay=1, dynamic_ncols=True, disable=quiet, **options
    )


def split(places: np.ndarray, at_once: int) -> list[np.ndarray]:
    return [places[i : i + at_once] for i in range(0, len(places), at_once)]


def size_in_bytes(views: Raw) -> int:
    return views.numel() * views.element_size() if isinstance(views, Tensor) else len(pickle.dumps(views))


def as_picture(view: Raw) -> np.ndarray | None:
    """The first sample of a raw view as uint8 [H, W, 3]: an image, or the middle frame of a clip. None: it is
    neither."""
    view = to_device(view[0] if isinstance(view, tuple) else view, "cpu")
    if not isinstance(view, Tensor) or view.ndim not in (4, 5) or view.shape[1] not in (1, 3):
        return None
    view = view[0] if view.ndim == 4 else view[0, :, view.shape[2] // 2]
    view = view if view.dtype == torch.uint8 else (view * 255).round().clamp(0, 255).to(torch.uint8)
    return view.expand(3, -1, -1).movedim(0, -1).numpy()
