"""The source `webdataset`: samples in tar shards, read in place and at random, so that a sample is a function
of (seed, epoch, index) here too, and a run resumes exactly.

    source: {name: webdataset, root: /data/shards}  # every .tar below; folders train and val are the splits
    source: {name: webdataset, root: "/data/in-train-{000..146}.tar", test: "/data/in-val-{00..06}.tar"}
    # elsewhere: each shard is brought when its turn comes (docs/streaming.md)
    source: {name: webdataset, root: "s3://bucket/packed", cache: 200GB}
"""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vicjoint.files.cells import Part, bytes_of, of_channels
from vicjoint.files.folder import not_used
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.files.kept import Kept
from vicjoint.options import ByteSize, Count, bytes_in
from vicjoint.orders import ShardOrder
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import OWN, SPLITS, SourceError, TestFraction, tests_by_hash
from vicjoint.sources.columns import Shared, Texts
from vicjoint.sources.members import OF_CLASS
from vicjoint.sources.places import Shards, check_room, find, split_of_shard
from vicjoint.sources.suffixes import columns_of, suffixes_of
from vicjoint.video import VIDEO_SUFFIXES

OF_A_CELL = 400  # bytes in memory


class Members:
    """The members of all shards, and the keys that they belong to: arrays of the keys (shard, first and last
    member, label's number or -1) and of the members (suffix, offset, size)."""

    def __init__(self, tables: list):
        import pyarrow as pa

        table = pa.concat_tables(tables).combine_chunks()
        keys, suffixes, texts = (
            table[c].combine_chunks().dictionary_encode() for c in ("key", "suffix", "text")
        )
        shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t) for t in tables])
        # keys in the order in which they begin, the members of each in theirs; of one suffix the last counts
        both = shard.astype(np.int64) * len(keys.dictionary) + codes(keys)
        _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
        key_of = np.empty(len(first), np.int64)
        key_of[np.argsort(first)] = np.arange(len(first))
        key_of = key_of[inverse]
        suffix = codes(suffixes)
        _, last = np.unique((key_of * len(suffixes.dictionary) + suffix)[::-1], return_index=True)
        order = np.sort(len(suffix) - 1 - last)
        order = order[np.argsort(key_of[order], kind="stable")]
        key_of = key_of[order]
        begins = np.searchsorted(key_of, np.arange(len(first) + 1))
        self.shard, self.begin, self.end = shard[order][begins[:-1]], begins[:-1], begins[1:]
        self.suffixes: list[str] = suffixes.dictionary.to_pylist()
        self.suffix = suffix[order].astype(np.int32)
        self.offset, self.size = (table[c].to_numpy()[order] for c in ("offset", "size"))
        self.keys = keys.dictionary.take(pa.array(codes(keys)[order][begins[:-1]]))
        self.classes: list[str] = texts.dictionary.to_pylist()
        self.label = np.full(len(first), -1, np.int32)
        known = codes(texts)[order]
        self.label[key_of[known >= 0]] = known[known >= 0]

    def samples(self, passed: Counter[str], column: str | None) -> tuple[np.ndarray, np.ndarray]:
        """(key, member of its own file or -1) of each sample: a key each, where its own file is a column;
        else a picture each, else a video, else a key. Raises SourceError for a column that is not there."""
        if column is not None:
            own = np.full(len(self.end), -1)
            wanted = suffixes_of(column, self.suffixes)
            fits = np.array([suffix in wanted for suffix in self.suffixes], dtype=bool)
            found = np.flatnonzero(fits[self.suffix])[::-1]  # of several the first
            own[np.searchsorted(self.end, found, side="right")] = found
            return np.arange(len(self.end)), own
        for what, endings in (("picture", IMAGE_SUFFIXES), ("video", VIDEO_SUFFIXES)):
            fits = np.array([f".{suffix}".endswith(endings) for suffix in self.suffixes], dtype=bool)
            if len(own := np.flatnonzero(fits[self.suffix])):
                key = np.searchsorted(self.end, own, side="right")
                passed[f"keys without a {what}"] += len(self.end) - len(np.unique(key))
                return key, own
        return np.arange(len(self.end)), np.full(len(self.end), -1)


def codes(column) -> np.ndarray:
    """The numbers of a dictionary-encoded pyarrow array; -1: null."""
    return column.indices.fill_null(-1).to_numpy(zero_copy_only=False)


class ShardRecords(Sequence):
    """Records of samples: the place of their own file, their class, and a column for each member, by its
    suffix, and for each key of the JSON members: keys {column: key}; and by what `columns_of` makes of
    suffixes, with None where a record has no such member."""

    def __init__(
        self,
        shards: Shards,
        members: Members,
        keys: dict[str, str],
        sample: np.ndarray,
        own: np.ndarray,
        several: np.ndarray,
    ):
        import pyarrow as pa
        import pyarrow.compute as pc

        self.shards, self.keys, self.suffixes, self.classes = shards, keys, members.suffixes, members.classes
        self.column_of = columns_of(members.suffixes, {*OWN, *members.suffixes, *keys})
        self.columns = [column.name for column in self.column_of.values()]
        ids = members.keys.take(pa.array(sample))
        if several.any():  # pictures of one key have longer names
            ending = pa.array([members.suffixes[c] for c in members.suffix[own].tolist()], ids.type)
            longer = pc.binary_join_element_wise(ids, ending, pa.scalar(".", ids.type))
            ids = pc.if_else(pa.array(several), longer, ids)
        self.ids = Texts.of_arrow(ids)
        # of each sample: shard, label, member of its own file, first and last member
        rows = members.shard, members.label, own, members.begin, members.end
        self._rows = Shared(np.stack([r if r is own else r[sample] for r in rows], 1).astype(np.int64))
        self._suffix = Shared(members.suffix)
        self._places = Shared(np.stack([members.offset, members.size], 1))
        # to make a record, and to read its JSON, costs more than all else that comes from memory
        self._made, self._objects = Kept(16), Kept(32)

    @property
    def shard(self) -> np.ndarray:
        return self._rows.array[:, 0]

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, i: int) -> str:
        return f"{self.shards.names[self._rows.array[i, 0]]}/{self.ids[i]}"

    def lacks(self, column: str) -> np.ndarray | None:
        """bool [N]: which records have no member for a column; None: it is not a member's, but a key of one
        or something else that every record has."""
        if column in self.keys or column in OWN:
            return None
        of = self.column_of
        codes = [i for i, s in enumerate(self.suffixes) if column == s or (s in of and of[s].name == column)]
        before = np.concatenate([[0], np.cumsum(np.isin(self._suffix.array, codes))])
        begin, end = self._rows.array[:, 3:].T
        return before[begin] == before[end]

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        if (record := self._made.get(i)) is None:
            record = self._make(i)
            self._made.add(i, record, OF_A_CELL * len(record))
        return record

    def _make(self, i: int) -> dict:
        shard, label, own, begin, end = self._rows.array[i].tolist()
        columns, name = dict.fromkeys(self.columns), self.ids[i]
        places = self._places.array[begin:end].tolist()
        for number, (offset, size) in zip(self._suffix.array[begin:end].tolist(), places):
            suffix = self.suffixes[number]
            part = self.shards.part(shard, offset, size)
            part["id"] = f"{name}.{suffix}"
            columns[suffix] = part
            if suffix in self.column_of:
                column, before = self.column_of[suffix], columns[self.column_of[suffix].name]
                if column.channel is not None:
                    part = of_channels(before, part, column.channel)
                columns[column.name] = [*(before or []), part] if column.many else part
        record = {**columns, "id": f"{self.shards.names[shard]}/{name}"}
        if "json" in columns:
            for column, key in self.keys.items():
                record[column] = part = Part(columns["json"])
                part["key"], part.kept = key, self._objects
        if own >= 0:
            record |= self.shards.part(shard, *places[own - begin])
        return record | {"label": self.classes[label] if label >= 0 else None}


@register("source", "webdataset")
class WebDataset(Source):
    """Tar shards in WebDataset's layout: members of one key belong together, e.g. 0001.jpg, 0001.txt and
    0001.cls.

    root: a folder (all .tar files below it; those whose folder or name says train, and test, val, ..., are
    the splits), or a pattern of shards with a range such as {000..146}; either may be a URL (s3://, gs://,
    https:// and others). test: a pattern of the test shards; without one, and without splits by name, the
    split is by hash of the key, of URLs by hash of the shard. label: suffix of the member that holds the
    class as text. column: a record is a key, and its own file this column of it; null: a record is a picture
    of a key (where there are none, a video; else the key). It has a column for each member of its key, by its
    suffix (video.mp4 is video, too; picture.0.png and picture.1.png are the two values of picture, and
    cells.{DNA}.tif a channel of cells), and for each key of a .json member (json_... where the name is
    taken). Hidden members are passed over. Uncompressed shards only. The index of a folder that vicjoint.pack
    wrote is used.
    cache, lanes, window: of shards elsewhere. cache: what the folder that they are brought to may hold. Each
    batch takes its samples from so many lanes of shards, each shuffled within windows of so many shards
    (docs/streaming.md).
    """

    root_is_a_path = False  # it may be a pattern

    def __init__(
        self,
        root: str,
        test: str | None = None,
        label: str = OF_CLASS,
        column: str | None = None,
        test_fraction: TestFraction = 0.15,
        cache: ByteSize = "50GB",
        lanes: Count = 8,
        window: Count = 4,
    ):
        self.root, self.passed = root, Counter()
        room = bytes_in(cache)
        shards = find(root, label.lower(), room, self.passed)
        sides = [shards.split_of(i) or split_of_shard(path, root) for i, path in enumerate(shards.paths)]
        if test is not None:
            tests = find(test, label.lower(), room, self.passed)
            if both := set(shards.paths) & set(tests.paths):
                raise SourceError(
                    f"webdataset: {min(both)} is in root and in test. Keep it on one side, or the test is on"
                    " training data."
                )
            sides = ["train"] * len(shards.paths) + ["test"] * len(tests.paths)
            shards = shards.joined(tests)
        by_name = {"train", "test"} <= set(sides)
        if by_name:
            self.passed["shards whose name is no split's"] += sides.count(None)
            order = [i for split in SPLITS for i, side in enumerate(sides) if side == split]
            shards, sides = shards.only(order), [sides[i] for i in order]
        self.shards = shards
        self.cut = shards.list_members(label.lower(), self.passed)
        self._order = None
        if shards.remotes:
            ahead = check_room("webdataset", [of.size for of in shards.remotes], room, lanes, window)
            self._order = lanes, window, shards.remotes if ahead else None
        self._divide(sides if by_name else None, test_fraction, column)

    def _divide(self, sides: list[str] | None, test_fraction: float, column: str | None) -> None:
        """Set the records of both splits; sides: of the shards, None: by hash."""
        shards, members, keys = self.shards, Members(self.shards.tables), self.shards.json_keys
        shards.forget_tables()
        sample, own = members.samples(self.passed, column)
        if not len(sample):
            raise SourceError(
                f"webdataset: no sample in {shards.paths[0]} and the {len(shards.paths) - 1} shards with it. "
                f"Expected members ending in {' '.join(IMAGE_SUFFIXES)}, or others in pairs."
            )
        shard = members.shard[sample]
        if sides is not None:
            tests = np.array([side == "test" for side in sides])[shard]
        elif shards.remotes is not None and len(shards.paths) > 1:
            tests = tests_by_hash(shards.paths, test_fraction, f"webdataset {self.root}", "shard")[shard]
        else:
            used = np.unique(sample)
            places = zip(members.shard[used].tolist(), members.keys.take(used).to_pylist())
            ids = [f"{shards.paths[number]}/{key}" for number, key in places]
            of_key = np.zeros(len(members.end), dtype=bool)
            of_key[used] = tests_by_hash(ids, test_fraction, f"webdataset {self.root}", "key")
            tests = of_key[sample]
        keys = keys_of_json(shards, members) if keys is None else named_keys(keys, members)
        several = (np.bincount(sample)[sample] > 1) & (own >= 0)
        self.train, self.test = (
            ShardRecords(shards, members, keys, sample[of], own[of], several[of]) for of in (~tests, tests)
        )
        for split, part in (("train", self.train), ("test", self.test)):
            if not len(part):
                raise SourceError(
                    f"webdataset: {self.root} has no sample in its {split} shards. Put some there."
                )

    def ids(self, split, side="a"):
        records = self.records(split, side)
        return map(records.id, range(len(records)))

    def lacks(self, split, key) -> np.ndarray | None:
        return self.records(split).lacks(key)

    def order(self, split) -> ShardOrder | None:
        return self._order and ShardOrder(self.records(split).shard.copy(), *self._order)

    def describe(self) -> str:
        cut = ""
        if self.cut:
            first = "; ".join(f"{name} {where}" for name, where in self.cut[:3])
            more = f" and {len(self.cut) - 3} more" if len(self.cut) > 3 else ""
            cut = f"; cut off, so that what follows is lost: {first}{more}"
        return (
            f"webdataset {self.root}: {len(self.train):,} train, {len(self.test):,} test samples in"
            f" {len(self.shards.paths)} shards{not_used(self.passed)}{cut}"
        )


def keys_of_json(shards: Shards, members: Members) -> dict[str, str]:
    """{column: key} of the keys of the first JSON member."""
    if "json" not in members.suffixes:
        return {}
    first = int(np.argmax(members.suffix == members.suffixes.index("json")))
    shard = int(members.shard[np.searchsorted(members.end, first, side="right")])
    part = shards.part(shard, int(members.offset[first]), int(members.size[first]))
    try:
        content = json.loads(bytes_of({"id": "json", **part}))
    except (ValueError, RecursionError):
        return {}
    return named_keys(list(content), members) if isinstance(content, dict) else {}


def named_keys(keys: list[str], members: Members) -> dict[str, str]:
    """{column: key}; json_... where a column of that name is there."""
    taken = {*OWN, *members.suffixes}
    return {f"json_{key}" if key in taken else key: key for key in keys}
