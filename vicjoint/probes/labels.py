"""Targets of probes: which records of a split have one, and what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vicjoint.parts import EvaluationData, Metric, Record, Side

TOP = 5
DRAWS, SEED, LOW_HIGH = 1000, 0, (2.5, 97.5)


@dataclass(frozen=True)
class Labels:
    """Class numbers [N] of the records of both splits, -1 where there is none or training lacks the class;
    and the classes' names."""

    train: Tensor
    test: Tensor
    classes: list

    def missing(self, label: str) -> str | None:
        """Why there is nothing to classify, or None."""
        if len(self.classes) < 2 or not (self.test >= 0).any():
            return (
                f"it needs two classes or more, and test samples of them, in '{label}' of the records; found"
                f" {len(self.classes)} classes."
            )
        return None


def labels_of(data: EvaluationData, label: str, side: Side) -> Labels:
    train, test = ([record.get(label) for record in data.records(split, side)] for split in ("train", "test"))
    classes = sorted({name for name in train if name is not None}, key=str)
    number = {name: i for i, name in enumerate(classes)}
    both = (torch.tensor([number.get(name, -1) for name in names]) for names in (train, test))
    return Labels(*both, classes)


def known(labels: Tensor) -> np.ndarray:
    """The numbers of the records that have a class."""
    return np.flatnonzero((labels >= 0).numpy())


def zero_or_one(record: Record, column: str, probe: str) -> int | None:
    """The record's 0 or 1 (also as text, or False and True); None where it has none. Raises ValueError for
    anything else."""
    text = str("" if record.get(column) is None else record[column]).strip().lower()
    values = {"": None, "0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
    if text not in values:
        raise ValueError(
            f"evaluate.probes: {probe}: {column} of {record['id']} is {record[column]!r:.60}, expected 0"
            " or 1."
        )
    return values[text]


def evenly(total: int, limit: int | None) -> np.ndarray:
    """At most `limit` of the places 0..total-1, evenly spaced; None: all of them."""
    chosen = np.linspace(0, total - 1, total if limit is None else min(limit, total))
    return np.unique(chosen.round().astype(int))


def held_out(n: int, share: float) -> np.ndarray:
    """Which of n training samples only choose among settings: bool [n]; none with a share of 0, else at least
    one and not all of them."""
    held = np.random.default_rng(0).random(n) < share
    held[-1] = False
    held[0] |= share > 0 and n > 1 and not held.any()
    return held


def top_shares(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy and, with more than TOP classes, top5 of scores [N, C]."""
    best = scores.topk(min(TOP, scores.shape[1]), 1).indices == labels[:, None]
    found = {"accuracy": float(best[:, 0].float().mean())}
    return found | ({"top5": float(best.any(1).float().mean())} if scores.shape[1] > TOP else {})


def interval(n: int, metric: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Ends of the 95 % interval of a metric over n test samples: percentiles of 1,000 bootstrap draws, seed 0
    (Efron 1979). `metric` takes the numbers [n] of the samples drawn; a draw without a value is left
    out."""
    rng = np.random.default_rng(SEED)
    low, high = np.nanpercentile([metric(rng.integers(n, size=n)) for _ in range(DRAWS)], LOW_HIGH)
    return float(low), float(high)


def with_interval(
    name: str, metrics: dict[str, float], n: int, metric: Callable[[np.ndarray], float]
) -> dict[str, float]:
    low, high = interval(n, metric)
    return metrics | {f"{name}_low": low, f"{name}_high": high}


def explained_interval(name: str) -> dict[str, Metric]:
    ends = {"low": "lower", "high": "upper"}
    words = "{} end of the 95 % interval of {}: bootstrap over test samples, 1,000 draws"
    return {f"{name}_{end}": Metric(words.format(which, name), None) for end, which in ends.items()}


def classified(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy with its interval and, with more than TOP classes, top5 of scores [N, C]."""
    right = (scores.argmax(1) == labels).cpu().numpy()
    return with_interval("accuracy", top_shares(scores, labels), len(right), lambda n: right[n].mean())


def chance(classes: int) -> dict[str, float]:
    return {"accuracy": 1 / classes} | ({"top5": TOP / classes} if classes > TOP else {})


def named(row: str, metrics: dict[str, float]) -> Sequence[tuple[str, float]]:
    """("row/metric", number) of each."""
    return [(f"{row}/{metric}", value) for metric, value in metrics.items()]
