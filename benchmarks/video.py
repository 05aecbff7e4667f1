"""Clips a second on one core: our reader beside decord and torchcodec, frames checked bit for bit.

    python -m benchmarks.video                        # a table on stdout; minutes
    python -m benchmarks.video --json FILE            # and all numbers
    python -m benchmarks.video --codecs h264 --quick  # one codec, few rounds

Each row is one synthetic film of 10 s, 340 x 256, of structure at all scales with moving noise: its codec,
the frames between key frames, the stride of a clip of 9 frames, and k, the clips that are read of one opened
film. Decoders take turns, film by film, in one process with one thread; time is this process's CPU time,
opening included. `plain` is our reader without its two gains (frames on which no other leans are left out,
decoding ends with the last wanted frame), `every` decoding every frame from the first to the last of each
clip, and `limit` decoding what ours decodes, from memory; both without opening, search or colours. Our index
comes from the disk each time, as in training. decord and torchcodec (exact) stand where they can be imported:
a call for each clip, and `at once` one call for all. `wrong` counts the frames of each reader that differ
from sequential decoding.
"""

import argparse
import contextlib
import functools
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from benchmarks.films import plane_of_noise
from benchmarks.measure import table, write
from vicjoint.video import Video, index
from vicjoint.video.backends import PyAV
from vicjoint.video.colours import Part

FRAMES, HEIGHT, WIDTH, CLIP = 250, 256, 340, 9
B_FRAMES = {"preset": "veryfast", "bf": "3"}
QUIET = {**B_FRAMES, "x265-params": "log-level=0:pools=1:frame-threads=1"}
CODECS = {  # ours: (FFmpeg's encoder, ending, options)
    "h264": ("libx264", "mp4", B_FRAMES),
    "h264 without B": ("libx264", "mp4", {"preset": "veryfast", "bf": "0"}),
    "hevc": ("libx265", "mp4", QUIET),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", "mp4", {"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", "mp4", {"qscale": "4"}),
    "mpeg4 avi": ("mpeg4", "avi", {"qscale": "4"}),
    "mpeg1": ("mpeg1video", "mpg", {"qscale": "4", "bf": "2"}),
    "mjpeg": ("mjpeg", "mov", {"qscale": "4"}),
    "prores": ("prores_ks", "mov", {}),
}

NOTHING = Part(0, 0, 0, 0)
PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
ALL_KEYS = {"mjpeg", "prores"}


def film(path: Path, codec: str, interval: int, frames: int) -> None:
    """A plane whose spectrum falls as natural images' does, which drifts, with new noise in each frame."""
    encoder, _, options = CODECS[codec]
    rng = np.random.default_rng(0)
    plane = plane_of_noise(rng, 512, 1024)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.gop_size = WIDTH, HEIGHT, interval
        stream.pix_fmt = PIXELS.get(encoder, "yuv420p")
        stream.thread_count = 1
        for n in range(frames):
            part = plane[n // 2 : n // 2 + HEIGHT, n : n + WIDTH]
            noisy = part + 12 * rng.normal(size=(HEIGHT // 2, WIDTH // 2, 1)).repeat(2, 0).repeat(2, 1)
            image = np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(stream.encode())
    old = time.time() - 60
    os.utime(path, (old, old))  # of a file that has just changed no index is written to the disk


def sequential(path: str, colours: bool = True) -> np.ndarray:
    """All frames [T, H, W, 3], by PyAV alone; without colours [T]."""
    with av.open(path) as file:
        file.streams.video[0].thread_count = 1
        frames = [f.to_ndarray(format="rgb24") if colours else f.pts for f in file.decode(video=0)]
    return np.stack(frames)


def ours(path: str, clips: list[np.ndarray], fast: bool = True) -> np.ndarray:
    index.COUNTED = index.Kept(64)
    with Video(path, "pyav") as video:
        video._own.fast = fast
        return video.read(np.concatenate(clips))


class Bare(PyAV):
    """Decodes what our reader decodes, from packets in memory, and makes no pictures of it."""

    def __init__(self, path: str):
        index.COUNTED = index.Kept(64)
        with setting("VICJOINT_VIDEO_INDEX", "0"):  # the packets stay where they are counted
            super().__init__(path)

    def _image(self, number: int, frame, part: Part) -> np.ndarray:
        return np.zeros(0)

    def decode(self, clips: list[np.ndarray]) -> None:
        self._walk = None
        for _ in self._each(np.unique(np.concatenate(clips)).tolist(), NOTHING, last=True):
            pass


def _decord(decord, path: str, clips: list[np.ndarray]) -> np.ndarray:
    reader = decord.VideoReader(path, num_threads=1)
    return np.concatenate([reader.get_batch(clip.tolist()).asnumpy() for clip in clips])


def _torchcodec(decoders, path: str, clips: list[np.ndarray]) -> np.ndarray:
    reader = decoders.VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    return np.concatenate([reader.get_frames_at(clip.tolist()).data.numpy() for clip in clips])


def libraries() -> dict:
    """{name: module} of the decoders beside ours that can be used here."""
    found = {}
    for module in ("decord", "torchcodec.decoders"):
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            found[module.split(".")[0]] = importlib.import_module(module)
    if "decord" in found:
        found["decord"].logging.set_level(found["decord"].logging.QUIET)
    return found


def readers() -> dict[str, Callable[[str, list[np.ndarray]], np.ndarray]]:
    """{name: path and clips, numbers of frames each -> uint8 [frames of all clips, H, W, 3]}."""

    def at_once(read: Callable) -> Callable:
        def together(path: str, clips: list[np.ndarray]) -> np.ndarray:
            numbers, places = np.unique(np.concatenate(clips), return_inverse=True)
            return read(path, [numbers])[places]

        return together

    found: dict[str, Callable] = {}
    reads = {"decord": _decord, "torchcodec": _torchcodec}
    for name, library in libraries().items():
        found[name] = functools.partial(reads[name], library)
        found[f"{name} at once"] = at_once(found[name])
    return {**found, "plain": functools.partial(ours, fast=False), "ours": ours}


def measured(path: str, stride: int, k: int, rounds: int) -> dict:
    """Clips a second of each reader, and how many of its frames are wrong."""
    truth, calls = sequential(path), readers()
    took: dict[str, list[float]] = {name: [] for name in calls}
    wrong, failed = dict.fromkeys(calls, 0), set()
    rng, spans = np.random.default_rng(1), []
    bare, needed = Bare(path), []
    start = time.process_time()
    sequential(path, colours=False)
    a_frame = (time.process_time() - start) / len(truth)
    for turn in range(-1, rounds):  # one to warm up
        starts = rng.integers(0, len(truth) - (CLIP - 1) * stride, k)
        clips = list(starts[:, None] + stride * np.arange(CLIP))
        spans.append(len(np.unique(starts[:, None] + np.arange((CLIP - 1) * stride + 1))))
        start = time.process_time()
        bare.decode(clips)
        needed.append(time.process_time() - start)
        for name, read in calls.items():
            start = time.process_time()
            try:
                images = read(path, clips)
            except Exception:  # each decoder has its own
                if name == "ours":
                    raise
                failed.add(name)
                continue
            if turn >= 0:
                took[name].append(time.process_time() - start)
            wrong[name] += int((images != truth[np.concatenate(clips)]).any((1, 2, 3)).sum())
    rates = {name: None if name in failed else k / statistics.mean(took[name]) for name in calls}
    bare.close()
    limits = {"every": k / a_frame / statistics.mean(spans), "limit": k / statistics.mean(needed[1:])}
    return {"clips_per_second": rates, **limits, "wrong": wrong}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__.split("\n")[0])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), metavar="CODEC")
    parser.add_argument("--rounds", type=int, default=60, help="films opened by each reader in each row")
    parser.add_argument("--quick", action="store_true", help="one round of films of 1.6 s")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args(arguments)
    frames, rounds = (40, 1) if options.quick else (FRAMES, options.rounds)
    rows = []
    with tempfile.TemporaryDirectory() as folder, setting("VICJOINT_CACHE", f"{folder}/cache"):
        cases = [
            (c, i, s, k)
            for c in options.codecs
            for i in ((1,) if c in ALL_KEYS else (12, 250))
            for s in (2, 4)
            for k in (1, 4)
        ]
        for codec, interval, stride, k in tqdm(cases, "films", disable=None):
            path = Path(folder) / f"{codec.replace(' ', '_')}_{interval}.{CODECS[codec][1]}"
            if not path.exists():
                film(path, codec, interval, frames)
            row = {"codec": codec, "key frames": interval, "stride": stride, "k": k}
            rows.append({**row, **measured(str(path), stride, k, rounds)})
    names = list(rows[0]["wrong"])
    others = [name for name in names if name not in ("plain", "ours")]
    print(f"clips of {CLIP} frames, {WIDTH} x {HEIGHT}, a second on one core\n")
    columns = ["codec", "key frames", "stride", "k", *names, "every", "limit"]
    columns += [*(f"ours/{n}" for n in others), "ours/limit", "wrong"]
    print(table(columns, [_cells(row, names, others) for row in rows]))
    write(options.json, {"rows": rows})


def _cells(row: dict, names: list[str], others: list[str]) -> list:
    rates = row["clips_per_second"]
    wrong = ", ".join(f"{name} {count}" for name, count in row["wrong"].items() if count) or "-"
    ratios = [rates["ours"] / rates[name] if rates[name] else "-" for name in others]
    ratios += [rates["ours"] / row["limit"]]
    case = [str(row[name]) for name in ("codec", "key frames", "stride", "k")]
    return [
        *case,
        *(rates[name] or "an error" for name in names),
        float(row["every"]),
        float(row["limit"]),
        *ratios,
        wrong,
    ]


@contextlib.contextmanager
def setting(name: str, value: str):
    """A variable of the environment, meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


if __name__ == "__main__":
    main()
