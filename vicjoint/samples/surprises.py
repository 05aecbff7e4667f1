"""The sample world with something that cannot be: mp4 files of one sprite, which in some of them vanishes, or
is all at once elsewhere.

    source: {name: sample_surprises}
    evaluate: {probes: [{name: surprise}]}

In training videos nothing of that kind happens: the sprite flies straight on, and bounces off the borders.
"""

from dataclasses import asdict, replace
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
EVENTS = ("none", "vanishes", "none", "jumps")  # of the test videos, in turn
SPEED = (2.0, 5.0)  # in 64ths of the frame's side per frame
FAR = 20.0  # least distance of a jump, in 64ths of the frame's side
MIDDLE = (0.5, 0.8)  # where in the film it happens: the frames before it say what is usual


@register("source", "sample_surprises")
class SampleSurprises(Source):
    """Videos of one sprite on a background that stands still. In half of the test videos it vanishes or
    jumps, between the half and four fifths of the film. Records carry `event` (none, vanishes or jumps),
    `changed` (0 or 1) and, where something happens, `moment`: the number of the first frame that is not as it
    should be. looks: how many backgrounds and sprites there are, the same for train and test; null: each
    video has its own."""

    def __init__(
        self,
        train: Count = 512,
        test: Count = 96,
        frames: Annotated[int, Field(ge=16)] = 48,
        size: EvenSide = 64,
        seed: Natural = 0,
        looks: Count | None = None,
    ):
        wanted = {
            "version": VERSION,
            "train": train,
            "test": test,
            "frames": frames,
            "size": size,
            "seed": seed,
            "looks": looks,
        }
        self.root = cached_world("sample_surprises", VERSION, wanted, _make_record)
        self.train, self.test = by_split(read_factors(self.root))

    def describe(self) -> str:
        changed = sum(record["changed"] for record in self.test)
        return (
            f"sample_surprises {self.root}: {len(self.train)} train, {len(self.test)} test videos, {changed}"
            " of them with a sprite that vanishes or jumps"
        )


def flying(seed: int, split: str, index: int, looks: int | None) -> Scene:
    """A scene with one sprite. Scenes `looks` apart, of both splits, have the same background and sprite."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 6])
    look = rng if looks is None else np.random.default_rng([seed, index % looks, 7])
    background, sprite = draw_still(look)
    x, y = (rounded(v) for v in rng.uniform(sprite.size / 2, SIDE - sprite.size / 2, 2))
    vx, vy = polar(rng.uniform(*SPEED), rng.uniform(0, 2 * np.pi))
    return Scene(split, index, background, (replace(sprite, x=x, y=y, vx=vx, vy=vy),))


def after_event(before: Scene, event: str, moment: int, rng: np.random.Generator) -> Scene:
    """The scene from frame `moment` on: without its sprite, or with it on another path."""
    (sprite,) = before.sprites
    return replace(before, sprites=() if event == "vanishes" else (elsewhere(sprite, moment, rng),))


def elsewhere(sprite: Sprite, moment: int, rng: np.random.Generator) -> Sprite:
    """The sprite as fast, in the same direction, and at frame `moment` FAR from where it would be."""
    due = np.array(sprite.centre(np.float64(moment)))
    margin = sprite.size / 2
    while True:
        x, y = (rounded(v) for v in rng.uniform(margin, SIDE - margin, 2))
        moved = replace(sprite, x=x, y=y)
        if np.hypot(*(np.array(moved.centre(np.float64(moment))) - due)) >= FAR:
            return moved


def _make_record(folder: Path, wanted: dict, split: str, index: int) -> dict:
    seed, frames = wanted["seed"], wanted["frames"]
    made = flying(seed, split, index, wanted["looks"])
    pixels = render(made, frames, wanted["size"])
    facts = {"event": "none" if split == "train" else EVENTS[index % len(EVENTS)]}
    if facts["event"] != "none":
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 8])
        moment = int(rng.integers(*(int(share * frames) for share in MIDDLE)))
        after = after_event(made, facts["event"], moment, rng)
        pixels[moment:] = render(after, frames, wanted["size"])[moment:]
        facts |= {"moment": moment}
    name = f"{split}/{index:05d}.mp4"
    write_mp4(folder / name, pixels, crf=0)  # a codec's noise tells the time
    return {"id": name, **asdict(made), **facts, "changed": int(facts["event"] != "none")}
