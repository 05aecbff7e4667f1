"""Rows of parquet files elsewhere. Such a file is brought whole and kept as an Arrow file, which any row is
read from without the others.

    remote = look_up([url], room, user, as_arrow)[0]
    footer(remote, user)                                              # rows and columns
    value_of({"remote": remote, "row": 5, "key": "caption"})          # the value of a cell
"""

import contextlib
import functools
import hashlib
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from vicjoint.files import remote
from vicjoint.files.cache import cache_root
from vicjoint.files.remote import DamagedFile, Remote

AT_ONCE = 1 << 26  # bytes of rows that are written at a time
MOST_ROWS = 1024  # the same in rows
OPEN = 64  # files that a process holds open


class _Open(NamedTuple):
    file: int
    batches: list
    ends: list[int]
    """file: its inode. batches: pyarrow's, of the mapped file; ends: of each the number of its last row, plus
    one."""


_open: dict[Path, _Open] = {}


def value_of(cell: dict) -> Any:
    """The value in a row `row` under a column `key`, as Python has it. Raises OSError."""
    with remote.opened(cell["remote"]) as file:
        place, inode = cell["remote"].place, os.fstat(file.fileno()).st_ino
        if place not in _open or _open[place].file != inode:  # it went and was brought again
            _open[place] = _opened(place, inode)
        _, batches, ends = _open[place]
        number = bisect_right(ends, cell["row"])
        row = cell["row"] - (ends[number - 1] if number else 0)
        return batches[number].column(cell["key"])[row].as_py()


def _opened(place: Path, inode: int) -> _Open:
    import pyarrow as pa

    gone = [p for p in _open if not p.exists()]  # whose room on the disk is free when they are closed
    for other in gone or list(_open)[: max(len(_open) - OPEN + 1, 0)]:
        del _open[other]
    reader = pa.ipc.open_file(pa.memory_map(str(place)))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return _Open(inode, batches, list(accumulate(batch.num_rows for batch in batches)))


def as_arrow(of: Remote, came: Path, target: Path) -> None:
    """Write the Arrow file of a parquet file, and keep its footer. Raises OSError where it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(came, pre_buffer=False) as file:
            plain = [f.with_type(f.type.value_type) if _coded(f.type) else f for f in file.schema_arrow]
            schema = pa.schema(plain, file.schema_arrow.metadata)
            per_row = bytes_kept(file.metadata) // max(file.metadata.num_rows, 1)
            rows = max(min(MOST_ROWS, AT_ONCE // max(per_row, 1)), 1)
            with pa.ipc.new_file(str(target), schema) as out:
                for batch in file.iter_batches(rows, use_threads=False):
                    columns = [c.dictionary_decode() if _coded(c.type) else c for c in batch.columns]
                    out.write_batch(pa.record_batch(columns, schema=schema))
            _keep_footer(of, file.metadata)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(f"{of.url}: is no whole parquet file: {_line(error)}") from None


def bytes_kept(metadata) -> int:
    """About how many bytes the Arrow file of a parquet file has."""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def footer(of: Remote, user: str):
    """What a parquet file says of itself, a pyarrow FileMetaData: from the cache, else of the file's end,
    else of the file, which is brought. Raises OSError; DamagedFile where it is none."""
    from pyarrow import ArrowException, parquet

    with contextlib.suppress(ArrowException, OSError):
        return parquet.read_metadata(_kept(of))
    try:
        with remote.in_place(of, user) as file:
            found = parquet.read_metadata(file) if file is not None else None
    except ArrowException as error:
        raise DamagedFile(f"{of.url}: is no whole parquet file: {_line(error)}") from None
    if found is not None:
        _keep_footer(of, found)
        return found
    of.place.unlink(missing_ok=True)  # brought before, and its footer is lost
    remote.bring(of)
    return parquet.read_metadata(_kept(of))


def _keep_footer(of: Remote, metadata) -> None:
    path = _kept(of)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    metadata.write_metadata_file(str(temporary))
    os.replace(temporary, path)


def _kept(of: Remote) -> Path:
    name = hashlib.sha256(f"{of.url}\0{of.size}\0{of.version}".encode()).hexdigest()
    return cache_root() / "index" / f"{name[:24]}-footer.parquet"


@functools.cache
def _coded(kind) -> bool:
    from pyarrow import types

    return types.is_dictionary(kind)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200] if str(error) else type(error).__name__
