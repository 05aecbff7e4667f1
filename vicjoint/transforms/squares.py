"""The squares of a video's frames that views are cut from, decoded once where there is memory for them.

squares = Squares(centre=0.75, cache_mb=500)
frames_TCSS = squares.read("clip.mp4", "auto", lambda info: [3, 5, 7])     # uint8 [3, 3, S, S]
"""

# T frames, H height, W width, S side of the squares

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicjoint.files.kept import Kept
from vicjoint.transforms.images import middle_square, square_frames
from vicjoint.video import Video, VideoError, VideoInfo

MOST_DECODED = 2**30  # bytes of all frames of a video at once, for their squares to be kept


class Squares:
    """centre, at: side and middle of the square (`middle_square`). reduce: side that larger squares are
    brought to; None: as they are. cache_mb: memory for the squares of whole videos; the first that fit stay,
    the others are decoded each time."""

    def __init__(
        self,
        centre: float,
        at: tuple[float, float] = (0.5, 0.5),
        reduce: int | None = None,
        cache_mb: int = 0,
    ):
        self.centre, self.at, self.reduce, self.kept = centre, at, reduce, Kept(cache_mb)

    def read(self, path: str, backend: str, choose: Callable[[VideoInfo], list[int]]) -> Tensor:
        """The squares [T, 3, S, S] of the frames whose numbers `choose` gives. Raises VideoError."""
        if kept := self.kept.get(path):
            info, squares = kept
            return squares[choose(info)]
        with Video(path, backend) as video:
            numbers = choose(video.info)
            whole = self._keep(path, video)
            return self.of(video.read(numbers)) if whole is None else whole[numbers]

    def of(self, frames: np.ndarray) -> Tensor:
        """[T, H, W, 3] -> [T, 3, S, S]."""
        squares = middle_square(torch.from_numpy(frames).permute(0, 3, 1, 2), self.centre, self.at)
        if self.reduce is None or squares.shape[-1] <= self.reduce:
            return squares
        return square_frames(squares, self.reduce)

    def _keep(self, path: str, video: Video) -> Tensor | None:
        """The squares of all frames, from now on kept; None where there is no room, or a frame cannot be
        decoded."""
        info = video.info
        shorter = min(info.height, info.width)
        side = min(max(1, round(shorter * self.centre)), self.reduce or shorter)
        size = 3 * info.frames * side**2
        if size > self.kept.room or 3 * info.frames * info.height * info.width > MOST_DECODED:
            return None
        try:
            squares = self.of(video.read(range(info.frames))).clone()  # not a view of the whole frames
        except VideoError:  # the cause only of views that hold that frame
            return None
        self.kept.add(path, (info, squares), size)
        return squares


def of_clip(
    frames: int, stride: int | None, seconds: float | None, size: int, squares: Squares
) -> dict[str, Any]:
    """For preprocessor_config.json: which frames, either `stride` apart or over so many `seconds`, and of
    each the square whose side is `centre` of its shorter side and whose middle is `at` (shares of width and
    height), then brought to `size`."""
    return {
        "shape": [3, frames, size, size],
        "frames": frames,
        "stride": stride,
        "seconds": seconds,
        "size": {"height": size, "width": size},
        "resample": 2,  # PIL's number of bilinear, with antialiasing
        "centre": squares.centre,
        "at": list(squares.at),
    }
