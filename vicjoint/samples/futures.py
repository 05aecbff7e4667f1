"""The sample world with several futures: mp4 files of one sprite that comes to the middle of the picture and
there goes one of several ways.

    source: {name: sample_futures, futures: 3}
    source: {name: sample_futures, futures: 2, chances: [0.8, 0.2], looks: 64}    # 16 events of each look

Up to frame `moment` nothing tells which way: the files of all ways have the same pixels so far, since they
are compressed without loss (a lossy codec looks ahead, and its noise would tell). A training video takes one
way, with the chance that it has; a test record names a file for each of them, and for turns that never
happen.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.options import Count, Natural, PositiveShare
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples.world import (
    COLOURS,
    SIDE,
    SPLITS,
    EvenSide,
    Scene,
    Sprite,
    bounce,
    by_split,
    cached_world,
    draw_background,
    draw_sprite,
    polar,
    read_factors,
    render,
    rounded,
)
from vicjoint.video.write import write_mp4

VERSION = 3  # as that of the sample world
MOST = 5  # ways; of more, neighbours would hardly differ


@dataclass(frozen=True)
class TurningSprite(Sprite):
    """A sprite that is in the middle of the picture at frame `moment`, where it turns by `turn` (radians)."""

    moment: int
    turn: float

    def centre(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before, after = np.minimum(frame, self.moment), np.maximum(frame - self.moment, 0)
        vx, vy = (
            np.cos(self.turn) * self.vx - np.sin(self.turn) * self.vy,
            np.sin(self.turn) * self.vx + np.cos(self.turn) * self.vy,
        )
        return (
            bounce(self.x + self.vx * before + vx * after, self.size / 2),
            bounce(self.y + self.vy * before + vy * after, self.size / 2),
        )


@register("source", "sample_futures")
class SampleFutures(Source):
    """Videos of a sprite that turns in the middle of the picture, at frame frames / 2, by one of `futures`
    angles (for 3: -60, 0 and 60 degrees). Records carry `look`, the number of their background and sprite,
    and `positions` [frames, 2], the sprite's middle (x, y) as shares of the picture's side. Those of test
    videos carry `moment`, the last frame that all futures share; `futures`, the paths of videos that show
    each of them (the record's own is one), with their `chances` [M] and `future_positions` [M, frames, 2];
    and `impossible`, the paths of the same with turns that never happen. looks: how many backgrounds and
    sprites there are, the same for train and test, so that each has train / looks events; null: each video
    has its own. chances: how likely each turn is; null: all alike."""

    def __init__(
        self,
        train: Count = 1024,
        test: Count = 96,
        frames: Annotated[int, Field(ge=4)] = 24,
        size: EvenSide = 64,
        seed: Natural = 0,
        futures: Annotated[int, Field(ge=2, le=MOST)] = 3,
        looks: Count | None = None,
        chances: list[PositiveShare] | None = None,
    ):
        if chances is not None and (len(chances) != futures or abs(sum(chances) - 1) > 1e-6):
            raise ValueError(
                f"source.chances: {chances} sum to {sum(chances):g}. Expected a number for each of the"
                f" {futures} futures (source.futures), which sum to 1, or null."
            )
        wanted = {
            "version": VERSION,
            "train": train,
            "test": test,
            "frames": frames,
            "size": size,
            "seed": seed,
            "futures": futures,
            "looks": looks,
            "chances": chances,
        }
        self.root = cached_futures(wanted)
        records = [
            {
                **r,
                **{
                    key: [str(self.root / name) for name in r[key]]
                    for key in ("futures", "impossible")
                    if key in r
                },
            }
            for r in read_factors(self.root)
        ]
        self.train, self.test = by_split(records)

    def describe(self) -> str:
        return f"sample_futures {self.root}: {len(self.train)} train, {len(self.test)} test videos"


def cached_futures(wanted: dict) -> Path:
    """The cache folder that holds these videos; they are made when they are not there yet. Raises SampleError
    as samples.videos.make_videos does."""
    return cached_world("sample_futures", VERSION, wanted, _make_record)


def turns(futures: int) -> tuple[list[float], list[float]]:
    """(the turns that happen, those that never do), in radians. The circle has 2 M even steps; the M ahead
    happen. The M others never do, nor do the middles between neighbours that happen.

    A model could do without any guess if it learnt what all possible futures have in common, such as the
    angle modulo a step. That they share with the other steps of the circle, so it cannot tell the possible
    ones; the middles are near to the mean of two futures, which is none of them.
    """
    step = np.pi / futures
    first = -(futures - 1) / 2 * step
    circle, middles = (
        [first + m * step for m in range(2 * futures)],
        [first + (m + 0.5) * step for m in range(futures - 1)],
    )
    return circle[:futures], circle[futures:] + middles


def turning_scene(
    seed: int, split: str, index: int, frames: int, turn: float = 0.0, looks: int | None = None
) -> Scene:
    """A scene with one sprite; `turn` changes nothing but what follows its moment. Scenes `looks` apart, of
    both splits, have the same background and sprite; None: all have their own."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    look = rng if looks is None else np.random.default_rng([seed, index % looks, 3])
    background, moment = draw_background(look), frames // 2
    sprite = draw_sprite(look, str(look.choice(list(COLOURS))))
    vx, vy = polar(rng.uniform(2, 3.5), rng.uniform(0, 2 * np.pi))
    drawn = {
        **asdict(sprite),
        "x": rounded(SIDE / 2 - vx * moment),
        "y": rounded(SIDE / 2 - vy * moment),
        "vx": vx,
        "vy": vy,
    }
    return Scene(split, index, background, (TurningSprite(**drawn, moment=moment, turn=rounded(turn)),))


def _make_record(folder: Path, wanted: dict, split: str, index: int) -> dict:
    frames = wanted["frames"]

    def write(name: str, turn: float) -> Scene:
        made = turning_scene(wanted["seed"], split, index, frames, turn, wanted["looks"])
        write_mp4(folder / name, render(made, frames, wanted["size"]), crf=0)
        return made

    possible, never = turns(wanted["futures"])
    rng = np.random.default_rng([wanted["seed"], SPLITS.index(split), index, 2])
    chances = wanted["chances"]
    taken = int(rng.integers(len(possible)) if chances is None else rng.choice(len(possible), p=chances))
    name = f"{split}/{index:05d}.mp4"
    made = write(name, possible[taken])
    look = index if wanted["looks"] is None else index % wanted["looks"]
    record = {"id": name, **asdict(made), "look": look, "positions": positions(made, frames)}
    if split == "train":
        return record
    stem = name.removesuffix(".mp4")
    futures = {(name if m == taken else f"{stem}_future{m}.mp4"): turn for m, turn in enumerate(possible)}
    impossible = {f"{stem}_never{m}.mp4": turn for m, turn in enumerate(never)}
    scenes = {
        other: made if other == name else write(other, turn) for other, turn in (futures | impossible).items()
    }
    return {
        **record,
        "moment": frames // 2,
        "futures": list(futures),
        "chances": chances or [1 / len(possible)] * len(possible),
        "future_positions": [positions(scenes[other], frames) for other in futures],
        "impossible": list(impossible),
    }


def positions(made: Scene, frames: int) -> list[list[float]]:
    """The sprite's middle (x, y) in each frame, [frames, 2], as shares of the picture's side."""
    x, y = made.sprites[0].centre(np.arange(frames))
    return [[round(float(v) / SIDE, 5) for v in place] for place in zip(x, y)]
