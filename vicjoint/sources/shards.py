"""Images in containers: WebDataset's tar shards, and Hugging Face data sets. Both are read in place and at
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
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vicjoint.files.cache import cache_root
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.library import ask_hub
from vicjoint.options import Count
from vicjoint.parts import Source
from vicjoint.registry import nearest, need, register
from vicjoint.sources.base import SPLIT_OF, SourceError, TestFraction, split_by_hash

# ---- webdataset ----


class ShardRecords(Sequence):
    """Images inside tar files: which file, where, how long; the class is the member with the suffix `label`
    of the same key."""

    def __init__(self, shards: list[str], members: list[tuple[int, str, int, int, str | None]]):
        self.shards = shards
        self.shard, self.offset, self.size = (
            np.array([m[i] for m in members], dtype=np.int64) for i in (0, 2, 3)
        )
        self.keys = [m[1] for m in members]
        self.labels = [m[4] for m in members]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> dict:
        path = self.shards[self.shard[i]]
        return {
            "id": f"{os.path.basename(path)}/{self.keys[i]}",
            "path": path,
            "offset": int(self.offset[i]),
            "size": int(self.size[i]),
            "label": self.labels[i],
        }


@register("source", "webdataset")
class WebDataset(Source):
    """Tar shards in WebDataset's layout: members of one key belong together, e.g. 0001.jpg and 0001.cls.

    root: a folder (all .tar files below it; those in folders train, and val or test, are the splits), or a
    pattern of shards with a range such as {000..146}. test: a pattern of the test shards; without one, and
    without split folders, the split is by hash of the key. label: suffix of the member that holds the class
    as text. Uncompressed shards on a file system only: they are read in place.
    """

    root_is_a_path = False  # it may be a pattern

    def __init__(
        self, root: str, test: str | None = None, label: str = "cls", test_fraction: TestFraction = 0.15
    ):
        self.root = root
        shards = find_shards(root)
        if test is not None:
            parts = {"train": shards, "test": find_shards(test)}
            if both := set(shards) & set(parts["test"]):
                raise SourceError(
                    f"webdataset: {min(both)} is in root and in test. Keep it on one side, or the test is on"
                    " training data."
                )
        else:
            folder = lambda path: SPLIT_OF.get(Path(path).parent.name.lower())
            parts = {split: [s for s in shards if folder(s) == split] for split in ("train", "test")}
        if all(parts.values()):
            self.train, self.test = (self._records(parts[split], label) for split in ("train", "test"))
            return
        members = [m for number, shard in enumerate(shards) for m in list_members(number, shard, label)]
        ids = [f"{shards[m[0]]}/{m[1]}" for m in members]
        if not ids:
            raise SourceError(
                f"webdataset: no image in the shards of {root}. Expected members ending in"
                f" {' '.join(IMAGE_SUFFIXES)}."
            )
        side = split_by_hash(ids, test_fraction, f"webdataset {root}")
        self.train, self.test = (
            ShardRecords(shards, [m for m, i in zip(members, ids) if side[i] == split])
            for split in ("train", "test")
        )

    def _records(self, shards: list[str], label: str) -> ShardRecords:
        records = ShardRecords(
            shards, [m for number, shard in enumerate(shards) for m in list_members(number, shard, label)]
        )
        if not len(records):
            raise SourceError(
                f"webdataset: no image in {shards[0]} and the {len(shards) - 1} shards with it. "
                f"Expected members ending in {' '.join(IMAGE_SUFFIXES)}."
            )
        return records

    def describe(self) -> str:
        shards = len(set(self.train.shards) | set(self.test.shards))
        return (
            f"webdataset {self.root}: {len(self.train):,} train, {len(self.test):,} test images in {shards}"
            " shards"
        )


def find_shards(pattern: str) -> list[str]:
    """Paths of the shards of a folder or of a pattern with one range {000..146}, sorted. Raises SourceError
    where one is missing."""
    if re.match(r"[a-z]+:", pattern):
        raise SourceError(
            f"webdataset: {pattern} is not on a file system. Copy the shards, or mount them: they are read at"
            " random."
        )
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        shards = sorted(str(p) for p in path.rglob("*.tar") if not p.name.startswith("."))
        if not shards:
            raise SourceError(
                f"webdataset: no .tar file below {path}. Give the folder of the shards, or a pattern such as"
                " x-{000..146}.tar."
            )
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


def list_members(number: int, shard: str, label: str) -> list[tuple[int, str, int, int, str | None]]:
    """(shard number, key, offset, size, class) of the images of one shard; only headers and classes are
    read."""
    found, classes = [], {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                key = f"{folder}/{key}" if folder else key
                if member.issparse():  # its content does not lie there as it is
                    continue
                if member.isfile() and suffix.lower() == label.lower():
                    classes[key] = members.extractfile(member).read(256).decode("utf-8", "replace").strip()
                elif member.isfile() and f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                    found.append((number, key, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise SourceError(
            f"webdataset: {shard} cannot be listed: {error}. Expected an uncompressed tar file; make a broken"
            " or compressed one again."
        ) from None
    return [(*image, classes.get(image[1])) for image in found]


# ---- Hugging Face ----


class HuggingFaceRecords(Sequence):
    """Rows of a data set; an image's bytes are read when its record is asked for."""

    def __init__(self, rows, split: str, image: str, label: str | None):
        self.rows, self.split, self.image, self.label = rows, split, image, label
        names = getattr(rows.features.get(label), "names", None) if label else None
        self.names = names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        row = self.rows[int(i)]
        picture = row[self.image] or {}
        label = row[self.label] if self.label else None
        if self.names and label is not None:
            label = self.names[label] if label >= 0 else None
        content = (
            {"bytes": picture["bytes"]}
            if picture.get("bytes") is not None
            else {"path": picture.get("path") or ""}
        )
        return {"id": self.id(i), "label": label, **content}

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
        test = test or next((name for name in data if name != train and SPLIT_OF.get(name) == "test"), None)
        rows = {split: prepared(root, data[split], image, label) for split in (train, test) if split}
        label = label if label in rows[train].features else None
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
        return f"hf {self.root}: {len(self.train):,} train, {len(self.test):,} test images"

    def ids(self, split, side="a"):
        records = self.records(split, side)
        return map(records.id, range(len(records)))


def load(root: str, config: str | None, take: int | None):
    """{split: data set}. Raises ComponentError where the library is missing, SourceError where nothing can be
    loaded."""
    folder = Path(root).expanduser()
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
        if not (kept / "dataset_dict.json").exists():
            streams = datasets.load_dataset(root, config, streaming=True)
            datasets.DatasetDict(
                {split: taken(datasets, rows, take) for split, rows in streams.items()}
            ).save_to_disk(str(kept))
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
    """The rows with only the columns that are used, images as they are stored."""
    from datasets import Image

    images = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if image not in images:
        raise SourceError(
            f"hf: {root} has no image column '{image}' (option image).{nearest(image, images)} "
            f"Image columns: {', '.join(images) or 'none'}. All columns: {', '.join(rows.features)}."
        )
    if label not in (None, "label") and label not in rows.features:
        raise SourceError(
            f"hf: {root} has no column '{label}' (option label).{nearest(label, rows.features)} Columns:"
            f" {', '.join(rows.features)}."
        )
    wanted = [name for name in (image, label) if name in rows.features]
    return rows.select_columns(wanted).cast_column(image, Image(decode=False))
