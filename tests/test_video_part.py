"""A part of a frame, of which alone RGB is made where that is the same to the last bit."""

from fractions import Fraction

import av
import numpy as np
import pytest

from vicjoint.video.colours import BY_POINTS, UPRIGHT, Colours, Part

OTHERS = {"nv12", "yuv410p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray", "gbrp", "rgb24", "pal8"}


def noise(name: str, height: int, width: int, colours: int) -> av.VideoFrame:
    """Every byte is random, those beyond the last column as well."""
    rng, frame = np.random.default_rng(colours), av.VideoFrame(width, height, name)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    frame.pts, frame.time_base, frame.colorspace = 0, Fraction(1, 25), colours
    return frame


def parts(height: int, width: int) -> list[Part]:
    rng = np.random.default_rng(0)
    found = [Part(0, 0, height, width), Part(0, 0, 1, 1), Part(height - 1, width - 1, 1, 1)]
    for _ in range(12):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        found.append(
            Part(top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)))
        )
    return found


@pytest.mark.parametrize("height, width", [(256, 340), (54, 97), (53, 98)])
@pytest.mark.parametrize("name", sorted(BY_POINTS | OTHERS))
def test_it_is_that_part_of_the_whole(name, height, width, monkeypatch):
    cut, made = Colours.cut, []
    monkeypatch.setattr("vicjoint.video.colours.LEAST_SAVED", 1)
    monkeypatch.setattr(Colours, "cut", lambda self, *given: made.append(cut(self, *given)) or made[-1])
    colours = Colours()
    for matrix in (1, 5, 6):  # ITU-R 709, 601 twice (ITU-T H.273)
        frame = noise(name, height, width, matrix)
        whole = frame.to_ndarray(format="rgb24")
        for part in parts(height, width):
            assert np.array_equal(colours.rgb(frame, UPRIGHT, part), part.of(whole)), part
    assert bool(made) == (name in BY_POINTS and height % 2 == 0)
    assert all(frame.height * frame.width < height * width for frame in made)


def test_only_what_is_asked_for_is_turned_into_rgb():
    frame, colours = noise("yuv420p", 256, 340, 1), Colours()
    seen = colours.cut(frame, Part(0, 42, 256, 256).even(256, 340))
    assert (seen.height, seen.width) == (256, 256)
    assert Part(3, 5, 4, 4).even(12, 12) == Part(2, 4, 6, 6) and Part(3, 5, 6, 4).even(9, 9) == Part(
        2, 4, 7, 5
    )


def test_a_film_of_several_sizes_gives_each_its_own_cut(monkeypatch):
    monkeypatch.setattr("vicjoint.video.colours.LEAST_SAVED", 1)
    colours = Colours()
    for height, width in ((64, 80), (48, 80), (64, 80)):
        frame, part = noise("yuv420p", height, width, 1), Part(2, 3, 20, 30)
        assert np.array_equal(colours.rgb(frame, UPRIGHT, part), part.of(frame.to_ndarray(format="rgb24")))
