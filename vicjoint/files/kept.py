"""What was decoded once, kept in memory: squares of short videos, short sounds.

kept = Kept(500)                                   # megabytes
kept.add("a.ogg", samples, samples.nbytes)         # False where there is no room
kept.get("a.ogg")                                  # None where it is not here
"""

# N samples

import numpy as np

BESIDE = 4096  # samples that the sound of a film may have before its time 0, or after the end that it states


class Kept:
    """Values by name; the first ones that fit stay.

    A deep copy is the same object: the pairs of a run that read one branch's files, and its evaluation,
    decode them once. A process that reads beside the main one begins with nothing."""

    def __init__(self, megabytes: int):
        self.megabytes, self.room = megabytes, megabytes * 2**20
        self._values: dict = {}

    def get(self, name: str):
        return self._values.get(name)

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes."""
        return size <= self.room

    def add(self, name: str, value, size: int) -> bool:
        """Keep a value of `size` bytes under a name that is not here yet, where there is room."""
        if not self.fits(size):
            return False
        self._values[name] = value
        self.room -= size
        return True

    def __len__(self) -> int:
        return len(self._values)

    def __deepcopy__(self, memo) -> "Kept":
        return self

    def __reduce__(self):
        return Kept, (self.megabytes,)


class WholeSound:
    """A sound in memory: float32 samples [N] at `rate`, from `BESIDE` samples before time 0 on; what
    `vicjoint.files.sound` reads from like from a file."""

    def __init__(self, wave: np.ndarray, rate: int, seconds: float):
        self._wave, self.rate, self.seconds = wave, rate, seconds

    def samples(self, first: int, count: int) -> np.ndarray:
        """float32 [count] from sample `first` of the sound on; zeros outside of it."""
        out = np.zeros(count, np.float32)
        begin, end = max(first + BESIDE, 0), min(first + BESIDE + count, len(self._wave))
        if begin < end:
            out[begin - first - BESIDE : end - first - BESIDE] = self._wave[begin:end]
        return out

    def close(self) -> None:
        """Nothing is open."""
