"""The source `table`: a csv, tsv, json, jsonl or parquet file, one record per row.

    Table("/data/videos.csv")                                     # a column `path` of files, and any others
    Table("/data/molecules.jsonl", split_by="smiles")  # no file column: cells are what modalities read
    # two tables, joined by the key of the pair cross_modal
    Table("spoken/index.csv", second="written/index.csv")

A record has every column under its name, `id` for messages, `folder` (the table's, where relative paths
start) and, where there is a column of files, `path`, or `bytes` where its cells hold the files themselves.
csv cells are text; the others keep their type, lists included (five captions of one picture).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vicjoint.files.cells import MISSING, CellError, as_text, file_of, file_path, is_empty, is_there
from vicjoint.files.guard import printable
from vicjoint.files.paths import user_path
from vicjoint.parts import Source
from vicjoint.registry import nearest, register
from vicjoint.sources.base import (
    SPLIT_NAMES,
    SourceError,
    TestFraction,
    check_apart,
    numbered,
    repeated,
    same_files,
    split_by_hash,
    split_of,
)
from vicjoint.sources.columns import ColumnRecords, Constant, Lacks, in_columns
from vicjoint.sources.rows import read_table, rows_of
from vicjoint.sources.vectors import Vectors

LOOKED_AT = 100  # a table whose first files are all missing has wrong paths, not bad samples
# keys of a record that are not the cell of that column
RESERVED = ("id", "path", "bytes", "folder", "second")


@register("source", "table")
class Table(Source):
    """A table of samples: csv or tsv (UTF-8, one header line; comma, semicolon or tab), jsonl (an object per
    line), json (a list of objects), all of them also as .gz, or parquet; records in the table's order.

    root: the file. column: the one with the path of a row's file, absolute or relative to the table's folder;
    `..` may lead out of it; or with the file's own bytes. A table without a column `path` has no such file;
    its cells are read by the pair cross_modal. id: the column that names a row where there is no path;
    without such a column it is the row's number. Names that come again get a number.
    split: the column that says train or training, or one of test, testing, val, valid, validation, dev, eval
    and evaluation, which all count as test. Without it, or with null, the split is by hash of the path or id;
    or of the column `split_by`, so that equal cells (the same molecule, the same speaker) are on one side.
    second: another table, whose rows supply column b of the pair cross_modal to the rows of this one that
    have an equal key; columns named `split` and `split_by` work in it as in the first, and equal cells of
    `split_by` are on the same side in both. needs: columns; rows where one of them is empty are left out, and
    counted in `describe` (an empty cell is a bad sample otherwise). vectors: {name: patterns of columns},
    such as {profile: [Cells_*, Nuclei_*]}: the columns of numbers that match make one column of vectors, for
    the modality features (of the first table). Columns named id, path, bytes, folder or
    second whose meaning in a record is another become table_id, table_path, ...
    """

    def __init__(
        self,
        root: str,
        column: str = "path",
        id: str = "id",
        split: str | None = "split",
        split_by: str | None = None,
        test_fraction: TestFraction = 0.15,
        second: str | None = None,
        needs: list[str] = (),
        vectors: dict[str, list[str]] | None = None,
    ):
        self.named = {"column": column, "id": id, "split": split, "split_by": split_by}
        tables = [_Rows(user_path(root).absolute(), self.named, needs, vectors or {})]
        self.root = tables[0].path
        if second is not None:
            tables.append(_Rows(user_path(second).absolute(), self.named, needs, {}, second=True))
        _check_needs(tables, needs)
        if split_by is not None:
            _split_together(tables, split_by, test_fraction)
        for table in tables:
            table.divide(split, test_fraction)
        self._description = "; second ".join(table.describe() for table in tables)
        self.train, self.test = tables[0].records()
        # split -> the records that column b of the pair cross_modal comes from
        self.second = dict(zip(("train", "test"), tables[1].records())) if second is not None else None

    def describe(self) -> str:
        return self._description

    def ids(self, split, side="a"):
        records = self.records(split, side)
        return records.column("id") if isinstance(records, ColumnRecords) else super().ids(split, side)

    def lacks(self, split, key):
        records = self.records(split)
        return records.lacks(key) if isinstance(records, ColumnRecords) else None


class _Rows:
    """One table file: the columns of its rows and, after `divide`, their sides. A million rows are a few
    lists here, and no million of dicts."""

    def __init__(
        self,
        path: Path,
        named: dict[str, str | None],
        needs: list[str],
        vectors: dict[str, list[str]],
        second: bool = False,
    ):
        self.path, self.vectors, self.second = path, Vectors(vectors), second
        self.lines, self.cells = read_table(self.vectors.gathered(path, rows_of(path)))
        self.header = header = list(self.cells)
        defaults = {"column": "path", "id": "id", "split": "split", "split_by": None}
        for (
            option,
            name,
        ) in named.items():  # one that the user named has to be there; in a second table only split_by
            if name is not None and name != defaults[option] and (not second or option == "split_by"):
                _check_column(path, option, name, header)
        self.numbers: Sequence[int] = range(len(self.lines))
        self.needs = [column for column in needs if column in header]
        if self.needs:
            self._leave_out()
        self.left_out = len(self.lines) - len(self.numbers)
        self.column = named["column"] if named["column"] in header else None
        self.name = named["id"] if named["id"] in header else None
        self.split = named["split"] if named["split"] in header else None
        if self.split and named["split_by"]:
            raise SourceError(
                f"table: {path} has a column '{self.split}', so split_by={named['split_by']} would not be"
                " used. Leave out split_by, or set split=null to divide the rows anew."
            )
        # of each row: its id, and of a table of files what its cell names or holds
        self.names, self.files = (
            (self._names(self.name), []) if self.column is None else self._files(self.column)
        )
        self.side: list[str] = []

    def _leave_out(self) -> None:
        rows = zip(*(self.cells[column] for column in self.needs))
        self.numbers = [number for number, cells in enumerate(rows) if not any(map(is_empty, cells))]
        if not self.numbers:
            raise SourceError(
                f"table: {self.path}: every row has an empty cell in one of the columns"
                f" {', '.join(self.needs)} (option needs). Leave it out."
            )
        if len(self.numbers) < len(self.lines):
            self.cells = {key: [cells[n] for n in self.numbers] for key, cells in self.cells.items()}

    def describe(self) -> str:
        left_out = (
            f" ({self.left_out} rows with an empty {' or '.join(self.needs)} are left out)"
            if self.left_out
            else ""
        )
        again = repeated(self.names, "rows") if self.column is None else ""
        said = f"{left_out}{again}{self.vectors.words()}"
        train, test = map(self.side.count, ("train", "test"))
        return f"table {self.path}: {train} train, {test} test records{said}"

    def _names(self, column: str | None) -> list[str]:
        numbered = (f"row {number + 1}" for number in self.numbers)
        if column is None:
            return list(numbered)
        named = zip(self.cells[column], numbered)
        return [other if is_empty(cell) else as_text({column: cell}, column) for cell, other in named]

    def _files(self, column: str) -> tuple[list[str], list[str | bytes | None]]:
        """(ids, files): a path, a file's bytes, or None where the cell is empty."""
        own, names, files = {"folder": str(self.path.parent)}, [], []
        folders: dict[str, tuple[str, str]] = {}  # as cells name them -> whole, and from the table's
        for number, cell in zip(self.numbers, self.cells[column]):
            plain = cell.strip() if isinstance(cell, str) and "\\" not in cell else ""
            before, slash, last = plain.rpartition("/")
            if (known := folders.get(before + slash)) is None:
                known = folders[before + slash] = _folder(own, before + slash)
            path, name = known[0] + last, known[1] + last
            if last in ("", ".", "..") or plain in MISSING or own["folder"].startswith(path):
                name, path = self._file(own | {"id": f"row {number + 1}"}, cell)
            names.append(name if name != plain else plain)
            files.append(path)
        return names, files

    def _file(self, own: dict, cell) -> tuple[str, str | bytes | None]:
        """Of any cell. What cannot be a path is one that does not exist: a bad sample, named when it is
        read."""
        try:
            found = None if is_empty(cell) else file_of(own, cell)
        except CellError:
            found = file_path(own, str(cell))
        if isinstance(found, dict):
            return found["id"], found["bytes"]
        name = own["id"] if found is None else Path(os.path.relpath(found, own["folder"])).as_posix()
        return name, found

    def divide(self, split: str | None, test_fraction: float) -> None:
        paths = {name: file for name, file in zip(self.names, self.files) if isinstance(file, str)}
        same = same_files(paths) if self.column is not None else {}
        keys = [same.get(name, name) for name in self.names]
        by_cells = bool(self.split or self.side)
        if self.split:
            self.side = list(map(self._side, (self.lines[n] for n in self.numbers), self.cells[self.split]))
        elif not self.side:
            unit = "row" if self.column is None else "file"
            by_hash = split_by_hash(list(dict.fromkeys(keys)), test_fraction, f"table {self.path}", unit)
            self.side = [by_hash[key] for key in keys]
        self._check(split)
        if by_cells:
            self._check_apart(keys)

    def _side(self, line: int, value) -> str:
        if (side := split_of(value)) is None:
            raise SourceError(
                f"table: {self.path}, line {line}: {self.split} is '{value}', expected one of {SPLIT_NAMES}."
            )
        return side

    def records(self) -> list[Sequence[dict]]:
        """Of both splits. The cells go into them: nothing else can be asked afterwards."""
        # a column that a record's key is made from is not kept twice
        meant = {"path": self.column, "bytes": self.column, "id": self.column or self.name}
        found: dict = {
            f"table_{k}" if k in RESERVED and meant.get(k) != k else k: v for k, v in self.cells.items()
        }
        found |= {"folder": Constant(str(self.path.parent))}
        found |= {"second": Constant(True)} if self.second else {}
        found["id"] = numbered(self.names)
        if self.column is not None:
            self._add_files(found)
        tests = np.array([side == "test" for side in self.side])
        self.cells, self.files = {}, []
        return in_columns(found, [np.flatnonzero(~tests), np.flatnonzero(tests)])

    def _add_files(self, columns: dict) -> None:
        """Set `path` and `bytes`, of which a record has one."""
        inside = [isinstance(file, bytes) for file in self.files]
        for key, has in (("path", [not i for i in inside]), ("bytes", inside)):
            if any(has):
                other = columns.get(key, [Lacks.KEY] * len(has))
                columns[key] = [file if own else cell for file, own, cell in zip(self.files, has, other)]

    def _check(self, split: str | None) -> None:
        for name in ("train", "test"):
            if name not in self.side:
                raise SourceError(
                    f"table: {self.path}: no row of column '{split}' says {name}. Mark some, or name another"
                    " split column."
                    if self.split
                    else (
                        f"table: {self.path}: the split by hash leaves no row for {name}. Change"
                        " test_fraction."
                    )
                )
        if self.column is not None:
            self._check_files()

    def _check_apart(self, keys: list[str]) -> None:
        names = lambda side: {name for name, its in zip(self.names, self.side) if its == side}
        if self.column is not None:
            check_apart("table", zip(self.names, self.side, keys))
        elif both := names("train") & names("test"):
            raise SourceError(
                f"table: {self.path}: rows named '{min(both)}' are in train and in test. Name another id"
                " column, or keep them on one side, or the test is on training data."
            )

    def _check_files(self) -> None:
        first = self.files[:LOOKED_AT]
        if not any(isinstance(file, bytes) or (file is not None and is_there(file)) for file in first):
            found = printable(first[0] or "an empty cell", 200)
            raise SourceError(
                f"table: {self.path}: none of the first {len(first)} files exists, the first is {found}."
                f" Paths are relative to the table's folder {self.path.parent}: correct them, or move it."
            )


def _folder(own: dict, folder: str) -> tuple[str, str]:
    """What stands before names of files in a folder of cells: of their whole paths, and of those from the
    table's folder."""
    whole = file_path(own, folder)
    relative = Path(os.path.relpath(whole, own["folder"])).as_posix()
    return os.path.join(whole, ""), "" if relative == "." else f"{relative}/"


def _check_needs(tables: list[_Rows], needs: list[str]) -> None:
    """Raises SourceError where no table has one of the columns."""
    for column in needs:
        if not any(column in table.header for table in tables):
            _check_column(tables[0].path, "needs", column, tables[0].header)


def _split_together(tables: list[_Rows], column: str, test_fraction: float) -> None:
    """Divide all tables by the hash of a column's cells, equal cells on one side."""
    cells = []
    for table in tables:
        try:
            cells.append([as_text({column: cell}, column) for cell in table.cells[column]])
        except CellError as error:
            raise SourceError(
                f"table: {table.path}: split_by: {error} in some row, expected a cell to split by."
            ) from None
    by_hash = split_by_hash(
        list(dict.fromkeys(cell for part in cells for cell in part)),
        test_fraction,
        f"table {tables[0].path}, column '{column}'",
        "value",
    )
    for table, part in zip(tables, cells):
        table.side = [by_hash[cell] for cell in part]


def _check_column(path: Path, option: str, name: str, header: list[str]) -> None:
    if name not in header:
        raise SourceError(
            f"table: {path} has no column '{name}' (option {option}).{nearest(name, header)} "
            f"Columns: {', '.join(header)}."
        )
