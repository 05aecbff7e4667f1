"""The form that variance and covariance take, by shape and number of processes: docs/scaling.md's table.

    python -m benchmarks.forms
    python -m benchmarks.forms --time 2 4

Computed, not measured: of both branches, MiB that each process receives in a step, and operations of the
products (10^9; a multiplication and an addition are two). With --time: milliseconds of VICReg in each form on
so many gloo processes of one thread, the best of ROUNDS, and which one is chosen.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.measure import table
from vicjoint.objectives import VICReg, vicreg
from vicjoint.objectives.forms import best_form, forms

WORLDS = (1, 8, 32, 256, 1024, 4096)
SHAPES = [  # N, D, bytes of a number, how often statistics are taken, whose shape it is
    (64, 48, 4, 1, "audio_video_text"),
    (128, 512, 4, 2, "video_next_frame"),
    (512, 2048, 2, 1, ""),
    (2048, 2048, 2, 1, ""),
    (2048, 8192, 4, 1, "imagenet in float32"),
    (2048, 8192, 2, 1, "imagenet"),
    (4096, 8192, 2, 1, "imagenet, larger batches"),
    (16384, 8192, 2, 1, ""),
    (65536, 8192, 2, 1, ""),
    (32768, 512, 2, 1, ""),
]
TIMED = [(32, 512), (64, 2048), (128, 512), (128, 2048), (256, 4096), (1024, 512), (1024, 1024), (1536, 1024)]
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", type=int, nargs="+", metavar="PROCESSES", default=[])
    options = parser.parse_args()
    for world in options.time:
        port = 20000 + (os.getpid() + world) % 20000
        multiprocessing.spawn(timed, (world, port), nprocs=world)
    if not options.time:
        show_chosen()


def show_chosen() -> None:
    print("| N x D | | " + " | ".join(f"W = {world:,}" for world in WORLDS) + " |")
    print("| --- " * (2 + len(WORLDS)) + "|")
    for rows, dim, size, shares, whose in SHAPES:
        cells = [cell(rows, dim, world, size, shares) if world <= rows else "" for world in WORLDS]
        print(f"| {rows} x {dim} | {whose or f'{8 * size} bits'} | " + " | ".join(cells) + " |")


def cell(rows: int, dim: int, world: int, size: int, shares: int) -> str:
    """Name, MiB, 10^9 operations."""
    name = best_form(rows, dim, world, size, shares)
    form = next(form for form in forms(rows, dim, world, size, shares) if form.name == name)
    return f"{name}, {number(form.received / 2**20)}, {number(form.operations / 1e9)}"


def number(value: float) -> str:
    """Three digits that count."""
    return (
        "0"
        if not value
        else "< 0.01"
        if value < 0.01
        else f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
    )


def timed(rank: int, world: int, port: int) -> None:
    """One of the processes; the time is that of the slowest."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    lines = []
    for rows, dim in TIMED:
        z_a, z_b = (torch.randn(rows // world, dim, requires_grad=True) for _ in "ab")
        objective, names = VICReg(), [form.name for form in forms(rows, dim, world)]
        took = {name: [] for name in names}
        for name in names * (ROUNDS + 1):
            vicreg.best_form = lambda *_, name=name: name
            dist.barrier()
            began = time.perf_counter()
            objective(z_a, z_b)[0].backward()
            slowest = torch.tensor([time.perf_counter() - began])
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            took[name].append(1000 * float(slowest))
        best = [min(took[name][1:]) for name in names]  # the first one warms up
        lines.append([world, rows, dim, *best, best_form(rows, dim, world)])
    if rank == 0:
        print(table(["W", "N", "D", *names, "chosen"], lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
