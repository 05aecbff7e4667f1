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
from pathlib import Path

from vicjoint.files.cells import CellError, as_text, file_of, file_path, is_empty, is_there
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
from vicjoint.sources.columns import ColumnRecords, in_columns
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
        self.train, self.test = map(in_columns, tables[0].sides())
        # split -> the records that column b of the pair cross_modal comes from
        self.second = dict(zip(("train", "test"), tables[1].sides())) if second is not None else None
        self._description = "; second ".join(table.describe() for table in tables)

    def describe(self) -> str:
        return self._description

    def lacks(self, split, key):
        records = self.records(split)
        return records.lacks(key) if isinstance(records, ColumnRecords) else None


class _Rows:
    """One table file: its records and, after `divide`, their sides."""

    def __init__(
        self,
        path: Path,
        named: dict[str, str | None],
        needs: list[str],
        vectors: dict[str, list[str]],
        second: bool = False,
    ):
        self.path, self.vectors = path, Vectors(vectors)
        self.header, rows = header, rows = read_table(self.vectors.gathered(path, rows_of(path)))
        defaults = {"column": "path", "id": "id", "split": "split", "split_by": None}
        for (
            option,
            name,
        ) in named.items():  # one that the user named has to be there; in a second table only split_by
            if name is not None and name != defaults[option] and (not second or option == "split_by"):
                _check_column(path, option, name, header)
        has = [column for column in needs if column in header]
        kept = [
            (number, line, row)
            for number, (line, row) in enumerate(rows)
            if not any(is_empty(row[column]) for column in has)
        ]
        if not kept:
            raise SourceError(
                f"table: {path}: every row has an empty cell in one of the columns {', '.join(has)} (option"
                " needs). Leave it out."
            )
        self.left_out, self.needs = len(rows) - len(kept), has
        self.lines, self.rows = [line for _, line, _ in kept], [row for _, _, row in kept]
        self.column = named["column"] if named["column"] in header else None
        self.name = named["id"] if named["id"] in header else None
        self.split = named["split"] if named["split"] in header else None
        if self.split and named["split_by"]:
            raise SourceError(
                f"table: {path} has a column '{self.split}', so split_by={named['split_by']} would not be"
                " used. Leave out split_by, or set split=null to divide the rows anew."
            )
        self.second = second
        records = [self._record(number, row) for number, _, row in kept]
        self.names = [record["id"] for record in records]
        self.records = [r | {"id": own} for r, own in zip(records, numbered(self.names))]
        self.side: list[str] = []

    def describe(self) -> str:
        train, test = self.sides()
        left_out = (
            f" ({self.left_out} rows with an empty {' or '.join(self.needs)} are left out)"
            if self.left_out
            else ""
        )
        again = repeated(self.names, "rows") if self.column is None else ""
        said = f"{left_out}{again}{self.vectors.words()}"
        return f"table {self.path}: {len(train)} train, {len(test)} test records{said}"

    def _record(self, number: int, row: dict) -> dict:
        folder = self.path.parent
        own: dict = {"folder": str(folder)} | ({"second": True} if self.second else {})
        own["id"] = f"row {number + 1}"
        if self.column is not None:
            found = self._file(own, row[self.column])
            own |= found if isinstance(found, dict) else {"path": found}
            if isinstance(found, str):
                own["id"] = Path(os.path.relpath(found, folder)).as_posix()
        elif self.name is not None and not is_empty(row[self.name]):
            own["id"] = as_text(row, self.name)
        # a column that a record's key is made from is not kept twice
        meant = {"path": self.column, "bytes": self.column, "id": self.column or self.name}
        others = {f"table_{k}" if k in RESERVED and meant.get(k) != k else k: v for k, v in row.items()}
        return {**others, **own}

    def _file(self, own: dict, cell) -> str | dict | None:
        """None: there is none. What cannot be a path is one that does not exist: a bad sample, named when it
        is read."""
        try:
            return None if is_empty(cell) else file_of(own, cell)
        except CellError:
            return file_path(own, str(cell))

    def divide(self, split: str | None, test_fraction: float) -> None:
        files = {name: r["path"] for name, r in zip(self.names, self.records) if r.get("path") is not None}
        same = same_files(files) if self.column is not None else {}
        keys = [same.get(name, name) for name in self.names]
        if self.split:
            self.side = [self._side(line, row[self.split]) for line, row in zip(self.lines, self.rows)]
        elif not self.side:
            unit = "row" if self.column is None else "file"
            by_hash = split_by_hash(list(dict.fromkeys(keys)), test_fraction, f"table {self.path}", unit)
            self.side = [by_hash[key] for key in keys]
        self._check(split, keys)

    def _side(self, line: int, value) -> str:
        if (side := split_of(value)) is None:
            raise SourceError(
                f"table: {self.path}, line {line}: {self.split} is '{value}', expected one of {SPLIT_NAMES}."
            )
        return side

    def sides(self) -> tuple[list[dict], list[dict]]:
        train, test = (
            [r for r, side in zip(self.records, self.side) if side == wanted] for wanted in ("train", "test")
        )
        return train, test

    def _check(self, split: str | None, keys: list[str]) -> None:
        train, test = self.sides()
        for name, part in (("train", train), ("test", test)):
            if not part:
                raise SourceError(
                    f"table: {self.path}: no row of column '{split}' says {name}. Mark some, or name another"
                    " split column."
                    if self.split
                    else (
                        f"table: {self.path}: the split by hash leaves no row for {name}. Change"
                        " test_fraction."
                    )
                )
        names = lambda side: {name for name, its in zip(self.names, self.side) if its == side}
        if self.column is not None:
            self._check_files()
            check_apart("table", zip(self.names, self.side, keys))
        elif both := names("train") & names("test"):
            raise SourceError(
                f"table: {self.path}: rows named '{min(both)}' are in train and in test. Name another id"
                " column, or keep them on one side, or the test is on training data."
            )

    def _check_files(self) -> None:
        first = self.records[:LOOKED_AT]
        if not any("bytes" in r or (r["path"] is not None and is_there(r["path"])) for r in first):
            found = printable(first[0]["path"] or "an empty cell", 200)
            raise SourceError(
                f"table: {self.path}: none of the first {len(first)} files exists, the first is {found}."
                f" Paths are relative to the table's folder {self.path.parent}: correct them, or move it."
            )


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
            cells.append([as_text(row, column) for row in table.rows])
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
