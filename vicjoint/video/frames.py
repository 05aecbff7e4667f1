"""Pictures that are read as a video: a folder of them, a numbered pattern, the pages of a tiff.

    decoder = Frames("clips/07", frame_rate=12.5)          # or "clips/07_%04d.png", "stack.tif"
    decoder.info, decoder.read([3, 5, 7], np.arange(3)), decoder.close()

Used by `vicjoint.video`, as the decoders of files are. Pictures become RGB as vicjoint.files.images says.
"""

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vicjoint.files import films, images
from vicjoint.files.guard import no_file
from vicjoint.files.kept import Kept
from vicjoint.video.colours import Part
from vicjoint.video.index import VideoError, VideoInfo

LISTED = Kept(64)  # (names, height, width) by folder; in each process


def is_frames(path: str) -> bool:
    return os.path.isdir(path) or path.lower().endswith(films.TIFF_SUFFIXES) or films.is_pattern(path)


class Frames:
    """The frames of one rate. frame_rate: in a second. Raises VideoError."""

    def __init__(self, path: str, frame_rate: float):
        self.path, self._image = path, None
        self._names: list[str] | None = None
        is_file = path.lower().endswith(films.TIFF_SUFFIXES) and not os.path.isdir(path)
        self.folder = os.path.dirname(path) if films.is_pattern(path) else path
        try:
            count, height, width = self._pages() if is_file else self._listed()
        except BaseException:
            self.close()
            raise
        self.info = VideoInfo(count, frame_rate, height, width, np.arange(count) / frame_rate)

    def _pages(self) -> tuple[int, int, int]:
        if cause := no_file(self.path, "video"):
            raise VideoError(f"{self.path}: {cause}.")
        try:
            self._image = Image.open(self.path)
            count = getattr(self._image, "n_frames", 1)
        except Exception as error:  # Pillow fails on damaged files in many ways
            raise VideoError(
                f"{self.path}: not a readable tiff ({str(error).splitlines()[0][:200]})."
            ) from None
        if count < 2:
            raise VideoError(f"{self.path}: the tiff has one page; expected a video.")
        return count, self._image.height, self._image.width

    def _listed(self) -> tuple[int, int, int]:
        """Count the pictures; a folder that has not changed is not listed again."""
        try:
            name = f"{self.path} {os.stat(self.folder or '.').st_mtime_ns}"
        except OSError as error:
            raise VideoError(f"{self.path}: {error.strerror or error}.") from None
        if (known := LISTED.get(name)) is None:
            try:
                self._names = films.pictures(self.path)
            except ValueError as error:
                what = "" if films.is_pattern(self.path) else "a folder, not a video file, and no film: "
                raise VideoError(f"{self.path}: {what}{error}.") from None
            known = self._names, *self._read(0).shape[:2]
            LISTED.add(name, known, 500 + sum(map(len, self._names)) + 60 * len(self._names))
        self._names, height, width = known
        return len(self._names), height, width

    def name(self, number: int) -> str:
        """Of a frame, in messages."""
        return f"frame {number}" if self._names is None else f"frame {number} ({self._names[number]})"

    def _read(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        path = self.path if self._names is None else os.path.join(self.folder, self._names[number])
        try:
            if self._image is None:
                pixels = images.read(path)
            else:
                pixels = images.page(self._image, number, path)
        except images.ImageError as error:
            cause = str(error).removeprefix(f"{path}: ")
            raise VideoError(f"{self.path}: {self.name(number)}: {cause}.") from None
        return pixels.permute(1, 2, 0).numpy()

    def each(self, numbers: list[int], part: Part) -> Iterator[np.ndarray]:
        """That part of frames of increasing, distinct numbers, uint8 [h, w, 3], one by one."""
        for number in numbers:
            frame = self._read(number)
            if frame.shape[:2] != (self.info.height, self.info.width):
                raise VideoError(
                    f"{self.path}: {self.name(number)} is {frame.shape[1]}x{frame.shape[0]}, the first frame"
                    f" {self.info.width}x{self.info.height}; the picture size must not change within a video."
                )
            yield part.of(frame)

    def read(self, numbers: list[int], places: np.ndarray, part: Part) -> np.ndarray:
        """That part of frames of increasing, distinct numbers, uint8 [T, h, w, 3]. places: int [T], which
        one each is."""
        images = list(self.each(numbers, part))
        return np.stack([images[place] for place in places])

    def close(self) -> None:
        if self._image is not None:
            self._image.close()
