"""The source `image_folder`: every image file below a folder.

    # train/<class>/.../*.JPEG and val/<class>/..., or one tree of classes, or a flat folder
    ImageFolder("/data/imagenet")

Records have `id`, what `vicjoint.files.images.read_record` needs, and `label`, the class as text or None.
They are lists that make each record when it is asked for: a million images take some 50 MB here and in every
worker.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vicjoint.files.cache import cache_root
from vicjoint.files.images import IMAGE_SUFFIXES
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import (
    SPLIT_OF,
    SourceError,
    TestFraction,
    check_both_splits,
    has_split_folders,
    split_by_hash,
    what_is_there,
)

INDEX_VERSION = 1


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
    """Every image file below `root`; links are followed, hidden names are skipped.

    Where `root` has a folder train and one of test, val or validation, these are the splits; otherwise the
    split is by hash of the path. Inside, the first folder names the class (ImageFolder's layout; deeper
    folders belong to it); a file without such a folder has no label. The list of files is kept in the cache
    folder and made again when a folder has changed.
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = Path(root).expanduser().absolute()
        ids, links = list_images(self.root)
        has_splits = has_split_folders(self.root)
        if has_splits:
            side = {i: SPLIT_OF.get(i.split("/")[0].lower()) if "/" in i else None for i in ids}
            check_both_splits("image_folder", "image", self.root, side)
        else:
            side = split_by_hash(ids, test_fraction, f"image_folder {self.root}")
        _check_links(self.root, links, side)
        self.train, self.test = (
            self._records([i for i in ids if side[i] == split], int(has_splits))
            for split in ("train", "test")
        )
        self.left_out = len(ids) - len(self.train) - len(self.test)

    def _records(self, ids: list[str], depth: int) -> FileRecords:
        parts = [i.split("/", depth + 1) for i in ids]
        return FileRecords(str(self.root), ids, [p[depth] if len(p) > depth + 1 else None for p in parts])

    def describe(self) -> str:
        classes = f" of {len(self.train.classes)} classes" if self.train.classes else ", no classes"
        left_out = f" ({self.left_out} outside the split folders left out)" if self.left_out else ""
        return (
            f"image_folder {self.root}: {len(self.train):,} train, {len(self.test):,} test"
            f" images{classes}{left_out}"
        )


def _check_links(root: Path, links: list[str], side: dict[str, str | None]) -> None:
    """No file in both splits by way of a link: a test on training data proves nothing."""
    real_root, seen = os.path.realpath(root), {}
    for link in links:
        target = os.path.realpath(os.path.join(root, link))
        inside = os.path.relpath(target, real_root)
        other = inside if inside in side else seen.setdefault(target, link)
        if side[other] and side[link] and side[other] != side[link]:
            raise SourceError(
                f"image_folder: {other} in {side[other]} and {link} in {side[link]} are the same file. "
                "Keep it on one side, or the test is on training data."
            )


def list_images(root: Path) -> tuple[list[str], list[str]]:
    """Relative posix paths of the image files below `root`, sorted, and those of them that are links; from
    the cached index where no folder has changed since."""
    if not root.exists():
        raise SourceError(
            f"image_folder: root {root} does not exist. Expected a folder with images: check the path."
        )
    if not root.is_dir():
        raise SourceError(
            f"image_folder: root {root} is a file, expected a folder. Give its folder {root.parent}, "
            "or source: {name: table} for a csv of paths."
        )
    index = (
        cache_root() / "index" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}-v{INDEX_VERSION}.npz"
    )
    if (known := _read_index(index, root)) is not None:
        return known
    images, links, others, folders = _walk(root)
    if not images:
        raise SourceError(
            f"image_folder: no image below {root}. {what_is_there(others, 0)} "
            f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}."
        )
    images.sort()
    _write_index(index, images, links, folders)
    return images, links


def _walk(root: Path) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """(images, those that are links, other files, {folder: its time of change in ns}), paths relative to
    root."""
    images, links, others, folders, reached = [], [], [], {}, {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        place = os.path.join(root, folder)
        try:
            state = os.stat(place)
            if (same := reached.setdefault((state.st_dev, state.st_ino), folder)) != folder:
                raise SourceError(
                    f"image_folder: {folder} and {same or 'the root'} below {root} are the same folder, by a"
                    " link. Remove the link, or the same images stand in the list twice."
                )
            folders[folder] = state.st_mtime_ns
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        waiting.append(name)
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        images.append(name)
                        if entry.is_symlink():
                            links.append(name)
                    else:
                        others.append(name)
        except OSError as error:
            raise SourceError(
                f"image_folder: cannot list {place}: {error.strerror}. Allow reading it, or choose another"
                " root."
            ) from None
    return images, links, others, folders


def _read_index(index: Path, root: Path) -> tuple[list[str], list[str]] | None:
    """The paths and links of an index whose folders are all as they were; None where there is none, or a
    folder has changed."""
    try:
        with np.load(index, allow_pickle=False) as saved:
            folders = json.loads(saved["folders"].tobytes())
            if any(
                os.stat(os.path.join(root, folder)).st_mtime_ns != changed
                for folder, changed in folders.items()
            ):
                return None
            return tuple(
                [name for name in saved[key].tobytes().decode("utf-8", "surrogateescape").split("\0") if name]
                for key in ("images", "links")
            )
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_index(index: Path, images: list[str], links: list[str], folders: dict[str, int]) -> None:
    """Keep the index; a cache that cannot be written costs time, not the run."""
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        temporary = index.with_suffix(f".{os.getpid()}.tmp.npz")
        blocks = {"images": "\0".join(images), "links": "\0".join(links), "folders": json.dumps(folders)}
        np.savez(
            temporary,
            **{
                key: np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
                for key, text in blocks.items()
            },
        )
        os.replace(temporary, index)
    except OSError:
        return
