"""What a source may ask of the order of its records."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ShardOrder(NamedTuple):
    """How records are ordered that stand in shards which cost to open, such as those that a network brings.

    shard: int [N], of each record. lanes: consecutive parts of an epoch's shards; the rows of a batch are
    shared among them, so that a process needs the shards of its own lanes alone. window: shards of a lane
    whose records are shuffled together. files: by number of the shard, what `vicjoint.files.remote.ahead`
    brings while the window before is read; None: each is brought when it is read."""

    shard: np.ndarray
    lanes: int
    window: int
    files: Sequence | None = None


class MixedOrder(NamedTuple):
    """How records of several sources are mixed, which stand one source after the other.

    parts: of each source, the number of its records, and their order. weights: each one's part of every
    batch; None: by their numbers of records."""

    parts: list[tuple[int, ShardOrder | None]]
    weights: list[float] | None

    @property
    def is_one_epoch(self) -> bool:
        """Whether an epoch of all records together gives each source its part as well, if not of every
        batch."""
        return self.weights is None and all(shards is None for _, shards in self.parts)


def only(order: ShardOrder | MixedOrder | None, kept: np.ndarray) -> ShardOrder | MixedOrder | None:
    """The same of those records alone that `kept` bool [N] marks; sources without any are no part of it."""
    if isinstance(order, ShardOrder):
        return order._replace(shard=order.shard[kept])
    if order is None:
        return None
    ends = np.cumsum([count for count, _ in order.parts])
    own = np.split(kept, ends[:-1])
    some = [i for i, of in enumerate(own) if of.any()]
    parts = [(int(own[i].sum()), only(order.parts[i][1], own[i])) for i in some]
    return MixedOrder(parts, order.weights and [order.weights[i] for i in some])
