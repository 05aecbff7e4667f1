"""From a decoded frame to RGB, upright: whole, or a part of it, to which it is cut before colours are made
wherever that gives the same to the last bit.

    image_HWC = Colours().rgb(frame, turn_of(frame), Part(top=0, left=42, height=256, width=256))
"""

import zlib
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

UPRIGHT = np.eye(2)
# formats of which FFmpeg makes RGB point by point, two by two of colour, where the number of rows is even and
# they are no fields; of the others it mixes neighbours. Held against whole frames by tests/test_video_part.py
BY_POINTS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"}

LEAST_SAVED = 1 << 14  # pixels of which no RGB is made, for the cut to be worth its 10 microseconds


class Part(NamedTuple):
    """Of upright frames, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: np.ndarray) -> np.ndarray:
        """[..., H, W, 3] -> [..., height, width, 3]."""
        return images[..., self.top : self.top + self.height, self.left : self.left + self.width, :]

    def even(self, height: int, width: int) -> "Part":
        """The least part of frames of this size that holds it, from even rows and columns to even ones or
        the end."""
        top, left = self.top // 2 * 2, self.left // 2 * 2
        ends = (self.top + self.height + 1) // 2 * 2, (self.left + self.width + 1) // 2 * 2
        return Part(top, left, min(ends[0], height) - top, min(ends[1], width) - left)


class Colours:
    """Of the frames of one video."""

    def __init__(self) -> None:
        # one for all frames: making its tables anew costs more than the conversion
        self._convert = VideoReformatter()
        self._cutter: tuple[Any, av.filter.Graph] | None = None

    def rgb(self, frame: av.VideoFrame, turn: np.ndarray, part: Part) -> np.ndarray:
        """uint8 [h, w, 3] of a part. Raises av.FFmpegError."""
        height, width = frame.height, frame.width
        if height * width - part.height * part.width >= LEAST_SAVED and turn is UPRIGHT and height % 2 == 0:
            if frame.format.name in BY_POINTS and not frame.interlaced_frame:
                even = part.even(height, width)
                frame = self.cut(frame, even)
                part = part._replace(top=part.top - even.top, left=part.left - even.left)
        # in one thread: several processes read side by side, and waking others costs more than they save
        plane = self._convert.reformat(frame, format="rgb24", threads=1).planes[0]
        image = np.ndarray((plane.height, plane.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
        return part.of(upright(image, turn))

    def cut(self, frame: av.VideoFrame, part: Part) -> av.VideoFrame:
        """That part of a frame, of which nothing is copied."""
        key = frame.format.name, frame.height, frame.width, part
        if self._cutter is None or self._cutter[0] != key:
            graph = av.filter.Graph()
            first = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            crop = graph.add("crop", f"w={part.width}:h={part.height}:x={part.left}:y={part.top}:exact=1")
            graph.link_nodes(first, crop, graph.add("buffersink")).configure()
            self._cutter = key, graph
        graph = self._cutter[1]
        graph.push(frame)
        return graph.pull()


def sum_of(frame: av.VideoFrame) -> int | None:
    """Adler-32 of its points as they were decoded, [0, 2^32); None: of a format in which they do not lie
    open."""
    if frame.format.name not in BY_POINTS:
        return None
    found = 1
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        found = zlib.adler32(np.ascontiguousarray(rows), found)
    return found


def turn_of(frame: av.VideoFrame) -> np.ndarray:
    """The 2 x 2 matrix by which a frame is to be shown: (x, y) @ it is where a stored pixel goes, x to the
    right and y down; `UPRIGHT` where nothing is to be done."""
    try:
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return UPRIGHT
    except ValueError:  # PyAV lists no side data where one is of a kind that it does not know
        angle = np.deg2rad(frame.rotation)
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return matrix.reshape(3, 3)[:2, :2] / (1 << 16)


def upright(image: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """[H, W, C], mirrored and turned by right angles; other angles go to the nearest one."""
    if turn is UPRIGHT:
        return image
    if abs(turn[0, 1]) > abs(turn[0, 0]):
        image, turn = image.swapaxes(0, 1), turn[::-1]
    return image[:: -1 if turn[1, 1] < 0 else 1, :: -1 if turn[0, 0] < 0 else 1]


def upright_size(frame: av.VideoFrame, turn: np.ndarray) -> tuple[int, int]:
    """(height, width) as it is to be shown."""
    if turn is UPRIGHT:
        return frame.height, frame.width
    return upright(np.empty((frame.height, frame.width, 0)), turn).shape[:2]
