"""Targets of probes: which records of a split have one, and what it is."""

from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vicjoint.files.cells import cell
from vicjoint.files.guard import printable
from vicjoint.parts import EvaluationData, Record, Side
from vicjoint.probes.interval import with_intervals

TOP = 5
NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Labels:
    """Class numbers [N] of the records of both splits, -1 where there is none or training lacks the class;
    the classes' names; and those that only test records have, with their numbers."""

    train: Tensor
    test: Tensor
    classes: list
    unknown: Counter

    def missing(self, label: str) -> str | None:
        """Why there is nothing to classify, or None."""
        if len(self.classes) < 2 or not (self.test >= 0).any():
            unused = self.unused(label)
            return (
                f"it needs two classes or more, and test samples of them, in '{label}' of the records; found"
                f" {len(self.classes)} classes.{f' {unused}.' if unused else ''}"
            )
        return None

    def unused(self, label: str) -> str | None:
        """The records that have no part in classifying, and why; None: all have one."""
        found = []
        if self.unknown:
            names = ", ".join(f"{printable(name, 40)} ({n:,})" for name, n in self.unknown.most_common(NAMED))
            more = f" and {len(self.unknown) - NAMED:,} more" if len(self.unknown) > NAMED else ""
            found.append(
                f"{self.unknown.total():,} of {len(self.test):,} test records have a class that training"
                f" lacks: {names}{more}"
            )
        train, test = (int((of < 0).sum()) for of in (self.train, self.test))
        test -= self.unknown.total()
        return "; ".join(found + without(label, train=(train, self.train), test=(test, self.test))) or None


def labels_of(data: EvaluationData, label: str, side: Side) -> Labels:
    train, test = ([class_of(r, label) for r in data.records(split, side)] for split in ("train", "test"))
    classes = sorted({name for name in train if name is not None}, key=str)
    number = {name: i for i, name in enumerate(classes)}
    both = (torch.tensor([number.get(name, -1) for name in names]) for names in (train, test))
    unknown = Counter(name for name in test if name is not None and name not in number)
    return Labels(*both, classes, unknown)


def without(label: str, **splits: tuple[int, Sized]) -> list[str]:
    """In words, how many records of a split have no label; splits: (how many, all of its records)."""
    return [
        f"{number:,} of {len(of):,} {split} records have no '{label}'"
        for split, (number, of) in splits.items()
        if number
    ]


def class_of(record: Record, label: str):
    """The record's class, without blanks around it; None where it has none."""
    value = cell(record, label)
    return value.strip() if isinstance(value, str) else value


def known(labels: Tensor) -> np.ndarray:
    """The numbers of the records that have a class."""
    return np.flatnonzero((labels >= 0).numpy())


def zero_or_one(record: Record, column: str, probe: str) -> int | None:
    """The record's 0 or 1 (also as text, or False and True); None where it has none. Raises ValueError for
    anything else."""
    if (value := cell(record, column)) is None:
        return None
    text = str(value).strip().lower()
    values = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
    if text not in values:
        raise ValueError(
            f"evaluate.probes: {probe}: {column} of {record['id']} is {value!r:.60}, expected 0 or 1."
        )
    return values[text]


def of_others(count: int) -> np.ndarray:
    """For each of 0 .. count - 1 another one, drawn without regard to the run."""
    order, found = np.random.default_rng(0).permutation(count), np.zeros(count, int)
    found[order] = np.roll(order, 1)
    return found


def evenly(total: int, limit: int | None) -> np.ndarray:
    """At most `limit` of the places 0..total-1, evenly spaced; None: all of them."""
    chosen = np.linspace(0, total - 1, total if limit is None else min(limit, total))
    return np.unique(chosen.round().astype(int))


def around(target: int, last: int, step: int, frames: int, number: int) -> list[int]:
    """True numbers of candidate frames, `step` apart: on the grid of the last context frame and the target,
    as centred on it as a video of so many frames allows."""
    grid = sorted({*range(last % step, frames, step), target})
    start = min(max(0, grid.index(target) - number // 2), max(0, len(grid) - number))
    return grid[start : start + number]


def held_out(n: int, share: float) -> np.ndarray:
    """Which of n training samples only choose among settings: bool [n]; none with a share of 0, else at least
    one and not all of them."""
    held = np.random.default_rng(0).random(n) < share
    held[-1] = False
    held[0] |= share > 0 and n > 1 and not held.any()
    return held


def hits(scores: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Which of N answers are right, bool [N]: accuracy and, with more than TOP classes, top5 of scores [N,
    C]."""
    best = (scores.topk(min(TOP, scores.shape[1]), 1).indices == labels[:, None]).cpu().numpy()
    found = {"accuracy": best[:, 0]}
    return found | ({"top5": best.any(1)} if scores.shape[1] > TOP else {})


def means(values: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """What `with_intervals` takes, of values [N]: the mean of each."""
    return lambda n: {name: float(of[n].mean()) for name, of in values.items()}


def classified(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy and, with more than TOP classes, top5 of scores [N, C], with their intervals."""
    return with_intervals(means(hits(scores, labels)), len(labels))


def chance(classes: int) -> dict[str, float]:
    return {"accuracy": 1 / classes} | ({"top5": TOP / classes} if classes > TOP else {})


def named(row: str, metrics: dict[str, float]) -> Sequence[tuple[str, float]]:
    """("row/metric", number) of each."""
    return [(f"{row}/{metric}", value) for metric, value in metrics.items()]
