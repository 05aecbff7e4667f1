"""What `--dry-run --processes N` says, beside real runs of N processes on this machine (gloo, a thread each).

    python -m benchmarks.plan RECIPE [key=value ...] [--processes 2 4]

Memory: most bytes that torch's allocator has given to the first process at once (torch.profiler). Traffic:
what passes the loopback interface in a step, divided by the processes; nothing else may use it, so where a
machine is shared give it a network of its own (Linux):

    unshare -rn sh -c 'ip link set lo up; python -m benchmarks.plan RECIPE'
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import table
from vicjoint import distributed
from vicjoint.recipe import load_recipe
from vicjoint.training import loop
from vicjoint.training.plan import plan

BEFORE, COUNTED, AFTER = 4, 8, 6  # steps to warm up, that count, and whose health may be looked at


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.measure:
        measure(options.recipe, options.overrides, Path(options.measure))
        return
    torch.set_num_threads(1)
    rows = []
    for processes in options.processes:
        _, shares = plan(load_recipe(options.recipe, options.overrides), processes)
        said = {
            "memory, MiB": max(share.peak for share in shares),
            "traffic, MiB": sum(share.received.total() for share in shares) / len(shares),
        }
        measured = real_run(options.recipe, options.overrides, processes)
        for what, predicted in said.items():
            real = measured[what]
            rows.append(
                [
                    processes,
                    what,
                    f"{predicted / 2**20:.2f}",
                    f"{real / 2**20:.2f}",
                    f"{predicted / real - 1:+.1%}",
                ]
            )
    print(table(["processes", "", "predicted", "measured", "difference"], rows))


def real_run(recipe: str, overrides: list[str], processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "measured.json"
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        last = [
            f"train.steps={BEFORE + COUNTED + AFTER}",
            "checkpoint.every=1000",
            "data.workers=0",
            "evaluate.every=0",
            "evaluate.last=false",
        ]
        arguments = [*several, "-m", "benchmarks.plan", recipe, *overrides, *last, f"out={folder}/run"]
        ended = subprocess.run(
            [sys.executable, *arguments, "--measure", str(found)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5"},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            sys.exit(f"{' '.join(arguments)}:\n{ended.stdout}{ended.stderr}")
        return json.loads(found.read_text())


def measure(recipe: str, overrides: list[str], found: Path) -> None:
    """On each process: train, and on the first one write down what a step held and moved."""
    marks = []  # (ns, bytes that have passed) after each step

    @contextlib.contextmanager
    def marked(*_):
        yield lambda: marks.append((time.time_ns(), passed(), distributed.world_size()))

    loop.profiled = marked
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as running:
        loop.train(recipe, overrides)
    if not distributed.is_first():
        return
    (begin, before, processes), (end, after, _) = marks[BEFORE - 1], marks[BEFORE + COUNTED - 1]
    held = most = 0
    memory = [e for e in running.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        held += event.nbytes()
        if begin <= event.start_ns() <= end:
            most = max(most, held)
    moved = (after - before) / processes / COUNTED
    found.write_text(json.dumps({"memory, MiB": most, "traffic, MiB": moved}))


def passed() -> int:
    """Bytes that the loopback interface has received (Linux)."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.split(":")[0].strip() == "lo").split(":")[1].split()[0])


if __name__ == "__main__":
    main()
