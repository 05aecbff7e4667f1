"""The order of an epoch where records stand in shards that cost to open: near ones are read together.

1. The shards come in an order drawn from (seed, epoch); the list of their records, shard by shard, is cut
   into L lanes, consecutive parts of it.
2. Row i of each batch of R rows belongs to lane i L // R, so that a process, which takes consecutive rows,
   needs the shards of its lanes alone. As an epoch need not end with a batch, a lane is as long as there are
   positions of the epoch in its rows: every record comes once, on any number of processes.
3. A lane is shuffled within windows of some shards. When the reading of one begins, the shards of the next
   are brought in the background.
"""

import numpy as np

from vicjoint.files import remote
from vicjoint.orders import ShardOrder


class Lanes:
    """Epochs of records in shards. `per_batch`: R, set by `set_batch`."""

    def __init__(self, order: ShardOrder):
        self.shard, self.window = order.shard, order.window
        # the records of each shard, one shard after the other
        self.records = np.argsort(self.shard, kind="stable")
        self.numbers, self.counts = np.unique(self.shard, return_counts=True)
        self.begins = np.concatenate([[0], np.cumsum(self.counts)])
        self.lanes, self.per_batch, self.files = order.lanes, 1, order.files
        self._begun: set[int] = set()  # windows of the epoch that was arranged last

    def set_batch(self, per_batch: int) -> None:
        """State the records of a global batch."""
        self.per_batch = per_batch

    def arrange(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(record, window) of each place of an epoch, int [N] both. rows: those places, in their batches."""
        shards = rng.permutation(len(self.numbers))
        # places in the list -> the turn of its shard
        runs = np.repeat(np.arange(len(shards)), self.counts[shards])
        starts = np.concatenate([[0], np.cumsum(self.counts[shards])[:-1]])
        listed = self.records[self.begins[shards][runs] + np.arange(len(runs)) - starts[runs]]
        lane_of_place = self._lane_of(rows)
        lane = np.repeat(np.arange(lane_of_place.max() + 1), np.bincount(lane_of_place))
        first = runs[np.searchsorted(lane, lane)]  # the turn of the first shard of the lane
        within = (runs - first) // self.window
        # a number for each window of each lane
        _, begins, window = np.unique(
            lane * (within.max() + 1) + within, return_index=True, return_inverse=True
        )
        self._lane, self._begun = lane[begins], set()
        shuffled = np.lexsort((rng.random(len(listed)), window))
        record, places = np.empty_like(listed), np.argsort(lane_of_place, kind="stable")
        record[places] = listed[shuffled]
        window_of_place = np.empty_like(window)
        window_of_place[places] = window
        return record, window_of_place

    def _lane_of(self, rows: np.ndarray) -> np.ndarray:
        lanes = min(self.lanes, len(self.numbers), self.per_batch)
        lane = rows * lanes // self.per_batch
        return np.unique(lane, return_inverse=True)[1]  # a short epoch may have none of some

    def begin(self, epoch: tuple[np.ndarray, np.ndarray], place: int) -> None:
        """State that a place of an epoch is read: where it is the first of its window, the shards of the next
        one in its lane are brought in the background, in place of others than the window's own."""
        files = self.files
        if files is None or (window := int(epoch[1][place])) in self._begun:
            return
        self._begun.add(window)
        of = lambda number: [files[n] for n in np.unique(self.shard[epoch[0][epoch[1] == number]])]
        remote.used(of(window))
        if window + 1 < len(self._lane) and self._lane[window + 1] == self._lane[window]:
            remote.ahead(of(window + 1))

    def others(self, record: int, epoch: tuple[np.ndarray, np.ndarray], place: int) -> np.ndarray:
        """Records to replace the one at a place of an epoch: of other shards in its window, since its own may
        be missing; where there are none, of the window; then of all."""
        records, windows = epoch
        near = records[windows == windows[place]]
        other = near[self.shard[near] != self.shard[record]]
        return next(found for found in (other, near[near != record], self.records) if len(found))
