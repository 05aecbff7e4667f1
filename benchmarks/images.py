"""Two 224-pixel views of a 500 x 375 JPEG: images a second on one core, ours beside VICReg's published
pipeline on PIL images.

    python -m benchmarks.images                       # a table on stdout
    python -m benchmarks.images --json FILE           # and all numbers
    python -m benchmarks.images --folder PHOTOS       # files of your own instead of the synthetic one

Rows: `official`, torchvision's transforms on PIL images with the published parameters, to normalised float;
`ours, colour in the worker`: the same distribution (tests/test_transforms.py and test_augment.py), to
normalised float; `ours, colour on the device`: what is left to the CPU's workers, two uint8 crops and their
numbers; `decoding alone`: the limit. All pipelines take turns, image by image, in one process with one
thread; time is this process's CPU time, so that neighbours on the machine count less. `colour of a batch`:
what the device then does, here on this machine's device.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode

from benchmarks.measure import table, write
from vicjoint.files import images
from vicjoint.modalities.image import IMAGENET_MEAN, IMAGENET_STD, Pixels
from vicjoint.pairs.augment import Augment
from vicjoint.transforms.compose import Uncoloured

BATCH = 64


def photo(seed: int = 0) -> bytes:
    """A 500 x 375 JPEG of quality 90, about 64 kB: noise whose spectrum falls as natural images' does."""
    rng = np.random.default_rng(seed)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / width
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**1.55
    fields = np.fft.irfft2(spectrum, (height, width))
    fields[1:] = 0.7 * fields[:1] + 0.3 * fields[1:]  # colours go together
    fields = 128 + 55 * fields / fields.std((1, 2), keepdims=True)
    target = io.BytesIO()
    Image.fromarray(fields.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(target, "JPEG", quality=90)
    return target.getvalue()


class _Blur:
    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return (
            image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))
            if np.random.rand() < self.p
            else image
        )


def official(blur: float, solarize: float) -> Callable:
    """One view of VICReg's augmentations.py: PIL image -> normalised float [3, 224, 224]."""
    return v1.Compose(
        [
            v1.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(0.5),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v1.RandomGrayscale(0.2),
            _Blur(blur),
            v1.Lambda(lambda image: ImageOps.solarize(image) if np.random.rand() < solarize else image),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def pipelines() -> dict[str, Callable[[bytes, int], object]]:
    """{row: one image's content and a seed -> its two views}."""
    view_a, view_b = official(1.0, 0.0), official(0.1, 0.2)
    worker, device, normalise = Augment(224), Augment(224, colour="device"), Pixels()

    def by_pil(content: bytes, seed: int):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return view_a(image), view_b(image)

    def in_worker(content: bytes, seed: int):
        return [
            normalise(view)
            for view in worker.sample({"id": "photo", "bytes": content}, np.random.default_rng(seed))
        ]

    return {
        "official": by_pil,
        "ours, colour in the worker": in_worker,
        "ours, colour on the device": lambda content, seed: device.sample(
            {"id": "photo", "bytes": content}, np.random.default_rng(seed)
        ),
        "decoding alone": lambda content, seed: images.decode(content, "photo"),
    }


def rates(contents: list[bytes], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one image in each pipeline, by turns."""
    calls = pipelines()
    took = {name: [] for name in calls}
    for i in range(-3, rounds):  # three to warm up
        for name, call in calls.items():
            start = time.process_time()
            call(contents[i % len(contents)], i + 3)
            if i >= 0:
                took[name].append(time.process_time() - start)
    return took


def colour_of_a_batch(contents: list[bytes], device: torch.device) -> float:
    """Images a second (both views) of the colour transforms on the device."""
    pair = Augment(224, colour="device")
    samples = [
        pair.sample({"id": "photo", "bytes": contents[i % len(contents)]}, np.random.default_rng(i))
        for i in range(BATCH)
    ]
    views = [Uncoloured.concatenate(list(branch)) for branch in zip(*samples)]
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for view in views:
            view.to(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return BATCH / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, metavar="PHOTOS", help="a folder of JPEG files to read instead"
    )
    parser.add_argument("--rounds", type=int, default=300, help="images in each pipeline")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = (
        sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[
            : options.rounds
        ]
        if options.folder
        else []
    )
    contents = [p.read_bytes() for p in files] or [photo(seed) for seed in range(8)]
    took = rates(contents, options.rounds)
    # the pipelines' cost varies with their draws: the mean counts
    mean = {name: statistics.mean(times) for name, times in took.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {
        "file_kb": statistics.mean(map(len, contents)) / 1000,
        "images_per_second": {n: 1 / s for n, s in mean.items()},
        "times_faster": {n: mean["official"] / s for n, s in mean.items()},
        "colour_of_a_batch": colour_of_a_batch(contents, device),
    }
    print(f"two 224-pixel views of a JPEG of {results['file_kb']:.0f} kB on one core\n")
    print(
        table(
            ["pipeline", "images/s", "times the official"],
            [[n, results["images_per_second"][n], results["times_faster"][n]] for n in mean],
        )
    )
    print(
        f"\ncolour of a batch of {BATCH}, both views, on {device.type}: {results['colour_of_a_batch']:.0f}"
        " images/s"
    )
    write(options.json, results)


if __name__ == "__main__":
    main()
