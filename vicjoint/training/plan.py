"""What a run on many processes would need, before it is paid for: `--dry-run --processes 256`.

One process takes its share of a step among processes that are not there (`distributed.pretended`): it runs
the model on its samples and the objective on embeddings of the right shape, and a `Ledger` counts what they
hold and what they receive. A share of more samples than MEASURED is measured on two smaller ones; memory,
time and operations of the model are linear in it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_leaves

from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.batch import Batch, Boxed, WithCells
from vicjoint.batch_norm import synchronised
from vicjoint.objectives.spread import Guard
from vicjoint.parts import Objective
from vicjoint.recipe import Recipe
from vicjoint.training.build import Parts, Task, build_parts, length_of, try_one_record
from vicjoint.training.ledger import Ledger, size_of
from vicjoint.training.steps import update

MEASURED = 32  # samples
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


@dataclass
class Share:
    """What one process's part of a task's step takes.

    Bytes: static {part: bytes}, there all the time; gradients; activations, what the model holds at once for
    its samples; waiting, of them when the objective begins; objective; embeddings, which it is given;
    overlap, gradients that are not there when activations are at their most; optimizer, what its step holds
    for a moment; received {(what for, collective): bytes}. seconds to train, reading (seconds on one process)
    and operations are those of a step."""

    task: str
    samples: int
    static: dict[str, int] = field(default_factory=dict)
    gradients: int = 0
    activations: float = 0.0
    waiting: float = 0.0
    objective: int = 0
    embeddings: int = 0
    overlap: float = 0.0
    optimizer: int = 0
    received: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    reading: float = 0.0
    operations: float = 0.0
    keeps_gradients: bool = False
    """Whether those of earlier parts are there when the objective begins."""

    @property
    def peak(self) -> float:
        """Bytes that are there at once: in the objective, the backward pass, or the optimizer's step."""
        objective = self.waiting + self.objective + (self.gradients if self.keeps_gradients else 0)
        passes = self.activations + self.gradients - self.overlap
        return sum(self.static.values()) + max(objective, passes, self.gradients + self.optimizer)


class StandIn(Objective):
    """The means of both embeddings: costs nothing, so that what is measured is the model. waiting: what the
    ledger held when it was called."""

    def __init__(self, ledger: Ledger | None = None):
        super().__init__()
        self.ledger, self.waiting = ledger, 0

    def forward(self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None):
        if self.ledger is not None:
            self.waiting = max(self.waiting, self.ledger.held)
        return sum(x.mean() for x in tree_leaves((z_a, z_b))), {}


def plan(recipe: Recipe, processes: int) -> tuple[Parts, list[Share]]:
    """Build everything as the last of so many processes, and measure a step of each task. Raises RecipeError
    where the batch cannot be divided."""
    with distributed.pretended(processes):
        parts = build_parts(recipe)
        try_one_record(parts)
        parts.model.train()
        if processes > 1 and recipe.train.sync_batch_norm:
            parts.model = synchronised(parts.model, parts.device)
        batches = {task.name: read(parts, task, records_to_measure(parts, task)[-1]) for task in parts.tasks}
        for task in parts.tasks:  # a warm-up; the optimizer's state comes with it
            model_step(parts, task, batches[task.name][0], StandIn())
            update(parts)
        return parts, [measure(parts, task, *batches[task.name]) for task in parts.tasks]


def measure(parts: Parts, task: Task, batch, reading: float) -> Share:
    """The share of this process, the last one. batch: as many of its samples as are measured."""
    recipe, records = parts.recipe, own_records(task)
    share = Share(task.name, records * task.pair.samples_per_record)
    share.reading = reading * share.samples / len(batch)
    sizes = records_to_measure(parts, task)
    # largest first: the model is warm for it
    measured = [
        measure_model(parts, task, read(parts, task, size)[0] if size < sizes[-1] else batch)
        for size in sizes[::-1]
    ]
    of_share = lambda name: at(records, sizes[::-1], [m[name] for m in measured])
    largest = measured[0]
    share.activations, share.waiting = of_share("activations"), of_share("waiting")
    share.gradients, share.overlap = largest["gradients"], largest["overlap"]
    share.keeps_gradients = recipe.train.accumulate > 1 and not recipe.train.exact
    share.received += Counter({("batch norm", c): n for c, n in largest["received"].items()})
    share.received += Counter(exchanged_gradients(parts, share.gradients))
    objective = measure_objective(parts, task, share.samples, batch)
    share.objective, share.embeddings = objective["peak"], objective["embeddings"]
    share.received += Counter({("objective", c): n for c, n in objective["received"].items()})
    with Ledger(parts.device) as ledger:
        distributed.anywhere(False, False)  # bad samples, signals
        distributed.total(torch.zeros(1, device=parts.device))  # a loss that is not finite
    share.received += Counter({("checks", c): n for c, n in ledger.received.items()})
    model_step(parts, task, batch, StandIn())
    with Ledger(parts.device) as ledger:
        updating = seconds_of(parts, lambda: update(parts))
    share.optimizer = ledger.peak
    share.seconds = of_share("seconds") + objective["seconds"] + updating
    share.operations = of_share("operations") + objective["operations"]
    share.static = static(parts, batch, share)
    return share


def static(parts: Parts, batch, share: Share) -> dict[str, int]:
    """{part: bytes} of what is there all the time."""
    modules = [parts.model, *(task.objective for task in parts.tasks)]
    weights = size_of(x for module in modules for x in module.parameters())
    buffers = size_of(x for module in modules for x in module.buffers())
    state = size_of(x for values in parts.optimizer.state.values() for x in values.values())
    raw = size_of(tree_iter((batch.a, batch.b, batch.group)))
    trained = size_of(p for p in parts.model.parameters() if p.requires_grad)
    return {
        "weights and buffers": weights + 2 * buffers,  # a step that fails goes back to a copy of the buffers
        "the model before its first step": size_of(
            (*parts.untrained.parameters(), *parts.untrained.buffers())
        ),
        "optimizer": state,
        "gradients on their way": trained if exchanges_gradients() else 0,
        "batch": raw * share.samples // len(batch),
    }


# ---- the model ----


def own_records(task: Task) -> int:
    """Of a batch: the last process has the largest share."""
    return math.ceil(task.records_per_batch / distributed.world_size())


def records_to_measure(parts: Parts, task: Task) -> list[int]:
    """One or two numbers of records, multiples of `train.accumulate` where they are not the whole share."""
    own, pieces = own_records(task), parts.recipe.train.accumulate
    if own * task.pair.samples_per_record <= MEASURED:
        return [own]
    # batch norm needs two samples in a part
    half = pieces * max(1, MEASURED // 2 // task.pair.samples_per_record // pieces)
    half = max(half, pieces * math.ceil(2 / task.pair.samples_per_record))
    return [half, 2 * half] if 2 * half < own else [own]


def read(parts: Parts, task: Task, records: int):
    """(a batch of so many records on the device, seconds it took to read)."""
    began = time.perf_counter()
    whole = min(records * distributed.world_size(), task.records_per_batch)
    batch, _ = next(parts.batches_of(task, 1, whole))
    return batch.to(parts.device), time.perf_counter() - began


def model_step(parts: Parts, task: Task, batch, objective: Objective) -> None:
    backward(parts.model, objective, batch, parts.recipe.train, task.number, task.gradient_b)


def measure_model(parts: Parts, task: Task, batch) -> dict:
    """Forward and backward pass of a batch, once from no gradients on as in the loop, once with them."""
    model_step(parts, task, batch, StandIn())
    seconds = seconds_of(parts, lambda: model_step(parts, task, batch, StandIn()))
    parts.optimizer.zero_grad(set_to_none=True)
    with Ledger(parts.device) as alone:
        model_step(parts, task, batch, StandIn())
    with Ledger(parts.device) as ledger:
        objective = StandIn(ledger)
        model_step(parts, task, batch, objective)
    gradients = size_of(p.grad for p in parts.model.parameters())
    return {
        "activations": ledger.peak,
        "waiting": objective.waiting,
        "gradients": gradients,
        "overlap": max(0, gradients + ledger.peak - alone.peak),
        "received": ledger.received,
        "operations": ledger.operations,
        "seconds": seconds,
    }


def at(x: float, places: list[int], values: list[float]) -> float:
    """On the line through one or two points; through one, it is the value there."""
    if len(places) == 1:
        return values[0]
    slope = (values[0] - values[1]) / (places[0] - places[1])
    return values[0] + slope * (x - places[0])


def seconds_of(parts: Parts, call: Callable) -> float:
    synchronise = torch.cuda.synchronize if parts.device.type == "cuda" else lambda: None
    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - began


# ---- the objective ----


def measure_objective(parts: Parts, task: Task, samples: int, batch: Batch) -> dict:
    """The objective of this process's embeddings among those of all, of random numbers."""
    options, dim = parts.recipe.train, parts.recipe.branches[task.spec.a].expander[-1]
    times = 1 if options.exact else options.accumulate
    rows = samples // times * task.pair.crops
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.get_default_dtype()
    z_a, z_b = (torch.randn(rows, dim, device=parts.device).to(dtype) for _ in "ab")
    if isinstance(batch.a, Boxed):  # as many cells as the model gives
        with torch.no_grad():
            given = parts.model(batch.a, batch.b, task.number)
        more = [[torch.randn(rows, *x.shape[1:], device=x.device) for x in view[1:]] for view in given]
        z_a, z_b = (WithCells(z, cells.to(dtype), places) for z, (cells, places) in zip((z_a, z_b), more))
    seen = tree_leaves(z_a) + (tree_leaves(z_b) if task.gradient_b else [])
    group = torch.arange(samples // times, device=parts.device) // task.pair.samples_per_record
    for module in task.objective.modules():
        if isinstance(module, Guard):
            module.LEAST = -math.inf  # the digits of numbers that are not there say nothing

    def step() -> None:
        for x in seen:
            x.requires_grad_()
        task.objective(z_a, z_b, group)[0].backward()
        for x in seen:
            x.grad = None

    step()
    seconds = seconds_of(parts, step)
    with Ledger(parts.device) as ledger:
        step()
    return {
        "peak": ledger.peak,
        "embeddings": times * sum(x.nbytes for x in tree_leaves((z_a, z_b))),
        "received": {name: times * n for name, n in ledger.received.items()},
        "operations": times * ledger.operations,
        "seconds": times * seconds,
    }


# ---- between processes ----


def exchanges_gradients() -> bool:
    """Whether DistributedDataParallel sums the gradients, in a copy of its own."""
    return distributed.world_size() > 1


def exchanged_gradients(parts: Parts, gradients: int) -> dict[tuple[str, str], float]:
    """What DistributedDataParallel does, beside the model: the sum of all trained parameters' gradients, and
    the first process's buffers for all."""
    if not exchanges_gradients():
        return {}
    others = 1 - 1 / distributed.world_size()
    trained = [p for p in parts.model.parameters() if p.requires_grad]
    return {
        ("gradients", "all_reduce"): 2 * others * size_of(trained),
        ("buffers", "broadcast"): others * size_of(parts.model.buffers()),
    }


def out_of_a_node(share: Share, processes: int, per_node: int) -> float:
    """Bytes of a step that leave a node: of a ring one process sends to the next node what each receives; an
    exchange of columns goes from each process to each."""
    if processes <= per_node:
        return 0.0
    direct = per_node * (processes - per_node) / (processes - 1)
    return sum(n * (direct if name == "all_to_all" else 1) for (_, name), n in share.received.items())


# ---- in words ----


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
    if parts.device.type == "cpu" and any(("batch norm", "all_gather") in share.received for share in shares):
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
