"""A list of transforms, as recipes write it, made into one augmented view of an image.

view = TransformList("pair.a", [{"name": "random_resized_crop"}, {"name": "colour_jitter"}], size=224)
view_1CHW = view(pixels_CHW, rng)               # uint8 in, uint8 out
view_1CFHW = view(frames_FCHW, rng)             # all frames of a clip alike
TransformList(..., colour="device")             # gives Uncoloured: coloured in batches on the training device
"""

# B images or clips, F frames, H height, W width, N numbers of the colour transforms

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint.batch import Boxed
from vicjoint.registry import build
from vicjoint.transforms import images

CACHE_PIXELS = 2**16
Where = Literal["worker", "device"]
"""Where the colour transforms run: in the processes that read, view by view, or in batches on the training
device."""


@dataclass
class Uncoloured:
    """Cropped pixels uint8 [B, 3, H, W], or of clips [B, F, 3, H, W], and the numbers [B, N] that their
    colour transforms drew. `to(device)` moves the pixels and colours the whole batch there, in one go: float
    [B, 3, H, W] or [B, 3, F, H, W] in [0, 1].
    """

    pixels: Tensor
    numbers: np.ndarray
    colour: list

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device, non_blocking: bool = False) -> Tensor:
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        x = pixels.new_empty(pixels.shape, dtype=torch.float32)
        each, coloured = pixels.flatten(0, -4), x.flatten(0, -4)
        numbers = self.numbers.repeat(len(each) // len(pixels), 0)
        # a CPU works in its cache: some images at a time
        at_once = max(1, CACHE_PIXELS // each[0, 0].numel()) if pixels.device.type == "cpu" else len(each)
        for i in range(0, len(each), at_once):
            apply_colour(
                torch.div(each[i : i + at_once], 255, out=coloured[i : i + at_once]),
                numbers[i : i + at_once],
                self.colour,
            )
        return as_clips(x)

    def pin_memory(self) -> "Uncoloured":
        return Uncoloured(self.pixels.pin_memory(), self.numbers, self.colour)

    @staticmethod
    def concatenate(views: list["Uncoloured"]) -> "Uncoloured":
        return Uncoloured(
            torch.cat([v.pixels for v in views]), np.concatenate([v.numbers for v in views]), views[0].colour
        )


def as_clips(pixels: Tensor) -> Tensor:
    """Frames [B, F, 3, H, W] -> clips [B, 3, F, H, W]; images as they are."""
    return pixels if pixels.ndim == 4 else pixels.transpose(1, 2).contiguous()


def apply_colour(x: Tensor, numbers: np.ndarray, colour: list) -> Tensor:
    """x [B, 3, H, W] in [0, 1], changed in place by each transform with its part of the numbers [B, N]."""
    ends = np.cumsum([transform.count for transform in colour])
    for transform, end in zip(colour, ends):
        transform.apply(x, numbers[:, end - transform.count : end])
    return x


class TransformList:
    """The transforms of one view, built: geometry first, then colour. `path`: the recipe key that lists them,
    for messages. `colour`: where the latter runs."""

    def __init__(self, path: str, specs: list[dict], size: int, colour: Where = "worker"):
        self.path, self.steps = path, [build("transform", spec, size) for spec in specs]
        self.deferred = colour == "device"
        for spec, step in zip(specs, self.steps):
            if not isinstance(step, images.Geometry | images.Colour):
                raise ValueError(
                    f"{path}: transform '{spec['name']}' says neither where a view looks nor what becomes of"
                    " its colours. Inherit vicjoint.transforms.images.Geometry or Colour."
                )
        is_colour = [isinstance(step, images.Colour) for step in self.steps]
        if is_colour != sorted(is_colour):
            raise ValueError(
                f"{path}: {specs[is_colour.index(True)]['name']} stands before a crop or flip. "
                "Put random_resized_crop and horizontal_flip first."
            )
        if not any(isinstance(step, images.RandomResizedCrop) for step in self.steps):
            raise ValueError(f"{path}: no random_resized_crop, which gives a view its size. Put it first.")
        self.geometry = [s for s, colour in zip(self.steps, is_colour) if not colour]
        self.colour = [s for s, colour in zip(self.steps, is_colour) if colour]

    def crop(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        for step in self.geometry:
            pixels = step(pixels, rng)
        return pixels

    def check_boxes(self) -> None:
        """Raises ValueError where a transform does not say where its view looks."""
        for step in self.geometry:
            if type(step).boxed is images.Geometry.boxed:
                raise ValueError(
                    f"{self.path}: transform {type(step).__name__} does not say where its view looks, by"
                    " which the objective matches cells. Leave it out, or give it a method boxed(pixels, box,"
                    " rng)."
                )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The numbers [1, N] of a view's colours."""
        return np.array([[n for t in self.colour for n in t.draw(rng)]])

    def boxed(self, pixels: Tensor, rng: np.random.Generator) -> Boxed:
        """The view of uint8 [3, H, W] that a call gives, and where in them it looks."""
        box: images.Box = (0, 0, pixels.shape[-1], pixels.shape[-2])
        for step in self.geometry:
            pixels, box = step.boxed(pixels, box, rng)
        return Boxed(self.coloured(pixels[None], self.draw(rng)), torch.tensor([box], dtype=torch.float32))

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor | Uncoloured:
        """uint8 [3, H, W] -> one view with a leading dimension of 1: uint8 [1, 3, size, size]; frames [F, 3,
        H, W], all changed alike -> [1, 3, F, size, size]; or Uncoloured."""
        return self.coloured(self.crop(pixels, rng)[None], self.draw(rng))

    def coloured(self, pixels: Tensor, numbers: np.ndarray) -> Tensor | Uncoloured:
        """The view of cropped uint8 [B, 3, H, W], or of clips [B, F, 3, H, W], by what each drew [B, N]."""
        if not self.colour:
            return as_clips(pixels)
        view = Uncoloured(pixels, numbers, self.colour)
        if self.deferred:
            return view
        return view.to("cpu").mul_(255).add_(0.5).to(torch.uint8)  # rounds; values are in [0, 1]


class Resized(TransformList):
    """No transforms: squares, brought to size."""

    def __init__(self, size: int):
        self.size, self.colour = size, []

    def crop(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return images.square_frames(pixels, self.size)
