"""The only file that knows how many processes there are. On one process everything here is the identity."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> None:
    """Join the process group when launched by torchrun; otherwise do nothing."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value):
    """Rank 0's value on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(x: Tensor) -> Tensor:
    """All processes' rows, [sum of B, ...], in rank order; row counts may differ between processes.

    Differentiable where x is floating. Every process computes the same loss from the gathered rows, so the gradient of
    its own rows is already complete and needs no collective. It is multiplied by the number of processes because
    DistributedDataParallel averages parameter gradients, while the union batch's gradient is their sum.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x) if x.requires_grad else _all_rows(x)[0]


def _all_rows(x: Tensor) -> tuple[Tensor, int]:
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    counts = [int(c) for c in counts]
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n] for p, n in zip(parts, counts)]), sum(counts[: rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        rows, ctx.start = _all_rows(x)
        ctx.count = len(x)
        return rows

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[ctx.start : ctx.start + ctx.count] * world_size()
