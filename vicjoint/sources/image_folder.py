"""The source `image_folder`: every image file below a folder.

    # train/<class>/.../*.JPEG and val/<class>/..., or one tree of classes, or a flat folder
    ImageFolder("/data/imagenet")

Records have `id`, what `vicjoint.files.images.read_record` needs, and `label`, the class as text or None.
They are lists that make each record when it is asked for: a million images take some 50 MB here and in every
worker.
"""

import os
from collections.abc import Sequence

import numpy as np

from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import TestFraction, root_of
from vicjoint.sources.folder import described, list_files, split_folders


class FileRecords(Sequence):
    """Relative paths kept as one block of bytes, with a class number each (-1: none)."""

    def __init__(self, root: str, ids: list[str], labels: list[str | None]):
        self.root = root
        encoded = [i.encode("utf-8", "surrogateescape") for i in ids]
        self.block, self.ends = b"".join(encoded), np.cumsum([len(e) for e in encoded], dtype=np.int64)
        self.classes = sorted({label for label in labels if label is not None})
        number = {name: i for i, name in enumerate(self.classes)} | {None: -1}
        self.numbers = np.array([number[label] for label in labels], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        name = self.block[self.ends[i - 1] if i else 0 : self.ends[i]].decode("utf-8", "surrogateescape")
        number = self.numbers[i]
        return {
            "id": name,
            "path": os.path.join(self.root, name),
            "label": self.classes[number] if number >= 0 else None,
        }


@register("source", "image_folder")
class ImageFolder(Source):
    """Every image file below `root`; links are followed, hidden names are skipped, and what is passed over is
    counted.

    Where `root` has folders for training (train, training) and for testing (test, testing, val, valid,
    validation, dev, eval, evaluation), these are the splits; otherwise the split is by hash of the path.
    Inside, the first folder names the class (ImageFolder's layout; deeper folders belong to it); a file
    without such a folder has no label. Names that are one file by way of links are on one side. The list of
    files is kept in the cache folder and made again when a folder has changed.
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = root_of("image_folder", root, "image")
        self.files = list_files("image_folder", "image", self.root, IMAGE_SUFFIXES)
        by_folder, side = split_folders(
            "image_folder", "image", self.root, self.files, test_fraction, classes=True
        )
        self.train, self.test = (
            self._records([name for name in self.files.names if side[name] == split], int(by_folder))
            for split in ("train", "test")
        )

    def _records(self, ids: list[str], depth: int) -> FileRecords:
        parts = (i.split("/", depth + 1) for i in ids)
        return FileRecords(str(self.root), ids, [p[depth] if len(p) > depth + 1 else None for p in parts])

    def describe(self) -> str:
        classes = f" of {len(self.train.classes)} classes" if self.train.classes else ", no classes"
        beside = len(self.files.names) - len(self.train) - len(self.test)
        return (
            f"image_folder {self.root}: {len(self.train):,} train, {len(self.test):,} test images{classes}"
            f"{described(self.files, beside)}"
        )
