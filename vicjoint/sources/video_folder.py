"""The source `video_folder`: every video below a folder, a file or a folder of pictures.

source = VideoFolder("/data/clips")
source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"
"""

from vicjoint.files.films import is_film
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import SourceError, TestFraction, root_of
from vicjoint.sources.folder import described, list_files, split_folders
from vicjoint.video import FILM_SUFFIXES


@register("source", "video_folder")
class VideoFolder(Source):
    """Every video below `root`: video files, tiffs of several pages, and folders of pictures: two or more,
    without videos or folders beside them. Links are followed, hidden names are skipped, and what is passed
    over is counted.

    Splits are those of image_folder; videos outside the split folders are left out (`describe` counts them).
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = root_of("video_folder", root, "video")
        if is_film(str(self.root), FILM_SUFFIXES):
            raise SourceError(
                f"video_folder: {self.root} is a folder of pictures, which are one video. Give the folder"
                " that holds such folders."
            )
        self.files = list_files("video_folder", "video", self.root, FILM_SUFFIXES)
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
