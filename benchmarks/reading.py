"""Reading the samples of a recipe in one process: milliseconds of one sample, the first time and later, with
what its modalities keep in memory and without.

    python -m benchmarks.reading recipes/audio_video.yaml  # the embedded sample
    # files of your own; any key=value of the recipe
    python -m benchmarks.reading recipes/audio_video.yaml source.root=grid/index.csv
    python -m benchmarks.reading recipes/audio_video.yaml source.root=grid/index.csv --json FILE

Rows: `nothing kept`, with each `cache_mb` of the recipe as 0, and `as in the recipe`. Time is this process's
CPU time, so that neighbours on the machine count less; beside it what a clock says. Memory is that of all the
pairs' kept squares and sounds.
"""

import argparse
import time

import torch

from benchmarks.measure import table, write
from vicjoint.modalities.audio import Audio
from vicjoint.modalities.image import Clip
from vicjoint.recipe import load_recipe
from vicjoint.training.build import build_parts

EPOCHS = 2


def read(recipe: str, overrides: list[str], keep: bool) -> dict:
    """{CPU_ms, wall_ms: of a sample, [epoch 1, epoch 2]; kept_mb}."""
    parts = build_parts(load_recipe(recipe, overrides))
    streams = [parts.stream(task) for task in parts.tasks]
    readers = {id(reader): reader for s in streams for reader in s.pair.readers}.values()
    modalities = [reader for reader in readers if isinstance(reader, Audio | Clip)]
    for modality in () if keep else modalities:
        modality.kept.room = 0
    room = sum(m.kept.room for m in modalities)
    found = {"cpu_ms": [], "wall_ms": []}
    samples = sum(s.epoch_length for s in streams)
    for epoch in range(EPOCHS):
        wall, cpu = time.perf_counter(), time.process_time()
        for stream in streams:
            for place in range(epoch * stream.epoch_length, (epoch + 1) * stream.epoch_length):
                stream[place]
        found["cpu_ms"].append(1000 * (time.process_time() - cpu) / samples)
        found["wall_ms"].append(1000 * (time.perf_counter() - wall) / samples)
    return found | {"kept_mb": (room - sum(m.kept.room for m in modalities)) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        name: read(options.recipe, options.overrides, keep)
        for name, keep in (("nothing kept", False), ("as in the recipe", True))
    }
    print(
        table(
            ["", "epoch 1, CPU ms", "epoch 2, CPU ms", "epoch 1, ms", "epoch 2, ms", "kept, MB"],
            [[name, *r["cpu_ms"], *r["wall_ms"], r["kept_mb"]] for name, r in results.items()],
        )
    )
    write(options.json, results)


if __name__ == "__main__":
    main()
