"""The file of embeddings: a parquet file, written in parts that a killed process leaves whole.

    index = read_index("out.parquet")
    index.metadata["dim"], index.columns["item"]          # a pyarrow table of all columns but the embedding
    index.matrix                                          # float32 [N, dim]

Beside `out.parquet` its parts lie in `out.parquet.parts`, each written under another name and renamed. A part
is a function of the items alone, so the file is the same however often the work was stopped.
"""

# N rows, D width of an embedding

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.files.write import replaced, write_json
from vicjoint.sources.base import SourceError
from vicjoint.sources.rows import open_parquet

PART_ROWS = 1024  # rows of a part, bad ones counted: what a kill can lose
GROUP_PARTS = 16  # parts in a row group of the file
IN_MEMORY = 1 << 30  # bytes of a matrix above which it lies in a temporary file, mapped into memory
KEY, MADE, BAD = b"vicjoint", b"vicjoint_made", b"bad"  # in the schema's metadata
CHANGES = ("at_once",)  # of a manifest: what the first part decides


class StoreError(ValueError):
    """A file of embeddings, or its parts, that cannot be used; the message says what to do."""


class NothingRead(RuntimeError):
    """None of the items can be read."""


@dataclass
class Bad:
    """What could not be read. start_seconds: of a window, where only that cannot be read."""

    item: str
    cause: str
    start_seconds: float | None = None

    def line(self) -> str:
        start = {} if self.start_seconds is None else {"start_seconds": self.start_seconds}
        return json.dumps({"item": self.item, **start, "cause": self.cause})


class Store:
    """The parts of `to`. manifest: what they are made from; parts that were made from something else are
    refused. group_parts: how many are held at once when they are merged; None: GROUP_PARTS. Raises
    StoreError, also where `to` exists and is another one's."""

    def __init__(self, to: Path, manifest: dict[str, Any], group_parts: int | None = None):
        self.to, self.manifest, self.group_parts = to, manifest, group_parts or GROUP_PARTS
        self.folder = to.with_name(to.name + ".parts")
        self.bad_file = to.with_name(to.name + ".bad.jsonl")

    def is_complete(self) -> bool:
        """Whether the same command has made the file before."""
        if not self.to.exists():
            return False
        made = read_metadata(self.to).get(MADE)
        changed = differences(json.loads(made), self.manifest) if made else "all"
        if changed:
            raise StoreError(
                f"--to: {self.to} exists, and this command would make another one: it differs in {changed}."
                " Give another --to, or remove the file."
            )
        shutil.rmtree(self.folder, ignore_errors=True)  # of a process killed when the file was whole
        return True

    def open(self) -> None:
        """Make the folder of the parts, or take up the one that is there."""
        path = self.folder / "manifest.json"
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if changed := differences(known, self.manifest):
                raise StoreError(
                    f"--to: {self.folder} holds the parts of another command: it differs in {changed}. Give"
                    " that command to go on, another --to, or remove the folder."
                )
            self.manifest = known
        elif any(path.suffix == ".parquet" for path in self.folder.iterdir()):
            raise StoreError(f"--to: {self.folder} holds files and no manifest.json. Remove it.")
        else:
            write_json(path, self.manifest)

    def keep(self, **decided: Any) -> None:
        """Write down what the first command decided, so that those that go on do the same."""
        if any(self.manifest.get(name) != value for name, value in decided.items()):
            self.manifest = self.manifest | decided
            write_json(self.folder / "manifest.json", self.manifest)

    @property
    def parts(self) -> int:
        """How many there are: the first ones."""
        number = 0
        while self._path(number).exists():
            number += 1
        return number

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.parquet"

    def write(self, number: int, table: Any, bad: list[Bad]) -> None:
        """Write a part, a pyarrow table, with what could not be read of it."""
        from pyarrow import parquet

        metadata = {BAD: json.dumps([vars(one) for one in bad])}
        with replaced(self._path(number)) as file:
            parquet.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")

    def merge(
        self, metadata: dict[str, Any], change: Callable[[Any], Any] = lambda table: table
    ) -> tuple[int, int]:
        """Make the file of all parts, and of what could not be read a file beside it; (rows, bad ones).
        change: what becomes of some rows, a pyarrow table; it is called in order."""
        import pyarrow
        from pyarrow import parquet

        bad = [one for number in range(self.parts) for one in self._bad(number)]
        self._write_bad(bad)
        made = {name: value for name, value in self.manifest.items() if name not in CHANGES}
        own, writer, rows = {KEY: json.dumps(metadata), MADE: json.dumps(made)}, None, 0
        with replaced(self.to) as file:
            for group in self._groups():
                table = change(pyarrow.concat_tables(group)).replace_schema_metadata(own)
                if writer is None:
                    texts: Any = [name for name in table.column_names if name != "embedding"]
                    writer = parquet.ParquetWriter(
                        file, table.schema, compression="zstd", use_dictionary=texts
                    )
                writer.write_table(table)
                rows += len(table)
            if writer is not None:
                writer.close()
            if not rows:
                shutil.rmtree(self.folder)
                first = f" The first: {bad[0].item}: {bad[0].cause}" if bad else ""
                raise NothingRead(f"none of the {len(bad):,} items can be read.{first}")
        shutil.rmtree(self.folder)
        return rows, len(bad)

    def _bad(self, number: int) -> list[Bad]:
        return [Bad(**one) for one in json.loads(read_metadata(self._path(number))[BAD])]

    def _groups(self) -> Iterator[list[Any]]:
        """The tables of the parts, some together."""
        from pyarrow import parquet

        parts = self.parts
        for first in range(0, parts, self.group_parts):
            some = range(first, min(first + self.group_parts, parts))
            yield [parquet.read_table(self._path(n)).replace_schema_metadata() for n in some]

    def _write_bad(self, bad: list[Bad]) -> None:
        if not bad:
            self.bad_file.unlink(missing_ok=True)
            return
        with replaced(self.bad_file) as file:
            for one in bad:
                file.write((one.line() + "\n").encode())


def differences(known: dict[str, Any], asked: dict[str, Any]) -> str:
    """The keys of two manifests whose values differ, with the values; empty where none do."""
    return ", ".join(
        f"{name} ({known.get(name)}, now {asked.get(name)})"
        for name in dict.fromkeys([*known, *asked])
        if name not in CHANGES and known.get(name) != asked.get(name)
    )


# ---- reading ----


@dataclass
class Index:
    """A file of embeddings. metadata: {run, name, branch, modality, reads, space, dim, step, model}. columns:
    a pyarrow table of all columns but the embedding, [N]."""

    path: Path
    metadata: dict[str, Any]
    columns: Any = field(repr=False)

    def __len__(self) -> int:
        return self.columns.num_rows

    @cached_property
    def matrix(self) -> np.ndarray:
        """float32 [N, D]. A large one lies in a temporary file, mapped into memory, so that the system can
        do without its pages."""
        shape = len(self), self.metadata["dim"]
        if 4 * shape[0] * shape[1] > IN_MEMORY:
            with tempfile.TemporaryFile() as file:
                x = np.memmap(file, np.float32, "w+", shape=shape)
        else:
            x = np.empty(shape, np.float32)
        at = 0
        with open_parquet(self.path) as file:
            for batch in file.iter_batches(PART_ROWS, columns=["embedding"]):
                values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                x[at : at + len(batch)] = values.reshape(len(batch), shape[1])
                at += len(batch)
        return x


def read_index(path: str | Path) -> Index:
    """A file that `python -m vicjoint.embed` has written. Raises StoreError for what is none."""
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file. Expected a file written by python -m vicjoint.embed.")
    try:
        found = read_metadata(path)
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if name != "embedding"]
            if KEY not in found or len(names) == len(file.schema_arrow.names):
                raise StoreError(
                    f"{path}: has no embeddings of vicjoint, columns: {', '.join(names)}. Expected a file"
                    " written by python -m vicjoint.embed."
                )
            metadata = json.loads(found[KEY])
            if metadata.get("level") == "tokens":
                raise StoreError(
                    f"{path}: holds tokens, and no vector of an item. Embed with --level pooled, the default."
                )
            return Index(path, metadata, file.read(columns=names))
    except SourceError as error:
        raise StoreError(f"{error} It should be one written by python -m vicjoint.embed.") from None


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """Of a parquet file's schema. Raises SourceError."""
    with open_parquet(path) as file:
        return file.schema_arrow.metadata or {}
