"""Which decoder gives the right frames of which film: ours, decord, torchcodec, each left to itself.

    python -m benchmarks.right_frames                 # the films of the tests; a table on stdout
    python -m benchmarks.right_frames FOLDER          # and the videos of a folder

Frames are asked for as training does, several at a time, of a film that is opened for each and of one that
stays open. Right is, bit for bit, what decoding from the first frame to the last gives, upright. A frame that
is nearer to another one of the film is `wrong`, one that is nearest to its own has other `colours`.
"""

import argparse
import contextlib
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import films
from benchmarks.measure import table, write
from benchmarks.video import libraries
from vicjoint.video import VIDEO_SUFFIXES, Video, VideoError

MOST_FRAMES = 1000  # of a film of a folder: all are held


class Ours:
    def __init__(self, path: str, backend: str = "pyav"):
        self._video = Video(path, backend)
        self.frames = self._video.info.frames

    def read(self, numbers: list[int]) -> np.ndarray:
        return self._video.read(numbers)


def readers() -> dict[str, Callable]:
    """{name: path -> object with frames, their count, and read(numbers) -> uint8 [T, H, W, 3]}."""
    found, modules = {"ours": Ours}, libraries()
    if "decord" in modules:
        found["decord"] = lambda path: _Decord(modules["decord"], path)
    if "torchcodec" in modules:
        found["torchcodec exact"] = lambda path: _TorchCodec(modules["torchcodec"], path, "exact")
        found["torchcodec approximate"] = lambda path: _TorchCodec(modules["torchcodec"], path, "approximate")
        if torch.cuda.is_available():
            found["nvdec"] = lambda path: _TorchCodec(modules["torchcodec"], path, "exact", "cuda")
    return found


class _Decord:
    def __init__(self, module, path: str):
        self._reader = module.VideoReader(path, num_threads=1)
        self.frames = len(self._reader)

    def read(self, numbers: list[int]) -> np.ndarray:
        return self._reader.get_batch(numbers).asnumpy()


class _TorchCodec:
    def __init__(self, module, path: str, mode: str, device: str = "cpu"):
        self._reader = module.VideoDecoder(
            path, seek_mode=mode, num_ffmpeg_threads=1, dimension_order="NHWC", device=device
        )
        self.frames = len(self._reader)

    def read(self, numbers: list[int]) -> np.ndarray:
        return self._reader.get_frames_at(numbers).data.cpu().numpy()


def made(folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """Films and their true frames [T, H, W, 3]: those of the tests, a cut by an edit list, a turned one."""
    for name, options in films.MATRIX.items():
        path = films.film(folder / name, **options)
        yield path, films.sequential(path)
    path = films.copy(folder / "no_b.mp4", folder / "cut, no B.mp4", 12, shift=18)
    yield path, films.sequential(path)
    path = films.copy(folder / "no_pyramid.mp4", folder / "cut, B.mp4", 20, shift=25)
    yield path, films.sequential(path)
    for name, matrix in {"turned": (0, 1, -1, 0), "mirrored": (-1, 0, 0, 1)}.items():
        content = bytearray((folder / "h264.mp4").read_bytes())
        at = content.index(b"tkhd") + 44
        a, b, c, d = (value << 16 for value in matrix)
        content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        (folder / f"{name}.mp4").write_bytes(content)
        stored = films.sequential(folder / "h264.mp4")
        yield folder / f"{name}.mp4", np.rot90(stored, -1, (1, 2)) if name == "turned" else stored[:, :, ::-1]


def judged(open_film: Callable, path: Path, truth: np.ndarray) -> str:
    """What a decoder makes of a film, in a few words."""
    found: Counter = Counter()
    worst, count = 0, None
    with contextlib.suppress(Exception):
        count = open_film(str(path)).frames
    if count is None:
        return "an error"
    wishes = [[n for n in wish if n < count] for wish in films.wishes(len(truth))]
    with contextlib.suppress(Exception):
        kept = open_film(str(path))
    for opened in (lambda: open_film(str(path)), lambda: kept):
        for wish in filter(None, wishes):
            try:
                images = opened().read(wish)
            except Exception:  # each decoder has its own
                found["error"] += len(wish)
                continue
            if images.shape[1:] != truth.shape[1:]:
                return f"pictures of {images.shape[2]} x {images.shape[1]}"
            for number, image in zip(wish, images):
                verdict = _verdict(image, number, truth)
                found[verdict] += 1
                if verdict == "colours":
                    worst = max(worst, int(np.abs(image.astype(int) - truth[number]).max()))
    total = sum(found.values())
    said = [f"counts {count}, {len(truth)} exist"] if count != len(truth) else []
    if found["wrong"]:
        said.append(f"wrong {found['wrong']} of {total}")
    if found["error"]:
        said.append(f"an error for {found['error']} of {total}")
    if found["colours"]:
        said.append(f"other colours, by {worst} at most")
    return "; ".join(said) or "right"


def _verdict(image: np.ndarray, number: int, truth: np.ndarray) -> str:
    if np.array_equal(image, truth[number]):
        return "right"
    # by grey blocks: pictures with few points of colour are coloured between them in several ways
    far = np.abs(_grey(truth) - _grey(image[None])).mean((1, 2))
    return "colours" if far.argmin() == number else "wrong"


def _grey(images: np.ndarray, block: int = 8) -> np.ndarray:
    """[T, H // block, W // block]: mean brightness of blocks."""
    height, width = (n // block for n in images.shape[1:3])
    whole = images[:, : height * block, : width * block] @ np.array([0.3, 0.59, 0.11])
    return whole.reshape(len(images), height, block, width, block).mean((2, 4))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.right_frames", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, help="of other videos")
    parser.add_argument("--json", metavar="FILE", help="also write what is found")
    options = parser.parse_args(arguments)
    calls, rows = readers(), []
    with tempfile.TemporaryDirectory() as folder:
        for path, truth in tqdm(_all(Path(folder), options.folder), "films", disable=None):
            rows.append([path.name, *(judged(call, path, truth) for call in calls.values())])
    print(table(["film", *calls], rows))
    write(options.json, {"readers": list(calls), "rows": rows})


def _all(folder: Path, others: Path | None) -> Iterator[tuple[Path, np.ndarray]]:
    yield from made(folder)
    for path in sorted(others.iterdir()) if others else ():
        if path.suffix not in VIDEO_SUFFIXES:
            continue
        try:
            with Video(path) as video:
                few = video.info.frames <= MOST_FRAMES
        except VideoError:
            continue
        if few:
            yield path, films.sequential(path)


if __name__ == "__main__":
    main()
