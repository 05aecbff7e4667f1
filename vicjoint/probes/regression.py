"""A number from the frozen representation y of one branch: probe `regression`, a ridge regression in closed
form.

evaluate: {probes: [{name: regression, label: log_solubility}]}
evaluate: {probes: [{name: regression, label: crosses_barrier, kind: binary, branch: b}]}
"""

# N samples, D representation

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.files.cells import cell
from vicjoint.options import Count
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record, Want
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import held_out, named, without
from vicjoint.probes.ridge import fit_chosen
from vicjoint.probes.spread import Pool, check_spread, spread_of
from vicjoint.registry import register


@register("probe", "regression")
class Regression(Probe):
    """Ridge regression from the representation of `branch` to the column `label`, fitted on the training
    split. The penalty is the one with the lowest squared error on a share `holdout` of the training samples;
    the fit is then repeated on all of them. The test split chooses nothing.

    kind: number: metrics rmse, r2 (1 - squared error / squared distance from the test mean), spearman,
    pearson; a constant prediction has correlation 0. kind: binary: the column holds 0 and 1; metrics auc and
    accuracy (prediction above 0.5). standardize: every feature is divided by its standard deviation on the
    training split first. Samples without a value are left out. windows, pool, between: as in
    linear.

    Rows: model; random_init: the same encoder before training; the modality's simple features, under the name
    it gives them; mean: the mean of the training values.
    """

    needs = frozenset({"views"})
    scope = "branch"
    refusal = (
        "evaluate.probes: 'regression' looks at single views, which this pair does not give. Leave it out."
    )
    explains = {
        "rmse": Metric("root mean squared error", "lower"),
        "r2": Metric("1 - squared error / squared distance from the mean"),
        "spearman": Metric("rank correlation of prediction and truth"),
        "pearson": Metric("linear correlation of prediction and truth"),
        "auc": Metric("area under the ROC curve (0.5: chance)"),
        "accuracy": Metric("share of right answers (knn: with the first k of the recipe)"),
        "penalty": Metric("ridge penalty that was best on the held-out training samples", None),
    }

    def __init__(
        self,
        label: str = "label",
        branch: str = "a",
        kind: Literal["number", "binary"] = "number",
        standardize: bool = True,
        holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        windows: Count | None = None,
        pool: Pool = "slots",
        between: tuple[str, str] | None = None,
    ):
        self.label, self.branch, self.kind = label, branch, kind
        self.spread = spread_of("regression", windows, pool, between)
        self.standardize, self.holdout = standardize, holdout

    def misses(self, data: EvaluationData) -> str | None:
        """Raises ValueError for values of the wrong kind."""
        check_spread("regression", self.spread, data, self.branch)
        both = self._values(data)
        counts = [int(of.isfinite().sum()) for of in both]
        if min(counts) < 2:
            return (
                f"it needs two training and two test samples or more with a number in '{self.label}' of the"
                f" records; found {counts[0]} and {counts[1]}."
            )
        if self.kind == "binary" and any(len(set(of[of.isfinite()].tolist())) < 2 for of in both):
            return f"it needs both 0 and 1 in '{self.label}' of the training and of the test samples."
        return None

    def unused(self, data: EvaluationData) -> str | None:
        train, test = ((int((~of.isfinite()).sum()), of) for of in self._values(data))
        return "; ".join(without(self.label, train=train, test=test)) or None

    def _values(self, data: EvaluationData) -> tuple[Tensor, Tensor]:
        """Float64 [N] of the records of both splits; not a number where a record has none."""
        train, test = (
            torch.tensor([self._number(r) for r in data.records(split, self.branch)], dtype=torch.float64)
            for split in ("train", "test")
        )
        return train, test

    def _number(self, record: Record) -> float:
        """The record's value; not a number where it has none."""
        if (value := cell(record, self.label)) is None:
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"evaluate.probes: regression: {self.label} of {record['id']} is {value!r:.60}, expected a"
                " number. Name another label, or use the probe linear for classes."
            ) from None
        if self.kind == "binary" and number not in (0, 1) and math.isfinite(number):
            raise ValueError(
                f"evaluate.probes: regression: {self.label} of {record['id']} is {value!r:.60}, expected 0 or"
                " 1. Use kind: number."
            )
        return number

    def wants(self, data: EvaluationData) -> list[Want]:
        places = [np.flatnonzero(of.isfinite().numpy()) for of in self._values(data)]
        return [
            Want(self.branch, split, of, spread=self.spread) for split, of in zip(("train", "test"), places)
        ]

    def measure(self, features: Features) -> Iterator[tuple[str, float]]:
        both = features.once("values", lambda: self._values(features.data))
        train, test = (features.items(want) for want in features.wants)
        values, truth = (of[items.places] for of, items in zip(both, (train, test)))
        y, truth = values.to(features.device), truth.numpy()
        held = torch.from_numpy(held_out(len(y), self.holdout)).to(features.device)
        metrics = binary_metrics if self.kind == "binary" else number_metrics
        error = lambda found: float((found[:, 0] - y[held]).square().mean())
        for row, x in train.rows.items():
            fit, penalty = fit_chosen(x, y[:, None], held, error, self.standardize)
            predicted = fit.predict(test.rows[row], penalty)[:, 0].cpu().numpy()
            row = features.baseline(self.branch) if row == "simple" else row
            yield from named(row, with_intervals(lambda n: metrics(predicted[n], truth[n]), len(truth)))
            yield f"{row}/penalty", penalty
        yield from named("mean", metrics(np.full(len(truth), float(y.mean())), truth))


# ---- metrics of predictions [N] and truth [N], float64 ----


def number_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {
        "rmse": float(np.square(predicted - truth).mean()) ** 0.5,
        "r2": r2(predicted, truth),
        "spearman": pearson(mid_ranks(predicted), mid_ranks(truth)),
        "pearson": pearson(predicted, truth),
    }


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """1 - squared error / squared distance from the mean; 0 where the truth is constant."""
    variance = float(np.square(truth - truth.mean()).mean())
    return 1 - float(np.square(predicted - truth).mean()) / variance if variance else 0.0


def binary_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {"auc": auc(predicted, truth), "accuracy": float(((predicted > 0.5) == (truth == 1)).mean())}


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def mid_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the middle of theirs."""
    _, group, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: the share of (one, zero) couples whose one has the higher score; equal scores
    count half (Mann-Whitney). Not a number where one of both is missing."""
    ones = truth == 1
    n, zeros = int(ones.sum()), int((~ones).sum())
    if not n or not zeros:
        return math.nan
    return float((mid_ranks(score)[ones].sum() - n * (n + 1) / 2) / (n * zeros))
