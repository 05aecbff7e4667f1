"""What the DATA of `python -m vicjoint.embed` holds: items, one after the other, always in the same order.

A file is one item; a folder the files below it that the branch reads; a table the cells of a column; a tar
file, or a pattern such as x-{000..146}.tar, the pictures in it; a .txt file a text a line. None of them is
held in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.embeddings.reading import ItemReader
from vicjoint.files.cells import CellError, as_read, compared, is_there, values
from vicjoint.files.films import is_film
from vicjoint.files.folder import Walk
from vicjoint.parts import Pair
from vicjoint.recipe import TaskSpec
from vicjoint.registry import nearest
from vicjoint.sources.base import SourceError
from vicjoint.sources.places import find_shards, pictures_of
from vicjoint.sources.rows import FORMATS, check_file, format_of, open_parquet, rows_of
from vicjoint.sources.vectors import Vectors

OWN = ("item", "embedding", "token_grid", "start_seconds", "end_seconds")  # columns that embed writes
AT_ONCE = 4096  # rows of a jsonl file whose types are looked at together


@dataclass(frozen=True)
class Item:
    """value: what the branch reads, or why there is nothing to read. name: a path, or the text itself. row:
    the table's own cells, by the names that they get."""

    value: Any
    name: str
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Which cells of tables are items: `named` is what the user asked for, else the first of `usual` that a
    table has; text cells of the columns `choose` hold several values. reads: as of a modality. vectors: the
    recipe's table's."""

    named: str | None
    usual: tuple[str, ...]
    choose: tuple[str, ...]
    separator: str | None
    reads: str
    vectors: dict[str, list[str]]

    def column(self, path: Path, columns: list[str]) -> str:
        for column in (self.named,) if self.named else self.usual:
            if column in columns:
                return column
        wanted = self.named or self.usual[0]
        raise SourceError(
            f"table: {path} has no column '{wanted}' ({'--column' if self.named else 'the recipe reads it'})."
            f"{nearest(wanted, columns)} Columns: {', '.join(columns)}. Name one: --column NAME."
        )


def cell_of(task: TaskSpec, pair: Pair, reader: ItemReader, named: str | None) -> Cell:
    """As the recipe's pair reads its tables."""
    of_pair = task.pair.get(reader.side) if pair.uses_readers else None
    usual = (of_pair, "path") if isinstance(of_pair, str) else (task.source.get("column") or "path", "path")
    choose = tuple(task.pair.get("choose") or ()) if pair.uses_readers else ()
    return Cell(
        named, usual, choose, task.pair.get("separator"), reader.reads, task.source.get("vectors") or {}
    )


class Data:
    """All that was named on the command line, in that order. Iterating gives its items, each time anew.
    Raises SourceError."""

    def __init__(self, named: list[str], reader: ItemReader, cell: Cell):
        self.parts = [part_of(name, reader, cell) for name in named]

    def __iter__(self) -> Iterator[Item]:
        for part in self.parts:
            yield from part

    def columns(self) -> "Columns":
        found = Columns()
        for part in self.parts:
            part.add_columns(found)
        return found

    def notes(self) -> list[str]:
        """What was passed over, once the items have been gone through."""
        return [note for part in self.parts if (note := part.note())]

    def count(self, advance) -> tuple[int, str]:
        """(number of items, a hash that differs where they or the tables' cells do); `advance(1)` is called
        for each item."""
        number, found = 0, hashlib.sha256()
        for part in self.parts:
            for item in part:
                found.update(encodable(item.name).encode() + b"\0")
                number += 1
                advance(1)
            part.mark(found)
        return number, found.hexdigest()[:16]


class Part:
    """One of the DATA."""

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError

    def add_columns(self, columns: "Columns") -> None:
        """Say which columns its items' rows have."""

    def mark(self, found) -> None:
        """Put into a hash what is not in the names of its items."""

    def note(self) -> str | None:
        return None


class File(Part):
    def __init__(self, path: str):
        self.path = path

    def __iter__(self) -> Iterator[Item]:
        yield Item(self.path, self.path)


class Folder(Part):
    """Files by their endings, as `Walk` lists them."""

    def __init__(self, root: str, suffixes: tuple[str, ...], with_shards: bool):
        self.root, self.suffixes, self.with_shards = root, suffixes, with_shards
        self.walk = Walk(root, suffixes and (*suffixes, *((".tar",) if with_shards else ())))

    def __iter__(self) -> Iterator[Item]:
        some = False
        try:
            for name in self.walk:
                some, path = True, os.path.join(self.root, name)
                if self.with_shards and name.lower().endswith(".tar"):
                    yield from Shards(path)
                else:
                    yield Item(path, path)
        except OSError as error:
            raise SourceError(f"{self.root}: cannot be listed: {error.strerror}. Allow reading it.") from None
        if not some:
            raise SourceError(
                f"{self.root}: no file below it that this branch reads. {self.note() or 'It has no files.'}"
                f" Expected names ending in {' '.join(self.suffixes)}."
            )

    def add_columns(self, columns: "Columns") -> None:
        if self.with_shards and next(iter(Walk(self.root, (".tar",))), None) is not None:
            columns.add("label", columns.text)

    def note(self) -> str | None:
        passed = self.walk.passed_over()
        return f"{self.root}: passed over: {passed}." if passed else None


class Shards(Part):
    """The pictures of tar files."""

    def __init__(self, pattern: str):
        self.pattern = pattern

    def __iter__(self) -> Iterator[Item]:
        for shard in find_shards(self.pattern):
            for record, label in pictures_of(shard):
                yield Item(record, f"{shard}/{record['id']}", {"label": label})

    def add_columns(self, columns: "Columns") -> None:
        columns.add("label", columns.text)


class Lines(Part):
    """A text a line; empty lines are passed over."""

    def __init__(self, path: str):
        self.path, self.empty = path, 0

    def __iter__(self) -> Iterator[Item]:
        self.empty = 0
        try:
            with open(self.path, encoding="utf-8-sig") as file:
                for line in file:
                    if text := line.strip():
                        yield Item(text, text)
                    else:
                        self.empty += 1
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path} is not UTF-8: {error.reason}. Save it as UTF-8.") from None

    def note(self) -> str | None:
        return f"{self.path}: {self.empty:,} empty lines were passed over." if self.empty else None


class Table(Part):
    def __init__(self, path: str, cell: Cell):
        self.path, self.cell = Path(path).absolute(), cell
        check_file(self.path)
        self.column: str | None = None
        column = cell.named or cell.usual[0]
        self.vectors = Vectors({name: of for name, of in cell.vectors.items() if name == column})

    def __iter__(self) -> Iterator[Item]:
        folder, cell = {"folder": str(self.path.parent)}, self.cell
        for number, (_, row) in enumerate(self.vectors.gathered(self.path, rows_of(self.path)), 1):
            column = self.column = self.column or cell.column(self.path, list(row))
            own = {own_name(key): value for key, value in row.items()}
            try:
                found = values({column: None} | row, column, column in cell.choose, cell.separator)
            except CellError as error:
                yield Item(error, f"{self.path}, row {number}", own)
                continue
            for value in found:
                try:
                    value = as_read(folder, value, cell.reads)
                except CellError as error:
                    yield Item(error, f"{self.path}, row {number}", own)
                    continue
                inside = cell.reads != "text" and not isinstance(value, str)
                yield Item(value, f"{self.path}, row {number}" if inside else compared(value), own)

    def add_columns(self, columns: "Columns") -> None:
        names = columns.add_table(self.path, self.vectors)
        self.column = self.cell.column(self.path, names)
        if twice := [name for name in names if own_name(name) != name and own_name(name) in names]:
            raise SourceError(
                f"table: {self.path} has columns '{twice[0]}' and 'table_{twice[0]}', and the first would be"
                " called as the second. Rename one."
            )

    def mark(self, found) -> None:
        with open(self.path, "rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)


def own_name(column: str) -> str:
    """How a table's column is called beside those that embed writes."""
    return f"table_{column}" if column in OWN else column


def part_of(name: str, reader: ItemReader, cell: Cell) -> Part:
    """What one of the DATA is. Raises SourceError for what holds no items of the branch."""
    path, ending = Path(name), os.path.splitext(name)[1].lower()
    with_shards = ".tar" in reader.suffixes
    if format_of(path):
        return Table(name, cell)
    if ending == ".tar" and reader.reads == "file":
        if not with_shards:
            raise SourceError(
                f"{name}: this branch reads no pictures, so no tar files of them. Give its files."
            )
        find_shards(name)
        return Shards(name)
    if not is_there(name):
        raise SourceError(
            f"{name}: no such file or folder. Expected files, folders or tables: check the path."
        )
    if reader.reads == "text":
        if ending == ".txt" and path.is_file():
            return Lines(name)
        raise SourceError(
            f"{name}: this branch reads texts, expected a table ({FORMATS}) with a column of them, or"
            " a .txt file with one a line."
        )
    suffixes = tuple(suffix for suffix in reader.suffixes if suffix != ".tar")
    is_item = not path.is_dir() or ("/" in suffixes and is_film(name, suffixes))
    return File(name) if is_item else Folder(name, suffixes, with_shards)


def encodable(text: str) -> str:
    """Text that can be written as UTF-8: bytes of a file's name that are none become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


# ---- the tables' own columns ----


class Columns:
    """Names and pyarrow types of the tables' columns. Where rows differ in kind, or have none of parquet's,
    the column holds JSON text."""

    def __init__(self):
        import pyarrow

        self.arrow, self.text = pyarrow, pyarrow.string()
        self.types: dict[str, Any] = {}
        self.json: set[str] = set()

    def add_table(self, path: Path, vectors: Vectors) -> list[str]:
        """Those of a table, without what vectors are made of; returns the names that its rows have."""
        kind = format_of(path)
        if kind == "parquet":
            with open_parquet(path) as file:
                schema = file.schema_arrow
            found = vectors.find(path, schema.names)
            for name, type in zip(schema.names, schema.types):
                if name in found:
                    self.add(own_name(name), type)
            return found
        if kind == "csv":
            header = list(next(rows_of(path))[1])
            found = vectors.find(path, header)
            for name in header:
                if name in found:
                    self.add(own_name(name), self.text)
            return found
        names: dict[str, None] = {}
        some: list[dict] = []
        for _, row in vectors.gathered(path, rows_of(path)):
            some.append({name: cell for name, cell in row.items() if name not in vectors.columns})
            names.update(dict.fromkeys(row))
            if len(some) == AT_ONCE:
                self._look_at(some)
                some = []
        self._look_at(some)
        return list(names)

    def _look_at(self, rows: list[dict]) -> None:
        for name in dict.fromkeys(key for row in rows for key in row):
            try:
                type = self.arrow.array([row.get(name) for row in rows]).type
            except (self.arrow.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
                type = None
            if type is None or not self._plain(type):
                self.json.add(own_name(name))
                type = self.text
            self.add(own_name(name), type)

    def _plain(self, type: Any) -> bool:
        types = self.arrow.types
        while types.is_list(type):
            type = type.value_type
        return any(is_it(type) for is_it in (types.is_null, types.is_boolean, types.is_integer)) or any(
            is_it(type) for is_it in (types.is_floating, types.is_string)
        )

    def add(self, name: str, type: Any) -> None:
        """A column, which other tables may have too."""
        field = lambda type: self.arrow.schema([(name, type)])
        known = self.types.setdefault(name, type)
        try:
            both = self.arrow.unify_schemas([field(known), field(type)], promote_options="permissive")
            self.types[name] = both.field(0).type
        except self.arrow.ArrowException:
            self.json.add(name)
            self.types[name] = self.text

    def fields(self) -> list[Any]:
        """pyarrow fields."""
        return [self.arrow.field(name, self._written(type)) for name, type in self.types.items()]

    def _written(self, type: Any) -> Any:
        """Where all cells are empty, a column of texts."""
        if self.arrow.types.is_list(type):
            return self.arrow.list_(self._written(type.value_type))
        return self.text if self.arrow.types.is_null(type) else type

    def arrays(self, rows: list[dict]) -> list[Any]:
        """pyarrow arrays of the rows' cells. Raises SourceError for a cell that does not fit its column."""
        return [self._array(name, type, [row.get(name) for row in rows]) for name, type in self.types.items()]

    def _array(self, name: str, type: Any, cells: list) -> Any:
        # pyarrow takes no array of two dimensions
        cells = [list(cell) if isinstance(cell, np.ndarray) else cell for cell in cells]
        if name in self.json:
            cells = [c if c is None or isinstance(c, str) else json.dumps(c, default=str) for c in cells]
        try:
            try:
                return self.arrow.array(cells, self._written(type))
            except UnicodeEncodeError:  # halves of surrogates, which JSON can hold
                cells = [encodable(cell) if isinstance(cell, str) else cell for cell in cells]
                return self.arrow.array(cells, self._written(type))
        except (self.arrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise SourceError(f"column '{name}': {error}. Its cells are {type}: correct the table.") from None
