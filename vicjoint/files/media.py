"""Films and sounds through FFmpeg: how a file is opened, which of its streams counts, and whether the length
that it states is to be trusted.

    container = open_media("film.mp4")
    stream = best_stream(container, "video")     # None: no moving pictures
    stated_end(stream)                           # seconds, or None: count its packets
"""

from typing import Literal

import av
from av.format import Flags
from av.stream import Disposition

from vicjoint.files.inside import Inside, head_of, open_binary, state_of

av.logging.set_level(None)  # FFmpeg's chatter about broken files: the cause is in the error
Probe = Literal["all", "sound", "nothing"]
MP4_BOXES = {b"ftyp", b"moov", b"wide", b"mdat", b"free", b"skip"}  # with which mp4 and mov begin
TAG_BYTES = 4096  # behind an mp3's last frame; more is another file joined to it


def open_media(path: str, probe: Probe = "all"):
    """An open container. probe: of which streams of an mp4 or mov FFmpeg may decode the first frames, to
    learn what they are. Such files state it, but for the rate of some sound in AAC and the delay of some
    H.264; and to decode pictures that nobody asked for takes 2 ms, of HD 40. Of other files it may decode
    all. Raises av.FFmpegError, OSError and ValueError."""
    options = {}
    if probe != "all" and head_of(path, 8)[4:] in MP4_BOXES:
        options = {"skip_frame": "all"} if probe == "sound" else {"skip_frame": "all", "probesize": "32"}
    return av.open(
        open_binary(path) if isinstance(path, Inside) else path,
        metadata_errors="replace",  # a title in another encoding decides over nothing
        options=options,
    )


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


def mp3_bytes(path: str) -> tuple[int, int]:
    """(bytes that an mp3 has by its first frame, which then also says how many samples, or 0 where it says
    nothing; bytes that there are, but for tags). Several files joined into one say what the first had."""
    with open_binary(path) as file:
        head, begin = file.read(10), 0
        if head[:3] == b"ID3":  # a tag in front, its size in seven bits a byte
            begin = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
        file.seek(begin)
        head = file.read(192)
    stated = b""
    if (at := head.find(b"VBRI")) >= 0:
        stated = head[at + 10 : at + 14]
    elif (at := max(head.find(b"Xing"), head.find(b"Info"))) >= 0 and head[at + 7] & 3 == 3:
        stated = head[at + 12 : at + 16]
    return int.from_bytes(stated, "big"), state_of(path)[0] - begin - TAG_BYTES
