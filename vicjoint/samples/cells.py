"""The sample world's microscope: cells treated with a rule-made molecule, as 16-bit tiff files of five
channels, made once into a cache folder.

    folder = cached_cells(train=320, test=80, wells=2, size=64, seed=0)  # numbers of molecules; some seconds
    records = world.read_factors(folder)  # id, path, molecule, smiles, plate, well, cells, ...

Every part of a molecule moves nine properties of the cells by an amount of its own (how many cells, how large
and how long they are, the grain of four channels, where two of them lie); the amounts of a molecule's parts
add up. Train and test have different molecules of the same parts. A well adds its own places and noise, a
plate its gain, background and uneven light. Channels as in Cell Painting: DNA, ER, RNA, AGP, Mito.
"""

import functools
from pathlib import Path

import numpy as np

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import need, register
from vicjoint.samples import world
from vicjoint.samples.molecules import GROUPS, PLACES, RINGS, Made, make_molecules

VERSION = 1
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
PLATES = 4
PARTS = {"rings": 6, "groups": 8}  # of RINGS and of GROUPS: few enough that every part is seen often
TRAITS = (
    "number",
    "nucleus",
    "cytoplasm",
    "length",
    "chromatin",
    "er_grain",
    "nucleoli",
    "edge",
    "mito_place",
)
OFFSET, RANGE = 300.0, 12_000.0  # grey values of the camera: without light, and of a bright structure


# S = side of the image in pixels


def traits(made: Made, seed: int) -> dict[str, float]:
    """Each property of the cells, in 0..1: the sum of the effects of the ring system and of the groups at
    their places."""
    effects = np.random.default_rng([seed, 1]).uniform(
        -1, 1, (len(RINGS) + len(PLACES) * len(GROUPS), len(TRAITS))
    )
    rows = [
        list(RINGS).index(made.ring),
        *(len(RINGS) + place * len(GROUPS) + list(GROUPS).index(g) for place, g in enumerate(made.groups)),
    ]
    return dict(zip(TRAITS, (1 / (1 + np.exp(-1.5 * effects[rows].sum(0)))).tolist()))


def render(t: dict[str, float], size: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """(structures [5, S, S] float, about 0..1, and the number of cells) of one well."""
    scale = size / 64
    axis = (np.arange(size) + 0.5) / scale
    y, x = axis[:, None], axis[None, :]
    channels = np.zeros((len(CHANNELS), size, size))
    count = int(rng.poisson(5 + 12 * t["number"])) + 2
    grain = [_grain(rng, x, y, period) for period in (2 + 6 * t["chromatin"], 2 + 6 * t["er_grain"], 5.0)]
    for centre_x, centre_y in _centres(rng, count):
        angle, stretch = rng.uniform(0, np.pi), 1 + 1.2 * t["length"]
        radius = (2.2 + 2.2 * t["nucleus"]) * rng.uniform(0.85, 1.15)
        u, v = (
            np.cos(angle) * (x - centre_x) + np.sin(angle) * (y - centre_y),
            np.cos(angle) * (y - centre_y) - np.sin(angle) * (x - centre_x),
        )
        away = np.hypot(u / np.sqrt(stretch), v * np.sqrt(stretch)) / radius  # 1 at the border of the nucleus
        border = 1.6 + 1.2 * t["cytoplasm"]  # the cell's, in the same unit
        nucleus, cell = _inside(1 - away, radius * scale), _inside(border - away, radius * scale)
        cytoplasm = cell * (1 - nucleus)
        where = 1.1 + (border - 1.1) * t["mito_place"]
        parts = (
            nucleus * (0.6 + 0.4 * grain[0]),
            cytoplasm * (0.5 + 0.5 * grain[1]),
            cytoplasm * 0.3 + _nucleoli(rng, t, u, v, radius) * nucleus,
            t["edge"] * np.exp(-(((away - border) * radius) ** 2)) + (1 - t["edge"]) * 0.6 * cell,
            cell * np.exp(-(((away - where) / 0.35) ** 2)) * (0.5 + 0.5 * grain[2]),
        )
        np.maximum(channels, parts, out=channels)
    return channels, count


def _centres(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Places in 0..64, each the best of five tries: the furthest from those before."""
    places: list[np.ndarray] = []
    for _ in range(count):
        tries = rng.uniform(0, 64, (5, 2))
        gaps = [min((float(np.hypot(*(one - other))) for other in places), default=0.0) for one in tries]
        places.append(tries[int(np.argmax(gaps))])
    return places


def _inside(distance: np.ndarray, pixels: float) -> np.ndarray:
    """1 inside, 0 outside, soft over a pixel or two."""
    return np.clip(distance * pixels / 1.5 + 0.5, 0, 1)


def _grain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """An isotropic texture in -1..1 with waves of about `period`."""
    total = 0.0
    for angle in rng.uniform(0, np.pi) + np.pi * np.arange(3) / 3:
        total = total + np.sin(
            2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi)
        )
    return total / 3


def _nucleoli(
    rng: np.random.Generator, t: dict[str, float], u: np.ndarray, v: np.ndarray, radius: float
) -> np.ndarray:
    spots = np.zeros(np.broadcast(u, v).shape)
    for _ in range(1 + int(rng.binomial(5, t["nucleoli"]))):
        angle, reach = rng.uniform(0, 2 * np.pi), radius * 0.7 * np.sqrt(rng.random())
        spots = np.maximum(
            spots, np.exp(-((u - reach * np.cos(angle)) ** 2 + (v - reach * np.sin(angle)) ** 2))
        )
    return spots


def expose(channels: np.ndarray, plate: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """uint16 [5, S, S]: the plate's gain, background and uneven light, the photons' and the camera's
    noise."""
    of_plate = np.random.default_rng([seed, 2, plate])
    gain, background = (
        of_plate.uniform(0.5, 1.5, (len(channels), 1, 1)),
        of_plate.uniform(0.02, 0.15, (len(channels), 1, 1)),
    )
    slope = of_plate.uniform(-0.25, 0.25, (2, len(channels), 1, 1))
    axis = np.linspace(-1, 1, channels.shape[1])
    light = gain * (1 + slope[0] * axis[:, None] + slope[1] * axis)
    signal = RANGE * light * (channels + background)
    signal = signal + rng.normal(0, 1, signal.shape) * np.sqrt(60 * signal + 40**2)
    return np.clip(np.rint(OFFSET + signal), 0, 65535).astype(np.uint16)


MEASURED, SHIFT = 24, 2.0  # numbers of a profile; how far a plate moves them, in units of a well's noise


def profile(record: dict, number: int, seed: int) -> list[float]:
    """What a program that measures the cells of a well might write down: sums of their properties, moved by
    the plate, and the noise of the well. number: of the record in its split."""
    properties = 6 * (np.array([record["traits"][name] for name in TRAITS]) - 0.5)
    mixed = properties @ np.random.default_rng([seed, 4]).normal(size=(len(TRAITS), MEASURED)) / 3
    of_plate = np.random.default_rng([seed, 5, int(record["plate"].split()[-1])]).normal(size=MEASURED)
    noise = np.random.default_rng([seed, 6, world.SPLITS.index(record["split"]), number]).normal(
        size=MEASURED
    )
    return [world.rounded(x) for x in mixed + SHIFT * of_plate + noise]


# ---- files ----


def cached_cells(train: int, test: int, wells: int, size: int, seed: int) -> Path:
    """The cache folder that holds these images; they are made when they are not there yet. Raises
    SampleError, and SourceError for more molecules than the parts make."""
    need(["tifffile"], "source 'sample_cells'", "molecule")
    numbers = {"train": train, "test": test, "wells": wells, "size": size, "seed": seed}
    _molecules(train, test, seed)  # once, before threads ask for them; says when there are too few parts
    return world.cached_world(
        "sample_cells",
        VERSION,
        {"version": VERSION, **numbers, "train": train * wells, "test": test * wells},
        _make,
    )


@functools.lru_cache(maxsize=2)
def _molecules(train: int, test: int, seed: int) -> dict[str, list[Made]]:
    return dict(zip(world.SPLITS, make_molecules(train, test, seed, **PARTS)))


def _make(folder: Path, wanted: dict, split: str, index: int) -> dict:
    """Write one well's image; give its line of factors."""
    import tifffile

    number, well = divmod(index, wanted["wells"])
    made = _molecules(wanted["train"] // wanted["wells"], wanted["test"] // wanted["wells"], wanted["seed"])[
        split
    ][number]
    t = traits(made, wanted["seed"])
    rng = np.random.default_rng([wanted["seed"], 3, world.SPLITS.index(split), index])
    plate = (number + well) % PLATES
    channels, cells = render(t, wanted["size"], rng)
    name = f"{split}/{number:05d}_{well}.tif"
    tifffile.imwrite(
        folder / name,
        expose(channels, plate, wanted["seed"], rng),
        photometric="minisblack",
        compression="zlib",
        predictor=True,
        metadata={"axes": "CYX", "Channel": list(CHANNELS)},
    )
    place = f"{'ABCDEFGH'[number % 8]}{number // 8 % 12 + 1:02d}"
    return {
        "id": name,
        "split": split,
        "molecule": f"{split}_{number:05d}",
        "smiles": made.smiles,
        "ring": made.ring,
        "description": made.description,
        "plate": f"plate {plate + 1}",
        "well": place,
        "cells": str(cells),
        "traits": {k: world.rounded(v) for k, v in t.items()},
    }


@register("source", "sample_cells")
class SampleCells(Source):
    """Images of cells under rule-made molecules, in the cache folder, and of each a `profile` of 24 numbers;
    `train` and `test` are numbers of molecules, each in `wells` wells."""

    def __init__(
        self,
        train: Count = 320,
        test: Count = 80,
        wells: Count = 2,
        size: world.SmallSide = 64,
        seed: Natural = 0,
    ):
        self.root, self.wells = cached_cells(train, test, wells, size, seed), wells
        self.train, self.test = (
            [r | {"profile": profile(r, i, seed)} for i, r in enumerate(records)]
            for records in world.by_split(world.read_factors(self.root))
        )

    def describe(self) -> str:
        return (
            f"sample_cells {self.root}: {len(self.train):,} train, {len(self.test):,} test images of"
            f" {len(self.train) // self.wells:,} and {len(self.test) // self.wells:,} molecules"
        )
