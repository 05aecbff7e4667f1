"""The records of a source that have all that a pair reads: in a table with gaps, others for each pair."""

from collections.abc import Sequence

import numpy as np

from vicjoint.orders import only
from vicjoint.parts import Pair, Record, Source
from vicjoint.sources.base import lacking
from vicjoint.sources.columns import Shared

SPLITS = ("train", "test")


class Chosen(Sequence):
    """Those of some records that stand at `places` int [N]."""

    def __init__(self, records: Sequence[Record], places: np.ndarray):
        self.records, self.places = records, Shared(places)

    def __len__(self) -> int:
        return len(self.places.array)

    def __getitem__(self, i: int) -> Record:
        return self.records[int(self.places.array[i])]


class OfPair(Source):
    """The records of a source that `kept` {split: bool [N]} marks; of a second table, all."""

    def __init__(self, whole: Source, kept: dict):
        self.whole, self.kept, self.second = whole, kept, whole.second
        self.train, self.test = (Chosen(whole.records(s), np.flatnonzero(kept[s])) for s in SPLITS)

    def describe(self) -> str:
        return self.whole.describe()

    def order(self, split):
        return only(self.whole.order(split), self.kept[split])


def of_pair(whole: Source, pair: Pair) -> Source:
    """A source with the records that have all that the pair reads, as far as it is known without reading: the
    same one, where none lacks anything. Raises ValueError where none of a split has it."""
    kept = {split: ~lacks(whole, split, pair) for split in SPLITS}
    if all(of.all() for of in kept.values()):
        return whole
    for split, of in kept.items():
        if not of.any():
            columns = " and ".join("/".join(keys) for keys in pair.required())
            raise ValueError(
                f"pair: none of the {len(of):,} {split} records has a value in {columns}, which the pair"
                " reads. Name other columns, or fill these."
            )
    return OfPair(whole, kept)


def lacks(source: Source, split, pair: Pair) -> np.ndarray:
    """bool [N]: which records of a split lack something that the pair reads."""
    found = [lacking(source, split, keys) for keys in pair.required()]
    known = [of for of in found if of is not None]
    return np.any(known, 0) if known else np.zeros(len(source.records(split)), bool)


def said(source: Source, name: str) -> str | None:
    """How many of the records the pair of this name has, where it has not all of them."""
    if not isinstance(source, OfPair):
        return None
    counts = [
        f"{len(source.records(s)):,} of {len(source.whole.records(s)):,} {s}"
        for s in SPLITS
        if not source.kept[s].all()
    ]
    return f"{name}: {' and '.join(counts)} records have what the pair reads; it leaves out the others"
