"""What the records of a source hold: one file each, or the cells of a table's columns.

    record = {"id": "7", "folder": "/data/table", "picture": "png/7.png", "caption": ["a dog", "a brown dog"]}
    values(record, "caption")                 # ["a dog", "a brown dog"]
    file_path(record, "png/7.png")            # /data/table/png/7.png

A record of a table has `folder`, the folder of the table, which relative paths start from. Absolute paths
stay as they are and `..` may lead out of the folder: a table is trusted as far as the user who wrote its name
into a recipe.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from vicjoint.files.arrays import numbers
from vicjoint.files.inside import Inside, content_of
from vicjoint.files.kept import Kept
from vicjoint.files.rows import value_of
from vicjoint.registry import nearest

TIFF = (b"II*\0", b"MM\0*")  # how such a file begins, where no name says so
# as pandas, numpy, R, SQL and spreadsheets write it; "none" is a class
MISSING = frozenset(
    {"", "nan", "NaN", "null", "NULL", "Null", "None", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT"}
)
SMALL = 1 << 14  # bytes of JSON


class CellError(ValueError):
    """A cell that is missing or empty; the message names the column."""


class Part(dict):
    """A part of a tar file, as the value of a cell: what `images.read_record` reads; with a `key`, the value
    that the part's JSON has there; with a `key` and a `row`, a cell of a parquet file elsewhere
    (vicjoint.files.rows); with `channels`, an image whose channels are parts {name: Part}."""

    kept: Kept | None = None
    """Where its source keeps the JSON of small parts."""


def of_channels(before: Part | None, part: Part, channel: str) -> Part:
    """The image with one channel more; its id has {channel} in the place of a name, as in paths of tables."""
    name = part["id"].replace(f"{{{channel}}}", "{channel}")
    return Part(id=name, channels={**(before or {}).get("channels", {}), channel: part})


def path_of(record: dict) -> str:
    """The path of the record's file. Raises CellError for a record without one, as of a table that has no
    column of paths."""
    if record.get("path") is None:
        raise CellError(
            "the cell that names its file is empty"
            if "path" in record
            else "the record has no file: its table has no column 'path'. Name the column with the files:"
            " source.column=..."
        )
    return record["path"]


def file_path(record: dict, value) -> str:
    """The absolute path that a cell's value means; a backslash parts folders as on Windows, where no file has
    it in its name. Raises CellError where the value is no text."""
    if not isinstance(value, str):
        raise CellError(f"expected the path of a file, got {type(value).__name__} {str(value)[:50]}")
    path = os.path.normpath(os.path.join(record.get("folder", ""), value.strip()))
    return path if "\\" not in path or os.path.exists(path) else os.path.normpath(path.replace("\\", "/"))


def is_there(path: str) -> bool:
    """Whether a path exists; of one with a # behind it (vicjoint.files.arrays) the file, of a numbered
    pattern (vicjoint.files.films) the folder."""
    folder, name = os.path.split(path)
    return any(map(os.path.exists, (path, path.partition("#")[0]))) or (
        "%" in name and os.path.isdir(folder or ".")
    )


def file_of(record: dict, value) -> str | dict:
    """The file that a cell means: its absolute path; or where the cell is a Part or holds the file (bytes, or
    {bytes, path} as in data sets of Hugging Face), what `images.read_record` reads. Raises CellError for
    anything else."""
    value = resolved(value)
    if isinstance(value, Part):
        return value
    content = value.get("bytes") if isinstance(value, dict) else value
    name = value.get("path") if isinstance(value, dict) else None
    if isinstance(content, bytes):
        return {"id": name or record.get("id", "a cell"), "bytes": content}
    return file_path(record, name or value)


def as_read(record: dict, value, reads: str):
    """A value of a cell as a modality takes it that `reads` files, texts or numbers (a list, which becomes an
    array, or the path of a file). Raises CellError."""
    if reads == "text":
        return text_of(value)
    if reads == "numbers" and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise CellError(f"{value[:50]!r} is no list of numbers in JSON: {error}") from None
    if reads == "numbers" and isinstance(value, (list, np.ndarray)):
        return numbers(value, "")
    return file_of(record, value)


def held(record: dict, column: str):
    """The value of a cell. `path` of a record that lies in a tar file is a Part: its own file."""
    if column != "path" or "offset" not in record:
        return record[column]
    place = {key: record[key] for key in ("path", "offset", "size", "remote") if key in record}
    parts = (v for v in record.values() if isinstance(v, Part) and "key" not in v)
    return next((v for v in parts if v.get("offset") == record["offset"]), Part(place, id=record["id"]))


def cell(record: dict, column: str):
    """The value of a cell that is no file; None where it is empty or not there. Raises CellError."""
    found = text_of(record.get(column))
    return None if is_empty(found) else found


def text_of(value):
    """A cell that is no file: bytes and a Part as text, or what the Part's JSON has under its key. Raises
    CellError."""
    value = resolved(value)
    part = isinstance(value, Part)
    if not part and not isinstance(value, bytes):
        return value
    try:
        if part and "key" in value:
            return _object_of(value).get(value["key"])
        return (bytes_of(value) if part else value).decode().removeprefix("\ufeff").strip()
    except (ValueError, RecursionError, AttributeError, KeyError) as error:
        what = "JSON object" if part and "key" in value else "text in UTF-8"
        raise CellError(f"{value['id'] if part else 'a cell'} is no {what}: {error}") from None


def _object_of(part: Part):
    """The JSON of a part; a small one is read once by a source that keeps it. Raises as reading does."""
    kept, name = part.kept, (part["path"], part["offset"])
    if kept is not None and (found := kept.get(name)) is not None:
        return found
    text = bytes_of(part)
    found = json.loads(text.decode().removeprefix("\ufeff"))
    if kept is not None and len(text) <= SMALL:
        kept.add(name, found, 10 * len(text))  # about what it takes
    return found


def resolved(value):
    """The value of a cell, read now where it stands in a file elsewhere. Raises OSError."""
    if not (isinstance(value, Part) and "row" in value):
        return value
    found, names = value_of(value), value.get("names")
    if names is None or found is None:
        return found
    return names[found] if found >= 0 else None


@contextlib.contextmanager
def as_path(file: Any) -> Iterator[Any]:
    """What `file_of` gives as a path: what lies in a cell or a tar file is written to a file that is there
    while this is entered; numbers stay what they are. Raises as reading does, with a name in place of that
    file's."""
    if not isinstance(file, dict):
        yield file
        return
    if "channels" in file:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "{channel}" + os.path.splitext(file["id"])[1])
            for channel, part in file["channels"].items():
                with open(path.replace("{channel}", channel), "wb") as out:
                    out.write(bytes_of(part))
            try:
                yield path
            except (ValueError, OSError) as error:
                raise CellError(str(error).replace(os.path.join(folder, ""), f"{file['id']}: ")) from error
        return
    content = bytes_of(file)
    ending = os.path.splitext(file["id"])[1] or (".tif" if content[:4] in TIFF else "")
    handle, path = tempfile.mkstemp(ending)
    try:
        with open(handle, "wb") as out:
            out.write(content)
        yield path
    except (ValueError, OSError) as error:
        raise CellError(str(error).replace(path, file["id"])) from error
    finally:
        os.unlink(path)


def opened(record: dict) -> contextlib.AbstractContextManager[str]:
    """The path of a record's own film: a name inside of a tar file, or as `as_path` gives it."""
    if "bytes" in record:
        return as_path(record)
    return contextlib.nullcontext(Inside(held(record, "path")) if "offset" in record else path_of(record))


def bytes_of(file: dict) -> bytes:
    """The content of a file that lies in a cell or a tar file. Raises OSError, CellError."""
    if not isinstance(own := file.get("bytes"), Part):
        return own if "bytes" in file else content_of(file)
    if is_empty(found := resolved(own)):
        raise CellError(f"column '{own['key']}' is empty")
    if not isinstance(found := file_of(file, found), dict):
        raise CellError(f"column '{own['key']}' names the file {found}, and files elsewhere hold their own")
    return found["bytes"]


def compared(value) -> str:
    """A text that is equal for equal values, of which bytes and arrays may be a part."""

    def digest(part) -> str:
        content = part.tobytes() if isinstance(part, np.ndarray) else part
        return f"sha256 {hashlib.sha256(content).hexdigest()}" if isinstance(content, bytes) else str(part)

    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=digest)


def values(record: dict, column: str, several: bool = False, separator: str | None = None) -> list:
    """What the cell of `column` holds: one value, or several.

    A list of texts (jsonl, parquet) or of Parts is several values. A text is one, unless `several`: then it
    is a JSON list, or parts between `separator`. Numbers become text; anything else (a list of numbers, a
    mapping) is one value as it is. Raises CellError.
    """
    check_column(column, record)
    value = resolved(held(record, column))
    if isinstance(value, Part) and (several or "key" in value):
        value = text_of(value)
    found = _split(value, separator) if several and isinstance(value, str) else value
    many = isinstance(found, list) and found and all(isinstance(v, str | Part) for v in found)
    found = found if many else [found]
    found = [str(v) if isinstance(v, (int, float)) else v for v in found]
    found = [v for v in found if not is_empty(v)]
    if not found:
        raise CellError(f"column '{column}' is empty")
    return found


def is_empty(value) -> bool:
    """The one rule for a cell without a value, wherever one is read: None, not a number, no bytes, an empty
    list, a mapping of none but those, and a text that is blank or one of MISSING."""
    if isinstance(value, str):
        return value.strip() in MISSING
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, (list, bytes)) and not value)


def _split(cell: str, separator: str | None):
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass  # a text that begins with a bracket
    return [part.strip() for part in cell.split(separator)] if separator else cell


def as_text(record: dict, column: str) -> str:
    """A cell as the text by which keys, groups and equal values are compared. Raises CellError where it is
    empty."""
    check_column(column, record)
    if (found := cell(record, column)) is None:
        raise CellError(f"column '{column}' is empty")
    return compared(found).strip()


def check_column(column: str, columns, option: str = "") -> None:
    """Raises CellError, with the nearest name, where `column` is none of `columns`; `option` says which
    option names it."""
    if column not in columns:
        named = f"{option}: " if option else ""
        raise CellError(
            f"{named}column '{column}' is not in the table; columns:"
            f" {', '.join(map(str, columns))}.{nearest(column, columns)}"
        )
