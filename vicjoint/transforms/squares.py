"""The squares of a video's frames that views are cut from, decoded once where there is memory for them.

squares = Squares(centre=0.75, cache_mb=500)                # or cache="disk"
frames_TCSS = squares.read("clip.mp4", "auto", 25.0, lambda info: [3, 5, 7])     # uint8 [3, 3, S, S]
"""

# T frames, H height, W width, S side of the squares

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint.files.kept import Kept
from vicjoint.files.mapped import Mapped
from vicjoint.sliding import Sliding, Span
from vicjoint.transforms.images import square_frames
from vicjoint.video import Video, VideoError, VideoInfo
from vicjoint.video.colours import Part
from vicjoint.video.frames import is_frames
from vicjoint.video.index import settled

Choice = tuple[Span, list[int]]
"""When a window is, and the numbers of its frames."""

Cache = Literal["memory", "disk"]
MOST_DECODED = 2**30  # bytes of a video's squares before they are reduced, for them to be kept


class Squares:
    """centre: side of the square, as a share of a frame's shorter side; at: where its middle is, as shares of
    the frame's width and height, or as near as the frame allows. reduce: side that larger squares are brought
    to; None: as they are. cache_mb: room for the squares of whole videos; the first that fit stay,
    the others are decoded each time. cache: memory, of this process, or disk, the folder `squares` of the
    cache folder, for all processes and runs."""

    def __init__(
        self,
        centre: float,
        at: tuple[float, float] = (0.5, 0.5),
        reduce: int | None = None,
        cache_mb: int = 0,
        cache: Cache = "memory",
    ):
        self.centre, self.at, self.reduce = centre, at, reduce
        self.kept = KeptOnDisk(cache_mb) if cache == "disk" else Kept(cache_mb)

    def read(
        self, path: str, backend: str, frame_rate: float, choose: Callable[[VideoInfo], list[int]]
    ) -> Tensor:
        """The squares [T, 3, S, S] of the frames whose numbers `choose` gives. Raises VideoError."""
        return self.read_several(path, backend, frame_rate, [choose])[0]

    def read_several(
        self, path: str, backend: str, frame_rate: float, chooses: Sequence[Callable[[VideoInfo], list[int]]]
    ) -> list[Tensor]:
        """The same of each of `chooses`, in one pass through the file."""
        name = self._name(path, backend)
        if name is not None and (kept := self.kept.get(name)):
            info, squares = kept
            return [squares[choose(info)] for choose in chooses]
        with Video(path, backend, frame_rate) as video:
            chosen = [choose(video.info) for choose in chooses]
            whole = None if name is None else self._keep(name, video)
            if whole is not None:
                return [whole[numbers] for numbers in chosen]
            if len(chosen) == 1:
                return [self.frames(video, chosen[0])]
            wanted = sorted({number for numbers in chosen for number in numbers})
            squares = self.frames(video, wanted)
            place = {number: i for i, number in enumerate(wanted)}
            return [squares[[place[number] for number in numbers]] for numbers in chosen]

    def _name(self, path: str, backend: str) -> str | None:
        """Under which a video's squares are kept; None: nowhere. On the disk folders of pictures, films in
        shards elsewhere and those that have just changed are not."""
        if isinstance(self.kept, Kept):
            return path
        if not self.kept.megabytes or is_frames(path):
            return None
        with contextlib.suppress(OSError):  # reading will say so
            if now := settled(path):
                return (
                    f"{now} {'pyav' if backend == 'auto' else backend} {self.centre} {self.at} {self.reduce}"
                )
        return None

    def part(self, info: VideoInfo) -> Part:
        """Where in a video's frames the square is."""
        side = max(1, round(min(info.height, info.width) * self.centre))
        left, top = (
            min(max(0, math.floor(length * place - side / 2)), length - side)
            for length, place in zip((info.width, info.height), self.at)
        )
        return Part(top, left, side, side)

    def frames(self, video: Video, numbers: Sequence[int]) -> Tensor:
        """Squares [T, 3, S, S] of frames of an open video, by number. Raises VideoError."""
        return self._reduced(video.read(numbers, self.part(video.info)))

    def each(self, video: Video, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Squares [1, 3, S, S] of frames of increasing numbers, one after the other. Raises VideoError."""
        return (self._reduced(square[None]) for square in video.each(numbers, self.part(video.info)))

    def _reduced(self, squares: np.ndarray) -> Tensor:
        """[T, S, S, 3] -> [T, 3, S', S']."""
        x = torch.from_numpy(squares).permute(0, 3, 1, 2)
        return x if self.reduce is None or x.shape[-1] <= self.reduce else square_frames(x, self.reduce)

    def _keep(self, name: str, video: Video) -> Tensor | None:
        """The squares of all frames, from now on kept; None where there is no room, or a frame cannot be
        decoded."""
        info = video.info
        side = self.part(info).height
        size = 3 * info.frames * min(side, self.reduce or side) ** 2
        if not self.kept.fits(size) or 3 * info.frames * side**2 > MOST_DECODED:
            return None
        try:
            squares = self.frames(video, range(info.frames))
        except VideoError:  # the cause only of views that hold that frame
            return None
        self.kept.add(name, (info, squares), size)
        return squares


class KeptOnDisk:
    """As Kept, of squares."""

    def __init__(self, megabytes: int):
        self._arrays, self.megabytes = Mapped("squares", megabytes), megabytes

    def get(self, name: str) -> tuple[VideoInfo, "OnDisk"] | None:
        if (found := self._arrays.get(name)) is None:
            return None
        (facts, times), squares = found
        return VideoInfo(**facts, timestamps_seconds=np.array(times)), OnDisk(squares)

    def fits(self, size: int) -> bool:
        return self._arrays.fits(size)

    def add(self, name: str, value: tuple[VideoInfo, Tensor], size: int) -> bool:
        info, squares = value
        facts = asdict(info)
        times = facts.pop("timestamps_seconds").tolist()
        return self._arrays.add(name, (facts, times), squares.numpy())


class OnDisk:
    """Squares uint8 [T, 3, S, S] in a file, of which frames are taken by number."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __getitem__(self, numbers: list[int]) -> Tensor:
        return torch.from_numpy(np.array(self._array[numbers]))


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


class SlidingVideo(Sliding):
    """Windows of a video: `as_view` makes a raw view of the frames uint8 [T, 3, size, size] of each. The file
    is opened once and decoded forward; the frames that the next windows share are held, and no others.
    `choose` says which windows there are. Raises VideoError."""

    def __init__(
        self,
        path: str,
        backend: str,
        frame_rate: float,
        squares: Squares,
        size: int,
        choose: Callable[[VideoInfo], Sequence[Choice]],
        as_view: Callable[[Tensor], Tensor],
    ):
        self._video = Video(path, backend, frame_rate)
        self._squares, self._size, self._as_view = squares, size, as_view
        self.close = self._video.close
        try:
            chosen = choose(self._video.info)
        except BaseException:
            self.close()
            raise
        self.spans, self._numbers = [span for span, _ in chosen], [numbers for _, numbers in chosen]

    def read(self, first: int, last: int) -> Iterator[Tensor]:
        windows = self._numbers[first:last]
        wanted = sorted({number for numbers in windows for number in numbers})
        coming = zip(wanted, self._squares.each(self._video, wanted))
        held: dict[int, Tensor] = {}
        for window, after in zip(windows, [*windows[1:], []]):
            while window[-1] not in held:
                number, square = next(coming)
                held[number] = square_frames(square, self._size)
            yield self._as_view(torch.cat([held[number] for number in window]))
            held = {number: x for number, x in held.items() if after and number >= after[0]}


def on_display(info: VideoInfo, seconds: float) -> int:
    """Number of the frame that a player shows so many seconds after the start of the file."""
    # a frame is on display from its timestamp on; the millionth decides where rounding would
    at = np.searchsorted(info.timestamps_seconds, info.start_seconds + seconds + 1e-6, side="right") - 1
    return int(max(at, 0))


def ends(info: VideoInfo, number: int) -> float:
    """Seconds from the start of the file to the end of the frame with this number."""
    times = info.timestamps_seconds
    end = times[number + 1] if number + 1 < len(times) else times[-1] + 1 / info.fps
    return float(end - info.start_seconds)


def every_start(info: VideoInfo, every: float) -> Iterator[float]:
    """0, every, 2 every, ... seconds, as long as the video lasts."""
    number, end = 0, ends(info, info.frames - 1)
    while number * every < end:
        yield number * every
        number += 1
