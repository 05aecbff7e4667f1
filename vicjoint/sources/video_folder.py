"""The source `video_folder`: every video file below a folder.

source = VideoFolder("/data/clips")
source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"
"""

from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import TestFraction, root_of
from vicjoint.sources.folder import described, list_files, split_folders
from vicjoint.video import VIDEO_SUFFIXES


@register("source", "video_folder")
class VideoFolder(Source):
    """Every video file below `root`; links are followed, hidden names are skipped, and what is passed over is
    counted.

    Splits are those of image_folder; videos outside the split folders are left out (`describe` counts them).
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = root_of("video_folder", root, "video")
        self.files = list_files("video_folder", "video", self.root, VIDEO_SUFFIXES)
        _, side = split_folders("video_folder", "video", self.root, self.files, test_fraction)
        self.train, self.test = (
            [{"id": name, "path": str(self.root / name)} for name in self.files.names if side[name] == split]
            for split in ("train", "test")
        )

    def describe(self) -> str:
        beside = len(self.files.names) - len(self.train) - len(self.test)
        return (
            f"video_folder {self.root}: {len(self.train):,} train, {len(self.test):,} test videos"
            f"{described(self.files, beside)}"
        )
