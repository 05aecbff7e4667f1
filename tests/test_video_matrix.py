"""Every frame of every backend is that of sequential decoding, to the last bit: codecs, containers, groups of
pictures, rates, cuts. Films of moving noise, so that one frame never passes for another."""

import av
import numpy as np
import pytest
from test_video import BACKENDS

from benchmarks import right_frames
from benchmarks.films import B_FRAMES, FRAMES, MATRIX, copy, film, sequential, wishes
from vicjoint.video import Video, VideoError, backends, colours
from vicjoint.video.colours import Part
from vicjoint.video.others import OTHERS

FREE = {"h264.mp4", "h264.mkv", "h264.mov", "one_key.mp4", "no_pyramid.mp4", "strict_pyramid.mp4"}
FREE |= {"many_references.mp4", "few_numbers.mp4", "slices.mkv", "h264_10.mp4", "h264_444.mp4", "lists.mp4"}
FREE |= {"variable.mp4", "variable.mkv", "hevc.mp4", "hevc_open.mkv", "hevc_10.mp4", "hevc_layers.mp4"}
FREE |= {"hevc_pyramid.mp4", "hevc_no_pyramid.mkv", "hevc_fields.mp4"}

SQUARE = Part(7, 11, 50, 50)
NOT_CLEAN = {"open.mp4", "refreshed.mp4"}  # key frames at which decoding cannot begin
TEN_BITS = {"h264_10.mp4", "hevc_10.mp4", "av1.mkv"}  # of which other decoders make other colours


@pytest.fixture(autouse=True)
def small_films_are_cut(monkeypatch):
    monkeypatch.setattr(colours, "LEAST_SAVED", 1)


def check(path, backend):
    truth = sequential(path)
    frames = len(truth)
    with Video(path, backend) as video:  # one that stays open
        assert video.info.frames == frames
        for wanted in wishes(frames):
            assert np.array_equal(video.read(wanted), truth[wanted]), wanted
        for wanted in wishes(frames):
            half = len(wanted) // 2
            found = [*video.each(wanted[:half]), *video.each(wanted[half:])]
            assert np.array_equal(found, truth[wanted]), wanted
            assert np.array_equal(list(video.each(wanted, SQUARE)), SQUARE.of(truth[wanted])), wanted
        if video._decoder is video._own:
            assert video._own.fast or path.name in NOT_CLEAN  # all of it without another try
        stopped = video.each(range(0, frames, 5))
        next(stopped), next(stopped)
        assert np.array_equal(video.read([6, 7, 8]), truth[6:9])  # what was left out for it
        assert np.array_equal(next(stopped), truth[10])
    for wanted in wishes(frames):  # and opened for each
        with Video(path, backend) as video:
            assert np.array_equal(video.read(wanted, SQUARE), SQUARE.of(truth[wanted])), wanted


@pytest.mark.parametrize("name", MATRIX)
def test_frames_are_those_of_sequential_decoding(tmp_path, name):
    try:
        path = film(tmp_path / name, **MATRIX[name])
    except av.error.EncoderNotFoundError as error:
        pytest.skip(str(error))
    check(path, "pyav")
    for backend in () if name in TEN_BITS else set(BACKENDS) - {"auto", "pyav"}:
        try:
            check(path, backend)
        except VideoError as error:
            assert "Use video_backend: auto." in str(error)  # refused, not wrong
    with Video(path, "pyav") as video:
        assert (len(video._own._free) > 0) == (name in FREE)
        video.read([3, 11])
        assert bool(video._own._left) == (name in FREE)


@pytest.mark.parametrize("name", MATRIX)
def test_frames_of_nvdec_are_the_right_ones(tmp_path, name):
    """Its colours are its own."""
    try:
        OTHERS["nvdec"].load()
    except VideoError as error:
        pytest.skip(str(error))
    path = film(tmp_path / name, **MATRIX[name])
    try:
        Video(path, "nvdec").close()
    except VideoError as error:
        assert "Use video_backend: auto." in str(error)  # refused, not wrong
        return
    found = right_frames.judged(lambda path: right_frames.Ours(path, "nvdec"), path, sequential(path))
    assert found == "right" or found.startswith("other colours")


@pytest.mark.parametrize("name", ["h264.mp4", "variable.mkv", "hevc_open.mkv", "hevc_layers.mp4", "open.mp4"])
def test_of_large_files_they_are_sought(tmp_path, name, monkeypatch):
    monkeypatch.setattr(backends, "KEEP_BYTES", 0)
    check(film(tmp_path / name, **MATRIX[name]), "pyav")


@pytest.mark.parametrize("back", [0, 3])
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_a_cut_by_an_edit_list(tmp_path, ending, back):
    whole = film(tmp_path / "whole.mp4", options={**B_FRAMES, "bf": "2"})
    cut = copy(whole, tmp_path / f"cut.{ending}", 12, shift=18 - back)
    assert 0 < len(sequential(cut)) < FRAMES - 12 + back
    check(cut, "pyav")


def test_real_films(shared_data):
    for path in sorted((shared_data / "codec_edge_cases").glob("*.m[pk][4v]")):
        truth = sequential(path)
        for wanted in ([0, len(truth) // 2, len(truth) - 1], list(range(1, len(truth), 4))[:9]):
            with Video(path, "pyav") as video:
                assert np.array_equal(video.read(wanted), truth[wanted])


def test_the_table_of_right_frames_tells_wrong_ones(tmp_path):
    path = film(tmp_path / "a.mp4")
    truth = sequential(path)

    class Late(right_frames.Ours):
        def read(self, numbers):
            return super().read([min(n + 1, self.frames - 1) for n in numbers])

    class Pale(right_frames.Ours):
        def read(self, numbers):
            return super().read(numbers) // 4 * 4

    assert right_frames.judged(right_frames.Ours, path, truth) == "right"
    assert right_frames.judged(right_frames.Ours, path, truth[:40]).startswith("counts 45, 40 exist")
    assert right_frames.judged(Late, path, truth).startswith("wrong 2")
    assert right_frames.judged(Pale, path, truth) == "other colours, by 3 at most"
