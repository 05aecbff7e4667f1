"""The only file that knows how many processes there are. On one process everything here is the identity."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

_patient = None  # the group in which processes wait for the first one's long work
_host = None  # the group for numbers that the processor holds: no GPU has to be waited for


def start(timeout_seconds: float = 600) -> None:
    """Join the process group when launched by torchrun; otherwise do nothing. A process waits so long for the
    others in a step."""
    global _patient, _host
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        store, number, world = next(dist.rendezvous("env://"))
        # processes that torchrun starts again meet in the same store, where the addresses of the dead ones
        # still stand
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=number,
            world_size=world,
            timeout=timedelta(seconds=timeout_seconds),
        )
        _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        _host = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def stop() -> None:
    global _patient, _host
    if dist.is_initialized():
        _patient = _host = None
        # a DistributedDataParallel that only waits for the garbage collector still holds the group, and
        # gloo's threads then abort the exit
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def pretended(processes: int) -> Iterator[None]:
    """Be the last of so many processes, of which there is no other: the one with the largest share of a
    batch. What others would send is a copy of what this one sends, or nothing: shapes are right, numbers are
    not."""
    if processes > 1:
        dist.init_process_group("fake", rank=processes - 1, world_size=processes)
    try:
        yield
    finally:
        stop()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints; known before the processes meet and after they part."""
    return int(os.environ.get("RANK", 0)) == 0


def barrier() -> None:
    """Wait for all processes, as long as it takes: the first one may evaluate for hours. The death of one
    ends it."""
    if dist.is_initialized():
        dist.barrier(_patient)


# what torch's gloo, NCCL and their sockets say, in some builds and places without the name of the file that
# says it
LOST = (
    "gloo/",
    "NCCL",
    "pair closure",
    "Connection closed by peer",
    "Remote peer closed",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "Socket unexpectedly closed",
    "Timed out waiting",
    "Operation timed out",
    "Read timeout",
    "Write timeout",
    "Wait timeout",
    "Socket Timeout",
)


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone or does not answer. torch has no one type for it:
    gloo raises RuntimeError, NCCL DistBackendError, the store DistNetworkError or DistStoreError."""
    return (
        world_size() > 1
        and isinstance(error, RuntimeError)
        and (isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST))
    )


def same_as_first(tensors: Iterable[Tensor]) -> None:
    """Let tensors be what they are on the first process, in place."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def broadcast_object(value):
    """Rank 0's value on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_first(make: Callable):
    """What `make()` gives on the first process, on every process; an exception that it raises there is raised
    on every one."""
    if not dist.is_initialized():
        return make()
    box = (None, None)
    if rank() == 0:
        try:
            box = make(), None
        except Exception as error:
            box = None, error
    value, error = broadcast_object(box)
    if error is not None:
        raise error
    return value


def gather_objects(value, patient: bool = False) -> list:
    """Every process's value, in rank order. patient: waits for the slowest as long as it takes."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, _patient if patient else _host)
    return values


def shared(own: Iterator, count: int) -> Iterator:
    """`count` things in order, on every process, of which `own` gives this one's: those numbered rank, rank +
    W, ... Each round waits for the slowest of W, as long as it takes. Tensors travel by the processor's
    memory."""
    if world_size() == 1:
        yield from own
        return
    for first in range(0, count, world_size()):
        yield from gather_objects(next(own, None), patient=True)[: count - first]


def say(line: str) -> None:
    """Print a line, beside a progress bar too, if this is the first process."""
    if rank() == 0:
        tqdm.write(line)


def anywhere(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on some process."""
    if world_size() == 1:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX, _host)
    return found.bool().tolist()


def row_counts(rows: int) -> list[int]:
    """How many rows each process holds."""
    if world_size() == 1:
        return [rows]
    counts = torch.zeros(world_size(), dtype=torch.int64)
    dist.all_gather(list(counts.split(1)), torch.tensor([rows]), _host)
    return counts.tolist()


def own_rows(counts: list[int]) -> slice:
    """Where this process's rows stand among all rows."""
    start = sum(counts[: rank()])
    return slice(start, start + counts[rank()])


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """All processes' rows, [sum of counts, ...], in rank order. Has no gradient: every process computes the
    loss of the union batch, so the objectives know the gradient of their own rows without another collective.
    What the processor holds travels without a GPU.
    """
    if world_size() == 1:
        return x
    group = None if x.is_cuda else _host
    most = max(counts)
    sent = x.contiguous()
    if len(x) < most:
        sent = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    received = x.new_empty(len(counts) * most, *x.shape[1:])
    # as bytes: any dtype travels unchanged, half precision at half the traffic
    dist.all_gather([part.view(torch.uint8) for part in received.split(most)], sent.view(torch.uint8), group)
    if min(counts) == most:
        return received
    return torch.cat([part[:n] for part, n in zip(received.split(most), counts)])


def total(x: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def total_later(x: Tensor) -> Callable[[], Tensor]:
    """Starts the sum over the processes, in place; calling the result waits for it and gives it."""
    if world_size() == 1:
        return lambda: x
    work = dist.all_reduce(x, async_op=True)
    return lambda: (work.wait(), x)[1]


def to_columns(x: Tensor, counts: list[int]) -> Tensor:
    """Own rows [n, D] -> all rows of own columns [N, about D / W]."""
    parts = [part.contiguous() for part in x.tensor_split(world_size(), dim=1)]
    width = parts[rank()].shape[1]
    received = x.new_empty(sum(counts) * width)
    dist.all_to_all_single(
        received,
        torch.cat([p.flatten() for p in parts]),
        [n * width for n in counts],
        [p.numel() for p in parts],
    )
    return received.view(sum(counts), width)


def to_rows(x: Tensor, counts: list[int], dim: int) -> Tensor:
    """All rows of own columns [N, about D / W] -> own rows [n, D = dim]: the inverse of `to_columns`."""
    rows = counts[rank()]
    widths = [len(part) for part in torch.arange(dim).tensor_split(world_size())]
    received = x.new_empty(rows * dim)
    dist.all_to_all_single(
        received, x.contiguous().flatten(), [rows * w for w in widths], [n * x.shape[1] for n in counts]
    )
    return torch.cat(
        [part.view(rows, w) for part, w in zip(received.split([rows * w for w in widths]), widths)], dim=1
    )
