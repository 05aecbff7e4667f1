"""A plan (plan.py) as the terminal shows it, and what would make it fit into a GPU."""

import math
from dataclasses import dataclass, replace

import torch

from vicjoint.training.build import Parts, length_of
from vicjoint.training.parallel import is_sharded
from vicjoint.training.plan import WITHIN, Share, out_of_a_node

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """gib: what torch can give of its memory. tflops: the data sheet's dense bfloat16 products, in 10^12
    operations a second."""

    gib: float
    tflops: float


GPUS = {
    "a100": Gpu(79.1, 312),
    "a100-40": Gpu(39.4, 312),
    "b200": Gpu(178.3, 2250),
    "h100": Gpu(79.1, 989),
    "h200": Gpu(139.7, 989),
    "l40s": Gpu(44.4, 362),
}


def in_words(
    parts: Parts, shares: list[Share], processes: int, per_node: int | None = None, gpu: str | None = None
) -> list[str]:
    """The plan, as the terminal shows it."""
    nodes = f" on {math.ceil(processes / per_node)} nodes of {per_node}" if per_node else ""
    lines = [
        f"plan for {processes:,} processes{nodes}; the largest share of a batch is {shares[0].samples:,} of"
        f" {parts.recipe.train.batch_size:,} samples",
        *(length_of(parts, task) for task in parts.tasks),
        *table(parts, shares, processes, per_node, gpu),
        *time_of(parts, shares, processes),
    ]
    if parts.device.type == "cpu" and is_sharded(parts.model):
        lines.append(
            "memory is without the gathered weights of the parts that compute, which a CPU does not tell of"
        )
    if parts.device.type == "cpu" and any((WITHIN, "all_gather") in share.received for share in shares):
        lines.append("batch norm: all_gather is that of CPUs, 24 bytes a channel and process; GPUs send 8")
    most = max(shares, key=lambda share: share.peak)
    return lines + ([fits(parts, most, gpu)] if gpu else [])


def table(
    parts: Parts, shares: list[Share], processes: int, per_node: int | None, gpu: str | None
) -> list[str]:
    """Memory, traffic and time of a step, a column for each task."""
    rows: list[tuple[str, list[str]]] = [("", [share.task for share in shares])]
    of_each = lambda label, value: rows.append((label, [value(share) for share in shares]))
    rows.append(("memory of a process", []))
    for part in shares[0].static:
        if any(share.static[part] for share in shares):
            of_each(f"  {part}", lambda share: size(share.static[part]))
    of_each("  gradients", lambda share: size(share.gradients))
    of_each("  activations", lambda share: size(share.activations))
    of_each("  objective", lambda share: size(share.objective))
    of_each("  optimizer's step, for a moment", lambda share: size(share.optimizer))
    of_each("  most at once", lambda share: size(share.peak))
    if processes > 1:
        rows.append(("traffic of a step, received by a process", []))
        for what in dict.fromkeys(key for share in shares for key in share.received):
            of_each(f"  {what[0]}: {what[1]}", lambda share: size(share.received[what]))
        of_each("  sum", lambda share: size(share.received.total()))
    if per_node:
        leaving = [out_of_a_node(share, processes, per_node) for share in shares]
        rows.append(("  out of a node", [size(n) for n in leaving]))
        rows.append(("  the same, at 100 Gbit/s", [f"{n * 8 / 1e8:.3g} ms" for n in leaving]))
    rows.append(("a step of a process", []))
    of_each("  samples", lambda share: f"{share.samples:,}")
    of_each("  operations", lambda share: count(share.operations))
    if gpu:
        of_each(f"  the same, at {gpu}'s peak", lambda s: f"{s.operations / GPUS[gpu].tflops / 1e9:.3g} ms")
    of_each("  seconds to train", lambda share: f"{share.seconds:.3g}")
    of_each("  seconds to read, one process", lambda share: f"{share.reading:.3g}")
    left = max(len(label) for label, _ in rows)
    widths = [max(10, len(share.task)) + 2 for share in shares]
    return [
        (label.ljust(left) + "".join(cell.rjust(width) for cell, width in zip(cells, widths))).rstrip()
        for label, cells in rows
    ]


def time_of(parts: Parts, shares: list[Share], processes: int) -> list[str]:
    """How long all steps take, and where that was measured."""
    workers = parts.recipe.data.workers
    # with workers, reading goes on beside training and only the slower of the two counts
    each = [max(s.seconds, s.reading / workers) if workers else s.seconds + s.reading for s in shares]
    mean = sum(seconds * float(share) for seconds, share in zip(each, parts.shares.of))
    hours = mean * parts.steps / 3600
    cuda = parts.device.type == "cuda"
    here = torch.cuda.get_device_name(parts.device) if cuda else "a CPU"
    between = ", without what goes between processes" if processes > 1 else ""
    return [
        f"estimated time: {hours * 60:.1f} min"
        + f" = {hours:,.1f} h" * (hours >= 2)
        + f" for {parts.steps:,} steps"
        f"{between} and evaluations; measured here, on {here}: another machine takes another time"
    ]


def fits(parts: Parts, share: Share, gpu: str) -> str:
    """Whether a process fits into a GPU, and what to change where it does not."""
    room = GPUS[gpu].gib * GIB
    if share.peak <= room:
        return f"fits: {size(share.peak)} of the {size(room)} of {gpu}"
    static = share.static["weights and buffers"]
    of = {
        "activations": share.activations,
        "objective": share.objective,
        "weights and buffers": static,
        "all else": share.peak - share.activations - share.objective - static,
    }
    largest = " + ".join(f"{part} {size(n)}" for part, n in of.items() if n > 0)
    said = f"does not fit: {largest} = {size(share.peak)} of the {size(room)} of {gpu}: "
    pieces = pieces_that_fit(parts, share, room)
    if pieces:
        return said + f"raise train.accumulate to {pieces}."
    return said + "no train.accumulate makes it fit. Take more processes, a smaller model or a larger GPU."


def pieces_that_fit(parts: Parts, share: Share, room: float) -> int | None:
    """The smallest `train.accumulate` with which a share fits."""
    now, exact = parts.recipe.train.accumulate, parts.recipe.train.exact
    task = next(task for task in parts.tasks if task.name == share.task)
    records = share.samples // task.pair.samples_per_record
    for pieces in range(now + 1, records + 1):
        if records % pieces or share.samples // pieces < 2:
            continue
        part = replace(
            share,
            # with exact statistics all embeddings wait, and their gradients after them
            activations=share.activations * now / pieces + (2 * share.embeddings if exact else 0),
            waiting=share.embeddings if exact else share.waiting * now / pieces,
            objective=share.objective if exact else share.objective * now / pieces,
            overlap=0.0,
            keeps_gradients=not exact,
        )
        if part.peak <= room:
            return pieces
    return None


def count(number: float) -> str:
    """Three digits that count, and by how many thousands they are multiplied."""
    for unit in ("", " K", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} T"


def size(number: float) -> str:
    """Bytes in a unit of their size."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:,.3g} GiB" if number < 1000 else f"{number:,.0f} GiB"
