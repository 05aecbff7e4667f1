"""From records to shards: what there is to do (plan), records read beside the writing, shards written one by
one."""

import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vicjoint.data import READ_ERRORS, BadDataError, cause_of, listed
from vicjoint.data.quarantine import allowed
from vicjoint.data.readers import starting
from vicjoint.files.cells import as_path, bytes_of
from vicjoint.files.guard import printable
from vicjoint.files.write import replaced
from vicjoint.packing.films import FILM_ENDINGS, Films, NotTheSame, remade
from vicjoint.packing.folder import Folder, Shard, Tar, room_of, whole
from vicjoint.packing.members import Layout, Member
from vicjoint.parts import Record, Source
from vicjoint.sources.base import numbered
from vicjoint.video import VideoError
from vicjoint.wants import Split

SPLITS: tuple[Split, ...] = ("train", "test")
SEED = 0  # of the order
IN_MEMORY = 1 << 23  # bytes of a file that is read beside the writing; larger ones are copied part by part
AHEAD = 4  # records that a worker may be ahead


class Prepared(NamedTuple):
    """A record that is ready to be written. size: bytes of its members before. cause: why it is left out.
    kept: why its video stays as it was. temporary: files that go when it is written."""

    members: list[Member]
    size: int
    remade: int = 0
    cause: str | None = None
    kept: str | None = None
    temporary: tuple[str, ...] = ()


@dataclass
class Plan:
    """orders: numbers of a split's records in the order of the shards. keys: of its records. bytes: of all
    members; films: those of videos among them. mark: equal for equal records and files."""

    source: Source
    layout: Layout
    orders: dict[str, list[int]]
    keys: dict[str, list[str]]
    bytes: int
    films: int
    mark: str

    @property
    def records(self) -> int:
        return sum(map(len, self.keys.values()))


def plan_of(source: Source, layout: Layout) -> Plan:
    """Look at every record and the size of its files; nothing is read."""
    mark, keys, orders, total, films = hashlib.sha256(), {}, {}, 0, 0
    for number, split in enumerate(SPLITS):
        records = source.records(split)
        names = []
        for i in tqdm(
            range(len(records)), unit="record", desc=f"list {split}", delay=0.5, dynamic_ncols=True
        ):
            record = records[i]
            names.append(key_of(record))
            try:
                members = [(m, m.size) for m in layout.members(record)]
            except READ_ERRORS as error:
                mark.update(f"{record['id']}: {error}\n".encode("utf-8", "surrogatepass"))
                continue
            total += sum(room_of(f"{names[-1]}.{m.suffix}", size) for m, size in members)
            films += sum(size for m, size in members if is_film(m))
            for member, size in members:
                mark.update(
                    f"{record['id']} {member.suffix} {size} {place(member)}\n".encode("utf-8", "replace")
                )
        keys[split] = numbered(names)
        orders[split] = np.random.default_rng([SEED, number]).permutation(len(records)).tolist()
    return Plan(source, layout, orders, keys, total, films, mark.hexdigest())


def place(member: Member) -> str:
    """What tells a member from another one of its size."""
    content = member.content
    if isinstance(content, str):
        return f"{content} {os.stat(content).st_mtime_ns}"
    if isinstance(content, dict) and "offset" in content:
        return f"{content['path']} {content['offset']} {os.stat(content['path']).st_mtime_ns}"
    return hashlib.sha256(content if isinstance(content, bytes) else content["bytes"]).hexdigest()


def key_of(record: Record) -> str:
    """The record's id, without the ending of its file and without dots, which end a key."""
    name, path = str(record["id"]), record.get("path")
    stem, ending = os.path.splitext(name)
    if ending and "offset" not in record and (isinstance(path, str) and path.endswith(ending)):
        name = stem
    parts = [printable(part.replace(".", "_")) for part in name.split("/") if part]
    return "/".join(parts) or "_"


def is_film(member: Member) -> bool:
    return f".{member.suffix}".endswith(FILM_ENDINGS)


# ---- one record ----


def prepare(members: list[Member], films: Films | None, scratch: str) -> Prepared:
    """Read the files of a record, and make its videos anew where they are not as wanted. scratch: how paths
    of files begin that it may write."""
    found, temporary, count, kept, size = [], [], 0, None, 0
    try:
        for number, member in enumerate(members):
            size += member.size
            if films is not None and is_film(member) and not isinstance(member.content, bytes):
                to = f"{scratch}-{number}.mp4"
                try:
                    with as_path(member.content) as path:
                        new = remade(path, Path(to), films)
                except (VideoError, NotTheSame) as error:
                    new, kept = False, cause_of(error)
                    Path(to).unlink(missing_ok=True)
                if new:
                    count += 1
                    temporary.append(to)
                    suffix = f"{member.suffix.rpartition('.')[0]}.mp4".removeprefix(".")
                    member = Member(suffix, to)
            found.append(loaded(member))
    except READ_ERRORS as error:
        return Prepared([], size, cause=cause_of(error), temporary=tuple(temporary))
    return Prepared(found, size, count, kept=kept, temporary=tuple(temporary))


def loaded(member: Member) -> Member:
    """The same, its content in memory where it is not too large. Raises OSError."""
    if isinstance(member.content, bytes) or member.size > IN_MEMORY:
        return member
    if isinstance(member.content, dict):
        return Member(member.suffix, bytes_of(member.content))
    return Member(member.suffix, Path(member.content).read_bytes())


# ---- beside the writing ----


@contextlib.contextmanager
def pool(workers: int, films: Films | None) -> Iterator[Executor | None]:
    """Threads that read files, processes that make videos; None: neither."""
    if not workers:
        yield None
        return
    if films is None:
        executor: Executor = ThreadPoolExecutor(workers)
    else:
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, context, initializer=deaf)
    try:
        with starting() if films is not None else contextlib.nullcontext():
            yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def deaf() -> None:
    """Ctrl-C goes to all processes of a terminal; the first one says what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_order(calls: Iterable[Callable[[], Any]], executor: Executor | None, ahead: int) -> Iterator[Any]:
    """Results of calls, in order, made by an executor up to `ahead` calls ahead."""
    if executor is None:
        yield from (call() for call in calls)
        return
    waiting: deque = deque()
    for call in calls:
        waiting.append(executor.submit(call))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# ---- shards ----


@dataclass
class Packing:
    """name: how the names of shards begin. size: most bytes of a shard, unless one record has more. films:
    None: videos stay as they are. workers: threads, or where there are films processes; 0: none."""

    plan: Plan
    folder: Folder
    name: str
    size: int
    films: Films | None
    workers: int
    max_bad_fraction: float

    def work(self, done: list[Shard], bar: tqdm) -> list[Shard]:
        """Write what is not `done`; all shards. Raises BadDataError where too many records are bad."""
        shards: list[Shard] = []
        with pool(self.workers, self.films) as executor:
            for split in SPLITS:
                shards += self._split(split, [s for s in done if s.split == split], shards, executor, bar)
        return shards

    def _split(
        self, split: Split, done: list[Shard], others: list[Shard], executor: Executor | None, bar: tqdm
    ) -> list[Shard]:
        shards = [s for number, s in enumerate(done) if s.name == self._name(split, number)]
        bar.update(sum(s.read for s in shards))
        order = self.plan.orders[split][sum(s.taken for s in shards) :]
        calls = (self._call(split, i) for i in order)
        coming = zip(order, in_order(calls, executor, AHEAD * self.workers))
        first = next(coming, None)
        while first is not None:
            shard = Shard(self._name(split, len(shards)))
            with replaced(self.folder.path(shard.name)) as file:
                tar = Tar(file)
                rest = itertools.chain([first], coming)
                first = self._fill(tar, shard, split, rest, [*others, *shards], bar)
                tar.end()
            shard.bytes, shard.sha256 = tar.bytes, tar.digest.hexdigest()
            if not shard.samples:
                self.folder.path(shard.name).unlink()
            self.folder.keep(shard)
            shards.append(shard)
        if not any(shard.samples for shard in shards):
            bad = [bad for shard in shards for bad in shard.bad]
            raise BadDataError(f"no record of the {split} split can be read. The first ten:\n{listed(bad)}")
        return shards

    def _name(self, split: Split, number: int) -> str:
        return f"{split}/{self.name}-{number:06d}.tar"

    def _call(self, split: Split, i: int) -> Callable[[], Prepared]:
        try:
            members = self.plan.layout.members(self.plan.source.records(split)[i])
        except READ_ERRORS as error:
            return functools.partial(Prepared, [], 0, cause=cause_of(error))
        return functools.partial(prepare, members, self.films, str(self.folder.unfinished / f"{split}-{i}"))

    def _fill(
        self,
        tar: Tar,
        shard: Shard,
        split: Split,
        coming: Iterator[tuple[int, Prepared]],
        before: list[Shard],
        bar,
    ) -> tuple[int, Prepared] | None:
        """Add records until one does not fit, which is returned."""
        records = self.plan.source.records(split)
        for i, record in coming:
            key = self.plan.keys[split][i]
            room = sum(room_of(f"{key}.{m.suffix}", m.size) for m in record.members)
            if shard.samples and whole(tar.bytes + room) > self.size:
                return i, record
            shard.taken, shard.read = shard.taken + 1, shard.read + record.size
            if record.cause is not None:
                shard.bad.append((str(records[i]["id"]), record.cause))
                self._check_bad([*before, shard])
            else:
                add(tar, shard, key, record)
            if record.kept is not None:
                shard.kept.append((str(records[i]["id"]), record.kept))
            for path in record.temporary:
                os.unlink(path)
            bar.update(record.size)
        return None

    def _check_bad(self, shards: list[Shard]) -> None:
        bad = [bad for shard in shards for bad in shard.bad]
        most = allowed(self.plan.records, self.max_bad_fraction)
        if len(bad) > most:
            raise BadDataError(
                f"{len(bad)} of {self.plan.records} records cannot be read;"
                f" data.max_bad_fraction={self.max_bad_fraction:g} allows {most}. Repair or remove them, or"
                f" raise data.max_bad_fraction. The first ten:\n{listed(bad)}"
            )


def add(tar: Tar, shard: Shard, key: str, record: Prepared) -> None:
    size = 0
    for member in record.members:
        offset, length = tar.add(f"{key}.{member.suffix}", member.content, member.size)
        size += length
        content = member.content
        text = content.decode() if member.suffix == "cls" and isinstance(content, bytes) else None
        shard.members.append((key, member.suffix, offset, length, text))
    shard.samples, shard.remade = shard.samples + 1, shard.remade + record.remade
    shard.saved += record.size - size
