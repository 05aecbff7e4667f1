"""Augmentations against PIL and torchvision on PIL images, which is what VICReg's published pipeline runs
on."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vicjoint.registry import build
from vicjoint.transforms import images as T

SIZE = 224


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A smooth colourful picture, uint8 [3, SIZE, SIZE]."""
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 14, 14), dtype=np.uint8))
    return F.resize(coarse, [SIZE, SIZE], antialias=True)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def difference(x: torch.Tensor, expected: Image.Image) -> tuple[float, float]:
    """(mean, largest) absolute difference in 8-bit levels of x [3, H, W] in [0, 1]."""
    d = (x * 255 - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs()
    return float(d.mean()), float(d.max())


def batch(image):
    return image[None].float() / 255


@pytest.mark.parametrize(
    "name, reference, mean, most",
    [
        (T.brightness, v2.functional.adjust_brightness, 0.6, 1.01),
        (T.contrast, v2.functional.adjust_contrast, 0.6, 1.6),
        (T.saturation, v2.functional.adjust_saturation, 0.9, 2.0),
    ],
)
@pytest.mark.parametrize("factor", [0.6, 0.97, 1.4])
def test_jitter_is_pils(image, name, reference, mean, most, factor):
    x = batch(image)
    name(x, torch.tensor(factor).view(1, 1, 1, 1))
    found = difference(x[0], reference(pil(image), factor))
    assert found[0] < mean and found[1] < most


@pytest.mark.parametrize("turn", [-0.1, 0.03, 0.1, 0.4])
def test_hue_is_exact_where_pil_has_8_bits(image, turn):
    x = batch(image)
    T.hue(x, torch.tensor(turn).view(1, 1, 1, 1))
    exact = F.adjust_hue(batch(image), turn)
    assert torch.allclose(x, exact, atol=1e-5)
    assert difference(x[0], F.adjust_hue(pil(image), turn))[0] < 1.5


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [28, 96, 224, 130])
def test_blur(image, sigma, size):
    small = F.resize(image, [size, size], antialias=True)
    x = batch(small)
    T.blur(x, torch.tensor(sigma).view(1, 1, 1, 1), 8)
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (steps / sigma) ** 2)
    taps /= taps.sum()
    padded = torch.nn.functional.pad(batch(small).double(), 4 * (reach,), mode="replicate")
    exact = torch.nn.functional.conv2d(padded[0][:, None], (taps[:, None] * taps)[None, None])
    assert torch.allclose(x[0].double(), exact[:, 0], atol=2e-6)
    mean, most = difference(x[0], pil(small).filter(ImageFilter.GaussianBlur(sigma)))
    # PIL's is three box filters, and the border of a small image differs most
    assert mean < 1.5 and most < 25


def test_greyscale_and_solarize_are_pils(image):
    x = batch(image)
    T.Greyscale(SIZE, p=1).apply(x, np.array([[1.0]]))
    assert difference(x[0], F.rgb_to_grayscale(pil(image), 3))[1] < 1.01
    x = batch(image)
    T.Solarize(SIZE, p=1).apply(x, np.array([[1.0]]))
    assert difference(x[0], ImageOps.solarize(pil(image)))[1] < 1e-3


def test_crop_and_resize_are_pils(image):
    crop = T.RandomResizedCrop(96)
    for seed in range(20):
        top, left, h, w = crop.box(SIZE, SIZE, np.random.default_rng(seed))
        found = crop(image, np.random.default_rng(seed))
        expected = F.resized_crop(
            pil(image), top, left, h, w, [96, 96], interpolation=F.InterpolationMode.BICUBIC
        )
        mean, most = difference(found / 255, expected)
        assert mean < 0.05 and most < 2.5


def test_boxes_have_torchvisions_distribution():
    """Share of the area and aspect of 4,000 boxes: same quantiles, within what that many draws allow."""
    ours, theirs = [], []
    torch.manual_seed(0)
    crop, reference = T.RandomResizedCrop(8), v2.RandomResizedCrop(8, antialias=True)
    rng, blank = np.random.default_rng(0), [torch.empty(3, 375, 500)]
    for _ in range(4000):
        top, left, h, w = crop.box(375, 500, rng)
        assert 0 <= top <= 375 - h and 0 <= left <= 500 - w
        ours.append((h * w / 375 / 500, math.log(w / h), top / 375, left / 500))
        p = reference.make_params(blank)
        theirs.append(
            (
                p["height"] * p["width"] / 375 / 500,
                math.log(p["width"] / p["height"]),
                p["top"] / 375,
                p["left"] / 500,
            )
        )
    quantiles = np.linspace(0.05, 0.95, 10)
    gap = np.abs(np.quantile(ours, quantiles, 0) - np.quantile(theirs, quantiles, 0))
    assert gap.max() < 0.03


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 2), (5, 7)])
def test_any_shape_can_be_cropped(height, width):
    for seed in range(30):
        assert T.RandomResizedCrop(16)(
            torch.zeros(3, height, width, dtype=torch.uint8), np.random.default_rng(seed)
        ).shape == (3, 16, 16)
    assert T.centre_crop(torch.zeros(3, height, width, dtype=torch.uint8), 16, 0.875).shape == (3, 16, 16)


@pytest.mark.parametrize("shape", [(2, 2_000), (2_000, 3), (2, 2_001), (1, 1_000)])
def test_the_centre_of_a_thin_picture_is_that_of_the_whole_resized(shape):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8))
    whole = F.resize(pixels, [n * 16 // min(shape) for n in shape], antialias=True)
    expected = F.center_crop(whole, [16, 16])
    assert (T.centre_crop(pixels, 16, 1.0).int() - expected.int()).abs().max() <= 1


def test_a_thin_picture_costs_the_memory_of_its_view():
    pixels = torch.zeros(3, 1, 10_000_000, dtype=torch.uint8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        T.centre_crop(pixels, 224, 0.875)  # whole: 1.8 TB
    assert max(event.cpu_memory_usage for event in measured.events()) < 2**23


def test_centre_crop_is_resize_256_then_224(image):
    tall = torch.cat([image, image], 1)
    expected = F.center_crop(F.resize(tall, 256, antialias=True), [224, 224])
    assert torch.equal(T.centre_crop(tall, 224, 0.875), expected)


def test_a_batch_is_coloured_as_its_images_are(image):
    """Each image by its own numbers: in a batch, in any company, the same as alone."""
    steps = [T.ColourJitter(64), T.Greyscale(64, p=0.4), T.GaussianBlur(64, p=0.5), T.Solarize(64, p=0.4)]
    rng = np.random.default_rng(1)
    images = (
        torch.stack([F.resize(image.roll(s, -1), [64, 64], antialias=True) for s in range(12)]).float() / 255
    )
    for step in steps:
        numbers = np.array([step.draw(rng) for _ in images])
        assert numbers.shape == (12, step.count) and len(np.unique(numbers[:, 0])) == 2
        together = images.clone()
        step.apply(together, numbers)
        changed = 0
        for i in range(12):
            alone = images[i : i + 1].clone()
            step.apply(alone, numbers[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=2e-6)
            changed += not torch.equal(alone[0], images[i])
        assert 0 < changed < 12


def test_numbers_are_drawn_as_stated():
    rng = np.random.default_rng(0)
    draws = np.array(
        [
            T.ColourJitter(32, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, p=0.8).draw(rng)
            for _ in range(4000)
        ]
    )
    assert draws[:, 0].mean() == pytest.approx(0.8, abs=0.03)
    for column, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)], 1):
        assert low <= draws[:, column].min() < low + 0.01 and high - 0.01 < draws[:, column].max() <= high
        assert draws[:, column].mean() == pytest.approx((low + high) / 2, abs=0.01)
    orders = {tuple(d[5:].astype(int)) for d in draws}
    assert len(orders) == 24  # every order of the four
    blurs = np.array([T.GaussianBlur(32, p=0.1).draw(rng) for _ in range(4000)])
    assert (
        blurs[:, 0].mean() == pytest.approx(0.1, abs=0.02)
        and 0.1 <= blurs[:, 1].min() < 0.11
        and 1.99 < blurs[:, 1].max() <= 2.0
    )


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "random_resized_crop", "area": [0.0, 1.0]}, "area.*: expected .*above 0"),
        ({"name": "random_resized_crop", "aspect": [2, 1]}, "aspect.*least <= most"),
        (
            {"name": "random_resized_crop", "interpolation": "cubic"},
            "interpolation is .cubic., expected bicubic or bilinear",
        ),
        ({"name": "horizontal_flip", "p": 1.5}, "p: expected a number at most 1"),
        ({"name": "colour_jitter", "hue": 0.6}, "hue: expected a number at most 0.5"),
        ({"name": "gaussian_blur", "sigma": [0.1, 40]}, "sigma is .*, expected at most 32"),
    ],
)
def test_wrong_options_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build("transform", spec, 32)
