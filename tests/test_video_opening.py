"""Opening an mp4 decodes no picture to learn what the file states; where that was not enough, frames come
from a second opening."""

import av
import numpy as np
import pytest

from benchmarks.films import B_FRAMES, MATRIX, film, sequential
from vicjoint.files.kept import Kept
from vicjoint.files.media import open_media
from vicjoint.video import Video, VideoError, backends, index

NAMES = ["h264.mp4", "h264.mov", "no_b.mp4", "strict_pyramid.mp4", "h264.mkv", "h264.ts", "h264.avi"]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The containers that videos open, and how."""
    monkeypatch.setattr(index, "COUNTED", Kept(1))
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    found = []

    def watched(path, probe):
        found.append((probe, open_media(path, probe)))
        return found[-1][1]

    monkeypatch.setattr(backends, "open_media", watched)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_picture_is_decoded_to_open_an_mp4(tmp_path, opened, name):
    path = film(tmp_path / name, **MATRIX[name])
    truth = sequential(path)
    for probe in ("sound", "nothing"):
        with Video(path, "pyav") as video:
            decoded = [open_media(str(path), how).streams.video[0].pix_fmt for how in (opened[-1][0], "all")]
            # what FFmpeg decodes it knows the format of
            assert decoded == [None if name.endswith(("mp4", "mov")) else "yuv420p", "yuv420p"]
            assert np.array_equal(video.read([0, 3, 11, 40]), truth[[0, 3, 11, 40]])
        if not name.endswith(("ts", "avi")):
            assert opened[-1][0] == probe and len(opened) == ["sound", "nothing"].index(probe) + 1


def test_what_a_file_states_is_what_decoding_tells(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=B_FRAMES)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("aac", rate=44100, layout="mono")
        for n in range(30):
            pixels = np.random.default_rng(n).integers(0, 255, (48, 64, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        wave.rate = 44100
        out.mux(sound.encode(wave))
        out.mux(stream.encode())
        out.mux(sound.encode())

    def stated(probe):
        with open_media(str(tmp_path / "a.mp4"), probe) as file:
            pictures, heard = file.streams.video[0], file.streams.audio[0]
            return (
                *(
                    file.start_time,
                    file.duration,
                    pictures.start_time,
                    pictures.average_rate,
                    pictures.frames,
                ),
                *(
                    heard.start_time,
                    heard.duration,
                    heard.codec_context.sample_rate,
                    heard.codec_context.format.name,
                ),
                *(pictures.codec_context.has_b_frames, pictures.width, pictures.codec_context.extradata),
            )

    assert stated("nothing") == stated("sound") == stated("all")


def test_frames_that_do_not_come_so_come_from_another_opening(tmp_path, opened, monkeypatch):
    path = film(tmp_path / "a.mp4")
    truth = sequential(path)
    with Video(path, "pyav"):
        pass
    del opened[:]
    give = backends.open_media

    def dumb(path, probe):
        container = give(path, probe)
        if probe != "all":
            container.streams.video[0].codec_context.skip_frame = "ALL"
        return container

    monkeypatch.setattr(backends, "open_media", dumb)
    with Video(path, "pyav") as video:
        assert np.array_equal(video.read([2, 13, 40]), truth[[2, 13, 40]])
    assert [probe for probe, _ in opened] == ["nothing", "all"]


def test_a_cut_off_file_is_still_named(tmp_path):
    path = film(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:6])
    with pytest.raises(VideoError, match=r"a.mp4: not a readable video file"):
        Video(path)
