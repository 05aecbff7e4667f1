"""Pages to look around in a run's test items, which its report links to: RUN/explorer/index.html, and of
several tasks RUN/explorer/TASK/index.html.

Where branches a and b see two modalities, both are on the page with their embeddings z (of a after the
predictor), and partners are right, as the probe `retrieval` counts them. Else it is branch a's y with the
labels, and items of the same class are right. What the evaluation has encoded is not encoded again.
"""

# N items, A of branch a, B of branch b

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vicjoint.data import READ_ERRORS
from vicjoint.embeddings.explorer import Cloud, empty, is_explorer, write_explorer
from vicjoint.embeddings.items import own_name
from vicjoint.files.cells import cell, resolved
from vicjoint.files.guard import printable_lines
from vicjoint.parts import EvaluationData, Features, Items, Probe, Record, Side, Want
from vicjoint.probes.evaluation import evaluating
from vicjoint.probes.labels import evenly
from vicjoint.probes.retrieval import Retrieval, groups_of, right_of
from vicjoint.training.build import Parts, Task

OF_A_CLASS = 10  # items, at least, where there are more classes than fit
NOT_SHOWN = ("id", "path", "bytes", "folder", "offset", "remote", "second")  # of a record


class Shown(Probe):
    """Wants what a page shows."""

    def __init__(self, wants: Sequence[Want]):
        self.shown = [replace(want, rows=("model",)) for want in wants]

    def wants(self, data: EvaluationData) -> list[Want]:
        return self.shown


def write_explorers(parts: Parts, folder: Path) -> None:
    """Write the pages of a run whose model was just evaluated, in the place of earlier ones."""
    root, most = folder / "explorer", parts.recipe.evaluate.explorer
    for earlier in (root, *root.glob("*/")):
        if is_explorer(earlier):
            empty(earlier)
    for task in parts.tasks if most else ():
        if "views" not in task.pair.gives:
            continue
        to, began = root / task.name if len(parts.tasks) > 1 else root, time.monotonic()
        try:
            with evaluating(parts.model, parts.untrained):
                show = paired if "both" in task.pair.gives else labelled
                clouds, marks = show(parts, task, most)
            page = write_explorer(to, clouds, **marks, quick=True)
        except Exception as error:  # whatever is wrong with an item, its page must not end the run
            tqdm.write(f"explorer: there is no page: {printable_lines(error)}")
            continue
        shown = sum(len(cloud.rows) for cloud in clouds)
        print(f"explorer: {page} ({shown} test items, made in {time.monotonic() - began:.1f} s)")


def paired(parts: Parts, task: Task, most: int) -> tuple[list[Cloud], dict[str, Any]]:
    """Both branches, and who is whose partner. Of what occurs several times the first item is shown."""
    two = task.spec.a, task.spec.b
    data = EvaluationData(two, task.evaluated, task.pair)
    measured = [
        m.wants
        for m in parts.evaluation.measures
        if isinstance(m.probe, Retrieval) and m.data.branches == two and m.data.pair is task.pair
    ]
    wants = measured[0] if measured else Retrieval(limit=max(2, most // 2), linear_map=0).wants(data)
    features = parts.evaluation.after(Shown(wants[:2]), data, parts.model, parts.untrained)
    a, b = groups_of(features, features.wants)
    right = right_of(a, b, task.evaluated.second is not None)
    of_a, of_b = right.candidates(0), right.candidates(1)
    few = of_a[evenly(len(of_a), max(1, most // 2))]
    right_AB = right.direction(0)(few)
    kept = with_partners(right_AB.any(0).numpy(), max(1, most - len(few)))
    right_AB = right_AB[:, kept].numpy()
    partners = [*(len(few) + np.flatnonzero(row) for row in right_AB), *map(np.flatnonzero, right_AB.T)]
    predicted = "'s prediction" if parts.recipe.predictor else ""
    clouds = [
        cloud_of_items(parts, features, "a", f"{two[0]}{predicted}", a.items, few, len(of_a)),
        cloud_of_items(parts, features, "b", two[1], b.items, of_b[kept], len(of_b)),
    ]
    return clouds, {"partners": [some.tolist() for some in partners]}


def with_partners(has: np.ndarray, most: int) -> np.ndarray:
    """The numbers of at most so many items, in order: those with a partner first, evenly spaced; has: bool
    [N]."""
    first, rest = np.flatnonzero(has), np.flatnonzero(~has)
    first = first[evenly(len(first), most)]
    left = min(most - len(first), len(rest))
    return np.sort(np.concatenate([first, rest[evenly(len(rest), left)] if left else rest[:0]]))


def labelled(parts: Parts, task: Task, most: int) -> tuple[list[Cloud], dict[str, Any]]:
    """Branch a, with the class of each item where the records hold one."""
    data = EvaluationData((task.spec.a, task.spec.b), task.evaluated, task.pair)
    records = data.records("test")
    label, places = None, evenly(len(records), most)
    for name in [spec["label"] for spec in parts.recipe.probes if spec.get("label")] + ["label"]:
        classes = [cell(record, name) for record in records]
        if 2 <= len(set(classes) - {None}) <= len(records) / 2:  # with more of them it is no class
            label, places = name, some_of_each(classes, most)
            break
    want = Want("a", "test", places)
    features = parts.evaluation.after(Shown([want]), data, parts.model, parts.untrained)
    items = features.items(features.wants[0])
    every = torch.arange(len(items.places))
    cloud = cloud_of_items(parts, features, "a", task.spec.a, items, every, len(records))
    return [cloud], {"right": label}


def some_of_each(classes: Sequence[Any], most: int) -> np.ndarray:
    """The places of at most `most` items, as many of each class; where classes are too many for OF_A_CLASS of
    each, of some of them."""
    places: dict[Any, list[int]] = {}
    for place, name in enumerate(classes):
        if name is not None:
            places.setdefault(name, []).append(place)
    names = sorted(places, key=str)
    kept = [names[k] for k in evenly(len(names), max(2, most // OF_A_CLASS))]
    each = max(1, most // len(kept))
    return np.sort(np.concatenate([np.array(places[k])[evenly(len(places[k]), each)] for k in kept]))


def cloud_of_items(
    parts: Parts, features: Features, side: Side, name: str, items: Items, chosen: torch.Tensor, total: int
) -> Cloud:
    """Those of the items that are `chosen`, numbers [n], of so many in all."""
    pair, of = features.data.pair, "ab".index(side)
    modality = parts.recipe.branches[features.data.branches[of]].modality["name"]
    reads = pair.readers[of].reads if pair.uses_readers else "file"
    records = features.data.records("test", side)
    rows, pictures = [], []
    for i in chosen.tolist():
        place, number = int(items.places[i]), int(items.numbers[i])
        start, end = items.seconds[i] or (None, None)
        where = {"item": items.items[i] or items.titles[i], "start_seconds": start, "end_seconds": end}
        said = {k: v for k, v in columns(records[place]).items() if v != where["item"]}
        rows.append(where | said)
        pictures.append(None if items.items[i] else picture(features, side, place, number))
    if not any(items.items) and all(shown is None for shown in pictures):
        modality, reads = "", "text"  # titles are all there is to show
    vectors = items.rows["model"][chosen.to(items.rows["model"].device)].cpu().numpy()
    rate = parts.recipe.data.frame_rate
    return Cloud(name, rows, vectors, modality, reads, total=total, pictures=pictures, frame_rate=rate)


def columns(record: Record) -> dict[str, Any]:
    """What a page says of a record: its name, and its numbers and words."""
    hidden = (*NOT_SHOWN, "size") if "offset" in record else NOT_SHOWN
    cells = {own_name(k): resolved(v) for k, v in record.items() if k not in hidden}
    said = {name: value for name, value in cells.items() if isinstance(value, str | int | float)}
    return {"record": str(record["id"])} | said


def picture(features: Features, side: Side, place: int, number: int) -> np.ndarray | None:
    try:
        return features.picture(side, "test", place, number)
    except READ_ERRORS:
        return None
