"""Films as people bring them: titles, covers and second streams, mirrored pictures, cuts, colours, hours."""

import itertools
import struct

import av
import av.filter
import numpy as np
import pytest
from av.stream import Disposition
from test_video import B_FRAMES, BACKENDS, codes, write

from benchmarks.films import copy
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.video import Video, VideoError, VideoInfo, backends, colours, read
from vicjoint.video.others import OTHERS

H, W = 48, 64

# ---- the frame asked for, also after a jump ----

JUMPS = {
    "h264.mp4": dict(options=B_FRAMES),
    "open.mp4": dict(options={**B_FRAMES, "x264-params": "open-gop=1"}),
    "refreshed.mp4": dict(options={"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "b_frames_4.mp4": dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg2.mkv": dict(codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "mpeg2.mpg": dict(codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "h264.ts": dict(options=B_FRAMES),
    "h264.flv": dict(options=B_FRAMES),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", JUMPS)
def test_the_frame_asked_for_after_a_jump(tmp_path, name, backend):
    path = write(tmp_path / name, 60, **JUMPS[name])
    for wanted in ([59], [20, 41], [13], [22, 23, 58]):
        try:
            assert codes(read(path, wanted, backend)) == wanted
        except VideoError as error:
            assert backend in OTHERS and "would not be right about each frame" in str(error)


@pytest.mark.parametrize("back", [0, 3])  # packets before the key frame
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts", "hevc.mkv"])
def test_frames_before_the_first_key_frame_are_left_out(tmp_path, name, is_open, back):
    """A cut without encoding: the frames shown before the first key frame are not whole."""
    params = f"open-gop={int(is_open)}:scenecut=0:b-adapt=0:keyint=10:bframes=3:log-level=0"
    codec, key = ("libx265", "x265-params") if name == "hevc.mkv" else ("libx264", "x264-params")
    suffix = "ts" if name == "cut.ts" else "mp4"
    whole = write(tmp_path / f"whole.{suffix}", 60, codec=codec, options={key: params})
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        first = [n for n, p in enumerate(packets) if p.is_keyframe][2]
        key = sorted(p.pts for p in packets).index(packets[first].pts)
        assert any(p.pts < packets[first].pts for p in packets[first:]) == is_open
    # an edit list leaves out what begins before 0, in mp4 alone
    cut = copy(whole, tmp_path / name, first - back, shift=key - 5 * (name != "cut.mp4"))
    for backend in ("pyav", "auto"):
        with Video(cut, backend) as video:
            found = codes(video.read(range(video.info.frames)))
            assert found[-(60 - key) :] == list(range(key, 60))
            assert set(found[: -(60 - key)]) <= set(range(key))  # of those before, what a decoder vouches for
            assert codes(video.read([video.info.frames - 5])) == [55]


def test_damage_is_named_by_its_frames(tmp_path):
    path = write(tmp_path / "a.mp4", 50, options={"g": "14", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        place, size = next((p.pos, p.size) for n, p in enumerate(container.demux(video=0)) if n == 33)
    content = bytearray(path.read_bytes())
    content[place + 5 : place + size] = b"\xff" * (size - 5)
    path.write_bytes(content)
    for wanted, named in ((range(50), "frames 33 to 41 are"), ([0, 33, 45], "frame 33 is")):
        with pytest.raises(VideoError, match=rf"a.mp4: {named} damaged \(Invalid data"):
            read(path, wanted, "pyav")
    assert codes(read(path, [32, 42, 49], "pyav")) == [32, 42, 49]


# ---- which stream, whatever the title ----


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize("title", ["caf\u00e9 no1".encode("latin-1"), "\u6620\u753b1234".encode("shift_jis")])
def test_a_title_in_another_encoding_decides_over_nothing(tmp_path, name, title):
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "a titled"
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for n in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((H, W, 3), 40 * n, np.uint8))))
        out.mux(stream.encode())
    plain = read(path, range(3))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a titled", title))
    assert len(title) == 8 and path.read_bytes() != content and np.array_equal(read(path, range(3)), plain)


def box(content: bytes, *names: bytes) -> tuple[int, int]:
    """Begin and end of a box of an mp4 file, by the names of those around it and its own."""
    begin, end = 0, len(content)
    for depth, name in enumerate(names):
        at = begin + 8 * (depth > 0)
        while content[at + 4 : at + 8] != name:
            at += int.from_bytes(content[at : at + 4], "big")
            assert at < end
        begin, end = at, at + int.from_bytes(content[at : at + 4], "big")
    return begin, end


def film(path, sizes, default: int, cover: bool = False):
    """A film of several streams, each grey, the lighter the later; the one called `default` is so marked."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=25) for _ in sizes]
        for number, (stream, (height, width)) in enumerate(zip(streams, sizes)):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default.value if number == default else 0
        if cover:
            picture = out.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
            picture.disposition = Disposition.attached_pic.value
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 250, np.uint8))))
        for _, stream in itertools.product(range(20), streams):
            grey = 50 + 50 * streams.index(stream)
            pixels = np.full((stream.height, stream.width, 3), grey, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        for stream in streams:
            out.mux(stream.encode())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[(24, 32), (48, 64)], [(48, 64), (48, 64)]])
@pytest.mark.parametrize("default", [0, 1])
def test_of_several_video_streams_the_players_choice_is_read(tmp_path, backend, sizes, default):
    path = film(tmp_path / "a.mp4", sizes, default)
    try:
        with Video(path, backend) as video:
            image = video.read([7])[0]
            assert image.shape == (*sizes[default], 3) == (video.info.height, video.info.width, 3)
            assert abs(image.mean() - (50 + 50 * default)) < 4
    except VideoError as error:
        assert backend == "decord" and "several video streams" in str(error)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_a_cover_picture_is_no_film(tmp_path, backend):
    path = film(tmp_path / "a.mp4", [(48, 64)], 0, cover=True)
    content = path.read_bytes()
    (moov, end), (begin, _), (tags, after) = (
        box(content, b"moov"),
        box(content, b"moov", b"trak"),
        box(content, b"moov", b"udta"),
    )
    # the tags first, so that the cover is stream 0
    path.write_bytes(content[:begin] + content[tags:after] + content[begin:tags] + content[after:])
    assert content.index(b"mdat") < moov and after <= end
    with av.open(str(path)) as container:
        assert container.streams[0].disposition == Disposition.attached_pic
    with Video(path, backend) as video:
        assert (video.info.frames, video.info.height, video.info.width) == (20, 48, 64)
        assert abs(video.read([3]).mean() - 50) < 4


def test_a_sound_with_a_cover_picture_is_only_sound(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        sound, picture = out.add_stream("aac", rate=16000, layout="mono"), out.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
        picture.disposition = Disposition.attached_pic.value
        out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        wave.sample_rate = 16000
        out.mux(sound.encode(wave))
        out.mux(sound.encode())
    with pytest.raises(VideoError, match="a.mp4: the file has only sound; expected a video"):
        Video(path)


# ---- turned and mirrored ----


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize(
    "a, b, c, d",
    [
        m
        for m in itertools.product((-1, 0, 1), repeat=4)
        if abs(m[0] * m[3] - m[1] * m[2]) == 1 and sum(map(abs, m)) == 2
    ],
)
def test_a_display_matrix_turns_and_mirrors(tmp_path, backend, a, b, c, d):
    """The pixel at (x, y) is shown at (a x + c y, b x + d y), moved into the picture (ISO 14496-12)."""
    path = write(tmp_path / "a.mp4", 3, options={"bf": "0"})
    stored = read(path, [2], "pyav")[0]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    y, x = np.mgrid[:H, :W]
    across, down = a * x + c * y, b * x + d * y
    expected = np.empty((np.ptp(down) + 1, np.ptp(across) + 1, 3), np.uint8)
    expected[down - down.min(), across - across.min()] = stored
    with Video(path, backend) as video:
        assert (video.info.height, video.info.width) == expected.shape[:2]
        image = video.read([2])[0]
    assert np.abs(image.astype(int) - expected).max() <= 3


def test_a_turn_is_known_beside_side_data_that_is_not():
    """PyAV lists none of a frame's side data where it does not know the kind of one (spatial video, EXIF)."""

    class Frame:
        rotation = -90  # clockwise

        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    assert np.allclose(colours.turn_of(Frame()), [[0, 1], [-1, 0]])


# ---- colours ----

MATRICES = {
    "bt601": (6, 0.299, 0.114),
    "bt709": (1, 0.2126, 0.0722),
    "bt2020": (9, 0.2627, 0.0593),
    "unknown": (2, 0.299, 0.114),
}
PATCHES = [(60, 90, 170), (126, 128, 128), (180, 150, 100), (100, 110, 190), (210, 100, 140), (235, 128, 128)]


def yuv_film(path, Y, U, V, frames: int = 3, params: str = "", space: int = 2, full: bool = False):
    """A film of such planes [H, W] and [H/2, W/2], as they are: 4:2:0, without loss."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = Y.shape[1], Y.shape[0], "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 2 if full else 1
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.concatenate([plane.reshape(-1, Y.shape[1]) for plane in (Y, U, V)]), format="yuv420p"
            )
            frame.colorspace, frame.color_range, frame.pts = space, 2 if full else 1, n
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def rgb(Y, U, V, red: float, blue: float, full: bool):
    """ITU-R's formulas; red, blue: their weights in the luminance."""
    if not full:
        Y, U, V = (Y - 16) * 255 / 219, (U - 128) * 255 / 224, (V - 128) * 255 / 224
    else:
        U, V = U - 128.0, V - 128.0
    r, b = Y + 2 * (1 - red) * V, Y + 2 * (1 - blue) * U
    return np.stack([r, (Y - red * r - blue * b) / (1 - red - blue), b], -1).clip(0, 255)


def scaled(path) -> np.ndarray:
    """Frame 0 as FFmpeg's own programs show it, by their scale filter."""
    with av.open(str(path)) as container:
        stream, graph = container.streams.video[0], av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("scale"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        graph.push(next(container.decode(stream)))
        return graph.pull().to_ndarray().astype(float)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_by_the_matrix_and_range_of_the_film(tmp_path, matrix, full, backend):
    space, red, blue = MATRICES[matrix]
    side = 16
    patches = np.array(PATCHES, np.uint8)
    Y, U, V = (np.kron(patches[None, :, k], np.ones((side, side), np.uint8)) for k in range(3))
    path = yuv_film(tmp_path / "a.mp4", Y, U[::2, ::2], V[::2, ::2], space=space, full=full)
    image = read(path, [1], backend)[0].astype(float)
    assert np.abs(image - scaled(path)).max() <= 2
    for n, patch in enumerate(PATCHES):
        inside = image[4:12, n * side + 4 : n * side + 12].mean((0, 1))
        assert np.abs(inside - rgb(*map(float, patch), red, blue, full)).max() < 3, (patch, inside)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interlaced_colours_belong_to_their_field(tmp_path, backend):
    """In interlaced 4:2:0 the lines of a plane of colours alternate between the fields, as those of the
    picture do: here one field is blue and the other red."""
    Y = np.full((H, W), 100, np.uint8)
    U, V = np.full((H // 2, W // 2), 100, np.uint8), np.full((H // 2, W // 2), 160, np.uint8)
    U[1::2], V[1::2] = 160, 100
    path = yuv_film(tmp_path / "a.mp4", Y, U, V, params="interlaced=1:tff=1")
    try:
        image = read(path, [1], backend)[0].astype(float)[8:-8]
    except VideoError as error:
        assert backend in OTHERS and "interlaced" in str(error)
        return
    for line, (u, v) in enumerate([(100, 160), (160, 100)]):
        assert np.abs(image[line::2].mean((0, 1)) - rgb(100.0, u, v, 0.299, 0.114, False)).max() < 3


def test_colours_that_cannot_be_made_are_refused(tmp_path):
    Y, C = np.full((H, W), 100, np.uint8), np.full((H // 2, W // 2), 128, np.uint8)
    path = yuv_film(tmp_path / "a.mp4", Y, C, C, space=14)
    with pytest.raises(
        VideoError, match=r"a.mp4: no colours can be made of its pixels \(format yuv420p, colour sp"
    ):
        read(path, [0])


# ---- an hour ----


def info(times) -> VideoInfo:
    times = np.asarray(times, float)
    return VideoInfo(len(times), 25.0, H, W, times)


@pytest.mark.parametrize("seconds", [None, 0.04, 0.1])
def test_windows_of_an_hour_are_not_listed(monkeypatch, seconds):
    pair, made = NextFrame(seconds=seconds, windows=8), []
    make = NextFrame._window
    monkeypatch.setattr(NextFrame, "_window", lambda self, *at: made.append(at) or make(self, *at))
    pair.draw(info(np.arange(90_000) / 25), np.random.default_rng(0), "x")
    assert len(made) == 8


@pytest.mark.parametrize("frames, gap", [(1, 0), (2, 0), (3, 2), (8, 1)])
@pytest.mark.parametrize("seconds", [0.03, 0.04, 0.1, 0.25])
def test_windows_by_time_are_those_without_a_frame_twice(frames, gap, seconds):
    rng = np.random.default_rng(0)
    for times in (
        np.arange(60) / 25,
        np.round(np.arange(60) / 29.97, 3),  # as mkv rounds them
        np.cumsum(rng.choice([0.01, 0.04, 0.1, 0.3], 60)),
        np.concatenate([np.arange(30) / 25, 1.22 + np.arange(30) / 25]),  # half a frame late
    ):
        expected = []
        for start, first in enumerate(times):
            asked = first + np.array([*range(frames), frames - 1 + gap]) * seconds
            numbers = [int(np.abs(times - t).argmin()) for t in asked]
            apart = np.diff(numbers[: frames + (gap > 0)])
            if asked[-1] <= times[-1] + seconds / 2 and (apart > 0).all():
                expected.append(start)
        pair = NextFrame(frames=frames, gap=gap, seconds=seconds)
        found = [w.context[0] for w in pair.possible_windows(info(times), "x")] if expected else []
        assert found == expected


def test_a_film_is_counted_once(tmp_path, monkeypatch):
    for name in ("a.mp4", "a.mpg"):
        codec = "libx264" if name == "a.mp4" else "mpeg2video"
        path = write(tmp_path / name, 40, codec=codec, options={"g": "10", "bf": "2"})
        first = read(path, range(40), "pyav")
        with monkeypatch.context() as patch:
            patch.setattr(backends.PyAV, "_stamps", lambda self: pytest.fail("counted again"))
            assert np.array_equal(read(path, range(40), "pyav"), first)
            assert codes(read(path, [31], "pyav")) == [31]
        write(path, 30, codec=codec)  # another film under the same name
        with Video(path) as video:
            assert video.info.frames == 30
