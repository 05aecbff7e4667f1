"""What is known of a film stays on the disk, is used again, and never outlives the film; units of H.264."""

import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from benchmarks import video as benchmark
from benchmarks.films import MATRIX, film, sequential
from vicjoint.files.kept import Kept
from vicjoint.files.small import FOLDERS, SmallFiles
from vicjoint.video import Video, index
from vicjoint.video.backends import PyAV
from vicjoint.video.hevc import HEVC
from vicjoint.video.units import H264


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "COUNTED", Kept(1))
    return tmp_path / "cache" / "video_index"


def forget(monkeypatch):
    """As another process begins."""
    monkeypatch.setattr(index, "COUNTED", Kept(1))


def old(path, seconds=60):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "hevc.mkv"])
def test_an_index_on_the_disk_is_used_and_is_the_same(tmp_path, cache, monkeypatch, name):
    path = old(film(tmp_path / name, codec="libx265" if name == "hevc.mkv" else "libx264"))
    with Video(path, "pyav") as video:
        first = video.info
    assert len(files(cache)) == 1
    forget(monkeypatch)
    monkeypatch.setattr(PyAV, "_count", lambda self: pytest.fail("counted again"))
    truth = sequential(path)
    with Video(path, "pyav") as video:
        assert np.array_equal(video.info.timestamps_seconds, first.timestamps_seconds)
        assert (video.info.frames, video.info.fps, video.info.start_seconds) == (
            45,
            first.fps,
            first.start_seconds,
        )
        assert np.array_equal(video.read([2, 13, 40]), truth[[2, 13, 40]])


def test_another_film_under_the_name_is_seen(tmp_path, cache, monkeypatch):
    path = old(film(tmp_path / "a.mp4"))
    Video(path).close()
    forget(monkeypatch)
    film(path, params="bframes=1:keyint=9")
    old(path, 30)
    with Video(path) as video:
        assert np.array_equal(video.read([7, 30]), sequential(path)[[7, 30]])
    assert len(files(cache)) == 2


def test_damaged_indexes_are_made_again(tmp_path, cache, monkeypatch):
    path = old(film(tmp_path / "a.mp4"))
    Video(path).close()
    (kept,) = files(cache)
    whole = kept.read_bytes()
    for content in (b"", whole[:50], b"x" * 90, whole[:-9] + bytes(9)):
        kept.write_bytes(content)
        forget(monkeypatch)
        with Video(path) as video:
            assert video.info.frames == 45
        assert kept.read_bytes() == whole


def test_what_is_not_an_index_is_refused():
    for content in (b"", b"{}", b"[1]\n12345678", b"[{}, true, true, true, [1, 0, 0, 0]]\n12345678"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            index.Index.from_bytes(content)


def test_nothing_is_written_of_films_that_just_changed_or_where_it_is_off(tmp_path, cache, monkeypatch):
    path = film(tmp_path / "a.mp4")
    Video(path).close()
    assert not cache.exists()
    forget(monkeypatch)
    monkeypatch.setenv("VICJOINT_VIDEO_INDEX", "0")
    Video(old(path)).close()
    assert not cache.exists()


def test_small_files_are_bounded_and_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    small = SmallFiles("few", most=4 * FOLDERS)
    assert small.get("a") is None
    small.put("a", b"first")
    small.put("a", b"second")
    assert small.get("a") == b"second"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: small.put(str(n % 700), str(n % 700).encode()), range(2100)))
    found = [small.get(str(n)) for n in range(700)]
    assert all(content in (None, str(n).encode()) for n, content in enumerate(found))
    assert sum(content is not None for content in found) > 500
    folders = [len(list(folder.iterdir())) for folder in (tmp_path / "few").iterdir()]
    assert max(folders) <= 4 and not list((tmp_path / "few").rglob("tmp*"))


def test_where_nothing_can_be_written_films_are_read(tmp_path, cache):
    cache.parent.write_text("a file where the folder would be")
    with Video(old(film(tmp_path / "a.mp4"))) as video:
        assert video.info.frames == 45


def test_the_index_of_a_long_film_is_small():
    shown, second = np.arange(90_000) * 512, 1 / 12800
    keys = [index.Key(n * 512 * 250, n * 512 * 250 - 1024, n * 250, True) for n in range(360)]
    info = index.VideoInfo(90_000, 25.0, 48, 64, index.in_seconds(shown, second))
    long = index.Index(info, shown, keys, frozenset({index.OPEN}), True, shown[1::2], second)
    content = long.to_bytes()
    assert len(zlib.compress(content, 1)) < 10_000
    again = index.Index.from_bytes(content)
    assert np.array_equal(again.info.timestamps_seconds, info.timestamps_seconds)
    assert np.array_equal(again.shown, shown) and np.array_equal(again.free, shown[1::2])
    assert again.keys == keys and again.odd == {index.OPEN} and again.single and again.second == second


# ---- units ----


class Packet(bytes):
    is_keyframe = False

    def has_sidedata(self, kind):
        return False


def packets(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        found = [(Packet(bytes(p)), p.is_keyframe) for p in file.demux(stream) if p.size]
        return stream.codec_context.extradata, found


def free_in(extradata, found, kind=H264):
    references = kind(extradata)
    for packet, is_key in found:
        packet.is_keyframe = is_key
        references.add(packet)
    return len(references.free) if references.trusted else None


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_frames_on_which_no_other_leans_are_known(tmp_path, name):
    extradata, found = packets(film(tmp_path / name))
    assert free_in(extradata, found) > 10


def test_what_is_not_sure_is_not_trusted(tmp_path):
    extradata, found = packets(film(tmp_path / "a.mp4"))
    leaned_on = next(n for n, (p, _) in enumerate(found) if n > 3 and p[4] & 96)
    free = next(n for n, (p, _) in enumerate(found) if n > 3 and not p[4] & 96)

    def changed(place, content):
        return [(Packet(content) if n == place else p, key) for n, (p, key) in enumerate(found)]

    packet = found[leaned_on][0]
    assert free_in(extradata, changed(leaned_on, packet[:4] + bytes([packet[4] & 159]) + packet[5:])) is None
    assert free_in(extradata, found[:leaned_on] + found[leaned_on + 1 :]) is None  # a number is missing
    packet = found[free][0]
    assert free_in(extradata, changed(free, packet[:4] + bytes([packet[4] | 32]) + packet[5:])) is None
    assert free_in(extradata, changed(free, packet[:4] + bytes([14]) + packet[5:])) is None  # a layer
    assert free_in(extradata, changed(free, packet[:-1])) is None  # longer than its packet
    assert free_in(extradata, changed(free, packet + packet)) is None  # two frames
    assert free_in(extradata[:12], found) is None
    assert free_in(None, found) is None


HEVC_FILMS = {  # and how many frames are free
    "hevc.mp4": 19,
    "hevc_open.mkv": 22,
    "hevc_layers.mp4": 22,
    "hevc_pyramid.mp4": 32,
    "hevc_no_pyramid.mkv": 36,
    "hevc_no_b.mp4": 0,
    "hevc.ts": 22,
    "hevc_lists.mp4": None,
}


@pytest.mark.parametrize("name", HEVC_FILMS)
def test_pictures_of_hevc_that_no_set_of_references_names(tmp_path, name):
    extradata, found = packets(film(tmp_path / name, **MATRIX[name]))
    assert free_in(extradata, found, HEVC) == HEVC_FILMS[name]


def test_a_picture_of_hevc_is_free_where_it_says_so_and_no_other_one_names_it(tmp_path):
    extradata, found = packets(film(tmp_path / "a.mp4", **MATRIX["hevc_open.mkv"]))
    kinds = [packet[4] >> 1 & 63 for packet, _ in found]

    def changed(place, content):
        return [(Packet(content) if n == place else p, key) for n, (p, key) in enumerate(found)]

    def of_kind(place, kind):
        packet = found[place][0]
        return changed(place, packet[:4] + bytes([packet[4] & 129 | kind << 1]) + packet[5:])

    free, leaned_on = kinds.index(0), kinds.index(1)
    assert free_in(extradata, of_kind(leaned_on, 0), HEVC) == 22  # it is named all the same
    assert free_in(extradata, of_kind(free, 1), HEVC) == 21
    for kind in (10, 16, 24, 36, 41, 62):  # reserved, broken link, end of a sequence, another layer's
        assert free_in(extradata, of_kind(free, kind), HEVC) is None
    packet = found[free][0]
    assert free_in(extradata, changed(free, packet[:5] + bytes([packet[5] | 8]) + packet[6:]), HEVC) is None
    assert free_in(extradata, changed(free, packet[:-1]), HEVC) is None  # longer than its packet
    assert free_in(extradata, changed(free, packet + packet), HEVC) is None  # two pictures
    assert free_in(extradata, [found[0], *found], HEVC) == 22  # an IDR picture forgets the numbers
    assert free_in(extradata, [*found[:5], *found[4:]], HEVC) is None
    assert free_in(extradata, found[1:], HEVC) is None  # no beginning
    for content in (None, b"", extradata[:40]):
        assert not free_in(content, found, HEVC)


# ---- the benchmark ----


def test_the_benchmark_runs_and_finds_no_wrong_frame(tmp_path, capsys):
    benchmark.main(["--quick", "--codecs", "h264", "--json", str(tmp_path / "found.json")])
    out = capsys.readouterr().out
    assert "ours" in out and "limit" in out and len(out.splitlines()) == 3 + 8
    assert all(line.rstrip().endswith("-") for line in out.splitlines()[3:])
