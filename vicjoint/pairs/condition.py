"""The option `condition` of pairs: what the predictor is told beside branch a's embedding.

condition: {column: dose}                                   # a number in the row
condition: {column: camera, values: [left, right]}          # one of these, as one-hot
condition: {column: actions, width: 2}                      # 2 numbers a frame: a table, or the path of one
condition: {beside: .csv, width: 2}                         # the same in clip.csv, for the film clip.mp4
condition: [{column: camera, values: [left, right]}, {column: actions, width: 2}]
"""

# T frames, A numbers of a frame, W windows, C numbers of a condition

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicjoint.files import arrays
from vicjoint.files.cells import CellError, as_path, as_text, cell, check_column, file_of, is_empty, path_of
from vicjoint.files.guard import no_file
from vicjoint.parts import Record
from vicjoint.registry import nearest

Span = tuple[int, int]
"""(last context frame, target): the rows of a table from the first on, and before the second."""

TABLES = (".csv", ".npy")
KEYS = ("column", "values", "width", "beside")
MOST_BYTES = 2**28  # of a table
A_FILM = 64  # conditions of one film that standardisation looks at


@dataclass(frozen=True)
class Part:
    """One entry of the option. width: numbers of each frame; None: one for the record."""

    column: str | None
    values: tuple[str, ...] | None
    width: int | None
    beside: str | None

    def numbers(self, record: Record) -> np.ndarray:
        """[A] float32 of a record; or [T, A] where there is a row for each frame. Raises CellError."""
        if self.width is not None:
            return self._frames(record)
        if self.values is not None:
            found = as_text(record, self.column)
            if found not in self.values:
                raise CellError(
                    f"column '{self.column}': '{found}' is none of pair.condition.values"
                    f" ({', '.join(self.values)}).{nearest(found, self.values)}"
                )
            return np.array([value == found for value in self.values], np.float32)
        return np.array([number_of(record, self.column)], np.float32)

    def _frames(self, record: Record) -> np.ndarray:
        name, given = self._table(record)
        try:
            found = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise CellError(f"{name}: expected a row of {self.width} numbers for each frame") from None
        if found.ndim == 1 and self.width == 1:
            found = found[:, None]
        if found.ndim != 2 or found.shape[1] != self.width:
            raise CellError(
                f"{name}: has shape {list(found.shape)}, expected [frames, {self.width}]"
                f" (pair.condition.width: {self.width})"
            )
        if not np.isfinite(found).all():
            row, place = np.argwhere(~np.isfinite(found))[0]
            raise CellError(f"{name}: number {place} of row {row} is {found[row, place]}")
        return found

    def _table(self, record: Record) -> tuple[str, Any]:
        """(what messages call it, the numbers or lists of them)."""
        if self.beside is not None:
            path = os.path.splitext(path_of(record))[0] + self.beside
            return path, read_table(path)
        check_column(self.column, record)
        held = record[self.column]
        if isinstance(held, str) and held.lstrip().startswith("["):
            try:
                held = json.loads(held)
            except (ValueError, RecursionError):
                raise CellError(f"column '{self.column}': {held[:50]!r} is no list of numbers") from None
        if is_empty(held) if not isinstance(held, np.ndarray) else not held.size:
            raise CellError(f"column '{self.column}' is empty")
        if not isinstance(held, str | bytes | dict):
            return f"column '{self.column}'", held
        file = file_of(record, held)
        with as_path(file) as path:
            return file if isinstance(file, str) else file["id"], read_table(path)


class Condition:
    """The whole option. frames: whether the pair reads films, and so can take a row for each frame. rows: how
    many of them one condition holds, side by side; None: their mean.

    standardised: of each number of a condition, whether it is standardised: all but those of a one-hot."""

    def __init__(self, given: dict | list[dict] | None, frames: bool = False, rows: int | None = None):
        entries = [] if given is None else [given] if isinstance(given, dict) else given
        self.parts = [
            part_of(entry, "" if isinstance(given, dict) else f".{number}", frames)
            for number, entry in enumerate(entries)
        ]
        self.rows = rows
        self.standardised = tuple(
            part.values is None for part in self.parts for _ in range(self._width(part))
        )

    def _width(self, part: Part) -> int:
        if part.width is not None:
            return part.width * (self.rows or 1)
        return len(part.values) if part.values is not None else 1

    def check(self, columns: Sequence[str]) -> None:
        """Raises CellError for a column that records do not have."""
        for part in self.parts:
            if part.column is not None:
                check_column(part.column, columns, "pair.condition.column")

    def of(self, record: Record, spans: Sequence[Span] = ((0, 1),), frames: int | None = None) -> Tensor:
        """[W, C] float32: one for each span of a film of so many frames. Raises CellError, naming the column
        or the file, where it is missing or damaged or has another number of rows than the film frames."""
        found = []
        for part in self.parts:
            x = part.numbers(record)
            if part.width is None:
                found.append(np.broadcast_to(x, (len(spans), len(x))))
                continue
            if frames is not None and len(x) != frames:
                raise CellError(
                    f"{part._table(record)[0]}: has {len(x)} rows, and the film has {frames} frames. Expected"
                    " a row for each frame"
                )
            found.append(np.stack([self._between(x, *span) for span in spans]))
        return torch.from_numpy(np.concatenate(found, 1, dtype=np.float32))

    def _between(self, rows_TA: np.ndarray, last: int, target: int) -> np.ndarray:
        chosen = rows_TA[last:target]
        return chosen.mean(0) if self.rows is None else chosen.reshape(-1)

    def some(self, record: Record) -> Tensor:
        """[N, C] for standardisation, as windows may have them: of a film up to A_FILM, evenly. The film is
        not opened."""
        lengths = [len(part.numbers(record)) for part in self.parts if part.width is not None]
        if not lengths:
            return self.of(record)
        ahead = self.rows or 1
        starts = max(0, min(lengths) - ahead + 1)
        if not starts:
            raise CellError(f"its table has {min(lengths)} rows, {ahead} are needed (pair.gap)")
        first = np.arange(min(starts, A_FILM)) * starts // min(starts, A_FILM)
        return self.of(record, [(int(start), int(start) + ahead) for start in first])


def part_of(entry: dict, place: str, frames: bool) -> Part:
    """One entry of the option, checked. Raises ValueError."""
    key = f"pair.condition{place}"
    for name in entry:
        if name not in KEYS:
            raise ValueError(f"{key}.{name}: is not known.{nearest(name, KEYS)} Expected {', '.join(KEYS)}.")
    column, values, width, beside = (entry.get(name) for name in KEYS)
    if (column is None) == (beside is None):
        raise ValueError(f"{key}: expected a column, or beside: .csv or .npy, and not both.")
    if column is not None and not isinstance(column, str):
        raise ValueError(f"{key}.column: expected the name of a column, got {column!r}.")
    if beside is not None and beside not in TABLES:
        raise ValueError(f"{key}.beside: expected {' or '.join(TABLES)}, got {beside!r}.")
    if (width is not None or beside is not None) and not frames:
        raise ValueError(
            f"{key}: width and beside are for a row of numbers for each frame, which the pair next_frame"
            " reads. Leave them out."
        )
    if beside is not None and width is None:
        raise ValueError(f"{key}.width: missing. Expected how many numbers a row of the {beside} files has.")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise ValueError(f"{key}.width: expected a whole number of at least 1, got {width!r}.")
    if width is not None and values is not None:
        raise ValueError(f"{key}: values are for one cell, width for a row of numbers. Leave out one.")
    if values is not None:
        texts = [str(value) for value in values] if isinstance(values, list | tuple) else []
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise ValueError(
                f"{key}.values: expected a list of two or more different values, got {values!r}."
            )
        values = tuple(texts)
    return Part(column, values, width, beside)


def number_of(record: Record, column: str) -> float:
    """The number in a cell. Raises CellError."""
    check_column(column, record)
    if (held := cell(record, column)) is None:
        raise CellError(f"column '{column}' is empty")
    try:
        found = float(held)
    except (TypeError, ValueError):
        raise CellError(
            f"column '{column}': {str(held)[:50]!r} is no number. List its values (pair.condition.values), or"
            " say how many numbers a frame has (width)"
        ) from None
    if not np.isfinite(found):
        raise CellError(f"column '{column}': {held!r} is not finite")
    return found


def read_table(path: str) -> Any:
    """The rows of a csv (one line of names may come first), or of a file that `vicjoint.files.arrays` reads.
    Raises CellError."""
    try:
        if not path.lower().endswith(".csv"):
            return arrays.read(path)
        if cause := no_file(path, "table", MOST_BYTES):
            raise CellError(f"{path}: {cause}")
        with open(path, newline="", encoding="utf-8-sig") as file:
            return numbers_of(path, [line for line in csv.reader(file) if line])
    except csv.Error as error:
        raise CellError(f"{path}: cannot be read as csv: {error}") from None
    except UnicodeDecodeError as error:
        raise CellError(f"{path}: is no text in UTF-8: {error}") from None
    except CellError:
        raise
    except (ValueError, OSError) as error:
        raise CellError(str(error)) from None


def numbers_of(path: str, lines: list[list[str]]) -> list[list[float]]:
    """Of a csv's cells. Raises CellError."""
    found = []
    for number, line in enumerate(lines):
        try:
            found.append([float(value) for value in line])
        except ValueError:
            if number == 0 and not any(map(is_number, line)):
                continue  # names of the columns
            raise CellError(f"{path}: row {number} is {','.join(line)[:50]!r}, expected numbers") from None
        if len(found[-1]) != len(found[0]):
            raise CellError(
                f"{path}: row {number} has {len(found[-1])} numbers, the first has {len(found[0])}"
            )
    return found


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
