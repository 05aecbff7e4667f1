"""What the records of a source hold: one file each, or the cells of a table's columns.

    record = {"id": "7", "folder": "/data/table", "picture": "png/7.png", "caption": ["a dog", "a brown dog"]}
    values(record, "caption")                 # ["a dog", "a brown dog"]
    file_path(record, "png/7.png")            # /data/table/png/7.png

A record of a table has `folder`, the folder of the table, which relative paths start from. Absolute paths
stay as they are and `..` may lead out of the folder: a table is trusted as far as the user who wrote its name
into a recipe.
"""

import json
import math
import os

from vicjoint.registry import nearest

# as pandas, numpy, R, SQL and spreadsheets write it; "none" is a class
MISSING = frozenset(
    {"", "nan", "NaN", "null", "NULL", "Null", "None", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT"}
)


class CellError(ValueError):
    """A cell that is missing or empty; the message names the column."""


def path_of(record: dict) -> str:
    """The path of the record's file. Raises CellError for a record without one, as of a table that has no
    column of paths."""
    if record.get("path") is None:
        raise CellError(
            "the record has no file: its table has no column 'path'. Name the column with the files:"
            " source.column=..."
        )
    return record["path"]


def file_path(record: dict, value) -> str:
    """The absolute path that a cell's value means. Raises CellError where the value is no text."""
    if not isinstance(value, str):
        raise CellError(f"expected the path of a file, got {type(value).__name__} {str(value)[:50]}")
    return os.path.normpath(os.path.join(record.get("folder", ""), value.strip()))


def values(record: dict, column: str, several: bool = False, separator: str | None = None) -> list:
    """What the cell of `column` holds: one value, or several.

    A list of texts (jsonl, parquet) is several values. A text is one, unless `several`: then it is a JSON
    list, or parts between `separator`. Numbers become text; anything else (a list of numbers, a mapping) is
    one value as it is. Raises CellError.
    """
    check_column(column, record)
    cell = record[column]
    found = _split(cell, separator) if several and isinstance(cell, str) else cell
    found = found if isinstance(found, list) and found and all(isinstance(v, str) for v in found) else [found]
    found = [str(v) if isinstance(v, (int, float)) else v for v in found]
    found = [v for v in found if not is_empty(v)]
    if not found:
        raise CellError(f"column '{column}' is empty")
    return found


def is_empty(value) -> bool:
    """The one rule for a cell without a value, wherever one is read: None, not a number, an empty list, and a
    text that is blank or one of MISSING."""
    if isinstance(value, str):
        return value.strip() in MISSING
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (list, bytes)) and not value)


def _split(cell: str, separator: str | None):
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            pass  # a text that begins with a bracket
    return [part.strip() for part in cell.split(separator)] if separator else cell


def as_text(record: dict, column: str) -> str:
    """A cell as the text by which keys, groups and equal values are compared. Raises CellError where it is
    empty."""
    check_column(column, record)
    cell = record[column]
    if is_empty(cell):
        raise CellError(f"column '{column}' is empty")
    return cell.strip() if isinstance(cell, str) else json.dumps(cell, sort_keys=True, default=str)


def check_column(column: str, columns, option: str = "") -> None:
    """Raises CellError, with the nearest name, where `column` is none of `columns`; `option` says which
    option names it."""
    if column not in columns:
        named = f"{option}: " if option else ""
        raise CellError(
            f"{named}column '{column}' is not in the table; columns:"
            f" {', '.join(map(str, columns))}.{nearest(column, columns)}"
        )
