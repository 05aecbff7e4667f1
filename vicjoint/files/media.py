"""Films and sounds through FFmpeg: how a file is opened, which of its streams counts, and whether the length
that it states is to be trusted.

    container = open_media("film.mp4")
    stream = best_stream(container, "video")     # None: no moving pictures
    stated_end(stream)                           # seconds, or None: count its packets
"""

import av
from av.format import Flags
from av.stream import Disposition

from vicjoint.files.inside import Inside, open_binary

av.logging.set_level(None)  # FFmpeg's chatter about broken files: the cause is in the error


def open_media(path: str):
    """An open container. Raises av.FFmpegError, OSError and ValueError."""
    return av.open(
        open_binary(path) if isinstance(path, Inside) else path, metadata_errors="replace"
    )  # a title in another encoding decides over nothing


def best_stream(container, kind: str):
    """The stream of a kind ("video", "audio") that FFmpeg's players choose, among those that can be decoded
    and are no cover picture; None where there is none."""
    streams = [
        s
        for s in container.streams
        if s.type == kind and s.codec_context and not s.disposition & Disposition.attached_pic
    ]
    best = container.streams.best(kind)
    return best if best in streams else next(iter(streams), None)


def estimated(container) -> bool:
    """Whether FFmpeg guesses how long a file is: one without a container (mp3, aac) has no place for it, and
    what the bit rate of its first frames says can be a third of the truth."""
    return bool(container.format.flags & Flags.generic_index.value)


def stated_end(stream) -> float | None:
    """Seconds of the file's clock at which a stream ends, as its container says; None where it says nothing
    that can be trusted: count the packets."""
    if stream.duration is None or estimated(stream.container):
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
