"""What becomes of a record in a shard: the files that its cells name are members of their own, the other
cells one .json member, a class a .cls member.

    layout = layout_of(source, facts)          # which columns hold files, for all records
    layout.members(record)                     # [Member("video.mp4", "/data/0.mp4"), Member("json", b"...")]
    layout.renamed()                           # columns that the source `webdataset` calls otherwise

A member's suffix is COLUMN.ENDING, COLUMN.NUMBER.ENDING of several values in one cell, or of the files that a
path with {channel} stands for, COLUMN.{CHANNEL}.ENDING; of records that are
one picture or one video and nothing else, it is the ending alone, as in shards everywhere.
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vicjoint.files.cells import (
    TIFF,
    CellError,
    Part,
    bytes_of,
    file_of,
    file_path,
    held,
    is_empty,
    resolved,
    text_of,
    values,
)
from vicjoint.files.guard import no_file, printable
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.parts import Record, Source
from vicjoint.sources.base import OWN, SourceError
from vicjoint.sources.members import CLASS_BYTES
from vicjoint.video import VIDEO_SUFFIXES

LOOKED_AT = 100  # records of a split that show which columns name files
CHANNEL = "{channel}"  # in a path: it stands for a file of each channel of a microscope
LONGEST_PATH = 4096  # characters; a longer cell is a text
NO_CELLS = ("id", "path", "bytes", "folder", "second", "label")  # of a record

File = str | dict
"""A path, or what `vicjoint.files.cells.bytes_of` reads."""


class Member(NamedTuple):
    """suffix: without a dot at its beginning. content: a file, or what stands in it."""

    suffix: str
    content: File | bytes

    @property
    def size(self) -> int:
        """Bytes. Raises OSError."""
        if isinstance(self.content, str):
            return os.stat(self.content).st_size
        if isinstance(self.content, bytes):
            return len(self.content)
        return len(self.content["bytes"]) if "bytes" in self.content else self.content["size"]


@dataclass
class Facts:
    """What a recipe knows of columns. files, texts: those that its modalities read as such. several: those
    whose cells hold several values, parts between `separator`."""

    files: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    several: dict[str, str | None] = field(default_factory=dict)

    def holds_files(self, records: list[Record], column: str) -> bool:
        """Whether some cell of the column is a file, or names one."""
        known = column in self.files
        return known or any(is_file(r, r.get(column), column in self.texts) for r in records)


@dataclass
class Layout:
    """files: columns whose cells name files. own: the one with the record's own file; None: there is none.
    cells: the other columns. alone: whether the own file is all that there is."""

    files: list[str]
    own: str | None
    cells: list[str]
    alone: bool
    several: Mapping[str, str | None]

    def members(self, record: Record) -> list[Member]:
        """Files first. Raises CellError naming the column of a file that cannot be read, and for a record
        without any member."""
        found = [member for column in self.files for member in self._files(record, column)]
        label = resolved(record.get("label"))
        if "label" not in self.cells and not is_empty(label):
            found.append(Member("cls", class_of(label)))
        if self.cells:
            cells = {"id": record["id"]} | {column: plain(record, column) for column in self.cells}
            text = json.dumps(cells, ensure_ascii=False, default=as_json)
            found.append(Member("json", text.encode("utf-8", "surrogatepass")))
        if not found:
            raise CellError("has no file and no cell")
        return found

    def _files(self, record: Record, column: str) -> Iterator[Member]:
        cell = own_file(record) if column == "path" else resolved(record.get(column))
        if is_empty(cell):
            return
        numbered = column in self.several or isinstance(cell, list)
        parts = cell if isinstance(cell, list) else [cell]
        if column in self.several and isinstance(cell, str):
            parts = values(record, column, True, self.several[column])
        for number, value in enumerate(parts):
            for channel, file in channels_of(record, column, value):
                if isinstance(value, Part) and not is_alias(
                    column, value
                ):  # packed anew: its suffix as it is
                    yield Member(column, file)
                    continue
                name = f"{column}.{number}" if numbered else column
                suffix = ending_of(file) if self.alone else name + channel + ending_of(file)
                yield Member(suffix.removeprefix("."), file)

    def source(self, root: str) -> dict[str, Any]:
        """The source that reads the shards."""
        column = {} if self.alone or not self.files else {"column": self.own or self.files[0]}
        return {"name": "webdataset", "root": root, **column}

    def renamed(self) -> dict[str, str]:
        """{column: what the source calls it}."""
        return {column: f"json_{column}" for column in self.cells if column in OWN}


def layout_of(source: Source, facts: Facts) -> Layout:
    """Of all records of both splits. Raises SourceError where there is nothing to pack."""
    first = [record for part in (source.train, source.test) for record in itertools.islice(part, LOOKED_AT)]
    inside = any("offset" in record for record in first)
    none = (*NO_CELLS, *(("offset", "size", "remote", "json", "cls") if inside else ()))
    columns = [
        column for column in dict.fromkeys(c for record in first for c in record) if column not in none
    ]
    columns = [column for column in columns if not any(is_alias(column, r.get(column)) for r in first)]
    files = [column for column in columns if facts.holds_files(first, column)]
    own = next((column for record in first if (column := own_column(record, files))), None)
    if own == "path":
        files.insert(0, "path")
    cells = [column for column in columns if column not in files]
    labels = [resolved(record.get("label")) for record in first]
    if not all(is_empty(label) or isinstance(label, str | int) for label in labels):
        cells.append("label")
    if not files and not cells and all(map(is_empty, labels)):
        raise SourceError(
            f"pack: the records of {source.describe()} have neither files nor cells, so there is nothing to"
            " pack. Expected a source of files or a table."
        )
    for column in files:
        if "/" in column or column.startswith(".") or not column.isprintable():
            raise SourceError(
                f"pack: column '{printable(column)}' holds files, and a member of a tar file cannot be called"
                " so. Rename it: no slash, and no dot at its beginning."
            )
    alone = files == ["path"] and of_one_kind(source)
    return Layout(files, own, cells, alone, facts.several)


def own_file(record: Record):
    """The record's own file, as the value of a cell; None: it has none."""
    if "bytes" in record:
        return {"bytes": bytes_of(record), "path": str(record["id"])}
    return held(record, "path") if record.get("path") is not None else None


def own_column(record: Record, files: list[str]) -> str | None:
    """The column whose cell is the record's own file; path where no other is; None: it has none."""
    if (own := own_file(record)) is None:
        return None
    for column in files:
        try:
            same = file_of(record, record.get(column))
        except CellError:
            continue
        if same == own or (
            "bytes" in record and isinstance(same, dict) and same.get("bytes") == own["bytes"]
        ):
            return column
    return "path"


def is_alias(column: str, value) -> bool:
    """Whether a cell of a record in a tar file has another column too: its member, by its suffix."""
    if isinstance(value, list):
        return any(isinstance(part, Part) for part in value)
    return isinstance(value, Part) and "key" not in value and not value["id"].endswith(f".{column}")


def is_file(record: Record, value, is_text: bool) -> bool:
    """Whether the value of a cell is a file, or names one."""
    if isinstance(value, list):
        return any(is_file(record, part, is_text) for part in value)
    value = resolved(value)
    if isinstance(value, Part):
        return "key" not in value
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    if isinstance(value, bytes):
        return True
    if is_text or not isinstance(value, str) or len(value) > LONGEST_PATH or not os.path.splitext(value)[1]:
        return False
    if CHANNEL in value:
        return True
    try:
        return os.path.isfile(file_path(record, value))
    except ValueError:  # a NUL character
        return False


def channels_of(record: Record, column: str, value) -> Iterator[tuple[str, File]]:
    """(what it adds to the suffix, file) of each file that a cell means: several, where its path has
    {channel} in the place of their names. Raises CellError."""
    path = file_path(record, value) if isinstance(value, str) else ""
    if CHANNEL not in path:
        yield "", checked(record, column, value)
        return
    parts = path.split(CHANNEL)
    wanted = "(.+)".join(re.escape(part) for part in parts[:2]) + "".join(
        rf"\1{re.escape(p)}" for p in parts[2:]
    )
    found = {
        match[1]: file
        for file in sorted(glob.glob("*".join(map(glob.escape, parts))))
        if (match := re.fullmatch(wanted, file)) and os.sep not in match[1]
    }
    if not found:
        raise CellError(f"column '{column}': {path}: no such file, whatever the channel")
    for channel, file in found.items():
        yield f".{{{channel}}}", checked(record, column, file)


def checked(record: Record, column: str, value) -> File:
    """The file that a cell means. Raises CellError where there is none, or an empty one."""
    where = "" if column == "path" else f"column '{column}': "
    try:
        file = file_of(record, value)
    except CellError as error:
        raise CellError(f"{where}{error}") from None
    cause = no_file(file, "data") if isinstance(file, str) else None
    if isinstance(file, dict) and not (file["bytes"] if "bytes" in file else file["size"]):
        file, cause = file["id"], "is empty (0 bytes)"
    if cause:
        raise CellError(f"{where}{file}: {cause}")
    return file


def ending_of(file: File) -> str:
    """With its dot, in lower case; none: an empty text."""
    if isinstance(file, str):
        return os.path.splitext(file)[1].lower()
    ending = os.path.splitext(file["id"])[1].lower()
    return ending or (".tif" if file.get("bytes", b"")[:4] in TIFF else "")


def of_one_kind(source: Source) -> bool:
    """Whether all own files are pictures, or all are videos, by their names."""
    endings = {
        os.path.splitext(str(record.get("path") or ""))[1].lower()
        for part in (source.train, source.test)
        for record in part
    }
    return endings <= set(IMAGE_SUFFIXES) or endings <= set(VIDEO_SUFFIXES)


def class_of(label) -> bytes:
    """What a member `cls` holds. Raises CellError."""
    text = str(label)
    content = text.encode("utf-8", "surrogatepass")
    if not isinstance(label, str | int) or text != text.strip() or len(content) > CLASS_BYTES:
        raise CellError(
            f"label: {text[:50]!r} is no class: expected a text without blanks at its ends, of at most"
            f" {CLASS_BYTES} bytes"
        )
    return content


def plain(record: Record, column: str):
    """A cell as JSON holds it; None for one that is not a number. Raises CellError."""
    value = text_of(record.get(column))
    return None if isinstance(value, float) and is_empty(value) else value


def as_json(value) -> str:
    """What JSON has no form for: a time, a decimal number. Raises CellError."""
    if isinstance(value, bytes):
        raise CellError("a cell holds bytes among other values, or where others of its column hold texts")
    return str(value)
