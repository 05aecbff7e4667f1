"""What one GPU makes of this program: rates of the machine, objectives, training of large recipes.

    python -m benchmarks.gpu --json FILE     # within eight minutes on one H200
    python -m benchmarks.gpu --small         # all parts in tiny shapes, on any machine: does it run

rates: products of matrices in float32, in TF32 and in bfloat16, which are the ceilings; copies inside the
device and to it.
objectives: forward and backward beside the official or plain form (benchmarks/plain.py), by the type of the
embeddings and of the products; of_ceiling: share of the rate of a product, float32 for bfloat16 embeddings,
since objectives compute in it. health: the line that a run writes every 20 steps.
training: samples a second of whole steps. data memory: one batch that is on the device already; files: the
training loop, from JPEG, mp4 and wav files that are made first. of_ceiling: the model's operations, forward
and backward, as a share of the rate of a product in bfloat16, or TF32 for fp32, whose convolutions use it.
waiting: share of the time in which the loop had no batch. mib: the most that the device held.

Each measurement is printed, and written with those before it, as soon as it is there. Exit code 1: one
failed.
"""

import argparse
import contextlib
import csv
import gc
import io
import json
import os
import statistics
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.images import photo
from benchmarks.measure import interleaved, write
from benchmarks.objective import call, inputs
from vicjoint import metrics
from vicjoint.accumulate import backward
from vicjoint.recipe import load_recipe
from vicjoint.registry import ComponentError
from vicjoint.training.build import Parts, build_parts
from vicjoint.training.log import MetricsLog
from vicjoint.training.loop import branch_names, fit, wrap
from vicjoint.training.saving import Saver
from vicjoint.training.steps import update
from vicjoint.training.stopping import StopSignal
from vicjoint.training.trackers import Trackers
from vicjoint.video.write import RATE_FPS, write_mp4

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PARTS = ("rates", "objectives", "health", "files", "training")
SECONDS = 0.5  # of rounds of a small measurement
PRECISIONS = ("fp32", "tf32", "bf16")
SHAPES = {
    "vicreg": [(256, 8192), (1024, 8192), (2048, 8192), (4096, 2048), (16384, 1024)],
    "barlow_twins": [(2048, 8192)],
    "nt_xent": [(4096, 512)],
    "clip": [(4096, 512)],
}
FORMS = {"vicreg": "official", "barlow_twins": "plain", "nt_xent": "plain", "clip": "plain"}
SMALL_SHAPES = {name: [(16, 64)] for name in SHAPES}
PLAIN = ("evaluate.probes=[]", "evaluate.last=false", "evaluate.every=null", "checkpoint.every=1000000")

# name -> (recipe, overrides, those of --small); {files} is the folder of the files
TRAINED = {
    "imagenet, ResNet-50": (
        "imagenet",
        ["source={{name: image_folder, root: {files}/images, test_fraction: 0.1}}", "train.batch_size=256"],
        ["pair.size=32", "a.encoder={{name: conv, width: 4}}", "a.expander=[32, 32]", "train.batch_size=8"],
    ),
    "clip and frame, r3d_18": (
        "video_next_frame",
        [
            "source={{name: video_folder, root: {files}/videos, test_fraction: 0.1}}",
            "pair={{name: next_frame, frames: 16, stride: 2, size: 112, windows: 4}}",
            "a.encoder={{name: r3d_18}}",
            "b.encoder={{name: resnet18}}",
            "train.batch_size=128",
            *(f"{side}.expander=[2048, 2048, 2048]" for side in "ab"),
        ],
        [
            "pair.size=32",
            "pair.frames=4",
            "a.encoder={{name: conv_stack, frames: 4, width: 4}}",
            "b.encoder={{name: conv, width: 4}}",
            "a.expander=[32, 32]",
            "b.expander=[32, 32]",
            "train.batch_size=8",
        ],
    ),
    "clip and frame, ViT over frames": (
        "video_next_frame",
        [
            "source={{name: video_folder, root: {files}/videos, test_fraction: 0.1}}",
            "pair={{name: next_frame, frames: 8, stride: 2, size: 224, windows: 4}}",
            "a.encoder={{name: frames_transformer, image: {{name: vit_b_16}}}}",
            "b.encoder={{name: vit_b_16}}",
            "train.batch_size=32",
            *(f"{side}.expander=[2048, 2048, 2048]" for side in "ab"),
        ],
        [
            "pair.size=32",
            "a.encoder={{name: frames_transformer, dim: 16, image: {{name: conv, width: 4}}}}",
            "b.encoder={{name: conv, width: 4}}",
            "a.expander=[32, 32]",
            "b.expander=[32, 32]",
            "train.batch_size=8",
        ],
    ),
    "video, audio and text": (
        "audio_video_text",
        [
            "source={{name: table, root: {files}/index.csv, split: split}}",
            "branches.video.modality={{name: clip, frames: 16, window: 2.0, size: 112}}",
            "branches.video.encoder={{name: r3d_18}}",
            "branches.audio.modality={{name: audio, rate_hz: 16000, seconds: 2.0}}",
            "branches.audio.encoder={{name: resnet18_mel}}",
            "branches.text.encoder={{name: transformer, width: 512, layers: 6, heads: 8}}",
            *(f"branches.{name}.expander=[2048, 2048, 2048]" for name in ("video", "audio", "text")),
            "train.batch_size=64",
        ],
        [
            "branches.video.modality={{name: clip, frames: 4, window: 2.0, size: 32}}",
            "branches.video.encoder={{name: conv_stack, frames: 4, width: 4}}",
            "branches.audio.encoder={{name: conv_mel, width: 4}}",
            "branches.text.encoder={{name: words}}",
            *(f"branches.{name}.expander=[32, 32]" for name in ("video", "audio", "text")),
            "train.batch_size=8",
        ],
    ),
}


class Report:
    """What was measured so far: printed, and written into a file, as it comes; nothing is begun after so many
    minutes. `failed`: whether a measurement did."""

    def __init__(self, path: str | None, minutes: float):
        self.path, self.found, self.failed = path, {}, False
        self.end = time.monotonic() + 60 * minutes

    def add(self, part: str, measure: Callable[[], dict], **about) -> dict:
        """A row: what it is about, and what `measure` finds, or why it finds nothing."""
        began = time.monotonic()
        if began > self.end:
            found = {"left_out": "no time left (--minutes)"}
        else:
            try:
                found = measure()
            except ComponentError as error:  # a library that is not installed
                found = {"left_out": str(error).splitlines()[0]}
            except Exception as error:  # what was measured before, and what follows, is not lost with it
                self.failed, found = True, {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        row = {**about, **found}
        self.found.setdefault(part, []).append(row)
        said = "  ".join(f"{name} {shown(value)}" for name, value in row.items() if value is not None)
        print(f"{part}: {said}  ({time.monotonic() - began:.0f} s)", flush=True)
        write(self.path, self.found)
        return row


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def free_memory() -> None:
    """Of what was measured before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def peak() -> Iterator[dict]:
    """`mib`: the most that the device held inside, None without one."""
    found: dict = {"mib": None}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield found
    if torch.cuda.is_available():
        found["mib"] = torch.cuda.max_memory_allocated() / 2**20


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


@contextlib.contextmanager
def products(precision: str) -> Iterator[torch.dtype]:
    """Inside, products of float32 matrices are taken so; gives the type of the matrices."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield torch.bfloat16 if precision == "bf16" else torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


# ---- rates ----


def rate_of_products(precision: str, size: int) -> dict:
    with products(precision) as dtype:
        x = torch.randn(size, size, device=device()).to(dtype)
        best = min(interleaved({"product": lambda: x @ x}, SECONDS)["product"])
    return {"tflops": 2 * size**3 / best / 1e12}


def rate_of_copies(mib: int) -> dict:
    """GB a second: inside the device, read and written; and to it, from pinned memory."""
    inside = torch.empty(mib * 2**18, device=device())
    host = torch.empty(mib * 2**18, pin_memory=torch.cuda.is_available())
    copies = {"inside": lambda: inside.clone(), "to_device": lambda: inside.copy_(host, non_blocking=True)}
    best = {name: min(took) for name, took in interleaved(copies, SECONDS).items()}
    return {"inside": 2 * mib / 1024 / best["inside"], "to_device": mib / 1024 / best["to_device"]}


# ---- objectives ----


def objective(name: str, n: int, d: int, precision: str, ceilings: dict[str, float]) -> dict:
    with products(precision) as dtype:
        z_a, z_b = inputs(n, d, dtype)
        forms = ("ours", FORMS[name])
        calls = {form: lambda form=form: call(name, form, z_a, z_b) for form in forms}
        took = interleaved(calls, SECONDS)
        ours, other = (median(took[form]) for form in forms)
        held = {}
        for form in forms:
            z_a.grad = z_b.grad = None
            with peak() as most:
                before = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0
                call(name, form, z_a, z_b)
            held[form] = None if most["mib"] is None else most["mib"] - before
    found = {"ms": 1000 * ours, f"{forms[1]}_ms": 1000 * other, "times_faster": other / ours}
    if name == "vicreg":  # two products per branch, value and gradient
        ceiling = ceilings["tf32" if precision == "tf32" else "fp32"]
        found["of_ceiling"] = 8 * n * d * min(n, d) / min(took["ours"]) / 1e12 / ceiling
    return found | {"mib": held["ours"], f"{forms[1]}_mib": held[forms[1]]}


def health(n: int, d: int) -> dict:
    z_a, z_b = (z.detach() for z in inputs(n, d))
    return {"ms": 1000 * median(interleaved({"health": lambda: metrics.health(z_a, z_b)}, SECONDS)["health"])}


# ---- training ----


def make_files(folder: Path, small: bool) -> dict:
    """images/CLASS/*.jpg, short sides of 256 to 500 pixels; videos/*.mp4 of three seconds; index.csv with the
    columns video, audio (wav), text and split."""
    photos, pictures, films = (3, 24, 12) if small else (48, 1024, 96)
    began, rng = time.monotonic(), np.random.default_rng(0)
    pool = [Image.open(io.BytesIO(photo(seed))) for seed in range(photos)]
    shortest = rng.integers(256, 501, pictures)
    height, width = (48, 64) if small else (240, 320)

    def picture(i: int) -> None:
        path = folder / "images" / f"class_{i % 8}" / f"{i}.jpg"
        factor = shortest[i] / min(pool[i % photos].size)
        size = [round(side * factor) for side in pool[i % photos].size]
        pool[i % photos].resize(size).save(path, "JPEG", quality=90)

    def film(i: int) -> None:
        source, speed = np.asarray(pool[i % photos]), 1 + i % 3
        room = [source.shape[0] - height, source.shape[1] - width]
        starts = [(speed * t % room[0], (speed * t + 7 * i) % room[1]) for t in range(3 * RATE_FPS)]
        frames = np.stack([source[y : y + height, x : x + width] for y, x in starts])
        write_mp4(folder / "videos" / f"{i}.mp4", frames)
        wave_of(folder / f"{i}.wav", np.sin(np.arange(3 * 16000) * (0.05 + 0.002 * i)))

    for name in ("videos", *(f"images/class_{i}" for i in range(8))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image in pool:
        image.load()  # once, not in several threads
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(picture, range(pictures)))
        list(threads.map(film, range(films)))
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "audio", "text", "split"])
        for i in range(films):
            split = "test" if i % 12 == 0 else "train"
            rows.writerow(
                [f"videos/{i}.mp4", f"{i}.wav", f"a tone of number {i} over photo {i % photos}", split]
            )
    return {"pictures": pictures, "films": films, "seconds": time.monotonic() - began}


def wave_of(path: Path, sound: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes((sound * 20000).astype("<i2").tobytes())


def built(name: str, files: Path, small: bool, precision: str, steps: int, workers: int) -> Parts:
    recipe, overrides, smaller = TRAINED[name]
    written = [text.format(files=files) for text in (overrides + smaller if small else overrides)]
    whole = [f"train.precision={precision}", f"train.steps={steps}", f"data.workers={workers}"]
    return build_parts(load_recipe(str(RECIPES / f"{recipe}.yaml"), [*written, *whole, *PLAIN]))


def from_memory(name: str, files: Path, small: bool, precision: str, ceilings: dict[str, float]) -> dict:
    """Steps on one batch that is on the device already, of each pair of the recipe in turn."""
    free_memory()
    with quiet():
        parts = built(name, files, small, precision, steps=100, workers=0)
        turns = [(task, next(parts.batches_of(task, 1))[0].to(parts.device)) for task in parts.tasks]
    forward = wrap(parts)
    parts.model.train()

    def steps() -> None:
        for task, batch in turns:
            backward(forward, task.objective, batch, parts.recipe.train, task.number, task.gradient_b)
            update(parts)

    with FlopCounterMode(display=False) as counter:
        steps()
    operations = counter.get_total_flops() / len(turns)
    with peak() as most:
        took = interleaved({"steps": steps}, seconds=0 if small else 5)["steps"]
    seconds = median(took) / len(turns)
    ceiling = ceilings["bf16" if precision == "bf16" else "tf32"]
    return {
        "samples_per_second": parts.recipe.train.batch_size / seconds,
        "step_ms": 1000 * seconds,
        "of_ceiling": operations / seconds / 1e12 / ceiling,
        "mib": most["mib"],
    }


def from_files(name: str, files: Path, small: bool, steps: int, warm: int, workers: int) -> dict:
    """The training loop, without its first steps."""
    free_memory()
    with tempfile.TemporaryDirectory() as out, peak() as most, quiet():
        parts, folder = built(name, files, small, "bf16", steps, workers), Path(out)
        pairs, size = branch_names(parts)["pairs"], parts.recipe.train.batch_size
        with Trackers(parts.recipe, folder, 0) as no_trackers:
            with MetricsLog(folder, 0, steps, size, pairs, no_trackers) as log:
                fit(parts, folder, 0, log, StopSignal(), lambda: None, Saver(parts, folder))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    counted = [json.loads(line) for line in lines][warm:]
    seconds, waited = (sum(line[key] for line in counted) for key in ("seconds", "waited"))
    return {
        "samples_per_second": size * len(counted) / seconds,
        "step_ms": 1000 * seconds / len(counted),
        "waiting": waited / seconds,
        "mib": most["mib"],
        "workers": workers,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What a run prints goes nowhere."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny shapes, on any machine")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers, after each measurement")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing after so many (7)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.small:
        print("no GPU here, nothing to measure. --small runs all parts in tiny shapes on the CPU.")
        return 0
    report, small = Report(options.json, options.minutes), options.small
    size, shapes = (128, SMALL_SHAPES) if small else (8192, SHAPES)
    ceilings = {
        precision: report.add("rates", lambda: rate_of_products(precision, size), of=precision)["tflops"]
        for precision in PRECISIONS
    }
    report.add("rates", lambda: rate_of_copies(1 if small else 1024), of="copies, GB/s")
    for name, sizes in shapes.items():
        for n, d in sizes:
            for precision in PRECISIONS:
                measure = lambda: objective(name, n, d, precision, ceilings)
                report.add("objectives", measure, objective=name, n=n, d=d, precision=precision)
    n, d = (16, 64) if small else (256, 8192)
    report.add("health", lambda: health(n, d), n=n, d=d)
    steps, warm = (3, 1) if small else (40, 10)
    workers = 0 if small else max(1, (os.cpu_count() or 1) - 1)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        report.add("files", lambda: make_files(files, small))
        for name in TRAINED:
            for precision in ("bf16", "fp32"):
                measure = lambda: from_memory(name, files, small, precision, ceilings)
                report.add("training", measure, recipe=name, data="memory", precision=precision)
            measure = lambda: from_files(name, files, small, steps, warm, workers)
            report.add("training", measure, recipe=name, data="files", precision="bf16")
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main())
