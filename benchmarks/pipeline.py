"""From video files to a batch on the device, in one process: samples a second of one core, and the share of
each stage.

    python -m benchmarks.pipeline                       # files that are made first: the rows of CASES
    python -m benchmarks.pipeline --step-ms 40          # for a GPU that takes a batch in so many (100)
    python -m benchmarks.pipeline recipes/video_next_frame.yaml source.name=video_folder source.root=MY_VIDEOS
    python -m benchmarks.pipeline --quick --json FILE   # few small files: does it run

Time is this process's CPU time, so that neighbours on the machine count less. Stages: open (and count the
frames), decode, convert (to RGB, with PyAV; other decoders do it as they decode), transform (cut, resize,
augment: the rest of the pair's work), collate, device (copy, and bytes to floats). epoch 1 meets each file
for the first time, epoch 2 with what its readers keep in memory. cores: how many of them feed one GPU that
takes a batch of the recipe in --step-ms; the stage `device`, which is the GPU's, is not counted.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import table, write
from vicjoint.data.reading import TaskReading, build_reading
from vicjoint.data.stream import collate
from vicjoint.recipe import load_recipe
from vicjoint.training.build import build_stream, pick_device, records_in_a_batch
from vicjoint.video import Video
from vicjoint.video.backends import PyAV
from vicjoint.video.write import write_mp4

MAIN = str(Path(__file__).resolve().parents[1] / "recipes" / "video_next_frame.yaml")
CLIPS = (
    *("source.name=video_folder", "source.root={films}", "pair.stride=4", "pair.area=[0.3, 1.0]"),
    *("pair.size={size}", "objective={{name: vicreg}}"),
)
CASES = {
    "the main recipe": (MAIN, ("source.train={train}",)),
    "clips of 224": (MAIN, (*CLIPS, "pair.windows=1")),
    "clips of 224, 4 of a file": (MAIN, (*CLIPS, "pair.windows=4")),
}
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
        ):
            yield


def measure(recipe: str, overrides: list[str], step_ms: float, epochs: int = 2) -> Iterator[dict]:
    """A row for each epoch of the first pair of a recipe."""
    loaded = load_recipe(recipe, overrides)
    tasks, readers = build_reading(loaded)
    task, device = tasks[0], pick_device(loaded.train.device)
    size = records_in_a_batch(loaded, task.pair)
    stream = build_stream(task, loaded.train.seed, 0, size)
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
            "batch": size * task.pair.samples_per_record,
            "step_ms": step_ms,
            "cores": ms * size * task.pair.samples_per_record / step_ms,
        }


def make_films(folder: Path, quick: bool) -> None:
    """H.264 with B-frames, a key frame every 12: 16 films of 10 s, 340 x 256; some shapes on a ground with
    noise that move."""
    number, frames, height, width = (4, 48, 64, 80) if quick else (16, 240, 256, 340)
    for i in range(number):
        rng = np.random.default_rng(i)
        ground = rng.normal(0, 12, (height, 2 * width, 3)) + np.linspace(60, 180, 2 * width)[:, None]
        for _ in range(30):
            y, x = rng.integers(height), rng.integers(2 * width)
            ground[y : y + 40, x : x + 50] += rng.uniform(-60, 60, 3)
        ground = ground.clip(0, 255).astype(np.uint8)
        at = (np.arange(frames) * (1 + i % 3)) % width
        write_mp4(folder / f"{i}.mp4", np.stack([ground[:, x : x + width] for x in at]), crf=23)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", help="measure this one alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--step-ms", type=float, default=100.0, help="of a batch on the GPU (100)")
    parser.add_argument("--quick", action="store_true", help="few small files: does it run")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as films:
        cases = {options.recipe: (options.recipe, options.overrides)} if options.recipe else CASES
        if not options.recipe:
            make_films(Path(films), options.quick)
        for name, (recipe, overrides) in cases.items():
            made = {
                "films": films,
                "train": 16 if options.quick else 256,
                "size": 32 if options.quick else 224,
            }
            said = [text.format(**made) if not options.recipe else text for text in overrides]
            if options.quick and not options.recipe:
                said.append("train.batch_size=8")
            rows += [{"case": name, **row} for row in measure(recipe, said, options.step_ms)]
    print(
        table(
            ["", "epoch", "samples/s", *(f"{name}, %" for name in STAGES), "CPU ms", "batch", "cores"],
            [
                [
                    *(row["case"], row["epoch"], row["samples_per_second_of_a_core"]),
                    *(100 * row["shares"][name] for name in STAGES),
                    *(row["cpu_ms"], row["batch"], row["cores"]),
                ]
                for row in rows
            ],
        )
    )
    write(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
