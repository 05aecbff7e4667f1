"""A video made smaller, or with key frames nearer to each other: H.264 in mp4, the same frames at the same
times, the sound as it is.

    made = remade("clip.mov", Path("clip.mp4"), Films(short_side=256, keyframes=12))

Without B-frames: a frame leans only on frames before it, so that one at a random place costs the decoding
from its key frame on and nothing else. What was made is read again and compared before it is taken.
"""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vicjoint.files.media import best_stream, open_media
from vicjoint.files.sound import Sound, SoundError
from vicjoint.video import VIDEO_SUFFIXES, Video, VideoError

FILM_ENDINGS = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix != ".gif")
SAME_SECONDS = 1e-3  # of a frame's time
SOUND_SECONDS = 0.1  # of the sound's end: a codec's last frame may be cut or not
SOUND_LOSS = 0.1  # of the sound's loudness, that two decodings of some codecs differ by


class Films(NamedTuple):
    """short_side: most pixels of the shorter side, an even number. keyframes: most frames from one key frame
    to the next; None: as it is. crf: the codec's loss, 0 to 51."""

    short_side: int | None = None
    keyframes: int | None = None
    crf: int = 20

    def wants(self, video: Video) -> bool:
        """Whether the video is larger, or its key frames are further from each other."""
        large = self.short_side is not None and min(video.info.height, video.info.width) > self.short_side
        return large or (self.keyframes is not None and longest_group(video.path) > self.keyframes)


class NotTheSame(ValueError):
    """What was made differs from the video, which therefore stays as it is; the message says in what."""


def remade(path: str, to: Path, films: Films) -> bool:
    """Write a video anew; False where it is as wanted already. Raises VideoError where it cannot be read, and
    NotTheSame."""
    with Video(path, "pyav") as video:
        if not films.wants(video):
            return False
        try:
            encode(video, to, films)
        except (av.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, VideoError):
                raise
            raise NotTheSame(f"cannot be written as mp4: {error}") from None
        compare(video, to)
    return True


def longest_group(path: str) -> int:
    """Most frames from one key frame to the next, or to the end."""
    with open_media(path) as container:
        packets = [p.is_keyframe for p in container.demux(best_stream(container, "video")) if p.size]
    keys = [place for place, is_key in enumerate(packets) if is_key] + [len(packets)]
    return max(after - key for key, after in zip(keys, keys[1:])) if len(keys) > 1 else len(packets)


def encode(video: Video, to: Path, films: Films) -> None:
    """Frames, and the packets of all sounds, in order of time; on the clock of the file."""
    info = video.info
    shrink = 1.0 if films.short_side is None else min(1.0, films.short_side / min(info.height, info.width))
    height, width = (max(2, 2 * round(side * shrink / 2)) for side in (info.height, info.width))
    with open_media(video.path) as given, av.open(str(to), "w", format="mp4") as made:
        base = best_stream(given, "video").time_base
        stream = made.add_stream("libx264", rate=Fraction(info.fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        stream.codec_context.max_b_frames, stream.codec_context.thread_count = 0, 1
        stream.codec_context.gop_size = films.keyframes or 250
        stream.options = {"crf": str(films.crf), "preset": "medium"}
        sounds = {s: made.add_stream_from_template(s) for s in given.streams.audio if s.codec_context}
        waiting = (p for p in given.demux(*sounds) if p.size) if sounds else iter(())
        packet = next(waiting, None)
        for number, image in enumerate(video.each(range(info.frames))):
            seconds = info.timestamps_seconds[number]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(width, height, "yuv420p", interpolation="AREA")
            frame.pts, frame.time_base = round(seconds / base), base
            while packet is not None and float((packet.dts or 0) * packet.time_base) <= seconds:
                packet = after_muxing(made, packet, sounds, waiting)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
        while packet is not None:
            packet = after_muxing(made, packet, sounds, waiting)


def after_muxing(made, packet, sounds: dict, waiting):
    """The next packet, after this one is written."""
    packet.stream = sounds[packet.stream]
    made.mux(packet)
    return next(waiting, None)


def compare(video: Video, made: Path) -> None:
    """Raises NotTheSame where frames, times or sound differ."""
    with Video(made, "pyav") as new:
        if new.info.frames != video.info.frames:
            raise NotTheSame(f"{new.info.frames} frames were written of {video.info.frames}")
        times = [v.info.timestamps_seconds - v.info.start_seconds for v in (video, new)]
        if (worst := float(np.abs(times[0] - times[1]).max())) > SAME_SECONDS:
            raise NotTheSame(f"a frame would be shown {worst:.3f} s off its time")
    waves = [sound_of(video.path), sound_of(str(made))]
    if waves[0] is None and waves[1] is None:
        return
    if waves[0] is None or waves[1] is None:
        raise NotTheSame("its sound can be read only before or only after")
    if abs(len(waves[0][0]) - len(waves[1][0])) > SOUND_SECONDS * waves[0][1]:
        raise NotTheSame("its sound would have another length")
    count = min(len(wave) for wave, _ in waves)
    before, after = (wave[:count] for wave, _ in waves)
    loudness = lambda wave: float(np.sqrt(np.mean(np.square(wave), dtype=np.float64))) if count else 0.0
    if loudness(before - after) > SOUND_LOSS * loudness(before) + 1e-4:
        raise NotTheSame("its sound would be another one, or at another time")


def sound_of(path: str) -> tuple[np.ndarray, int] | None:
    """(float32 [T], its rate); None where the file has none that can be read."""
    try:
        with Sound(path) as sound:
            return sound.read(0, sound.seconds, sound.rate_hz).numpy(), sound.rate_hz
    except SoundError:
        return None
