"""Recipe -> everything it describes, built and put together: sources, pairs, model, objectives, optimizer,
probes.

A recipe of one pair and one of several go the same way: one pair is a list of one.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from vicjoint import data, distributed
from vicjoint.recipe import PairOfBranches, Recipe, RecipeError
from vicjoint.model import JointModel, SharedBranches, as_spec, build_model, modality_spec
from vicjoint.objectives.multicrop import MultiCrop
from vicjoint.parts import Objective
from vicjoint.data.readers import Readers
from vicjoint.registry import build, find, nearest, options
from vicjoint.data.time_limit import TimeLimit


@dataclass
class TrainedPair:
    """Two branches and what they are trained on together. `name`: in metrics and evaluations, such as
    video-audio."""

    name: str
    spec: PairOfBranches
    source: object
    source_name: str
    pair: object
    objective: nn.Module
    records_per_batch: int


@dataclass
class Measure:
    """A probe on two branches, and the name of its results."""

    name: str
    probe: object
    branches: tuple[str, str]
    source: object
    pair: object


@dataclass
class Parts:
    """Everything a recipe describes, built."""

    recipe: Recipe
    pairs: list[TrainedPair]
    model: JointModel | SharedBranches
    untrained: (
        JointModel | SharedBranches
    )  # as the model was before its first step: a row in every evaluation
    optimizer: torch.optim.Optimizer
    measures: list[Measure]
    steps: int
    steps_per_epoch: float
    device: torch.device
    limit: TimeLimit  # for reading a sample

    def batches(self, workers: int, start: int, end: int) -> Readers:
        """(Pair, bad samples) of the steps start..end-1; the pairs take turns."""
        return Readers(self.streams(), [p.records_per_batch for p in self.pairs], workers, start, end)

    def streams(self) -> list[data.Stream]:
        return [
            data.Stream(p.source.train, p.pair, self.recipe.train.seed, number, self.limit)
            for number, p in enumerate(self.pairs)
        ]


class Weighted(Objective):
    """`objective` times a factor."""

    def __init__(self, objective: Objective, weight: float):
        super().__init__()
        self.objective, self.weight, self.terms = objective, weight, objective.terms

    def forward(self, z_a, z_b, group=None):
        loss, terms = self.objective(z_a, z_b, group)
        return self.weight * loss, {name: self.weight * value for name, value in terms.items()}

    def describe(self, dim: int) -> str | None:
        return self.objective.describe(dim)


def build_parts(recipe: Recipe) -> Parts:
    """Build every component; a value that a component refuses comes out as a RecipeError."""
    device = pick_device(recipe.train.device)
    try:
        pairs = build_pairs(recipe, device)
        torch.manual_seed(recipe.train.seed)
        untrained = build_model(recipe)
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe).to(device)
        check_reading_options(recipe, pairs)
        check_files(pairs)
        for p in pairs:
            connect(p.pair, p.source, model.between(p.spec.a, p.spec.b))
        spec = as_spec(recipe.optim)
        spec.pop("schedule"), spec.pop("clip")
        optimizer = build(
            "optimizer", spec, nn.ModuleList([model, *(p.objective for p in pairs)]), recipe.train.batch_size
        )
        measures = build_measures(recipe, pairs, model)
        check_best(recipe, measures)
        check_distinct(pairs)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(str(error)) from error
    # of several pairs, the one with the longest epoch decides
    rounds = max(
        math.ceil((recipe.train.epochs or 0) * len(p.source.train) / p.records_per_batch) for p in pairs
    )
    steps_per_epoch = len(pairs) * max(len(p.source.train) / p.records_per_batch for p in pairs)
    return Parts(
        recipe,
        pairs,
        model,
        untrained.to(device),
        optimizer,
        measures,
        recipe.train.steps or len(pairs) * rounds,
        steps_per_epoch,
        device,
        TimeLimit(recipe.data.timeout),
    )


def build_pairs(recipe: Recipe, device: torch.device) -> list[TrainedPair]:
    """Every pair with its source (built once where several use the same) and its own objective."""
    found, sources = [], {}
    for number, spec in enumerate(recipe.listed_pairs()):
        own = bool(recipe.pairs and recipe.pairs[number].source)
        named = f"{spec.source.name} (pairs.{number})" if own else spec.source.name
        if (key := repr(as_spec(spec.source))) not in sources:
            sources[key] = build("source", as_spec(spec.source)), named
        source, source_name = sources[key]
        pair = build_pair(recipe, as_spec(spec.pair))
        objective = build("objective", as_spec(spec.objective))
        if (crops := getattr(pair, "crops", 1)) > 1:
            objective = MultiCrop(objective, crops)
        if spec.weight != 1:
            objective = Weighted(objective, spec.weight)
        before = sum((p.spec.a, p.spec.b) == (spec.a, spec.b) for p in found)
        name = f"{spec.a}-{spec.b}" + (f"-{before + 1}" if before else "")
        found.append(
            TrainedPair(
                name, spec, source, source_name, pair, objective.to(device), records_in_a_batch(recipe, pair)
            )
        )
    return found


def build_pair(recipe: Recipe, spec: dict):
    pair = build("pair", spec)
    pair.backend, pair.workers = recipe.data.video_backend, recipe.data.workers
    return pair


def connect(pair, source, model: JointModel) -> None:
    """Give a pair that reads through its branches' modalities copies of them, for the workers, and the
    source."""
    if hasattr(pair, "modalities"):
        pair.source = source
        pair.modalities = tuple(copy.deepcopy(branch.modality).cpu().eval() for branch in (model.a, model.b))


def check_files(pairs: list[TrainedPair]) -> None:
    """Raises ValueError where a pair that reads the file of a record (it names the keys that may hold it in
    `reads`) meets records without one."""
    for p in pairs:
        record, reads = p.source.train[0], getattr(p.pair, "reads", ())
        if reads and not any(key in record for key in reads):
            pair, there = p.spec.pair.name, ", ".join(key for key in record if key not in ("id", "folder"))
            raise ValueError(
                f"pair '{pair}' reads one file of every record, and those of source '{p.spec.source.name}'"
                f" have none; they have {there or 'no columns'}. In a table, name the column with the files:"
                " source.column=COLUMN. Cells are read by the pair cross_modal."
            )


def records_in_a_batch(recipe: Recipe, pair) -> int:
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
    if records // world % recipe.train.accumulate:
        raise RecipeError(
            f"train.accumulate: {records // world} records a batch cannot be cut into"
            f" {recipe.train.accumulate} equal parts."
        )
    return records


def check_distinct(pairs: list[TrainedPair]) -> None:
    """Raises ValueError where a batch is larger than the number of different values of the pair's `distinct`
    column."""
    for p in pairs:
        if getattr(p.pair, "distinct", None):
            data.Distinct(p.source.train, p.pair).set_batch(p.records_per_batch)


def check_reading_options(recipe: Recipe, pairs: list[TrainedPair]) -> None:
    """Raises RecipeError for options of a modality that only matter where it reads files, set although every
    pair with that branch reads for itself."""
    found = []
    for name, branch in recipe.named_branches().items():
        users = [(number, p) for number, p in enumerate(pairs) if name in (p.spec.a, p.spec.b)]
        if branch.weights != "own" or any(hasattr(p.pair, "modalities") for _, p in users):
            continue
        number, first = users[0]
        key, pair_key = (f"branches.{name}", f"pairs.{number}.pair") if recipe.pairs else (name, "pair")
        spec, pair_name = modality_spec(branch), first.spec.pair.name
        for option in getattr(find("modality", spec["name"]), "reading", ()):
            if option in spec:
                instead = (
                    f"Set {pair_key}.{option} instead"
                    if option in options(find("pair", pair_name))
                    else "Leave it out"
                )
                found.append(
                    f"{key}.modality.{option}: pair '{pair_name}' reads its samples itself, so this option"
                    f" would change nothing. {instead}, or choose a pair that reads through the modality,"
                    " such as cross_modal."
                )
    if found:
        raise RecipeError("\n".join(found))


# ---- probes ----


def build_measures(recipe: Recipe, pairs: list[TrainedPair], model) -> list[Measure]:
    """Each probe on the first pair, on the first that has its `branch`, or where its class says `all_pairs`,
    on every two branches. A probe keeps what it has read, so each measure has its own. What cannot be
    measured is left out, and a line says why. Raises ValueError for a probe of another pair."""
    found = []
    for spec in map(as_spec, recipe.evaluate.probes):
        given, branch = spec.pop("as", None), spec.get("branch") if recipe.branches else None
        everywhere = getattr(find("probe", spec["name"]), "all_pairs", False)
        possible = (
            every_two_branches(recipe, pairs, model)
            if everywhere
            else [((p.spec.a, p.spec.b), p.source, p.pair) for p in pairs]
        )
        if branch:
            possible = [place for place in possible if branch in place[0]]
        reasons = {}
        for (a, b), source, pair in possible if everywhere or branch else possible[:1]:
            of = f" {branch}" if branch and not everywhere else f" {a}-{b}"
            name = (given or spec["name"]) + (of if recipe.pairs and (everywhere or not given) else "")
            probe = build("probe", {**spec, "branch": "ab"[(a, b).index(branch)]} if branch else spec)
            reason = (
                pair
                if isinstance(pair, str)
                else probe.misses(source, pair)
                if hasattr(probe, "misses")
                else None
            )
            if reason:
                reasons.setdefault(name, reason)
                continue
            reasons.pop(name, None)
            found.append(Measure(name, probe, (a, b), source, pair))
            if not everywhere:
                break
        for name, reason in reasons.items() if distributed.rank() == 0 else ():
            print(f"probe {name} is left out: {reason}")
    return found


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


def every_two_branches(recipe: Recipe, pairs: list[TrainedPair], model) -> list[tuple]:
    """((name of a, name of b), source, pair that reads both, or why there is none), those trained together
    first."""
    trained = {}
    for p in pairs:
        trained.setdefault((p.spec.a, p.spec.b), (p.source, p.pair))
    names = list(recipe.named_branches())
    others = [
        two for two in itertools.combinations(names, 2) if two not in trained and two[::-1] not in trained
    ]
    return [(two, *given) for two, given in trained.items()] + [
        (two, *read_together(recipe, pairs, model, *two)) for two in others
    ]


def read_together(recipe: Recipe, pairs: list[TrainedPair], model, a: str, b: str) -> tuple:
    """(source, pair that reads the columns of two branches that are not trained together); instead of the
    pair, the reason why there is none. The pair has the options of the two that the branches are trained in;
    where those differ, a's."""
    if recipe.branches[a].expander[-1] != recipe.branches[b].expander[-1]:
        return None, "the embeddings of the two branches differ in width"
    uses = [
        [
            (p, as_spec(p.spec.pair), side)
            for p in pairs
            if hasattr(p.pair, "modalities")
            for side in ("a", "b")
            if getattr(p.spec, side) == name
        ]
        for name in (a, b)
    ]
    for (p, of_a, side_a), (q, of_b, side_b) in itertools.product(*uses):
        if p.source is not q.source or of_a["name"] != of_b["name"] or not {"a", "b"} <= {*of_a} & {*of_b}:
            continue
        spec = (
            of_b
            | {key: value for key, value in of_a.items() if value is not None}
            | {"a": of_a[side_a], "b": of_b[side_b]}
        )
        try:
            pair = build_pair(recipe, spec)
            connect(pair, p.source, model.between(a, b))
        except ValueError as error:
            return None, str(error)
        return p.source, pair
    return None, "no source has both, by pairs of one kind that name columns a and b"


# ---- the first sample ----


@torch.no_grad()
def try_one_record(parts: Parts) -> None:
    """Send one record through both branches of every pair before anything is written: a model that does not
    fit its views is a wrong recipe."""
    parts.model.eval()
    for number, stream in enumerate(parts.streams()):
        pair, _ = next(iter(data.batches(stream, distributed.world_size(), 0, 0, 1)))
        try:
            on_device = pair.to(parts.device)
            parts.model(on_device.a, on_device.b, number)
        except (ValueError, RuntimeError) as error:
            shapes = " and ".join(map(shape_of, (on_device.a, on_device.b)))
            which = f"{parts.pairs[number].name}'s" if parts.recipe.pairs else "this pair's"
            raise RecipeError(f"the encoders cannot take {which} views {shapes}: {error}") from error


def shape_of(view) -> str:
    if isinstance(view, (tuple, list)):
        return " + ".join(map(shape_of, view))
    return str(list(view.shape)) if hasattr(view, "shape") else f"{type(view).__name__} of {len(view)}"


def pick_device(asked: str) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "train.device: cuda was asked for, but torch sees no GPU. Expected auto or cpu on this machine."
        )
    return torch.device(asked, torch.cuda.current_device()) if asked == "cuda" else torch.device(asked)
