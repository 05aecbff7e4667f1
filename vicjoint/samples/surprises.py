"""The sample world with something that cannot be: mp4 files in some of which a sprite vanishes, or is all at
once elsewhere.

    source: {name: sample_surprises}
    evaluate: {probes: [{name: surprise}]}

Training videos are those of the sample world, where nothing of that kind happens.
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
    cached_world,
    read_factors,
    render,
    rounded,
    scene,
)
from vicjoint.video.write import write_mp4

VERSION = 1
EVENTS = ("none", "vanishes", "none", "jumps")  # of the test videos, in turn
FAR = 20.0  # least distance of a jump, in 64ths of the frame's side
MIDDLE = (0.5, 0.8)  # where in the film it happens: the frames before it say what is usual


@register("source", "sample_surprises")
class SampleSurprises(Source):
    """Videos of the sample world. In half of the test videos the largest sprite vanishes or jumps, between
    the half and four fifths of the film. Records carry `event` (none, vanishes or jumps), `changed` (0 or 1)
    and, where something happens, `moment`: the number of the first frame that is not as it should be."""

    def __init__(
        self,
        train: Count = 512,
        test: Count = 96,
        frames: Annotated[int, Field(ge=16)] = 48,
        size: EvenSide = 64,
        seed: Natural = 0,
    ):
        wanted = {
            "version": VERSION,
            "train": train,
            "test": test,
            "frames": frames,
            "size": size,
            "seed": seed,
        }
        self.root = cached_world("sample_surprises", VERSION, wanted, _make_record)
        records = read_factors(self.root)
        self.train = [r for r in records if r["split"] == "train"]
        self.test = [r for r in records if r["split"] == "test"]

    def describe(self) -> str:
        changed = sum(record["changed"] for record in self.test)
        return (
            f"sample_surprises {self.root}: {len(self.train)} train, {len(self.test)} test videos, {changed} of"
            " them with a sprite that vanishes or jumps"
        )


def after_event(before: Scene, event: str, moment: int, rng: np.random.Generator) -> Scene:
    """The scene from frame `moment` on: without its largest sprite, or with it on another path, FAR from
    where it would be at that frame."""
    sprites = list(before.sprites)
    largest = max(range(len(sprites)), key=lambda n: sprites[n].size)
    if event == "vanishes":
        del sprites[largest]
    else:
        sprites[largest] = elsewhere(sprites[largest], moment, rng)
    return replace(before, sprites=tuple(sprites))


def elsewhere(sprite: Sprite, moment: int, rng: np.random.Generator) -> Sprite:
    due = np.array(sprite.centre(np.float64(moment)))
    margin = sprite.size / 2
    while True:
        x, y = (rounded(v) for v in rng.uniform(margin, SIDE - margin, 2))
        moved = replace(sprite, x=x, y=y)
        if np.hypot(*(np.array(moved.centre(np.float64(moment))) - due)) >= FAR:
            return moved


def _make_record(folder: Path, wanted: dict, split: str, index: int) -> dict:
    seed, frames = wanted["seed"], wanted["frames"]
    made = scene(seed, split, index)
    pixels = render(made, frames, wanted["size"])
    facts = {"event": "none" if split == "train" else EVENTS[index % len(EVENTS)]}
    if facts["event"] != "none":
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 6])
        moment = int(rng.integers(*(int(share * frames) for share in MIDDLE)))
        after = after_event(made, facts["event"], moment, rng)
        pixels[moment:] = render(after, frames, wanted["size"])[moment:]
        facts |= {"moment": moment}
    name = f"{split}/{index:05d}.mp4"
    write_mp4(folder / name, pixels)
    return {"id": name, **asdict(made), **facts, "changed": int(facts["event"] != "none")}
