"""The source `mixed`: several sources in one stream of samples, each with its share of every batch.

    source: {name: mixed, weights: [3, 1], sources: [
        {name: webdataset, root: "s3://bucket/films"}, {name: table, root: /data/index.csv}]}

A record is one of a source's, with the columns of all: those that its own source has not are None. Its id
begins with the number of its source.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.options import ComponentOf, Positive
from vicjoint.orders import MixedOrder
from vicjoint.parts import Record, Source
from vicjoint.registry import build, register
from vicjoint.sources.base import SourceError, lacking


class MixedRecords(Sequence):
    """The records of several sources, one source after the other. names: what ids begin with."""

    def __init__(self, parts: list[Sequence[Record]], names: list[str], columns: list[str]):
        self.parts, self.names, self.columns = parts, names, columns
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Record:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        number, place = self.place(i % len(self))
        record = self.parts[number][place]
        return dict.fromkeys(self.columns) | record | {"id": f"{self.names[number]}/{record['id']}"}

    def place(self, i: int) -> tuple[int, int]:
        """(source, number in it) of a record."""
        number = int(np.searchsorted(self.ends, i, side="right"))
        return number, i - (int(self.ends[number - 1]) if number else 0)


@register("source", "mixed")
class Mixed(Source):
    """Several sources as one: each gives its share of every batch, by its weight.

    weights: of the sources, in their order; null: by their numbers of training records, so that all come
    equally often. Each source goes through passes of its own, each record once in one, and a small one begins
    its next while a large one is in its first. An epoch has as many samples as there are training records.
    Splits are those of the sources. A record has the columns of all sources; what its own has not is empty.
    """

    def __init__(
        self,
        sources: Annotated[list[Annotated[dict, ComponentOf("source")]], Field(min_length=1)],
        weights: list[Positive] | None = None,
    ):
        if weights is not None and len(weights) != len(sources):
            raise SourceError(
                f"mixed: {len(weights)} weights (option weights) for {len(sources)} sources. Give one for"
                " each."
            )
        self.sources: list[Source] = [build("source", spec) for spec in sources]
        for spec, source in zip(sources, self.sources):
            if isinstance(source, Mixed):
                raise SourceError(
                    "mixed: one of its sources is mixed, too. Write that one's sources into this."
                )
            if source.second is not None:
                raise SourceError(
                    f"mixed: source {spec['name']} has a second table, which no other source has. Leave out"
                    " second, or join the tables before."
                )
        self.names = [f"{number}" for number in range(len(sources))]
        self.weights = weights
        columns = list(dict.fromkeys(column for source in self.sources for column in source.train[0]))
        own = ("id", "path", "bytes", "offset", "size", "remote", "folder")  # what says where a file is
        columns = [column for column in columns if column not in own]
        self.train, self.test = (
            MixedRecords([source.records(split) for source in self.sources], self.names, columns)
            for split in ("train", "test")
        )

    def ids(self, split, side="a"):
        for name, source in zip(self.names, self.sources):
            for i in source.ids(split):
                yield f"{name}/{i}"

    def lacks(self, split, key) -> np.ndarray:
        found = zip(self.sources, map(len, self.records(split).parts))
        of_each = ((lacking(source, split, (key,)), count) for source, count in found)
        return np.concatenate([np.zeros(count, bool) if of is None else of for of, count in of_each])

    def order(self, split) -> MixedOrder:
        records = self.records(split)
        parts = [(len(part), source.order(split)) for part, source in zip(records.parts, self.sources)]
        return MixedOrder(parts, self.weights)

    def describe(self) -> str:
        weights = self.weights or [len(source.train) for source in self.sources]
        total, of_all = sum(weights), len(self.train)
        lines = [
            f"{name}: {weight / total:.1%} of each batch, {of_all * weight / total / len(source.train):.3g}"
            f" passes an epoch, {source.describe()}"
            for name, weight, source in zip(self.names, weights, self.sources)
        ]
        return f"mixed {of_all:,} train, {len(self.test):,} test records: {'; '.join(lines)}"
