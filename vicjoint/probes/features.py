"""Where an evaluation reads and encodes: every view once, and once through each row's encoder, whatever the
number of probes that look at it.

The `Reader` fills a `Part` (reading.py) with all that is wanted of it, and keeps what training does not
change (random_init, simple features, raw views as far as there is room) for the run. `FeaturesOf` is what one
probe sees of that (vicjoint.parts.Features).
"""

# N items, B batch, D representation, E embedding

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vicjoint import distributed
from vicjoint.batch import Boxed, Conditioned, to_device
from vicjoint.data import Readers, Reads, TimeLimit
from vicjoint.model import Two
from vicjoint.parts import Items, Raw, Side, Space, Split, Want
from vicjoint.probes.reading import Chunk, Measure, Own, Part, Views, collate, key_of, part_of, say_left_out
from vicjoint.probes.spread import pooled

AT_ONCE = 64  # views in one forward pass
KEPT_BYTES = 2**29  # raw views of a part that are kept for the next evaluation
FIXED_BYTES = 2**30  # features of a part that are kept for the run
WORTH_WORKERS = 20_000  # views from which starting worker processes pays

NONE = "evaluation: none of the samples that a probe asks for can be read."


class Reader:
    """What all parts of an evaluation share: how records are read, and the models that encode them.
    `together`: whether there are several processes, all here, each to read and encode every W-th batch."""

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
            raw = self.given(chunk)
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

    def given(self, chunk: Chunk) -> Raw:
        """Its raw views on the device, with their conditions where they have such."""
        told = chunk.conditions
        return to_device(chunk.raw if told is None else Conditioned(chunk.raw, told), self.device)

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
    two, condition = models[row], raw.condition if isinstance(raw, Conditioned) else None
    seen = two.steps(side, raw)  # y, unless the predictor looks back
    for space in spaces:
        if space == "embedding":
            yield space, two.embed(side, seen, condition).float()
        else:
            yield space, (seen if seen.ndim == 2 else two.represent(side, raw)).float()


def of_records(x: Tensor, mask: Tensor, windows: int) -> list[list[Tensor]]:
    """Tokens [N W, T, D] of the W views of N records, those that `mask` bool [N W, T] marks; a zero for a
    view without any."""
    found = [each[kept] if kept.any() else each.new_zeros(1, each.shape[1]) for each, kept in zip(x, mask)]
    return [found[i : i + windows] for i in range(0, len(found), windows)]


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
        _, *said, _ = map(list, zip(*views))  # contents, keys, titles, items, seconds
        told = [some for chunk in part.seen if (some := chunk.conditions) is not None]
        items = Items(rows, places, numbers, *said, torch.cat(told) if told else None)
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
            raw, rows = self._reader.given(chunk), {}
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
                x, mask, _ = self._models[row].side(want.side).tokens(raw)
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

    def read(self, split: Split = "test") -> list[Any]:
        values = self._measure.values
        if split not in values:
            values[split] = self._read_all(split)
        return values[split]

    def _read_all(self, split: Split) -> list[Any]:
        own, values = Own(self._measure, split, self._reader.limit), []
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
        return [self._models[row].steps(side, to_device(some, self.device)) for some in raw]

    @torch.no_grad()
    def embed(
        self, row: str, side: Side, y: Sequence[Tensor], every: bool = False, told: Sequence[Tensor] = ()
    ) -> Tensor:
        two = self._models[row]
        of = two.predictions if every else lambda some, condition: two.embed(side, some, condition)
        each = [condition.to(self.device) for condition in told] or [None] * len(y)
        return torch.cat([of(some, condition).float() for some, condition in zip(y, each)])

    @torch.no_grad()
    def probabilities(self, row: str, y_a: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._models[row].probabilities(some).float() for some in y_a])

    @torch.no_grad()
    def rollout(self, row: str, y: Sequence[Tensor], steps: int, told: Sequence[Tensor] = ()) -> Tensor:
        two, each = self._models[row], [x.to(self.device) for x in told] or [None] * len(y)
        return torch.cat([two.rollout(some, steps, of).float() for some, of in zip(y, each)])

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
    view = view.view if isinstance(view, Boxed) else view
    view = to_device(view[0] if isinstance(view, tuple) else view, "cpu")
    if not isinstance(view, Tensor) or view.ndim not in (4, 5) or view.shape[1] not in (1, 3):
        return None
    view = view[0] if view.ndim == 4 else view[0, :, view.shape[2] // 2]
    view = view if view.dtype == torch.uint8 else (view * 255).round().clamp(0, 255).to(torch.uint8)
    return view.expand(3, -1, -1).movedim(0, -1).numpy()
