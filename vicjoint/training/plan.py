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
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_leaves

from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.batch import Batch, Boxed, Futures, WithCells
from vicjoint.batch_norm import synchronised
from vicjoint.objectives.spread import Guard
from vicjoint.parts import Objective
from vicjoint.recipe import Recipe
from vicjoint.training.build import Parts, Task, build_parts, try_one_record
from vicjoint.training.ledger import Ledger, size_of
from vicjoint.training.parallel import computed_again, is_sharded, shard
from vicjoint.training.parallel import pieces as pieces_of
from vicjoint.training.steps import update

MEASURED = 32  # samples
WITHIN, WITHIN_FSDP = "batch norm", "weights, gradients, batch norm"  # what the model itself exchanges


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
        shard(parts)
        if processes > 1 and recipe.train.sync_batch_norm and not is_sharded(parts.model):
            parts.model = synchronised(parts.model, parts.device)
        if recipe.train.checkpoint_activations:
            for piece in pieces_of(parts.model):
                piece.forward = computed_again(piece)
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
    within = WITHIN_FSDP if is_sharded(parts.model) else WITHIN
    share.received += Counter({(within, c): n for c, n in largest["received"].items()})
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
        "gradients on their way": trained if exchanges_gradients(parts) else 0,
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
    rows = samples // times * task.pair.crops * task.pair.targets
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.get_default_dtype()
    z_a, z_b = (torch.randn(rows, dim, device=parts.device).to(dtype) for _ in "ab")
    if isinstance(batch.a, Boxed):  # as many cells as the model gives
        with torch.no_grad():
            given = parts.model(batch.a, batch.b, task.number)
        more = [[torch.randn(rows, *x.shape[1:], device=x.device) for x in view[1:]] for view in given]
        z_a, z_b = (WithCells(z, cells.to(dtype), places) for z, (cells, places) in zip((z_a, z_b), more))
    if parts.model.several:
        more = [torch.randn(rows, n, device=parts.device).to(dtype) for n in (parts.model.latents,) * 2]
        every = z_a[:, None].repeat(1, parts.model.latents, 1)
        z_a = Futures(z_a, every, more[0].softmax(1), more[1])
    seen = tree_leaves(z_a) + (tree_leaves(z_b) if task.gradient_b else [])
    of_samples = torch.arange(samples // times, device=parts.device) // task.pair.samples_per_record
    group = of_samples.repeat_interleave(task.pair.targets)
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


def exchanges_gradients(parts: Parts) -> bool:
    """Whether DistributedDataParallel sums the gradients, in a copy of its own."""
    return distributed.world_size() > 1 and not is_sharded(parts.model)


def exchanged_gradients(parts: Parts, gradients: int) -> dict[tuple[str, str], float]:
    """What DistributedDataParallel does, beside the model: the sum of all trained parameters' gradients, and
    the first process's buffers for all."""
    if not exchanges_gradients(parts):
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
