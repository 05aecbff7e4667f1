"""The source `hf`: data sets of the datasets library, read at random.

source: {name: hf, root: /data/saved}                                 # save_to_disk's folder
# a hub id: downloaded once by the datasets library
source: {name: hf, root: uoft-cs/cifar10, image: img, label: label}
# streamed from the hub until so many are there, then kept
source: {name: hf, root: org/large, take: 50000, test: validation}
# parquet files elsewhere, each brought when its turn comes (docs/streaming.md)
source: {name: hf, root: "s3://bucket/data/*.parquet", cache: 200GB}
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from vicjoint.files.cache import cache_root
from vicjoint.files.cells import file_of, is_empty
from vicjoint.files.paths import user_path
from vicjoint.files.remote import is_url
from vicjoint.files.write import whole_folder
from vicjoint.library import ask_hub
from vicjoint.options import ByteSize, Count, bytes_in
from vicjoint.orders import ShardOrder
from vicjoint.parts import Source
from vicjoint.registry import nearest, need, register
from vicjoint.sources.base import SourceError, TestFraction, split_by_hash, split_of, tests_by_hash
from vicjoint.sources.parquet_files import FileRecords, classes_of, find_files, is_pattern, named
from vicjoint.sources.places import check_room


class HuggingFaceRecords(Sequence):
    """Rows of a data set, with all columns; the bytes of pictures and sounds are read when a record is asked
    for. image: the column of the record's own file, where there is one."""

    def __init__(self, rows, split: str, image: str | None, label: str | None):
        self.rows, self.split, self.image, self.label = rows, split, image, label
        self.names = classes_of(rows.features)

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
        return {named(column, self.label): value for column, value in row.items()} | own

    def id(self, i: int) -> str:
        return f"{self.split}/{i}"


@register("source", "hf")
class HuggingFace(Source):
    """A data set of the `datasets` library: a folder of save_to_disk, a local folder or a hub id that
    load_dataset understands; or parquet files elsewhere, by the URL (s3://, gs://, https://, file:// and
    others) of one, of a folder, or of a pattern of them with * or a range such as {000..146}; a local path
    may be such a pattern, too.

    config, train, test: names of the configuration and of the splits (test: null takes test or validation,
    else the split is by hash). image, label: columns; label null: none. take: stream that many samples of
    each split from the hub and keep them in the cache folder, for data sets too large to download.
    cache, lanes, window: of parquet files elsewhere, as of `webdataset` (docs/streaming.md). Their folders
    and names say which are of the splits; test is a pattern of those for testing, else the split is by hash
    of the file.
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
        cache: ByteSize = "50GB",
        lanes: Count = 8,
        window: Count = 4,
    ):
        self.root, self._order = root, None
        if is_url(root) or is_pattern(root):
            if (config, train, take) != (None, "train", None):
                raise SourceError(
                    f"hf: {root}: config, train and take are of data sets on the hub. Leave them out: the"
                    " folders and names of files elsewhere say which are for training."
                )
            self._of_files(test, image, label, test_fraction, bytes_in(cache))
            ahead = check_room("hf", self.files.sizes, bytes_in(cache), lanes, window)
            self._order = lanes, window, self.files.remotes if ahead else None
            return
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

    def _of_files(
        self, test: str | None, image: str, label: str | None, test_fraction: float, room: int
    ) -> None:
        files = self.files = find_files(self.root, test, room)
        sides = np.array([side == "test" for side in files.sides])[files.of_rows]
        if not {"train", "test"} <= set(files.sides):
            several = len(files.names) > 1
            ids = files.names if several else [str(i) for i in range(files.begins[-1])]
            sides = tests_by_hash(ids, test_fraction, f"hf {self.root}", "file" if several else "row")
            sides = sides[files.of_rows] if several else sides
        check_columns(self.root, files.features, image, label)
        self.unused = []
        self.train, self.test = (
            FileRecords(files, np.flatnonzero(of), image, label) for of in (~sides, sides)
        )

    def order(self, split) -> ShardOrder | None:
        return self._order and ShardOrder(self.records(split).file, *self._order)

    def describe(self) -> str:
        if self._order:
            return (
                f"hf {self.root}: {len(self.train):,} train, {len(self.test):,} test samples in"
                f" {len(self.files.names)} files{self.files.said()}"
            )
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

    check_columns(root, rows.features, image, label)
    for name, feature in rows.features.items():
        if isinstance(feature, (Audio, Image)):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def check_columns(root: str, features, image: str, label: str | None) -> None:
    """Raises SourceError for columns that are not there."""
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if image not in images and (images or image != "image"):
        raise SourceError(
            f"hf: {root} has no image column '{image}' (option image).{nearest(image, images)} "
            f"Image columns: {', '.join(images) or 'none'}. All columns: {', '.join(features)}."
        )
    if label not in (None, "label") and label not in features:
        raise SourceError(
            f"hf: {root} has no column '{label}' (option label).{nearest(label, features)} Columns:"
            f" {', '.join(features)}."
        )
