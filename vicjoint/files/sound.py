"""Sound files, and the sound of video files: any stretch of seconds, mono, at any rate.

    with Sound("clip.mp4") as sound:
        sound.seconds                                        # how long it sounds
        wave_T = sound.read(1.5, 2.0, rate_hz=16000)  # float32 [32000]: the seconds 1.5 to 3.5, in [-1, 1]

Only the stretch is read: soundfile seeks in wav, flac, ogg, mp3 and what else it opens; everything else,
videos above all, goes through PyAV, which seeks and decodes by timestamps. Time 0 is a sound file's first
sample, and in a video the start of the file, whichever of its streams begins first, so that a stretch of
sound and the frames of the same seconds belong together. Outside of the sound there is silence. (AAC fills
some bands with noise that is drawn anew whenever it is decoded; all else is the same wherever the stretch
begins.) Open a file where it is read, in the worker: a Sound does not pickle.
"""

# T samples of the result, N samples of the file

import contextlib
import functools
import math
import os
import re

import av
import numpy as np
import torch
from torch import Tensor

from vicjoint.files.guard import no_file, no_media, quiet
from vicjoint.files.inside import Inside, open_binary
from vicjoint.files.kept import BESIDE, Kept, WholeSound
from vicjoint.files.media import best_stream, estimated, mp3_bytes, open_media, stated_end

# what soundfile would not open, or where a video may stand
FILM_SUFFIXES = (
    *(".3gp", ".aac", ".avi", ".flv", ".m4a", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts"),
    *(".webm", ".wma", ".wmv"),
)
# opened a hundred thousand times, and never by mpg123
SILENT_SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff")
# of the files that hold sound, in a folder
SOUND_SUFFIXES = (*SILENT_SUFFIXES, ".au", ".caf", ".mp3", ".oga", ".opus", ".w64", *FILM_SUFFIXES)
RUN_UP_SECONDS = (
    0.3  # decoded before the stretch: a codec's first frames lean on those before (AAC at 8 kHz: 128 ms each)
)
# samples, ten frames: after a seek libsndfile decodes without the bits that mp3 keeps in the frames before
MP3_RUN_UP = 11520
# codecs in films; what others give depends a little on where decoding begins
LOSSLESS = ("pcm", "flac", "alac")
# timestamps are rounded (1 ms in mkv): frames follow each other unless theirs are further off than this
ADRIFT_SECONDS = 0.02
LOUDEST = 2.0  # a codec's overshoot is clipped to 1; what is above this was never meant to be in [-1, 1]
MOST_RATE_HZ = 1 << 24  # above what is recorded under water; a damaged header can claim any
# of a filter that resamples: one for rates without a common divisor would fill the memory
MOST_WEIGHTS = 1 << 25
# of that filter, as torchaudio makes it: zeros of the sinc on a side, and the share of the band that is kept
ZEROS, ROLLOFF = 6, 0.99
# what programs write into a wav's header when they write to a pipe
UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFF000)
HEADER_BYTES = 128  # that a wav may count among its samples
TAGS = (b"ID3", b"TAG", b"APE")


class SoundError(ValueError):
    """A sound that cannot be read; the message names the file and the cause."""


class Sound:
    """An open sound; use it in a `with` block. `seconds`: from time 0 to its end. `rate_hz`: of the file.

    stream: number of the audio stream in a file with several (films in two languages), from 0; None: the one
    that FFmpeg's players choose. kept: where whole sounds are kept that there is room for; with one of these
    the file is not opened. Raises SoundError where the file cannot be read or has no sound."""

    def __init__(self, path: str | os.PathLike, stream: int | None = None, kept: Kept | None = None):
        self.path = os.fspath(path)
        self._reader = None if kept is None else kept.get(self.path)
        if self._reader is None:
            _check_file(self.path)
            self._reader = _open(self.path, stream)
            if kept is not None:
                self._reader = _keep(self.path, self._reader, kept)
        self.rate_hz, self.seconds = self._reader.rate, self._reader.seconds

    def read(self, start: float, length: float, rate_hz: int) -> Tensor:
        """float32 [round(length * rate_hz)] in [-1, 1], mono (the mean of all channels), from `start` seconds
        on. It equals that part of the whole file, resampled. Raises SoundError for damaged or missing
        samples, NaN and infinity."""
        count, source = round(length * rate_hz), self.rate_hz
        first = round(start * source)
        if source == rate_hz:
            return torch.from_numpy(self._samples(first, count))
        if source > MOST_RATE_HZ:
            raise SoundError(
                f"{self.path}: its sampling rate is {source} Hz, a damaged one: expected at most"
                f" {MOST_RATE_HZ} Hz. Write the file anew."
            )
        common = math.gcd(source, rate_hz)
        if source // common * (rate_hz // common) > MOST_WEIGHTS:
            reach = math.ceil(ZEROS / ROLLOFF * max(1, source / rate_hz)) + 1
            wave = self._samples(first - reach, math.ceil(count * source / rate_hz) + 2 * reach + 1)
            places = reach + start * source - first + np.arange(count) * (source / rate_hz)
            return torch.from_numpy(_at_places(wave, places, reach, min(1, rate_hz / source))).clamp_(-1, 1)
        resample, block_in, block_out = _resampler(source, rate_hz)
        # the filter looks beyond both ends
        blocks = math.ceil(ZEROS / ROLLOFF * max(1, source / rate_hz) / block_in) + 1
        wave = self._samples(
            first - blocks * block_in, math.ceil(count * source / rate_hz) + 2 * blocks * block_in
        )
        return resample(torch.from_numpy(wave))[blocks * block_out :][:count].clamp_(-1, 1)

    def _samples(self, first: int, count: int) -> np.ndarray:
        wave = self._reader.samples(first, count)
        if not np.isfinite(wave).all():
            place = int(np.flatnonzero(~np.isfinite(wave))[0])
            what = "NaN" if np.isnan(wave[place]) else "an infinite value"
            raise SoundError(
                f"{self.path}: holds {what} at {(first + place) / self.rate_hz:.3f} s. "
                "Expected numbers from -1 to 1; write the file anew."
            )
        if count and (peak := float(np.abs(wave).max())) > LOUDEST:
            raise SoundError(
                f"{self.path}: holds values up to {peak:g}. Expected numbers from -1 to 1; divide them by"
                " their full scale."
            )
        return wave.clip(-1, 1)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read(path: str | os.PathLike, rate_hz: int) -> Tensor:
    """A whole file, float32 [T] at `rate_hz`; see Sound."""
    with Sound(path) as sound:
        return sound.read(0, sound.seconds, rate_hz)


@functools.lru_cache(maxsize=16)  # its filters take longer to make than to use
def _resampler(source: int, target: int):
    """torchaudio's resampling, and the shortest blocks of samples in and out that last equally long."""
    from torchaudio.transforms import Resample

    common = math.gcd(source, target)
    return Resample(source, target), source // common, target // common


def _at_places(wave: np.ndarray, places: np.ndarray, reach: int, band: float) -> np.ndarray:
    """float32: the wave between its samples, by torchaudio's filter, for places that no filter repeats at.
    band: the share of its frequencies that the new rate can hold."""
    out = np.empty(len(places), np.float32)
    for begin in range(0, len(places), 4096):
        at = places[begin : begin + 4096, None]
        near = np.floor(at).astype(int) + np.arange(1 - reach, reach + 1)
        far = (ROLLOFF * band * (at - near)).clip(-ZEROS, ZEROS)
        weights = ROLLOFF * band * np.sinc(far) * np.cos(np.pi / 2 / ZEROS * far) ** 2
        out[begin : begin + 4096] = (wave[near.clip(0, len(wave) - 1)] * weights).sum(1)
    return out


def _check_file(path: str) -> None:
    if cause := no_file(path, "sound") or no_media(path):
        raise SoundError(f"{path}: {cause}.")


def _open(path: str, stream: int | None):
    import soundfile

    if stream is not None or path.lower().endswith(FILM_SUFFIXES):
        return _Film(path, stream)
    try:
        file = _File(path)
    except soundfile.LibsndfileError as error:
        try:
            return _Film(path, stream)
        except NotMedia:
            raise SoundError(
                f"{path}: not a sound file that can be read ({str(error.error_string).rstrip('.')})."
            ) from None
    if file.sure:
        return file
    file.close()
    return _Film(path, stream)


def _keep(path: str, reader, kept: Kept):
    """The whole sound in memory where it has the same bits as its stretches, there is room, and all of it can
    be read; else the reader."""
    count = math.ceil(reader.seconds * reader.rate) + 2 * BESIDE
    if not reader.exact or 4 * count > kept.room:
        return reader
    try:
        whole = WholeSound(reader.samples(-BESIDE, count), reader.rate, reader.seconds)
    except SoundError:  # of one place, which is the cause only of stretches that hold it
        return reader
    reader.close()
    kept.add(path, whole, 4 * count)
    return whole


class _File:
    """Through soundfile. `samples(first, count)`: float32 [count], mono; zeros outside of the file. `exact`:
    a sample has the same bits wherever reading begins. `sure`: whether the file says how long it is; else
    libsndfile guesses."""

    def __init__(self, path: str):
        import soundfile

        self.path = path
        # mpg123 prints a line for each damaged frame
        with contextlib.nullcontext() if path.lower().endswith(SILENT_SUFFIXES) else quiet():
            self._file = soundfile.SoundFile(open_binary(path) if isinstance(path, Inside) else path)
        self.rate, self.frames = self._file.samplerate, self._file.frames
        self.seconds, self.exact = self.frames / self.rate, self._file.format != "MP3"
        self.sure = 0 < self.frames < 2**62
        if self._file.subtype == "MPEG_LAYER_III":
            stated, there = mp3_bytes(path)
            self.sure = self.sure and there <= stated
        try:
            self._check_length()
        except SoundError:
            self.close()
            raise

    def _check_length(self) -> None:
        # libsndfile makes a cut-off wav shorter in silence, and tells so only in its log
        stated = re.search(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if stated and int(stated[1]) > int(stated[2]) + HEADER_BYTES and int(stated[1]) not in UNKNOWN_SIZES:
            share = int(stated[2]) / int(stated[1])
            raise SoundError(
                f"{self.path}: is cut off: {share:.0%} of its samples are there. Get the file anew."
            )

    def samples(self, first: int, count: int) -> np.ndarray:
        import soundfile

        out = np.zeros(count, np.float32)
        begin, end = max(first, 0), min(first + count, self.frames)
        if end <= begin:
            return out
        run_up = min(begin, MP3_RUN_UP) if self._file.format == "MP3" else 0
        try:
            with quiet() if self._file.format == "MP3" else contextlib.nullcontext():
                self._file.seek(begin - run_up)
                got = self._file.read(end - begin + run_up, dtype="float32", always_2d=True)[run_up:]
        except soundfile.LibsndfileError as error:
            raise SoundError(
                f"{self.path}: the sound is damaged ({str(error.error_string).rstrip('.')})."
            ) from None
        if len(got) < end - begin:
            raise SoundError(
                f"{self.path}: is cut off: it says {self.seconds:.2f} s, and ends at"
                f" {(begin + len(got)) / self.rate:.2f} s."
            )
        out[begin - first : end - first] = got[:, 0] if got.shape[1] == 1 else got.mean(1)
        return out

    def close(self) -> None:
        self._file.close()


class NotMedia(SoundError):
    """No container that FFmpeg knows."""


class _Film:
    """Through PyAV, by timestamps; the same as _File."""

    def __init__(self, path: str, stream: int | None):
        self.path, self._wanted = path, stream
        self._open()
        try:
            if not self.rate:
                raise SoundError(f"{self.path}: its audio stream has no sampling rate. Write the file anew.")
            self._zero = (
                self._container.start_time or 0
            ) / av.time_base  # the file's start, as for its frames
            self._first_end = self._decode_first()
            self.seconds = self._end() - self._zero
            # of containers with an index; others are rounded
            self._sure = bool(self._stream.duration) and "mp4" in self._container.format.name
            stated, there = mp3_bytes(self.path) if self._container.format.name == "mp3" else (0, 0)
            self._joined = 0 < stated < there  # FFmpeg seeks by what is stated
        except av.FFmpegError as error:
            raise SoundError(f"{self.path}: the file is damaged ({error.strerror}).") from None
        if self.seconds <= 0:
            raise SoundError(f"{self.path}: holds no sound (0 samples).")

    def _open(self) -> None:
        try:
            self._container = open_media(self.path, probe="sound")
        except (av.FFmpegError, OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error
            raise NotMedia(f"{self.path}: not a sound or video file that can be read ({cause}).") from None
        streams = [s for s in self._container.streams.audio if s.codec_context is not None]
        if not streams:
            others = sorted({s.type for s in self._container.streams})
            raise SoundError(
                f"{self.path}: has no sound, only: {', '.join(others) or 'nothing'}. Expected a file with an"
                " audio stream."
            )
        if self._wanted is None:
            self._stream = best_stream(self._container, "audio")
        elif 0 <= self._wanted < len(streams):
            self._stream = streams[self._wanted]
        else:
            raise SoundError(
                f"{self.path}: has no audio stream {self._wanted} (option stream); it has {len(streams)},"
                " numbered from 0."
            )
        self._stream.codec_context.thread_count = 1
        self.rate = self._stream.codec_context.sample_rate
        self.exact = self._stream.codec_context.name.startswith(LOSSLESS)

    def _decode_first(self) -> int | None:
        """The sample after the first frame, from which the others are counted where timestamps are rounded
        to more than a sample; None where they are not, or it cannot be decoded."""
        if self._stream.time_base * self.rate <= 1:
            return None
        try:
            frame = next(self._frames_of(self._container))
        except (av.FFmpegError, StopIteration):  # reading it says so, where it is wanted
            return None
        return None if frame.pts is None else self._place(frame) + frame.samples

    def _place(self, frame) -> int:
        """The first sample of a frame, by its timestamp."""
        return round((float(frame.pts * frame.time_base) - self._zero) * self.rate)

    def _counted(self, at: int, samples: int) -> int:
        """Where a frame begins that a rounded timestamp puts at `at`: so many whole frames after the first
        one, where that is as near as rounding explains."""
        if self._first_end is None:
            return at
        nearest = self._first_end + round((at - self._first_end) / samples) * samples
        return nearest if abs(nearest - at) <= self._stream.time_base * self.rate + 1 else at

    def _end(self) -> float:
        """Seconds of the file's clock at which the sound ends."""
        if (end := stated_end(self._stream)) is not None:
            return end
        container, ends = self._container, []
        # matroska counts it from 0 or from its start: look at the last packets
        if container.duration and not estimated(container):
            try:
                ends = self._packet_ends(((container.start_time or 0) + container.duration) / av.time_base)
            except av.FFmpegError:  # no way to start in the middle
                pass
        return max(ends or self._packet_ends(None), default=self._zero)

    def _packet_ends(self, start: float | None) -> list[float]:
        return [
            (p.pts + (p.duration or 0)) * float(self._stream.time_base)
            for p in self._from(start).demux(self._stream)
            if p.pts is not None
        ]

    def samples(self, first: int, count: int) -> np.ndarray:
        out = np.zeros(count, np.float32)
        if first + count <= 0 or first >= self.seconds * self.rate:
            return out
        try:
            try:
                start = None if self._joined else first / self.rate + self._zero - RUN_UP_SECONDS
                begun, end = self._fill(out, first, start)
            except av.FFmpegError:  # not every container can start in the middle; real damage fails again
                begun, end = None, 0
            if begun is None or begun > max(first, 0):
                out[:] = 0
                begun, end = self._fill(out, first, None)
        except av.FFmpegError as error:
            raise SoundError(f"{self.path}: the sound is damaged or cut off ({error.strerror}).") from None
        due = min(first + count, int(self.seconds * self.rate)) - int(0.1 * self.rate)
        if begun is None or (self._sure and end < due):
            where = (
                f"it says {self.seconds:.2f} s, and ends at {max(end, 0) / self.rate:.2f} s"
                if self._sure
                else "no sample can be decoded"
            )
            raise SoundError(f"{self.path}: the sound is cut off: {where}.")
        return out

    def _fill(self, out: np.ndarray, first: int, start: float | None) -> tuple[int | None, int]:
        """Decode from `start` (seconds of the file's clock; None: the beginning) to the end of `out`, which
        begins at sample `first`; (first sample decoded, sample after the last)."""
        begun, end, last = None, 0, first + len(out)
        for frame in self._frames(start):
            if frame.sample_rate != self.rate:
                raise SoundError(
                    f"{self.path}: the sampling rate changes from {self.rate} to {frame.sample_rate} Hz."
                    " Convert the file."
                )
            at = end if frame.pts is None else self._place(frame)
            if begun is None:
                begun = at = at if start is None else self._counted(at, frame.samples)
            elif abs(at - end) <= ADRIFT_SECONDS * self.rate:
                at = end
            end = at + frame.samples
            if (low := max(at, first)) < (high := min(end, last)):
                out[low - first : high - first] = _mono(frame)[low - at : high - at]
            if end >= last:
                break
        return begun, end

    def _frames(self, start: float | None):
        return self._frames_of(self._from(start))

    def _frames_of(self, container):
        for packet in container.demux(self._stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                if bytes(packet)[:3] not in TAGS:  # of joined mp3 files
                    raise

    def _from(self, start: float | None):
        """The container, ready to go on at `start` seconds of the file's clock or a little before; None: from
        its beginning."""
        if start is None:
            self.close()
            self._open()
        else:
            self._container.seek(int(start / self._stream.time_base), stream=self._stream, backward=True)
            self._stream.codec_context.flush_buffers()
        return self._container

    def close(self) -> None:
        self._container.close()


def _mono(frame) -> np.ndarray:
    """float32 [N]: the mean of a decoded frame's channels."""
    wave = frame.to_ndarray()
    if not frame.format.is_planar:
        wave = wave.reshape(-1, frame.layout.nb_channels).T
    if wave.dtype.kind in "iu":
        full = 128 if wave.dtype == np.uint8 else -float(np.iinfo(wave.dtype).min)
        wave = (wave.astype(np.float32) - (128 if wave.dtype == np.uint8 else 0)) / full
    return wave[0] if len(wave) == 1 else wave.mean(0)
