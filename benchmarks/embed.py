"""How much of the encoder's speed is left where files are read: views a second of the encoder alone, with its
batches in memory, and of `python -m vicjoint.embed`.

    python -m benchmarks.embed RUN_OR_EXPORT DATA... [--branch a] [--every SECONDS] [--workers N]

The encoder is measured before and after; its faster time counts. Listing the items and putting the parts
together are not in the time.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import table, write
from vicjoint.embeddings.items import Data, cell_of
from vicjoint.embeddings.reading import Place, ReadItems, collate
from vicjoint.embeddings.store import Store
from vicjoint.embeddings.work import Job, sized, work
from vicjoint.export import load_encoder
from vicjoint.training.build import pick_device

SECONDS = 5.0  # for which the encoder is measured
KEPT = 8  # batches in memory


def alone(job: Job, data: Data) -> float:
    """Views a second of the encoder, of batches as large as the command's."""
    at_once, _ = sized(job, data, None)
    reads, batches = ReadItems(job.reader, job.every, at_once), []
    if job.every is None:
        places = (Place(number, item.value) for number, item in enumerate(data))
        batches = [list(itertools.islice(places, at_once)) for _ in range(KEPT)]
    else:
        batches = list(itertools.islice(windows(job, data, at_once), KEPT))
    raws = [chunk.raw for batch in batches if batch and (chunk := collate([reads[p] for p in batch])).rows]
    done, rows = 0.0, 0
    with job.encoder.evaluating():
        job.encoder.encode(raws[0], job.space)  # a warm-up
        for raw in itertools.cycle(raws):
            began = time.perf_counter()
            rows += len(job.encoder.encode(raw, job.space))
            done += time.perf_counter() - began
            if done > SECONDS:
                return rows / done
    raise AssertionError("not reached")


def windows(job: Job, data: Data, at_once: int) -> Iterator[list[Place]]:
    """Batches of so many windows, of as many files as that takes."""
    batch, room = [], at_once
    for number, item in enumerate(data):
        with job.reader.slide(item.value, job.every) as sliding:
            count, start = len(sliding.spans), 0
        while start < count:
            end = min(count, start + room)
            batch.append(Place(number, item.value, start, end))
            room, start = room - (end - start), end
            if not room:
                yield batch
                batch, room = [], at_once
    yield batch


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--branch", default="a")
    parser.add_argument("--every", type=float)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args()
    encoder = load_encoder(options.run, options.branch).to(pick_device("auto"))
    job = Job(encoder, options.every, "representation", "float32", options.workers)
    data = Data(options.data, job.reader, cell_of(encoder.origin.task, job.reader.pair, job.reader, None))
    columns, (items, _) = data.columns(), data.count(lambda number: None)
    before = alone(job, data)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "out.parquet", {})
        store.folder.mkdir()
        store.open()
        done = work(job, data, columns, items, store)
    assert done is not None
    fastest, speed = max(before, alone(job, data)), done.rows / done.seconds
    print(
        table(
            ["rows", "seconds", "a second", "encoder alone, a second", "share", "encoder at work"],
            [[done.rows, done.seconds, speed, fastest, speed / fastest, done.encoding / done.seconds]],
        )
    )
    write(options.json, {**done._asdict(), "alone": fastest, "share": speed / fastest})


if __name__ == "__main__":
    main()
