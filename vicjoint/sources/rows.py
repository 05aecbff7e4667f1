"""The rows of a csv, jsonl or parquet file: one after the other, or all of them.

for line, row in rows_of(Path("index.csv")): ...        # memory for a few rows, whatever the file's size
header, rows = read_table(Path("index.csv"))
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vicjoint.sources.base import SourceError

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
AT_ONCE = 1024  # rows of a parquet file
CHUNK = 1 << 20  # bytes

Row = tuple[int, dict[str, Any]]
"""Line (in a parquet file: number) of a row, from 1, and its cells by column."""


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """(columns, rows) of a csv, jsonl or parquet file; every row has every column. Raises SourceError."""
    rows = list(rows_of(path))
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    whole = lambda row: row if len(row) == len(header) else {key: row.get(key) for key in header}
    return header, [(line, whole(row)) for line, row in rows]


def rows_of(path: Path) -> Iterator[Row]:
    """The rows in order; those of a jsonl file may lack columns that others have. Raises SourceError where
    the file cannot be read, also in its middle, and where it has no row."""
    check_file(path)
    some = False
    try:
        for row in {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()](path):
            some = True
            yield row
    except UnicodeDecodeError as error:
        reason, place = _undecodable(path) or (error.reason, error.start)
        raise SourceError(
            f"table: {path} is not UTF-8: {reason} at byte {place}. Save it as UTF-8."
        ) from None
    except (csv.Error, OSError) as error:
        raise SourceError(
            f"table: cannot read {path}: {error}. Expected a {path.suffix[1:]} file"
            f"{'' if path.suffix == '.parquet' else ' in UTF-8'}."
        ) from None
    if not some:
        raise SourceError(
            f"table: {path} is empty, expected {'a header line and ' if path.suffix == '.csv' else ''}at"
            " least two rows."
        )


def check_file(path: Path) -> None:
    """Raises SourceError for what cannot be a table."""
    if not path.exists():
        raise SourceError(
            f"table: root {path} does not exist. Expected a csv, jsonl or parquet file: check the path."
        )
    if path.is_dir():
        tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
        raise SourceError(
            f"table: root {path} is a folder, expected a csv, jsonl or parquet file. "
            f"Found there: {', '.join(tables[:5]) or 'none of them'}."
        )
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise SourceError(
            f"table: {path} ends in '{path.suffix}', expected one of {' '.join(TABLE_SUFFIXES)}. Rename or"
            " convert it."
        )


def _csv(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header: list[str] | None = None
        for row in reader:
            if not row:
                continue
            if header is None:
                header = row
                _check_twice(path, header)
                continue
            if len(row) != len(header):
                raise SourceError(
                    f"table: {path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}."
                    " Put quotes around values with commas."
                )
            yield reader.line_num, dict(zip(header, row))


def _jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise SourceError(
                    f'table: {path}, line {line}: is not JSON: {error}. Expected an object such as {{"path":'
                    ' "a.png"}.'
                ) from None
            if not isinstance(row, dict):
                raise SourceError(
                    f"table: {path}, line {line}: is {type(row).__name__}, expected an object such as"
                    ' {"path": "a.png"}.'
                )
            yield line, row


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with open_parquet(path) as file:
        _check_twice(path, file.schema_arrow.names)
        try:
            for batch in file.iter_batches(AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except _arrow_error() as error:
            raise _unreadable(path, error) from None


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
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            waiting = len(decoder.getstate()[0])  # bytes of a letter that is not yet whole
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return error.reason, before - waiting + error.start
            before += len(chunk)
    return None
