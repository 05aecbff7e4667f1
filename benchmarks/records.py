"""Very many records: seconds until a source is known, the first time and again, and the memory of the main
process and of four that read (PSS, in which shared pages count once; Linux).

    python -m benchmarks.records                                   # a million records of each source
    python -m benchmarks.records --sources table --records 100000
    python -m benchmarks.records --json FILE

Sources: `webdataset`, texts in tar shards; `table`, a csv of texts; `paths`, a csv of texts and paths of
files; `image_folder`, those files. Seconds are a clock's, with this process's CPU time beside them. The files
are made in a temporary folder: 1 KB for each record in shards, and a million empty files.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from benchmarks.measure import in_fresh_process, table, write
from vicjoint.data.stream import Stream, batches
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Reading
from vicjoint.registry import build

READERS, SHARDS, BATCHES = 4, 100, 100
IN_FOLDER = 1000  # files


def shards(folder: Path, records: int) -> dict:
    for number in range(SHARDS):
        with open(folder / f"x-{number:03d}.tar", "wb") as out:
            for i in range(number, records, SHARDS):
                info = tarfile.TarInfo(f"{i:08d}.txt")
                info.size = len(text := f"the text of number {i}".encode())
                out.write(info.tobuf(tarfile.USTAR_FORMAT) + text.ljust(tarfile.BLOCKSIZE, b"\0"))
            out.write(bytes(2 * tarfile.BLOCKSIZE))
    return {"name": "webdataset", "root": str(folder)}


def rows(folder: Path, records: int, paths: bool = False) -> dict:
    path = folder / "index.csv"
    with open(path, "w") as out:
        out.write(f"{'path' if paths else 'id'},txt,kind\n")
        for i in range(records):
            out.write(f"{file_name(i) if paths else f'r{i}'},the text of number {i},k{i % 100}\n")
    return {"name": "table", "root": str(path)}


def file_name(number: int) -> str:
    return f"{number // IN_FOLDER:05d}/{number}.png"


def paths(folder: Path, records: int) -> dict:
    files(folder, records)
    return rows(folder, records, paths=True)


def files(folder: Path, records: int) -> dict:
    for number in range(records):
        if number % IN_FOLDER == 0:
            (folder / file_name(number)).parent.mkdir()
        (folder / file_name(number)).touch()
    return {"name": "image_folder", "root": str(folder)}


MADE = {"webdataset": shards, "table": rows, "paths": paths, "image_folder": files}


def measure(spec: dict) -> dict:
    """{seconds, cpu_seconds, main_mb, readers_mb} of a source in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    source, readers = build("source", spec), (build("modality", {"name": "text"}),) * 2
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    column = "txt" if "txt" in source.train[0] else "id"
    pair = CrossModal(column, column)
    pair.bind(Reading(readers, source))
    stream = Stream(source.train, pair, 0, order=source.order("train"))
    with batches([stream], [64], READERS, 0, BATCHES) as read:
        for number, _ in enumerate(read):
            if number == BATCHES - 8:  # they still read ahead
                others = sum(map(pss_mb, descendants(os.getpid())))
    return found | {"main_mb": pss_mb(os.getpid()), "readers_mb": others}


def descendants(process: int) -> list[int]:
    said = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in said.splitlines())
    found = [process]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def pss_mb(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records", description=__doc__.split(":")[0])
    parser.add_argument("--sources", nargs="+", choices=list(MADE), default=list(MADE))
    parser.add_argument("--records", type=int, default=10**6)
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    parser.add_argument("--of", help=argparse.SUPPRESS)  # what a fresh process measures
    options = parser.parse_args()
    if options.of:
        print(json.dumps(measure(json.loads(options.of))))
        return
    results = {}
    for source in options.sources:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VICJOINT_CACHE"] = f"{folder}/cache"
            (made := Path(folder, "data")).mkdir()
            spec = json.dumps(MADE[source](made, options.records))
            time.sleep(3)  # an index of files that have just changed is not kept
            for name in (source, f"{source}, again"):
                results[name] = in_fresh_process("benchmarks.records", "--of", spec)
    columns = ["", "index, s", "CPU, s", "main process, MB", f"{READERS} readers, MB"]
    print(table(columns, [[name, *found.values()] for name, found in results.items()]))
    write(options.json, results)


if __name__ == "__main__":
    sys.exit(main())
