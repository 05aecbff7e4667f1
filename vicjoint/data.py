"""Batches of pairs. A sample is a function of (seed, epoch, index): neither workers nor processes change it.

1. The stream: epoch after epoch, each a permutation of the training records drawn from (seed, epoch).
   Position p of the stream is record permutation[p % records] in epoch p // records. Each pair of a run has a
   stream of its own: its number is drawn from, too. Where the pair has a `distinct` column, an epoch is the
   largest number of whole batches in which no value occurs twice; the records that are left over (others in
   each epoch) wait for a later epoch.
2. Global batch s of a pair is positions [s R, (s + 1) R), R records of `samples_per_record` samples; each
   process takes its consecutive share. Several pairs take turns: step s of P pairs is batch s // P of pair s
   % P.
3. A worker reads a record with random numbers from (seed, epoch, record). A bad one is replaced by the next
   draw from those numbers, and named; the main process writes it down and stops the run when there are too
   many. With `distinct`, the replacement has a value that the batch does not have, as long as there is one.
"""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vicjoint import distributed
from vicjoint.batch import Pair, batch_size, concatenate
from vicjoint.guard import printable
from vicjoint.time_limit import SampleTimeout, TimeLimit

READ_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
)  # what a modality raises on bad input: its own messages, the file system's, or too much of it
CAUSE = 500  # characters of a cause that are kept


class BadDataError(RuntimeError):
    """More bad samples than the recipe allows."""

    def __init__(self, message: str):
        # a worker's error comes out of the DataLoader anew, made from the worker's whole traceback, which
        # ends with the message
        super().__init__(
            message.rsplit(f"{type(self).__name__}: ", 1)[-1].rstrip()
            if message.startswith("Caught ")
            else message
        )


def cause_of(error: Exception) -> str:
    """An error's message, at most CAUSE characters of it."""
    text = str(error) or {MemoryError: "needs more memory than there is"}.get(
        type(error), type(error).__name__
    )
    return text if len(text) <= CAUSE else f"{text[: CAUSE // 2]} ... {text[-CAUSE // 2 :]}"


def listed(bad) -> str:
    """The first ten of (sample, cause), a line each."""
    return "\n".join(f"  {printable(sample)}: {printable(cause)}" for sample, cause in list(bad)[:10])


class Stream(Dataset):
    """Position in the stream -> (view a, view b, group id, 'record@epoch', bad samples met on the way). The
    group is the record's number, or what the pair's `group_of(record, number)` says. `number`: the pair's."""

    MAX_REPLACEMENTS = 20

    def __init__(self, records: list[dict], pair, seed: int, number: int = 0, limit: TimeLimit | None = None):
        self.records, self.pair, self.seed, self.number = records, pair, seed, number
        self.limit = limit or TimeLimit()
        self.distinct = Distinct(records, pair) if getattr(pair, "distinct", None) else None
        self._order = (-1, None)

    @property
    def epoch_length(self) -> int:
        """Records of an epoch."""
        return len(self.records) if self.distinct is None else self.distinct.batches * self.distinct.per_batch

    def generator(self, *numbers: int) -> np.random.Generator:
        """Random numbers from the seed, the pair's number and these; those of the first pair are what they
        are in a run of one pair."""
        return np.random.default_rng(
            np.random.SeedSequence([self.seed, *numbers], spawn_key=(self.number,) if self.number else ())
        )

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, record number) of a position."""
        epoch, place = divmod(position, self.epoch_length)
        if self._order[0] != epoch:
            rng = self.generator(epoch)
            order = rng.permutation(len(self.records))
            self._order = (epoch, order if self.distinct is None else self.distinct.arrange(order, rng))
        return epoch, int(self._order[1][place])

    def __getitem__(self, position: int):
        epoch, index = self.locate(position)
        rng = self.generator(epoch, index, 1)
        bad, others = [], None
        for _ in range(self.MAX_REPLACEMENTS):
            record, before = self.records[index], rng.bit_generator.state
            try:
                with self.limit.reading(self.number, index, record["id"]):
                    a, b = self.pair.sample(record, rng)
                return a, b, self._group(record, index), f"{record['id']}@{epoch}", bad
            except READ_ERRORS as error:
                if isinstance(error, SampleTimeout):
                    # the same replacement whether the reading was ended, killed, or not tried again
                    rng.bit_generator.state = before
                bad.append((record["id"], cause_of(error)))
                others = self._others(position) if others is None else others
                index = int(others[rng.integers(len(others))])
        raise BadDataError(
            f"{self.MAX_REPLACEMENTS} samples in a row cannot be read, so nothing stands in for"
            f" {printable(bad[0][0])}. Repair or remove them; python -m vicjoint.check RECIPE lists all. The"
            f" first ten:\n{listed(dict(bad).items())}"
        )

    def _group(self, record: dict, index: int) -> int:
        return self.pair.group_of(record, index) if hasattr(self.pair, "group_of") else index

    def _others(self, position: int):
        """The records that may replace the one at a position."""
        if self.distinct is None:
            return range(len(self.records))
        first = position - position % self.distinct.per_batch
        batch = [self.locate(p)[1] for p in range(first, first + self.distinct.per_batch)]
        return self.distinct.others(batch, position - first)


class Distinct:
    """Epochs whose batches hold no value of the pair's `distinct` column twice. `batches` and `per_batch` are
    set by `set_batch`."""

    def __init__(self, records: list[dict], pair):
        self.column = pair.distinct
        number: dict = {}
        found = (pair.distinct_of(record) for record in records)
        # an empty cell equals no other: its value is the record's own number
        self.values = np.array(
            [
                number.setdefault((value, i if value is None else -1), len(number))
                for i, value in enumerate(found)
            ]
        )
        self.counts = np.bincount(self.values)
        self.set_batch(1)

    def set_batch(self, per_batch: int) -> None:
        """State the records of a global batch. Raises ValueError where there are not as many values."""
        if len(self.counts) < per_batch:
            raise ValueError(
                f"pair.distinct: a batch of {per_batch} records needs as many different values of column"
                f" '{self.column}', and the training split has {len(self.counts)}. Lower train.batch_size, or"
                " leave out pair.distinct."
            )
        # B batches of R can be filled where each value counts at most B times: sum_v min(count_v, B) >= B R;
        # this fails for good from some B on
        tries = np.arange(1, len(self.values) // per_batch + 1)
        ascending = np.sort(self.counts)
        below = np.concatenate([[0], np.cumsum(ascending)])
        fewer = np.searchsorted(ascending, tries, side="right")
        placed = below[fewer] + (len(ascending) - fewer) * tries
        self.per_batch, self.batches = per_batch, int(tries[placed >= tries * per_batch].max())

    def arrange(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The epoch [batches * per_batch] of a permutation: value by value, a value's records are dealt to
        batches in turn, so that no batch gets two of them; then batches, and the records of each, are
        shuffled."""
        values = self.values[order]
        _, first, which = np.unique(values, return_index=True, return_inverse=True)
        by_value = np.lexsort(
            (np.arange(len(order)), first[which])
        )  # values by first appearance, the records of a value in order
        starts = first_of_run(first[which][by_value])
        kept = np.sort(
            by_value[np.arange(len(order)) - starts < self.batches]
        )  # at most one per batch, in the permutation's order
        kept = kept[: self.batches * self.per_batch]
        dealt = kept[np.argsort(first[which][kept], kind="stable")]
        table = rng.permutation(order[dealt].reshape(self.per_batch, self.batches).T)
        return rng.permuted(table, axis=1).ravel()

    def others(self, batch: list[int], place: int) -> np.ndarray:
        """Records to replace the one at a place in a batch: of values that the batch has not, and that no
        other place would draw; where there are none, that the batch has not; where there are none, all."""
        free = ~np.isin(self.values, self.values[batch])
        own = free & (self.values % self.per_batch == place)
        return np.flatnonzero(own if own.any() else free if free.any() else np.ones_like(free))


def first_of_run(x: np.ndarray) -> np.ndarray:
    """For each element of an array with equal elements side by side, where its run begins."""
    begins = np.concatenate([[True], x[1:] != x[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(x)), 0))


class Turns(Dataset):
    """(number of the pair, position in its stream) -> what that stream has there."""

    def __init__(self, streams: list[Stream]):
        self.streams = streams

    def __getitem__(self, place: tuple[int, int]):
        number, position = place
        return self.streams[number][position]


class Batches(Sampler):
    """(number of the pair, position) of this process's share of each step's global batch, from step `start`
    up to `end`. `records_per_batch`: of each pair."""

    def __init__(self, records_per_batch: list[int], start: int, end: int):
        self.records_per_batch, self.start, self.end = records_per_batch, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = distributed.rank(), distributed.world_size()
        for step in range(self.start, self.end):
            batch, number = divmod(step, len(self.records_per_batch))
            records = self.records_per_batch[number]
            first, last = (batch * records + records * r // world for r in (rank, rank + 1))
            yield [(number, position) for position in range(first, last)]


def collate(samples: list) -> tuple[Pair, list]:
    views_a, views_b, groups, names, bad = zip(*samples)
    per_record = batch_size(views_b[0])
    group = torch.tensor(groups).repeat_interleave(per_record)
    pair = Pair(
        concatenate(list(views_a)),
        concatenate(list(views_b)),
        group,
        [n for n in names for _ in range(per_record)],
    )
    return pair, [b for several in bad for b in several]


class Quarantine:
    """Bad samples: counted once each, named in `bad_samples.jsonl`, and at most a share of the records."""

    def __init__(self, path: Path, source: str, records: int, max_bad_fraction: float):
        self.path, self.source = path, source
        self.allowed = math.ceil(max_bad_fraction * records)
        self.fraction, self.records = max_bad_fraction, records
        self.causes: dict[str, str] = {}
        if path.exists():
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            self.causes = {line["sample"]: line["cause"] for line in lines if line["source"] == source}

    def add(self, bad: list[tuple[str, str]]) -> None:
        """Write down the new ones; raises BadDataError above the allowed number."""
        for sample, cause in bad:
            if sample in self.causes:
                continue
            self.causes[sample] = cause
            if distributed.rank() > 0:  # every process counts, the first one writes
                continue
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"source": self.source, "sample": sample, "cause": cause}) + "\n")
        if len(self.causes) > self.allowed:
            raise BadDataError(
                f"{len(self.causes)} of {self.records} samples cannot be read;"
                f" data.max_bad_fraction={self.fraction} allows {self.allowed}. Repair or remove them, or"
                " raise data.max_bad_fraction. The first ten (all in"
                f" {self.path}):\n{listed(self.causes.items())}"
            )


def batches(stream: Stream, records_per_batch: int, workers: int, start: int, end: int) -> DataLoader:
    """Yields (Pair, bad samples) for the global batches start..end-1 of one stream."""
    return in_turn([stream], [records_per_batch], workers, start, end)


def in_turn(
    streams: list[Stream],
    records_per_batch: list[int],
    workers: int,
    start: int,
    end: int,
    patience: float = 0,
) -> DataLoader:
    """Yields (Pair, bad samples) for the steps start..end-1, in which the streams take turns. Workers are
    spawned, so decoders and torch's threads start clean. Raises ValueError where a `distinct` column has too
    few values for a batch; with workers and a `patience` above 0, RuntimeError where a batch takes longer
    than so many seconds, after which it can be asked for again."""
    for stream, records in zip(streams, records_per_batch):
        if stream.distinct is not None:
            stream.distinct.set_batch(records)
    return DataLoader(
        Turns(streams),
        batch_sampler=Batches(records_per_batch, start, end),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker if workers else None,
        timeout=patience if workers else 0,
        generator=torch.Generator(),  # its own: torch's would be moved by how often reading is started
    )


def _start_worker(worker: int) -> None:
    start_reading(worker)
    limit = torch.utils.data.get_worker_info().dataset.streams[0].limit  # one object, which the streams share
    if limit.rows is not None:
        limit.enter(worker)


def start_reading(worker: int) -> None:
    """What a process that reads does first."""
    torch.set_num_threads(1)  # workers decode side by side; the main process trains
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they reach the whole group: the main process saves, then ends its workers
        signal.signal(number, signal.SIG_IGN)
