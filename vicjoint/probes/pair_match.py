"""Which couples belong together? Probe `pair_match`, for tables whose test rows hold couples that do and
couples that do not.

evaluate: {probes: [{name: pair_match, label: binds}]}          # receptors and ligands that were tried; binds
is 0 or 1
"""

# N rows, E embedding

import functools
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vicjoint.parts import Probe
from vicjoint.probes.frozen import Evaluating, Reading, both_records, embed, evenly, represent, zero_or_one
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

    def __init__(self, label: str = "label", linear_map: int = 2000):
        if linear_map < 0:
            raise ValueError(f"pair_match: linear_map is {linear_map}, expected 0 training rows or more.")
        self.label, self.linear_map = label, linear_map

    def misses(self, source, pair) -> str | None:
        """Why this source cannot be probed, or None. Raises ValueError for a pair of the wrong kind and for a
        label that is not 0 or 1."""
        if not hasattr(pair, "plain_all") or getattr(pair, "key", None) is not None:
            raise ValueError(
                "evaluate.probes: 'pair_match' compares the two cells of a row, which this pair does not"
                " give. Use pair: {name: cross_modal} without a key, or leave it out."
            )
        labels = [zero_or_one(r, self.label, "pair_match") for r in source.test]
        if not {0, 1} <= set(labels):
            return (
                f"it needs test rows with 1 and with 0 in '{self.label}'; found {labels.count(1)} and"
                f" {labels.count(0)}."
            )
        return None

    def __call__(self, model, untrained, source, pair, device):
        labels = [zero_or_one(r, self.label, "pair_match") for r in source.test]
        places = np.array([i for i, label in enumerate(labels) if label is not None])
        pairs = np.array(
            [i for i, r in enumerate(source.train) if zero_or_one(r, self.label, "pair_match") == 1],
            dtype=int,
        )
        encoders = {
            "model": functools.partial(embed, model),
            "random_init": functools.partial(embed, untrained),
        }
        simple = (
            {"linear_map": lambda side: getattr(model, side).modality.simple_features}
            if self.linear_map and len(pairs) > 1
            else {}
        )
        with Evaluating(model, untrained):
            z, places = both_sides(encoders | simple, source, pair, places, device, split=1)
            if "linear_map" in z:
                fitted, known = both_sides(
                    simple, source, pair, pairs[evenly(len(pairs), self.linear_map)], device, split=0
                )
                contents = tuple(
                    numbered([pair.contents_of(source.train[p], side)[0] for p in known.tolist()], {})
                    for side in "ab"
                )
                z["linear_map"] = LinearMap(*fitted["linear_map"], Right(contents, contents)).a_to_b(
                    *z["linear_map"]
                )
        truth = np.array([labels[p] for p in places.tolist()])
        if len(set(truth.tolist())) < 2:
            raise ValueError(
                "pair_match: the test rows that both branches can read do not have both 0 and 1 in"
                f" '{self.label}'."
            )
        for row, (a, b) in z.items():
            yield f"{row}/auc", auc(similarity(a, b).cpu().numpy(), truth)
        yield (
            "frequency/auc",
            auc(
                frequency(pair, [source.train[i] for i in pairs], [source.test[p] for p in places.tolist()]),
                truth,
            ),
        )
        yield "chance/auc", 0.5


def both_sides(
    encoders: dict, source, pair, places: np.ndarray, device, split: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """({row: (features of a [N, E], of b [N, E])}, places [N]) of the rows of a split (0 training, 1 test)
    that both branches can read. `encoders`: {row: side -> raw views -> features}."""
    (a, at_a), (b, at_b) = (
        represent(
            {row: encoder(side) for row, encoder in encoders.items()},
            both_records(source, pair.workers, side)[split],
            Reading(pair, side),
            places,
            device,
        )
        for side in "ab"
    )
    kept_a, kept_b = torch.isin(at_a, at_b), torch.isin(at_b, at_a)
    return {row: (a[row][kept_a.to(device)], b[row][kept_b.to(device)]) for row in a if row in b}, at_a[
        kept_a
    ]


def frequency(pair, known: list[dict], rows: list[dict]) -> np.ndarray:
    """Of each row, the sum over its two cells of log(1 + how many known rows have that cell)."""
    total = np.zeros(len(rows))
    for side in "ab":
        seen = Counter(pair.contents_of(row, side)[0] for row in known)
        total += [np.log1p(seen[pair.contents_of(row, side)[0]]) for row in rows]
    return total


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine [N] of embeddings a and b [N, E], both seen from the mean of all of them: VICReg leaves the mean
    where it happens to be, and brings both branches to the same one."""
    mean = torch.cat([a, b]).mean(0)
    return cosine_similarity(a - mean, b - mean)
