"""The sample world as a table: one moving sprite, as a picture, a video with sound, a sound file and
captions.

    source = SampleTable(train=512, test=96) # {"id": "train/00000", "image": "train/00000.png", "video":
    "train/00000.mp4", "sound": "train/00000.wav", source.train[0]
                        #  "caption": "a large red star with stripes moves left over waves", "captions":
                           [three of them], "shape": "star", ...}

The same table lies beside the files as factors.jsonl, so `source: {name: table, root: .../factors.jsonl}`
reads it like a user's. A scene is a pure function of (seed, split, index); colour, shape, texture, size,
motion and background are drawn independently, and each is heard and written as well as seen:

    colour   the note, of eight on a whole-tone ladder          motion       up and down: the pitch glides an
             octave; left and right: the
    size     large: an octave lower                                          sound fades away or swells;
             still: neither
    shape    the harmonics (timbre)                             background   a faint noise: its colour
    texture  the envelope: steady, tremolo, pulses, pips

The sound goes along with the picture in time: where the sprite is at a moment is what the pitch and the
loudness are at that moment.
"""

import wave
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples import world
from vicjoint.samples.world import COLOURS, SHAPES, SIDE, SPLITS, TEXTURES, Scene, Sprite
from vicjoint.video.write import RATE_FPS, write_mp4

VERSION = 1
RATE_HZ = 16000
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
TRAVEL = 28.0  # from the first to the last frame, in units of 1/64 of the side
SIZES = {"small": (13.0, 16.0), "large": (22.0, 26.0)}
HARMONICS = {  # amplitudes of the fundamental and its multiples
    "circle": (1.0,),
    "square": (1.0, 0.0, 0.6, 0.0, 0.4, 0.0, 0.3),
    "triangle": (1.0, 0.0, 0.0, 0.0, 0.8),
    "star": (0.3, 0.5, 0.8, 1.0, 0.8),
    "ring": (1.0, 1.0),
    "cross": (0.6, 0.0, 0.0, 1.0, 0.0, 0.8),
}
ENVELOPES = {  # loudness over the time in seconds, in [0, 1]
    "plain": lambda t: np.ones_like(t),
    "stripes": lambda t: 0.6 + 0.4 * np.sin(2 * np.pi * 6 * t),
    "checker": lambda t: (np.sin(2 * np.pi * 4 * t) > 0).astype(float),
    "dots": lambda t: np.exp(-12 * ((8 * t) % 1)),
}
# samples that the background's noise is averaged over
NOISE = {"stripes": 1, "checker": 4, "waves": 16, "rings": 64}
LOWEST_HZ, STEP = 220.0, 2 ** (1 / 6)
WORDS = {
    "ground": {"stripes": "stripes", "checker": "checks", "waves": "waves", "rings": "rings"},
    "texture": {"plain": "", "stripes": " with stripes", "checker": " with checks", "dots": " with dots"},
    "moves": {m: f"moves {m}" for m in MOTIONS} | {"still": "stands still"},
    "moving": {m: f"moving {m}" for m in MOTIONS} | {"still": "standing still"},
}


@register("source", "sample_table")
class SampleTable(Source):
    """The sample world as a table in the cache folder, made on first use. Columns: image, video (with sound),
    sound (a wav file), caption, captions (three wordings), shape, colour, texture, size, motion, background.
    """

    def __init__(
        self,
        train: Count = 512,
        test: Count = 96,
        frames: Annotated[int, Field(ge=8)] = 32,
        size: world.EvenSide = 64,
        seed: Natural = 0,
    ):
        self.root = cached_table(train, test, frames, size, seed)
        records = [{**r, "folder": str(self.root)} for r in world.read_factors(self.root)]
        self.train, self.test = world.by_split(records)

    def describe(self) -> str:
        return f"sample_table {self.root}: {len(self.train):,} train, {len(self.test):,} test records"


def cached_table(train: int, test: int, frames: int, size: int, seed: int) -> Path:
    """The cache folder that holds this table; it is made when it is not there yet. Raises SampleError."""
    wanted = {"version": VERSION, "train": train, "test": test, "frames": frames, "size": size, "seed": seed}
    return world.cached_world("sample_table", f"{world.VERSION}.{VERSION}", wanted, _make)


def _make(folder: Path, wanted: dict, split: str, index: int) -> dict:
    """Write the files of one row; give the row."""
    made, motion = draw(wanted["seed"], split, index, wanted["frames"])
    name = f"{split}/{index:05d}"
    video_THWC, sound = (
        world.render(made, wanted["frames"], wanted["size"]),
        sound_of(made, motion, wanted["frames"]),
    )
    Image.fromarray(video_THWC[0]).save(folder / f"{name}.png")
    write_wav(folder / f"{name}.wav", sound)
    write_mp4(folder / f"{name}.mp4", video_THWC, sound, RATE_HZ)
    sprite = made.sprites[0]
    captions = describe(made, motion)
    return {
        "id": f"{name}.mp4",
        "image": f"{name}.png",
        "video": f"{name}.mp4",
        "sound": f"{name}.wav",
        "caption": captions[0],
        "captions": captions,
        "shape": sprite.shape,
        "colour": sprite.colour,
        "texture": sprite.texture,
        "size": size_word(sprite),
        "motion": motion,
        "background": made.background.pattern,
        "split": split,
        "factors": asdict(made),
    }


def draw(seed: int, split: str, index: int, frames: int) -> tuple[Scene, str]:
    """The scene and its motion. The sprite crosses the same distance in any number of frames, and never
    reaches a border."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 2])
    background = world.draw_background(rng)
    motion = str(rng.choice(list(MOTIONS)))
    size = rng.uniform(*SIZES[str(rng.choice(list(SIZES)))])
    start = []
    for step in MOTIONS[motion]:
        low, high = size / 2 + max(0, -step) * TRAVEL, SIDE - size / 2 - max(0, step) * TRAVEL
        start.append(rng.uniform(low, high))
    vx, vy = (step * TRAVEL / (frames - 1) for step in MOTIONS[motion])
    colour, shape, texture = (str(rng.choice(list(names))) for names in (COLOURS, SHAPES, TEXTURES))
    values = (world.rounded(v) for v in (size, *start, vx, vy, rng.uniform(0, 2 * np.pi)))
    return Scene(split, index, background, (Sprite(shape, colour, texture, *values, spin=0.0),)), motion


def size_word(sprite: Sprite) -> str:
    return "small" if sprite.size <= SIZES["small"][1] else "large"


def describe(scene: Scene, motion: str) -> list[str]:
    """Three captions of a scene, which say the same."""
    sprite, ground = scene.sprites[0], WORDS["ground"][scene.background.pattern]
    size, texture = size_word(sprite), WORDS["texture"][sprite.texture]
    thing = f"{size} {sprite.colour} {sprite.shape}{texture}"
    return [
        f"a {thing} {WORDS['moves'][motion]} over {ground}",
        f"over {ground}, one {thing} {WORDS['moves'][motion]}",
        f"{WORDS['moving'][motion]} over {ground}: a {size} {sprite.shape}{texture}, {sprite.colour}",
    ]


def sound_of(scene: Scene, motion: str, frames: int) -> np.ndarray:
    """The sound of a scene, float32 [samples] in [-1, 1] at RATE_HZ, as long as its video."""
    sprite = scene.sprites[0]
    time = np.arange(round(frames / RATE_FPS * RATE_HZ)) / RATE_HZ
    travelled = np.clip(time * RATE_FPS / (frames - 1), 0, 1)
    across, along = MOTIONS[motion]
    octave = -along * travelled - (size_word(sprite) == "large")  # y points down
    pitch_hz = LOWEST_HZ * 2 * STEP ** list(COLOURS).index(sprite.colour) * 2.0**octave
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    tone = sum(a * np.sin(n * phase) for n, a in enumerate(HARMONICS[sprite.shape], 1)) / sum(
        HARMONICS[sprite.shape]
    )
    swell = 0.2 + 0.8 * (travelled if across > 0 else 1 - travelled if across < 0 else 0.6)
    noise = np.random.default_rng([scene.index, SPLITS.index(scene.split), 3]).standard_normal(len(time))
    width = NOISE[scene.background.pattern]
    noise = np.convolve(noise, np.full(width, width**-0.5), "same")
    return np.clip(0.7 * tone * ENVELOPES[sprite.texture](time) * swell + 0.02 * noise, -1, 1).astype(
        np.float32
    )


def write_wav(path: Path, sound: np.ndarray) -> None:
    """Write float [samples] in [-1, 1] as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE_HZ)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
