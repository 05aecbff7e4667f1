"""The reading half of a recipe, built: for each task its source and its pair, bound to the readers of its
branches.

No model, no device: what `check` and embeddings need.

    tasks, readers = build_reading(load_recipe("image_text"))
    tasks[0].pair.sample(tasks[0].source.train[0], rng)
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vicjoint.data.complete import of_pair, said
from vicjoint.files.guard import printable
from vicjoint.files.paths import user_path
from vicjoint.modalities.image import Pixels
from vicjoint.modalities.processors import processing_of
from vicjoint.parts import Modality, Pair, Reading, Source
from vicjoint.recipe import Recipe, RecipeError, Spec, TaskSpec
from vicjoint.registry import ComponentError, build, find, options


@dataclass
class TaskReading:
    """A task's half that reads. `whole`: its source; `source`: the same with the records that have all that
    the pair reads. `source_name`: in messages; of tasks that share a source, the first's."""

    spec: TaskSpec
    whole: Source
    source: Source
    source_name: str
    pair: Pair

    @property
    def evaluated(self) -> Source:
        """What evaluations look at: all records, where the views of a and b stand in different ones."""
        return self.whole if {"both", "rows"} & self.pair.gives == {"both"} else self.source


def build_reading(recipe: Recipe) -> tuple[list[TaskReading], dict[str, Modality]]:
    """(every task's source, built once where several use the same, and bound pair; the readers of the
    branches). Raises RecipeError where a component refuses a value, or parts do not fit."""
    try:
        readers = build_readers(recipe)
        sources: dict[str, tuple[Source, str]] = {}
        tasks = []
        for spec in recipe.tasks:
            if (key := repr(spec.source)) not in sources:
                sources[key] = build("source", spec.source), spec.source_name
            source, name = sources[key]
            tasks.append(TaskReading(spec, source, source, name, build("pair", spec.pair)))
        check_reading_options(recipe, tasks)
        for task in tasks:
            check_files(task)
            bind(task.pair, recipe, readers, (task.spec.a, task.spec.b), task.whole)
            task.source = of_pair(task.whole, task.pair)
        return tasks, readers
    except (ValueError, TypeError, OSError) as error:
        raise error if isinstance(error, RecipeError) else RecipeError(str(error)) from error


def sources_of(tasks: Sequence[TaskReading]) -> list[str]:
    """A line for each source: what was found, and what of it is not used; and one for each pair that has not
    all records of its source."""
    lines = dict.fromkeys(printable(task.whole.describe()) for task in tasks)
    return [*lines, *filter(None, (said(task.source, task.spec.name) for task in tasks))]


def notes_of(recipe: Recipe, readers: dict[str, Modality]) -> list[str]:
    """A line for each branch whose pretrained weights were given pixels of another normalisation than its
    modality gives, as far as a local folder or timm says so."""
    found = []
    for name, branch in recipe.branches.items():
        reader, weights = readers[name], branch.encoder.get("weights")
        if branch.encoder["name"] == "timm" and weights == "pretrained":
            weights = f"timm/{branch.encoder['model']}"
        elif not (isinstance(weights, str) and user_path(weights).is_dir()):
            continue
        if not isinstance(reader, Pixels) or {"processor", "mean", "std"} & set(branch.modality):
            continue
        with contextlib.suppress(ComponentError):  # it does not say
            given = processing_of(weights)
            if not np.allclose([reader.mean, reader.std], [given.mean, given.std], atol=0.01):
                found.append(
                    f"note: {branch.key}.encoder.weights were trained on pixels with mean"
                    f" {shortly(given.mean)} and std {shortly(given.std)}, and the modality gives"
                    f" {shortly(reader.mean)} and {shortly(reader.std)}. Set"
                    f" {branch.key}.modality.processor={weights}, or mean and std."
                )
    return found


def shortly(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{float(x):.3g}" for x in values) + "]"


def build_readers(recipe: Recipe) -> dict[str, Modality]:
    """The modality of each branch, to read with: one object for all pairs of a branch, so that what it keeps
    in memory serves all of them."""
    readers: dict[str, Modality] = {}
    for name, branch in recipe.branches.items():
        follows = branch.weights != "own" and branch.modality == recipe.branches["a"].modality
        readers[name] = readers["a"] if follows else build("modality", branch.modality).eval()
        readers[name].video_backend = recipe.data.video_backend
        readers[name].frame_rate = recipe.data.frame_rate
    return readers


def bind(
    pair: Pair, recipe: Recipe, readers: dict[str, Modality], branches: tuple[str, str], source: Source
) -> None:
    a, b = branches
    pair.bind(Reading((readers[a], readers[b]), source, recipe.data.video_backend, recipe.data.frame_rate))


def check_files(task: TaskReading) -> None:
    """Raises ValueError where a pair that reads the file of a record meets records without one."""
    record, reads = task.source.train[0], task.pair.reads
    if reads and not any(key in record for key in reads):
        there = ", ".join(key for key in record if key not in ("id", "folder"))
        raise ValueError(
            f"pair '{task.spec.pair['name']}' reads one file of every record, and those of source"
            f" '{task.spec.source['name']}' have none; they have {there or 'no columns'}. In a table, name"
            " the column with the files: source.column=COLUMN. Cells are read by the pair cross_modal."
        )


def check_reading_options(recipe: Recipe, tasks: list[TaskReading]) -> None:
    """Raises RecipeError for options of a modality that only matter where it reads files, set although every
    pair with that branch reads for itself."""
    found = []
    for name, branch in recipe.branches.items():
        users = [task for task in tasks if name in (task.spec.a, task.spec.b)]
        if branch.weights != "own" or any(task.pair.uses_readers for task in users):
            continue
        key, pair_name = f"{users[0].spec.key}pair", users[0].spec.pair["name"]
        for option in find("modality", branch.modality["name"]).reading:
            if option in branch.modality:
                known = option in options(find("pair", pair_name))
                found.append(
                    f"{branch.key}.modality.{option}: pair '{pair_name}' reads its samples itself, so this"
                    " option would change nothing."
                    f" {f'Set {key}.{option} instead' if known else 'Leave it out'}, or choose a pair that"
                    " reads through the modality, such as cross_modal."
                )
    if found:
        raise RecipeError("\n".join(found))


# ---- branches that are not trained together ----


def read_together(
    recipe: Recipe, tasks: list[TaskReading], readers: dict[str, Modality], a: str, b: str
) -> tuple[Source, Pair] | str:
    """The source and a pair that reads the columns of two branches that no task trains together, or why there
    is none. The pair has the options of the two that the branches are trained in; where those differ, a's."""
    if recipe.branches[a].expander[-1] != recipe.branches[b].expander[-1]:
        return "the embeddings of the two branches differ in width"
    for (of_a, column_a), (of_b, column_b) in itertools.product(columns(tasks, a), columns(tasks, b)):
        if of_a.whole is not of_b.whole or of_a.spec.pair["name"] != of_b.spec.pair["name"]:
            continue
        own = {key: value for key, value in of_a.spec.pair.items() if value is not None}
        try:
            pair = build("pair", of_b.spec.pair | own | {"a": column_a, "b": column_b})
            bind(pair, recipe, readers, (a, b), of_a.whole)
            found = TaskReading(of_a.spec, of_a.whole, of_pair(of_a.whole, pair), of_a.source_name, pair)
        except ValueError as error:
            return str(error)
        return found.evaluated, pair
    return "no source has both, by pairs of one kind that name columns a and b"


def columns(tasks: list[TaskReading], branch: str) -> list[tuple[TaskReading, Spec]]:
    """(task, the column that the branch reads in it) of the tasks whose pair reads columns a and b through
    readers."""
    return [
        (task, task.spec.pair[side])
        for task in tasks
        if task.pair.uses_readers and {"a", "b"} <= set(task.spec.pair)
        for side, name in (("a", task.spec.a), ("b", task.spec.b))
        if name == branch
    ]
