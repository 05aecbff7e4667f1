"""Epochs in which no batch holds a value of a column twice."""

from collections.abc import Sequence

import numpy as np

from vicjoint.parts import Pair, Record


class Distinct:
    """Epochs whose batches hold no value of the pair's `distinct` column twice. `batches` and `per_batch` are
    set by `set_batch`."""

    def __init__(self, records: Sequence[Record], pair: Pair):
        self.column, self.values = pair.distinct, values_of(records, pair)
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
        # values by first appearance, the records of a value in order
        by_value = np.lexsort((np.arange(len(order)), first[which]))
        starts = first_of_run(first[which][by_value])
        # at most one per batch, in the permutation's order
        kept = np.sort(by_value[np.arange(len(order)) - starts < self.batches])
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


def values_of(records: Sequence[Record], pair: Pair) -> np.ndarray:
    """int [N], equal for records that must not be in one batch."""
    number: dict = {}
    found = (pair.distinct_of(record) for record in records)
    # an empty cell equals no other: its value is the record's own number
    return np.array(
        [number.setdefault((value, i if value is None else -1), len(number)) for i, value in enumerate(found)]
    )


def first_of_run(x: np.ndarray) -> np.ndarray:
    """For each element of an array with equal elements side by side, where its run begins."""
    begins = np.concatenate([[True], x[1:] != x[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(x)), 0))
