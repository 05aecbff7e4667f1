"""Columns of very many records: arrays that the processes which read share.

ids = Texts(["a", "b"])
ids[1]                      # "b"
pickle.dumps(ids)           # where it is large: the name of a file, which the other process maps
"""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence

import numpy as np

from vicjoint.files.cells import is_empty

LARGE = 1 << 20  # bytes, from which on an array travels as a file


class Shared:
    """A numpy array, as `array`. Where it is large, other processes get it as a file of the system's
    temporary folder, which all of them map: it is in memory once, this process's included."""

    def __init__(self, array: np.ndarray):
        self.array, self._path = array, None

    def __reduce__(self):
        if self.array.nbytes >= LARGE and self._path is None:
            with contextlib.suppress(OSError):
                self._to_file()
        return (Shared, (self.array,)) if self._path is None else (_mapped, (self._path,))

    def _to_file(self) -> None:
        handle, path = tempfile.mkstemp(".npy", "vicjoint-")
        weakref.finalize(self, _remove, path)
        with open(handle, "wb") as file:
            np.save(file, self.array)
        self._path, self.array = path, _open(path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _open(path: str) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _mapped(path: str) -> Shared:
    return Shared(_open(path))


class Texts(Sequence[str]):
    """Texts as one block of bytes; those that no UTF-8 has (names of files) are kept as they are."""

    def __init__(self, texts: Sequence[str]):
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._set(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))

    def _set(self, block: np.ndarray, ends: np.ndarray) -> None:
        self._block, self._ends = Shared(block), Shared(ends.astype(np.int64))

    @classmethod
    def of_arrow(cls, array) -> "Texts":
        """Of a pyarrow large_string array without nulls."""
        array = array if array.offset == 0 else array.take(np.arange(len(array)))
        _, ends, block = array.buffers()
        made = cls.__new__(cls)
        ends = np.frombuffer(ends, np.int64)[: len(array) + 1] if len(array) else np.zeros(1, np.int64)
        made._set(np.frombuffer(block or b"", np.uint8)[: ends[-1]], ends)
        return made

    def __len__(self) -> int:
        return len(self._ends.array) - 1

    def __getitem__(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        start, end = self._ends.array[(i % len(self)) : (i % len(self)) + 2].tolist()
        return self._block.array[start:end].tobytes().decode("utf-8", "surrogateescape")


MANY = 1 << 14  # records, from which on they are kept as columns


class ColumnRecords(Sequence):
    """Records that have the same keys, kept column by column, each made when it is asked for."""

    def __init__(self, records: list[dict]):
        self._count = len(records)
        self._columns = {key: _column([record[key] for record in records]) for key in records[0]}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return {key: column[i % self._count] for key, column in self._columns.items()}

    def lacks(self, key: str) -> np.ndarray:
        """bool [N]: which records have no value under a key."""
        if key not in self._columns:
            return np.ones(self._count, bool)
        column = self._columns[key]
        return np.array([is_empty(column[i]) for i in range(self._count)])


class _Numbers:
    def __init__(self, values: np.ndarray):
        self._values = Shared(values)

    def __getitem__(self, i: int):
        return self._values.array[i].item()


class _Constant:
    def __init__(self, value: str):
        self._value = value

    def __getitem__(self, i: int) -> str:
        return self._value


def _column(values: list):
    """The same values in less memory, where they are texts or numbers of one kind."""
    kinds = set(map(type, values))
    with contextlib.suppress(UnicodeEncodeError, OverflowError):
        if kinds == {str}:
            return _Constant(values[0]) if len(set(values)) == 1 else Texts(values)
        if kinds == {int} or kinds == {float}:
            return _Numbers(np.array(values, np.int64 if kinds == {int} else np.float64))
    return values


def in_columns(records: list[dict]) -> Sequence[dict]:
    """The same records, as columns where there are many with the same keys."""
    if len(records) < MANY or any(record.keys() != records[0].keys() for record in records):
        return records
    return ColumnRecords(records)
