"""The rows of a table: one after the other, or all of them.

csv and tsv are one format, whose separator (comma, semicolon or tab) is found; blanks around names and cells
do not count. jsonl has an object a line, json a list of them. A name that ends in .gz too is unpacked.

for line, row in rows_of(Path("index.csv")): ...        # memory for a few rows, whatever the file's size
header, rows = read_table(rows_of(Path("index.tsv.gz")))
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.sources.base import SourceError

FORMAT_OF = {
    **{".csv": "csv", ".tsv": "csv", ".tab": "csv"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"},
}
FORMATS = "csv, tsv, json, jsonl or parquet"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
LOOKED_AT = 20  # rows that show which one separates
AT_ONCE = 1024  # rows of a parquet file
CHUNK = 1 << 20  # bytes
csv.field_size_limit(2**31 - 1)  # a cell may hold a document; the module's own limit is 128 KiB

Row = tuple[int, dict[str, Any]]
"""Line (in a json or parquet file: number) of a row, from 1, and its cells by column."""


def format_of(path: Path) -> str | None:
    """csv, jsonl, json or parquet, by the name; None: no table."""
    ending, compressed = path.suffix.lower(), path.suffix.lower() == ".gz"
    found = FORMAT_OF.get(Path(path.stem).suffix.lower() if compressed else ending)
    return None if compressed and found == "parquet" else found


def read_table(rows: Iterable[Row]) -> tuple[list[str], list[Row]]:
    """(columns, rows) of a table; every row has every column."""
    rows = list(rows)
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    whole = lambda row: row if len(row) == len(header) else {key: row.get(key) for key in header}
    return header, [(line, whole(row)) for line, row in rows]


def rows_of(path: Path) -> Iterator[Row]:
    """The rows in order; those of a json or jsonl file may lack columns that others have. Raises SourceError
    where the file cannot be read, also in its middle, and where it has no row."""
    kind = check_file(path)
    some = False
    try:
        for row in {"csv": _csv, "jsonl": _jsonl, "json": _json, "parquet": _parquet}[kind](path):
            some = True
            yield row
    except UnicodeDecodeError as error:
        reason, place = _undecodable(path) or (error.reason, error.start)
        raise SourceError(
            f"table: {path} is not UTF-8: {reason} at byte {place}. Save it as UTF-8."
        ) from None
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"table: cannot read {path}: {error}. Expected a {kind} file"
            f"{'' if kind == 'parquet' else ' in UTF-8'}."
        ) from None
    if not some:
        raise SourceError(
            f"table: {path} is empty, expected {'a header line and ' if kind == 'csv' else ''}at"
            " least two rows."
        )


def check_file(path: Path) -> str:
    """The format of a table. Raises SourceError for what cannot be one."""
    if not path.exists():
        raise SourceError(f"table: root {path} does not exist. Expected a {FORMATS} file: check the path.")
    if path.is_dir():
        tables = sorted(p.name for p in path.iterdir() if format_of(p))
        raise SourceError(
            f"table: root {path} is a folder, expected a {FORMATS} file. "
            f"Found there: {', '.join(tables[:5]) or 'none of them'}."
        )
    if (kind := format_of(path)) is None:
        raise SourceError(
            f"table: {path} ends in '{path.suffix}', expected one of {' '.join(FORMAT_OF)}, or with .gz after"
            " it. Rename or convert it."
        )
    return kind


def _bytes(path: Path):
    """The file, open for reading bytes, unpacked."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")


def _csv(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", newline="") as file:
        separator = _separator(file)
        file.seek(0)
        header, first, line, last, lines = None, 1, 0, [], []  # lines: of the row that is read
        for cells in _reader(_kept(file, lines), separator):
            first, line, last = line + 1, line + len(lines), [*lines]
            lines.clear()
            if not cells:
                continue
            cells = [cell.strip() for cell in cells]
            if header is None:
                header = cells
                _check_twice(path, header)
                continue
            if len(cells) != len(header):
                raise SourceError(
                    f"table: {path}, line {first}: {len(cells)} fields, the header has {len(header)}. Put"
                    f" quotes around values with {SEPARATORS[separator]}."
                )
            yield line, dict(zip(header, cells))
        if last and len(list(_reader([*last, '"'], separator))) == 1:
            raise SourceError(
                f"table: {path}, line {first}: a quote begins there and does not end, so all that follows"
                " would be one value. Close it."
            )


def _kept(file: Iterable[str], lines: list[str]) -> Iterator[str]:
    """The lines of a file, put down in `lines` as well."""
    for line in file:
        lines.append(line)
        yield line


def _reader(lines: Iterable[str], separator: str):
    return csv.reader(lines, delimiter=separator, skipinitialspace=True)


def _separator(file: io.TextIOWrapper) -> str:
    """The one that cuts the header into most fields; rather one that cuts the next rows into as many."""
    found = {}
    for separator in SEPARATORS:
        file.seek(0)
        fields = [len(row) for row in itertools.islice(_reader(file, separator), LOOKED_AT) if row] or [0]
        found[separator] = (fields[0] > 1 and len(set(fields)) == 1, fields[0])
    return max(found, key=lambda separator: found[separator])


def _json(path: Path) -> Iterator[Row]:
    """A list; or objects line by line, which many call .json, too."""
    with _bytes(path) as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        is_list = head.startswith(b"[")
        text = (head + file.read()).decode("utf-8") if is_list else ""
    if not is_list:
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"table: {path} is not JSON: {error}. Expected a list of objects.") from None
    for number, row in enumerate(rows, 1):
        yield number, _object(path, number, row)


def _object(path: Path, line: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SourceError(
            f"table: {path}, line {line}: is {type(row).__name__}, expected an object such as"
            ' {"path": "a.png"}.'
        )
    return row


def _jsonl(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f'table: {path}, line {line}: is not JSON: {error}. Expected an object such as {{"path":'
                    ' "a.png"}.'
                ) from None
            yield line, _object(path, line, row)


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with open_parquet(path) as file:
        _check_twice(path, file.schema_arrow.names)
        try:
            for batch in file.iter_batches(AT_ONCE):
                names = batch.schema.names
                for cells in zip(*map(_cells, batch.columns)):
                    number += 1
                    yield number, dict(zip(names, cells))
        except _arrow_error() as error:
            raise _unreadable(path, error) from None


def _cells(column) -> list:
    """Of a pyarrow column; lists of floats, and lists of those, as numpy arrays: an eighth of the memory."""
    from pyarrow import types

    depth, kind = 0, column.type
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    if depth not in (1, 2) or not types.is_floating(kind):
        return column.to_pylist()
    return [_array(cell, depth) for cell in column]


def _array(cell, depth: int) -> Any:
    """Of a pyarrow scalar; None for null, a list where the inner lists differ in length."""
    if not cell.is_valid:
        return None
    if depth == 1:
        return cell.values.to_numpy(zero_copy_only=False)
    rows = [_array(row, 1) for row in cell.values]
    same = bool(rows) and all(row is not None and len(row) == len(rows[0]) for row in rows)
    return np.stack(rows) if same else rows


def open_parquet(path: Path):
    """A pyarrow ParquetFile. Raises SourceError."""
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except _arrow_error() as error:
        raise _unreadable(path, error) from None


def _arrow_error() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return ArrowException, OSError  # it has both for damaged files


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"table: cannot read {path}: {str(error).splitlines()[0].rstrip('.')}. Expected a parquet file."
    )


def _check_twice(path: Path, header: list[str]) -> None:
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise SourceError(f"table: {path} has two columns named '{twice[0]}'. Rename one.")


def _undecodable(path: Path) -> tuple[str, int] | None:
    """(reason, place) of the first byte of a file that is not UTF-8."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with _bytes(path) as file:
        while chunk := file.read(CHUNK):
            waiting = len(decoder.getstate()[0])  # bytes of a letter that is not yet whole
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return error.reason, before - waiting + error.start
            before += len(chunk)
    return None
