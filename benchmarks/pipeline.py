"""From video files to a batch on the device, in one process: samples a second of one core, and the share of
each stage.

    python -m benchmarks.pipeline                       # files that are made first: the rows of CASES
    python -m benchmarks.pipeline --step-ms 40          # for a GPU that takes 128 samples in so many (100)
    python -m benchmarks.pipeline recipes/video_next_frame.yaml source.name=video_folder source.root=MY_VIDEOS
    python -m benchmarks.pipeline --readers decord plain ours      # each case with each of them
    python -m benchmarks.pipeline --quick --json FILE   # few small files: does it run

Time is this process's CPU time, so that neighbours on the machine count less. Stages: open (and count the
frames), decode, convert (to RGB, with PyAV; other decoders do it as they decode), transform (cut, resize,
augment: the rest of the pair's work), collate, device (copy, and bytes to floats). epoch 1 meets each file
for the first time, epoch 2 with what its readers keep in memory. cores: how many of them feed one GPU that
takes 128 samples in --step-ms; the stage `device`, which is the GPU's, is not counted. Readers: decord,
torchcodec; plain, PyAV that decodes every frame, and counts those of each file anew in each process; ours.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import table, write
from benchmarks.video import setting
from vicjoint.data.clips import reads_clips
from vicjoint.data.reading import TaskReading, build_reading
from vicjoint.data.stream import collate
from vicjoint.recipe import load_recipe
from vicjoint.training.build import build_stream, pick_device, records_in_a_batch
from vicjoint.video import Video, index
from vicjoint.video.backends import PyAV
from vicjoint.video.write import write_mp4

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NEXT = (
    *("source.name=video_folder", "source.root={films}/12", "pair.stride=4", "pair.area=[0.3, 1.0]"),
    *("pair.size={size}", "objective={{name: vicreg}}"),
)
COLOURED = (
    "pair.{side}=[{{name: random_resized_crop, area: [0.5, 1.0]}}, {{name: colour_jitter}},"
    " {{name: greyscale}}, {{name: gaussian_blur}}]"
)
TEXT = (
    *(
        "source.root={films}/index.csv",
        "pair.a=video_{keys}",
        "a.encoder.name=conv_stack",
        "train.batch_size=16",
    ),
    *("a.modality={{name: clip, frames: 8, stride: 4, size: {size}, area: [0.3, 1.0]}}",),
    *("data.video_backend=pyav", "data.clips_per_open={clips}"),
)
CASES = (
    {
        "the main recipe": ("video_next_frame", ("source.train={train}",), {}),
        "224, next frame": ("video_next_frame", (*NEXT, "pair.windows=1"), {}),
        "224, next frame, windows 4": ("video_next_frame", (*NEXT, "pair.windows=4"), {}),
    }
    | {
        f"224, next frame, colours by the {where}": (
            "video_next_frame",
            (*NEXT, "pair.windows=1", COLOURED, COLOURED.replace("{side}", "b"), "pair.colour={where}"),
            {"where": where, "side": "a"},
        )
        for where in ("worker", "device")
    }
    | {
        f"224, clip and text, keys {keys}, {clips} a file": (
            "image_text",
            TEXT,
            {"keys": keys, "clips": clips},
        )
        for keys in (12, 250)
        for clips in (1, 4)
    }
)
READERS = ("decord", "torchcodec", "plain", "ours")
BATCH = 128  # samples of a step on the GPU
STAGES = ("open", "decode", "convert", "transform", "order", "collate", "device")


class Clock:
    """CPU seconds of each stage, without those of the stages that it calls."""

    def __init__(self):
        self.seconds, self._stack, self._since = dict.fromkeys(STAGES, 0.0), [], 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def of(self, name: str, call: Callable) -> Callable:
        """The call, its time taken."""

        @functools.wraps(call)
        def timed(*given, **named):
            with self.stage(name):
                return call(*given, **named)

        return timed

    @contextmanager
    def watching(self, task: TaskReading) -> Iterator[None]:
        """Where the stages of a task's samples are taken."""
        pair = type(task.pair)
        with (
            patch.object(Video, "__init__", self.of("open", Video.__init__)),
            patch.object(Video, "read", self.of("decode", Video.read)),
            patch.object(PyAV, "_image", self.of("convert", PyAV._image)),
            patch.object(pair, "sample", self.of("transform", pair.sample)),
            patch.object(pair, "sample_several", self.of("transform", pair.sample_several)),
        ):
            yield


@contextmanager
def reading_with(reader: str) -> Iterator[list[str]]:
    """The overrides of a recipe under which a reader reads."""
    if reader != "plain":
        yield [f"data.video_backend={'pyav' if reader == 'ours' else reader}"]
        return
    make = PyAV.__init__

    def plain(self, path):
        make(self, path)
        self.fast = False

    with patch.object(PyAV, "__init__", plain), setting("VICJOINT_VIDEO_INDEX", "0"):
        yield ["data.video_backend=pyav"]


def measure(recipe: str, overrides: list[str], step_ms: float, epochs: int = 2) -> Iterator[dict]:
    """A row for each epoch of the first pair of a recipe."""
    loaded = load_recipe(recipe, overrides)
    tasks, readers = build_reading(loaded)
    task, device = tasks[0], pick_device(loaded.train.device)
    size = records_in_a_batch(loaded, task.pair)
    clips = loaded.data.clips_per_open if reads_clips(task.pair) else 1
    stream = build_stream(task, loaded.train.seed, 0, size, clips)
    modalities = [readers[name].to(device) for name in (task.spec.a, task.spec.b)]
    for epoch in range(epochs):
        clock, places = Clock(), range(epoch * stream.epoch_length, (epoch + 1) * stream.epoch_length)
        bad, wall = [], time.perf_counter()
        with clock.watching(task):
            for first in range(0, len(places), size):
                with clock.stage("order"):
                    samples = [stream[place] for place in places[first : first + size]]
                with clock.stage("collate"):
                    batch, met = collate(samples)
                bad += met
                with clock.stage("device"):
                    on_device = batch.to(device)
                    for modality, view in zip(modalities, (on_device.a, on_device.b)):
                        modality(view)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
        number = len(places) * task.pair.samples_per_record
        whole = sum(clock.seconds.values())
        ms = 1000 * (whole - clock.seconds["device"]) / number
        yield {
            "epoch": epoch + 1,
            "samples": number,
            "bad": len(bad),
            "samples_per_second_of_a_core": 1000 / ms,
            "cpu_ms": ms,
            "wall_ms": 1000 * (time.perf_counter() - wall) / number,
            "shares": {name: seconds / whole for name, seconds in clock.seconds.items()},
            "step_ms": step_ms,
            "cores": ms * BATCH / step_ms,
        }


def make_films(folder: Path, quick: bool) -> None:
    """16 films of 10 s in H.264 with B-frames, 340 x 256, with a key frame every 12 and every 250: shapes on
    a ground with noise, which moves. And index.csv, which has each of them four times."""
    number, frames, height, width = (4, 48, 64, 80) if quick else (16, 240, 256, 340)
    rows = ["video_12,video_250,caption,split"]
    for i in range(number):
        rng = np.random.default_rng(i)
        ground = rng.normal(0, 12, (height, 2 * width, 3)) + np.linspace(60, 180, 2 * width)[:, None]
        for _ in range(30):
            y, x = rng.integers(height), rng.integers(2 * width)
            ground[y : y + 40, x : x + 50] += rng.uniform(-60, 60, 3)
        ground = ground.clip(0, 255).astype(np.uint8)
        at = (np.arange(frames) * (1 + i % 3)) % width
        film = np.stack([ground[:, x : x + width] for x in at])
        for keys in (12, 250):
            (folder / str(keys)).mkdir(exist_ok=True)
            write_mp4(folder / str(keys) / f"{i}.mp4", film, crf=23, key_every=keys)
        rows += [f"12/{i}.mp4,250/{i}.mp4,film {i},train"] * 4
    (folder / "index.csv").write_text("\n".join([*rows, "12/0.mp4,250/0.mp4,film 0,test\n"]))


def made_cases(films: str, quick: bool) -> dict[str, tuple[str, list[str]]]:
    """{row: recipe and overrides}."""
    sizes = {"films": films, "train": 16 if quick else 256, "size": 32 if quick else 224}
    smaller = ["train.batch_size=8"] * quick
    return {
        name: (str(RECIPES / f"{recipe}.yaml"), [text.format(**sizes, **own) for text in said] + smaller)
        for name, (recipe, said, own) in CASES.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", help="measure this one alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--step-ms", type=float, default=100.0, help="of 128 samples on the GPU (100)")
    parser.add_argument("--readers", nargs="+", choices=READERS, help="of videos; the recipe's, if not said")
    parser.add_argument("--quick", action="store_true", help="few small files: does it run")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = {options.recipe: (options.recipe, options.overrides)}
        if not options.recipe:
            make_films(Path(folder), options.quick)
            cases = made_cases(folder, options.quick)
        for name, (recipe, overrides) in cases.items():
            for reader in options.readers or [None]:
                with reading_with(reader) if reader else nullcontext([]) as more:
                    index.COUNTED = index.Kept(64)
                    found = list(measure(recipe, [*overrides, *more], options.step_ms))
                rows += [{"case": name, "reader": reader or "", **row} for row in found]
    print(
        table(
            ["", "reader", "epoch", "samples/s", *(f"{name}, %" for name in STAGES), "CPU ms", "cores"],
            [
                [
                    *(row["case"], row["reader"], row["epoch"], row["samples_per_second_of_a_core"]),
                    *(100 * row["shares"][name] for name in STAGES),
                    *(row["cpu_ms"], row["cores"]),
                ]
                for row in rows
            ],
        )
    )
    write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
