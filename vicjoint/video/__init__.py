"""Frames of video files by their true number: 0-based, in the order in which a player shows them.

    with Video("clip.mp4") as video:
        video.info.frames, video.info.timestamps_seconds
        frames = video.read([3, 5, 7, 8])          # uint8 [4, H, W, 3], RGB, upright

Which frames exist is always settled by PyAV, from the packets' timestamps where the container tells them
reliably and by decoding otherwise: edit lists, variable frame rate and B-frames are all honoured. What was
learnt stays in memory and in the cache folder (vicjoint.video.index). Another decoder (decord, torchcodec) is
used where it is asked for, and only for a file of which it counts the same frames at the same times.
Open a file where it is read, in the worker: a Video does not pickle.
"""

import os
from collections.abc import Iterator

import numpy as np

from vicjoint.files.films import TIFF_SUFFIXES
from vicjoint.video.backends import PyAV
from vicjoint.video.colours import Part
from vicjoint.video.frames import Frames, is_frames
from vicjoint.video.index import VideoError, VideoInfo
from vicjoint.video.others import OTHERS

BACKENDS = ("auto", "decord", "nvdec", "pyav", "torchcodec")
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
FILM_SUFFIXES = (*VIDEO_SUFFIXES, *TIFF_SUFFIXES, "/")
"""With tiffs of several pages, and "/": folders of pictures."""
FRAME_RATE = 25.0  # of pictures, where nobody says
AT_ONCE = 8  # frames that another decoder than PyAV is asked for where they come one by one


class Video:
    """An open video file; `info` says what it holds, `read` gives frames. Use it in a `with` block.

    backend: pyav, decord, torchcodec, nvdec (torchcodec on a GPU), or auto, which is pyav: decord and
    torchcodec are slower, and right about fewer files (docs/video.md). A folder of pictures, a numbered
    pattern such as clip/%05d.jpg and a tiff of several pages are videos, too, of `frame_rate` frames a
    second, whatever the backend. Raises VideoError where the file, or a backend asked for by name, cannot be
    used.
    """

    def __init__(self, path: str | os.PathLike, backend: str = "auto", frame_rate: float = FRAME_RATE):
        self.path = os.fspath(path)
        if backend not in BACKENDS:
            raise VideoError(f"video_backend '{backend}' is unknown. Expected one of: {', '.join(BACKENDS)}.")
        if is_frames(self.path):
            self._own = self._decoder = Frames(self.path, frame_rate)
            self.info, self.backend = self._own.info, "frames"
            return
        self._own = PyAV(self.path)
        try:
            self.info = self._own.info
            self.backend = "pyav" if backend == "auto" else backend
            self._decoder = OTHERS[backend](self.path, self._own) if backend in OTHERS else self._own
        except BaseException:
            self._own.close()
            raise

    def read(self, frames, part: Part | None = None) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], RGB, by true number, in any order, repeats allowed, or that part of
        them; decoded in one forward pass."""
        numbers = self._checked(frames)
        part = part or self._whole
        if not numbers.size:
            return np.empty((0, part.height, part.width, 3), dtype=np.uint8)
        unique, places = np.unique(numbers, return_inverse=True)
        return self._decoder.read(unique.tolist(), places, part)

    def each(self, frames, part: Part | None = None) -> Iterator[np.ndarray]:
        """Frames uint8 [H, W, 3], RGB, of increasing, distinct numbers, or that part of them, one after the
        other: one pass forward in the memory of a few, which goes on where the last one ended."""
        numbers = self._checked(frames).tolist()
        while numbers and self._decoder is not self._own:
            yield from self.read(numbers[:AT_ONCE], part)
            numbers = numbers[AT_ONCE:]
        yield from self._own.each(numbers, part or self._whole)

    @property
    def _whole(self) -> Part:
        return Part(0, 0, self.info.height, self.info.width)

    def _checked(self, frames) -> np.ndarray:
        numbers = np.asarray(list(frames), dtype=np.int64)
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if outside.size:
            raise VideoError(
                f"{self.path}: there is no frame {outside[0]}; {self.info.frames} frames exist, numbered"
                " from 0."
            )
        return numbers

    def close(self) -> None:
        self._decoder.close()
        self._own.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read(path, frames, backend: str = "auto") -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of one file by true number; see Video."""
    with Video(path, backend) as video:
        return video.read(frames)
