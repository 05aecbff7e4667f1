"""Samples in containers: WebDataset's tar shards, and Hugging Face data sets. Both are read in place and at
random, so a sample is a function of (seed, epoch, index) here too, and a run resumes exactly.

    source: {name: webdataset, root: /data/shards}  # every .tar below; folders train and val are the splits
    source: {name: webdataset, root: "/data/in-train-{000..146}.tar", test: "/data/in-val-{00..06}.tar"}
    source: {name: hf, root: /data/saved}                                 # save_to_disk's folder
    # a hub id: downloaded once by the datasets library
    source: {name: hf, root: uoft-cs/cifar10, image: img, label: label}
    # streamed from the hub until so many are there, then kept
    source: {name: hf, root: org/large, take: 50000, test: validation}
"""

import hashlib
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vicjoint.files.cache import cache_root
from vicjoint.files.cells import Part, bytes_of, file_of, is_empty
from vicjoint.files.folder import Walk, not_used
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.files.paths import user_path
from vicjoint.files.write import whole_folder
from vicjoint.library import ask_hub
from vicjoint.options import Count
from vicjoint.parts import Source
from vicjoint.registry import nearest, need, register
from vicjoint.sources.base import SPLITS, SourceError, TestFraction, names_below, split_by_hash, split_of
from vicjoint.sources.suffixes import columns_of, suffixes_of
from vicjoint.video import VIDEO_SUFFIXES

OWN = ("id", "path", "bytes", "offset", "size", "label", "folder", "second")  # keys of a record
CLASS_BYTES = 256  # of a member that holds a class

# ---- webdataset ----

Place = tuple[int, int]
"""Where the content of a member lies in its tar file: offset and size in bytes."""


class Sample(NamedTuple):
    """What tar file number `shard` has under one key: members {suffix: place}, its class, and the suffix of
    the record's own file, a picture; where there are none, a video; else none."""

    shard: int
    key: str
    members: dict[str, Place]
    label: str | None
    own: str | None = None


class ShardRecords(Sequence):
    """Records of samples: the place of their own file, their class, and a column for each member, by its
    suffix, and for each key of the JSON members: keys {column: key}; and by what `column_of` makes of
    suffixes, with None where a record has no such member."""

    def __init__(self, shards: list[str], samples: list[Sample], keys: dict[str, str]):
        self.shards, self.keys = shards, keys
        names = [os.path.basename(shard) for shard in shards]
        twice = len(set(names)) < len(names)
        self.names = [os.path.relpath(s, os.path.commonpath(shards)) for s in shards] if twice else names
        self.shard = np.array([s.shard for s in samples], dtype=np.int32)
        self.labels, self.own = [s.label for s in samples], [s.own for s in samples]
        several = Counter((s.shard, s.key) for s in samples)  # pictures of one key have longer names
        self.ids = [f"{s.key}.{s.own}" if several[s.shard, s.key] > 1 else s.key for s in samples]
        self.ends = np.cumsum([len(s.members) for s in samples], dtype=np.int64)
        self.suffixes = list({suffix: None for s in samples for suffix in s.members})
        self.column_of = columns_of(self.suffixes, {*OWN, *self.suffixes, *keys})
        self.columns = [column for column, _ in self.column_of.values()]
        number = {suffix: i for i, suffix in enumerate(self.suffixes)}
        self.suffix = np.array([number[suffix] for s in samples for suffix in s.members], dtype=np.int32)
        self.places = np.array([place for s in samples for place in s.members.values()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        path, name = self.shards[self.shard[i]], self.names[self.shard[i]]
        columns = dict.fromkeys(self.columns)
        for m in range(self.ends[i - 1] if i else 0, self.ends[i]):
            suffix, (offset, size) = self.suffixes[self.suffix[m]], self.places[m].tolist()
            part = columns[suffix] = Part(id=f"{self.ids[i]}.{suffix}", path=path, offset=offset, size=size)
            if suffix in self.column_of:
                column, many = self.column_of[suffix]
                columns[column] = [*(columns[column] or []), part] if many else part
        if "json" in columns:
            columns |= {column: Part(columns["json"], key=key) for column, key in self.keys.items()}
        own = {key: columns[self.own[i]][key] for key in ("path", "offset", "size")} if self.own[i] else {}
        return {**columns, "id": f"{name}/{self.ids[i]}", **own, "label": self.labels[i]}


@register("source", "webdataset")
class WebDataset(Source):
    """Tar shards in WebDataset's layout: members of one key belong together, e.g. 0001.jpg, 0001.txt and
    0001.cls.

    root: a folder (all .tar files below it; those whose folder or name says train, and test, val, ..., are
    the splits), or a pattern of shards with a range such as {000..146}. test: a pattern of the test shards;
    without one, and without splits by name, the split is by hash of the key. label: suffix of the member that
    holds the class as text. column: a record is a key, and its own file this column of it; null: a record is
    a picture of a key (where there are none, a video; else the key). It has a column for each member of its
    key, by its suffix (video.mp4 is video, too; picture.0.png and picture.1.png are the two values of
    picture), and for each key of a .json member (json_... where the name is taken). Hidden members are passed
    over. Uncompressed shards on a file system only: they are read in place.
    """

    root_is_a_path = False  # it may be a pattern

    def __init__(
        self,
        root: str,
        test: str | None = None,
        label: str = "cls",
        column: str | None = None,
        test_fraction: TestFraction = 0.15,
    ):
        self.root = root
        self.passed: Counter[str] = Counter()
        shards = find_shards(root, self.passed)
        if test is not None:
            parts = {"train": shards, "test": find_shards(test, self.passed)}
            if both := set(shards) & set(parts["test"]):
                raise SourceError(
                    f"webdataset: {min(both)} is in root and in test. Keep it on one side, or the test is on"
                    " training data."
                )
        else:
            sides = [split_of_shard(shard, root) for shard in shards]
            parts = {split: [s for s, of in zip(shards, sides) if of == split] for split in SPLITS}
        by_name = all(parts.values())
        if by_name and test is None and None in sides:
            self.passed["shards whose name is no split's"] += sides.count(None)
        shards = parts["train"] + parts["test"] if by_name else shards
        samples = list_samples(shards, label, self.passed, column)
        if not samples:
            raise SourceError(
                f"webdataset: no sample in {shards[0]} and the {len(shards) - 1} shards with it. "
                f"Expected members ending in {' '.join(IMAGE_SUFFIXES)}, or others in pairs."
            )
        if by_name:
            side = ["train" if s.shard < len(parts["train"]) else "test" for s in samples]
        else:
            ids = [f"{shards[s.shard]}/{s.key}" for s in samples]
            by_hash = split_by_hash(list(dict.fromkeys(ids)), test_fraction, f"webdataset {root}", "key")
            side = [by_hash[i] for i in ids]
        keys = keys_of_json(shards, samples)
        self.train, self.test = (
            ShardRecords(shards, [s for s, of in zip(samples, side) if of == split], keys) for split in SPLITS
        )
        for split, part in (("train", self.train), ("test", self.test)):
            if not len(part):
                raise SourceError(f"webdataset: {root} has no sample in its {split} shards. Put some there.")

    def describe(self) -> str:
        shards = len(set(self.train.shards))
        return (
            f"webdataset {self.root}: {len(self.train):,} train, {len(self.test):,} test samples in {shards}"
            f" shards{not_used(self.passed)}"
        )


def find_shards(pattern: str, passed: Counter[str] | None = None) -> list[str]:
    """Paths of the shards of a folder or of a pattern with one range {000..146}, sorted; to `passed` is added
    what was passed over. Raises SourceError where one is missing."""
    if re.match(r"[a-z]+:", pattern):
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
    parts = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(path))
    shards = [str(path)]
    if parts:
        before, first, last, after = parts.groups()
        shards = [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)]
    for shard in shards:
        if not os.path.isfile(shard):
            raise SourceError(
                f"webdataset: {shard} does not exist. Expected a .tar file, a folder, or a pattern such as"
                " x-{000..146}.tar."
            )
    return shards


def split_of_shard(shard: str, root: str) -> str | None:
    """What its folders below the root, or the words of its name, say."""
    path, folder = Path(shard), user_path(root).absolute()
    folders = path.parent.relative_to(folder).parts if folder.is_dir() else ()
    words = (*folders, *re.split("[^A-Za-z]+", path.stem))
    return next((split for word in words if (split := split_of(word))), None)


def list_samples(
    shards: list[str], label: str, passed: Counter[str], column: str | None = None
) -> list[Sample]:
    """Those of all shards: a key each, where `column` is given; else a picture, else a video, else a key.
    Raises SourceError for a column that no key has."""
    keys = [s for number, shard in enumerate(shards) for s in list_members(number, shard, label, passed)]
    if column is not None:
        own = suffixes_of(column, {suffix for s in keys for suffix in s.members})
        return [s._replace(own=next((m for m in s.members if m in own), None)) for s in keys]
    for what, endings in (("picture", IMAGE_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        found = [s._replace(own=own) for s in keys for own in s.members if f".{own}".endswith(endings)]
        if found:
            passed[f"keys without a {what}"] += len(keys) - len({(s.shard, s.key) for s in found})
            return found
    return keys


def list_members(number: int, shard: str, label: str, passed: Counter[str]) -> list[Sample]:
    """The keys of one shard; only headers and classes are read."""
    found: dict[str, dict[str, Place]] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if not member.isfile():
                    passed["members that are no files"] += not member.isdir()
                    continue
                if any(
                    part.startswith(".") and part not in ("", ".", "..") for part in member.name.split("/")
                ):
                    passed["hidden"] += 1
                    continue
                if member.issparse():  # its content does not lie there as it is
                    passed["sparse"] += 1
                    continue
                key, _, suffix = name.partition(".")
                column, dot, ending = suffix.rpartition(".")  # a column's name keeps its capitals
                key, suffix = f"{folder}/{key}" if folder else key, sys.intern(column + dot + ending.lower())
                found.setdefault(key, {})[suffix] = member.offset_data, member.size
                if suffix == label.lower() and (file := members.extractfile(member)):
                    classes[key] = file.read(CLASS_BYTES).decode("utf-8", "replace").strip()
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"webdataset: {shard} cannot be listed: {error}. Expected an uncompressed tar file; make a broken"
            " or compressed one again."
        ) from None
    return [Sample(number, key, of, classes.get(key)) for key, of in found.items()]


def pictures_of(shard: str, label: str = "cls") -> list[tuple[dict, str | None]]:
    """(record as `images.read_record` takes it, class) of each picture of a tar file."""
    found = []
    for s in list_members(0, shard, label, Counter()):
        own = [suffix for suffix in s.members if f".{suffix}".endswith(IMAGE_SUFFIXES)]
        for suffix in own:
            name = s.key if len(own) == 1 else f"{s.key}.{suffix}"
            offset, size = s.members[suffix]
            found.append(({"id": name, "path": shard, "offset": offset, "size": size}, s.label))
    return found


def keys_of_json(shards: list[str], samples: list[Sample]) -> dict[str, str]:
    """{column: key} of the keys of the first JSON member; json_... where a column of that name is there."""
    first = next((s for s in samples if "json" in s.members), None)
    if first is None:
        return {}
    offset, size = first.members["json"]
    try:
        content = json.loads(bytes_of({"path": shards[first.shard], "offset": offset, "size": size}))
    except (ValueError, RecursionError):
        return {}
    taken = {*OWN, *(suffix for s in samples for suffix in s.members)}
    keys = content if isinstance(content, dict) else {}
    return {f"json_{key}" if key in taken else key: key for key in keys}


# ---- Hugging Face ----


class HuggingFaceRecords(Sequence):
    """Rows of a data set, with all columns; the bytes of pictures and sounds are read when a record is asked
    for. image: the column of the record's own file, where there is one."""

    def __init__(self, rows, split: str, image: str | None, label: str | None):
        self.rows, self.split, self.image, self.label = rows, split, image, label
        named = {column: getattr(feature, "names", None) for column, feature in rows.features.items()}
        self.names = {column: names for column, names in named.items() if names}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        row = self.rows[int(i)]
        for column, names in self.names.items():
            if row[column] is not None:
                row[column] = names[row[column]] if row[column] >= 0 else None
        own: dict = {"id": self.id(i), "label": row[self.label] if self.label else None}
        if self.image:
            found = None if is_empty(row[self.image]) else file_of(own, row[self.image])
            own |= {"bytes": found["bytes"]} if isinstance(found, dict) else {"path": found}
        return {f"table_{k}" if k in OWN and k != self.label else k: v for k, v in row.items()} | own

    def id(self, i: int) -> str:
        return f"{self.split}/{i}"


@register("source", "hf")
class HuggingFace(Source):
    """A data set of the `datasets` library: a folder of save_to_disk, a local folder or a hub id that
    load_dataset understands.

    config, train, test: names of the configuration and of the splits (test: null takes test or validation,
    else the split is by hash). image, label: columns; label null: none. take: stream that many samples of
    each split from the hub and keep them in the cache folder, for data sets too large to download.
    """

    root_is_a_path = False  # it may be a hub id

    def __init__(
        self,
        root: str,
        config: str | None = None,
        train: str = "train",
        test: str | None = None,
        image: str = "image",
        label: str | None = "label",
        take: Count | None = None,
        test_fraction: TestFraction = 0.15,
    ):
        self.root = root
        data = load(root, config, take)
        if train == "train" and train not in data:
            train = next((name for name in data if split_of(name) == "train"), train)
        if train not in data:
            raise SourceError(
                f"hf: {root} has no split '{train}' (option train).{nearest(train, data)} Splits:"
                f" {', '.join(data)}."
            )
        if test is not None and test not in data:
            raise SourceError(
                f"hf: {root} has no split '{test}' (option test).{nearest(test, data)} Splits:"
                f" {', '.join(data)}."
            )
        test = test or next((name for name in data if name != train and split_of(name) == "test"), None)
        rows = {split: prepared(root, data[split], image, label) for split in (train, test) if split}
        label = label if label in rows[train].features else None
        image = image if image in rows[train].features else None
        self.unused = [name for name in data if name not in (train, test)]
        if test is None:
            side = split_by_hash([str(i) for i in range(len(rows[train]))], test_fraction, f"hf {root}")
            places = {
                split: [int(i) for i, where in side.items() if where == split] for split in ("train", "test")
            }
            self.train, self.test = (
                HuggingFaceRecords(rows[train].select(p), f"{train}-{s}", image, label)
                for s, p in places.items()
            )
        else:
            self.train, self.test = (
                HuggingFaceRecords(rows[split], split, image, label) for split in (train, test)
            )

    def describe(self) -> str:
        unused = f"; splits not used: {', '.join(self.unused)}" if self.unused else ""
        return f"hf {self.root}: {len(self.train):,} train, {len(self.test):,} test samples{unused}"

    def ids(self, split, side="a"):
        records = self.records(split, side)
        return map(records.id, range(len(records)))


def load(root: str, config: str | None, take: int | None):
    """{split: data set}. Raises ComponentError where the library is missing, SourceError where nothing can be
    loaded."""
    folder = user_path(root)
    if not folder.exists():
        ask_hub()  # before the library is imported, which asks only then
    (datasets,) = need(["datasets"], "source 'hf'", "hf")
    try:
        if folder.is_dir() and ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
            data = datasets.load_from_disk(str(folder))
            return data if isinstance(data, dict) else {"train": data}
        if take is None:
            return datasets.load_dataset(root, config)
        name = hashlib.sha256(f"{root}\0{config}\0{take}".encode()).hexdigest()[:12]
        kept = cache_root() / f"hf-{name}"
        try:
            return datasets.load_from_disk(str(kept))
        except (OSError, ValueError):  # not there, or not whole
            streams = datasets.load_dataset(root, config, streaming=True)
            data = datasets.DatasetDict(
                {split: taken(datasets, rows, take) for split, rows in streams.items()}
            )
            with whole_folder(kept) as building:
                data.save_to_disk(str(building))
        return datasets.load_from_disk(str(kept))
    except Exception as error:  # a network, a hub and many file formats can fail here, each in its own way
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SourceError(
            f"hf: '{root}' cannot be loaded: {first}. Expected a folder made by save_to_disk, a folder or a"
            " hub id that load_dataset takes; without a network only folders work."
        ) from None


def taken(datasets, rows, take: int):
    """The first `take` rows of a stream, kept."""
    return datasets.Dataset.from_generator(lambda: iter(rows.take(take)), features=rows.features)


def prepared(root: str, rows, image: str, label: str | None):
    """The rows, pictures and sounds as they are stored. Raises SourceError for columns that are not there."""
    from datasets import Audio, Image

    images = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if image not in images and (images or image != "image"):
        raise SourceError(
            f"hf: {root} has no image column '{image}' (option image).{nearest(image, images)} "
            f"Image columns: {', '.join(images) or 'none'}. All columns: {', '.join(rows.features)}."
        )
    if label not in (None, "label") and label not in rows.features:
        raise SourceError(
            f"hf: {root} has no column '{label}' (option label).{nearest(label, rows.features)} Columns:"
            f" {', '.join(rows.features)}."
        )
    for name, feature in rows.features.items():
        if isinstance(feature, (Audio, Image)):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows
