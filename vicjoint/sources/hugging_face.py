"""The source `hf`: data sets of the datasets library, read at random.

source: {name: hf, root: /data/saved}                                 # save_to_disk's folder
# a hub id: downloaded once by the datasets library
source: {name: hf, root: uoft-cs/cifar10, image: img, label: label}
# streamed from the hub until so many are there, then kept
source: {name: hf, root: org/large, take: 50000, test: validation}
"""

import hashlib
from collections.abc import Sequence

from vicjoint.files.cache import cache_root
from vicjoint.files.cells import file_of, is_empty
from vicjoint.files.paths import user_path
from vicjoint.files.write import whole_folder
from vicjoint.library import ask_hub
from vicjoint.options import Count
from vicjoint.parts import Source
from vicjoint.registry import nearest, need, register
from vicjoint.sources.base import OWN, SourceError, TestFraction, split_by_hash, split_of


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
