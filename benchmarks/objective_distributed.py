"""VICReg on two gloo processes beside the official way: gather everything, the whole D x D covariance on
every process.

    python -m benchmarks.objective_distributed [--processes 2] [--json FILE]

Each process has one thread and its own data; the time of forward and backward is the slower process's, ratios
are of interleaved rounds. Error: the gradient of own rows, times what DistributedDataParallel divides by,
against one process with the union batch in float64.
"""

import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

from benchmarks import plain
from benchmarks.measure import table, write
from vicjoint.objectives import VICReg

SHAPES = [(64, 2048), (128, 4096), (512, 1024), (1024, 512)]  # rows of one process, width
ROUNDS = 9


class GatherAndReduce(torch.autograd.Function):
    """all_gather forward, all_reduce of all gradients backward: the usual layer for this."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def official(z_a, z_b):
    return 25 * F.mse_loss(z_a, z_b) + plain.variance_covariance(
        GatherAndReduce.apply(z_a), GatherAndReduce.apply(z_b)
    )


def union(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(rows, dim, generator=generator)
    return z_a, 0.7 * z_a + 0.3 * torch.randn(rows, dim, generator=generator)


def process(rank: int, processes: int, port: int, results) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    ours = VICReg()
    forms = {"ours": lambda a, b: ours(a, b)[0], "official": official}
    for n, d in SHAPES:
        whole = union(n * processes, d)
        own = [z[rank * n : (rank + 1) * n].clone().requires_grad_() for z in whole]
        took = {form: [] for form in forms}
        gradient = {}
        for round in range(ROUNDS + 1):
            for form, loss_of in forms.items():
                own[0].grad = own[1].grad = None
                dist.barrier()
                began = time.perf_counter()
                loss_of(*own).backward()
                slowest = torch.tensor([time.perf_counter() - began])
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
                if round:  # the first one warms up
                    took[form].append(float(slowest))
                gradient[form] = own[0].grad.clone()
        if rank == 0:
            truth = [z.double().requires_grad_() for z in whole]
            plain.official(*truth).backward()
            expected = truth[0].grad[:n]
            results.put(
                {
                    "n": n,
                    "d": d,
                    "ms": {form: 1000 * statistics.median(t) for form, t in took.items()},
                    "ratio": statistics.median(o / t for o, t in zip(took["official"], took["ours"])),
                    "gradient_error": {
                        form: float((g.double() / processes - expected).norm() / expected.norm())
                        for form, g in gradient.items()
                    },
                }
            )
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objective_distributed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="also write all numbers")
    options = parser.parse_args()
    port = 20000 + os.getpid() % 20000
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(process, (options.processes, port, results), nprocs=options.processes)
    rows = [results.get() for _ in SHAPES]
    print(
        f"{options.processes} gloo processes of one thread, rows of each n: ms, and how many times ours is"
        " faster\n"
    )
    print(
        table(
            ["n", "D", "ours ms", "official ms", "times faster", "error ours", "error official"],
            [
                [
                    r["n"],
                    r["d"],
                    r["ms"]["ours"],
                    r["ms"]["official"],
                    r["ratio"],
                    *r["gradient_error"].values(),
                ]
                for r in rows
            ],
        )
    )
    write(options.json, {"processes": options.processes, "rows": rows})


if __name__ == "__main__":
    main()
