"""A list of transforms, as recipes write it, made into one augmented view of an image.

view = TransformList("pair.a", [{"name": "random_resized_crop"}, {"name": "colour_jitter"}], size=224)
view_1CHW = view(pixels_CHW, rng)               # uint8 in, uint8 out
view = view(pixels_CHW, rng, deferred=True)     # Uncoloured: coloured in batches on the training device
view_FCHW = view(frames_FCHW, rng)              # all frames of a clip alike
"""

# B images, H height, W width, N numbers of the colour transforms

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vicjoint.batch import Boxed
from vicjoint.registry import build
from vicjoint.transforms import images

CACHE_PIXELS = 2**16


@dataclass
class Uncoloured:
    """Cropped pixels uint8 [B, 3, H, W] and the numbers [B, N] that their colour transforms drew.
    `to(device)` moves the pixels and colours the whole batch there, in one go: float [B, 3, H, W] in [0, 1].
    """

    pixels: Tensor
    numbers: np.ndarray
    colour: list

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device, non_blocking: bool = False) -> Tensor:
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        x = pixels.new_empty(pixels.shape, dtype=torch.float32)
        # a CPU works in its cache: some images at a time
        at_once = max(1, CACHE_PIXELS // pixels[0, 0].numel()) if pixels.device.type == "cpu" else len(pixels)
        for i in range(0, len(pixels), at_once):
            apply_colour(
                torch.div(pixels[i : i + at_once], 255, out=x[i : i + at_once]),
                self.numbers[i : i + at_once],
                self.colour,
            )
        return x

    def pin_memory(self) -> "Uncoloured":
        return Uncoloured(self.pixels.pin_memory(), self.numbers, self.colour)

    @staticmethod
    def concatenate(views: list["Uncoloured"]) -> "Uncoloured":
        return Uncoloured(
            torch.cat([v.pixels for v in views]), np.concatenate([v.numbers for v in views]), views[0].colour
        )


def apply_colour(x: Tensor, numbers: np.ndarray, colour: list) -> Tensor:
    """x [B, 3, H, W] in [0, 1], changed in place by each transform with its part of the numbers [B, N]."""
    ends = np.cumsum([transform.count for transform in colour])
    for transform, end in zip(colour, ends):
        transform.apply(x, numbers[:, end - transform.count : end])
    return x


class TransformList:
    """The transforms of one view, built: geometry first, then colour. `path`: the recipe key that lists them,
    for messages."""

    def __init__(self, path: str, specs: list[dict], size: int):
        self.path, self.steps = path, [build("transform", spec, size) for spec in specs]
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

    def boxed(self, pixels: Tensor, rng: np.random.Generator, deferred: bool = False) -> Boxed:
        """The view of uint8 [3, H, W] that a call gives, and where in them it looks."""
        box: images.Box = (0, 0, pixels.shape[-1], pixels.shape[-2])
        for step in self.geometry:
            pixels, box = step.boxed(pixels, box, rng)
        return Boxed(self._coloured(pixels, rng, deferred), torch.tensor([box], dtype=torch.float32))

    def __call__(self, pixels: Tensor, rng: np.random.Generator, deferred: bool = False):
        """uint8 [3, H, W] -> one view with a leading dimension of 1: uint8 [1, 3, size, size], or Uncoloured;
        frames [F, 3, H, W], all changed alike -> [F, 3, size, size]."""
        return self._coloured(self.crop(pixels, rng), rng, deferred)

    def _coloured(self, pixels: Tensor, rng: np.random.Generator, deferred: bool):
        pixels = pixels if pixels.ndim == 4 else pixels[None]
        numbers = np.array([[n for t in self.colour for n in t.draw(rng)]]).repeat(len(pixels), 0)
        if deferred:
            return Uncoloured(pixels, numbers, self.colour)
        if not self.colour:
            return pixels
        # planes, whatever the order of the crop's memory
        x = torch.div(pixels, 255, out=torch.empty(pixels.shape))
        apply_colour(x, numbers, self.colour)
        return x.mul_(255).add_(0.5).to(torch.uint8)  # rounds; values are in [0, 1]
