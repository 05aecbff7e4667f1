"""The order of samples of several sources in one stream, each with its share by weight.

Position p of the stream belongs to the first source where round(p w) steps up by one, w its share; the
positions that are left are shared among the other sources in the same way. So every source has its share of
any stretch of the stream, to one sample or two, and which record of which of its passes stands at a place is
known without what came before.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from vicjoint.data.lanes import Lanes
from vicjoint.orders import MixedOrder

FINEST = 10**6  # denominator of a share


class Mixture:
    """generator(pass, source): random numbers of the order of a source's pass."""

    def __init__(self, order: MixedOrder, generator: Callable[[int, int], np.random.Generator]):
        self.counts = [count for count, _ in order.parts]
        self.begins = np.cumsum([0, *self.counts])
        self.lanes = [shards and Lanes(shards) for _, shards in order.parts]
        self.generator, self.per_batch = generator, 1
        # of each source, its share of what the ones before it leave
        weights = [Fraction(weight).limit_denominator(FINEST) for weight in order.weights or self.counts]
        left = [sum(weights[i:]) for i in range(len(weights))]
        self.shares = [(w / of).limit_denominator(FINEST).as_integer_ratio() for w, of in zip(weights, left)]
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def set_batch(self, per_batch: int) -> None:
        """State the records of a global batch."""
        self.per_batch = per_batch
        for lanes in self.lanes:
            if lanes is not None:
                lanes.set_batch(per_batch)

    def locate(self, position: int) -> tuple[int, int]:
        """(pass of its source, record) of a position; records of all sources, one source after the other."""
        number, passes, place = self._place(position)
        order, lanes = self._order(number, passes), self.lanes[number]
        if lanes is not None:
            lanes.begin(order, place)
        return passes, int(self.begins[number] + order[0][place])

    def others(self, position: int, record: int) -> np.ndarray:
        """Records of the same source to replace one."""
        number, passes, place = self._place(position)
        begin, lanes = self.begins[number], self.lanes[number]
        if lanes is None:
            return np.arange(begin, begin + self.counts[number])
        return begin + lanes.others(record - begin, self._order(number, passes), place)

    def _place(self, position: int) -> tuple[int, int, int]:
        """(source, pass, place in the pass)."""
        rest = position
        for number, (above, below) in enumerate(self.shares):
            before, after = ((2 * p * above + below) // (2 * below) for p in (rest, rest + 1))
            if after > before:
                return number, *divmod(before, self.counts[number])
            rest -= before
        raise AssertionError("the last source takes what is left")

    def _positions(self, number: int, ranks: np.ndarray) -> np.ndarray:
        """Where the samples of a source with these numbers, from 0, stand: `_place` turned round."""
        above, below = self.shares[number]
        found = -(-below * (2 * ranks + 1) // (2 * above)) - 1
        for above, below in reversed(self.shares[:number]):
            found = (2 * found + 1) * below // (2 * (below - above))
        return found

    def _order(self, number: int, passes: int) -> tuple[np.ndarray, np.ndarray]:
        """(record, window) of each place of a source's pass; windows only where there are lanes."""
        if self._orders.get(number, (None,))[0] != passes:
            rng, count, lanes = self.generator(passes, number), self.counts[number], self.lanes[number]
            if lanes is None:
                order = rng.permutation(count), np.zeros(0, int)
            else:
                ranks = np.arange(passes * count, (passes + 1) * count)
                order = lanes.arrange(self._positions(number, ranks) % self.per_batch, rng)
            self._orders[number] = passes, *order
        return self._orders[number][1:]
