"""Sound files and the sound of videos: any stretch, at any rate, in time with the pictures; and what is wrong
with broken ones."""

import io
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from vicjoint.files import sound as sound_files
from vicjoint.files.kept import Kept
from vicjoint.files.sound import Sound, SoundError, read
from vicjoint.video import Video

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")
RATE = 16000


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """A tone whose loudness rises, so that every place of it is different."""
    t = np.arange(round(seconds * rate)) / rate
    return level * (0.2 + 0.8 * t / seconds) * np.sin(2 * np.pi * hertz * t)


def write_film(
    path,
    sound: np.ndarray,
    rate: int,
    flashes=(),
    fps: int = 25,
    codec: str = "aac",
    start: float = 0.0,
    later: float = 0.0,
    title: str = "",
):
    """A video as long as the sound, black, with white frames at the numbers `flashes`. start: of the pictures
    and of the sound, in seconds of the file's clock; later: how much later the sound starts than the
    pictures."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        video = container.add_stream("mpeg4" if path.suffix != ".webm" else "libvpx-vp9", rate=fps)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate)
        audio.layout = "mono"
        for number in range(round(len(sound) / rate * fps)):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), 255 * (number in flashes), np.uint8), format="rgb24"
            )
            frame.pts = number + round(start * fps)
            frame.time_base = Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, round((start + later) * rate)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


# ---- files ----


@pytest.mark.parametrize(
    "name, subtype, tolerance",
    [
        ("a.wav", "PCM_U8", 1e-2),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "FLOAT", 1e-6),
        ("a.wav", "DOUBLE", 1e-6),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.05),
        ("a.ogg", "OPUS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
        ("a.aiff", "PCM_16", 1e-4),
    ],
)
def test_a_stretch_of_every_format(tmp_path, name, subtype, tolerance):
    wave = tone(2.0, RATE)
    soundfile.write(tmp_path / name, wave, RATE, subtype=subtype)
    with Sound(tmp_path / name) as sound:
        assert sound.rate_hz in (RATE, 48000) and abs(sound.seconds - 2.0) < 0.1  # Opus is always 48 kHz
        got = sound.read(0.5, 1.0, RATE)
    assert got.dtype == torch.float32 and got.shape == (RATE,)
    assert np.abs(got.numpy() - wave[RATE // 2 : RATE // 2 + RATE]).max() < tolerance


def test_stereo_becomes_the_mean(tmp_path):
    wave = tone(0.1, RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, 0.5 * wave], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read(tmp_path / "a.wav", RATE).numpy(), 0.75 * wave, atol=1e-6)


@pytest.mark.parametrize("source, target", [(44100, 16000), (8000, 16000), (48000, 8000), (22050, 11025)])
def test_a_resampled_stretch_is_that_of_the_whole_and_the_tone_stays(tmp_path, source, target):
    wave = tone(2.0, source)
    soundfile.write(tmp_path / "a.wav", wave, source, subtype="FLOAT")
    whole = read(tmp_path / "a.wav", target)
    assert len(whole) == 2 * target
    expected = tone(2.0, target)
    inside = slice(target // 20, -target // 20)
    assert np.abs(whole.numpy() - expected)[inside].max() < 2e-3
    with Sound(tmp_path / "a.wav") as sound:
        part = sound.read(0.4, 1.0, target)
    assert (part - whole[target * 2 // 5 :][:target]).abs().max() < 1e-5


def test_outside_of_the_sound_there_is_silence(tmp_path):
    wave = tone(1.0, RATE)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with Sound(tmp_path / "a.wav") as sound:
        around = sound.read(-0.5, 2.0, RATE)
        assert not sound.read(5.0, 1.0, RATE).any() and not sound.read(-3.0, 1.0, RATE).any()
    assert not around[: RATE // 2].any() and not around[-RATE // 2 :].any()
    np.testing.assert_allclose(around[RATE // 2 : -RATE // 2].numpy(), wave, atol=1e-6)


def test_silence_is_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert not read(tmp_path / "a.wav", RATE).any()


def test_only_the_stretch_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(60.0, RATE), RATE)
    asked = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, **rest: asked.append(frames) or original(self, frames, **rest),
    )
    with Sound(tmp_path / "a.wav") as sound:
        sound.read(30.0, 1.0, 8000)
    assert sum(asked) < 1.1 * RATE


# ---- the sound of videos ----

CLICKS = (10, 30, 47)  # frames


STRETCHES = (
    (0.5, 0.5, RATE),
    (0.0, 2.0, RATE),
    (1.37, 0.4, 8000),
    (-0.3, 0.6, RATE),
    (1.8, 0.7, 22050),
    (3.0, 0.2, RATE),
)


@pytest.mark.parametrize(
    "name, subtype",
    [
        ("a.wav", "PCM_16"),
        ("a.flac", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.ogg", "OPUS"),
        ("a.avi", "pcm_s16le"),
        ("a.mkv", "flac"),
    ],
)
def test_a_kept_sound_is_the_same_to_the_bit_and_not_opened_again(tmp_path, monkeypatch, name, subtype):
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(size=2 * RATE) * tone(2.0, RATE)
    if name in ("a.avi", "a.mkv"):
        write_film(path, noise, RATE, codec=subtype, later=0.1)
    else:
        soundfile.write(path, noise, RATE, subtype=subtype)
    expected = []
    for stretch in STRETCHES:
        with Sound(path) as sound:
            expected.append(sound.read(*stretch))
    kept = Kept(1)
    with Sound(path, kept=kept) as sound:
        assert torch.equal(sound.read(*STRETCHES[0]), expected[0])
    monkeypatch.setattr(sound_files, "_open", lambda *_: pytest.fail("opened again"))
    for stretch, wave in zip(STRETCHES, expected):
        with Sound(path, kept=kept) as again:
            assert torch.equal(again.read(*stretch), wave) and (again.seconds, again.rate_hz) == (
                sound.seconds,
                sound.rate_hz,
            )
    assert len(kept) == 1 and wave.abs().max() == 0 and expected[3][:100].abs().max() == 0


def test_a_sound_is_kept_where_it_fits_and_can_be_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "long.wav", tone(20.0, RATE), RATE)  # 1.3 MB
    soundfile.write(tmp_path / "short.wav", tone(2.0, RATE), RATE)
    kept = Kept(1)
    for name, held in (("long.wav", 0), ("short.wav", 1)):
        with Sound(tmp_path / name, kept=kept) as sound, Sound(tmp_path / name) as plain:
            assert torch.equal(sound.read(1.0, 0.5, RATE), plain.read(1.0, 0.5, RATE)) and len(kept) == held
    used = 2**20 - kept.room
    soundfile.write(tmp_path / "lossy.mp3", tone(1.0, RATE), RATE)
    write_film(tmp_path / "lossy.mp4", tone(1.0, RATE), RATE)
    for name in ("lossy.mp3", "lossy.mp4"):  # rounding, and AAC's noise, depend on where decoding begins
        with Sound(tmp_path / name, kept=kept) as sound, Sound(tmp_path / name) as plain:
            assert torch.equal(sound.read(0.5, 0.3, RATE), plain.read(0.5, 0.3, RATE)) and len(kept) == 1
    assert 4 * 2 * RATE <= used < 4 * 3 * RATE
    soundfile.write(tmp_path / "hurt.flac", np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    data = bytearray((tmp_path / "hurt.flac").read_bytes())
    data[-4000:-3000] = bytes(1000)
    (tmp_path / "hurt.flac").write_bytes(data)
    with Sound(tmp_path / "hurt.flac", kept=kept) as sound:
        assert sound.read(0.5, 1.0, RATE).abs().max() > 0 and len(kept) == 1, (
            "what is hurt at its end is read where it is whole"
        )
        with pytest.raises(SoundError, match="hurt.flac"):
            sound.read(2.0, 1.0, RATE)


def click_film(path, rate: int, **options) -> None:
    sound = np.zeros(3 * rate)
    for number in CLICKS:
        at = round(number / 25 * rate)
        sound[at : at + rate // 200] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 200) / rate)
    write_film(path, sound, rate, flashes=CLICKS, **options)


@pytest.mark.parametrize(
    "name, codec, rate, start",
    [
        ("a.mp4", "aac", 44100, 0.0),
        ("a.mp4", "aac", 16000, 0.0),
        ("a.mkv", "aac", 48000, 2.0),
        ("a.webm", "libopus", 48000, 0.0),
        ("a.mkv", "pcm_s16le", 16000, 0.0),
        ("a.avi", "pcm_s16le", 44100, 0.0),
    ],
)
def test_clicks_are_heard_when_their_frames_are_seen(tmp_path, name, codec, rate, start):
    click_film(tmp_path / name, rate, codec=codec, start=start)
    with Video(tmp_path / name, "pyav") as video:
        white = np.flatnonzero(video.read(range(video.info.frames)).mean((1, 2, 3)) > 128)
        with av.open(str(tmp_path / name)) as container:
            times = video.info.timestamps_seconds[white] - (container.start_time or 0) / av.time_base
    assert list(white) == list(CLICKS)
    with Sound(tmp_path / name) as sound:
        assert abs(sound.seconds - 3.0) < 0.15
        for first in (0.0, 0.3, 1.1):  # read from the middle, and from the beginning
            wave = sound.read(first, 3.0 - first, RATE).abs()
            heard = first + np.flatnonzero(wave.numpy() > 0.25) / RATE
            for time in times[times >= first]:
                nearest = heard[heard > time - 0.02].min()
                assert abs(nearest - time) < 0.01, f"a click at {time:.3f} s is heard at {nearest:.3f} s"


def test_sound_that_starts_later_than_the_pictures_stays_in_time(tmp_path):
    write_film(tmp_path / "a.mkv", tone(2.0, RATE), RATE, codec="pcm_s16le", later=0.5)
    with Sound(tmp_path / "a.mkv") as sound:
        wave = sound.read(0.0, 2.5, RATE)
        middle = sound.read(1.0, 0.5, RATE)
    assert not wave[: RATE // 2].any()
    np.testing.assert_allclose(wave[RATE // 2 :].numpy(), tone(2.0, RATE), atol=1e-3)
    assert torch.equal(middle, wave[RATE : RATE + RATE // 2])


def test_a_stretch_of_a_film_is_that_of_the_whole_even_where_seeking_lands_late(tmp_path, monkeypatch):
    write_film(tmp_path / "a.mp4", tone(3.0, 8000), 8000)
    whole = read(tmp_path / "a.mp4", 8000)
    with Sound(tmp_path / "a.mp4") as sound:
        for start in (0.7, 1.1, 1.9):
            assert (sound.read(start, 1.0, 8000) - whole[round(start * 8000) :][:8000]).abs().max() < 1e-3
        original = sound._reader._from
        monkeypatch.setattr(
            sound._reader, "_from", lambda start: original(None if start is None else start + 1.0)
        )
        assert (sound.read(1.1, 1.0, 8000) - whole[8800:16800]).abs().max() < 1e-3


def test_the_chosen_stream_of_several(shared_data):
    path = shared_data / "codec_edge_cases" / "nasa_13013.mp4"
    with Sound(path) as sound, Sound(path, 0) as first, Sound(path, 1) as second:
        assert (first.rate_hz, second.rate_hz) == (8000, 16000) and sound.rate_hz == 16000
        a, b = (s.read(4.0, 2.0, 8000) for s in (first, second))
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9  # the same speech
        assert torch.equal(sound.read(4.0, 2.0, 8000), b)
    with pytest.raises(
        SoundError, match=r"has no audio stream 2 \(option stream\); it has 2, numbered from 0"
    ):
        Sound(path, 2)


def test_a_real_film_and_its_sound_file_agree(shared_data):
    folder = shared_data / "grid_av"
    with Sound(folder / "audio" / "bbaf2n.ogg") as a, Sound(folder / "video" / "bbaf2n.mp4") as b:
        assert abs(a.seconds - b.seconds) < 0.05
        for start in (0.0, 0.9, 1.7):
            both = torch.stack([a.read(start, 1.0, RATE), b.read(start, 1.0, RATE)])
            assert torch.corrcoef(both)[0, 1] > 0.95
            lags = {
                lag: torch.corrcoef(torch.stack([both[0, 100:-100], both[1].roll(lag)[100:-100]]))[0, 1]
                for lag in range(-50, 51)
            }
            assert max(lags, key=lags.get) == 0


def test_mpeg_1_films_are_read_from_the_middle(shared_data):
    path = next(iter(sorted((shared_data / "grid_av" / "originals_mpg").glob("*.mpg"))))
    whole = read(path, 44100)
    with Sound(path) as sound:
        assert (sound.read(1.0, 1.0, 44100) - whole[44100 : 2 * 44100]).abs().max() < 1e-3


# ---- what is wrong ----


def copy_streams(source, target, with_sound: bool):
    """The same packets in another file, with the table of contents first."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        copied = old.streams.get() if with_sound else [old.streams.video[0]]
        streams = {s.index: new.add_stream_from_template(s) for s in copied}
        for packet in old.demux(copied):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def broken(tmp_path, kind: str):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, RATE), RATE, subtype="FLOAT")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("not a sound\n" * 50)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind in ("NaN", "infinite", "loud"):
        wave = tone(1.0, RATE)
        wave[4000] = {"NaN": np.nan, "infinite": np.inf, "loud": 20000.0}[kind]
        soundfile.write(path, wave, RATE, subtype="FLOAT")
    elif kind in ("silent film", "film cut in a packet", "film cut between packets"):
        write_film(tmp_path / "a.mp4", tone(2.0, RATE), RATE)
        path = copy_streams(tmp_path / "a.mp4", tmp_path / "b.mp4", with_sound=kind != "silent film")
        if kind.startswith("film cut"):
            with av.open(str(path)) as container:
                audio = container.streams.audio[0]
                place = next(p.pos for p in container.demux(audio) if p.pts * audio.time_base > 1)
            path.write_bytes(path.read_bytes()[: place + 20 * (kind == "film cut in a packet")])
    elif kind == "text film":
        path = tmp_path / "a.mp4"
        path.write_text("not a film\n" * 50)
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty", r"a.wav: the file is empty \(0 bytes\)"),
        ("folder", r"a.wav: a folder, not a sound file"),
        ("missing", r"a.wav: no such file"),
        ("text", r"a.wav: not a sound file that can be read \(Format not recognised\)"),
        ("cut", r"a.wav: is cut off: 31% of its samples are there"),
        ("no samples", r"a.wav: holds no sound \(0 samples\)"),
        ("NaN", r"a.wav: holds NaN at 0.250 s. Expected numbers from -1 to 1"),
        ("infinite", r"a.wav: holds an infinite value at 0.250 s"),
        ("loud", r"a.wav: holds values up to 20000. Expected numbers from -1 to 1; divide"),
        ("silent film", r"b.mp4: has no sound, only: video. Expected a file with an audio stream"),
        ("film cut in a packet", r"b.mp4: the sound is damaged or cut off \(Invalid data"),
        ("film cut between packets", r"b.mp4: the sound is cut off: it says 2.\d\d s, and ends at 1.\d\d s"),
        ("text film", r"a.mp4: not a sound or video file that can be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, kind, message):
    with pytest.raises(SoundError, match=message):
        read(broken(tmp_path, kind), RATE)


# ---- what headers say of the length ----


def header_claims(path, more: int) -> None:
    """A wav whose header counts so many bytes more than there are."""
    soundfile.write(path, tone(2.0, RATE), RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (4 * RATE + more).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("more", [1, 16, 44, 128])
def test_a_header_that_counts_itself_among_the_samples_is_no_damage(tmp_path, more):
    header_claims(tmp_path / "a.wav", more)
    np.testing.assert_allclose(read(tmp_path / "a.wav", RATE).numpy(), tone(2.0, RATE), atol=1e-4)


def test_a_wav_that_lacks_more_than_a_header_is_cut_off(tmp_path):
    header_claims(tmp_path / "a.wav", 700)
    with pytest.raises(SoundError, match="is cut off: 99% of its samples are there"):
        read(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_has_all_its_samples(tmp_path, size):
    header_claims(tmp_path / "a.wav", size - 4 * RATE)
    assert len(read(tmp_path / "a.wav", RATE)) == 2 * RATE


def test_a_flac_from_a_pipe_is_as_long_as_its_frames(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(2.0, RATE), RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # the number of samples in all, 36 bits
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with Sound(tmp_path / "a.flac") as sound:
        assert sound.seconds == 2.0
        for start in (0.0, 0.7, 1.9):
            expected = np.pad(tone(2.0, RATE), (0, RATE))[round(start * RATE) :][: RATE // 2]
            np.testing.assert_allclose(sound.read(start, 0.5, RATE).numpy(), expected, atol=1e-4)


def write_mp3(path, wave, bit_rate: int, **options: str) -> bytes:
    """An mp3 at 44,100 Hz, with a title in front."""
    with av.open(str(path), "w", options=options) as container:
        container.metadata["title"] = "a title" * 50
        stream = container.add_stream("libmp3lame", rate=44100, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def riff_of_mp3(content: bytes) -> bytes:
    """A wav that holds mp3 frames (WAVE_FORMAT_MPEGLAYER3)."""
    frames = content[content.index(b"\xff\xfb") :]
    extra = struct.pack("<HIHHH", 1, 2, 418, 1, 0)
    form = struct.pack("<HHIIHHH", 0x55, 1, 44100, 8000, 1, 0, len(extra)) + extra
    body = (
        b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(frames)) + frames
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "kind", ["quiet then loud", "loud then quiet", "in a wav", "joined", "with its length"]
)
def test_an_estimated_length_is_not_trusted(tmp_path, kind):
    """Where the first frame does not say how many there are, libsndfile and FFmpeg guess by its bit rate."""
    path, silence = tmp_path / ("a.wav" if kind == "in a wav" else "a.mp3"), np.zeros(4 * 44100)
    beep = silence.copy()
    beep[44100:88200] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)  # from 1 to 2 s
    parts = {
        "quiet then loud": [(silence, 32_000), (beep, 256_000)],
        "loud then quiet": [(silence, 256_000), (beep, 32_000)],
        "in a wav": [(beep, 64_000)],
        "joined": [(silence, 32_000), (beep, 256_000)],
        "with its length": [(beep, 64_000)],
    }[kind]
    options = {} if kind in ("joined", "with its length") else {"write_xing": "0"}
    content = b"".join(write_mp3(tmp_path / "part.mp3", wave, rate, **options) for wave, rate in parts)
    path.write_bytes(riff_of_mp3(content) if kind == "in a wav" else content)
    with Sound(path) as sound:
        assert abs(sound.seconds - 4 * len(parts)) < 0.1 * len(parts)
        whole = sound.read(0, sound.seconds, 8000)
        heard = np.flatnonzero(whole.abs().numpy() > 0.1) / 8000
        begin = 4 * len(parts) - 3
        assert abs(heard[0] - begin) < 0.15 and abs(heard[-1] - begin - 1) < 0.15
        part = sound.read(begin + 0.3, 0.5, 8000)  # after a jump
        assert (part - whole[round((begin + 0.3) * 8000) :][:4000]).abs().max() < 1e-2
        assert isinstance(sound._reader, sound_files._File) == (kind == "with its length")  # the quick way


def test_joined_mp3_files_are_one_sound(tmp_path):
    """The first frame says how long the first file was, and where its places are."""
    waves = [tone(2.0, RATE), tone(6.0, RATE, 880.0)]
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{number}.mp3", wave, RATE)
    (tmp_path / "a.mp3").write_bytes(b"".join((tmp_path / f"{n}.mp3").read_bytes() for n in (0, 1)))
    with Sound(tmp_path / "a.mp3") as sound:
        assert abs(sound.seconds - 8.0) < 0.2
        whole = sound.read(0, sound.seconds, RATE)
        for start in (1.0, 3.0, 6.5):
            assert (sound.read(start, 1.0, RATE) - whole[round(start * RATE) :][:RATE]).abs().max() < 1e-3


def test_a_title_in_another_encoding_decides_over_nothing(tmp_path):
    write_film(tmp_path / "a.avi", tone(1.0, RATE), RATE, codec="pcm_s16le", title="a title")
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "b.avi").write_bytes(content.replace(b"a title", "caf\xe9 \x83\x8d".encode("latin-1")))
    assert torch.equal(read(tmp_path / "a.avi", RATE), read(tmp_path / "b.avi", RATE))


@pytest.mark.parametrize("source, target", [(44099, 16000), (22254, 16000), (999_983, 16000), (7999, 44100)])
def test_rates_without_a_common_divisor(tmp_path, source, target):
    soundfile.write(tmp_path / "a.wav", tone(1.0, source), source, subtype="FLOAT")
    whole = read(tmp_path / "a.wav", target)
    inside = slice(target // 20, -target // 20)
    assert len(whole) == target and np.abs(whole.numpy() - tone(1.0, target))[inside].max() < 2e-3
    with Sound(tmp_path / "a.wav") as sound:
        part = sound.read(0.4, 0.3, target)
    assert (part - whole[round(0.4 * target) :][: len(part)]).abs().max() < 1e-5


def test_a_rate_beyond_all_microphones_is_damage(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, RATE), RATE, subtype="PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = (50_000_000).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(
        SoundError, match="its sampling rate is 50000000 Hz, a damaged one: expected at most 16777216"
    ):
        read(tmp_path / "a.wav", RATE)


def test_damaged_flac_and_headers_of_pipes(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE), RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(SoundError, match=r"a.flac: (is cut off|the sound is damaged)"):
        read(tmp_path / "a.flac", RATE)
    soundfile.write(tmp_path / "a.wav", tone(1.0, RATE), RATE, subtype="PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data")
    content[place + 4 : place + 8] = (
        b"\xff\xff\xff\xff"  # a program that wrote to a pipe did not know the size
    )
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read(tmp_path / "a.wav", RATE)) == RATE


@pytest.mark.parametrize("name", ["damaged.mp3", "damaged.bin"])
def test_what_the_decoder_prints_of_a_damaged_mp3_is_dropped(tmp_path, capfd, name):
    """mpg123 prints a line from C for each damaged frame, past Python."""
    whole, heard = io.BytesIO(), []
    soundfile.write(whole, tone(4.0, RATE), RATE, format="MP3")
    for seed in range(6):
        content, rng = bytearray(whole.getvalue()), np.random.default_rng(seed)
        for place in rng.integers(200, len(content), 60):
            content[place] ^= 1 << int(rng.integers(8))
        (tmp_path / name).write_bytes(content)
        try:
            with Sound(tmp_path / name) as sound:
                heard.append(sound.read(1.0, 1.0, RATE).abs().max().item())
        except SoundError as error:
            assert "is cut off" in str(error) or "damaged" in str(error)
    os.write(2, b"still there")  # standard error is what it was
    assert capfd.readouterr() == ("", "still there") and max(heard) > 0.1
