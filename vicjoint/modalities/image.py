"""Images, next frames and clips: files -> uint8 pixels with channels first -> normalised float views."""

# B batch, C = 3 channels, T frames, H height, W width

import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from vicjoint.files import images
from vicjoint.library import LibraryPart
from vicjoint.modalities.processors import Processing, processing_of
from vicjoint.options import Ascending, ComponentOf, Count, Natural, Positive, PositiveShare, Share, Size
from vicjoint.parts import Modality, Record
from vicjoint.registry import register
from vicjoint.sliding import Sliding, spans
from vicjoint.transforms.compose import TransformList, Where, as_clips
from vicjoint.transforms.images import centre_crop, cut, of_picture, square_frames
from vicjoint.transforms.squares import (
    Cache,
    Choice,
    SlidingVideo,
    Squares,
    ends,
    every_start,
    of_clip,
    on_display,
)
from vicjoint.video import FILM_SUFFIXES, Video, VideoError, VideoInfo

IMAGENET = Processing([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 64, 1.0)
IMAGENET_MEAN, IMAGENET_STD = IMAGENET.mean, IMAGENET.std
CROP = ({"name": "random_resized_crop", "area": (0.6, 1.0)},)
COARSE = 32, 16, 8  # what the pixels row compares: side of an image, side of a clip's frames, number of these


@register("modality", "next_frame")
class Pixels(Modality, LibraryPart):
    """uint8 [B, C, (T,) H, W] in 0..255 -> float view of the same shape, (x / 255 - mean) / std per channel.
    A float input is taken to be in [0, 1] already. `mean` and `std` have one number per channel; null: those
    of `processor`, a folder or a hub id of pretrained weights (of transformers, or timm/NAME), or ImageNet's.
    """

    accepts = ("image",)
    baseline = "pixels"
    saved = {"processor": "preprocessor_config.json"}

    def __init__(
        self, mean: list[float] | None = None, std: list[Positive] | None = None, processor: str | None = None
    ):
        super().__init__()
        self.processing = processing_of(processor) if processor else None
        of_library = self.processing or IMAGENET
        mean = of_library.mean if mean is None else mean
        std = of_library.std if std is None else std
        if len(mean) != len(std):
            raise ValueError(
                f"modality: mean {list(mean)} and std {list(std)} need one number per channel each."
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def sizes(self, size: int | None, centre: float | None) -> tuple[int, float]:
        """Size and centre as given, or the processor's, or 64 and 1."""
        found = self.processing or IMAGENET
        return size or found.size or 64, found.centre if centre is None else centre

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] != len(self.mean):
            raise ValueError(
                f"a view of shape {list(pixels.shape)} has {pixels.shape[1]} channels; this modality's mean"
                f" has {len(self.mean)}."
            )
        shape = (1, -1) + (1,) * (pixels.ndim - 2)
        scale = 1 / (255 * self.std) if pixels.dtype == torch.uint8 else 1 / self.std
        # twice as quick as the product of bytes and floats
        x = pixels.to(scale.dtype, copy=True)
        return x.mul_(scale.view(shape)).sub_((self.mean / self.std).view(shape))

    def simple_features(self, raw: Tensor) -> Tensor:
        """The pixels [B, K] in [0, 1], averaged to at most 32 x 32, clips to 8 x 16 x 16."""
        x = raw.float() / 255 if raw.dtype == torch.uint8 else raw.float()
        image, frame, frames = COARSE
        if x.ndim == 4:
            return nn.functional.adaptive_avg_pool2d(x, [min(n, image) for n in x.shape[-2:]]).flatten(1)
        return nn.functional.adaptive_avg_pool3d(
            x, [min(n, most) for n, most in zip(x.shape[-3:], (frames, frame, frame))]
        ).flatten(1)

    def save(self, folder: Path) -> None:
        if self.processing is not None:
            self.processing.save(folder)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        return {
            "dtype": "uint8",
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [round(x, 6) for x in self.mean.tolist()],
            "image_std": [round(x, 6) for x in self.std.tolist()],
        }


@register("modality", "image")
class Image(Pixels):
    """Pictures, and how the pair cross_modal reads their files (formats, transparency, 16 bits: see
    vicjoint.files.images).

    size: side of the views in pixels; null: the processor's, or 64. transforms: those of training, in the
    pair augment's form, random_resized_crop first; null: a random crop of 60 to 100 % of the area and nothing
    else, since a flip or other colours may contradict the other half of the pair (a digit, "left", "red");
    []: none, the evaluation view. colour: where those of colour run, as in the pair augment. centre: in
    evaluation the short side is resized to size / centre and the centre is kept; null: the processor's, or 1.
    """

    accepts = ()
    reading = ("size", "transforms", "colour", "centre")
    suffixes = images.READ_SUFFIXES

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[Positive] | None = None,
        size: Size | None = None,
        transforms: list[Annotated[dict, ComponentOf("transform")]] | None = None,
        centre: PositiveShare | None = None,
        processor: str | None = None,
        colour: Where = "worker",
    ):
        super().__init__(mean, std, processor)
        self.size, self.centre = size, centre = self.sizes(size, centre)
        specs = CROP if transforms is None else transforms
        self.transforms = TransformList("modality.transforms", list(specs), size, colour) if specs else None

    def read(
        self,
        value: str | Record,
        rng: np.random.Generator | None = None,
        window: tuple[float, float] | None = None,
    ) -> Tensor:
        """uint8 [1, 3, size, size] of an image file, or of a record of one inside a tar file (path, offset,
        size). Raises ImageError."""
        pixels = images.read_record(value) if isinstance(value, dict) else images.read(value)
        if rng is None or self.transforms is None:
            return centre_crop(pixels, self.size, self.centre)[None]
        return self.transforms(pixels, rng)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        return super().preprocessing() | of_picture(self.size, self.centre)


@register("modality", "clip")
class Clip(Pixels):
    """Clips, and how the pair cross_modal reads them from video files.

    frames: of a clip. Where the pair has a common window (its `seconds`), or with `window` (seconds), they
    are spread evenly over that time: those on display at the middles of `frames` equal parts, by timestamps,
    one more than once where the video has fewer. Otherwise they are `stride` frames apart. Training starts
    anywhere, evaluation in the middle.
    size, centre, at, area, flip: where a clip looks, as in the pair next_frame (size and centre null: the
    processor's, or 64 and 1); no flip by default, since left and right may be named. transforms: its own in
    training, after that, as the pair's `a`: drawn once for all frames, random_resized_crop first; null: none.
    colour: where those of colour run, as in the pair augment. reduce: side that larger squares are brought to
    before anything else; null: as they are. Smaller ones are cut more quickly, and more fit into memory.
    cache_mb: room for the squares of videos decoded once, so that later epochs only cut and resize,
    whatever their windows; 0: none. The first videos that fit stay; the others are decoded each time. cache:
    memory, of each process that reads, or disk, the cache folder, for all processes and later runs. Views are
    the same with and without.
    """

    accepts = ()
    timed = True
    several = True
    suffixes = FILM_SUFFIXES
    opens_inside = True
    reading = (
        *("frames", "stride", "window", "size", "centre", "area", "flip"),
        *("at", "reduce", "cache_mb", "cache", "transforms", "colour"),
    )

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[Positive] | None = None,
        frames: Count = 8,
        stride: Count = 2,
        window: Positive | None = None,
        size: Size | None = None,
        centre: PositiveShare | None = None,
        area: Annotated[tuple[PositiveShare, PositiveShare], Ascending] = (0.6, 1.0),
        flip: Share = 0.0,
        at: tuple[Share, Share] = (0.5, 0.5),
        reduce: int | None = None,
        cache_mb: Natural = 0,
        cache: Cache = "memory",
        transforms: list[Annotated[dict, ComponentOf("transform")]] | None = None,
        processor: str | None = None,
        colour: Where = "worker",
    ):
        super().__init__(mean, std, processor)
        size, centre = self.sizes(size, centre)
        if reduce is not None and reduce < size:
            raise ValueError(
                f"modality 'clip': reduce is {reduce}, expected the view's size ({size}) or more, or null."
            )
        self.frames, self.stride, self.window = frames, stride, window
        self.squares = Squares(centre, at, reduce, cache_mb, cache)
        self.kept = self.squares.kept
        self.size, self.area, self.flip = size, area, flip
        self.transforms = (
            TransformList("modality.transforms", transforms, size, colour) if transforms else None
        )

    def read(
        self, value: str, rng: np.random.Generator | None = None, window: tuple[float, float] | None = None
    ) -> Tensor:
        """uint8 [1, 3, T, size, size] of a video file. Raises VideoError."""
        return self._read(value, [rng], [window])[0]

    def read_several(self, value, rngs, windows) -> list[Tensor]:
        return self._read(value, rngs, windows)

    def _read(self, value, rngs, windows) -> list[Tensor]:
        chooses = [
            lambda info, drawn=drawn: self._numbers(info, *drawn, value) for drawn in zip(rngs, windows)
        ]
        found = self.squares.read_several(value, self.video_backend, self.frame_rate, chooses)
        return [self._view(squares, rng) for squares, rng in zip(found, rngs)]

    def _view(self, squares: Tensor, rng: np.random.Generator | None) -> Tensor:
        if rng is not None and self.transforms is not None:
            return self.transforms(cut(squares, rng, self.area, self.flip), rng)
        return as_clip(square_frames(squares, self.size, rng, self.area, self.flip))

    def seconds(self, value: str) -> float:
        """How long the file shows pictures, from its start to the end of its last frame. Raises
        VideoError."""
        return _seconds(value, self.frame_rate)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        window = self.window if seconds is None else seconds
        stride = self.stride if window is None else None
        return super().preprocessing() | of_clip(self.frames, stride, window, self.size, self.squares)

    def slide(self, value: str, every: float, length: float | None = None) -> Sliding:
        """Clips of `length` seconds, or of the modality's own frames. Raises VideoError and ValueError."""
        choose = lambda info: self._along(info, every, length or self.window, value)
        how = self.video_backend, self.frame_rate
        return SlidingVideo(value, *how, self.squares, self.size, choose, as_clip)

    def _along(self, info: VideoInfo, every: float, length: float | None, path: str) -> list[Choice]:
        if length is not None:
            found = spans(path, duration(info), length, every)
            return [(span, self._numbers(info, None, (span[0], length), path)) for span in found]
        self._numbers(info, None, None, path)  # raises where there is no window at all
        reach, found = (self.frames - 1) * self.stride, []
        for start in every_start(info, every):
            first = on_display(info, start)
            if first + reach >= info.frames:
                break
            numbers = list(range(first, first + reach + 1, self.stride))
            found.append(((start, ends(info, numbers[-1])), numbers))
        return found

    def _numbers(self, info: VideoInfo, rng, window: tuple[float, float] | None, path: str) -> list[int]:
        if window is None and self.window is None:
            possible = info.frames - (self.frames - 1) * self.stride
            if possible < 1:
                raise VideoError(
                    f"{path}: has {info.frames} frames, {(self.frames - 1) * self.stride + 1} are needed "
                    "(the modality's frames and stride)."
                )
            start = (possible - 1) // 2 if rng is None else int(rng.integers(possible))
            return list(range(start, start + self.frames * self.stride, self.stride))
        if window is None:
            spare = duration(info) - self.window
            if spare < -1e-3:
                raise VideoError(
                    f"{path}: is {duration(info):.2f} s long, {self.window} s are needed (the modality's"
                    " window)."
                )
            window = max(spare, 0) * (0.5 if rng is None else rng.random()), self.window
        start, length = window
        asked = info.start_seconds + start + (np.arange(self.frames) + 0.5) * length / self.frames
        # a frame is on display from its timestamp on; the millionth decides where rounding would
        return np.clip(
            np.searchsorted(info.timestamps_seconds, asked + 1e-6, side="right") - 1, 0, None
        ).tolist()


def as_clip(frames: Tensor) -> Tensor:
    """[T, 3, S, S] -> a raw view [1, 3, T, S, S]."""
    return as_clips(frames[None])


@functools.lru_cache(maxsize=2**16)
def _seconds(path: str, frame_rate: float) -> float:
    with Video(path, "pyav", frame_rate) as video:
        return duration(video.info)


def duration(info: VideoInfo) -> float:
    """Seconds from the file's start to the end of its last frame."""
    return float(info.timestamps_seconds[-1] - info.start_seconds + 1 / info.fps)
