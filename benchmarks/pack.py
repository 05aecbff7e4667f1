"""A recipe's files, and the same packed into shards: samples a second from file to ready batch, side by side.

    python -m benchmarks.pack recipes/audio_video_text.yaml source.root=grid/index.csv
    python -m benchmarks.pack recipes/audio_video_text.yaml source.root=grid/index.csv --json FILE

Rows: `files`, as the recipe reads them; `shards`, what `python -m vicjoint.pack` makes of them, in a folder
for temporary files. They take turns batch by batch in one process, and go through the same records in an
epoch; in later epochs what modalities keep in memory counts. `nothing kept`: with each `cache_mb` as 0. Rates
are a clock's; beside them this process's CPU time, so that neighbours on the machine count less.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
import yaml

from benchmarks.measure import table, write
from vicjoint import pack
from vicjoint.data.stream import collate
from vicjoint.modalities.audio import Audio
from vicjoint.modalities.image import Clip
from vicjoint.packing.members import layout_of
from vicjoint.recipe import load_recipe
from vicjoint.training.build import Parts, build_parts

EPOCHS = 2


def epochs(parts: Parts, keep: bool) -> Iterator[tuple[int, float, float]]:
    """(samples, seconds, CPU seconds) of each batch of `EPOCHS` epochs of all pairs."""
    streams = [parts.stream(task) for task in parts.tasks]
    readers = {id(r): r for s in streams for r in s.pair.readers}.values() if not keep else ()
    for modality in readers:
        if isinstance(modality, Audio | Clip):
            modality.kept.room = 0
    for epoch in range(EPOCHS):
        for stream in streams:
            for first in range(0, stream.epoch_length, parts.recipe.train.batch_size):
                last = min(first + parts.recipe.train.batch_size, stream.epoch_length)
                wall, cpu = time.perf_counter(), time.process_time()
                collate([stream[epoch * stream.epoch_length + place] for place in range(first, last)])
                yield last - first, time.perf_counter() - wall, time.process_time() - cpu


def by_turns(of: dict[str, Parts], keep: bool) -> dict[str, list[dict]]:
    """{name: [{per_second, cpu_ms} of each epoch]}."""
    batches = list(zip(*(epochs(parts, keep) for parts in of.values())))
    per_epoch = len(batches) // EPOCHS
    found: dict[str, list[dict]] = {name: [] for name in of}
    for epoch in range(EPOCHS):
        for number, name in enumerate(of):
            own = [b[number] for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch]]
            samples, wall, cpu = (sum(column) for column in zip(*own))
            found[name].append({"per_second": samples / wall, "cpu_ms": 1000 * cpu / samples})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if code := pack.main([options.recipe, *options.overrides, "--to", folder]):
            sys.exit(code)
        parts = build_parts(load_recipe(options.recipe, options.overrides))
        source = layout_of(parts.tasks[0].source, pack.facts_of(parts.tasks)).source(folder)
        packed = [text for text in options.overrides if not text.startswith("source")]
        packed.append(f"source={yaml.safe_dump(source, default_flow_style=True)}")
        results = {}
        for keep in (False, True):
            of = {"files": parts, "shards": build_parts(load_recipe(options.recipe, packed))}
            kept = "as in the recipe" if keep else "nothing kept"
            results |= {f"{name}, {kept}": found for name, found in by_turns(of, keep).items()}
            parts = build_parts(load_recipe(options.recipe, options.overrides))
    rows = [
        [name, *(epoch[key] for key in ("per_second", "cpu_ms") for epoch in found)]
        for name, found in results.items()
    ]
    print(table(["", "epoch 1, samples/s", "epoch 2", "epoch 1, CPU ms a sample", "epoch 2"], rows))
    write(options.json, results)


if __name__ == "__main__":
    main()
