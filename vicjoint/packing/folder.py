"""The folder of shards: tar files whose bytes follow from their content alone, what is kept of each that is
whole, the index, the manifest, and whether the files are still those of the manifest.

    shards/train/birds-000000.tar ... shards/test/... manifest.json index.parquet bad_samples.jsonl
    shards/unfinished/              # while it is written: a file for each whole shard

index.parquet has a row for each member: shard (number in the manifest's list), key, suffix, offset and size
of the content in the tar file, text (of `cls` members). manifest.json: {"format": 1, "shards": [{"name",
"bytes", "sha256", "samples"}], "samples", "splits": {split: [names]}, "json_keys", "made_from"}.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vicjoint.files.cells import bytes_of
from vicjoint.files.write import replaced, write_json, write_text
from vicjoint.packing.members import File

FORMAT = 1
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
CHUNK = 1 << 20  # bytes that are copied at once
MANIFEST, INDEX, BAD, UNFINISHED, JOB = (
    *("manifest.json", "index.parquet", "bad_samples.jsonl", "unfinished", "job.json"),
)
MADE = b"vicjoint"  # in the index's metadata: what the shards were made from


class PackError(ValueError):
    """A folder that cannot be packed into, or shards that are not whole; the message says what to do."""


@dataclass
class Shard:
    """A tar file that is whole. members: (key, suffix, offset, size, text) of each. taken: records that went
    into it, bad ones counted; read: their bytes. bad, kept: (record, cause) of those that are left out, and
    of videos that stay as they were. remade: videos made anew, and saved: the bytes that they lost."""

    name: str
    bytes: int = 0
    sha256: str = ""
    samples: int = 0
    taken: int = 0
    read: int = 0
    remade: int = 0
    saved: int = 0
    members: list[tuple] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)

    @property
    def split(self) -> str:
        return self.name.split("/")[0]


class Tar:
    """A tar file that is written: regular files, all of one time and owner."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.bytes += len(content)

    def add(self, name: str, content: bytes | File, size: int) -> tuple[int, int]:
        """(offset, size) of the content. Raises OSError where a file has another size by now."""
        self.write(header_of(name, size))
        offset = self.bytes
        for part in parts_of(content):
            self.write(part)
        if self.bytes - offset != size:
            raise OSError(f"{name}: its file changed while it was read. Give the same command again.")
        self.write(bytes(-size % BLOCK))
        return offset, size

    def end(self) -> None:
        self.write(bytes(whole(self.bytes) - self.bytes))


def header_of(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def whole(size: int) -> int:
    """Bytes of a tar file whose members have so many: two empty blocks more, in whole records."""
    return -(-(size + 2 * BLOCK) // RECORD) * RECORD


def room_of(name: str, size: int) -> int:
    """Bytes that a member takes up."""
    return len(header_of(name, size)) + size + -size % BLOCK


def parts_of(content: bytes | File) -> Iterator[bytes]:
    if not isinstance(content, str):
        yield content if isinstance(content, bytes) else bytes_of(content)
        return
    with open(content, "rb") as file:
        while part := file.read(CHUNK):
            yield part


class Folder:
    """Where shards go. job: all that they depend on; a folder with shards of another one is refused.
    Raises PackError."""

    def __init__(self, to: Path, job: dict[str, Any]):
        self.to, self.job = to, job
        self.unfinished = to / UNFINISHED

    def is_complete(self) -> bool:
        """Whether the same command has made it before."""
        if not (self.to / MANIFEST).exists():
            return False
        from pyarrow import parquet

        found = (parquet.read_schema(self.to / INDEX).metadata or {}).get(MADE)
        self._check_same(json.loads(found) if found else {})
        shutil.rmtree(self.unfinished, ignore_errors=True)  # of a process killed at the very end
        return True

    def open(self) -> None:
        """Take up the folder that is there, or begin it."""
        path = self.unfinished / JOB
        if path.exists():
            self._check_same(json.loads(path.read_text(encoding="utf-8")))
        else:
            write_json(path, self.job)

    def done(self) -> list[Shard]:
        """The shards that are whole."""
        shards = [json.loads(p.read_text(encoding="utf-8")) for p in self.unfinished.glob("*-*.json")]
        shards = [Shard(**shard) for shard in shards]
        there = lambda s: not s.samples or (self.to / s.name).exists()
        return sorted((s for s in shards if there(s)), key=lambda s: s.name)

    def check_empty(self) -> None:
        """Raises PackError where the folder holds something else than shards that are not finished."""
        if self.to.exists() and not self.to.is_dir():
            raise PackError(f"--to: {self.to} is a file, expected a folder. Give another --to.")
        if (self.unfinished / JOB).exists() or not self.to.exists():
            return
        if found := sorted(p.name for p in self.to.iterdir() if p.name != UNFINISHED):
            raise PackError(
                f"--to: {self.to} holds something else ({', '.join(found[:3])}). Give a new or an empty"
                " folder."
            )

    def _check_same(self, known: dict[str, Any]) -> None:
        changed = [name for name in self.job if known.get(name) != self.job[name]]
        if changed:
            raise PackError(
                f"--to: {self.to} holds the shards of another command: it differs in {', '.join(changed)}."
                " Give another --to, or remove the folder."
            )

    def path(self, name: str) -> Path:
        path = self.to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, shard: Shard) -> None:
        """Write down that a shard is whole."""
        name = shard.name.replace("/", "-").removesuffix(".tar")
        write_text(self.unfinished / f"{name}.json", json.dumps(asdict(shard)))

    def finish(self, shards: list[Shard], json_keys: list[str], made_from: str) -> None:
        """Write the index, the list of bad records, and last the manifest."""
        bad = [{"source": made_from, "sample": s, "cause": c} for shard in shards for s, c in shard.bad]
        if bad:
            write_text(self.to / BAD, "".join(json.dumps(line) + "\n" for line in bad))
        shards = [shard for shard in shards if shard.samples]
        write_index(self.to / INDEX, shards, self.job)
        write_json(
            self.to / MANIFEST,
            {
                "format": FORMAT,
                "shards": [
                    {key: getattr(s, key) for key in ("name", "bytes", "sha256", "samples")} for s in shards
                ],
                "samples": sum(s.samples for s in shards),
                "splits": {
                    split: [s.name for s in shards if s.split == split] for split in ("train", "test")
                },
                "json_keys": json_keys,
                "made_from": made_from,
            },
        )
        shutil.rmtree(self.unfinished, ignore_errors=True)


def write_index(path: Path, shards: list[Shard], job: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = [pa.int32(), pa.string(), pa.string(), pa.int64(), pa.int64(), pa.string()]
    names = ["shard", "key", "suffix", "offset", "size", "text"]
    schema = pa.schema(list(zip(names, types)), {MADE: json.dumps(job)})
    with replaced(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for number, shard in enumerate(shards):
            columns = zip(*shard.members)
            arrays = [[number] * len(shard.members), *map(list, columns)]
            writer.write_table(pa.table(dict(zip(names, arrays)), schema))


def verify(folder: Path, progress) -> list[str]:
    """What is not as the manifest says, a line each. progress(total bytes): a bar. Raises PackError where
    there is no manifest."""
    try:
        shards = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(
            f"--verify: {folder / MANIFEST} cannot be read ({error}). Expected a folder that"
            " python -m vicjoint.pack has finished."
        ) from None
    wrong = [] if (folder / INDEX).exists() else [f"{INDEX}: is not there"]
    with progress(sum(shard["bytes"] for shard in shards)) as bar:
        for shard in shards:
            if cause := difference(folder / shard["name"], shard, bar):
                wrong.append(f"{shard['name']}: {cause}")
    known = {shard["name"] for shard in shards}
    others = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.tar"))
    return wrong + [f"{name}: is not in the manifest" for name in others if name not in known]


def difference(path: Path, shard: dict[str, Any], bar) -> str | None:
    try:
        if (size := path.stat().st_size) != shard["bytes"]:
            return f"has {size:,} bytes, expected {shard['bytes']:,}"
        digest = hashlib.sha256()
        for part in parts_of(str(path)):
            digest.update(part)
            bar.update(len(part))
    except OSError as error:
        return error.strerror or str(error)
    same = digest.hexdigest() == shard["sha256"]
    return None if same else "has the right size, and other content than when it was written"


def check_room(to: Path, needed: int) -> None:
    """Raises PackError where the disk has less."""
    place = next(p for p in (to, *to.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise PackError(
            f"--to: {to} needs about {in_words(needed)}, {in_words(free)} are free. Make room, or give"
            " another --to."
        )


def in_words(size: float) -> str:
    """Bytes, as people write them."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit in ("bytes", "KB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
