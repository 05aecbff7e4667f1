"""The sound of a video and its frames belong together to the sample: offsets, edit lists, rounded clocks.

Each film shows its frame numbers and plays a sweep, in which every moment is known by its pitch.
"""

from fractions import Fraction

import av
import numpy as np
import pytest

from vicjoint.files.sound import Sound
from vicjoint.video import Video

pytest.importorskip("soundfile"), pytest.importorskip("torchaudio")

FPS, SECONDS, CODE = 25, 4, 8  # CODE: pixels of one bit of a frame's number
BITS = 7


def sweep(rate: int) -> np.ndarray:
    """float [SECONDS * rate], louder and softer by chance, so that no moment is like another."""
    t = np.arange(SECONDS * rate)
    loud = np.random.default_rng(0).uniform(0.3, 1, SECONDS * 20)[t * 20 // rate]
    return 0.5 * loud * np.sin(2 * np.pi * np.cumsum(300 + 2500 * t / len(t)) / rate)


def film(path, codec: str, rate: int, sound_later: float = 0.0, pictures_later: float = 0.0):
    """H.264 with B-frames and a key frame every 20, and the sweep."""
    packets = []
    with av.open(str(path), "w") as out:
        video = out.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = BITS * CODE + CODE, 64, "yuv420p"
        if path.suffix != ".webm":
            video.options = {"g": "20", "bf": "2", "sc_threshold": "0"}
        audio = out.add_stream(codec, rate=rate)
        audio.layout = "mono"
        for number in range(SECONDS * FPS):
            row = np.repeat([*(255 * (number >> b & 1) for b in range(BITS)), 0], CODE).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.tile(row[None, :, None], (64, 1, 3)), format="rgb24")
            frame.pts, frame.time_base = number + round(pictures_later * FPS), Fraction(1, FPS)
            packets += video.encode(frame)
        wave = sweep(rate)
        if codec in ("flac", "pcm_s16le"):
            samples, kind = (wave * 32767).astype(np.int16), "s16"
        else:
            samples, kind = wave.astype(np.float32), "fltp"
        frame = av.AudioFrame.from_ndarray(samples[None], format=kind, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(sound_later * rate), Fraction(1, rate)
        packets += [*video.encode(None), *audio.encode(frame), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            out.mux(packet)
    return path


def cut(source, target, at: float):
    """The film from `at` seconds on, not encoded anew: packets from the key frame before, which an edit list
    leaves out again."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        packets = [p for p in old.demux() if p.size]
        keys = [p.dts for p in packets if p.stream.type == "video" and p.is_keyframe]
        key = max(dts for dts in keys if dts * old.streams.video[0].time_base <= at)
        for packet in packets:
            end = (packet.pts + packet.duration) * packet.time_base
            if packet.dts < key if packet.stream.type == "video" else end < at - 0.05:
                continue
            offset = round(at / packet.time_base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return target


def place(wave: np.ndarray, within: np.ndarray) -> int:
    """How many samples later `wave` is heard than in `within`."""
    size = 1 << (len(wave) + len(within)).bit_length()
    alike = np.fft.irfft(np.fft.rfft(wave, size) * np.conj(np.fft.rfft(within, size)), size)
    found = int(np.argmax(alike))
    return found if found < size // 2 else found - size


def later(path, rate: int) -> tuple[float, int]:
    """(seconds, samples): how much later in the file than in the film as it was made the frames are seen, and
    the sound is heard; the same for all frames, and wherever a stretch begins."""
    with Video(path, "pyav") as video:
        seen = (video.read(range(video.info.frames))[:, 32, CODE // 2 :: CODE, 0] > 128)[:, :BITS]
        times = video.info.timestamps_seconds - video.info.start_seconds
    of_frames = times - (seen * (1 << np.arange(BITS))).sum(1) / FPS
    assert np.ptp(of_frames) < 1e-3 and len(times) > 50
    with Sound(path) as sound:
        heard = place(sound.read(0, sound.seconds, rate).numpy(), sweep(rate))
        for start in (0.613, 1.25, 1.877):
            part = sound.read(start, 0.8, rate).numpy()
            assert place(part, sweep(rate)) + round(start * rate) == heard, f"another place from {start} s on"
    return float(np.median(of_frames)), heard


@pytest.mark.parametrize("rate", [44100, 16000])
@pytest.mark.parametrize("at", [None, 0.8, 1.08])  # whole, cut at a key frame, and between two
def test_edit_lists(tmp_path, rate, at):
    path = film(tmp_path / "a.mp4", "aac", rate)  # AAC begins with silence that an edit list takes away
    if at is not None:
        path = cut(path, tmp_path / "cut.mp4", at)
    assert later(path, rate) == (pytest.approx(-(at or 0), abs=1e-6), -round((at or 0) * rate))


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("a.mp4", "aac", 16000),
        ("a.mov", "pcm_s16le", 44100),
        ("a.mkv", "flac", 44100),
        ("a.ts", "aac", 48000),
    ],
)
@pytest.mark.parametrize("sound, pictures", [(0.5, 0.0), (0.0, 0.4)])
def test_one_stream_begins_later(tmp_path, name, codec, rate, sound, pictures):
    path = film(tmp_path / name, codec, rate, sound, pictures)
    seen, heard = later(path, rate)
    # of a container with 90,000 ticks a second, or 1,000
    assert heard / rate - seen == pytest.approx(sound - pictures, abs=1.01 / rate)


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("a.mkv", "flac", 44100),
        ("a.mkv", "aac", 44100),
        ("a.webm", "libopus", 48000),
        ("a.flv", "aac", 44100),
    ],
)
def test_clocks_of_a_thousandth_of_a_second(tmp_path, name, codec, rate):
    """Their timestamps are some 20 samples off; samples are counted from the first frame (`later` looks)."""
    seen, heard = later(film(tmp_path / name, codec, rate), rate)
    assert heard == pytest.approx(seen * rate, abs=rate / 2000)
