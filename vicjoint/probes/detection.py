"""Probe `rollout_detection`: where things will be, read from predictions that are fed back step by step.

source: {name: sample_digits}
evaluate: {probes: [{name: rollout_detection}]}
"""

# Q queries (windows), H steps, F frames, D things, C = cells^2, E embedding, N samples

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vicjoint.options import Count
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import evenly, held_out, named
from vicjoint.probes.ridge import CONSTANT
from vicjoint.probes.rollout import Rolled, Steps, by_rule, check_one, embed, read_windows
from vicjoint.probes.windows import of_frames, too_short
from vicjoint.registry import register

LEAST = {"train": 2, "test": 1}  # films that are needed
HOLDOUT = 0.2  # of the training films: they choose the epoch of the head
WIDTH, EPOCHS, BATCH, RATE = 256, 30, 256, 2e-3  # of the head


@dataclass
class Film:
    """Windows of a film, and of each of its frames the places (x, y) of what is in it [F, D, 2], as shares of
    the picture's sides."""

    windows: Rolled
    places: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Places at the targets [Q, H, D, 2]."""
        return self.places[np.array(self.windows.targets)]


@register("probe", "rollout_detection")
class RolloutDetection(Probe):
    """Where will things be? A picture has `cells` x `cells` cells. A head (an MLP with one hidden layer) says
    of an embedding which of them hold the middle of a thing. It is fitted on the true frames of at most
    `films` training films, a fifth of which choose the epoch, and then reads predictions that are fed back
    for `steps` steps (null: the pair's horizon), of `queries` windows of every test film. `label`: the column
    with the places of each frame, [frames, things, 2] or [frames, 2], x and y as shares of the picture's
    sides; the pair has to show the whole of a square picture, without a crop.

    Metrics: ap_k: average precision of the cells of all test films at step k; map: the mean over the steps.

    Rows: model; random_init: before training, with a head of its own; copy_last and extrapolation: the
    trained embedding of the last context frame, as it is, and moved on at every step by its last change;
    targets: the head on the true frames, which no prediction should exceed; constant_velocity: no embedding,
    but the true places in the last two context frames, straight on (first the cells that hold them, then by
    distance);
    frequency: how often each cell held a thing in training; chance: the share of cells that hold one.
    """

    needs = frozenset({"windows"})
    reads = True
    refusal = (
        "evaluate.probes: 'rollout_detection' looks at windows of videos, which this pair does not give. Use"
        " pair: {name: next_frame}, or leave it out."
    )

    def __init__(
        self,
        label: str = "positions",
        steps: Count | None = None,
        queries: Count = 1,
        cells: Annotated[int, Field(ge=2)] = 8,
        films: Annotated[int, Field(ge=2)] = 1024,
    ):
        self.label, self.steps, self.queries, self.cells, self.films = label, steps, queries, cells, films

    def wants(self, data: EvaluationData) -> list:
        steps = self.steps or data.pair.horizon
        self.explains = {
            "map": Metric(f"mean of the average precisions of steps 1 to {steps}"),
            **{
                f"ap_{k}": Metric(f"average precision of the cells that hold a thing, step {k}")
                for k in range(1, steps + 1)
            },
        }
        return []

    def misses(self, data: EvaluationData) -> str | None:
        for split in ("train", "test"):
            if not any(record.get(self.label) for record in data.records(split)):
                return f"no {split} record has '{self.label}', the places in each frame (sample_digits has)"
        return too_short(data)

    def check(self, features: Features) -> None:
        check_one("rollout_detection", features)

    def to_read(self, data: EvaluationData, split: str) -> Sequence[Record]:
        records = [r for r in data.records(split) if r.get(self.label)]
        return records if split == "test" else [records[i] for i in evenly(len(records), self.films)]

    def read(self, record: Record, pair: NextFrame) -> Film:
        """Raises VideoError where the film cannot be read or is too short for so many steps, and ValueError
        for places that are none."""
        windows = read_windows(record, pair, self.steps or pair.horizon, self.queries)
        return Film(windows, places_of(record, self.label, windows.numbers))

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where too few films of a split can be read."""
        films, training = (self._films(features, split) for split in ("test", "train"))
        truth = np.concatenate([cells_of(film.targets, self.cells) for film in films])  # [Q, H, C]
        query = [i for i, film in enumerate(films) for _ in film.windows.contexts]
        of = lambda row: self._scores(features, row, films, training)
        rows = of("model") | {"random_init": features.once("untrained", lambda: of("random_init")["model"])}
        rows["constant_velocity"] = np.concatenate([certainty(straight_on(f), self.cells) for f in films])
        usual = np.concatenate([cells_of(film.places, self.cells) for film in training]).mean(0)
        rows["frequency"] = np.broadcast_to(usual, truth.shape)
        for row, scores in rows.items():
            yield from named(row, average_precisions(scores, truth, query))
        shares = truth.mean((0, 2))
        yield "chance/map", float(shares.mean())
        yield from ((f"chance/ap_{k}", float(share)) for k, share in enumerate(shares, 1))

    def _films(self, features: Features, split: str) -> list[Film]:
        films: list[Film] = features.read(split)
        if len(films) < LEAST[split]:
            raise ValueError(
                f"rollout_detection: {len(films)} {split} films can be read with this pair. Expected"
                f" {LEAST[split]} or more."
            )
        return films

    def _scores(
        self, features: Features, row: str, films: list[Film], training: list[Film]
    ) -> dict[str, np.ndarray]:
        """{row: scores [Q, H, C]} in the space of a row's encoder."""
        windows, seen = [film.windows for film in films], [film.windows.frames for film in training]
        z = of_frames(features, row, seen)
        held = torch.from_numpy(held_out(len(z), HOLDOUT)).repeat_interleave(torch.tensor(list(map(len, z))))
        y = torch.from_numpy(np.concatenate([cells_of(film.places, self.cells) for film in training])).float()
        with features.progress(EPOCHS * int((~held).sum()), f"rollout_detection: head of {row}") as done:
            head = fit_head(torch.cat(z).to(features.device), y.to(features.device), held, done)
        steps = embed(features, row, windows)
        true = [of.frames[torch.tensor(video.targets)] for video, of in zip(windows, steps)]
        targets = [Steps(z, of.frames) for z, of in zip(true, steps)]
        found = {"model": steps, "targets": targets, **by_rule(windows, steps)}
        read = lambda some: head(torch.cat([of.predicted for of in some]).to(features.device)).cpu().numpy()
        return {name: read(some) for name, some in found.items()}


# ---- places and cells ----


def places_of(record: Record, label: str, numbers: list[int]) -> np.ndarray:
    """[F, D, 2] at the frames with these numbers. Raises ValueError for anything else."""
    try:
        places = np.asarray(record.get(label), dtype=float)
    except (TypeError, ValueError):
        places = np.zeros(0)
    if places.ndim not in (2, 3) or places.shape[-1] != 2 or not np.isfinite(places).all():
        raise ValueError(
            f"its {label} are {record.get(label)!r:.60}, expected a list with, for each frame, the places [x,"
            " y] of the same number of things, as shares of the picture's sides."
        )
    if len(places) <= numbers[-1]:
        raise ValueError(
            f"its {label} have {len(places)} rows, and frame {numbers[-1]} (from 0) is looked at. Expected a"
            " row for each frame."
        )
    return places.reshape(len(places), -1, 2)[numbers]


def cells_of(places: np.ndarray, cells: int) -> np.ndarray:
    """Which cells hold one of these places [..., D, 2]: bool [..., C], row by row from the top left. What is
    outside the picture is in none."""
    column, row = np.moveaxis(np.floor(places * cells).astype(int), -1, 0)
    inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < cells)
    at = np.where(inside, row * cells + column, -1)
    return (at[..., None] == np.arange(cells**2)).any(-2)


def straight_on(film: Film) -> np.ndarray:
    """Places [Q, H, D, 2] of things that go on as from the last context frame but one to the last."""
    contexts = np.array(film.windows.contexts)
    last, before = film.places[contexts[:, -1]], film.places[contexts[:, -2]]
    change = np.array(film.windows.reach)[:, None, None] * (last - before)
    ahead = np.arange(1, len(film.windows.targets[0]) + 1)[:, None, None]
    return last[:, None] + ahead * change[:, None]


def certainty(places: np.ndarray, cells: int) -> np.ndarray:
    """Scores [..., C] of one who knows of things that they are at these places [..., D, 2]: cells that hold
    one are first, the others follow by the distance of their middle to the nearest place."""
    along = (np.arange(cells) + 0.5) / cells
    middles = np.stack(np.meshgrid(along, along), -1).reshape(-1, 1, 2)
    return cells_of(places, cells) - np.linalg.norm(places[..., None, :, :] - middles, axis=-1).min(-1)


# ---- the head ----


class Head(nn.Module):
    """Embeddings [..., E] -> scores of cells [..., C]; mean, scale [E]: of those that it was fitted on."""

    def __init__(self, mean: Tensor, scale: Tensor, cells: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.net = nn.Sequential(nn.Linear(len(mean), WIDTH), nn.ReLU(), nn.Linear(WIDTH, cells))

    def forward(self, z: Tensor) -> Tensor:
        return self.net((z - self.mean) / self.scale)


@torch.no_grad()
def fit_head(z: Tensor, y: Tensor, held: Tensor, done: Callable[[int], Any]) -> Head:
    """The head that is best on the held-out ones (bool [N]) of samples z [N, E] with cells y [N, C], 0 or
    1."""
    used, mean = (~held).nonzero()[:, 0], z[~held].mean(0)
    scale = z[~held].std(0)
    scale = torch.where(scale > CONSTANT * mean.abs(), scale, torch.inf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(mean, scale, y.shape[1]).to(z.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    error = nn.functional.binary_cross_entropy_with_logits
    best, lowest = head, float("inf")
    for epoch in range(EPOCHS):
        order = np.random.default_rng([0, epoch]).permutation(used.numpy())
        for some in torch.from_numpy(order).to(z.device).split(BATCH):
            with torch.enable_grad():
                loss = error(head(z[some]), y[some])
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            done(len(some))
        schedule.step()
        if (found := float(error(head(z[held]), y[held]))) < lowest:
            best, lowest = copy.deepcopy(head), found
    return best


# ---- average precision ----


class Ranked:
    """Scores [Q, C] of cells, of which `truth` bool [Q, C] is right, in order."""

    def __init__(self, scores: np.ndarray, truth: np.ndarray):
        order = np.argsort(-scores, axis=None, kind="stable")
        query, right, ordered = order // scores.shape[1], truth.ravel()[order], scores.ravel()[order]
        last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of equal scores
        number = np.diff(np.cumsum(right)[last], prepend=0)  # of right ones among them
        # recall grows where there are such, so precisions are needed there alone
        ends, number = last[number > 0] + 1, number[number > 0]
        self.query, self.starts = query[: ends.max(initial=0)], np.append(0, ends[:-1])
        self.right, self.of_right = query[right], np.cumsum(number) - number

    def average_precision(self, times: np.ndarray) -> float:
        """The sum of the precisions at each score, weighted by the recall that it adds; query i counts
        times[i]-fold. Not a number where nothing is right."""
        if not times[self.right].any():
            return float("nan")
        found = np.add.reduceat(times[self.right], self.of_right)
        seen = np.cumsum(np.add.reduceat(times[self.query], self.starts))
        return float((found * np.cumsum(found) / np.maximum(seen, 1)).sum() / found.sum())


def average_precisions(scores: np.ndarray, truth: np.ndarray, film: Sequence[int]) -> dict[str, float]:
    """ap_1 to ap_H and their mean of scores [Q, H, C], with the intervals of other test films; film: of each
    query its film."""
    steps = [Ranked(scores[:, k], truth[:, k]) for k in range(truth.shape[1])]

    def of_queries(n: np.ndarray) -> dict[str, float]:
        times = np.bincount(n, minlength=len(truth))
        found = [step.average_precision(times) for step in steps]
        return {"map": float(np.mean(found)), **{f"ap_{k}": x for k, x in enumerate(found, 1)}}

    return with_intervals(of_queries, film)
