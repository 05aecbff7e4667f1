"""Classification from the frozen representation y of one branch: `knn` and `linear`, with what a sceptic
would try first beside them.

    evaluate: {probes: [{name: knn}, {name: linear, rates: [0.02, 0.1, 0.5], epochs: 100}]}
    evaluate: {probes: [{name: linear, branch: b, label: speaker, solver: ridge}]}

Rows: model; random_init, the same encoder before training; the modality's simple features, under the name it
gives them (`pixels`: an image averaged to at most 32 x 32); chance. Labels come from the records' `label` (or
another column).
"""

# N samples, B batch, D representation, K neighbours, L learning rates, C classes

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vicjoint.data.errors import READ_ERRORS
from vicjoint.parts import Probe
from vicjoint.probes.frozen import (
    Evaluating,
    Reading,
    Split,
    as_picture,
    features,
    held_out,
    read,
    represent,
    row_encoders,
    splits,
)
from vicjoint.probes.ridge import fit_chosen
from vicjoint.registry import register

TOP = 5


@dataclass
class Frozen:
    """Both splits through every row's encoder: {row: features [N, D]}, class numbers [N], and the places of
    their records [N]."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]
    labels: Tensor
    truth: Tensor
    train_places: Tensor
    test_places: Tensor


class _Classification(Probe):
    """What both probes share; `branch` is whose representation they look at."""

    def misses(self, source, pair) -> str | None:
        """Why this source cannot be probed, or None. Raises ValueError for a pair that has no single views to
        classify."""
        if not hasattr(pair, "plain"):
            raise ValueError(
                f"evaluate.probes: '{self.name}' classifies single views, which this pair does not give."
                " Leave it out."
            )
        train, test, classes = splits(source, self.label, pair.workers, self.branch)
        if len(classes) < 2 or not test.known.any():
            return (
                f"it needs two classes or more, and test samples of them, in '{self.label}' of the records;"
                f" found {len(classes)} classes. A folder gives one class for each of its sub-folders."
            )
        return None

    def _represent(self, encoders: dict, both: tuple[Split, Split], pair, device) -> Frozen:
        (x, places), (queries, query_places) = (
            represent(encoders, s.of, Reading(pair, self.branch), s.places, device) for s in both
        )
        train, test = both
        return Frozen(
            x,
            queries,
            train.labels[places].to(device),
            test.labels[query_places].to(device),
            places,
            query_places,
        )


def top_shares(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy and, with more than TOP classes, top5 of scores [N, C]."""
    best = scores.topk(min(TOP, scores.shape[1]), 1).indices == labels[:, None]
    found = {"accuracy": float(best[:, 0].float().mean())}
    return found | ({"top5": float(best.any(1).float().mean())} if scores.shape[1] > TOP else {})


def chance(classes: int) -> dict[str, float]:
    return {"accuracy": 1 / classes} | ({"top5": TOP / classes} if classes > TOP else {})


# ---- knn ----


@register("probe", "knn")
class KNN(_Classification):
    """Weighted nearest neighbours on the representation (Wu et al. 2018, as VICReg, table 7, and DINO use
    it): the `k` training samples of the largest cosine similarity s vote with exp(s / temperature).

    Metrics: accuracy and top5 with the first k; accuracy_k200, ... with the others. `pictures`: test images
    shown in the report.
    """

    name = "knn"

    def __init__(
        self,
        k: list[int] = [20, 200],
        temperature: float = 0.07,
        label: str = "label",
        pictures: int = 8,
        branch: str = "a",
    ):
        if not k or min(k) < 1 or temperature <= 0:
            raise ValueError(
                f"knn needs neighbours k of 1 or more and a temperature above 0, got {k} and {temperature}."
            )
        self.k, self.temperature, self.label, self.pictures, self.branch = (
            list(k),
            temperature,
            label,
            pictures,
            branch,
        )

    @torch.no_grad()
    def __call__(self, model, untrained, source, pair, device):
        train, test, classes = splits(source, self.label, pair.workers, self.branch)
        with Evaluating(model, untrained):
            frozen = self._represent(row_encoders(model, untrained, self.branch), (train, test), pair, device)
        for row, bank in frozen.train.items():
            for k, scores in votes(
                bank, frozen.labels, frozen.test[row], self.k, self.temperature, len(classes)
            ).items():
                found = top_shares(scores, frozen.truth)
                found = found if k == self.k[0] else {f"accuracy_k{k}": found["accuracy"]}
                yield from ((f"{row}/{metric}", value) for metric, value in found.items())
        yield from ((f"chance/{metric}", value) for metric, value in chance(len(classes)).items())
        if self.pictures and (
            pictures := self._pictures(Reading(pair, self.branch), classes, (train, test), frozen)
        ):
            yield "pictures", pictures

    def _pictures(
        self, reading: Reading, classes: list, both: tuple[Split, Split], frozen: Frozen
    ) -> dict[str, np.ndarray]:
        """Evenly spaced test images, each with its five nearest training images, the first of which names its
        class. Empty where the branch sees no images."""
        train, test = both
        chosen = (
            np.linspace(0, len(frozen.truth) - 1, min(self.pictures, len(frozen.truth))).round().astype(int)
        )
        bank, y = (
            nn.functional.normalize(part) for part in (frozen.train["model"], frozen.test["model"][chosen])
        )
        near = frozen.train_places[(y @ bank.T).topk(min(5, len(bank)), 1).indices.cpu()]
        of_query = frozen.test_places[chosen]
        show = lambda split, place: as_picture(reading(split.records[int(place)], int(place))[0])
        if show(test, of_query[0]) is None:
            return {}
        truth, first = (
            [str(classes[c]) for c in test.labels[of_query]],
            [str(classes[c]) for c in train.labels[near[:, 0]]],
        )
        return {
            "query": np.stack([show(test, place) for place in of_query]),
            "neighbours": np.stack([[show(train, place) for place in n] for n in near]),
            "captions": np.array(["test image", "nearest training images"]),
            "title": np.array(
                [
                    f"{test.records[int(place)]['id']}: {t}; the nearest is {f}"
                    for place, t, f in zip(of_query, truth, first)
                ],
                dtype=str,
            ),
            "good": np.array([t == f for t, f in zip(truth, first)], dtype=bool),
            **self._views(reading.pair, train.records),
        }

    def _views(self, pair, records: list) -> dict[str, np.ndarray]:
        """Both training views of a few records, where they are images of one size: uint8 [m, 2, H, W, 3]."""
        shown = []
        for place in np.linspace(0, len(records) - 1, 2 * self.pictures).round().astype(int):
            if len(shown) == self.pictures:
                break
            try:
                both = [
                    as_picture(view)
                    for view in pair.sample(records[int(place)], np.random.default_rng(int(place)))
                ]
            except READ_ERRORS:
                continue
            if any(view is None or view.shape != both[0].shape for view in both):
                return {}
            shown.append(both)
        return {"views": np.array(shown)} if shown else {}


def votes(
    bank: Tensor, labels: Tensor, queries: Tensor, k: list[int], temperature: float, classes: int
) -> dict[int, Tensor]:
    """{k: scores [Q, C]} of queries [Q, D] against a bank [N, D] with labels [N]."""
    bank, queries = nn.functional.normalize(bank), nn.functional.normalize(queries)
    at_once, most = max(1, 2**26 // len(bank)), min(max(k), len(bank))
    scores = {each: [] for each in k}
    for part in queries.split(at_once):
        similarity, nearest = (part @ bank.T).topk(most, 1)
        weight = (similarity / temperature).exp()
        for each in k:
            empty = torch.zeros(len(part), classes, device=bank.device)
            scores[each].append(empty.scatter_add_(1, labels[nearest[:, :each]], weight[:, :each]))
    return {each: torch.cat(parts) for each, parts in scores.items()}


# ---- linear ----


@register("probe", "linear")
class Linear(_Classification):
    """A linear classifier on the frozen representation. Metrics: accuracy and top5 on the test split, and the
    setting chosen.

    solver: sgd: VICReg's protocol (its evaluate.py), SGD with momentum 0.9, weight decay 1e-6, batches of
    256, `epochs` epochs with a cosine. rates: learning rates, all trained in the same pass; with more than
    one, the one that is best on a share `holdout` of the training samples, which no head is trained on, is
    reported (metric `rate`). crops: train on random crops and flips of the training images; null: where the
    pair has them; false: representations are computed once and reused in every epoch, much faster.

    solver: ridge: least squares on one-hot classes, in closed form on standardised features, for small sets;
    the `penalty` is the best on `holdout` and the fit is then repeated on all training samples. rates, epochs
    and crops are not used.
    """

    name = "linear"
    MOMENTUM, WEIGHT_DECAY, BATCH = 0.9, 1e-6, 256

    def __init__(
        self,
        rates: list[float] = [0.02, 0.1, 0.5, 2.0, 10.0],
        epochs: int = 100,
        crops: bool | None = None,
        holdout: float = 0.1,
        label: str = "label",
        branch: str = "a",
        solver: Literal["sgd", "ridge"] = "sgd",
    ):
        if not rates or min(rates) <= 0 or epochs < 1:
            raise ValueError(
                f"linear needs learning rates above 0 and epochs of 1 or more, got {rates} and {epochs}."
            )
        chooses = (
            "penalties" if solver == "ridge" else f"{len(rates)} learning rates" if len(rates) > 1 else None
        )
        if not 0 <= holdout < 1 or (chooses and holdout == 0):
            raise ValueError(
                f"linear: holdout is {holdout}, expected a share of the training samples below 1"
                + (f", and above 0 to choose among {chooses}." if chooses else ".")
            )
        self.rates, self.epochs, self.crops, self.label, self.branch, self.solver = (
            list(rates),
            epochs,
            crops,
            label,
            branch,
            solver,
        )
        self.holdout = holdout if chooses else 0.0

    def misses(self, source, pair) -> str | None:
        if self.crops and self.solver == "sgd" and not hasattr(pair, "cropped"):
            raise ValueError(
                "evaluate.probes: 'linear' has crops: true, but this pair has no random crops of its own. Set"
                " crops: null or false."
            )
        return super().misses(source, pair)

    def __call__(self, model, untrained, source, pair, device):
        train, test, classes = splits(source, self.label, pair.workers, self.branch)
        encoders = row_encoders(model, untrained, self.branch)
        with Evaluating(model, untrained):
            frozen = self._represent(encoders, (train, test), pair, device)
            held = held_out(len(frozen.labels), self.holdout)
            if self.solver == "ridge":
                found = self._ridge(frozen, torch.from_numpy(held).to(device), len(classes))
            else:
                found = self._sgd(
                    frozen,
                    held,
                    len(classes),
                    lambda epoch: self._epoch(encoders, train, pair, device, (frozen, ~held), epoch),
                )
        for row, (scores, setting) in found.items():
            yield from (
                (f"{row}/{metric}", value) for metric, value in top_shares(scores, frozen.truth).items()
            )
            yield f"{row}/{'penalty' if self.solver == 'ridge' else 'rate'}", setting
        yield from ((f"chance/{metric}", value) for metric, value in chance(len(classes)).items())

    def _ridge(self, frozen: Frozen, held: Tensor, classes: int) -> dict[str, tuple[Tensor, float]]:
        """{row: (test scores [N, C], penalty)}."""
        found, y = {}, nn.functional.one_hot(frozen.labels, classes)
        wrong = lambda scores: float((scores.argmax(1) != frozen.labels[held]).double().mean())
        for row, x in frozen.train.items():
            fit, penalty = fit_chosen(x, y, held, wrong)
            found[row] = fit.predict(frozen.test[row], penalty), penalty
        return found

    def _sgd(
        self, frozen: Frozen, held: np.ndarray, classes: int, batches
    ) -> dict[str, tuple[Tensor, float]]:
        """{row: (test scores [N, C], learning rate)}; `batches(epoch)` yields ({row: features [B, D]}, labels
        [B])."""
        heads = {row: Heads(x.shape[1], classes, self.rates, x.device) for row, x in frozen.train.items()}
        for epoch in range(self.epochs):
            share = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            for batch, labels in batches(epoch):
                for row, head in heads.items():
                    head.step(batch[row], labels, share)
        best = {
            row: head.best(frozen.train[row][held], frozen.labels[held]) if held.any() else 0
            for row, head in heads.items()
        }
        return {
            row: (head(frozen.test[row])[best[row]], self.rates[best[row]]) for row, head in heads.items()
        }

    @torch.no_grad()
    def _epoch(
        self, encoders: dict, train: Split, pair, device, known: tuple, epoch: int
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """({row: features [B, D]}, labels [B]) over one epoch in random order."""
        frozen, used = known
        order = np.random.default_rng([0, epoch]).permutation(np.flatnonzero(used))
        if self.crops is not False and hasattr(pair, "cropped"):
            for views, where in read(
                train.of, Reading(pair, self.branch, epoch), frozen.train_places.numpy()[order], self.BATCH
            ):
                yield features(encoders, views, device), train.labels[where].to(device)
            return
        for part in torch.from_numpy(order).to(device).split(self.BATCH):
            yield {row: y[part] for row, y in frozen.train.items()}, frozen.labels[part]


class Heads:
    """L linear classifiers side by side, [L, C, D], each with its own learning rate; what one learns does not
    touch the others."""

    def __init__(self, dim: int, classes: int, rates: list[float], device):
        generator = torch.Generator().manual_seed(0)
        weight = 0.01 * torch.randn(1, classes, dim, generator=generator)
        self.weight = weight.repeat(len(rates), 1, 1).to(device)
        self.bias = torch.zeros(len(rates), classes, device=device)
        self.rates = torch.tensor(rates, device=device)
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def __call__(self, y: Tensor) -> Tensor:
        """Scores [L, B, C] of y [B, D]."""
        return torch.matmul(y, self.weight.transpose(1, 2)) + self.bias[:, None]

    @torch.no_grad()
    def step(self, y: Tensor, labels: Tensor, share: float) -> None:
        """One SGD step of every head on its mean cross-entropy; `share`: of the learning rates."""
        error = self(y).softmax(2)
        error[:, torch.arange(len(y), device=y.device), labels] -= 1
        error /= len(y)
        gradients = error.transpose(1, 2) @ y, error.sum(1)
        for parameter, gradient, velocity in zip((self.weight, self.bias), gradients, self.velocity):
            velocity.mul_(Linear.MOMENTUM).add_(gradient + Linear.WEIGHT_DECAY * parameter)
            parameter.sub_(velocity * (share * self.rates).view(-1, *[1] * (parameter.ndim - 1)))

    def best(self, y: Tensor, labels: Tensor) -> int:
        """The head of the highest accuracy; the smaller rate of two that are equal."""
        return int((self(y).argmax(2) == labels).float().mean(1).argmax())
