"""The sample world: scenes of moving textured sprites with known factors, their rendering, and folders of
files made from them once.

    video_THWC = render(scene(0, "test", 3), frames=32, size=64)             # uint8
    # `make` writes the files of one scene (videos.py, images.py, table.py)
    make_world(folder, wanted, make, "sample videos")
    records = read_factors(folder)  # one dict per scene: id, path, split, sprites, ...

A scene is a pure function of (seed, split, index). Its 2 or 3 sprites keep their velocity, bounce off the
borders and may spin over a background that is theirs alone, so frames that were seen tell the next one.
Lengths in factors are in units of 1/64 of the frame's side (pixels at size 64), times in frames, angles in
radians; y points down.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from tqdm import tqdm

from vicjoint.files.cache import cache_root
from vicjoint.sources.base import SourceError

VERSION = 1  # raise it when the same numbers give other pictures: old caches are then left aside
SIDE = 64.0
SPLITS = ("train", "test")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = {  # brightness over coordinates that turn with the sprite, clipped to [-0.25, 0.25]
    "plain": lambda u, v: np.ones_like(u),
    "stripes": lambda u, v: np.sin(1.5 * u),
    "checker": lambda u, v: np.sin(u) * np.sin(v),
    "dots": lambda u, v: 0.4 - np.cos(1.5 * u) * np.cos(1.5 * v),
}
TEXTURE_TURN = np.float32(1.5 * np.pi)  # radians per radius of the sprite
PATTERNS = {  # of backgrounds, in [-1, 1]
    "stripes": lambda u, v: np.sin(u),
    "checker": lambda u, v: np.sin(u) * np.sin(v),
    "waves": lambda u, v: np.sin(u + 1.5 * np.sin(v)),
    "rings": lambda u, v: np.sin(np.hypot(u, v)),
}
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (245, 220, 40),
    "magenta": (225, 50, 210),
    "cyan": (40, 215, 220),
    "orange": (250, 140, 20),
    "white": (245, 245, 245),
}
MARKER = "complete.json"
STALE_SECONDS = 24 * 3600
MAX_THREADS = 8


class SampleError(SourceError):
    """Parameters that no sample can be made with, or a folder that cannot hold it."""


@dataclass(frozen=True)
class Sprite:
    shape: str
    colour: str
    texture: str
    size: float  # diameter
    x: float  # centre at frame 0
    y: float
    vx: float  # per frame, before the first bounce
    vy: float
    angle: float
    spin: float  # per frame; 0 does not rotate

    def centre(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre (x, y) at frame numbers of any shape."""
        return bounce(self.x + self.vx * frame, self.size / 2), bounce(
            self.y + self.vy * frame, self.size / 2
        )


@dataclass(frozen=True)
class Background:
    pattern: str
    tone_a: tuple[int, int, int]
    tone_b: tuple[int, int, int]
    period: float
    angle: float
    vx: float  # drift per frame; 0, 0 stands still
    vy: float


@dataclass(frozen=True)
class Scene:
    split: str
    index: int
    background: Background
    sprites: tuple[Sprite, ...]  # later ones are in front


def scene(seed: int, split: str, index: int) -> Scene:
    """The factors of one scene. Train and test draw from different random streams."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    background = draw_background(rng)
    colours = rng.permutation(list(COLOURS))  # no two sprites of a scene share a colour
    sprites = tuple(draw_sprite(rng, str(colours[k])) for k in range(rng.integers(2, 4)))
    return Scene(split, index, background, sprites)


def draw_background(rng: np.random.Generator) -> Background:
    level = rng.integers(40, 150)  # muted tones: sprites stand out against every background
    tones = np.clip(level + rng.integers(-30, 31, (2, 3)) + [[-20], [20]], 0, 255)
    drift = rng.uniform(0.1, 0.4) if rng.random() < 0.5 else 0.0
    vx, vy = polar(drift, rng.uniform(0, 2 * np.pi))
    tone_a, tone_b = (tuple(tone.tolist()) for tone in tones)
    period, angle = rounded(rng.uniform(10, 28)), rounded(rng.uniform(0, np.pi))
    return Background(str(rng.choice(list(PATTERNS))), tone_a, tone_b, period, angle, vx, vy)


def draw_sprite(rng: np.random.Generator, colour: str) -> Sprite:
    size = rounded(rng.uniform(10, 22))
    x, y = (rounded(v) for v in rng.uniform(size / 2, SIDE - size / 2, 2))
    vx, vy = polar(rng.uniform(1.5, 4), rng.uniform(0, 2 * np.pi))
    spin = rng.uniform(0.03, 0.12) * rng.choice([-1, 1]) if rng.random() < 0.5 else 0.0
    shape, texture = str(rng.choice(SHAPES)), str(rng.choice(list(TEXTURES)))
    return Sprite(
        shape,
        colour,
        texture,
        size,
        x,
        y,
        vx,
        vy,
        angle=rounded(rng.uniform(0, 2 * np.pi)),
        spin=rounded(spin),
    )


def draw_still(rng: np.random.Generator) -> tuple[Background, Sprite]:
    """A background that stands still, and a sprite that does not turn: what moves by itself would tell the
    time, and so the next frame."""
    background = replace(draw_background(rng), vx=0.0, vy=0.0)
    return background, replace(draw_sprite(rng, str(rng.choice(list(COLOURS)))), spin=0.0)


def rounded(value: float) -> float:
    return round(float(value), 4)  # so that factors.jsonl holds exactly what was rendered


def polar(length: float, angle: float) -> tuple[float, float]:
    return rounded(length * np.cos(angle)), rounded(length * np.sin(angle))


def bounce(position, margin: float):
    """Fold a straight path into [margin, SIDE - margin]: constant speed, reflected at both ends."""
    span = SIDE - 2 * margin
    return margin + span - np.abs((position - margin) % (2 * span) - span)


# ---- pictures. T frames, H = W = size; x and y are [T, H, W] or broadcast to it ----


def render(scene: Scene, frames: int, size: int) -> np.ndarray:
    """The scene as uint8 [T, H, W, 3], RGB, anti-aliased."""
    frame = np.arange(frames, dtype=np.float32)[:, None, None]
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(SIDE / size)
    x, y = axis[None, None, :], axis[None, :, None]
    video = _paint_background(scene.background, frame, x, y)
    for sprite in scene.sprites:
        _paint_sprite(video, sprite, frame, (x, y), np.float32(size / SIDE))
    return (video + 0.5).astype(np.uint8)


def _paint_background(b: Background, frame, x, y) -> np.ndarray:
    u, v = _rotate(x - b.vx * frame - SIDE / 2, y - b.vy * frame - SIDE / 2, np.float32(b.angle))
    turn = np.float32(2 * np.pi / b.period)
    wave = PATTERNS[b.pattern](turn * u, turn * v)
    tone_a, tone_b = np.float32(b.tone_a), np.float32(b.tone_b)
    return tone_a + (tone_b - tone_a) * (0.5 + 0.5 * wave)[..., None]


def _paint_sprite(video_THWC: np.ndarray, s: Sprite, frame, grid, pixels_per_unit) -> None:
    """Blend the sprite into the video in place, within its box in each frame."""
    centre_x, centre_y = s.centre(frame)
    radius = np.float32(s.size / 2)
    for t in range(len(video_THWC)):
        columns = np.flatnonzero(np.abs(grid[0][0, 0] - centre_x[t, 0, 0]) < 1.5 * radius)
        rows = np.flatnonzero(np.abs(grid[1][0, :, 0] - centre_y[t, 0, 0]) < 1.5 * radius)
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        dx, dy = grid[0][0, :, box[1]] - centre_x[t, 0, 0], grid[1][0, box[0]] - centre_y[t, 0, 0]
        u, v = _rotate(dx / radius, dy / radius, np.float32(s.angle + s.spin * t))
        alpha = np.clip(0.5 - _distance(s.shape, u, v) * radius * pixels_per_unit, 0, 1)
        shade = 0.4 + 0.6 * np.clip(0.5 + 2 * TEXTURES[s.texture](TEXTURE_TURN * u, TEXTURE_TURN * v), 0, 1)
        patch = video_THWC[t][box]
        patch += alpha[..., None] * (shade[..., None] * np.float32(COLOURS[s.colour]) - patch)


def _rotate(x, y, angle):
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _distance(shape: str, u, v):
    """About the signed distance to the outline, negative inside; the shape fills the unit circle, centre of
    mass at 0."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.28
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if shape == "cross":
        long, wide = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return np.maximum(long - 0.95, wide - 0.33)
    if shape == "triangle":
        return np.maximum(np.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v), v) - 0.5
    # Star: fold the plane into one half point; its edge runs from the tip (1, 0) to the notch at 36 degrees.
    fold = np.abs((np.arctan2(v, u) % (2 * np.pi / 5)) - np.pi / 5)
    notch = 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)], dtype=np.float32)
    normal = np.array([notch[1], 1 - notch[0]], dtype=np.float32) / np.hypot(notch[1], 1 - notch[0])
    r = np.hypot(u, v)
    return r * np.cos(fold) * normal[0] + r * np.sin(fold) * normal[1] - normal[0]


# ---- options ----

SmallSide = Annotated[int, Field(ge=16)]
EvenSide = Annotated[int, Field(ge=16, multiple_of=2)]
"""Of mp4 files, whose yuv420p frames have even sides."""

# ---- files ----


def cached_world(name: str, version: str | int, wanted: dict, make: Callable) -> Path:
    """The cache folder of the source `name` with these numbers; it is filled, as by make_world, where it is
    not there yet. Raises SampleError."""
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    folder = cache_root() / f"{name}-v{version}-{key}"
    make_world(folder, wanted, make, name.replace("_", " "))
    return folder


def make_world(folder: Path, wanted: dict, make: Callable, what: str, progress: bool = True) -> None:
    """Fill `folder` with wanted["train"] and wanted["test"] files, each by `make(folder, wanted, split,
    index)`, which gives its factors.

    Files are made in a sibling folder that gets its name at the end, so an interrupted build is never taken
    for a whole one; of two processes the later one drops its copy. Raises SampleError as `make_videos` does.
    """
    folder = Path(folder).absolute()
    if _is_complete(folder, wanted, what):
        return
    building = folder.with_name(f"{folder.name}.building-{uuid.uuid4().hex[:12]}")
    try:
        for split in SPLITS:
            (building / split).mkdir(parents=True)
        _remove_stale(folder)
        _fill(building, wanted, make, what, progress)
        _give_name(building, folder, wanted, what)
    except OSError as error:
        raise SampleError(
            f"cannot make the {what} in {folder}: {error}. Expected a folder that can be written, with about "
            "20 MB free. Set VICJOINT_CACHE to one."
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_complete(folder: Path, wanted: dict, what: str) -> bool:
    """Whether `folder` holds just these files. False: nothing there. Raises SampleError on anything else."""
    if not folder.exists():
        return False
    try:
        if json.loads((folder / MARKER).read_text()) == wanted and all(
            Path(r["path"]).is_file() for r in read_factors(folder)
        ):
            return True
    except (OSError, ValueError):
        pass  # no marker, or a damaged one: the message below says what to do
    raise SampleError(
        f"{folder} is not the complete set of {what} {wanted}. Delete it, and it is made again."
    )


def _remove_stale(folder: Path) -> None:
    """Delete what killed builds left behind; younger folders may be at work."""
    for other in folder.parent.glob(f"{folder.name}.building-*"):
        if time.time() - other.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def _fill(folder: Path, wanted: dict, make: Callable, what: str, progress: bool) -> None:
    places = [(split, index) for split in SPLITS for index in range(wanted[split])]
    # Threads: the encoders release the interpreter's lock, and nothing has to be imported again in a child
    # process.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        made = pool.map(lambda place: make(folder, wanted, *place), places)
        bar = tqdm(made, total=len(places), desc=f"making {what}", unit="file", disable=not progress)
        lines = [json.dumps(factors) + "\n" for factors in bar]
    (folder / "factors.jsonl").write_text("".join(lines))
    (folder / MARKER).write_text(json.dumps(wanted))


def _give_name(building: Path, folder: Path, wanted: dict, what: str) -> None:
    try:
        building.rename(folder)
    except OSError:
        if not _is_complete(folder, wanted, what):  # another process was faster: its files are the same
            raise


def read_factors(folder: Path) -> list[dict]:
    """One record per video: id, path, split, index, background and sprites."""
    with open(Path(folder) / "factors.jsonl") as lines:
        records = [json.loads(line) for line in lines]
    return [{"id": r["id"], "path": str(Path(folder) / r["id"]), **r} for r in records]


def by_split(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """(those of training, those of test)."""
    train, test = ([r for r in records if r["split"] == split] for split in SPLITS)
    return train, test
