"""Classification from the frozen representation y of branch a: `knn` and `linear`, with what a sceptic would try first beside them.

    evaluate: {probes: [{name: knn}, {name: linear, rates: [0.02, 0.1, 0.5], epochs: 100}]}

Rows: model; random_init, the same encoder before training; pixels, the view itself averaged to at most 32 x 32; chance. Labels come from
the records' `label` (or another column). The pair gives views without augmentation, `plain(record)`, and for the linear probe with
crops, `cropped(record, rng)`.
"""

# N samples, B batch, D representation, K neighbours, L learning rates, C classes

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from vicjoint.data import READ_ERRORS
from vicjoint.frozen import Evaluating, Split, as_picture, features, read, represent, splits
from vicjoint.registry import register

TOP = 5


class _Classification:
    """What both probes share."""

    def misses(self, source, pair) -> str | None:
        """Why this source cannot be probed, or None. Raises ValueError for a pair that has no single views to classify."""
        if not hasattr(pair, "plain"):
            raise ValueError(f"evaluate.probes: '{self.name}' classifies single views, which this pair does not give. Leave it out.")
        train, test, classes = splits(source, self.label, pair.workers)
        if len(classes) < 2 or not (test.labels >= 0).any():
            return (f"it needs two classes or more, and test samples of them, in '{self.label}' of the records; found {len(classes)} classes. "
                    "A folder gives one class for each of its sub-folders.")
        return None


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
    """Weighted nearest neighbours on the representation (Wu et al. 2018, as VICReg, table 7, and DINO use it): the `k` training samples
    of the largest cosine similarity s vote with exp(s / temperature).

    Metrics: accuracy and top5 with the first k; accuracy_k200, ... with the others. `pictures`: test images shown in the report.
    """

    name = "knn"

    def __init__(self, k: list[int] = [20, 200], temperature: float = 0.07, label: str = "label", pictures: int = 8):
        if not k or min(k) < 1 or temperature <= 0:
            raise ValueError(f"knn needs neighbours k of 1 or more and a temperature above 0, got {k} and {temperature}.")
        self.k, self.temperature, self.label, self.pictures = list(k), temperature, label, pictures

    @torch.no_grad()
    def __call__(self, model, untrained, source, pair, device):
        train, test, classes = splits(source, self.label, pair.workers)
        encoders = {"model": model.a, "random_init": untrained.a, "pixels": None}
        with Evaluating(model, untrained):
            bank, bank_places = represent(encoders, train, pair, device)
            queries, query_places = represent(encoders, test, pair, device)
        labels, truth = train.labels[bank_places].to(device), test.labels[query_places].to(device)
        for row in encoders:
            for k, scores in votes(bank[row], labels, queries[row], self.k, self.temperature, len(classes)).items():
                found = top_shares(scores, truth)
                found = found if k == self.k[0] else {f"accuracy_k{k}": found["accuracy"]}
                yield from ((f"{row}/{metric}", value) for metric, value in found.items())
        yield from ((f"chance/{metric}", value) for metric, value in chance(len(classes)).items())
        if self.pictures:
            yield "pictures", self._pictures(pair, classes, (train, test), (bank_places, query_places), (bank["model"], queries["model"]))

    def _pictures(self, pair, classes: list, both: tuple, places: tuple, y: tuple) -> dict[str, np.ndarray]:
        """Evenly spaced test images, each with its five nearest training images; the first of them names its class."""
        (train, test), (bank_places, query_places) = both, places
        chosen = np.linspace(0, len(query_places) - 1, min(self.pictures, len(query_places))).round().astype(int)
        near = (nn.functional.normalize(y[1][chosen]) @ nn.functional.normalize(y[0]).T).topk(min(5, len(y[0])), 1).indices.cpu()
        show = lambda split, place: pair.plain(split.records[int(place)]).movedim(0, -1).numpy()  # noqa: E731
        name = lambda split, place: str(classes[split.labels[place]])  # noqa: E731
        truth = [name(test, query_places[q]) for q in chosen]
        first = [name(train, bank_places[n[0]]) for n in near]
        return {
            "query": np.stack([show(test, query_places[q]) for q in chosen]),
            "neighbours": np.stack([[show(train, bank_places[i]) for i in n] for n in near]),
            "title": np.array([f"{test.records[int(query_places[q])]['id']}: {t}; the nearest is {f}"
                               for q, t, f in zip(chosen, truth, first)], dtype=str),
            **self._views(pair, train),
            "good": np.array([t == f for t, f in zip(truth, first)], dtype=bool),
        }


    def _views(self, pair, train: Split) -> dict[str, np.ndarray]:
        """Both training views of a few images, where they are single images of one size: uint8 [m, 2, H, W, 3]."""
        shown = []
        for place in np.linspace(0, len(train.records) - 1, 2 * self.pictures).round().astype(int):
            if len(shown) == self.pictures:
                break
            try:
                both = pair.sample(train.records[int(place)], np.random.default_rng(int(place)))
            except READ_ERRORS:
                continue
            shown.append([as_picture(view) for view in both])
        return {"views": np.array(shown)} if shown else {}


def votes(bank: Tensor, labels: Tensor, queries: Tensor, k: list[int], temperature: float, classes: int) -> dict[int, Tensor]:
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
    """A linear classifier on the frozen representation by VICReg's protocol (its evaluate.py): SGD with momentum 0.9, weight decay 1e-6,
    batches of 256, `epochs` epochs with a cosine, on random crops and flips of the training images.

    rates: learning rates, all trained in the same pass; with more than one, the one that is best on a share `holdout` of the training
    images, which no head is trained on, is reported (metric `rate`). crops: false: representations are computed once, without crops,
    and reused in every epoch: much faster. Metrics: accuracy and top5 on the test split.
    """

    name = "linear"
    MOMENTUM, WEIGHT_DECAY, BATCH = 0.9, 1e-6, 256

    def __init__(self, rates: list[float] = [0.02, 0.1, 0.5, 2.0, 10.0], epochs: int = 100, crops: bool = True, holdout: float = 0.1,
                 label: str = "label"):
        if not rates or min(rates) <= 0 or epochs < 1:
            raise ValueError(f"linear needs learning rates above 0 and epochs of 1 or more, got {rates} and {epochs}.")
        if not 0 <= holdout < 1 or (len(rates) > 1 and holdout == 0):
            raise ValueError(f"linear: holdout is {holdout}, expected a share of the training images below 1, and above 0 to choose among "
                             f"{len(rates)} learning rates.")
        self.rates, self.epochs, self.crops, self.label = list(rates), epochs, crops, label
        self.holdout = holdout if len(rates) > 1 else 0.0

    def __call__(self, model, untrained, source, pair, device):
        train, test, classes = splits(source, self.label, pair.workers)
        encoders = {"model": model.a, "random_init": untrained.a, "pixels": None}
        with Evaluating(model, untrained):
            plain, places = represent(encoders, train, pair, device)
            queries, query_places = represent(encoders, test, pair, device)
            held = np.random.default_rng(0).random(len(places)) < self.holdout
            held[0], held[-1] = held[0] and len(held) > 1, False  # a tiny split still has something to train on
            heads = {row: Heads(y.shape[1], len(classes), self.rates, device) for row, y in plain.items()}
            for epoch in range(self.epochs):
                share = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
                for batch, labels in self._epoch(encoders, train, pair, device, (plain, places, ~held), epoch):
                    for row, head in heads.items():
                        head.step(batch[row], labels, share)
        labels, truth = train.labels[places].to(device), test.labels[query_places].to(device)
        for row, head in heads.items():
            best = head.best(plain[row][held], labels[held]) if held.any() else 0
            yield from ((f"{row}/{metric}", value) for metric, value in top_shares(head(queries[row])[best], truth).items())
            yield f"{row}/rate", self.rates[best]
        yield from ((f"chance/{metric}", value) for metric, value in chance(len(classes)).items())

    @torch.no_grad()
    def _epoch(self, encoders: dict, train: Split, pair, device, known: tuple, epoch: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """({row: features [B, D]}, labels [B]) over one epoch in random order."""
        plain, places, used = known
        order = np.random.default_rng([0, epoch]).permutation(np.flatnonzero(used))
        if self.crops:
            for views, where in read(train, pair, epoch, places.numpy()[order], self.BATCH):
                yield features(encoders, views, device), train.labels[where].to(device)
            return
        for part in torch.from_numpy(order).split(self.BATCH):
            yield {row: y[part.to(device)] for row, y in plain.items()}, train.labels[places[part]].to(device)


class Heads:
    """L linear classifiers side by side, [L, C, D], each with its own learning rate; what one learns does not touch the others."""

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
