"""Image augmentations, each in two steps: numbers are drawn on the host from the sample's own generator, then
they are applied.

    crop = RandomResizedCrop(size=224)
    view_CHW = crop(pixels_CHW, rng)                        # geometry: uint8 in, uint8 out, one image
    numbers = blur.draw(rng)                                # colour: `count` numbers per image ...
    blur.apply(x_BCHW, numbers_BN)  # ... applied to a batch in [0, 1], in place, on any device

So the same code colours one image in a worker or a whole batch on the GPU, and a sample stays a function of
its generator. The parameters mean what they mean in torchvision and in VICReg's augmentations, which work on
PIL images; results differ from those by the rounding to 8 bits between steps, by PIL's 8-bit hue, and by its
approximation of a Gaussian with boxes (tests say how much).
"""

# B images, C = 3 channels, H height, W width, N numbers of one transform

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from vicjoint.options import Ascending, Positive, PositiveShare, Share
from vicjoint.registry import register

RGB_TO_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL
INTERPOLATION = ("bicubic", "bilinear")


Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in the pixels of a picture; left above right where it is mirrored."""


class Geometry:
    """Where a view looks: uint8 [3, H, W], or frames [F, 3, H, W] which all see the same, and the generator
    -> uint8 pixels."""

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError

    def boxed(self, pixels: Tensor, box: Box, rng: np.random.Generator) -> tuple[Tensor, Box]:
        """The same pixels as a call gives, and the box that they show, of pixels that show `box`. One that
        does not say where it looks cannot stand in a pair that has to (`Pair.give_boxes`)."""
        raise NotImplementedError


class Colour:
    """What becomes of its values, in two steps. `count`: numbers that an image draws."""

    count: int

    def draw(self, rng: np.random.Generator) -> list[float]:
        raise NotImplementedError

    def apply(self, x: Tensor, numbers: np.ndarray) -> None:
        """x [B, 3, H, W] in [0, 1], changed in place with the numbers [B, count] of each image."""
        raise NotImplementedError


# ---- geometry ----


@register("transform", "random_resized_crop")
class RandomResizedCrop(Geometry):
    """A crop whose share of the area is in `area` and whose width / height is in `aspect` (log-uniform),
    resized to the pair's size with antialiasing; after ten tries that do not fit, the largest centre crop
    (torchvision's rule)."""

    def __init__(
        self,
        size: int,
        /,
        area: Annotated[tuple[PositiveShare, PositiveShare], Ascending] = (0.08, 1.0),
        aspect: Annotated[tuple[Positive, Positive], Ascending] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
    ):
        if interpolation not in INTERPOLATION:
            raise ValueError(
                f"transform 'random_resized_crop': interpolation is '{interpolation}', expected"
                f" {' or '.join(INTERPOLATION)}."
            )
        self.size, self.area, self.aspect, self.interpolation = size, area, aspect, interpolation

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        low, high = np.log(self.aspect)
        for _ in range(10):
            area, ratio = height * width * rng.uniform(*self.area), math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
        w, h = (
            (width, min(height, round(width / ratio)))
            if width / height < ratio
            else (min(width, round(height * ratio)), height)
        )
        h, w = max(1, h), max(1, w)
        return (height - h) // 2, (width - w) // 2, h, w

    def boxed(self, pixels: Tensor, box: Box, rng: np.random.Generator) -> tuple[Tensor, Box]:
        cut = self.box(*pixels.shape[-2:], rng)
        return self._resized(pixels, cut), inside(box, cut, *pixels.shape[-2:])

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return self._resized(pixels, self.box(*pixels.shape[-2:], rng))

    def _resized(self, pixels: Tensor, cut: tuple[int, int, int, int]) -> Tensor:
        top, left, h, w = cut
        part = pixels[..., top : top + h, left : left + w]
        # twice as quick as planes
        part = part.view(-1, *part.shape[-3:]).contiguous(memory_format=torch.channels_last)
        view = nn.functional.interpolate(
            part, (self.size, self.size), mode=self.interpolation, antialias=True
        )
        return view.view(*pixels.shape[:-2], self.size, self.size)


@register("transform", "horizontal_flip")
class HorizontalFlip(Geometry):
    """Left and right change places with probability `p`."""

    def __init__(self, size: int, /, p: Share = 0.5):
        self.p = p

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        return self.boxed(pixels, (0, 0, 0, 0), rng)[0]

    def boxed(self, pixels: Tensor, box: Box, rng: np.random.Generator) -> tuple[Tensor, Box]:
        left, top, right, bottom = box
        return (pixels.flip(-1), (right, top, left, bottom)) if rng.random() < self.p else (pixels, box)


def inside(box: Box, cut: tuple[int, int, int, int], height: int, width: int) -> Box:
    """What a cut (top, left, height, width) out of height x width pixels shows, where these show `box`."""
    (left, top, right, bottom), (y, x, h, w) = box, cut
    across, down = (right - left) / width, (bottom - top) / height
    return left + x * across, top + y * down, left + (x + w) * across, top + (y + h) * down


def centre_crop(pixels: Tensor, size: int, share: float) -> Tensor:
    """uint8 [3, H, W] -> [3, size, size]: the short side to size / share, then the centre (ImageNet's
    evaluation: 256 and 224)."""
    shorter = min(pixels.shape[-2:])
    # of a wide or thin picture the ends are never seen, and would take gigabytes once resized; the middle
    # stays the middle
    pixels = F.center_crop(pixels, [n - max(0, (n - 4 * shorter) // 2 * 2) for n in pixels.shape[-2:]])
    height, width = pixels.shape[-2:]
    scale = round(size / share) / shorter
    if scale != 1:
        shape = [max(size, round(height * scale)), max(size, round(width * scale))]
        pixels = F.resize(pixels, shape, interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return F.center_crop(pixels, [size, size])


def of_picture(size: int, share: float) -> dict[str, Any]:
    """`centre_crop` in the words of transformers' image processors, and the shape of what it gives."""
    return {
        "shape": [3, size, size],
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(size / share)},
        "resample": 2,  # PIL's number of bilinear, with antialiasing
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
    }


def cut(squares: Tensor, rng: np.random.Generator | None, area: tuple[float, float], flip: float) -> Tensor:
    """One crop [F, 3, S', S'] of squares [F, 3, S, S], a random `area` (share: least, most) of them, for all
    frames, mirrored with probability `flip`. Without rng the whole square."""
    if rng is None:
        return squares
    square = squares.shape[-1]
    side = max(1, round(square * rng.uniform(*area) ** 0.5))
    top, left = (int(rng.integers(0, square - side + 1)) for _ in range(2))
    frames = squares[..., top : top + side, left : left + side]
    return frames.flip(-1) if rng.random() < flip else frames


def square_frames(
    squares: Tensor,
    size: int,
    rng: np.random.Generator | None = None,
    area: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.0,
) -> Tensor:
    """uint8 [F, 3, S, S] -> [F, 3, size, size]: cut, and brought to size."""
    frames = cut(squares, rng, area, flip)
    return frames if frames.shape[-1] == size else F.resize(frames, [size, size], antialias=True)


# ---- colour: a batch in [0, 1], changed in place ----


@register("transform", "colour_jitter")
class ColourJitter(Colour):
    """With probability `p`: brightness, contrast and saturation times a factor within 1 +- their value, hue
    turned by up to `hue` of the circle either way, in random order."""

    count = 9  # active, four values, their order

    def __init__(
        self,
        size: int,
        /,
        brightness: Share = 0.4,
        contrast: Share = 0.4,
        saturation: Share = 0.2,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
        p: Share = 0.8,
    ):
        self.reach, self.p = (brightness, contrast, saturation, hue), p

    def draw(self, rng: np.random.Generator) -> list[float]:
        values = [rng.uniform(middle - r, middle + r) for r, middle in zip(self.reach, (1, 1, 1, 0))]
        return [float(rng.random() < self.p), *values, *rng.permutation(4).astype(float)]

    def apply(self, x: Tensor, numbers: np.ndarray) -> None:
        operations = (brightness, contrast, saturation, hue)
        for place in range(4):
            for which, operation in enumerate(operations):
                if not self.reach[which]:  # changes nothing, at the price of a conversion to HSV
                    continue
                chosen = (numbers[:, 0] > 0) & (numbers[:, 5 + place] == which)
                on_some(x, chosen, operation, numbers[:, 1 + which])


@register("transform", "greyscale")
class Greyscale(Colour):
    """All three channels become the luminance, with probability `p`."""

    count = 1

    def __init__(self, size: int, /, p: Share = 0.2):
        self.p = p

    def draw(self, rng: np.random.Generator) -> list[float]:
        return [float(rng.random() < self.p)]

    def apply(self, x: Tensor, numbers: np.ndarray) -> None:
        on_some(x, numbers[:, 0] > 0, lambda part, _: part.copy_(grey(part).expand_as(part)), numbers[:, 0])


@register("transform", "gaussian_blur")
class GaussianBlur(Colour):
    """With probability `p`, a Gaussian blur whose standard deviation in pixels is uniform in `sigma`."""

    count = 2

    def __init__(
        self,
        size: int,
        /,
        p: Share = 0.5,
        sigma: Annotated[tuple[Positive, Positive], Ascending] = (0.1, 2.0),
    ):
        if sigma[1] > size:
            raise ValueError(
                f"transform 'gaussian_blur': sigma is {list(sigma)}, expected at most {size}, the view's"
                " size."
            )
        self.p, self.sigma = p, sigma

    def draw(self, rng: np.random.Generator) -> list[float]:
        return [float(rng.random() < self.p), rng.uniform(*self.sigma)]

    def apply(self, x: Tensor, numbers: np.ndarray) -> None:
        chosen = numbers[:, 0] > 0
        radius = math.ceil(3 * numbers[chosen, 1].max(initial=0))  # known on the host
        on_some(x, chosen, lambda part, sigma: blur(part, sigma, radius), numbers[:, 1])


@register("transform", "solarize")
class Solarize(Colour):
    """Values of `threshold` (of 255) and above are inverted, with probability `p`."""

    count = 1

    def __init__(self, size: int, /, p: Share = 0.2, threshold: float = 128):
        self.p, self.limit = p, (threshold - 0.5) / 255  # values lie between the 8-bit levels

    def draw(self, rng: np.random.Generator) -> list[float]:
        return [float(rng.random() < self.p)]

    def apply(self, x: Tensor, numbers: np.ndarray) -> None:
        on_some(
            x,
            numbers[:, 0] > 0,
            lambda part, _: part.copy_(torch.where(part >= self.limit, 1 - part, part)),
            numbers[:, 0],
        )


def on_some(x: Tensor, chosen: np.ndarray, operation, values: np.ndarray) -> None:
    """`operation(part, values_of_part [n, 1, 1, 1])` in place on the images that are chosen [B]. `chosen` and
    `values` are on the host, so nothing waits for the device."""
    places = np.flatnonzero(chosen)
    if len(places) == 0:
        return
    values = (
        torch.from_numpy(values[places].astype(np.float32)).view(-1, 1, 1, 1).to(x.device, non_blocking=True)
    )
    if len(places) == len(x):
        operation(x, values)
        return
    places = torch.from_numpy(places).to(x.device, non_blocking=True)
    part = x[places]
    operation(part, values)
    x[places] = part


# Each of these changes x [B, 3, H, W] in [0, 1] in place; values are [B, 1, 1, 1].


def grey(x: Tensor) -> Tensor:
    """Luminance [B, 1, H, W]."""
    r, g, b = RGB_TO_GREY
    return (x[:, :1] * r).add_(x[:, 1:2], alpha=g).add_(x[:, 2:], alpha=b)


def brightness(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> None:
    mean = grey(x).mean((2, 3), keepdim=True)
    x.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> None:
    luminance = grey(x)
    x.mul_(factor).add_(luminance.mul_(1 - factor)).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> None:
    """Turn the hue by a share of the circle, at the same HSV value and saturation."""
    r, g, b = x.split(1, 1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    sixth = (1 / 6) / chroma.clamp_min(1e-6)  # grey: any hue will do, its chroma is 0
    # 1 where it is, else 0; quicker than comparing and choosing
    largest = lambda channel: (channel - value).sign_().add_(1)
    angle = torch.lerp((r - g).mul_(sixth).add_(2 / 3), (b - r).mul_(sixth).add_(1 / 3), largest(g))
    angle.lerp_((g - b).mul_(sixth), largest(r)).add_(turn)  # in circles; red 0, green 1/3, blue 2/3
    # a channel has the full value within 1/6 of its own hue, and lost its chroma beyond 1/3
    for channel in range(3):
        away = angle - channel / 3
        away = away.sub_(away.round()).abs_()
        torch.addcmul(
            value, chroma, away.mul_(6).sub_(1).clamp_(0, 1), value=-1, out=x[:, channel : channel + 1]
        )


def blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    """Gaussian of standard deviation `sigma` pixels, cut at the pixel above 3 sigma, which is at most
    `radius`; beyond the border the edge pixels go on. Shifted sums along rows, then columns: for such small
    kernels quicker than convolutions.
    """
    distance = torch.arange(radius + 1, device=x.device)
    taps = torch.exp(-0.5 * (distance / sigma.view(-1, 1)).square())
    taps = taps.masked_fill_(distance > (3 * sigma.view(-1, 1)).ceil(), 0)
    taps = (taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))).view(-1, radius + 1, 1, 1, 1)
    size = x.shape[-1]
    for dimension, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        y = nn.functional.pad(x, padding, mode="replicate")
        torch.mul(y.narrow(dimension, radius, size), taps[:, 0], out=x)
        for k in range(1, radius + 1):
            x.addcmul_(
                y.narrow(dimension, radius - k, size) + y.narrow(dimension, radius + k, size), taps[:, k]
            )
