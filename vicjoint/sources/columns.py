"""Columns of very many records: arrays that the processes which read share.

ids = Texts(["a", "b"])
ids[1]                      # "b"
pickle.dumps(ids)           # where it is large: the name of a file, which the other process maps
"""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

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
        ends = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=ends[1:])
        self._set(np.frombuffer(b"".join(encoded), np.uint8), ends)

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


class Lacks(Enum):
    """In a column: the record has no such key."""

    KEY = "key"


class ColumnRecords(Sequence):
    """Records that are kept column by column, each made when it is asked for. columns: what they are, as
    `in_columns` makes it; rows: which of them, int [N]."""

    def __init__(self, columns: dict[str, Any], rows: np.ndarray):
        self._columns, self._rows = columns, Shared(rows)

    def __len__(self) -> int:
        return len(self._rows.array)

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        row = self._rows.array[i].item()
        found = {key: column[row] for key, column in self._columns.items()}
        return {key: value for key, value in found.items() if value is not Lacks.KEY}

    def column(self, key: str) -> Iterator:
        column = self._columns[key]
        return (column[row] for row in self._rows.array.tolist())

    def lacks(self, key: str) -> np.ndarray:
        """bool [N]: which records have no value under a key."""
        if key not in self._columns:
            return np.ones(len(self), bool)
        return np.array([value is Lacks.KEY or is_empty(value) for value in self.column(key)])


class Constant:
    """A column that has the same value everywhere."""

    def __init__(self, value: Any):
        self._value = value

    def __getitem__(self, i: int) -> Any:
        return self._value


class _Numbers:
    def __init__(self, values: np.ndarray):
        self._values = Shared(values)

    def __getitem__(self, i: int):
        return self._values.array[i].item()


def _column(values: Any) -> Any:
    """The same values in less memory, where they are texts or numbers of one kind."""
    kinds = set(map(type, values)) if isinstance(values, list) else set()
    with contextlib.suppress(UnicodeEncodeError, OverflowError):
        if kinds == {str}:
            first = values[0]
            return Constant(first) if all(value == first for value in values) else Texts(values)
        if kinds == {int} or kinds == {float}:
            return _Numbers(np.array(values, np.int64 if kinds == {int} else np.float64))
    return values


def in_columns(columns: dict[str, Any], parts: Iterable[np.ndarray]) -> list[Sequence[dict]]:
    """The records of each part, rows int [N] of columns (lists, or Constant): a list of dicts, or where there
    are many as columns, which the parts share. Empties `columns`, so that only one is there twice."""
    parts = list(parts)
    many = sum(map(len, parts)) >= MANY
    made = {}
    for key in list(columns):
        values = columns.pop(key)
        made[key] = _column(values) if many else values
    records: list[Sequence[dict]] = [ColumnRecords(made, rows) for rows in parts]
    return records if many else [list(part) for part in records]
