"""Right frame, every container and decoder: the frame number is written into the pixels as an eight-bit
barcode."""

import contextlib
import importlib.util
import re
import struct

import av
import numpy as np
import pytest
import torch

from vicjoint.video import Video, VideoError, backends, read
from vicjoint.video.others import OTHERS

BACKENDS = ["auto", "pyav"]
for _name in ("decord", "torchcodec"):  # where they can be used
    with contextlib.suppress(VideoError):
        OTHERS[_name].load()
        BACKENDS.append(_name)
H, W = 48, 64


def write(path, frames=40, codec="libx264", times=None, size=(H, W), options=None, start=0):
    """A file of barcode frames; times: presentation time of each in 1/1000 s (25 per second where None)."""
    height, width = size
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = (
            width,
            height,
            "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p",
        )
        if times is not None:
            from fractions import Fraction

            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(frames):
            bits = [(start + n) >> b & 1 for b in range(8)]
            image = np.zeros((height, width, 3), np.uint8)
            image[: height // 2] = np.repeat(bits, width // 8 + 1)[:width, None] * 255
            image[height // 2 :] = 128
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = n if times is None else times[n]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def codes(images):
    """The numbers in the pixels of upright frames [T, H, W, 3]."""
    height, width = images.shape[1:3]
    places = [min(b * (width // 8 + 1) + width // 16, width - 2) for b in range(8)]
    return [
        sum(int(i[height // 8 : height // 3, x].mean() > 127) << b for b, x in enumerate(places))
        for i in images
    ]


B_FRAMES = {"bf": "3", "g": "12", "b-pyramid": "normal"}
MAKE = {
    "constant.mp4": dict(options={"bf": "0"}),
    "b_frames.mp4": dict(options=B_FRAMES),
    "open_gop.mp4": dict(options={**B_FRAMES, "x264-params": "open-gop=1"}),
    "one_key.mp4": dict(options={"g": "250"}),
    "variable.mp4": dict(times=list(np.cumsum([20 + 37 * (n % 5) for n in range(40)])), options=B_FRAMES),
    "tall.mp4": dict(size=(96, 40)),
    "odd.mp4": dict(size=(49, 65)),
    "one.mp4": dict(frames=1),
    "two.mp4": dict(frames=2),
    "a.mkv": dict(options=B_FRAMES),
    "a.mov": dict(options=B_FRAMES),
    "a.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "a.avi": dict(codec="mpeg4"),
    "a.mpg": dict(codec="mpeg1video", options={"bf": "2"}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKE)
def test_right_frame(tmp_path, name, backend):
    options = MAKE[name]
    path = write(tmp_path / name, **options)
    frames = options.get("frames", 40)
    try:
        with Video(path, backend) as video:
            info = video.info
            assert (info.frames, info.height, info.width) == (frames, *options.get("size", (H, W)))
            assert np.all(np.diff(info.timestamps_seconds) > 0)
            for wanted in (range(frames), [frames - 1], [0], [frames // 2, 0, frames - 1, 0]):
                assert codes(video.read(wanted)) == list(wanted)
    except VideoError as error:
        assert backend in OTHERS and "auto" in str(error)  # refused, not wrong


def test_refusing_is_the_exception(tmp_path):
    for backend in BACKENDS:
        with Video(write(tmp_path / "a.mp4", options={"bf": "0"}), backend) as video:
            assert video.backend == ("pyav" if backend == "auto" else backend)


def test_variable_rate_times(tmp_path):
    times = MAKE["variable.mp4"]["times"]
    with Video(write(tmp_path / "v.mp4", **MAKE["variable.mp4"])) as video:
        info = video.info
    assert np.allclose(np.diff(info.timestamps_seconds), np.diff(times) / 1000, atol=2e-3)


def test_large_files_are_sought_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "KEEP_BYTES", 0)
    for name in ("b_frames.mp4", "open_gop.mp4", "a.mkv", "variable.mp4"):
        with Video(write(tmp_path / name, **MAKE[name]), "pyav") as video:
            for wanted in ([37], [2, 30, 31], range(40)):
                assert codes(video.read(wanted)) == list(wanted)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("options", [{"g": "20", "bf": "0"}, {"g": "20", "bf": "2"}])
def test_edit_list(tmp_path, backend, options):
    """A cut without re-encoding: packets from the key frame 20 on are stored, the edit list shows frames from
    27 on."""
    source = write(tmp_path / "whole.mp4", 60, options={**options, "sc_threshold": "0"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(cut), "w") as out:
        stream = whole.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [p for p in whole.demux(stream) if p.size]
        offset = sorted(p.pts for p in packets)[27]
        for packet in packets[20:]:
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = copy
            out.mux(packet)
    with av.open(str(cut)) as opened:
        shown = codes(np.stack([f.to_ndarray(format="rgb24") for f in opened.decode(video=0)]))
    assert shown == list(range(27, 60))  # the file is what it is meant to be
    with Video(cut, backend) as video:
        assert video.info.frames == 33
        assert codes(video.read([0, 5, 20, 32])) == [27, 32, 47, 59]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation(tmp_path, backend, turn):
    path = write(tmp_path / "a.mp4", 5, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    data[at : at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    plain = read(path, [3], "pyav")[0]
    path.write_bytes(data)
    try:
        image = read(path, [3], backend)[0]
    except VideoError as error:
        assert backend == "decord" and "turned pictures" in str(error)  # auto goes round it
        return
    assert np.abs(image.astype(int) - np.rot90(plain, -turn // 90)).mean() < 3  # the matrix turns clockwise


def test_backends_agree(tmp_path):
    path = write(tmp_path / "a.mp4", options={"bf": "0"})
    a, *others = (read(path, range(40), backend).astype(int) for backend in BACKENDS)
    assert all(np.abs(a - b).max() <= 3 for b in others)


def sound(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def faststart(path):
    """The file at `path` with its index in front; returns its bytes."""
    whole = write(path.with_name("whole.mp4"), options={"bf": "0"})
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    return bytearray(path.read_bytes())


def cut_off(path):
    path.write_bytes(faststart(path)[:-400])


def no_index(path):
    path.write_bytes(write(path).read_bytes()[:1500])


def zeroed(path):
    data = faststart(path)
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[at : at + 600] = bytes(600)
    path.write_bytes(data)


BROKEN = {
    "missing": (lambda p: None, "no such file"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "text": (lambda p: p.write_text("<html>not found</html>\n" * 50), "not a readable video"),
    "sound": (sound, "only sound"),
    "folder": (lambda p: p.mkdir(), "folder"),
    "no_moov": (no_index, "not a readable video"),
    "cut_off": (cut_off, "cut off"),
    "zeroed": (zeroed, "damaged"),
}


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, capfd, name, backend):
    make, cause = BROKEN[name]
    path = tmp_path / "broken.mp4"
    make(path)
    capfd.readouterr()
    with pytest.raises(VideoError, match=cause) as error:
        read(path, range(40), backend)
    assert str(path) in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_wrong_requests(tmp_path):
    path = write(tmp_path / "a.mp4", 10)
    for wanted in ([10], [-1]):
        with pytest.raises(VideoError, match="10 frames exist"):
            read(path, wanted)
    with pytest.raises(VideoError, match="Expected one of: auto, decord, nvdec, pyav, torchcodec"):
        read(path, [0], "opencv")
    assert read(path, []).shape == (0, H, W, 3)
    if importlib.util.find_spec("torchcodec") is None:
        for backend in ("torchcodec", "nvdec"):
            with pytest.raises(
                VideoError, match=f"'{backend}' cannot be used here. .*pip install torchcodec"
            ):
                read(path, [0], backend)


def test_nvdec_without_a_gpu_is_named(tmp_path, monkeypatch):
    if "torchcodec" not in BACKENDS:
        pytest.skip("torchcodec cannot be used here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VideoError, match="'nvdec' decodes on an NVIDIA GPU, and there is none here"):
        read(write(tmp_path / "a.mp4", 10), [0], "nvdec")


@pytest.mark.parametrize("folder", ["codec_edge_cases", "loose_clips", "grid_av/originals_mpg"])
def test_real_files_open_or_are_named(shared_data, folder):
    for path in sorted((shared_data / folder).iterdir()):
        try:
            with Video(path) as video:
                last = video.info.frames - 1
                assert video.read([0, last]).shape == (2, video.info.height, video.info.width, 3)
        except VideoError as error:
            assert path.suffix in (".mp3", ".wav") and "only sound" in str(error)


# ---- one after the other ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKE)
def test_frames_come_one_by_one(tmp_path, name, backend):
    path = write(tmp_path / name, **MAKE[name])
    try:
        Video(path, backend).close()
    except VideoError:
        pytest.skip("refused, not wrong")
    with Video(path, backend) as video, Video(path, backend) as other:
        every = list(range(video.info.frames))
        for wanted in (every, every[::7], every[-2:], every[::13]):
            expected = other.read(wanted)
            assert np.array_equal(list(video.each(wanted)), expected)
            # in two goes, with a step back to where the first ended
            half = len(wanted) // 2
            found = [*video.each(wanted[:half]), *video.each(wanted[half:]), *video.each(wanted[:1])]
            assert np.array_equal(found, [*expected, expected[0]])
        with pytest.raises(VideoError, match=f"there is no frame {len(every)}; "):
            next(video.each([len(every)]))


def test_going_on_decodes_nothing_twice(tmp_path, monkeypatch):
    for name in ("one_key.mp4", "a.mpg"):
        path = write(tmp_path / name, frames=200, **MAKE[name])
        with Video(path, "pyav") as video:
            decoded, decode = [0], video._own._decode_from

            def counted(start):
                for frame in decode(start):
                    decoded[0] += 1
                    yield frame

            video._own._decode_from = counted
            for first in range(0, 200, 20):
                list(video.each(range(first, first + 20, 5)))
            assert decoded[0] <= 200


def test_frames_after_damage_are_still_found(tmp_path):
    path = write(tmp_path / "a.mp4", frames=60, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    place, size = places[35]
    content[place + 5 : place + size] = bytes(255 for _ in range(size - 5))
    path.write_bytes(content)
    with Video(path, "pyav") as video:
        starts = []
        decode = video._own._decode_from
        video._own._decode_from = lambda start: starts.append(start) or decode(start)
        found, bad = [], []
        at = 20
        while at < 60:
            try:
                for image in video.each(range(at, 60)):
                    found += codes(image[None])
                    at += 1
            except VideoError as error:
                assert re.search(rf"frames? {at} (to 39 are|is) damaged", str(error))
                bad.append(at)
                at += 1
        assert found == [n for n in range(20, 60) if n not in bad] and 35 in bad and len(bad) <= 5
        assert starts.count(None) == 1, "the way from the beginning is tried once"


def test_packets_of_a_long_file_are_not_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", frames=60)
    monkeypatch.setattr(backends, "KEEP_BYTES", 1000)
    with Video(path, "pyav") as video:
        assert video._own._packets is None and codes(video.read([3, 40])) == [3, 40]
        assert codes(np.stack(list(video.each([5, 50])))) == [5, 50]
