"""A recipe as the program works with it: named branches, and a list of tasks that train two of them each.

The short form (pair, a, b) is a way of writing one task on the branches a and b. `key` says where a branch or
a task stands in the file, for messages.
"""

from dataclasses import dataclass
from typing import Any, Literal

from vicjoint.recipe.keys import Branch, Checkpoint, Component, Data, Evaluate, Train, Written
from vicjoint.recipe.learning import DEFAULTS, Learning

Spec = dict[str, Any]
"""A component: `{name: ..., option: value}`."""


@dataclass(frozen=True)
class BranchSpec:
    name: str
    key: str
    modality: Spec
    encoder: Spec
    expander: list[int]
    weights: Literal["own", "same", "ema"]
    """own; or those of branch a (same), or their moving average (ema) with `momentum`."""
    momentum: float
    learning: Learning = Learning()
    """A branch that follows a has a's."""


@dataclass(frozen=True)
class TaskSpec:
    """Branches a and b by name, what they are trained on together, the weight of their loss and their share
    of the steps. name: in
    metrics, such as video-audio. label: the same where the branches have names of their own, else empty."""

    name: str
    label: str
    key: str
    a: str
    b: str
    source: Spec
    source_name: str
    pair: Spec
    objective: Spec
    weight: float
    share: Literal["equal", "proportional"] | float = "equal"


@dataclass(frozen=True)
class Recipe:
    written: Written
    branches: dict[str, BranchSpec]
    tasks: list[TaskSpec]
    predictor: Spec | None
    optimizer: Spec
    schedule: Spec
    clip: float | None
    probes: list[Spec]
    name: str
    imports: list[str]
    out: str | None
    train: Train
    data: Data
    evaluate: Evaluate
    checkpoint: Checkpoint
    announcement: str | None

    def dump(self) -> dict:
        """Every key and value as written, in YAML's plain types."""
        return self.written.dump()


def canonical(written: Written) -> Recipe:
    """The recipe that a checked file means."""
    optimizer = spec(written.optim)
    schedule, clip = optimizer.pop("schedule"), optimizer.pop("clip")
    named = {f"branches.{name}": (name, branch) for name, branch in (written.branches or {}).items()}
    branches = named or {side: (side, branch) for side, branch in (("a", written.a), ("b", written.b))}
    return Recipe(
        written=written,
        branches={
            name: branch_spec(name, key, branch, branch if branch.weights == "own" else written.a)
            for key, (name, branch) in branches.items()
        },
        tasks=tasks_of(written),
        predictor=written.predictor and spec(written.predictor),
        optimizer=optimizer,
        schedule=schedule,
        clip=clip,
        probes=[spec(probe) for probe in written.evaluate.probes],
        **{key: getattr(written, key) for key in AS_WRITTEN},
    )


AS_WRITTEN = ("name", "imports", "out", "train", "data", "evaluate", "checkpoint", "announcement")


def branch_spec(name: str, key: str, branch: Branch, leader: Branch) -> BranchSpec:
    """leader: the branch whose weights it has."""
    modality = {"name": branch.modality} if isinstance(branch.modality, str) else spec(branch.modality)
    learning = Learning(**{key: getattr(leader, key) for key in DEFAULTS})
    expander = list(branch.expander)
    return BranchSpec(
        name, key, modality, spec(branch.encoder), expander, branch.weights, branch.momentum, learning
    )


def tasks_of(written: Written) -> list[TaskSpec]:
    """In the order of their turns."""
    if written.pairs is None:
        source = spec(written.source)
        return [
            TaskSpec(
                "a-b",
                "",
                "",
                "a",
                "b",
                source,
                source["name"],
                spec(written.pair),
                spec(written.objective),
                1.0,
            )
        ]
    tasks: list[TaskSpec] = []
    for number, pair in enumerate(written.pairs):
        before = sum((task.a, task.b) == (pair.a, pair.b) for task in tasks)
        name = f"{pair.a}-{pair.b}" + (f"-{before + 1}" if before else "")
        source = spec(pair.source or written.source)
        source_name = f"{source['name']} (pairs.{number})" if pair.source else source["name"]
        objective = spec(pair.objective or written.objective)
        key = f"pairs.{number}."
        tasks.append(
            TaskSpec(
                name,
                name,
                key,
                pair.a,
                pair.b,
                source,
                source_name,
                spec(pair.pair),
                objective,
                pair.weight,
                pair.share,
            )
        )
    return tasks


def spec(component: Component) -> Spec:
    return component.model_dump()
