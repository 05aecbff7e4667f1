"""python -m benchmarks.squares [--seconds S] [--json FILE]: from decoded frames to 224-pixel squares, in
milliseconds of one core for each frame, by several roads, beside what decoding takes.

whole: RGB of the whole frame, then the middle square of it, then resized with antialiasing; ours: the square
is cut out before RGB is made (the same to the last bit); FFmpeg's scaler: the square goes to 224 pixels
while RGB is made. differs: its pixels from ours, of 255, on average and at most. Films in H.264 are made
first, of drifting noise whose power falls with frequency, as a photograph's does.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from benchmarks.films import plane_of_noise
from benchmarks.measure import interleaved, ratio, table, write
from vicjoint.transforms.images import square_frames
from vicjoint.video.colours import UPRIGHT, Colours, Part
from vicjoint.video.write import write_mp4

SIZES = {"340x256": (256, 340), "640x480": (480, 640), "1280x720": (720, 1280), "1920x1080": (1080, 1920)}
SCALERS = ("FAST_BILINEAR", "AREA", "BILINEAR", "BICUBIC")
SIZE, FRAMES = 224, 24


def make_film(path: Path, height: int, width: int) -> None:
    plane = plane_of_noise(np.random.default_rng(0), height + FRAMES, width + 2 * FRAMES)
    plane = plane.clip(0, 255).astype(np.uint8)
    write_mp4(path, np.stack([plane[n : n + height, 2 * n : 2 * n + width] for n in range(FRAMES)]), crf=23)


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        file.streams.video[0].thread_count = 1
        return list(file.decode(video=0))


def resized(square: np.ndarray) -> torch.Tensor:
    """[S, S, 3] -> [3, SIZE, SIZE]."""
    return square_frames(torch.from_numpy(square).permute(2, 0, 1)[None], SIZE)[0]


def roads(part: Part) -> dict[str, Callable[[av.VideoFrame], torch.Tensor]]:
    """{name: a frame -> uint8 [3, SIZE, SIZE]}."""
    whole, ours, scaled = VideoReformatter(), Colours(), Colours()

    def by_scaler(name: str) -> Callable[[av.VideoFrame], torch.Tensor]:
        convert = VideoReformatter()

        def scale(frame: av.VideoFrame) -> torch.Tensor:
            square, how = scaled.cut(frame, part), Interpolation[name]
            rgb = convert.reformat(square, SIZE, SIZE, "rgb24", interpolation=how, threads=1)
            return torch.from_numpy(rgb.to_ndarray()).permute(2, 0, 1)

        return scale

    return {
        "whole": lambda frame: resized(
            part.of(whole.reformat(frame, format="rgb24", threads=1).to_ndarray())
        ),
        "ours": lambda frame: resized(ours.rgb(frame, UPRIGHT, part)),
        **{name: by_scaler(name) for name in SCALERS},
    }


def measure(path: Path, height: int, width: int, seconds: float) -> dict:
    """{decoding, ms of each road, whole / ours, ours / each scaler, how much these differ} of a film."""
    frames = decoded(path)
    calls = roads(Part(0, (width - height) // 2, height, height))
    seen = {name: [call(frame).float() for frame in frames] for name, call in calls.items()}
    assert all(map(torch.equal, seen["whole"], seen["ours"]))
    each = {name: lambda call=call: [call(frame) for frame in frames] for name, call in calls.items()}
    took = interleaved({"decoding": lambda: decoded(path), **each}, seconds)
    apart = {name: torch.stack([(a - b).abs() for a, b in zip(seen[name], seen["ours"])]) for name in SCALERS}
    return {
        "ms": {name: 1000 * sorted(times)[len(times) // 2] / FRAMES for name, times in took.items()},
        "whole / ours": ratio(took["whole"], took["ours"]),
        "scaler / ours": {name: ratio(took[name], took["ours"]) for name in SCALERS},
        "differs": {name: (float(x.mean()), int(x.max())) for name, x in apart.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.squares", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring each size (20)")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width) in SIZES.items():
            path = Path(folder) / f"{name}.mp4"
            make_film(path, height, width)
            found[name] = measure(path, height, width, options.seconds)
    names = list(found["340x256"]["ms"])
    rows = [[size, *(row["ms"][name] for name in names), row["whole / ours"]] for size, row in found.items()]
    print(table(["ms a frame", *names, "whole / ours"], rows))
    for title, key in (("scaler / ours", "scaler / ours"), ("differs, mean and most", "differs")):
        print()
        show = lambda x: x if isinstance(x, float) else f"{x[0]:.1f}, {x[1]}"
        print(
            table([title, *SCALERS], [[s, *(show(row[key][n]) for n in SCALERS)] for s, row in found.items()])
        )
    write(options.json, found)


if __name__ == "__main__":
    main()
