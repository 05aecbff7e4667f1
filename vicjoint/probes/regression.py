"""A number from the frozen representation y of one branch: probe `regression`, a ridge regression in closed
form.

evaluate: {probes: [{name: regression, label: log_solubility}]}
evaluate: {probes: [{name: regression, label: crosses_barrier, kind: binary, branch: b}]}
"""

# N samples, D representation

import math
from typing import Literal

import numpy as np
import torch

from vicjoint.parts import Probe
from vicjoint.probes.frozen import Evaluating, Reading, Split, both_records, held_out, represent, row_encoders
from vicjoint.probes.ridge import fit_chosen
from vicjoint.registry import register


@register("probe", "regression")
class Regression(Probe):
    """Ridge regression from the representation of `branch` to the column `label`, fitted on the training
    split. The penalty is the one with the lowest squared error on a share `holdout` of the training samples;
    the fit is then repeated on all of them. The test split chooses nothing.

    kind: number: metrics rmse, r2 (1 - squared error / squared distance from the test mean), spearman,
    pearson; a constant prediction has correlation 0. kind: binary: the column holds 0 and 1; metrics auc and
    accuracy (prediction above 0.5). standardize: every feature is divided by its standard deviation on the
    training split first. Samples without a value are left out.

    Rows: model; random_init: the same encoder before training; the modality's simple features, under the name
    it gives them; mean: the mean of the training values.
    """

    def __init__(
        self,
        label: str = "label",
        branch: str = "a",
        kind: Literal["number", "binary"] = "number",
        standardize: bool = True,
        holdout: float = 0.2,
    ):
        if not 0 < holdout < 1:
            raise ValueError(
                f"regression: holdout is {holdout}, expected a share of the training samples above 0 and"
                " below 1."
            )
        self.label, self.branch, self.kind, self.standardize, self.holdout = (
            label,
            branch,
            kind,
            standardize,
            holdout,
        )

    def misses(self, source, pair) -> str | None:
        """Why this source cannot be probed, or None. Raises ValueError for a pair without single views and
        for values of the wrong kind."""
        if not hasattr(pair, "plain"):
            raise ValueError(
                "evaluate.probes: 'regression' looks at single views, which this pair does not give. Leave it"
                " out."
            )
        train, test = self._splits(source, pair)
        if train.known.sum() < 2 or test.known.sum() < 2:
            return (
                f"it needs two training and two test samples or more with a number in '{self.label}' of the"
                f" records; found {train.known.sum()} and {test.known.sum()}."
            )
        for of in (train, test):
            if self.kind == "binary" and len(set(of.labels[of.known].tolist())) < 2:
                return f"it needs both 0 and 1 in '{self.label}' of the training and of the test samples."
        return None

    def _splits(self, source, pair) -> tuple[Split, Split]:
        found = []
        for of in both_records(source, pair.workers, self.branch):
            values = torch.tensor([self._number(record) for record in of.records], dtype=torch.float64)
            found.append(Split(of, values, values.isfinite().numpy()))
        return tuple(found)

    def _number(self, record: dict) -> float:
        """The record's value; not a number where it has none."""
        value = record.get(self.label)
        if value is None or (isinstance(value, str) and not value.strip()):
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

    def __call__(self, model, untrained, source, pair, device):
        train, test = self._splits(source, pair)
        encoders, reading = row_encoders(model, untrained, self.branch), Reading(pair, self.branch)
        with Evaluating(model, untrained):
            x, places = represent(encoders, train.of, reading, train.places, device)
            queries, query_places = represent(encoders, test.of, reading, test.places, device)
        y, truth = train.labels[places].to(device), test.labels[query_places].numpy()
        held = torch.from_numpy(held_out(len(y), self.holdout)).to(device)
        measure = binary_metrics if self.kind == "binary" else number_metrics
        for row in x:
            fit, penalty = fit_chosen(
                x[row],
                y[:, None],
                held,
                lambda found: float((found[:, 0] - y[held]).square().mean()),
                self.standardize,
            )
            yield from named(row, measure(fit.predict(queries[row], penalty)[:, 0].cpu().numpy(), truth))
            yield f"{row}/penalty", penalty
        yield from named("mean", measure(np.full(len(truth), float(y.mean())), truth))


def named(row: str, metrics: dict[str, float]):
    return ((f"{row}/{metric}", value) for metric, value in metrics.items())


# ---- metrics of predictions [N] and truth [N], float64 ----


def number_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    error = float(np.square(predicted - truth).mean())
    variance = float(np.square(truth - truth.mean()).mean())
    return {
        "rmse": error**0.5,
        "r2": 1 - error / variance if variance else 0.0,
        "spearman": pearson(mid_ranks(predicted), mid_ranks(truth)),
        "pearson": pearson(predicted, truth),
    }


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
    count half (Mann-Whitney)."""
    ones = truth == 1
    n, zeros = int(ones.sum()), int((~ones).sum())
    return float((mid_ranks(score)[ones].sum() - n * (n + 1) / 2) / (n * zeros))
