"""Films whose containers keep no sure times (avi, mpg, ts): decoded from the key frame before what is wanted,
and each frame is the one that decoding from the beginning gave, or is decoded from there."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.films import MATRIX, film, sequential
from vicjoint.files.kept import Kept
from vicjoint.video import Video, index
from vicjoint.video.backends import PyAV

GROUPS = {"g": "12", "bf": "2"}
MORE = {  # and whether decoding can begin at key frames
    "vp8.webm": (dict(codec="libvpx", options={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "9"}), True),
    "mpeg2.ts": (dict(codec="mpeg2video", options=GROUPS), True),
    "mpeg4.ts": (dict(codec="mpeg4", options=GROUPS), True),
    "wmv.wmv": (dict(codec="wmv2", options={"g": "12"}), True),
    "h264.flv": ({}, True),
    "open.ts": (dict(params="open-gop=1:bframes=3:keyint=12:scenecut=0"), True),
    "refreshed.ts": (dict(params="intra-refresh=1:keyint=12"), False),
    "h264_10.avi": (dict(pixels="yuv420p10le", options={"g": "12", "bf": "0"}), False),
}
NAMES = ["h264.avi", "h264.ts", "hevc.ts", "mjpeg.avi", "mpeg1.mpg", "mpeg4.avi"]


@pytest.fixture(params=NAMES)
def path(request, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "COUNTED", Kept(1))
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    found = film(tmp_path / request.param, **MATRIX[request.param])
    Video(found, "pyav").close()  # counts it
    return found


def fed(monkeypatch) -> list[int]:
    """How many packets each decoding has got so far, at the end."""
    found, decode_from = [], PyAV._decode_from

    def watched(self, start):
        found.append(0)
        for frame in decode_from(self, start):
            found[-1] = self._fed - (0 if start is None else start.place)
            yield frame

    monkeypatch.setattr(PyAV, "_decode_from", watched)
    return found


def test_decoding_begins_at_the_key_frame_before(path, monkeypatch):
    truth, got = sequential(path), fed(monkeypatch)
    for wanted in ([44], [40, 44], [0], [13, 3, 25], list(range(45))):
        with Video(path, "pyav") as video:
            assert np.array_equal(video.read(wanted), truth[wanted])
            assert video._own._straight is None
    assert got[0] < 20  # of 45


def test_it_goes_forward_without_reading_again(path, monkeypatch):
    truth, opened, reopen = sequential(path), [], PyAV._reopen
    monkeypatch.setattr(PyAV, "_reopen", lambda self: (opened.append(self.path), reopen(self)))
    with Video(path, "pyav") as video:
        wanted = [2, 20, 21, 38, 44]
        assert np.array_equal(list(video.each(wanted)), truth[wanted]) and not opened
        assert np.array_equal(video.read([5]), truth[[5]]) and len(opened) == 1


@pytest.mark.parametrize("wrong", ["keys", "places", "sums"])
def test_a_frame_that_is_not_the_counted_one_is_decoded_from_the_beginning(path, monkeypatch, wrong):
    """As where a key frame is no beginning: what comes from it are other frames."""
    truth, kept = sequential(path), index.kept(str(path))
    keys = [key._replace(pts=max(0, key.pts - 1)) for key in kept.keys]
    if wrong == "places":
        keys = [key._replace(place=min(44, key.place + 1)) for key in kept.keys]
    other = replace(kept, keys=kept.keys if wrong == "sums" else keys)
    if wrong == "sums":
        other = replace(kept, sums=kept.sums + 1)
    monkeypatch.setattr("vicjoint.video.backends.kept", lambda path: other)
    for wanted in ([30, 44], [14, 15, 16], [1, 40]):
        with Video(path, "pyav") as video:
            assert np.array_equal(video.read(wanted), truth[wanted])
            assert wrong != "sums" or video._own._straight


@pytest.mark.parametrize("name", MORE)
def test_other_containers_and_codecs(tmp_path, monkeypatch, name):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    options, begins = MORE[name]
    path = film(tmp_path / name, **options)
    truth = sequential(path)
    for wanted in ([44], [9, 26], [13, 14, 24], [0, 43]):
        with Video(path, "pyav") as video:
            assert np.array_equal(video.read(wanted), truth[wanted])
            assert video._own._begins_at_keys == begins and not video._own._straight


def test_real_films(shared_data):
    for path in sorted((shared_data / "grid_av").rglob("*.mpg"))[:2]:
        truth = sequential(path)
        for wanted in ([70, 74], list(range(1, len(truth), 9)), [0]):
            with Video(path, "pyav") as video:
                assert np.array_equal(video.read(wanted), truth[wanted]) and video._own._straight is None
