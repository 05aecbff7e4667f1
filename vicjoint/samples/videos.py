"""The sample world as videos: mp4 files of moving textured sprites, made once into a cache folder.

# builds on first use, some seconds
folder = cached_videos(train=512, test=96, frames=32, size=64, seed=0)
records = read_factors(folder)  # one dict per video: id, path, split, sprites, ...
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples.world import (
    VERSION,
    EvenSide,
    Sprite,
    by_split,
    cached_world,
    make_world,
    read_factors,
    render,
    scene,
)
from vicjoint.video.write import write_mp4


@register("source", "sample_videos")
class SampleVideos(Source):
    """The sample world as mp4 files in the cache folder. Records carry the factors `background` and
    `sprites`, and what probes ask for: the `number` of sprites, their mean `speed` (64ths of the frame's side
    per frame), and of the largest one its `shape` and the `direction` in which it moves in the middle of the
    video.
    """

    def __init__(
        self,
        train: Count = 512,
        test: Count = 96,
        frames: Annotated[int, Field(ge=2)] = 32,
        size: EvenSide = 64,
        seed: Natural = 0,
    ):
        self.root = cached_videos(train, test, frames, size, seed)
        records = [r | labels([Sprite(**s) for s in r["sprites"]], frames) for r in read_factors(self.root)]
        self.train, self.test = by_split(records)

    def describe(self) -> str:
        return f"sample_videos {self.root}: {len(self.train)} train, {len(self.test)} test videos"


def labels(sprites: list[Sprite], frames: int) -> dict:
    """{number, speed, shape, direction} of a video's sprites."""
    largest = max(sprites, key=lambda sprite: sprite.size)
    before, after = (np.array(largest.centre(np.float64(frames / 2 + step))) for step in (-1, 1))
    x, y = after - before
    return {
        "number": len(sprites),
        "speed": float(np.mean([np.hypot(sprite.vx, sprite.vy) for sprite in sprites])),
        "shape": largest.shape,
        "direction": ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up"),
    }


def cached_videos(train: int, test: int, frames: int, size: int, seed: int) -> Path:
    """The cache folder that holds these videos; they are made when they are not there yet. Raises SampleError
    as make_videos does."""
    return cached_world("sample_videos", VERSION, _wanted(train, test, frames, size, seed), _make_video)


def make_videos(
    folder: Path, train: int, test: int, frames: int, size: int, seed: int, progress: bool = True
) -> None:
    """Make folder/train/*.mp4, folder/test/*.mp4 and folder/factors.jsonl; return at once where they are
    complete. Raises SampleError on a folder that holds something else, and a disk that
    cannot be written.
    """
    make_world(folder, _wanted(train, test, frames, size, seed), _make_video, "sample videos", progress)


def _wanted(train: int, test: int, frames: int, size: int, seed: int) -> dict:
    return {"version": VERSION, "train": train, "test": test, "frames": frames, "size": size, "seed": seed}


def _make_video(folder: Path, wanted: dict, split: str, index: int) -> dict:
    made = scene(wanted["seed"], split, index)
    name = f"{split}/{index:05d}.mp4"
    write_mp4(folder / name, render(made, wanted["frames"], wanted["size"]))
    return {"id": name, **asdict(made)}
