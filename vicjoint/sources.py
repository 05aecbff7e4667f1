"""Sources: where samples are. A source lists them; reading is the modality's work.

    source = VideoFolder("/data/clips")
    source.train, source.test        # lists of {"id": relative path, "path": absolute path, ...other columns}
    source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"

Where nothing says which samples are for testing, the relative paths do: they are ordered by their sha256, and the first
round(n * test_fraction) are the test split (at least one on each side). A file may be missing or damaged without harm here:
it becomes a bad sample when it is read.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path

from vicjoint import sample
from vicjoint.registry import register

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
SPLIT_OF = {"train": "train", "test": "test", "val": "test", "validation": "test"}


class SourceError(ValueError):
    """A source that cannot be listed; the message says what was found and what to do."""


@register("source", "sample_videos")
class SampleVideos:
    """The sample world as mp4 files in the cache folder; records carry the factors `background` and `sprites`."""

    def __init__(self, train: int = 512, test: int = 96, frames: int = 32, size: int = 64, seed: int = 0):
        try:
            self.root = sample.cached_videos(train, test, frames, size, seed)
        except sample.SampleError as error:
            raise SourceError(str(error)) from None
        records = sample.read_factors(self.root)
        self.train = [r for r in records if r["split"] == "train"]
        self.test = [r for r in records if r["split"] == "test"]

    def describe(self) -> str:
        return f"sample_videos {self.root}: {len(self.train)} train, {len(self.test)} test videos"


@register("source", "video_folder")
class VideoFolder:
    """Every video file below `root`. Hidden names are skipped; links to files are followed, links to folders are not.

    Where `root` has a folder train and one of test, val or validation, these are the splits, and videos elsewhere are
    left out (`describe` counts them). Otherwise the split is by hash.
    """

    def __init__(self, root: str, test_fraction: float = 0.15):
        check_fraction("video_folder", test_fraction)
        self.root = Path(root).expanduser().absolute()
        ids = _list_videos(self.root)
        side = {i: SPLIT_OF.get(i.split("/")[0].lower()) for i in ids if "/" in i}
        if has_split_folders(self.root):
            check_both_splits("video_folder", "video", self.root, side)
        else:
            side = split_by_hash(ids, test_fraction, f"video_folder {self.root}")
        self.train, self.test = (
            [{"id": i, "path": str(self.root / i)} for i in ids if side.get(i) == split] for split in ("train", "test")
        )
        self.left_out = len(ids) - len(self.train) - len(self.test)
        check_apart("video_folder", self.train, self.test)

    def describe(self) -> str:
        left_out = f" ({self.left_out} outside the split folders left out)" if self.left_out else ""
        return f"video_folder {self.root}: {len(self.train)} train, {len(self.test)} test videos{left_out}"


def split_by_hash(ids: list[str], test_fraction: float, what: str, unit: str = "file") -> dict[str, str]:
    """id -> 'train' or 'test', by the order of the ids' sha256; `what` names the source in the error, `unit` what an id stands for."""
    if len(ids) < 2:
        raise SourceError(f"{what}: only one {unit} ({ids[0]}), expected two or more: one to train on and one to test on.")
    ordered = sorted(ids, key=lambda i: hashlib.sha256(i.encode("utf-8", "surrogateescape")).digest())
    tests = min(max(round(len(ids) * test_fraction), 1), len(ids) - 1)
    return {i: "test" if k < tests else "train" for k, i in enumerate(ordered)}


def check_fraction(source: str, test_fraction: float) -> None:
    if not 0 < test_fraction < 1:
        raise SourceError(f"{source}: test_fraction is {test_fraction}, expected a number between 0 and 1, such as 0.15.")


def check_both_splits(source: str, what: str, root: Path, side: dict[str, str | None]) -> None:
    """Split folders are there; so are samples (`what`) in both of them."""
    for split in ("train", "test"):
        if split not in side.values():
            raise SourceError(f"{source}: {root} has split folders, but no {what} in its {split} part. "
                              "Put some there, or rename the folders to split by hash.")


def check_apart(source: str, train: list[dict], test: list[dict]) -> None:
    """No file in both splits, links included: a test on training data proves nothing."""
    trained = {os.path.realpath(r["path"]): r["id"] for r in train}
    for record in test:
        if (same := trained.get(os.path.realpath(record["path"]))) is not None:
            raise SourceError(f"{source}: {same} in train and {record['id']} in test are the same file. "
                              "Keep it on one side, or the test is on training data.")


# ---- folders ----

def _list_videos(root: Path) -> list[str]:
    """Relative posix paths of the video files below `root`, sorted."""
    if not root.exists():
        raise SourceError(f"video_folder: root {root} does not exist. Expected a folder with videos: check the path.")
    if not root.is_dir():
        raise SourceError(f"video_folder: root {root} is a file, expected a folder. Give its folder {root.parent}, "
                          "or source: {name: table} for a csv of paths.")

    def refuse(error: OSError):
        raise SourceError(f"video_folder: cannot list {error.filename}: {error.strerror}. "
                          "Allow reading it, or choose another root.")

    found, links = [], 0
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        links += sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        found += [(Path(folder, f).relative_to(root)).as_posix() for f in files if not f.startswith(".")]
    videos = sorted(f for f in found if f.lower().endswith(VIDEO_SUFFIXES))
    if not videos:
        raise SourceError(f"video_folder: no video below {root}. {what_is_there(found, links)} "
                          f"Expected files ending in {' '.join(VIDEO_SUFFIXES)}.")
    return videos


def what_is_there(found: list[str], links: int) -> str:
    kinds = Counter(os.path.splitext(f)[1].lower() or "without extension" for f in found).most_common(5)
    text = f"Found {len(found)} other files: {', '.join(f'{n} {kind}' for kind, n in kinds)}." if found else "It has no files."
    return text + (f" {links} links to folders were not followed: give the folder they lead to." if links else "")


def has_split_folders(root: Path) -> bool:
    names = {SPLIT_OF.get(entry.name.lower()) for entry in os.scandir(root) if entry.is_dir()}
    return {"train", "test"} <= names
