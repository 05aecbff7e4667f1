"""Columns of numbers as one vector: what the option `vectors` of a table asks for.

wanted = Vectors({"profile": ["Cells_*", "Nuclei_*"]})
rows = wanted.gathered(Path("profiles.csv"), rows_of(Path("profiles.csv")))     # row["profile"]: float32 [D]
wanted.words()                   # "; profile: 1,200 columns, 31 of 96,000 numbers missing or ..."
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vicjoint.files.cells import is_empty
from vicjoint.registry import nearest
from vicjoint.sources.base import SourceError
from vicjoint.sources.rows import Row

SHOWN = 3  # columns that a line names


class Vectors:
    """wanted: {name of a vector: patterns of the names of columns, * standing for any letters}. The columns
    of a vector are those of the table that match, in the table's order, and no columns of their own any more;
    an empty cell is NaN. A table may have the vector itself as a column, and then nothing is done."""

    def __init__(self, wanted: dict[str, list[str]]):
        self.wanted = wanted
        self.columns: dict[str, list[str]] = {}
        self.missing: dict[str, np.ndarray] = {}
        self.used: set[str] = set()
        self.rows = 0

    def find(self, path: Path, header: list[str]) -> list[str]:
        """Settle which columns make which vector; returns the names of the columns then. Raises SourceError
        for a pattern that none matches."""
        self.columns, self.rows = {}, 0
        for name, patterns in self.wanted.items():
            if name in header:
                continue
            matched = [fnmatch.filter(header, pattern) for pattern in patterns]
            for pattern, found in zip(patterns, matched):
                if not found:
                    raise SourceError(
                        f"table: {path}: no column matches '{pattern}' (option vectors)."
                        f"{nearest(pattern, header)} Columns: {', '.join(header[:20])}"
                        f"{', ...' if len(header) > 20 else '.'}"
                    )
            among = {column for found in matched for column in found}
            self.columns[name] = [column for column in header if column in among]
        self.used = {column for columns in self.columns.values() for column in columns}
        self.missing = {name: np.zeros(len(columns), int) for name, columns in self.columns.items()}
        return [column for column in header if column not in self.used] + list(self.columns)

    def gathered(self, path: Path, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with their vectors. Raises SourceError for a cell that is no number."""
        for line, row in rows:
            if not self.rows and self.wanted:
                self.find(path, list(row))
            self.rows += 1
            if not self.columns:
                yield line, row
                continue
            vectors = {name: self._vector(path, line, row, name) for name in self.columns}
            yield line, {c: cell for c, cell in row.items() if c not in self.used} | vectors

    def _vector(self, path: Path, line: int, row: dict, name: str) -> np.ndarray:
        cells = [row.get(column) for column in self.columns[name]]
        with np.errstate(over="ignore"):
            try:
                values = np.array(cells, dtype=np.float32)
            except (TypeError, ValueError):  # a cell is empty, or no number
                values = np.array(
                    [self._number(path, line, row, name, c) for c in self.columns[name]], np.float32
                )
        self.missing[name] += ~np.isfinite(values)
        return values

    def _number(self, path: Path, line: int, row: dict, name: str, column: str) -> float:
        cell = row.get(column)
        try:
            return math.nan if is_empty(cell) else float(cell)
        except (TypeError, ValueError):
            raise SourceError(
                f"table: {path}, line {line}: column '{column}' is {str(cell)[:50]!r}, expected a number"
                f" (option vectors: {name}). Choose patterns that match numbers only."
            ) from None

    def words(self) -> str:
        """The end of a sentence: how long each vector is, and where numbers are missing."""
        said = ""
        for name, columns in self.columns.items():
            said += f"; {name}: {len(columns):,} columns"
            counts = self.missing[name]
            if counts.any():
                some = np.count_nonzero(counts)
                worst = np.argsort(-counts, kind="stable")[: min(SHOWN, some)]
                named = ", ".join(f"{columns[i]} ({counts[i]:,})" for i in worst)
                said += (
                    f", {counts.sum():,} of {self.rows * len(columns):,} numbers missing or infinite, in"
                    f" {some:,} of the columns: {named}{', ...' if some > SHOWN else ''}"
                )
        return said
