"""The decoder behind `vicjoint.video`, which is the module to use; it gives frames of increasing, distinct
numbers, in the order that is asked for. Others, beside it: vicjoint.video.others.

    decoder = PyAV("clip.mp4")                             # counts the frames: decoder.info
    decoder.read([3, 5, 7], np.array([0, 1, 2, 1])), decoder.close()
"""

import bisect
import itertools
from collections.abc import Iterator

import av
import numpy as np

from vicjoint.files.guard import no_file, no_media
from vicjoint.files.media import Probe, best_stream, open_media
from vicjoint.video.colours import Colours, Part, sum_of, turn_of, upright_size
from vicjoint.video.hevc import HEVC
from vicjoint.video.index import (
    COLOURS,
    INTERLACED,
    MIRRORED,
    OPEN,
    STREAMS,
    TURNED,
    UNCLEAN,
    UNTIMED,
    Index,
    Key,
    VideoError,
    VideoInfo,
    keep,
    kept,
)
from vicjoint.video.packets import Stamp, are_closed, info_of, times_shown
from vicjoint.video.units import H264

# of a frame: twice 8K; a damaged header can claim any size, and frames are held uncompressed
MOST_PIXELS = 1 << 26
UNITS = {"h264": H264, "hevc": HEVC}
KEEP_BYTES = 64 << 20  # packets of files up to this size stay in memory, so nothing is read twice
MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}  # colour spaces from which FFmpeg makes RGB (ITU-T H.273); 2: not stated


class PyAV:
    """Counts and decodes with PyAV, one thread. What was counted is kept (vicjoint.video.index).

    fast: whether frames that are not asked for are left out where no other frame leans on them, and decoding
    ends with the last that is asked for. The frames are the same; False from the first one on that is found
    only without it."""

    def __init__(self, path: str):
        self.path = path
        self._packets: list | None = None
        self._walk: Iterator[tuple[int, av.VideoFrame]] | None = None  # frames by time, or by number
        self._walked = 0
        self._fed = -1  # place of the last packet that the decoder got
        # whether frames that cannot be decoded from their key frame on can be from the file's beginning on;
        # None: not tried yet
        self._straight: bool | None = None
        self.fast = True
        self._idle: set[int] = set()  # times of frames that need not be decoded
        self._left: set[int] = set()  # and of those that this walk has left out
        self._coming: list[int] = []  # numbers that are wanted
        self._ends = False  # nothing is wanted after them
        self._cut = False  # this walk ended before its packets did
        self._fresh = True  # no packet of the container was read yet
        self._forward: Iterator | None = None  # packets of a film without times, after the one at `_fed`
        self._reads = 0
        self._colours = Colours()
        _check(path)
        index = kept(path)
        # which of several streams is the one, FFmpeg decides by what it has seen of them
        self._probe: Probe = (
            "nothing" if index and index.shown is not None and STREAMS not in index.odd else "sound"
        )
        self._container = _open(path, self._probe)
        try:
            self._use_stream()
            if index is None:
                index = self._count()
                keep(path, index)
            self.info, self._shown, self._keys, self.odd = index.info, index.shown, index.keys, index.odd
            self._single, self._free, self._sums = index.single, index.free, index.sums
        except av.FFmpegError as error:
            self.close()
            raise VideoError(f"{path}: the video data are damaged or cut off ({_cause(error)}).") from None
        except BaseException:
            self.close()
            raise

    def _use_stream(self) -> None:
        self._stream = best_stream(self._container, "video")
        self._context = self._stream.codec_context
        self._context.thread_count = 1
        # damaged data is an error, not a grey patch
        self._context.options = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
        if self._context.width * self._context.height > MOST_PIXELS:
            raise VideoError(
                f"{self.path}: claims frames of {self._context.width} x {self._context.height} pixels, more"
                f" than the {MOST_PIXELS:,} that are read. Make them smaller."
            )

    def _count(self) -> Index:
        """The frames, counted without decoding where their times are sure (the first is, for its shape), else
        by decoding all."""
        self._single, self._free, self._sums = False, np.zeros(0, np.int64), np.zeros(0, np.int64)
        packets, places, single = self._stamps()
        listed = len(self._stream.index_entries) if "mp4" in self._container.format.name else 0
        if any(p.is_corrupt for p in packets) or len(packets) < listed:
            raise VideoError(f"{self.path}: the file is cut off: its last frames are missing.")
        if not packets:
            raise VideoError(f"{self.path}: the video stream is empty.")
        self._keys = [
            Key(p.pts, p.pts if p.dts is None else p.dts, n, p.is_clean)
            for n, p in enumerate(packets)
            if p.is_keyframe
        ]
        self._shown = times_shown(packets, self._container.format.name, self._context.name)
        if self._shown is None:
            self._packets, self._probe = None, "all"
            info = self._count_decoded()
            return Index(info, None, self._keys, frozenset({UNTIMED}), False, self._free, sums=self._sums)
        self._keys.sort()
        first = self._whole(0, [0])
        clean = all(key.is_clean for key in self._keys)
        closed, turn = are_closed(packets), turn_of(first)
        oddities = {
            STREAMS: len(self._container.streams.video) > 1,
            OPEN: not closed,
            UNCLEAN: not clean,
            INTERLACED: bool(first.interlaced_frame),
            COLOURS: first.colorspace not in MATRICES,
            TURNED: not np.array_equal(turn, np.eye(2)),
            MIRRORED: bool(np.linalg.det(turn) < 0),
        }
        odd = frozenset(name for name, is_so in oddities.items() if is_so)
        # pictures of an open group of HEVC, which lean on what is before their key frame, say so
        sure = clean and (closed or self._context.name == "hevc")
        free = sorted(packets[place].pts for place in places) if sure else []
        info = info_of(self._shown.tolist(), first, self._stream)
        second = float(self._stream.time_base)
        return Index(info, self._shown, self._keys, odd, single, np.array(free, np.int64), second)

    def _count_decoded(self) -> VideoInfo:
        """The frames of a film without times, their sums, and which of them key frames are, where decoding
        can begin at those."""
        times, sums, keys, first = [], [], [], None
        for number, frame in enumerate(self._decode_from(None)):
            first = first or frame
            times.append(frame.pts)
            sums.append(sum_of(frame))
            keys += [number] if frame.key_frame else []
        if first is None:
            raise VideoError(f"{self.path}: no frame can be decoded.")
        if None not in sums and 1 < len(keys) == len(self._keys):
            self._keys = [key._replace(pts=number) for number, key in zip(keys, self._keys)]
            self._sums = np.array(sums)
            if self._try(keys[len(keys) // 2])[0] is None:
                self._sums = np.zeros(0, np.int64)
        return info_of(times, first, self._stream)

    def _stamps(self) -> tuple[list[Stamp], list[int], bool]:
        """Of all packets with content, the places of those on which no other one leans, and Index.single; the
        packets themselves are kept where they are few."""
        stamps, packets, size = [], [], 0
        kind = UNITS.get(self._context.name)
        references = kind(self._context.extradata) if kind else None
        for p in self._demux():
            clean = references.add(p) if references else True
            stamps.append(Stamp(p.pts, p.dts, p.is_keyframe, clean, p.is_discard, p.is_corrupt))
            size += p.size
            if size <= KEEP_BYTES:
                packets.append(p)
            else:
                packets.clear()
        self._packets = packets or None
        sure = references is not None and references.trusted
        return stamps, references.free if references and sure else [], sure or self._context.name != "h264"

    def read(self, numbers: list[int], places: np.ndarray, part: Part) -> np.ndarray:
        """That part of frames of increasing, distinct numbers, uint8 [T, h, w, 3]. places: int [T], which
        one each is."""
        out = np.empty((len(places), part.height, part.width, 3), dtype=np.uint8)
        self._reads += 1
        in_order = np.array_equal(places, np.arange(len(numbers)))
        # the first read is the only one, most often; one that is followed by others goes on
        for place, image in enumerate(self._each(numbers, part, last=self._reads == 1)):
            out[place if in_order else places == place] = image
        if self._reads == 1:
            self._walk = None
        return out

    def each(self, numbers: list[int], part: Part) -> Iterator[np.ndarray]:
        """That part of frames of increasing, distinct numbers, uint8 [h, w, 3], one by one. Goes on where
        the last call ended, and jumps to a later key frame where nothing before it is wanted."""
        yield from self._each(numbers, part, last=False)

    def _each(self, numbers: list[int], part: Part, last: bool) -> Iterator[np.ndarray]:
        """last: whether the decoder may be emptied, which ends its walk, as soon as it got what is wanted."""
        idle = self._idle_among(numbers)
        for place, number in enumerate(numbers):
            self._idle = idle if self.fast else set()
            self._coming, self._ends = numbers[place:], last
            yield self._image(number, self._whole(number, self._coming), part)

    def _idle_among(self, numbers: list[int]) -> set[int]:
        """Times of the frames before the last of these numbers on which neither they nor others lean."""
        if self._shown is None or not numbers or not len(self._free):
            return set()
        wanted = self._shown[numbers]
        first = bisect.bisect_left(self._free, self._key(numbers[0]).pts)
        last = bisect.bisect_left(self._free, wanted[-1])
        return set(self._free[first:last].tolist()).difference(wanted.tolist())

    def _image(self, number: int, frame: av.VideoFrame, part: Part) -> np.ndarray:
        turn = turn_of(frame)
        height, width = upright_size(frame, turn)
        if (height, width) != (self.info.height, self.info.width):
            raise VideoError(
                f"{self.path}: frame {number} is {width}x{height}, the first frame "
                f"{self.info.width}x{self.info.height}; the picture size must not change within a video."
            )
        try:
            return self._colours.rgb(frame, turn, part)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.path}: no colours can be made of its pixels (format {frame.format.name}, colour"
                f" space {frame.colorspace}: {_cause(error)}). Convert the file."
            ) from None

    def _whole(self, number: int, wanted: list[int]):
        """The frame. Decoded from the beginning of the file where it cannot be from its key frame on (which
        may lean on what is before it), and the other way round; no second time where that failed. Raises
        VideoError, naming those of the frames `wanted` from it on that lean on the same key frame."""
        frame, error = self._try(number)
        if frame is None and self.fast and self._shown is not None:
            self.fast, self._walk, self._idle = False, None, set()
            self._probe = "all"
            self._reopen()
            frame, error = self._try(number)
        if frame is None and self._begins_at_keys and self._straight is not False:
            self._straight = not self._straight
            frame, _ = self._try(number)
            if frame is None:
                self._straight = False
        if frame is not None:
            return frame
        last = max((n for n in wanted if self._key(n) == self._key(number)), default=number)
        which = f"frame {number} is" if last == number else f"frames {number} to {last} are"
        raise VideoError(f"{self.path}: {which} damaged ({_cause(error) if error else 'cannot be decoded'}).")

    def _try(self, number: int):
        """(the frame or None, the error or None)."""
        try:
            frame = self._walk_to(number)
            wrong = frame is None or frame.is_corrupt or not self._is(number, frame)
            return (None if wrong else frame), None
        except av.FFmpegError as error:
            self._walk = None
            return None, error

    def _is(self, number: int, frame: av.VideoFrame) -> bool:
        """Whether a frame of a film without times, of which decoding began at a key frame, is the one that
        was counted."""
        sure = self._straight or self._shown is not None or not len(self._sums)
        return sure or sum_of(frame) == self._sums[number]

    @property
    def _begins_at_keys(self) -> bool:
        return self._shown is not None or (self.fast and len(self._sums) > 0)

    def _name(self, number: int) -> int:
        """By which a walk knows a frame."""
        return number if self._shown is None else int(self._shown[number])

    def _key(self, number: int) -> Key | None:
        """The last key frame that is not shown later; None: decoded from the beginning."""
        if not self._begins_at_keys:
            return None
        after = bisect.bisect_right(self._keys, self._name(number), key=lambda key: key.pts)
        return self._keys[max(after - 1, 0)]

    def _walk_to(self, number: int):
        """The frame, or None where the decoder does not give it."""
        name = self._name(number)
        start = self._key(number)
        jump = start is not None and self._straight is not True and start.place > self._fed
        if name <= self._walked or name in self._left or jump:
            self._walk = None
        for _ in range(2):
            if self._walk is None:
                self._walk = self._named(None if self._straight else start)
            for at, frame in self._walk:
                self._walked = at
                if at >= name:
                    return frame if at == name else None
            self._walk = None
            if not self._cut:
                break
        return None

    def _named(self, start: Key | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Every frame from a key frame on, or from the beginning, with its name."""
        frames = self._decode_from(start)
        if self._shown is not None:
            return ((frame.pts, frame) for frame in frames)
        if start is not None:  # those before it are shown, too, but lean on what is not there
            frames = itertools.dropwhile(lambda frame: not frame.key_frame, frames)
        return enumerate(frames, 0 if start is None else start.pts)

    def _decode_from(self, start: Key | None):
        """Every frame from a key frame on, or from the beginning, in order of presentation."""
        self._context.flush_buffers()
        self._left, self._cut = set(), False
        groups = self._groups()
        got, wanted = set[int](), next(groups, (None, None))[1]
        if start is not None and self._packets is not None:
            packets = iter(self._packets[start.place :])
        elif start is not None and self._shown is None:
            packets = self._read_on(start.place)
        else:
            self._rewind(start)
            packets = self._demux()
            if start is not None:
                packets = itertools.dropwhile(lambda p: p.pts != start.pts, packets)
        for self._fed, packet in enumerate(packets, 0 if start is None else start.place):
            if packet.pts in self._idle:
                self._left.add(packet.pts)
                continue
            try:
                yield from self._context.decode(packet)
            except av.FFmpegError:
                if not self._harmless(packet, start):
                    raise
            if wanted is None:
                continue
            got.add(packet.pts)
            wanted.discard(packet.pts)
            while wanted is not None and not wanted and not self._cut:
                key, wanted = next(groups, (None, None))
                self._cut = self._ends if key is None else key.place > self._fed + 1
                if wanted is not None:  # those of an open group may have come with the one before
                    wanted -= got
            if self._cut:
                break
        yield from self._context.decode(None)

    def _groups(self) -> Iterator[tuple[Key, set[int]]]:
        """Key frames with the times of the wanted frames that lean on them. None where decoding goes on to
        the end of the packets."""
        if self._shown is None or not self._single or not self.fast or self._straight:
            return
        for key, numbers in itertools.groupby(self._coming, self._key):
            yield key, set(self._shown[list(numbers)].tolist())

    def _harmless(self, packet: av.Packet, start: Key | None) -> bool:
        """Whether an error says no more than that decoding began in the middle of a film: frames before the
        first key frame lean on what is not there and are left out, as players do; and where that frame is not
        clean, those after it may command to forget what never was."""
        if start is not None and self._shown is None:
            return True  # the sums decide
        first = start or next(iter(self._keys), None)
        if first is None or packet.pts is None or first.pts is None:
            return False
        group = self._keys[1].place if len(self._keys) > 1 else self._fed + 1
        cut = start is None and not first.is_clean and self._fed < group
        return cut or packet.pts < first.pts

    def _demux(self) -> Iterator[av.Packet]:
        """Packets with content, from where the container stands."""
        self._fresh, self._forward = False, None
        return (p for p in self._container.demux(self._stream) if p.size)

    def _read_on(self, place: int) -> Iterator[av.Packet]:
        """Packets from a place on; those before it are read, too, as no seeking is sure of the place."""
        if self._forward is None or place <= self._fed:
            self._rewind(None)
            self._fed, self._forward = -1, self._demux()
        return itertools.islice(self._forward, place - self._fed - 1, None)

    def _rewind(self, start: Key | None) -> None:
        if start is not None:
            self._container.seek(start.dts, stream=self._stream, backward=True)
        elif not self._fresh:  # not every container without an index can seek to its very first frame
            self._reopen()

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._fresh = _open(self.path, self._probe), True
        self._use_stream()

    def close(self) -> None:
        self._packets = None
        self._container.close()


def _check(path: str) -> None:
    if cause := no_file(path, "video") or no_media(path):
        raise VideoError(f"{path}: {cause}.")


def _open(path: str, probe: Probe):
    """An open container with a video stream, or VideoError with the cause."""
    try:
        container = open_media(path, probe)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video file ({_cause(error)}).") from None
    if best_stream(container, "video") is None:
        what = "only sound" if container.streams.audio else "no video stream"
        container.close()
        raise VideoError(f"{path}: the file has {what}; expected a video.")
    return container


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
