"""Which couples belong together? Probe `pair_match`, for tables whose test rows hold couples that do and
couples that do not.

evaluate: {probes: [{name: pair_match, label: binds}]}          # receptors and ligands that were tried; binds
is 0 or 1
"""

# N rows, E embedding

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vicjoint.parts import EvaluationData, Features, Items, Metric, Pair, Probe, Record, Want
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import evenly, named, without, zero_or_one
from vicjoint.probes.linear_map import LinearMap
from vicjoint.probes.ranking import Right, numbered
from vicjoint.probes.regression import auc
from vicjoint.registry import register


@register("probe", "pair_match")
class PairMatch(Probe):
    """Does the similarity of a row's two embeddings say whether its cells belong together? Column `label`
    holds 1 where they do, 0 where not. Only the test rows need both; training rows are those that the model
    learns as pairs.

    Metric: auc of the cosine similarity, seen from the mean over the test rows. Rows: model; random_init: the
    same encoders before training; linear_map: the same similarity after ridge from one modality's simple
    features to the other's, fitted on the training rows of label 1 (at most `linear_map` of them, evenly
    spaced; 0: no such row); frequency: no similarity at all, but how often the cells occur in the training
    rows of label 1 (sum of log(1 + n)), which tells a promiscuous partner from a rare one; chance.
    """

    needs = frozenset({"both", "rows"})
    refusal = (
        "evaluate.probes: 'pair_match' compares the two cells of a row, which this pair does not give. Use"
        " pair: {name: cross_modal} without a key, or leave it out."
    )
    explains = {"auc": Metric("area under the ROC curve (0.5: chance)")}

    def __init__(self, label: str = "label", linear_map: Annotated[int, Field(ge=0)] = 2000):
        self.label, self.linear_map = label, linear_map

    def misses(self, data: EvaluationData) -> str | None:
        """Raises ValueError for a label that is not 0 or 1."""
        labels = self._labels(data.records("test"))
        if not {0, 1} <= set(labels):
            return (
                f"it needs test rows with 1 and with 0 in '{self.label}'; found {labels.count(1)} and"
                f" {labels.count(0)}."
            )
        return None

    def unused(self, data: EvaluationData) -> str | None:
        labels = self._labels(data.records("test"))
        return "; ".join(without(self.label, test=(labels.count(None), labels))) or None

    def _labels(self, records: Sequence[Record]) -> list[int | None]:
        return [zero_or_one(record, self.label, "pair_match") for record in records]

    def _pairs(self, data: EvaluationData) -> np.ndarray:
        """Training rows whose cells belong together."""
        return np.flatnonzero([label == 1 for label in self._labels(data.records("train"))])

    def wants(self, data: EvaluationData) -> list[Want]:
        test = np.flatnonzero([label is not None for label in self._labels(data.records("test"))])
        pairs = self._pairs(data)
        if not self.linear_map or len(pairs) < 2:
            return [Want(side, "test", test, ("model", "random_init"), "embedding") for side in "ab"]
        train = pairs[evenly(len(pairs), self.linear_map)]
        wants = [Want(side, "test", test, space="embedding") for side in "ab"]
        return wants + [Want(side, "train", train, ("simple",)) for side in "ab"]

    def measure(self, features: Features) -> Iterator[tuple[str, float]]:
        data = features.data
        (a, b), *fitted = by_two([features.items(want) for want in features.wants])
        z = {row: (x, b.rows[row]) for row, x in a.rows.items() if row in b.rows}
        if simple := z.pop("simple", None):
            known = fitted[0]
            contents = tuple(numbered(items.contents, {}) for items in known)
            floor = LinearMap(*(items.rows["simple"] for items in known), Right(contents, contents))
            z["linear_map"] = floor.a_to_b(*simple)
        labels = self._labels(data.records("test"))
        truth = np.array([labels[place] for place in a.places.tolist()])
        if len(set(truth.tolist())) < 2:
            raise ValueError(
                "pair_match: the test rows that both branches can read do not have both 0 and 1 in"
                f" '{self.label}'."
            )
        for row, both in z.items():
            scores = similarity(*both).cpu().numpy()
            yield from named(row, with_intervals(lambda n: {"auc": auc(scores[n], truth[n])}, len(truth)))
        train, test = data.records("train"), data.records("test")
        counts = frequency(
            data.pair, [train[i] for i in self._pairs(data)], [test[p] for p in a.places.tolist()]
        )
        yield from named("frequency", with_intervals(lambda n: {"auc": auc(counts[n], truth[n])}, len(truth)))
        yield "chance/auc", 0.5


def by_two(items: list[Items]) -> list[tuple[Items, Items]]:
    """a and b of a split, b and so on, without the rows that only one of the two could read."""
    found = []
    for a, b in zip(items[::2], items[1::2]):
        found.append((a.only(torch.isin(a.places, b.places)), b.only(torch.isin(b.places, a.places))))
    return found


def frequency(pair: Pair, known: list[Record], rows: list[Record]) -> np.ndarray:
    """Of each row, the sum over its two cells of log(1 + how many known rows have that cell)."""
    total = np.zeros(len(rows))
    for side in "ab":
        content = lambda row: pair.views(row, side, read=False)[0].content
        seen = Counter(map(content, known))
        total += [np.log1p(seen[content(row)]) for row in rows]
    return total


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine [N] of embeddings a and b [N, E], both seen from the mean of all of them: VICReg leaves the mean
    where it happens to be, and brings both branches to the same one."""
    mean = torch.cat([a, b]).mean(0)
    return cosine_similarity(a - mean, b - mean)
