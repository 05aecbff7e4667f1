"""Recipe -> everything a run needs, built and put together: tasks, model, optimizer, evaluation."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn

from vicjoint import distributed
from vicjoint.batch import Batch, Conditioned, Following
from vicjoint.data.clips import check_clips, reads_clips
from vicjoint.data.fingerprint import Fingerprint, fingerprint
from vicjoint.data.kept import check_kept
from vicjoint.data.readers import Readers
from vicjoint.data.reading import TaskReading, build_reading, notes_of, read_together, sources_of
from vicjoint.data.shares import Shares
from vicjoint.data.stream import Stream, batches
from vicjoint.data.time_limit import TimeLimit
from vicjoint.files.guard import printable
from vicjoint.model import Model, build_model
from vicjoint.objectives.futures import OfFutures
from vicjoint.objectives.multicrop import MultiCrop
from vicjoint.parts import EvaluationData, Modality, Objective, Pair, Probe
from vicjoint.probes.evaluation import Evaluation, Measure
from vicjoint.recipe import Recipe, RecipeError
from vicjoint.registry import build, find, nearest
from vicjoint.training.beginning import Beginning, read_beginnings


@dataclass
class Task(TaskReading):
    """Two branches with their source, pair, objective and weight, trained in turn with the others. `number`:
    its turn. `gradient_b`: whether branch b is trained; it may follow a, or be frozen."""

    number: int
    objective: Objective
    gradient_b: bool
    records_per_batch: int
    stream: Stream
    """Of its training records, in such batches."""

    @property
    def name(self) -> str:
        """In metrics, such as video-audio."""
        return self.spec.name


@dataclass
class Parts:
    """Everything a recipe describes, built. `untrained`: the model as it was before its first step, a row in
    every evaluation. `limit`: of the time for reading a sample. `unused`: which records probes leave out.
    `shares`: whose turn a step is.
    `begins`: what branches begin as that do not begin at random. `pairs_of_kept`: {number of a task: the pair
    that reads kept features}."""

    recipe: Recipe
    tasks: list[Task]
    model: Model
    untrained: Model
    optimizer: torch.optim.Optimizer
    evaluation: Evaluation
    steps: int
    steps_per_epoch: float
    device: torch.device
    limit: TimeLimit
    unused: list[str]
    shares: Shares
    begins: dict[str, Beginning]
    pairs_of_kept: dict[int, Pair] = field(default_factory=dict)

    def batches(self, workers: int, start: int, end: int) -> Readers:
        """(Batch, bad samples) of the steps start..end-1; the tasks take turns."""
        streams, records = list(map(self.stream, self.tasks)), [t.records_per_batch for t in self.tasks]
        return batches(streams, records, workers, start, end, self.shares)

    def turn(self, step: int) -> tuple[Task, int]:
        """(the task that a step trains, the number of its batch), both from 0."""
        number, batch = self.shares.turn(step)
        return self.tasks[number], batch

    def batches_of(self, task: Task, count: int, records: int | None = None) -> Readers:
        """(Batch, bad samples) of the first `count` batches of one task, read by this process; `records`: in
        each, the recipe's by default."""
        return batches([self.stream(task)], [records or task.records_per_batch], 0, 0, count)

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """{source: what its data are known by}."""
        return {task.source_name: fingerprint(task.whole) for task in self.tasks}

    def stream(self, task: Task) -> Stream:
        return task.stream.again(self.pairs_of_kept.get(task.number, task.pair), self.limit)


class Weighted(Objective):
    """`objective` times a factor."""

    def __init__(self, objective: Objective, weight: float):
        super().__init__()
        self.objective, self.weight, self.terms = objective, weight, objective.terms

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.objective(z_a, z_b, group)
        return self.weight * loss, {name: self.weight * value for name, value in terms.items()}

    def pull(self, dim: int) -> float | None:
        pull = self.objective.pull(dim)
        return None if pull is None else self.weight * pull

    def describe(self, dim: int) -> str | None:
        return self.objective.describe(dim)


def build_parts(recipe: Recipe) -> Parts:
    """Build every component; a value that a component refuses comes out as a RecipeError."""
    device = pick_device(recipe.train.device)
    try:
        reading, readers = build_reading(recipe)
        tasks = [build_task(recipe, number, task, device) for number, task in enumerate(reading)]
        check_clips(recipe, [task.pair for task in tasks])
        begins = read_beginnings(recipe)
        said = [begin.line for begin in begins.values()]
        lines = [*sources_of(tasks), *never_of(tasks), *notes_of(recipe, readers), *said]
        for line in lines if distributed.is_first() else ():
            print(line)
        given = {name: begin.state for name, begin in begins.items()}
        torch.manual_seed(recipe.train.seed)
        untrained = build_model(recipe, given).to(device)
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe, given).to(device)
        if model.several:
            for task in tasks:
                task.objective = OfFutures(task.objective, model.prior is not None)
        optimizer = build_optimizer(recipe, model, tasks)
        measures, unused = build_measures(recipe, tasks, readers)
        check_best(recipe, measures)
        # a limit of its own: each watches the processes that read for it
        evaluation = Evaluation(measures, recipe.data.workers, TimeLimit(recipe.data.timeout), device)
        limit, shares = TimeLimit(recipe.data.timeout), shares_of(tasks)
        parts = Parts(
            recipe,
            tasks,
            model,
            untrained,
            optimizer,
            evaluation,
            *length(recipe, tasks, shares),
            device,
            limit,
            unused,
            shares,
            begins,
        )
        for task in tasks:
            check_kept(recipe, task.spec.a, task.spec.b, task.pair, task.source)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(str(error)) from error
    return parts


def build_optimizer(recipe: Recipe, model: Model, tasks: list[Task]) -> torch.optim.Optimizer:
    """Of the parameters that the model and the objectives have now."""
    trained = nn.ModuleList([model, *(t.objective for t in tasks)])
    return build("optimizer", recipe.optimizer, trained, recipe.train.batch_size)


def build_task(recipe: Recipe, number: int, task: TaskReading, device: torch.device) -> Task:
    objective = build("objective", task.spec.objective)
    objective.bind(task.pair)
    if task.pair.crops > 1:
        objective = MultiCrop(objective, task.pair.crops)
    if task.spec.weight != 1:
        objective = Weighted(objective, task.spec.weight)
    b = recipe.branches[task.spec.b]
    gradient_b = b.weights != "ema" and b.learning.train != "frozen"
    records = records_in_a_batch(recipe, task.pair)
    clips = recipe.data.clips_per_open if reads_clips(task.pair) else 1
    given = {f.name: getattr(task, f.name) for f in fields(TaskReading)}
    return Task(
        **given,
        number=number,
        objective=objective.to(device),
        gradient_b=gradient_b,
        records_per_batch=records,
        stream=build_stream(task, recipe.train.seed, number, records, clips),
    )


def build_stream(task: TaskReading, seed: int, number: int, records: int, clips: int = 1) -> Stream:
    """In batches of so many records, with so many clips of an opened file. Raises ValueError where a batch
    cannot be as the pair wants it."""
    order = task.source.order("train")
    stream = Stream(task.source.train, task.pair, seed, number, order=order, clips=clips)
    stream.set_batch(records)
    return stream


def never_of(tasks: list[Task]) -> list[str]:
    """A line for each task that has records which never come."""
    said = ((task.spec.label, task.stream.describe()) for task in tasks)
    return [f"{label}: {line}" if label else line for label, line in said if line]


def shares_of(tasks: list[Task]) -> Shares:
    """Proportional: by the batches of an epoch."""
    of = lambda t: (
        Fraction(t.stream.epoch_length, t.records_per_batch) if t.spec.share == "proportional" else 1
    )
    return Shares([of(t) if isinstance(t.spec.share, str) else t.spec.share for t in tasks])


def length(recipe: Recipe, tasks: list[Task], shares: Shares) -> tuple[int, float]:
    """(steps, steps of an epoch); of several tasks, the one whose epoch takes most steps decides."""
    epochs, every = recipe.train.epochs or 0, [1 / share for share in shares.of]  # steps for one of its own
    own = [math.ceil(epochs * t.stream.epoch_length / t.records_per_batch) for t in tasks]
    steps = max(math.ceil(number * each) for number, each in zip(own, every))
    while any(shares.count(i, steps) < number for i, number in enumerate(own)):
        steps += 1
    longest = max(t.stream.epoch_length / t.records_per_batch * float(each) for t, each in zip(tasks, every))
    return recipe.train.steps or steps, longest


def length_of(parts: Parts, task: Task) -> str:
    """Samples of an epoch, steps of a task."""
    per_record, several = task.pair.samples_per_record, len(parts.tasks) > 1
    which, records = f"{task.name}: " if several else "", task.stream.epoch_length
    if task.stream.clips is not None:
        per_record, records = per_record * task.stream.clips.number, records // task.stream.clips.number
    return (
        f"{which}samples: {records:,} records x {per_record} = {records * per_record:,} an epoch; steps:"
        f" {parts.shares.count(task.number, parts.steps):,} of {parts.recipe.train.batch_size}"
    )


def records_in_a_batch(recipe: Recipe, pair: Pair) -> int:
    """Records of a global batch. Raises RecipeError where records, processes and accumulated parts do not
    divide it."""
    per_record, size, world = pair.samples_per_record, recipe.train.batch_size, distributed.world_size()
    if size % per_record or size // per_record < world:
        raise RecipeError(
            f"train.batch_size: {size} samples cannot be made of records with {per_record} samples each on"
            f" {world} processes. Expected a multiple of"
            f" {per_record}{' (pair.windows)' if per_record > 1 else ''}, at least {per_record * world}."
        )
    records = size // per_record
    if records % pair.per_group:
        raise RecipeError(
            f"train.batch_size: {size} samples cannot be made of runs of {pair.per_group} records of a group"
            f" (pair.per_group). Expected a multiple of {pair.per_group * per_record}."
        )
    if records // world % recipe.train.accumulate:
        raise RecipeError(
            f"train.accumulate: {records // world} records a batch cannot be cut into"
            f" {recipe.train.accumulate} equal parts."
        )
    return records


# ---- probes ----


def build_measures(
    recipe: Recipe, tasks: Sequence[TaskReading], readers: dict[str, Modality]
) -> tuple[list[Measure], list[str]]:
    """(each probe where its scope says; lines, which are printed too, about probes and records that are left
    out). What cannot be measured is left out, and a line says why. Raises ValueError for a probe that the
    pair gives nothing to."""
    found, lines = [], []
    for spec in recipe.probes:
        given, spec = spec.get("as"), {key: value for key, value in spec.items() if key != "as"}
        branch, everywhere = spec.get("branch"), find("probe", spec["name"]).scope == "every_two"
        reasons: dict[str, str] = {}
        for label, branches, data in places(recipe, tasks, readers, everywhere, branch):
            of = f" {branch}" if branch and not everywhere else f" {label}"
            name = (given or spec["name"]) + (of if label and (everywhere or not given) else "")
            if isinstance(data, str):
                reasons.setdefault(name, data)
                continue
            probe = build("probe", spec | ({"branch": "ab"[branches.index(branch)]} if branch else {}))
            if reason := why_not(probe, data):
                reasons.setdefault(name, reason)
                continue
            reasons.pop(name, None)
            found.append(Measure(name, probe, data))
            if not everywhere:
                break
        lines += [f"probe {name} is left out: {reason}" for name, reason in reasons.items()]
    unused: dict[str, list[str]] = {}
    for measure in found:
        if said := measure.probe.unused(measure.data):
            unused.setdefault(said, []).append(measure.name)
    lines += [f"{', '.join(names)}: {said}" for said, names in unused.items()]
    for line in lines if distributed.is_first() else ():
        print(printable(line))
    return found, lines


def why_not(probe: Probe, data: EvaluationData) -> str | None:
    """Why there is nothing to measure. Raises ValueError where the pair does not give what the probe
    needs."""
    if probe.needs - data.pair.gives:
        raise ValueError(probe.refusal)
    return probe.misses(data)


def places(
    recipe: Recipe,
    tasks: Sequence[TaskReading],
    readers: dict[str, Modality],
    everywhere: bool,
    branch: str | None,
) -> Iterator[tuple[str, tuple[str, str], EvaluationData | str]]:
    """(label, names of a and b, what a probe sees of them, or why it cannot): those trained together first,
    and for a probe that is measured everywhere every other two."""
    trained = {}
    for task in tasks:
        trained.setdefault((task.spec.a, task.spec.b), task)
    for two, task in trained.items():
        if branch is None or branch in two:
            yield task.spec.label and "-".join(two), two, EvaluationData(two, task.evaluated, task.pair)
            if not (everywhere or branch):
                return
    for two in itertools.combinations(recipe.branches, 2) if everywhere else ():
        if two not in trained and two[::-1] not in trained and (branch is None or branch in two):
            found = read_together(recipe, tasks, readers, *two)
            yield "-".join(two), two, found if isinstance(found, str) else EvaluationData(two, *found)


def check_best(recipe: Recipe, measures: list[Measure]) -> None:
    """Raises ValueError where checkpoint.best asks for a probe that is not run while training."""
    best = recipe.checkpoint.best
    if best is None:
        return
    probe, names = best.removeprefix("-").rpartition("/")[0], [m.name for m in measures]
    if not recipe.evaluate.every:
        raise ValueError(
            f"checkpoint.best: {best} is measured while training, but evaluate.every is not set. Set"
            " evaluate.every, such as to checkpoint.every."
        )
    if probe not in names:
        raise ValueError(
            f"checkpoint.best: {best} is not PROBE/METRIC of a probe of this run.{nearest(probe, names)}"
            f" Expected one of {', '.join(names) or 'none, since evaluate.probes is empty'}, then / and one"
            " of its metrics."
        )


# ---- the first sample ----


@torch.no_grad()
def try_one_record(parts: Parts) -> None:
    """Send one record through both branches of every task before anything is written: a model that does not
    fit its views, or its probes, is a wrong recipe."""
    parts.model.eval()
    for task in parts.tasks:
        batch, _ = next(parts.batches_of(task, 1, distributed.world_size()))
        try:
            on_device = batch.to(parts.device)
            parts.model(on_device.a, on_device.b, task.number)
        except (ValueError, RuntimeError) as error:
            shapes = " and ".join(map(shape_of, (on_device.a, on_device.b)))
            which = f"{task.name}'s" if task.spec.label else "this pair's"
            raise RecipeError(f"the encoders cannot take {which} views {shapes}: {error}") from error
        try_one_sample(parts, task, on_device)
    if parts.recipe.train.compile:
        try_to_compile(parts.device)
    check_probes(parts)


def try_one_sample(parts: Parts, task: Task, batch: Batch) -> None:
    """Raises RecipeError where a process takes one sample at a time, of which there is no batch norm and, in
    parts with statistics of their own, no variance."""
    options, world = parts.recipe.train, distributed.world_size()
    samples = task.records_per_batch // world // options.accumulate * task.pair.samples_per_record
    together = world > 1 and options.sync_batch_norm  # batch norm sees all processes
    if samples > 1:
        return
    try:
        if options.accumulate > 1 and not options.exact:
            raise ValueError("the objective compares samples")
        if not together:
            copy.deepcopy(parts.model).train()(batch.a, batch.b, task.number)
    except ValueError as error:
        raise RecipeError(
            f"train.batch_size: {options.batch_size} samples leave one at a time to each of {world} processes"
            f" in {options.accumulate} parts (train.accumulate), which is too few: {error}. Raise"
            " train.batch_size, or lower train.accumulate."
        ) from error


def try_to_compile(device: torch.device) -> None:
    """Raises RecipeError where torch.compile has no compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # each compiler has errors of its own
        raise RecipeError(
            f"train.compile: torch.compile does not work here ({str(error).strip().splitlines()[0]:.300})."
            " Install the compiler that it asks for, or leave out train.compile."
        ) from error


def check_probes(parts: Parts) -> None:
    """Raises RecipeError for a probe that the model cannot give what it asks for."""
    try:
        parts.evaluation.check(parts.model, parts.untrained)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def shape_of(view) -> str:
    if isinstance(view, tuple | list):
        return " + ".join(map(shape_of, view))
    if isinstance(view, Conditioned):
        return f"{shape_of(view.view)} with a condition {shape_of(view.condition)}"
    if isinstance(view, Following):
        return shape_of(view.view)
    return str(list(view.shape)) if isinstance(view, Tensor) else f"{type(view).__name__} of {len(view)}"


def pick_device(asked: str) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "train.device: cuda was asked for, but torch sees no GPU. Expected auto or cpu on this machine."
        )
    return torch.device(asked, torch.cuda.current_device()) if asked == "cuda" else torch.device(asked)
