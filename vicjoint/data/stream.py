"""Batches of pairs. A sample is a function of (seed, epoch, index): neither workers nor processes change it.

1. The stream: epoch after epoch, each a permutation of the training records drawn from (seed, epoch).
   Position p of the stream is record permutation[p % records] in epoch p // records. Each pair of a run has a
   stream of its own: its number is drawn from, too. Where the pair has a `distinct` column, an epoch is the
   largest number of whole batches in which no value occurs twice; the records that are left over (others in
   each epoch) wait for a later epoch. Where it has `per_group`, an epoch is whole batches of runs, so many
   records of one group side by side (grouped.py). Records of shards that cost to open, and those of several
   sources, come in orders of their own (lanes.py, mixture.py); of several sources, an epoch is a pass of the
   record's. With several clips of each opened file, an epoch has each record so many times (clips.py).
2. Global batch s of a pair is positions [s R, (s + 1) R), R records of `samples_per_record` samples; each
   process takes its consecutive share. Several pairs take turns, by their shares (shares.py): where those are
   equal, step s of P pairs is batch s // P of pair s % P.
3. A worker reads a record with random numbers from (seed, epoch, record). A bad one is replaced by the next
   draw from those numbers, and named; the main process writes it down and stops the run when there are too
   many. With `distinct`, the replacement has a value that the batch does not have, as long as there is one;
   with `per_group`, it is of the same group, as long as there is one that the batch does not have.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch

from vicjoint import distributed
from vicjoint.batch import Batch, batch_size, concatenate
from vicjoint.data.clips import Clips
from vicjoint.data.distinct import Distinct
from vicjoint.data.errors import READ_ERRORS, BadDataError, cause_of, listed
from vicjoint.data.grouped import Grouped
from vicjoint.data.lanes import Lanes
from vicjoint.data.mixture import Mixture
from vicjoint.data.readers import Readers, Reads
from vicjoint.data.shares import Shares
from vicjoint.data.time_limit import SampleTimeout, TimeLimit
from vicjoint.files.guard import printable
from vicjoint.orders import MixedOrder, ShardOrder
from vicjoint.parts import Pair, Record


class Stream:
    """Position in the stream -> (view a, view b, group id, 'record@epoch', bad samples met on the way). The
    group is the record's number, or what the pair's `group_of(record, number)` says. `number`: the pair's;
    `order`: what the source says of it, which leaves no room for batches that the pair arranges
    (`distinct`, `per_group`), but those of several sources without weights may be one epoch; and neither
    leaves room for several `clips` of a file: ValueError."""

    MAX_REPLACEMENTS = 20

    def __init__(
        self,
        records: Sequence[Record],
        pair: Pair,
        seed: int,
        number: int = 0,
        limit: TimeLimit | None = None,
        order: ShardOrder | MixedOrder | None = None,
        clips: int = 1,
    ):
        self.records, self.pair, self.seed, self.number = records, pair, seed, number
        self.limit = limit or TimeLimit()
        option = "per_group" if pair.per_group > 1 else "distinct" if pair.distinct else None
        if option and isinstance(order, MixedOrder) and order.is_one_epoch:
            order = None
        if option and order:
            raise ValueError(
                f"pair.{option}: arranges an epoch out of all records, and this source"
                + (
                    " has the records of several, each with epochs of its own, by its weight or since its"
                    " shards are elsewhere. Leave it out; or leave out source.weights and copy the shards to"
                    " a folder."
                    if isinstance(order, MixedOrder)
                    else "'s stand in shards that are brought one after the other. Leave it out, or copy the"
                    " shards to a folder."
                )
            )
        if clips > 1 and (option or order):
            why = f"pair.{option} arranges" if option else "this source has"
            raise ValueError(
                f"data.clips_per_open: {clips} clips of a file come in an order of their own, and {why}"
                " another one. Leave one of them out."
            )
        self.clips = Clips(len(records), clips) if clips > 1 else None
        self.arranged: Distinct | Grouped | None = None
        if option:
            self.arranged = Grouped(records, pair) if option == "per_group" else Distinct(records, pair)
        self.lanes = Lanes(order) if isinstance(order, ShardOrder) else None
        self.mixture = Mixture(order, self.generator) if isinstance(order, MixedOrder) else None
        self._order = (-1, None)

    def again(self, pair: Pair, limit: TimeLimit) -> "Stream":
        """The same order, read by another pair and within another limit, for batches of its own size."""
        found = copy.copy(self)
        found.pair, found.limit = pair, limit
        found.arranged, found.lanes, found.mixture = map(copy.copy, (self.arranged, self.lanes, self.mixture))
        found.clips = self.clips and self.clips.again()
        return found

    @property
    def epoch_length(self) -> int:
        """Records of an epoch, each as often as it comes."""
        if self.clips is not None:
            return len(self.records) * self.clips.number
        return len(self.records) if self.arranged is None else self.arranged.batches * self.arranged.per_batch

    def describe(self) -> str | None:
        """Which records never come, where some do not."""
        return self.arranged.describe() if isinstance(self.arranged, Grouped) else None

    def generator(self, *numbers: int) -> np.random.Generator:
        """Random numbers from the seed, the pair's number and these; those of the first pair are what they
        are in a run of one pair."""
        return np.random.default_rng(
            np.random.SeedSequence([self.seed, *numbers], spawn_key=(self.number,) if self.number else ())
        )

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, record number) of a position."""
        if self.mixture is not None:
            return self.mixture.locate(position)
        epoch, place = divmod(position, self.epoch_length)
        if self._order[0] != epoch:
            self._order = (epoch, self._arranged(epoch))
        if self.lanes is not None:
            self.lanes.begin(self._windows, place)
        if self.clips is not None:
            place = self.clips.locate(place)[0]
        return epoch, int(self._order[1][place])

    def set_batch(self, records: int) -> None:
        """State the records of a global batch. Raises ValueError where a `distinct` column has too few
        values, or groups have too few records."""
        self._order = (-1, None)
        for order in (self.arranged, self.lanes, self.mixture, self.clips):
            if order is not None:
                order.set_batch(records)

    def _arranged(self, epoch: int) -> np.ndarray:
        rng = self.generator(epoch)
        if self.lanes is not None:
            first = epoch * len(self.records)
            rows = np.arange(first, first + len(self.records)) % self.lanes.per_batch
            self._windows = self.lanes.arrange(rows, rng)
            return self._windows[0]
        order = rng.permutation(len(self.records))
        return order if self.arranged is None else self.arranged.arrange(order, rng)

    def __getitem__(self, position: int):
        epoch, index = self.locate(position)
        clip = 0
        if self.clips is not None:
            _, clip, apart = self.clips.locate(position % self.epoch_length)
            if (views := self._together(epoch, index, clip, apart)) is not None:
                return self._item(*views, index, epoch, clip, [])
        rng = self._of_clip(epoch, index, clip)
        bad, tried = [], []
        for _ in range(self.MAX_REPLACEMENTS):
            record, before = self.records[index], rng.bit_generator.state
            try:
                with self.limit.reading(self.number, index, record["id"]):
                    a, b = self.pair.sample(record, rng)
                return self._item(a, b, index, epoch, clip, bad)
            except READ_ERRORS as error:
                if isinstance(error, SampleTimeout):
                    # the same replacement whether the reading was ended, killed, or not tried again
                    rng.bit_generator.state = before
                bad.append((record["id"], cause_of(error)))
                tried.append(index)
                others = self._others(position, tried)
                index = int(others[rng.integers(len(others))])
        raise BadDataError(
            f"{self.MAX_REPLACEMENTS} samples in a row cannot be read, so nothing stands in for"
            f" {printable(bad[0][0])}. Repair or remove them; python -m vicjoint.check RECIPE lists all. The"
            f" first ten:\n{listed(dict(bad).items())}"
        )

    def _item(self, a, b, index: int, epoch: int, clip: int, bad: list):
        record = self.records[index]
        name = f"{record['id']}@{epoch}" + (f".{clip}" if clip else "")
        return a, b, self.pair.group_of(record, index), name, bad

    def _of_clip(self, epoch: int, index: int, clip: int) -> np.random.Generator:
        return self.generator(epoch, index, 1, clip) if clip else self.generator(epoch, index, 1)

    def _together(self, epoch: int, index: int, clip: int, apart: int):
        """The views of a clip, which was kept, or is read with those that come after it; None: it is to be
        read alone."""
        if (kept := self.clips.take((epoch, index, clip))) is not None:
            return kept
        coming, record = range(clip, self.clips.number), self.records[index]
        if len(coming) == 1 or not self.clips.stays(apart):
            return None
        try:
            with self.limit.reading(self.number, index, record["id"]):
                views = self.pair.sample_several(record, [self._of_clip(epoch, index, c) for c in coming])
        except READ_ERRORS:  # alone it is replaced and named
            return None
        self.clips.keep({(epoch, index, c): found for c, found in zip(coming[1:], views[1:])})
        return views[0]

    def _others(self, position: int, tried: list[int]):
        """The records that may replace the one at a position. tried: numbers of its own and of replacements
        that are bad, too."""
        if self.mixture is not None:
            return self.mixture.others(position, tried[0])
        if self.lanes is not None:
            return self.lanes.others(tried[0], self._windows, position % self.epoch_length)
        if self.arranged is None:
            return range(len(self.records))
        first = position - position % self.arranged.per_batch
        batch = [self.locate(p)[1] for p in range(first, first + self.arranged.per_batch)]
        if isinstance(self.arranged, Grouped):  # a group may be small
            return self.arranged.others(batch, position - first, tried)
        return self.arranged.others(batch, position - first)


class Turns(Reads):
    """(number of the stream, position in it) -> what that stream has there. The streams share one limit."""

    def __init__(self, streams: list[Stream]):
        self.streams, self.limit = streams, streams[0].limit

    def __getitem__(self, place: tuple[int, int]):
        number, position = place
        return self.streams[number][position]

    def name(self, number: int, index: int) -> str:
        return self.streams[number].records[index]["id"]


class Steps(Sequence):
    """The places of this process's share of each step's global batch, from step `start` up to `end`.
    `records_per_batch`: of each stream; `shares`: whose turn a step is, by default all streams' alike."""

    def __init__(self, records_per_batch: list[int], start: int, end: int, shares: Shares | None = None):
        self.records_per_batch, self.start, self.end = records_per_batch, start, end
        self.shares = shares or Shares([1] * len(records_per_batch))

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, i: int) -> list[tuple[int, int]]:
        number, batch = self.shares.turn(range(self.start, self.end)[i])
        records, rank, world = self.records_per_batch[number], distributed.rank(), distributed.world_size()
        first, last = (batch * records + records * r // world for r in (rank, rank + 1))
        return [(number, position) for position in range(first, last)]


def collate(samples: list) -> tuple[Batch, list[tuple[str, str]]]:
    """(the batch, the bad samples that were met on the way)."""
    views_a, views_b, groups, names, bad = zip(*samples)
    per_record = batch_size(views_b[0])
    group = torch.tensor(groups).repeat_interleave(per_record)
    samples = [name for name in names for _ in range(per_record)]
    batch = Batch(concatenate(list(views_a)), concatenate(list(views_b)), group, samples)
    return batch, [b for several in bad for b in several]


def batches(
    streams: list[Stream],
    records_per_batch: list[int],
    workers: int,
    start: int,
    end: int,
    shares: Shares | None = None,
) -> Readers:
    """(Batch, bad samples) of the steps start..end-1, in which the streams take turns, by `shares` or all
    alike. Raises ValueError where a batch cannot be as the pair's `distinct` and `per_group` want it."""
    for stream, records in zip(streams, records_per_batch):
        stream.set_batch(records)
    return Readers(Turns(streams), Steps(records_per_batch, start, end, shares), collate, workers, start)
