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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vicjoint.data import READ_ERRORS
from vicjoint.options import Count
from vicjoint.parts import EvaluationData, Features, Metric, Pair, Probe, Side, Spread, Want
from vicjoint.probes.features import as_picture
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import Labels, chance, classified, held_out, hits, known, labels_of, means, named
from vicjoint.probes.ridge import fit_chosen
from vicjoint.probes.spread import Pool, check_spread, spread_of
from vicjoint.registry import register

REFUSAL = "evaluate.probes: '{}' classifies single views, which this pair does not give. Leave it out."
ACCURACY = {
    "accuracy": Metric("share of right answers (knn: with the first k of the recipe)"),
    "top5": Metric("share of samples whose class is among the five of highest score"),
}


@dataclass
class Frozen:
    """Both splits through every row's encoder: {row: features [N, D]}, class numbers [N], and the numbers of
    their records [N]."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]
    labels: Tensor
    truth: Tensor
    train_places: Tensor
    test_places: Tensor

    def new(self, settled: dict) -> list[str]:
        """The rows that an earlier evaluation of the run did not settle: all, or only the model."""
        return [row for row in self.train if row == "model" or row not in settled]


class Classification(Probe):
    """What both probes share. branch: whose representation they look at. windows: of a pair that has a time,
    as many views evenly spread over each record, instead of the one in its middle; pool: slots: their
    representations side by side, which keep what was when; a number: so many slots, each the average of the
    windows in it; mean: one. between: two columns with the seconds of the start and the end of what the label
    speaks of; null: the whole record."""

    needs = frozenset({"views"})
    scope = "branch"
    label: str
    branch: Side
    spread: Spread | None

    def misses(self, data: EvaluationData) -> str | None:
        check_spread(type(self).__name__.lower(), self.spread, data, self.branch)
        return labels_of(data, self.label, self.branch).missing(self.label)

    def unused(self, data: EvaluationData) -> str | None:
        return labels_of(data, self.label, self.branch).unused(self.label)

    def wants(self, data: EvaluationData) -> list[Want]:
        labels = labels_of(data, self.label, self.branch)
        return [
            Want(self.branch, "train", known(labels.train), spread=self.spread),
            Want(self.branch, "test", known(labels.test), spread=self.spread),
        ]

    def frozen(self, features: Features, labels: Labels) -> Frozen:
        train, test = (features.items(want) for want in features.wants[:2])
        rows = []
        for items in (train, test):
            baseline = {"simple": features.baseline(self.branch)}
            rows.append({baseline.get(row, row): x for row, x in items.rows.items()})
        y, truth = (
            of[items.places].to(features.device) for of, items in ((labels.train, train), (labels.test, test))
        )
        return Frozen(*rows, y, truth, train.places, test.places)


# ---- knn ----


@register("probe", "knn")
class KNN(Classification):
    """Weighted nearest neighbours on the representation (Wu et al. 2018, as VICReg, table 7, and DINO use
    it): the `k` training samples of the largest cosine similarity s vote with exp(s / temperature).

    Metrics: accuracy and top5 with the first k; accuracy_k200, ... with the others. `pictures`: test images
    shown in the report.
    """

    refusal = REFUSAL.format("knn")

    def __init__(
        self,
        k: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)] = [20, 200],
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        label: str = "label",
        pictures: int = 8,
        branch: str = "a",
        windows: Count | None = None,
        pool: Pool = "slots",
        between: tuple[str, str] | None = None,
    ):
        self.k, self.temperature, self.label, self.pictures = list(k), temperature, label, pictures
        self.branch, self.spread = branch, spread_of("knn", windows, pool, between)
        others = {f"accuracy_k{n}": Metric(f"the same with {n} neighbours") for n in self.k[1:]}
        self.explains = ACCURACY | others

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        labels = features.once("labels", lambda: labels_of(features.data, self.label, self.branch))
        frozen = self.frozen(features, labels)
        classes = len(labels.classes)
        settled = features.once("fixed rows", dict)
        for row in frozen.new(settled):
            bank, y = frozen.train[row], frozen.test[row]
            scored = votes(bank, frozen.labels, y, self.k, self.temperature, classes)
            right = hits(scored[self.k[0]], frozen.truth)
            right |= {f"accuracy_k{k}": hits(scored[k], frozen.truth)["accuracy"] for k in self.k[1:]}
            settled[row] = with_intervals(means(right), len(frozen.truth))
        for row in frozen.train:
            yield from named(row, settled[row])
        yield from named("chance", chance(classes))
        if self.pictures and (pictures := self._pictures(features, labels, frozen)):
            yield "pictures", pictures

    def _pictures(self, features: Features, labels: Labels, frozen: Frozen) -> dict[str, np.ndarray]:
        """Evenly spaced test images, each with its five nearest training images, the first of which names its
        class. Empty where the branch sees no images."""
        chosen = (
            np.linspace(0, len(frozen.truth) - 1, min(self.pictures, len(frozen.truth))).round().astype(int)
        )
        bank, y = (
            nn.functional.normalize(part) for part in (frozen.train["model"], frozen.test["model"][chosen])
        )
        near = frozen.train_places[(y @ bank.T).topk(min(5, len(bank)), 1).indices.cpu()]
        of_query = frozen.test_places[chosen]
        show = lambda split, place: features.picture(self.branch, split, int(place))
        if show("test", of_query[0]) is None:
            return {}
        truth = [str(labels.classes[c]) for c in labels.test[of_query]]
        first = [str(labels.classes[c]) for c in labels.train[near[:, 0]]]
        records = features.data.records("test", self.branch)
        titles = [
            f"{records[int(p)]['id']}: {t}; the nearest is {f}" for p, t, f in zip(of_query, truth, first)
        ]
        return {
            "query": np.stack([show("test", place) for place in of_query]),
            "neighbours": np.stack([[show("train", place) for place in n] for n in near]),
            "captions": np.array(["test image", "nearest training images"]),
            "title": np.array(titles, dtype=str),
            "good": np.array([t == f for t, f in zip(truth, first)], dtype=bool),
            **self._views(features.data.pair, features.data.records("train", self.branch)),
        }

    def _views(self, pair: Pair, records) -> dict[str, np.ndarray]:
        """Both training views of a few records, where they are images of one size: uint8 [m, 2, H, W, 3]."""
        shown = []
        for place in np.linspace(0, len(records) - 1, 2 * self.pictures).round().astype(int):
            if len(shown) == self.pictures:
                break
            try:
                views = pair.sample(records[int(place)], np.random.default_rng(int(place)))
            except READ_ERRORS:
                continue
            both = [as_picture(view) for view in views]
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
class Linear(Classification):
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

    refusal = REFUSAL.format("linear")
    MOMENTUM, WEIGHT_DECAY, BATCH = 0.9, 1e-6, 256
    explains = ACCURACY | {
        "rate": Metric("learning rate that was best on the held-out training samples", None),
        "penalty": Metric("ridge penalty that was best on the held-out training samples", None),
    }

    def __init__(
        self,
        rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
            0.02,
            0.1,
            0.5,
            2.0,
            10.0,
        ],
        epochs: Annotated[int, Field(gt=0)] = 100,
        crops: bool | None = None,
        holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        label: str = "label",
        branch: str = "a",
        solver: Literal["sgd", "ridge"] = "sgd",
        windows: Count | None = None,
        pool: Pool = "slots",
        between: tuple[str, str] | None = None,
    ):
        chooses = (
            "penalties" if solver == "ridge" else f"{len(rates)} learning rates" if len(rates) > 1 else None
        )
        if chooses and holdout == 0:
            raise ValueError(
                f"linear: holdout is {holdout}, expected a share of the training samples below 1, and above 0"
                f" to choose among {chooses}."
            )
        self.rates, self.epochs, self.crops, self.label = list(rates), epochs, crops, label
        self.branch, self.solver, self.spread = branch, solver, spread_of("linear", windows, pool, between)
        self.holdout = holdout if chooses else 0.0

    def misses(self, data: EvaluationData) -> str | None:
        if self.crops and self.solver == "sgd" and "crops" not in data.pair.gives:
            raise ValueError(
                "evaluate.probes: 'linear' has crops: true, but this pair has no random crops of its own. Set"
                " crops: null or false."
            )
        return super().misses(data)

    def wants(self, data: EvaluationData) -> list[Want]:
        train, test = super().wants(data)
        if self.solver == "ridge" or self.crops is False or "crops" not in data.pair.gives:
            return [train, test]
        used = train.places[~held_out(len(train.places), self.holdout)]
        return [train, test, Want(self.branch, "train", used, epochs=self.epochs)]

    def measure(self, features: Features) -> Iterator[tuple[str, float]]:
        labels = features.once("labels", lambda: labels_of(features.data, self.label, self.branch))
        frozen = self.frozen(features, labels)
        held, classes = held_out(len(frozen.labels), self.holdout), len(labels.classes)
        settled = features.once("fixed rows", dict)
        rows = frozen.new(settled)
        if self.solver == "ridge":
            found = self._ridge(frozen, rows, torch.from_numpy(held).to(features.device), classes)
        else:
            batches = self._batches(features, labels, frozen, rows, ~held)
            found = self._sgd(frozen, rows, held, classes, batches)
        setting = "penalty" if self.solver == "ridge" else "rate"
        for row, (scores, value) in found.items():
            settled[row] = classified(scores, frozen.truth) | {setting: value}
        for row in frozen.train:
            yield from named(row, settled[row])
        yield from named("chance", chance(classes))

    def _ridge(
        self, frozen: Frozen, rows: list[str], held: Tensor, classes: int
    ) -> dict[str, tuple[Tensor, float]]:
        """{row: (test scores [N, C], penalty)}."""
        found, y = {}, nn.functional.one_hot(frozen.labels, classes)
        wrong = lambda scores: float((scores.argmax(1) != frozen.labels[held]).double().mean())
        for row in rows:
            fit, penalty = fit_chosen(frozen.train[row], y, held, wrong)
            found[row] = fit.predict(frozen.test[row], penalty), penalty
        return found

    def _sgd(
        self,
        frozen: Frozen,
        rows: list[str],
        held: np.ndarray,
        classes: int,
        batches: Iterator[tuple[int, dict[str, Tensor], Tensor]],
    ) -> dict[str, tuple[Tensor, float]]:
        """{row: (test scores [N, C], learning rate)}; batches: (epoch, {row: features [B, D]}, labels
        [B])."""
        train = {row: frozen.train[row] for row in rows}
        heads = {row: Heads(x.shape[1], classes, self.rates, x.device) for row, x in train.items()}
        for epoch, batch, labels in batches:
            share = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            for row, head in heads.items():
                head.step(batch[row], labels, share)
        best = {
            row: head.best(train[row][held], frozen.labels[held]) if held.any() else 0
            for row, head in heads.items()
        }
        return {
            row: (head(frozen.test[row])[best[row]], self.rates[best[row]]) for row, head in heads.items()
        }

    def _batches(
        self, features: Features, labels: Labels, frozen: Frozen, rows: list[str], used: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        """(epoch, {row: features [B, D]}, labels [B]) over all epochs, each in a random order."""
        order: Callable[[int], np.ndarray] = lambda epoch: np.random.default_rng([0, epoch]).permutation(
            np.flatnonzero(used)
        )
        of_crops = [want for want in features.wants if want.epochs]
        if of_crops:
            places, name = frozen.train_places.numpy(), {"simple": features.baseline(self.branch)}
            want = replace(of_crops[0], rows=tuple(r for r in of_crops[0].rows if name.get(r, r) in rows))
            for epoch, found, where in features.crops(want, lambda e: places[order(e)], self.BATCH):
                found = {name.get(row, row): x for row, x in found.items()}
                yield epoch, found, labels.train[where].to(features.device)
            return
        with features.progress(self.epochs * int(used.sum()), "linear classifiers") as done:
            for epoch in range(self.epochs):
                for part in torch.from_numpy(order(epoch)).to(features.device).split(self.BATCH):
                    yield epoch, {row: frozen.train[row][part] for row in rows}, frozen.labels[part]
                    done(len(part))


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
