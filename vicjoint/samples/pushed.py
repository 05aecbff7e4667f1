"""The sample world with actions: mp4 files of one sprite that is pushed at known frames by known forces.

    source: {name: sample_pushed}
    pair: {name: next_frame, gap: 4, condition: {column: forces, width: 2}}

Beside each film lies a table with a row for each frame, the force on the sprite: 0, 0 but for every
`every`-th frame, where it is drawn at random. So what is seen does not tell the future, and what is seen with
the rows between does.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples.world import (
    SIDE,
    SPLITS,
    EvenSide,
    Scene,
    Sprite,
    by_split,
    cached_world,
    draw_still,
    polar,
    read_factors,
    render,
    rounded,
)
from vicjoint.video.write import write_mp4

VERSION = 1
FRICTION = 0.7  # share of the speed that is left after a frame
FORCES = (3.0, 6.0)  # least and largest, in 64ths of the frame's side per frame


@dataclass(frozen=True)
class PushedSprite(Sprite):
    """A sprite whose centre is at `path` [T, 2]."""

    path: tuple[tuple[float, float], ...]

    def centre(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        path_T2 = np.asarray(self.path)[np.asarray(frame).astype(int)]
        return path_T2[..., 0], path_T2[..., 1]


@register("source", "sample_pushed")
class SamplePushed(Source):
    """Videos of a sprite that is pushed at every `every`-th frame, slows down between and is thrown back by
    the borders. Records carry `forces`, the path of a csv with the columns x and y and a row for each frame:
    what is added to the velocity (64ths of the frame's side per frame) after it. looks: how many backgrounds
    and sprites there are, the same for train and test; null: each video has its own."""

    def __init__(
        self,
        train: Count = 256,
        test: Count = 48,
        frames: Annotated[int, Field(ge=2)] = 104,
        size: EvenSide = 64,
        seed: Natural = 0,
        every: Count = 4,
        looks: Count | None = None,
    ):
        wanted = {
            "version": VERSION,
            "train": train,
            "test": test,
            "frames": frames,
            "size": size,
            "seed": seed,
            "every": every,
            "looks": looks,
        }
        self.root = cached_pushed(wanted)
        records = [r | {"forces": str(self.root / r["forces"])} for r in read_factors(self.root)]
        self.train, self.test = by_split(records)

    def describe(self) -> str:
        return f"sample_pushed {self.root}: {len(self.train)} train, {len(self.test)} test videos"


def cached_pushed(wanted: dict) -> Path:
    """The cache folder that holds these videos and tables; they are made when they are not there yet. Raises
    SampleError as samples.videos.make_videos does."""
    return cached_world("sample_pushed", VERSION, wanted, _make_record)


def draw_forces(rng: np.random.Generator, frames: int, every: int) -> np.ndarray:
    """[T, 2], 0 but at frames 0, every, 2 every, ..."""
    forces_T2 = np.zeros((frames, 2))
    for frame in range(0, frames, every):
        forces_T2[frame] = polar(rng.uniform(*FORCES), rng.uniform(0, 2 * np.pi))
    return forces_T2


def pushed(start: tuple[float, float], forces_T2: np.ndarray, margin: float) -> np.ndarray:
    """The path [T, 2] of something that stands at `start` in frame 0 and is pushed: v <- friction v + force,
    x <- x + v, and at a margin of the picture's borders both are mirrored."""
    place, speed, path = np.array(start, float), np.zeros(2), []
    for force in forces_T2:
        path.append(place.copy())
        speed = FRICTION * speed + force
        place = place + speed
        for border in (margin, SIDE - margin):
            beyond = place < border if border == margin else place > border
            place = np.where(beyond, 2 * border - place, place)
            speed = np.where(beyond, -speed, speed)
    return np.array(path)


def pushed_scene(
    seed: int, split: str, index: int, frames: int, every: int, looks: int | None = None
) -> tuple[Scene, np.ndarray]:
    """(a scene with one sprite, the forces [T, 2] on it). Scenes `looks` apart, of both splits, have the same
    background and sprite; None: all have their own."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 4])
    look = rng if looks is None else np.random.default_rng([seed, index % looks, 5])
    background, sprite = draw_still(look)
    margin = sprite.size / 2
    start = tuple(rng.uniform(margin, SIDE - margin, 2).tolist())
    forces_T2 = draw_forces(rng, frames, every)
    path = tuple((rounded(x), rounded(y)) for x, y in pushed(start, forces_T2, margin))
    drawn = asdict(sprite) | {"x": path[0][0], "y": path[0][1], "vx": 0.0, "vy": 0.0}
    return Scene(split, index, background, (PushedSprite(**drawn, path=path),)), forces_T2


def _make_record(folder: Path, wanted: dict, split: str, index: int) -> dict:
    frames = wanted["frames"]
    made, forces_T2 = pushed_scene(wanted["seed"], split, index, frames, wanted["every"], wanted["looks"])
    name = f"{split}/{index:05d}.mp4"
    write_mp4(folder / name, render(made, frames, wanted["size"]), crf=0)  # a codec's noise tells the time
    table = f"{split}/{index:05d}.csv"
    lines = ["x,y", *(f"{x:g},{y:g}" for x, y in forces_T2)]
    (folder / table).write_text("\n".join(lines) + "\n")
    return {"id": name, "forces": table, **asdict(made)}
