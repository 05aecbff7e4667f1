"""What is in tar shards: their members, found by reading headers once and kept in the cache folder, or in the
index that `python -m vicjoint.pack` writes beside its shards.

    listing = list_shard(file, "cls")            # one shard
    listing.table                                # a row for each member: key, suffix, offset, size, text
    listing.cut                                  # None, or where the shard ends too early

A pack's folder has `manifest.json` ({"format": 1, "shards": [{name, bytes, sha256, samples}], "samples",
"splits": {split: [names]}, "json_keys"}) and `index.parquet`, with the rows of all shards and their number in
the manifest as a column `shard`.
"""

import hashlib
import json
import os
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vicjoint.files.cache import cache_root

INDEX_VERSION = 2
BLOCK = 512  # bytes of a header; contents fill whole blocks
SETTLED = 2.0  # seconds: a file that was changed just now may change again without another time
CLASS_BYTES = 256  # of a member that holds a class
OF_CLASS = "cls"  # the suffix whose content an index of a pack has
FORMAT = 1  # of a pack


class Listing(NamedTuple):
    """What is in a shard: a pyarrow table of its members, what was passed over, and where the shard ends too
    early, in words."""

    table: Any
    passed: Counter[str]
    cut: str | None


class Member(NamedTuple):
    name: str
    offset: int
    size: int
    kind: str | None
    """Why it is none to read: hidden, sparse, no file; "" for folders; None: it is a file."""


def schema():
    import pyarrow as pa

    text, number = pa.large_string(), pa.int64()
    return pa.schema([("key", text), ("suffix", text), ("offset", number), ("size", number), ("text", text)])


# ---- a shard's headers ----


def list_shard(file: BinaryIO, label: str) -> Listing:
    """The members of an open shard; only headers and classes (the text of members with the suffix `label`)
    are read. A shard that ends too early gives what it has; its last member may not be whole. Raises
    tarfile.TarError where it is none."""
    import pyarrow as pa

    columns, passed = [[] for _ in schema()], Counter()
    keys, suffixes, offsets, sizes, texts = columns
    last, size = None, file.seek(0, os.SEEK_END)
    members = members_of(file)
    while True:
        try:
            last = member = next(members)
        except StopIteration as end:
            cut = end.value
            break
        if member.kind is not None:
            passed[member.kind] += member.kind != ""
            continue
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        key, _, suffix = name.partition(".")
        column, dot, ending = suffix.rpartition(".")  # a column's name keeps its capitals
        keys.append(f"{folder}/{key}" if folder else key)
        suffixes.append(sys.intern(column + dot + ending.lower()))
        offsets.append(member.offset)
        sizes.append(member.size)
        text = None
        if suffixes[-1] == label:
            file.seek(member.offset)
            text = file.read(min(member.size, CLASS_BYTES)).decode("utf-8", "replace").strip()
        texts.append(text)
    if last is not None and last.offset + last.size > size:
        cut = f"ends at byte {size:,}, within {last.name}"
    arrays = [pa.array(_encodable(c), field.type) for c, field in zip(columns, schema())]
    return Listing(pa.table(arrays, schema()), passed, cut)


def _encodable(column: list) -> list:
    """Names that are no UTF-8 with escapes in their place: a table has none of them."""
    if not column or not isinstance(column[0], str):
        return column
    return [v if v is None or v.isascii() else v.encode("utf-8", "backslashreplace").decode() for v in column]


def members_of(file: BinaryIO) -> Iterator[Member]:
    """Every member of a tar file, in order; returns where it ends too early, in words, or None. A header of
    the plain form is taken apart here, which is ten times as fast; all others by tarfile."""
    file.seek(0)
    tar = tarfile.open(fileobj=file, mode="r:")  # refuses what is no tar file
    size, place = file.seek(0, os.SEEK_END), 0
    while True:
        file.seek(place)
        if (plain := _plain(file.read(BLOCK), place)) is not None:
            member = plain
            place = member.offset + -(-member.size // BLOCK) * BLOCK
        else:
            file.seek(place)
            try:
                info = tar.tarinfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:  # zeros, as there have to be
                return None
            except tarfile.EmptyHeaderError:
                return f"ends at byte {size:,} without the mark of an end"
            except tarfile.HeaderError as error:
                return f"cannot be read from byte {place:,} on: {error}"
            if tar.offset <= place:
                return f"cannot be read from byte {place:,} on: a size below zero"
            member, place = _other(info), tar.offset
        yield member
        if member.offset + member.size > size:
            return f"ends at byte {size:,}"


def _plain(header: bytes, place: int) -> Member | None:
    """The member of a plain header; None for any other."""
    if len(header) < BLOCK or header[156] not in b"0\0" or header[257:262] != b"ustar":
        return None
    try:
        name = header[: header.index(0, 0, 101)].decode("ascii")
        size = int(header[124:136].strip(b" \0"), 8)
        given = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    # the sum of the header with blanks in the place of the sum itself
    if given != sum(header) - sum(header[148:156]) + 256 or name.endswith("/") or header[345]:
        return None
    return Member(name, place + BLOCK, size, "hidden" if _hidden(name) else None)


def _other(info: tarfile.TarInfo) -> Member:
    kind = None
    if not info.isfile():
        kind = "" if info.isdir() else "members that are no files"
    elif _hidden(info.name):
        kind = "hidden"
    elif info.issparse():  # its content does not lie there as it is
        kind = "sparse"
    return Member(info.name, info.offset_data, info.size if info.isreg() else 0, kind)


def _hidden(name: str) -> bool:
    return (name[0:1] == "." or "/." in name) and any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


# ---- listings that are kept ----


def kept_listing(state: tuple, label: str) -> Listing | None:
    """The listing of a shard in this state (path or URL, size, time or version), where the cache has it."""
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(_kept(state, label), use_threads=False)
        facts = json.loads(table.schema.metadata[b"vicjoint"])
        return Listing(table, Counter(facts["passed"]), facts["cut"])
    except (OSError, ValueError, KeyError, TypeError, ArrowException):
        return None


def keep_listing(state: tuple, label: str, listing: Listing) -> None:
    """A cache that cannot be written costs time, not the run."""
    from pyarrow import parquet

    path = _kept(state, label)
    facts = json.dumps({"passed": listing.passed, "cut": listing.cut})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        parquet.write_table(listing.table.replace_schema_metadata({"vicjoint": facts}), temporary)
        os.replace(temporary, path)
    except OSError:
        return


def _kept(state: tuple, label: str) -> Path:
    name = hashlib.sha256("\0".join(map(str, (*state, label))).encode("utf-8", "surrogateescape"))
    return cache_root() / "index" / f"{name.hexdigest()[:24]}-members-v{INDEX_VERSION}.parquet"


def listing_of_file(path: str, label: str) -> Listing:
    """Of a shard on a file system. Raises OSError and tarfile.TarError."""
    with open(path, "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        state = path, found.st_size, found.st_mtime_ns
        if (known := kept_listing(state, label)) is not None:
            return known
        listing = list_shard(file, label)
    if time.time() - found.st_mtime > SETTLED:
        keep_listing(state, label, listing)
    return listing


# ---- packs ----


class Pack(NamedTuple):
    """A manifest, its folder or URL, and by the names of shards: the members in the index, as a pyarrow
    table, the bytes, and the split."""

    manifest: dict[str, Any]
    folder: str
    tables: dict[str, Any]
    bytes: dict[str, int]
    splits: dict[str, str]


def read_pack(manifest: bytes, index: BinaryIO | str, where: str) -> Pack:
    """Raises ValueError where one of them is not what pack writes."""
    from pyarrow import ArrowException, parquet

    try:
        found = json.loads(manifest)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, expected {FORMAT}")
        names = [shard["name"] for shard in found["shards"]]
        rows = parquet.read_table(index)
        ends = rows["shard"].to_numpy().searchsorted(range(len(names) + 1))
        columns = rows.select(schema().names).cast(schema())
        sizes = {shard["name"]: int(shard["bytes"]) for shard in found["shards"]}
        splits = {name: split for split, names in found["splits"].items() for name in names}
        found["json_keys"] = list(found["json_keys"])
    except (ValueError, KeyError, TypeError, OSError, ArrowException) as error:
        raise ValueError(
            f"webdataset: manifest.json and index.parquet of {where} cannot be read: {error!r:.200}. Pack it"
            " again, or remove both: shards are listed without them, too."
        ) from None
    tables = {name: columns.slice(a, b - a) for name, a, b in zip(names, ends, ends[1:])}
    return Pack(found, where, tables, sizes, splits)
