"""The source `video_folder`: every video file below a folder.

source = VideoFolder("/data/clips")
source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"
"""

import os
from pathlib import Path

from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import (
    SPLIT_OF,
    SourceError,
    TestFraction,
    check_apart,
    check_both_splits,
    has_split_folders,
    split_by_hash,
    what_is_there,
)
from vicjoint.video import VIDEO_SUFFIXES


@register("source", "video_folder")
class VideoFolder(Source):
    """Every video file below `root`. Hidden names are skipped; links to files are followed, links to folders
    are not.

    Where `root` has a folder train and one of test, val or validation, these are the splits, and videos
    elsewhere are left out (`describe` counts them). Otherwise the split is by hash.
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = Path(root).expanduser().absolute()
        ids = _list_videos(self.root)
        side = {i: SPLIT_OF.get(i.split("/")[0].lower()) for i in ids if "/" in i}
        if has_split_folders(self.root):
            check_both_splits("video_folder", "video", self.root, side)
        else:
            side = split_by_hash(ids, test_fraction, f"video_folder {self.root}")
        self.train, self.test = (
            [{"id": i, "path": str(self.root / i)} for i in ids if side.get(i) == split]
            for split in ("train", "test")
        )
        self.left_out = len(ids) - len(self.train) - len(self.test)
        check_apart("video_folder", self.train, self.test)

    def describe(self) -> str:
        left_out = f" ({self.left_out} outside the split folders left out)" if self.left_out else ""
        return f"video_folder {self.root}: {len(self.train)} train, {len(self.test)} test videos{left_out}"


def _list_videos(root: Path) -> list[str]:
    """Relative posix paths of the video files below `root`, sorted."""
    if not root.exists():
        raise SourceError(
            f"video_folder: root {root} does not exist. Expected a folder with videos: check the path."
        )
    if not root.is_dir():
        raise SourceError(
            f"video_folder: root {root} is a file, expected a folder. Give its folder {root.parent}, "
            "or source: {name: table} for a csv of paths."
        )

    def refuse(error: OSError):
        raise SourceError(
            f"video_folder: cannot list {error.filename}: {error.strerror}. "
            "Allow reading it, or choose another root."
        )

    found, links = [], 0
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        links += sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        found += [(Path(folder, f).relative_to(root)).as_posix() for f in files if not f.startswith(".")]
    videos = sorted(f for f in found if f.lower().endswith(VIDEO_SUFFIXES))
    if not videos:
        raise SourceError(
            f"video_folder: no video below {root}. {what_is_there(found, links)} "
            f"Expected files ending in {' '.join(VIDEO_SUFFIXES)}."
        )
    return videos
