"""The pair `augment`: two differently augmented views of one image, after VICReg's recipe by default.

    pair: {name: augment, size: 224}                                        # the paper's two views
    pair: {name: augment, size: 32, b: [{name: random_resized_crop}, {name: colour_jitter, p: 0.8}, {name: gaussian_blur, p: 0.1}]}
    pair: {name: augment, size: 224, colour: device}                        # colour and blur batched on the training device
    pair: {name: augment, size: 224, views: {global: 2, local: 6}, local_size: 96}      # multi-crop
"""

# B images, C = 3 channels, K crops of one image, N numbers of the colour transforms

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint import transforms
from vicjoint.batch import Crops
from vicjoint.images import read_record
from vicjoint.recipe_check import check_component
from vicjoint.registry import build, register

# VICReg's official augmentations.py: the views differ in blur and solarization
CROP_AND_COLOUR = ({"name": "random_resized_crop", "area": (0.08, 1.0), "interpolation": "bicubic"},
                   {"name": "horizontal_flip", "p": 0.5},
                   {"name": "colour_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
                   {"name": "greyscale", "p": 0.2})
VIEW_A = (*CROP_AND_COLOUR, {"name": "gaussian_blur", "p": 1.0, "sigma": (0.1, 2.0)}, {"name": "solarize", "p": 0.0})
VIEW_B = (*CROP_AND_COLOUR, {"name": "gaussian_blur", "p": 0.1, "sigma": (0.1, 2.0)}, {"name": "solarize", "p": 0.2})
CACHE_PIXELS = 2**16
LOCAL_AREA, GLOBAL_AREA = (0.05, 0.4), (0.4, 1.0)  # the multi-crop of SwAV and DINO: small crops see parts, large ones most of it


@dataclass
class Uncoloured:
    """Cropped pixels uint8 [B, 3, H, W] and the numbers [B, N] that their colour transforms drew. `to(device)` moves the pixels and
    colours the whole batch there, in one go: float [B, 3, H, W] in [0, 1]."""

    pixels: Tensor
    numbers: np.ndarray
    colour: list

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device, non_blocking: bool = False) -> Tensor:
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        x = torch.empty(pixels.shape, device=pixels.device)
        # a CPU works in its cache: some images at a time
        at_once = max(1, CACHE_PIXELS // pixels[0, 0].numel()) if pixels.device.type == "cpu" else len(pixels)
        for i in range(0, len(pixels), at_once):
            apply_colour(torch.div(pixels[i : i + at_once], 255, out=x[i : i + at_once]), self.numbers[i : i + at_once], self.colour)
        return x

    @staticmethod
    def concatenate(views: list["Uncoloured"]) -> "Uncoloured":
        return Uncoloured(torch.cat([v.pixels for v in views]), np.concatenate([v.numbers for v in views]), views[0].colour)


def apply_colour(x: Tensor, numbers: np.ndarray, colour: list) -> Tensor:
    """x [B, 3, H, W] in [0, 1], changed in place by each transform with its part of the numbers [B, N]."""
    ends = np.cumsum([transform.count for transform in colour])
    for transform, end in zip(colour, ends):
        transform.apply(x, numbers[:, end - transform.count : end])
    return x


class View:
    """The transforms of one view, built: geometry first, then colour."""

    def __init__(self, branch: str, specs: list[dict], size: int):
        self.steps = [_build(f"pair.{branch}.{i}", dict(spec), size) for i, spec in enumerate(specs)]
        is_colour = [hasattr(step, "apply") for step in self.steps]
        if is_colour != sorted(is_colour):
            raise ValueError(f"pair.{branch}: {specs[is_colour.index(True)]['name']} stands before a crop or flip. "
                             "Put random_resized_crop and horizontal_flip first.")
        if not any(isinstance(step, transforms.RandomResizedCrop) for step in self.steps):
            raise ValueError(f"pair.{branch}: no random_resized_crop, which gives a view its size. Put it first.")
        self.geometry = [s for s, colour in zip(self.steps, is_colour) if not colour]
        self.colour = [s for s, colour in zip(self.steps, is_colour) if colour]

    def crop(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        for step in self.geometry:
            pixels = step(pixels, rng)
        return pixels

    def __call__(self, pixels: Tensor, rng: np.random.Generator, deferred: bool):
        """uint8 [3, H, W] -> one view with a leading dimension of 1: uint8 [1, 3, size, size], or Uncoloured."""
        pixels = self.crop(pixels, rng)[None]
        numbers = np.array([[n for t in self.colour for n in t.draw(rng)]])
        if deferred:
            return Uncoloured(pixels, numbers, self.colour)
        if not self.colour:
            return pixels
        x = torch.div(pixels, 255, out=torch.empty(pixels.shape))  # planes, whatever the order of the crop's memory
        apply_colour(x, numbers, self.colour)
        return x.mul_(255).add_(0.5).to(torch.uint8)  # rounds; values are in [0, 1]


def _build(path: str, spec: dict, size: int):
    if mistakes := check_component(path, "transform", str(spec.get("name")), spec):
        raise ValueError("\n  ".join(mistakes))
    return build("transform", spec, size)


@register("pair", "augment")
class Augment:
    """Two augmentations of one image: views a and b, uint8 [1, 3, size, size] each.

    size: side of the views in pixels. a, b: their transforms, in order; null: VICReg's. centre: in evaluation the short side is
    resized to size / centre and the centre is kept. colour: worker: the colour transforms run in the workers, image by image; device:
    batched, on the training device (same distribution; workers then only decode and crop).
    views: {global: 2, local: n}: n further crops of `local_size` pixels and 5 to 40 % of the area join branch a, global crops then show
    40 to 100 %, and the objective is the mean over the pairs (crop of a, global crop of b).
    """

    views = ("image", "image")

    def __init__(self, size: int = 224, a: list[dict] | None = None, b: list[dict] | None = None, centre: float = 0.875,
                 colour: Literal["worker", "device"] = "worker", views: dict[str, int] | None = None, local_size: int = 96):
        for name, value in {"size": size, "local_size": local_size}.items():
            if value < 8:
                raise ValueError(f"pair.{name}: {value} is too small for an image. Expected 8 or more pixels.")
        if not 0 < centre <= 1:
            raise ValueError(f"pair.centre: {centre} is not a share. Expected a number above 0 and at most 1, such as 0.875.")
        counts = {"global": 2, "local": 0} | (views or {})
        if set(counts) != {"global", "local"} or counts["global"] != 2 or counts["local"] < 0:
            raise ValueError(f"pair.views: {views} is not known. Expected {{global: 2, local: n}} with n of 0 or more.")
        self.size, self.centre, self.colour, self.local = size, centre, colour, counts["local"]
        specs = {"a": VIEW_A if a is None else a, "b": VIEW_B if b is None else b}
        if self.local:
            self.small = View("a", _with_area(specs["a"], LOCAL_AREA), local_size)
            specs = {branch: _with_area(spec, GLOBAL_AREA) for branch, spec in specs.items()}
        self.a, self.b = (View(branch, list(spec), size) for branch, spec in specs.items())
        self.probe_steps = transforms.RandomResizedCrop(size, interpolation="bilinear"), transforms.HorizontalFlip(size)
        self.samples_per_record = 1
        self.crops = 1 + self.local  # of branch a

    def sample(self, record: dict, rng: np.random.Generator):
        """Raw views of both branches. Raises ImageError where the image cannot be read."""
        pixels, deferred = read_record(record), self.colour == "device"
        a, b = self.a(pixels, rng, deferred), self.b(pixels, rng, deferred)
        if self.local:
            a = Crops([a, *(self.small(pixels, rng, deferred) for _ in range(self.local))])
        return a, b

    # ---- for probes ----

    def plain(self, record: dict, branch: str = "a") -> Tensor:
        """The view without augmentation, the same for both branches: uint8 [1, 3, size, size]. Raises ImageError."""
        return transforms.centre_crop(read_record(record), self.size, self.centre)[None]

    def cropped(self, record: dict, rng: np.random.Generator) -> Tensor:
        """The view with a random crop and flip only, as linear probes are trained: uint8 [1, 3, size, size]. Raises ImageError."""
        pixels = read_record(record)
        for step in self.probe_steps:
            pixels = step(pixels, rng)
        return pixels[None]


def _with_area(specs: list[dict], area: tuple[float, float]) -> list[dict]:
    """The same transforms, with another range of areas for crops that do not state their own."""
    default = CROP_AND_COLOUR[0]["area"]
    return [{**s, "area": area} if s.get("name") == "random_resized_crop" and tuple(s.get("area", default)) == default else s for s in specs]
