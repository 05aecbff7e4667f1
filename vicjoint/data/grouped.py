"""Epochs in which a batch holds several records of each of its groups."""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vicjoint.data.distinct import first_of_run, values_of
from vicjoint.files.guard import printable
from vicjoint.parts import Pair, Record

NAMED = 5  # groups that a message names
TRIES = 3  # arrangements that tell how many batches of different values there are


class Grouped:
    """Epochs of whole batches that consist of runs: `per_group` records of one group, side by side. Runs are
    drawn anew in each epoch; the records that are left over, fewer than a run of a group or fewer runs than a
    batch, are others each time. With the pair's `distinct` column a value comes once in a batch. `batches`
    and `per_batch` are set by `set_batch`."""

    def __init__(self, records: Sequence[Record], pair: Pair):
        self.per_group, self.column, self.distinct = pair.per_group, pair.group, pair.distinct
        number: dict[int, int] = {}
        groups = (_group_of(pair, record, i) for i, record in enumerate(records))
        # -1: none
        self.groups = np.array([-1 if g is None else number.setdefault(g, len(number)) for g in groups])
        self.values = values_of(records, pair) if pair.distinct else np.arange(len(records))
        has = self.groups >= 0
        self.counts = np.bincount(self.groups[has], minlength=1)
        both = np.unique(np.stack([self.groups[has], self.values[has]]), axis=1)
        # records that a run can take of a group
        self.different = np.bincount(both[0], minlength=1)
        few = np.flatnonzero(self.different < self.per_group) if number else []
        self.few = {int(g): self._name(records[int(np.argmax(self.groups == g))]) for g in few[:NAMED]}
        self.per_batch = 0

    def _name(self, record: Record) -> str:
        return printable(record["id"] if self.column is None else record[self.column], 40)

    def describe(self) -> str | None:
        """Which records never come, and why; None: all do."""
        few, alone, said = self.different < self.per_group, int((self.groups < 0).sum()), []
        if self.few:
            names = ", ".join(f"{name} ({self.counts[g]})" for g, name in self.few.items())
            more = f" and {few.sum() - len(self.few):,} more" if few.sum() > len(self.few) else ""
            different = f" with different '{self.distinct}'" if self.distinct else ""
            said.append(
                f"{self.counts[few].sum():,} of groups with fewer than {self.per_group}{different}:"
                f" {names}{more}"
            )
        if alone:
            said.append(f"{alone:,} without a group")
        return f"records that never come (pair.per_group): {'; '.join(said)}" if said else None

    def set_batch(self, per_batch: int) -> None:
        """State the records of a global batch: where `per_group` does not divide it, as in a look at one
        record, runs are as long as can be, and values may come again. Raises ValueError where there are too
        few runs."""
        if per_batch == self.per_batch:
            return
        self.per_batch, self.run = per_batch, math.gcd(per_batch, self.per_group)
        self.runs, self._known = per_batch // self.run, None
        if self.distinct and self.run == self.per_group:
            rngs = map(np.random.default_rng, range(TRIES))
            found = [self._deal(rng.permutation(len(self.groups)), rng) for rng in rngs]
            self._known = min(found, key=len)
            self.batches = len(self._known)
        else:
            self.batches = int((self.counts // self.run).sum()) // self.runs
        if not self.batches:
            different = f", all with different '{self.distinct}'" if self.distinct else ""
            raise ValueError(
                f"pair.per_group: a batch of {per_batch} records needs {self.runs} times {self.run} records"
                f" of one group ('{self.column}'){different}, and the training split has too few. Lower"
                " train.batch_size or pair.per_group."
            )

    def arrange(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The epoch [batches * per_batch] of a permutation: groups are cut into runs, and runs are
        shuffled."""
        if self._known is None:
            order = order[self.groups[order] >= 0]
            order = order[np.argsort(self.groups[order], kind="stable")]
            groups = self.groups[order]
            place, count = np.arange(len(order)) - first_of_run(groups), self.counts[groups]
            runs = order[place < count - count % self.run].reshape(-1, self.run)
            return rng.permutation(runs)[: self.batches * self.runs].ravel()
        for _ in range(TRIES):
            found = self._deal(order, rng)
            if len(found) >= self.batches:
                break
            order = rng.permutation(order)
        else:
            found = self._known
        table = rng.permutation(np.array(found))[: self.batches].reshape(-1, self.runs, self.run)
        shuffled = rng.random(table.shape[:2]).argsort(1)
        return np.take_along_axis(table, shuffled[:, :, None], 1).ravel()

    def _deal(self, order: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        """As many whole batches of different values as a greedy search finds: runs are of the groups that
        have most records left, and of the values in them that have most."""
        left: list[dict[int, list[int]]] = [defaultdict(list) for _ in self.counts]
        for record in order[::-1].tolist():
            if self.groups[record] >= 0:
                left[self.groups[record]][self.values[record]].append(record)
        # of each group its values, the commonest first, and else in the permutation's order
        heaps = [[(-len(of[v]), i, v) for i, v in enumerate(reversed(of))] for of in left]
        for heap in heaps:
            heapq.heapify(heap)
        rest, batches = self.counts.copy(), []
        while True:
            batch, used = [], set()
            while len(batch) < self.per_batch:
                before = len(batch)
                for g in np.lexsort((rng.random(len(rest)), -rest)).tolist():
                    if rest[g] < self.run or len(batch) == self.per_batch:
                        break
                    taken = _take(heaps[g], left[g], used, self.run)
                    rest[g] -= len(taken)
                    batch += taken
                if len(batch) == before:
                    return batches
            batches.append(batch)

    def others(self, batch: list[int], place: int, tried: list[int]) -> np.ndarray:
        """Records to replace the one at a place of a batch: none of those `tried`; of its group and of values
        that the batch has not, as far as there are such; and where there are, those that no other place would
        draw."""
        group, own = self.groups[batch[place]], self.values % self.per_batch == place
        free, of_group = ~np.isin(self.values, self.values[batch]), self.groups == group
        places = np.flatnonzero(self.groups[batch] == group)  # those that draw of the same records
        values = np.unique(self.values[free & of_group])[np.searchsorted(places, place) :: len(places)]
        own_of_group = of_group & np.isin(self.values, values)
        free[tried] = False
        for wanted in (own_of_group & own, own_of_group, of_group, own, np.ones_like(own)):
            if (found := wanted & free).any():
                return np.flatnonzero(found)
        return np.arange(len(self.values))


def _group_of(pair: Pair, record: Record, number: int) -> int | None:
    try:
        return pair.group_of(record, number)
    except ValueError:
        return None


def _take(heap: list, left: dict[int, list[int]], used: set[int], number: int) -> list[int]:
    """So many records of a group, of different values that are not `used` yet; [] where it has not as many.
    They are taken out of what is left, and their values are used."""
    found, passed = [], []
    while heap and len(found) < number:
        entry = heapq.heappop(heap)
        (passed if entry[2] in used else found).append(entry)
    if len(found) < number:
        passed, found = passed + found, []
    taken = []
    for count, rank, value in found:
        taken.append(left[value].pop())
        used.add(value)
        if count < -1:
            passed.append((count + 1, rank, value))
    for entry in passed:
        heapq.heappush(heap, entry)
    return taken
