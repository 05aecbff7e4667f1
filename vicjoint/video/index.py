"""What one pass over the packets of a video file tells, and where it stays: in memory, and in small files of
the cache folder (off: VICJOINT_VIDEO_INDEX=0).

    index = kept("clip.mp4")              # None: not known yet, or the file has changed
    keep("clip.mp4", index)
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import av
import numpy as np

from vicjoint.files.inside import Inside, state_of
from vicjoint.files.kept import Kept
from vicjoint.files.small import SmallFiles

COUNTED = Kept(64)  # indexes by file; in each process
ON_DISK = SmallFiles("video_index", 1 << 18)  # of 0.1 to 0.4 kB, of an hour 7
FORM = 3  # of an index on the disk: another number where its meaning changes
UNTIMED, UNCLEAN, OPEN = "frames without times", "key frames that are no beginning", "open groups of pictures"
STREAMS, INTERLACED, COLOURS = "several video streams", "interlaced pictures", "a colour space of its own"
TURNED, MIRRORED = "turned pictures", "mirrored pictures"
SETTLED_NS = 2_000_000_000  # a file that changed less long ago may change again without another time


class VideoError(ValueError):
    """A video that cannot be read, or not as asked; the message names the file and the cause."""


@dataclass(frozen=True)
class VideoInfo:
    """The frames that exist. timestamps_seconds: float64 [frames], strictly increasing. fps: their average
    rate. height, width: pixels of a frame as shown, after rotation. start_seconds: when the file begins, its
    sound included, on the same clock.
    """

    frames: int
    fps: float
    height: int
    width: int
    timestamps_seconds: np.ndarray
    start_seconds: float = 0.0


class Key(NamedTuple):
    """A key frame of a file: its times, its place among the packets, and whether decoding can begin there as
    at the beginning of a film."""

    pts: int
    dts: int
    place: int
    is_clean: bool


@dataclass(frozen=True)
class Index:
    """Times are in the stream's time base.

    shown: int64 [frames], the times of the frames that a player shows, increasing; None where only decoding
    tells. keys: in order of time where `shown` is known. odd: words above, what some decoders are
    wrong about. single: whether each packet is sure to be one whole frame. free: int64 [frames], times,
    increasing, of the frames on which no other one leans, as far as that is sure. second: of the time base,
    where `shown` is known. sums: int64 [frames], `colours.sum_of` each, by which frames of a film without
    times are known where decoding begins at a key frame, whose `pts` is then its number; empty: it does not.
    """

    info: VideoInfo
    shown: np.ndarray | None
    keys: list[Key]
    odd: frozenset[str]
    single: bool
    free: np.ndarray
    second: float = 0.0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def to_bytes(self) -> bytes:
        facts = asdict(self.info)
        times = facts.pop("timestamps_seconds")
        keys = np.array(self.keys, np.int64).reshape(-1, 4)
        if self.shown is None:
            shown = times.astype(np.float64).view(np.int64)
        else:
            shown = _differences(self.shown)
        arrays = (shown, _differences(keys), _differences(self.free), self.sums)
        counts = [array.size for array in arrays]
        head = [facts, self.shown is not None, sorted(self.odd), self.single, self.second, counts]
        return json.dumps(head).encode() + b"\n" + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Index":
        """Raises ValueError and KeyError where they are something else."""
        head, _, data = content.partition(b"\n")
        facts, has_shown, odd, single, second, counts = json.loads(head)
        numbers = np.frombuffer(data, np.int64)
        if len(numbers) != sum(counts):
            raise ValueError("not an index")
        first, keys, free, sums = np.split(numbers, np.cumsum(counts)[:-1])
        shown = first.cumsum() if has_shown else None
        times = first.view(np.float64) if shown is None else in_seconds(shown, second)
        listed = [
            Key(pts, dts, place, bool(clean))
            for pts, dts, place, clean in keys.reshape(-1, 4).cumsum(axis=0).tolist()
        ]
        info = VideoInfo(**facts, timestamps_seconds=times)
        return cls(info, shown, listed, frozenset(odd), single, free.cumsum(), second, sums)


def in_seconds(shown, second: float) -> np.ndarray:
    """float64 [frames], of times in a time base."""
    return np.array(shown, dtype=np.float64) * second


def _differences(numbers: np.ndarray) -> np.ndarray:
    """From each row to the next, the first one whole: they are alike, and take little room when packed."""
    return np.diff(numbers.astype(np.int64), axis=0, prepend=np.zeros_like(numbers[:1], np.int64))


def kept(path: str) -> Index | None:
    """What is known of a file as it is now. Raises OSError where it is gone."""
    name = _name(path)
    if (known := COUNTED.get(name)) is None and _on_disk(path) and (content := ON_DISK.get(name)):
        try:
            known = Index.from_bytes(content)
        except (ValueError, KeyError, TypeError):
            return None
        _add(name, known)
    return known


def keep(path: str, index: Index) -> None:
    name = _name(path)
    _add(name, index)
    if _on_disk(path) and settled(path):
        ON_DISK.put(name, index.to_bytes())


def settled(path: str) -> str | None:
    """A name of a file as it is now, that it has in other processes and later on; None where it may still
    change without another name. Raises OSError where it is gone."""
    elsewhere = isinstance(path, Inside) and "remote" in path.part
    is_old = time.time_ns() - state_of(path)[1] > SETTLED_NS
    return _name(path) if is_old and not elsewhere else None


def _add(name: str, index: Index) -> None:
    COUNTED.add(name, index, 1000 + 24 * index.info.frames + 200 * len(index.keys))


def _name(path: str) -> str:
    """Of a file in a state, as this FFmpeg sees it."""
    offset = path.part["offset"] if isinstance(path, Inside) else 0
    library = ".".join(map(str, av.library_versions["libavformat"]))
    return " ".join(map(str, (FORM, library, *state_of(path), offset, os.path.abspath(path))))


def _on_disk(path: str) -> bool:
    """Files elsewhere are left out: the time of their last change is not known."""
    elsewhere = isinstance(path, Inside) and "remote" in path.part
    return not elsewhere and os.environ.get("VICJOINT_VIDEO_INDEX", "1") != "0"
