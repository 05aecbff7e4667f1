"""Where tar shards are, on a file system or elsewhere by URL, and what is in them.

shards = find("s3://bucket/x-{000..146}.tar", "cls", 50 << 30)
shards.list_members("cls", passed)          # from a pack's index, from the cache, or by reading headers
shards.part(0, 512, 6)                      # {"path": ..., "offset": 512, "size": 6}, as records have it
"""

import io
import math
import os
import re
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from vicjoint import distributed
from vicjoint.files import remote
from vicjoint.files.cells import Part
from vicjoint.files.folder import Walk
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.files.paths import user_path
from vicjoint.files.remote import Remote, is_url
from vicjoint.sources.base import SourceError, names_below, split_of
from vicjoint.sources.members import (
    OF_CLASS,
    Listing,
    Pack,
    keep_listing,
    kept_listing,
    list_shard,
    listing_of_file,
    read_pack,
)

USER = "source 'webdataset'"
THREADS = 8  # that list shards
RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")
SHOWN = 32  # shards from which on a bar shows the listing


class Shards:
    """Tar files: paths (or URLs), and for each a name of its own and, where they are elsewhere, what brings
    it. packs: of each shard its pack, where it has one. tables: after `list_members`, the members of each."""

    def __init__(self, paths: list[str], remotes: list[Remote] | None, packs: list[Pack | None]):
        self.paths, self.remotes, self.packs = paths, remotes, packs
        names = [os.path.basename(path) for path in paths]
        twice = len(set(names)) < len(names)
        self.names = [os.path.relpath(p, os.path.commonpath(paths)) for p in paths] if twice else names
        self.tables: list = []

    def joined(self, other: "Shards") -> "Shards":
        if (self.remotes is None) != (other.remotes is None):
            raise SourceError(
                f"webdataset: {self.paths[0]} and {other.paths[0]}: one is a URL, the other is not. Give root"
                " and test alike."
            )
        remotes = None if self.remotes is None or other.remotes is None else self.remotes + other.remotes
        return Shards(self.paths + other.paths, remotes, self.packs + other.packs)

    def only(self, numbers: list[int]) -> "Shards":
        remotes = None if self.remotes is None else [self.remotes[i] for i in numbers]
        return Shards([self.paths[i] for i in numbers], remotes, [self.packs[i] for i in numbers])

    def forget_tables(self) -> None:
        self.tables, self.packs = [], [None] * len(self.paths)

    def part(self, shard: int, offset: int, size: int) -> Part:
        found = Part(path=self.paths[shard], offset=offset, size=size)
        if self.remotes is not None:
            found["remote"] = self.remotes[shard]
        return found

    def split_of(self, number: int) -> str | None:
        """What its pack says."""
        pack = self.packs[number]
        return pack and pack.splits.get(name_in(pack, self.paths[number]))

    @property
    def json_keys(self) -> list[str] | None:
        """What the packs of all shards say that their JSON members have; None: not all have a pack."""
        packs = [pack for pack in self.packs if pack]
        if len(packs) < len(self.paths):
            return None
        return list(dict.fromkeys(key for pack in packs for key in pack.manifest["json_keys"]))

    def list_members(self, label: str, passed: Counter[str]) -> list[tuple[str, str]]:
        """Set `tables`; (name, where) of the shards that end too early. Raises SourceError for one that is
        none."""
        few = len(self.paths) < SHOWN or not distributed.is_first()
        with ThreadPoolExecutor(THREADS) as threads:
            numbers = range(len(self.paths))
            listed = threads.map(lambda number: self._listing(number, label), numbers)
            found = list(tqdm(listed, "listing shards", len(numbers), leave=False, disable=few))
        for listing in found:
            passed.update(listing.passed)
        self.tables = [listing.table for listing in found]
        return [(name, listing.cut) for name, listing in zip(self.names, found) if listing.cut]

    def _listing(self, number: int, label: str) -> Listing:
        path, pack = self.paths[number], self.packs[number]
        try:
            if pack is None or label != OF_CLASS:
                return self._headers(number, label)
            table, there = pack.tables[name_in(pack, path)], self._size(number)
            said = pack.bytes[name_in(pack, path)]
            if there == said:
                return Listing(table, Counter(), None)
            listing = self._headers(number, label) if there < said else None
        except (tarfile.TarError, OSError) as error:
            raise SourceError(
                f"webdataset: {path} cannot be listed: {error}. Expected an uncompressed tar file; make a"
                " broken or compressed one again."
            ) from None
        if listing is None or not listing.table.equals(table.slice(0, len(listing.table))):
            raise SourceError(
                f"webdataset: {path} has {there:,} bytes, and its manifest.json says {said:,}: the shard is"
                " another than the index tells of. Pack it again."
            )
        return Listing(table, listing.passed, f"has {there:,} bytes of {said:,}")

    def _size(self, number: int) -> int:
        return os.stat(self.paths[number]).st_size if self.remotes is None else self.remotes[number].size

    def _headers(self, number: int, label: str) -> Listing:
        """From the cache, else of the shard itself, which is brought."""
        if self.remotes is None:
            return listing_of_file(self.paths[number], label)
        of = self.remotes[number]
        state = of.url, of.size, of.version
        if (known := kept_listing(state, label)) is None:
            with remote.opened(of) as file:
                known = list_shard(file, label)
            keep_listing(state, label, known)
        return known


def name_in(pack: Pack, path: str) -> str:
    """The shard's name in the manifest."""
    return path.removeprefix(pack.folder).lstrip("/")


def check_room(source: str, sizes: list[int], room: int, lanes: int, window: int) -> bool:
    """Whether there is room for twice the shards that this machine reads at a time, so that those of the next
    windows can be brought meanwhile. sizes: in bytes. Raises SourceError where they have none."""
    largest = max(sizes)
    everywhere = distributed.world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere))
    at_once = min(len(sizes), window * math.ceil(lanes * here / everywhere))
    if at_once * largest > room:
        raise SourceError(
            f"{source}: cache: {at_once} shards of up to {largest:,} bytes are read at a time, and"
            f" source.cache allows {room:,} bytes. Raise it to"
            f" {math.ceil(at_once * largest / 1e9)}GB, or lower source.lanes or source.window."
        )
    return min(2 * at_once, len(sizes)) * largest <= room


# ---- finding them ----


def split_of_shard(shard: str, root: str) -> str | None:
    """What its folders below the root, or the words of its name, say."""
    folders: tuple[str, ...] = ()
    if is_url(shard):
        if shard.startswith(f"{root.rstrip('/')}/"):
            folders = tuple(shard.removeprefix(root).strip("/").split("/")[:-1])
    elif (folder := user_path(root).absolute()).is_dir():
        folders = Path(shard).parent.relative_to(folder).parts
    words = (*folders, *re.split("[^A-Za-z]+", os.path.splitext(os.path.basename(shard))[0]))
    return next((split for word in words if (split := split_of(word))), None)


def find(pattern: str, label: str, room: int, passed: Counter[str]) -> Shards:
    """The shards of a folder or a pattern, with the packs that they belong to. Raises SourceError."""
    folder = pattern.rstrip("/") if not re.search(r"\.tar$", pattern) else os.path.dirname(pattern)
    if not is_url(pattern):
        pack = _local_pack(user_path(folder).absolute()) if label == OF_CLASS else None
        return Shards(paths := find_shards(pattern, passed), None, _packs(paths, pack))
    try:
        pack = _remote_pack(folder) if label == OF_CLASS else None
        if pack and folder == pattern.rstrip("/"):
            paths = [f"{folder}/{name}" for name in pack.tables]
        else:
            paths = urls_of("webdataset", pattern, ".tar")
        return Shards(paths, remote.look_up(paths, room, USER), _packs(paths, pack))
    except OSError as error:
        raise SourceError(
            f"webdataset: {error}. Expected the URL of a .tar file, of a folder, or a pattern such as"
            " s3://bucket/x-{000..146}.tar."
        ) from None


def _packs(paths: list[str], pack: Pack | None) -> list[Pack | None]:
    return [pack if pack and name_in(pack, path) in pack.tables else None for path in paths]


def _local_pack(folder: Path) -> Pack | None:
    manifest, index = folder / "manifest.json", folder / "index.parquet"
    if not (manifest.is_file() and index.is_file()):
        return None
    return read_pack(manifest.read_bytes(), str(index), str(folder))


def _remote_pack(folder: str) -> Pack | None:
    manifest = remote.content(f"{folder}/manifest.json", USER)
    index = manifest and remote.content(f"{folder}/index.parquet", USER)
    return read_pack(manifest, io.BytesIO(index), folder) if manifest and index else None


def urls_of(source: str, pattern: str, ending: str) -> list[str]:
    """What the URL of a file, a pattern with one range {000..146} or with *, or a folder means. Raises
    SourceError, OSError."""
    wild, user = "*" in pattern, f"source '{source}'"
    if not wild and (pattern.endswith(ending) or RANGE.search(pattern)):
        return in_range(pattern)
    if pattern.startswith("http"):
        raise SourceError(
            f"{source}: {pattern}: a folder cannot be listed over http"
            f"{', and has no index of vicjoint.pack' if ending == '.tar' else ''}."
            f" Give a pattern such as https://host/x-{{000..146}}{ending}."
        )
    found = remote.matching(pattern, user) if wild else remote.below(pattern.rstrip("/"), ending, user)
    if not found:
        raise SourceError(
            f"{source}: no {'file like' if wild else f'{ending} file below'} {pattern}. Give"
            f" the folder of the shards, or a pattern such as s3://bucket/x-{{000..146}}{ending}."
        )
    return found


def in_range(pattern: str) -> list[str]:
    """The names that a pattern with one range {000..146} means."""
    parts = RANGE.fullmatch(pattern)
    if not parts:
        return [pattern]
    before, first, last, after = parts.groups()
    return [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)]


def find_shards(pattern: str, passed: Counter[str] | None = None) -> list[str]:
    """Paths of the shards of a folder or of a pattern with one range {000..146}, on a file system, sorted; to
    `passed` is added what was passed over. Raises SourceError where one is missing."""
    if re.match(r"[a-z][a-z]+:", pattern):
        raise SourceError(
            f"webdataset: {pattern} is not on a file system. Copy the shards, or mount them: they are read at"
            " random."
        )
    path = user_path(pattern).absolute()
    if path.is_dir():
        walk = Walk(path, (".tar",))
        shards = [str(path / name) for name in names_below("webdataset", walk)]
        if not shards:
            found = f" Passed over: {walk.passed_over()}." if walk.passed else ""
            raise SourceError(
                f"webdataset: no .tar file below {path}.{found} Give the folder of the shards, or a pattern"
                " such as x-{000..146}.tar."
            )
        if passed is not None:
            passed.update(walk.passed)
        return shards
    for shard in (shards := in_range(str(path))):
        if not os.path.isfile(shard):
            raise SourceError(
                f"webdataset: {shard} does not exist. Expected a .tar file, a folder, or a pattern such as"
                " x-{000..146}.tar."
            )
    return shards


def pictures_of(shard: str, label: str = OF_CLASS) -> list[tuple[dict, str | None]]:
    """(record as `images.read_record` takes it, class) of each picture of a tar file."""
    shards = Shards([shard], None, [None])
    shards.list_members(label, Counter())
    pictures, classes, number = [], {}, Counter()
    for row in shards.tables[0].to_pylist():
        if row["text"] is not None:
            classes[row["key"]] = row["text"]
        if f".{row['suffix']}".endswith(IMAGE_SUFFIXES):
            number[row["key"]] += 1
            pictures.append(row)
    found = []
    for row in pictures:
        name = row["key"] if number[row["key"]] == 1 else f"{row['key']}.{row['suffix']}"
        record = {"id": name, **shards.part(0, row["offset"], row["size"])}
        found.append((record, classes.get(row["key"])))
    return found
