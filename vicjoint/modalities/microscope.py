"""Microscope images of any number of channels: tiff of 8 or 16 bits, png, or one file per channel ->
normalised float views.

    {name: microscope, channels: 5, size: 128}  # all channels in one file: pages, or an axis of an array
    # the paths have {channel}: B02_s1_{channel}.tiff
    {name: microscope, channels: [DNA, ER, RNA, AGP, Mito], size: 128}

Every channel of every image is stretched by itself: its percentile `low` becomes 0, its percentile `high`
becomes 1. Exposure differs between channels, plates and days, and 16 bits are seldom used up; only what is
bright relative to the rest of the image counts.
"""

# C channels, H height, W width, B images

import logging
import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vicjoint.files.guard import MOST_BYTES, no_file, quiet
from vicjoint.files.images import IMAGE_SUFFIXES, is_deep, opened
from vicjoint.options import Count, ShareBelowOne, Size
from vicjoint.parts import Modality
from vicjoint.registry import need, register

TIFF_SUFFIXES = (".tif", ".tiff", ".stk", ".lsm")
PICTURES = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "WEBP")  # Pillow's formats whose depth is known
MOST_VALUES = 1 << 28  # of all channels of an image: half a GiB at 16 bits, five channels of 7,000 x 7,000
QUANTILES = (0.1, 0.5, 0.9, 0.99)


class MicroscopeError(ValueError):
    """A microscope image that cannot be used; the message names it and the cause."""


Percentile = Annotated[float, Field(ge=0, le=100)]


@register("modality", "microscope")
class Microscope(Modality):
    """float16 [1, C, size, size] in [0, 1] from the workers, the view is 2 x - 1: float in [-1, 1].

    channels: how many channels a file has; or their names, one file each, put in the place of {channel} in
    the path. size: side of the view in pixels. crop: side, in the image's own pixels, of the square that is
    looked at (then resized to size); null: the largest square. It lies anywhere in training and in the middle
    in evaluation. low, high: percentiles. flip: in training, mirrored either way and turned by multiples of
    90 degrees. brightness, contrast: each channel, by itself, is multiplied by a factor within 1 +-
    brightness, and its distance from its mean by one within 1 +- contrast.
    """

    reads = "file"
    accepts = ("image",)
    baseline = "intensities"
    suffixes = (*TIFF_SUFFIXES, *IMAGE_SUFFIXES)
    reading = ("size", "crop", "low", "high", "flip", "brightness", "contrast")

    def __init__(
        self,
        channels: Count | Annotated[list[str], Field(min_length=1)] = 5,
        size: Size = 128,
        crop: Size | None = None,
        low: Percentile = 1.0,
        high: Percentile = 99.9,
        flip: bool = True,
        brightness: ShareBelowOne = 0.2,
        contrast: ShareBelowOne = 0.2,
    ):
        super().__init__()
        need(["tifffile"], "modality 'microscope'", "molecule")
        names = list(channels) if not isinstance(channels, int) else None
        if names and len(set(names)) < len(names):
            raise ValueError(
                f"modality 'microscope': channels is {channels}, expected a list of different names."
            )
        if low >= high:
            raise ValueError(
                f"modality 'microscope': low is {low} and high {high}, expected percentiles with 0 <= low <"
                " high <= 100."
            )
        self.names, self.channels = names, len(names) if names else channels
        self.size, self.crop, self.low, self.high = size, crop, low, high
        self.flip, self.brightness, self.contrast = flip, brightness, contrast

    def read(self, value: str, rng: np.random.Generator | None = None, window=None) -> Tensor:
        """float16 [1, C, size, size] in [0, 1]. Raises MicroscopeError with the cause."""
        pixels = self._load(value)
        x = torch.from_numpy(
            np.stack(
                [
                    stretch(channel, self.low, self.high, f"{value}: channel {self._name(i)}")
                    for i, channel in enumerate(pixels)
                ]
            )
        )
        x = self._look(x, value, rng)
        if rng is not None:
            x = self._jitter(self._turn(x, rng), rng)
        return x.half()[None]

    def _name(self, index: int) -> str:
        return f"'{self.names[index]}'" if self.names else f"{index + 1} of {self.channels}"

    def _load(self, path: str) -> np.ndarray:
        """[C, H, W] as stored."""
        if self.names is None:
            pixels = read_channels(path, self.channels)
            if len(pixels) != self.channels:
                raise MicroscopeError(
                    f"{path}: {len(pixels)} channel(s) of {shape_of(pixels[0])}, the modality expects"
                    f" {self.channels} (option channels)"
                )
            return pixels
        if "{channel}" not in path:
            raise MicroscopeError(
                f"{path}: the path has no {{channel}} to put a name of channels ({', '.join(self.names)}) in"
                " its place"
            )
        parts = [read_channels(path.replace("{channel}", name), 1) for name in self.names]
        for name, part in zip(self.names, parts):
            if len(part) != 1 or part.shape != parts[0].shape:
                raise MicroscopeError(
                    f"{path}: channel '{name}' has {len(part)} channel(s) of {shape_of(part[0])}, expected"
                    f" one of {shape_of(parts[0][0])} as '{self.names[0]}'"
                )
        return np.concatenate(parts)

    def _look(self, x: Tensor, path: str, rng: np.random.Generator | None) -> Tensor:
        height, width = x.shape[1:]
        side = self.crop or min(height, width)
        if side > min(height, width):
            raise MicroscopeError(
                f"{path}: {shape_of(x[0])} pixels, smaller than the crop of {side} (option crop)"
            )
        if rng is None:
            top, left = (height - side) // 2, (width - side) // 2
        else:
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        x = x[:, top : top + side, left : left + side]
        return F.resize(x, [self.size, self.size], antialias=True) if side != self.size else x

    def _turn(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        mirrored, quarters = rng.random() < 0.5, int(rng.integers(4))  # the eight symmetries of a square
        if not self.flip:
            return x
        return torch.rot90(x.flip(-1) if mirrored else x, quarters, (-2, -1))

    def _jitter(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        factor, spread = (
            torch.from_numpy(rng.uniform(1 - reach, 1 + reach, (len(x), 1, 1)).astype(np.float32))
            for reach in (self.brightness, self.contrast)
        )
        mean = x.mean((1, 2), keepdim=True)
        return (((x - mean) * spread + mean) * factor).clamp(0, 1)

    def forward(self, raw: Tensor) -> Tensor:
        return raw.float() * 2 - 1

    def simple_features(self, raw: Tensor) -> Tensor:
        """Mean, standard deviation and quantiles of each channel, [B, 6 C]."""
        values = raw.float().flatten(2)
        at = torch.quantile(values, torch.tensor(QUANTILES, device=values.device), dim=2)
        return torch.cat([values.mean(2), values.std(2), *at], 1)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        return {
            "shape": [self.channels, self.size, self.size],
            "dtype": "float16",
            "channels": self.names or self.channels,
            "crop": self.crop,
            "size": {"height": self.size, "width": self.size},
            "percentiles_to_0_and_1": [self.low, self.high],
            "image_mean": 0.5,
            "image_std": 0.5,
        }


def shape_of(channel) -> str:
    return f"{channel.shape[-1]} x {channel.shape[-2]}"


def stretch(channel: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """[H, W] of any numbers -> float32 in [0, 1]: percentile `low` to 0, `high` to 1, clipped. Raises
    MicroscopeError for a channel that has one value only, or values that are no numbers."""
    if channel.dtype.kind == "f" and not np.isfinite(channel).all():
        raise MicroscopeError(f"{name}: has values that are not finite (NaN or infinite)")
    channel = channel.astype(np.float32)
    least, most = float(channel.min()), float(channel.max())
    if least == most:
        raise MicroscopeError(f"{name}: every pixel is {least:g}, an empty or a saturated channel")
    bottom, top = np.percentile(channel, [low, high])
    if bottom == top:  # few pixels differ from the background
        bottom, top = least, most
    return np.clip((channel - np.float32(bottom)) / np.float32(top - bottom), 0, 1)


def read_channels(path: str | Path, channels: int) -> np.ndarray:
    """[C, H, W] as stored, of a tiff, or of an 8- or 16-bit png or another format of Pillow. `channels`, the
    number expected, decides which axis of an array of unknown meaning the channels are. Raises
    MicroscopeError."""
    path = str(path)
    try:
        if cause := no_file(path, "microscope", MOST_BYTES):
            raise MicroscopeError(f"{path}: {cause}")
        with quiet():
            array, axes = _read_tiff(path) if path.lower().endswith(TIFF_SUFFIXES) else _read_picture(path)
    except MicroscopeError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise MicroscopeError(f"{path}: {error.strerror}") from None
        raise MicroscopeError(f"{path}: cannot be decoded: {error}") from None
    except (
        Exception
    ) as error:  # decoders fail on damaged files in many ways, and all mean the same to the user
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MicroscopeError(f"{path}: cannot be decoded: {cause}") from None
    return _channels_first(array, axes, channels, path)


def _read_tiff(path: str) -> tuple[np.ndarray, str]:
    """(array, one letter per axis). Pages of one shape are one array."""
    import tifffile

    logger = logging.getLogger("tifffile")
    # what matters of it is raised here, with the file's name
    disabled, logger.disabled = (logger.disabled, True)
    try:
        # of an image that is spread over several files only the planes that lie in this one
        with tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False) as file:
            series = file.series
            _check_size(path, sum(math.prod(s.shape) for s in series))
            if len(series) > 1 and len({(s.shape, s.dtype) for s in series}) == 1:  # written page by page
                return np.stack([s.asarray() for s in series]), "I" + series[0].axes
            return series[0].asarray(), series[0].axes
    finally:
        logger.disabled = disabled


def _check_size(path: str, values: int) -> None:
    if values > MOST_VALUES:
        raise MicroscopeError(
            f"{path}: claims {values:,} values in all its channels, more than the {MOST_VALUES:,} that are"
            " read. Cut it into fields"
        )


def _read_picture(path: str) -> tuple[np.ndarray, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata that Pillow finds odd
        content = Path(path).read_bytes()
        image = opened(content)
        if isinstance(image, TiffImageFile):  # whatever its name
            return _read_tiff(path)
        if image.format not in PICTURES:
            raise MicroscopeError(
                f"{path}: a file of the format {image.format}, of which more than 8 bits a value might be"
                " lost. Convert it to tiff or png"
            )
        _check_size(path, image.width * image.height * len(image.getbands()))
        if is_deep(image) and len(image.getbands()) > 1:
            lower = opened(content)
            *place, form = lower.tile[0]
            if form not in ("RGB;16B", "RGBA;16B"):
                raise MicroscopeError(
                    f"{path}: colours of more than 8 bits, which are read from tiff, and from RGB and RGBA in"
                    " png. Convert it"
                )
            # Pillow keeps the first byte of a value; told that the second one is the higher, it keeps that
            lower.tile = [(*place, form[:-1] + "L")]
            return np.array(image).astype(np.uint16) << 8 | np.array(lower), "YXS"
        array = np.array(image.convert("RGB") if image.mode == "P" else image)
    return array, "YXS"[: array.ndim]


def _channels_first(array: np.ndarray, axes: str, channels: int, path: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise MicroscopeError(f"{path}: pixels of type {array.dtype}, expected integers or real numbers")
    if not array.size:
        raise MicroscopeError(f"{path}: an array of shape {list(array.shape)}, which has no pixel")
    single = [i for i, length in enumerate(array.shape) if length == 1 and axes[i] not in "YX"]
    shape, array = array.shape, array.squeeze(tuple(single))
    axes = "".join(letter for i, letter in enumerate(axes) if i not in single)
    if array.ndim == 2:
        array, axes = array[None], "C" + axes
    if array.ndim != 3:
        raise MicroscopeError(
            f"{path}: an array of shape {list(shape)}, expected height and width and one axis for channels. "
            "Choose one plane and one time, or project them"
        )
    last = axes[-1] in "SC" or (array.shape[0] != channels and array.shape[-1] == channels)
    return np.moveaxis(array, -1, 0) if last else array
