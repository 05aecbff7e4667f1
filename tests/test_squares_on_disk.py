"""Squares of videos in the cache folder: the same views, for other processes too, bounded, never of another
film."""

import copy
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from benchmarks.films import film
from vicjoint.files import mapped
from vicjoint.files.mapped import AGAIN, Mapped
from vicjoint.modalities.image import Clip
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.transforms import squares
from vicjoint.transforms.squares import Squares


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "squares"


def old(path, seconds=60):
    os.utime(path, (time.time() - seconds,) * 2)
    return str(path)


def choose(info):
    return [3, 8, 8, info.frames - 1]


def read(path, **options):
    return Squares(0.8, **options).read(path, "auto", 25.0, choose)


@pytest.mark.parametrize("reduce", [None, 32])
def test_squares_are_the_same_and_are_decoded_once(tmp_path, cache, monkeypatch, reduce):
    path = old(film(tmp_path / "a.mp4"))
    plain = read(path, reduce=reduce)
    kept = dict(reduce=reduce, cache_mb=10, cache="disk")
    assert torch.equal(read(path, **kept), plain) and len(list(cache.iterdir())) == 1
    monkeypatch.setattr(squares, "Video", lambda *_: pytest.fail("opened again"))
    again = pickle.loads(pickle.dumps(copy.deepcopy(Squares(0.8, **kept))))  # as in another process
    assert torch.equal(again.read(path, "pyav", 25.0, choose), plain)
    with pytest.raises(pytest.fail.Exception):
        again.read(path, "decord", 25.0, choose)  # its colours may be others
    with pytest.raises(pytest.fail.Exception):
        Squares(0.7, **kept).read(path, "auto", 25.0, choose)


def test_of_another_film_under_the_name_nothing_is_used(tmp_path, cache):
    path, on_disk = str(tmp_path / "a.mp4"), dict(cache_mb=10, cache="disk")
    read(old(film(path)), **on_disk)
    film(path, params="bframes=1:crf=40")
    new = read(path, **on_disk)  # that has just changed
    assert torch.equal(new, read(path)) and len(list(cache.iterdir())) == 1
    assert torch.equal(read(old(path, 30), **on_disk), new) and len(list(cache.iterdir())) == 2
    assert not torch.equal(new, Squares(0.8, cache_mb=10).read(old(film(path)), "auto", 25.0, choose))


def test_damaged_ones_are_decoded_again(tmp_path, cache):
    path, on_disk = old(film(tmp_path / "a.mp4")), dict(cache_mb=10, cache="disk")
    plain = read(path, **on_disk)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"{}\n", b"[1, 2]\n" + whole):
        kept.write_bytes(content)
        assert torch.equal(read(path, **on_disk), plain) and kept.read_bytes() == whole


def test_views_of_clips_and_next_frames(tmp_path, cache):
    path = old(film(tmp_path / "a.mp4"))
    made = [Clip(frames=3, size=16, cache_mb=mb, cache="disk") for mb in (0, 10, 10)]
    views = [clip.read(path, np.random.default_rng(1)) for clip in made]
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])
    assert len(list(cache.iterdir())) == 1
    pairs = [NextFrame(frames=3, size=16, windows=2, cache_mb=mb, cache="disk") for mb in (0, 10, 10)]
    record = {"id": "a", "path": path}
    found = [pair.sample(record, np.random.default_rng(2)) for pair in pairs]
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other))


def test_room_is_bounded_and_what_nobody_uses_goes(tmp_path, cache, monkeypatch):
    array = np.zeros((1, 3, 400, 400), np.uint8)  # half a megabyte
    arrays = Mapped("squares", 2)
    for n in range(3 * AGAIN):
        if arrays.fits(array.nbytes):
            assert arrays.add(str(n), {}, array + n)
    assert len(list(cache.iterdir())) == 4 and not Mapped("squares", 2).fits(array.nbytes)
    assert arrays.get("3")[1].max() == 3 and arrays.get("5") is None
    for n in range(2):
        os.utime(arrays._place(str(n)), (time.time() - mapped.UNUSED_SECONDS - 9,) * 2)
    arrays.get("1")  # used again
    assert Mapped("squares", 2).fits(array.nbytes) and len(list(cache.iterdir())) == 3
    with ThreadPoolExecutor(8) as threads:
        many = Mapped("squares", 100)
        list(threads.map(lambda n: many.add(str(n % 5), n % 5, array + n % 5), range(100)))
    assert all(many.get(str(n))[1].min() == n for n in range(5))
    assert not list(cache.glob("tmp*"))


def test_where_nothing_can_be_written_films_are_decoded(tmp_path, cache):
    cache.parent.write_text("a file where the folder would be")
    path = old(film(tmp_path / "a.mp4"))
    assert torch.equal(read(path, cache_mb=10, cache="disk"), read(path))
