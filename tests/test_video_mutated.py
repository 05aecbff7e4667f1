"""Damaged films: each is read or named, in time, and leaving out what nobody asked for changes no outcome.

python -m pytest tests/test_video_mutated.py -m slow       # 500 films; MUTATED_SEED: other ones
"""

import os
import random

import numpy as np
import pytest
from test_mutated import mutated, outcome

from benchmarks.films import HEVC, VP9, film, sequential
from vicjoint.video.backends import PyAV
from vicjoint.video.colours import Part

FILMS = {
    "a.mp4": {},
    "a.mkv": dict(params="bframes=5:b-adapt=0:keyint=20"),
    "hevc_open.mkv": dict(**HEVC, params="log-level=0:pools=1:keyint=12:bframes=4"),
    "hevc.mp4": dict(**HEVC, params="log-level=0:pools=1:keyint=12"),
    "a.webm": VP9,
    "a.avi": dict(codec="mpeg4", options={"g": "12"}),
    "mjpeg.mov": dict(codec="mjpeg", pixels="yuvj420p", options={}),
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    paths = {name: film(folder / name, **options) for name, options in FILMS.items()}
    return {name: (path.read_bytes(), sequential(path)) for name, path in paths.items()}


def frames_of(path, numbers, fast):
    """uint8 [T, H, W, 3]."""
    decoder = PyAV(str(path))
    try:
        decoder.fast = fast
        numbers = [n for n in numbers if n < decoder.info.frames]
        whole = Part(0, 0, decoder.info.height, decoder.info.width)
        return decoder.read(numbers, np.arange(len(numbers)), whole)
    finally:
        decoder.close()


def check(path, content, truth, rng) -> bool:
    """Whether the film is read. truth: the frames before the damage."""
    damaged = bytearray(mutated(content, rng) if rng.random() < 0.7 else content)
    if rng.random() < 0.5:  # a wound among the packets
        place = rng.randrange(len(damaged) or 1)
        size = rng.choice([1, 40, 600])
        damaged[place : place + size] = bytes(len(damaged[place : place + size]))
    path.write_bytes(damaged)
    first, stride = rng.randrange(20), rng.choice([1, 2, 4])
    numbers = range(first, first + 6 * stride, stride)
    plain = outcome(lambda p: frames_of(p, numbers, fast=False), path)
    fast = outcome(lambda p: frames_of(p, numbers, fast=True), path)
    if isinstance(plain, np.ndarray):
        assert isinstance(fast, np.ndarray) and plain.shape == fast.shape
        differ = (plain != fast).any((1, 2, 3))
        # where FFmpeg passes over damage in HEVC, blocks show what was in memory before, read either way
        assert not differ.any() or path.name.startswith("hevc")
        for number, a, b in zip(np.array(numbers)[: len(plain)][differ], plain[differ], fast[differ]):
            assert not np.array_equal(a, truth[number]) and not np.array_equal(b, truth[number])
    elif isinstance(fast, np.ndarray):  # the damage is in a frame that was left out
        assert " damaged (" in plain[1]
    elif plain != fast:  # some of it is
        assert " damaged (" in plain[1] and " damaged (" in fast[1]
    return isinstance(fast, np.ndarray)


def many(tmp_path, contents, count, seed):
    found = []
    for number in range(count):
        name = list(FILMS)[number % len(FILMS)]
        found.append(check(tmp_path / name, *contents[name], random.Random(f"{seed} {number}")))
    assert True in found and False in found


def test_sixty_damaged_films(tmp_path, contents, capfd):
    many(tmp_path, contents, 60, 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_five_hundred_damaged_films(tmp_path, contents, capfd):
    many(tmp_path, contents, 500, os.environ.get("MUTATED_SEED", "1"))
    assert capfd.readouterr() == ("", "")
