"""What an evaluation reads: views of the records of a `Part`, one branch of one split as one pair reads it,
and what a probe reads by itself.

A part gathers what all probes want of it, and holds what was read and encoded for them (features.py).
"""

# N items

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.batch import concatenate
from vicjoint.data import READ_ERRORS, Reads, TimeLimit, cause_of
from vicjoint.files.guard import printable
from vicjoint.parts import EvaluationData, Probe, Raw, Record, Side, Space, Split, Spread, View, Want
from vicjoint.probes.spread import seconds_of


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
    """What a probe reads by itself."""

    def __init__(self, measure: "Measure", split: Split, limit: TimeLimit):
        super().__init__(measure.probe.to_read(measure.data, split), limit)
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

    @property
    def conditions(self) -> Tensor | None:
        """[N, C], where the views have them."""
        found = [view.condition for view in self.views if view.condition is not None]
        return torch.cat(found) if found else None


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


@dataclass
class Measure:
    """A probe on two branches, and the name of its results. `kept`: what it remembers for the run; `values`:
    what it has read by itself of a split; `wants`: what it asks for."""

    name: str
    probe: Probe
    data: EvaluationData
    kept: dict[tuple, Any] = field(default_factory=dict)
    values: dict[Split, list[Any]] = field(default_factory=dict)

    def __post_init__(self):
        self.wants = self.probe.wants(self.data)
