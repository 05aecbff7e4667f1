"""Classification from the frozen tokens of one branch, by attention that is learned: `attentive`.

    evaluate: {probes: [{name: linear}, {name: attentive}]}
    evaluate: {probes: [{name: attentive, label: word, windows: 12}]}

What an encoder sees at a place or a moment may be lost where it is pooled to y. Rows: model; random_init, the
same encoder before training; mean_token, the mean of the model's tokens before the same classifier, without
attention; chance.
"""

# N samples, B batch, S slots of time, T tokens, D their width, H heads, C classes

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vicjoint import distributed
from vicjoint.options import Count
from vicjoint.parts import EvaluationData, Features, Metric, Spread, Want
from vicjoint.probes.classify import ACCURACY, Classification
from vicjoint.probes.features import split as in_parts
from vicjoint.probes.labels import Labels, chance, classified, evenly, held_out, labels_of, named
from vicjoint.probes.ridge import CONSTANT
from vicjoint.probes.spread import Pool, spread_of
from vicjoint.registry import register

KEPT_BYTES = 2**32  # tokens of the training samples, which are kept while the probe learns
WORTH_SAYING = 2**29
HEAD = 64  # numbers of a token for each head
Sample = list[Tensor]
"""Tokens [T, D] of each of a sample's slots of time."""
ROWS = ("model", "random_init")
MEAN = "mean_token"


@register("probe", "attentive")
class Attentive(Classification):
    """A classifier with attention over the frozen tokens, as V-JEPA is evaluated (Bardes et al. 2024; before
    it the pooling of CoCa, Yu et al. 2022, and the attentive probe of CAE, Chen et al. 2024): one learned
    query for each 64 numbers of a token weighs the tokens, their values are summed, a block with layer norm
    and a hidden layer follows, then a linear layer. Tokens are those of the evaluation views, each number
    standardised on the training samples. Metrics: accuracy and top5 on the test split, and the rate and the
    decay that were chosen.

    rates, decays: learning rates and weight decays of AdamW, every one with every other; all are trained in
    the same pass, `epochs` epochs with a cosine, in batches of 64. The setting, and the epoch after which it
    is taken, is the one that is best on a share `holdout` of the training samples, which nothing is trained
    on. samples: train on at most so many samples, evenly spaced; null: on all of them, whose tokens have to
    fit into 4 GiB. windows, pool, between: as in linear; attention is over the tokens of one slot (mean:
    there is one, with the tokens of all windows), and what it gives of each slot is side by side.
    """

    refusal = (
        "evaluate.probes: 'attentive' classifies single views, which this pair does not give. Leave it out."
    )
    BATCH = 64
    explains = ACCURACY | {
        "rate": Metric("learning rate that was best on the held-out training samples", None),
        "decay": Metric("weight decay that was best on the held-out training samples", None),
    }

    def __init__(
        self,
        rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [1e-3, 5e-3, 2e-2],
        decays: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] = [0.01, 0.4],
        epochs: Count = 20,
        samples: Annotated[int, Field(ge=2)] | None = None,
        holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        label: str = "label",
        branch: str = "a",
        windows: Count | None = None,
        pool: Pool = "slots",
        between: tuple[str, str] | None = None,
    ):
        self.settings = [(rate, decay) for rate in rates for decay in decays]
        self.epochs, self.samples, self.holdout, self.label = epochs, samples, holdout, label
        self.branch, self.spread = branch, spread_of("attentive", windows, pool, between)

    def wants(self, data: EvaluationData) -> list[Want]:
        train, test = super().wants(data)
        places = train.places[evenly(len(train.places), self.samples)]
        return [
            Want(self.branch, split, of, ROWS, spread=self.spread, tokens=True)
            for split, of in (("train", places), ("test", test.places))
        ]

    def check(self, features: Features) -> None:
        train = features.wants[0]
        for rows, _ in self._samples(features, train):
            fitting(rows, len(train.places))
            break

    def _samples(self, features: Features, want: Want) -> Iterator[tuple[dict[str, list[Sample]], Tensor]]:
        """({row: B samples}, their numbers [B]), some at once."""
        for rows, numbers in features.tokens(want):
            found = {row: [in_slots(views, self.spread) for views in of] for row, of in rows.items()}
            # and the mean of the model's tokens, as one token
            found[MEAN] = [[x.mean(0, keepdim=True) for x in sample] for sample in found["model"]]
            yield found, numbers

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        labels = features.once("labels", lambda: labels_of(features.data, self.label, self.branch))
        settled = features.once("fixed rows", dict)
        found, places = self._measured(features, labels, ROWS[:1] if settled else ROWS)
        if settled and settled["places"] != places:  # other samples can be read than before
            found, places = self._measured(features, labels, ROWS)
        settled |= found | {"places": places}
        for row in (*ROWS, MEAN):
            yield from named(row, settled[row])
        yield from named("chance", chance(len(labels.classes)))

    def _measured(
        self, features: Features, labels: Labels, rows: tuple[str, ...]
    ) -> tuple[dict[str, dict[str, float]], list[list[int]]]:
        """({row: {metric: number}}, numbers of the training and of the test samples that can be read)."""
        train, test = (replace(want, rows=rows) for want in features.wants)
        tokens, places = self._kept(features, train)
        y, classes = labels.train[places], len(labels.classes)
        with features.progress(len(tokens) * self.epochs * len(y), "attentive classifiers") as done:
            found = {row: self._fit(of, y, classes, features.device, done) for row, of in tokens.items()}
        del tokens
        scores: dict[str, list[Tensor]] = {row: [] for row in found}
        tested: list[int] = []
        for some, numbers in self._samples(features, test):
            for row, of in some.items():
                scores[row].append(found[row].classifier(*padded(of, features.device)))
            tested += numbers.tolist()
        truth = labels.test[tested].to(features.device)
        metrics = {row: classified(torch.cat(of), truth) | found[row].setting for row, of in scores.items()}
        return metrics, [places, tested]

    def _kept(self, features: Features, want: Want) -> tuple[dict[str, list[Sample]], list[int]]:
        """({row: the training samples, on the CPU}, their numbers)."""
        rows: dict[str, list[Sample]] = {}
        places: list[int] = []
        for some, numbers in self._samples(features, want):
            if not places and (size := fitting(some, len(want.places))) > WORTH_SAYING:
                distributed.say(f"attentive: keeps {size / 2**30:.1f} GiB of tokens while it learns")
            for row, samples in some.items():
                rows.setdefault(row, []).extend([x.cpu() for x in sample] for sample in samples)
            places += numbers.tolist()
        return rows, places

    def _fit(
        self,
        samples: list[Sample],
        labels: Tensor,
        classes: int,
        device: torch.device,
        done: Callable[[int], Any],
    ) -> "Best":
        """The classifier that is best on the held-out ones of N training samples with labels [N]."""
        held = held_out(len(labels), self.holdout)
        of_held, used = np.flatnonzero(held), np.flatnonzero(~held)
        mean, scale = spread_over([x for i in used for x in samples[i]])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = Attention(mean, scale, self.spread.slots if self.spread else 1, classes)
        tried = [copy.deepcopy(first).to(device) for _ in self.settings]
        optimizer = torch.optim.AdamW(
            [
                {"params": classifier.parameters(), "lr": rate, "weight_decay": decay}
                for classifier, (rate, decay) in zip(tried, self.settings)
            ]
        )
        steps = self.epochs * math.ceil(len(used) / self.BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batch = lambda some: (padded([samples[i] for i in some], device), labels[some].to(device))
        best, highest = None, (-1.0, 0.0)
        for epoch in range(self.epochs):
            order = np.random.default_rng([0, epoch]).permutation(used)
            for some in in_parts(order, self.BATCH):
                given, y = batch(some)
                with torch.enable_grad():
                    loss = sum(nn.functional.cross_entropy(classifier(*given), y) for classifier in tried)
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                schedule.step()
                done(len(some))
            right = torch.zeros(len(tried), 2, dtype=torch.float64, device=device)
            for some in in_parts(of_held, self.BATCH):
                given, y = batch(some)
                right += torch.stack([goodness(classifier(*given), y) for classifier in tried])
                done(len(some))
            for classifier, (rate, decay), good in zip(tried, self.settings, right.tolist()):
                if tuple(good) > highest:
                    highest = tuple(good)
                    best = Best(copy.deepcopy(classifier), {"rate": rate, "decay": decay})
        return best


class Best(NamedTuple):
    """A classifier and what was chosen for it."""

    classifier: "Attention"
    setting: dict[str, float]


class Attention(nn.Module):
    """Tokens x [B S, T, D] and mask [B S, T] bool -> scores [B, C]. The keys of an attention with one query
    are not needed: the query and the keys' projection are together one vector of D numbers for each head.
    mean, scale [D]: of the tokens."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int, classes: int):
        super().__init__()
        dim = len(mean)
        heads = next(n for n in range(max(1, dim // HEAD), 0, -1) if dim % n == 0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.slots = slots
        self.query = nn.Parameter(0.02 * torch.randn(heads, dim))
        self.value = nn.Linear(dim, dim)
        self.hidden = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.classes = nn.Linear(slots * dim, classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = (x - self.mean) / self.scale
        weight_NTH = x @ self.query.T * (HEAD / x.shape[2]) ** 0.5
        weight_NTH = weight_NTH.masked_fill(~mask[..., None], -torch.inf).softmax(1)
        pooled_NHD = weight_NTH.transpose(1, 2) @ x
        # of a head its own numbers of the values
        of_head = self.value.weight.unflatten(0, (len(self.query), -1))
        value_ND = torch.einsum("nhd,hed->nhe", pooled_NHD, of_head).flatten(1) + self.value.bias
        return self.classes((value_ND + self.hidden(value_ND)).unflatten(0, (-1, self.slots)).flatten(1))


def spread_over(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over all of some tokens [T, D]; infinite for a number that is the same
    in all, so that it says nothing."""
    count = sum(map(len, tokens))
    mean = sum(x.double().sum(0) for x in tokens) / count
    scale = (sum((x - mean).square().sum(0) for x in tokens) / count).sqrt()
    scale = torch.where(scale > CONSTANT * mean.abs(), scale, torch.inf)
    return mean.float(), scale.float()


def goodness(scores: Tensor, y: Tensor) -> Tensor:
    """How many of B answers are right and, of equally many, minus the sum of their cross-entropies: [2]
    float64."""
    right = (scores.argmax(1) == y).double().sum()
    return torch.stack([right, -nn.functional.cross_entropy(scores.double(), y, reduction="sum")])


def padded(samples: list[Sample], device: torch.device) -> tuple[Tensor, Tensor]:
    """What Attention takes, of B samples."""
    tokens = [x for sample in samples for x in sample]
    lengths = torch.tensor(list(map(len, tokens)))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device), mask.to(device)


def in_slots(views: list[Tensor], spread: Spread | None) -> Sample:
    """Tokens [T, D] of a record's views, in order of time, together by slot."""
    if spread is None:
        return views
    bounds = [round(i * len(views) / spread.slots) for i in range(spread.slots + 1)]
    return [torch.cat(views[start:end]) for start, end in zip(bounds, bounds[1:])]


def fitting(rows: dict[str, list[Sample]], samples: int) -> int:
    """Bytes of the tokens of so many samples, in all rows, by those of a few. Raises ValueError where they
    are too many to be kept."""
    found = rows["model"]
    each = sum(x.nbytes for of in rows.values() for sample in of for x in sample) / len(found)
    if each * samples > KEPT_BYTES:
        tokens, width = sum(map(len, found[0])), found[0][0].shape[1]
        raise ValueError(
            f"evaluate.probes: 'attentive' keeps the tokens of its {samples:,} training samples, about"
            f" {tokens} x {width} each, of {len(rows) - 1} encoders: {each * samples / 2**30:.1f} GiB, more"
            f" than {KEPT_BYTES / 2**30:g}. Set samples: {max(2, int(KEPT_BYTES / each))} or fewer."
        )
    return int(each * samples)
