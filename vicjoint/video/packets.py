"""What the packets of a video file say of its frames, before any is decoded."""

from typing import NamedTuple

import av
import numpy as np

from vicjoint.video.colours import turn_of, upright_size
from vicjoint.video.index import VideoInfo, in_seconds

# Containers that store every packet's presentation time. VP8 also stores packets that are never shown: it is
# decoded.
TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
TIMED_CODECS = {
    "h264",
    "hevc",
    "av1",
    "libdav1d",
    "libaom-av1",
    "vp9",
    "libvpx-vp9",
    "mpeg4",
    "mjpeg",
    "prores",
}


class Stamp(NamedTuple):
    """What is remembered of every packet of a file."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_clean: bool  # Key.is_clean
    is_discard: bool
    is_corrupt: bool


def times_shown(packets: list, container: str, codec: str) -> np.ndarray | None:
    """Timestamps int64 of the frames a player shows, sorted, or None where only decoding can tell."""
    times = [p.pts for p in packets]
    if not TIMED_CONTAINERS & set(container.split(",")) or codec not in TIMED_CODECS:
        return None
    if None in times or len(set(times)) < len(times) or not packets[0].is_keyframe:
        return None
    # an edit list discards frames that are only decoded
    shown = sorted(p.pts for p in packets if not p.is_discard)
    # frames before the first key frame lack what they refer to; decoders differ in showing them
    return np.array(shown) if shown and shown[0] >= packets[0].pts else None


def are_closed(packets: list) -> bool:
    """Whether no packet that follows a key frame is shown before it."""
    key = packets[0].pts
    for p in packets:
        if p.pts < key:
            return False
        key = p.pts if p.is_keyframe else key
    return True


def info_of(times: list, first, stream) -> VideoInfo:
    rate = float(stream.average_rate or 25)
    usable = None not in times and all(a < b for a, b in zip(times, times[1:]))
    seconds = in_seconds(times, float(stream.time_base)) if usable else np.arange(len(times)) / rate
    if len(times) > 1:
        rate = (len(times) - 1) / float(seconds[-1] - seconds[0])
    height, width = upright_size(first, turn_of(first))
    start = (stream.container.start_time or 0) / av.time_base if usable else 0.0
    return VideoInfo(len(times), rate, height, width, seconds, start)
