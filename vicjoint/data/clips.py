"""Several clips of each file that is opened, in different batches (`data.clips_per_open`).

1. An epoch has each record K times, each time with random numbers of its own. The records of `APART` batches,
   a block, come one after the other, then once more in the same order, K times in all: a record comes again
   in the same row, so many batches later. What is left of an epoch makes blocks of 8, 4, 2 and 1 batches, and
   one of less.
2. The process that reads the first of these clips reads the others in the same pass through the file, and
   keeps them until their batches are due. Nothing depends on it: where it did not (after a resume, where it
   was started again, or where batches go to other processes in turn), the clip is read anew, and is the same.
"""

from collections.abc import Sequence

import numpy as np
import torch

from vicjoint.parts import Pair, Raw
from vicjoint.recipe import Recipe, RecipeError

APART = 16  # a power of two, as the numbers of processes that read are, as a rule

Key = tuple[int, int, int]
"""(epoch, number of the record, number of the clip)."""


class Clips:
    """Epochs of `records` records, `number` clips of each."""

    def __init__(self, records: int, number: int):
        self.records, self.number = records, number
        self._kept: dict[Key, tuple[Raw, Raw]] = {}
        self.set_batch(1)

    def again(self) -> "Clips":
        """The same order, with nothing kept."""
        found = Clips(self.records, self.number)
        found.set_batch(self.per_batch)
        return found

    def set_batch(self, per_batch: int) -> None:
        """State the records of a global batch."""
        self.per_batch = per_batch
        sizes, left, apart = [], self.records, APART
        while apart:
            whole, left = divmod(left, apart * per_batch)
            sizes += [apart * per_batch] * whole
            apart //= 2
        self._sizes = np.array(sizes + [left] * (left > 0))
        self._ends = np.cumsum(self._sizes)
        self._kept.clear()

    def locate(self, place: int) -> tuple[int, int, int]:
        """(place in the permutation of the records, number of the clip, batches until the next clip of that
        record or 0 where it comes in another row) of a place of an epoch."""
        block = int(np.searchsorted(self._ends, place // self.number, side="right"))
        size, first = int(self._sizes[block]), int(self._ends[block] - self._sizes[block])
        clip, row = divmod(place - first * self.number, size)
        return first + row, clip, 0 if size % self.per_batch else size // self.per_batch

    def stays(self, apart: int) -> bool:
        """Whether this process reads the batch that comes so many later, too."""
        worker = torch.utils.data.get_worker_info()
        return apart > 0 and apart % (worker.num_workers if worker else 1) == 0

    def take(self, key: Key) -> tuple[Raw, Raw] | None:
        return self._kept.pop(key, None)

    def keep(self, samples: dict[Key, tuple[Raw, Raw]]) -> None:
        """Until they are taken; where nobody does, no more than a block has."""
        self._kept |= samples
        while len(self._kept) > APART * self.per_batch * (self.number - 1):
            del self._kept[next(iter(self._kept))]


def reads_clips(pair: Pair) -> bool:
    return pair.uses_readers and any(reader.several for reader in pair.readers)


def check_clips(recipe: Recipe, pairs: Sequence[Pair]) -> None:
    """Raises RecipeError where no pair reads clips that could be read together."""
    if recipe.data.clips_per_open > 1 and not any(map(reads_clips, pairs)):
        raise RecipeError(
            f"data.clips_per_open: {recipe.data.clips_per_open} clips of a file are read together by the"
            " modality clip in a pair that reads through it, such as cross_modal, and no pair of this recipe"
            " does. The pair next_frame has pair.windows. Leave it out."
        )
