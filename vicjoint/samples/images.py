"""The sample world as pictures: JPEG files of one large textured sprite on a background, made once into a
cache folder.

    folder = cached_images(train=2048, test=512, size=96, seed=0)     # builds on first use, some seconds
    records = world.read_factors(folder)  # id, path, split, label (the shape), sprites, background

A picture is a pure function of (seed, split, index). Shape, colour, texture, size, angle and place are drawn
independently, so the label can be told from the shape alone.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples import world
from vicjoint.samples.world import COLOURS, SHAPES, SIDE, SPLITS, TEXTURES, Scene, Sprite

QUALITY = 90


def picture(seed: int, split: str, index: int) -> Scene:
    """The factors of one picture. Each shape comes equally often; other numbers differ from those of the
    videos' scenes."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    background = world.draw_background(rng)
    size = rng.uniform(24, 44)
    x, y = rng.uniform(size / 2, SIDE - size / 2, 2)
    sprite = Sprite(
        SHAPES[index % len(SHAPES)],
        str(rng.choice(list(COLOURS))),
        str(rng.choice(list(TEXTURES))),
        *(world.rounded(v) for v in (size, x, y)),
        vx=0.0,
        vy=0.0,
        angle=world.rounded(rng.uniform(0, 2 * np.pi)),
        spin=0.0,
    )
    return Scene(split, index, background, (sprite,))


def cached_images(train: int, test: int, size: int, seed: int) -> Path:
    """The cache folder that holds these pictures; they are made when they are not there yet. Raises
    SampleError."""
    wanted = {"version": world.VERSION, "train": train, "test": test, "size": size, "seed": seed}
    return world.cached_world("sample_images", world.VERSION, wanted, _make)


def _make(folder: Path, wanted: dict, split: str, index: int) -> dict:
    """Write one picture; give its line of factors."""
    made = picture(wanted["seed"], split, index)
    label, name = made.sprites[0].shape, f"{split}/{made.sprites[0].shape}/{index:05d}.jpg"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(world.render(made, 1, wanted["size"])[0]).save(folder / name, quality=QUALITY)
    return {"id": name, "label": label, **asdict(made)}


@register("source", "sample_images")
class SampleImages(Source):
    """The sample world as JPEG files in the cache folder: one textured shape on a background of its own;
    `label` is its shape."""

    def __init__(self, train: Count = 2048, test: Count = 512, size: world.SmallSide = 96, seed: Natural = 0):
        self.root = cached_images(train, test, size, seed)
        self.train, self.test = world.by_split(world.read_factors(self.root))

    def describe(self) -> str:
        return (
            f"sample_images {self.root}: {len(self.train):,} train, {len(self.test):,} test images of"
            f" {len(SHAPES)} shapes"
        )
