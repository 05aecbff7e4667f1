"""Moving digits: mp4 files of scikit-learn's handwritten digits, which fly over black and bounce off the
borders.

    source: {name: sample_digits}                       # 10 frames, two digits, 64 x 64
    source: {name: sample_digits, stochastic: true}     # at a border they take any direction

A film is like those of Moving MNIST (Srivastava et al. 2015), and with `stochastic` like those of Denton and
Fergus (2018), with digits of another set: 8 x 8 pixels, enlarged to 20. Films are a pure function of (seed,
split, index), and compressed without loss.
"""

# T frames, D digits, H = W = size; lengths are in 64ths of the frame's side, as in world.py

import functools
from pathlib import Path

import numpy as np

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import need, register
from vicjoint.samples.world import (
    SIDE,
    SPLITS,
    EvenSide,
    by_split,
    cached_world,
    polar,
    read_factors,
    rounded,
)
from vicjoint.video.write import write_mp4

VERSION = 1
PIXEL = 2.5  # side of one of the 8 x 8 pixels
WHITE = 16.0  # of scikit-learn's images
SPEED = (2.0, 5.0)  # per frame
TEST_SHARE = 0.2  # of the images


@register("source", "sample_digits")
class SampleDigits(Source):
    """Videos of `digits` handwritten digits, each at a speed of its own. A border mirrors their way; or, with
    `stochastic`, gives them a random direction away from it, at the same speed, so that what follows cannot
    be known. The digits of test videos are other images than those of training videos; `seed` decides over
    both. Records carry `digits` [D], the classes (0 to 9); and `positions` [frames, D, 2], the middle (x, y)
    of each digit's ink as shares of the picture's side. Needs scikit-learn."""

    def __init__(
        self,
        train: Count = 2048,
        test: Count = 256,
        frames: Count = 10,
        size: EvenSide = 64,
        seed: Natural = 0,
        digits: Count = 2,
        stochastic: bool = False,
    ):
        need(["sklearn.datasets"], "source 'sample_digits'", "digits")
        wanted = {
            "version": VERSION,
            "train": train,
            "test": test,
            "frames": frames,
            "size": size,
            "seed": seed,
            "digits": digits,
            "stochastic": stochastic,
        }
        self.root = cached_world("sample_digits", VERSION, wanted, _make_record)
        self.train, self.test = by_split(read_factors(self.root))

    def describe(self) -> str:
        return f"sample_digits {self.root}: {len(self.train):,} train, {len(self.test):,} test videos"


@functools.lru_cache(maxsize=4)
def images_of(seed: int) -> dict[str, list[tuple[int, np.ndarray]]]:
    """{split: (class, ink [h, w] in [0, 1], without empty borders) of its images}."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng([seed, 9]).permutation(len(loaded.target))
    cut = int(TEST_SHARE * len(order))
    return {
        split: [(int(loaded.target[i]), _ink(loaded.images[i] / WHITE)) for i in some]
        for split, some in (("train", order[cut:]), ("test", order[:cut]))
    }


def _ink(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def way(
    start: np.ndarray,
    velocity: np.ndarray,
    margin: np.ndarray,
    frames: int,
    turns: np.random.Generator | None = None,
) -> np.ndarray:
    """The places [T, 2] of something that starts at `start` with this velocity [2] and keeps `margin` [2]
    from the borders. Each mirrors its way; or, with `turns`, stops it there, and it goes on in a random
    direction away from it."""
    place, speed, found = np.array(start, float), np.array(velocity, float), []
    low, high = margin, SIDE - margin
    for _ in range(frames):
        found.append(place)
        place = place + speed
        inward = (place < low).astype(int) - (place > high)
        if not inward.any():
            continue
        edge = place.clip(low, high)
        if turns is None:
            place, speed = 2 * edge - place, np.where(inward, inward * np.abs(speed), speed)
        else:
            place, drawn = edge, np.array(polar(float(np.hypot(*speed)), turns.uniform(0, 2 * np.pi)))
            speed = np.where(inward, inward * np.abs(drawn), drawn)
    return np.array(found)


def draw(inks: list[np.ndarray], places_DT2: np.ndarray, size: int) -> np.ndarray:
    """Uint8 [T, H, W, 3] of digits [h, w] with their middles at these places; where two lie over each other,
    the brighter one is seen."""
    axis = (np.arange(size) + 0.5) * SIDE / size
    seen = np.zeros((places_DT2.shape[1], size, size))
    for ink, places_T2 in zip(inks, places_DT2):
        x, y = (_shares(axis, at, n) for at, n in zip(places_T2.T, ink.shape[::-1]))
        seen = np.maximum(seen, np.einsum("tyh,hw,txw->tyx", y, ink, x, optimize=True))
    return np.repeat((255 * seen + 0.5).astype(np.uint8)[..., None], 3, axis=3)


def _shares(axis: np.ndarray, middle_T: np.ndarray, number: int) -> np.ndarray:
    """[T, size, number]: how much of each of `number` pixels of a digit is seen at each pixel of the picture,
    by linear interpolation."""
    at = (axis - middle_T[:, None]) / PIXEL + (number - 1) / 2
    return np.maximum(0, 1 - np.abs(at[:, :, None] - np.arange(number)))


def film(
    seed: int, split: str, index: int, frames: int, digits: int = 2, stochastic: bool = False
) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """(classes [D], their ink, their places [D, T, 2]) of one film."""
    rng, turns = (np.random.default_rng([seed, SPLITS.index(split), index, own]) for own in (10, 11))
    images = images_of(seed)[split]
    chosen = [images[i] for i in rng.integers(len(images), size=digits)]
    places = []
    for _, ink in chosen:
        # what is seen reaches half a pixel of the digit further
        margin = PIXEL * (np.array(ink.shape[::-1]) + 1) / 2
        start = rng.uniform(margin, SIDE - margin)
        velocity = np.array(polar(rng.uniform(*SPEED), rng.uniform(0, 2 * np.pi)))
        places.append(way(start, velocity, margin, frames, turns if stochastic else None))
    return [number for number, _ in chosen], [ink for _, ink in chosen], np.array(places)


def _make_record(folder: Path, wanted: dict, split: str, index: int) -> dict:
    options = {key: wanted[key] for key in ("frames", "digits", "stochastic")}
    classes, inks, places_DT2 = film(wanted["seed"], split, index, **options)
    name = f"{split}/{index:05d}.mp4"
    write_mp4(folder / name, draw(inks, places_DT2, wanted["size"]), crf=0)
    positions = [[[rounded(v / SIDE) for v in at] for at in of] for of in places_DT2.swapaxes(0, 1)]
    return {"id": name, "split": split, "index": index, "digits": classes, "positions": positions}
