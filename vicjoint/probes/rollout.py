"""Probe `next_frame_rollout`: how far ahead predictions hold, step by step.

evaluate: {probes: [{name: next_frame_rollout, steps: 8}]}
"""

# Q queries (windows), H steps, F frames, E embedding

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.files.cells import opened
from vicjoint.options import Count
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record, Want
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import around, evenly, named
from vicjoint.probes.next_frame import middle_rank, squared_distances
from vicjoint.probes.windows import of_clips, of_frames, too_short
from vicjoint.registry import register


@dataclass
class Rolled:
    """Windows of a video, their numbers as places among its frames [F, 3, size, size] uint8, whose numbers in
    the video are `numbers`: contexts [Q, T], targets [Q, H], and of each target its candidates. reach: how
    far the first target is after the last context frame, in steps from the frame before. conditions [Q, H,
    C], where the pair gives such."""

    frames: Tensor
    numbers: list[int]
    contexts: list[list[int]]
    targets: list[list[int]]
    candidates: list[list[list[int]]]
    reach: list[float]
    conditions: Tensor | None = None


@dataclass
class Steps:
    """A video through both branches of a row: predictions [Q, H, E] and frames z_b [F, E]."""

    predicted: Tensor
    frames: Tensor


@register("probe", "next_frame_rollout")
class NextFrameRollout(Probe):
    """How far ahead does the model see? Of `queries` windows of every test video `steps` steps are predicted
    (null: the pair's horizon), fed back or all at once, each compared with the frame so many gaps ahead.

    Metrics of each step k: error_k: squared error over that of always predicting the mean of all targets (0:
    right, 1: nothing is known); r1_k: how often the true frame is the nearest of up to `candidates` frames of
    the same video around it.

    Rows: model; random_init: before training; copy_last and extrapolation: the trained embedding of the last
    context frame, as it is, and moved on at every step by the change since the context frame before it;
    chance. A model that was trained on one step (no horizon) and is measured with `steps` gives the row that
    a horizon has to beat.
    """

    needs = frozenset({"windows"})
    reads = True
    refusal = (
        "evaluate.probes: 'next_frame_rollout' looks at windows of videos, which this pair does not give. Use"
        " pair: {name: next_frame}, or leave it out."
    )

    def __init__(
        self, steps: Count | None = None, queries: Count = 4, candidates: Annotated[int, Field(ge=2)] = 24
    ):
        self.steps, self.queries, self.candidates = steps, queries, candidates

    def wants(self, data: EvaluationData) -> list[Want]:
        self.explains = {
            name: metric
            for k in range(1, (self.steps or data.pair.horizon) + 1)
            for name, metric in (
                (
                    f"error_{k}",
                    Metric(f"squared error of step {k} / that of always predicting the mean", "lower"),
                ),
                (f"r1_{k}", Metric(f"share of predictions of step {k} whose true frame ranks first")),
            )
        }
        return []

    def misses(self, data: EvaluationData) -> str | None:
        return too_short(data)

    def check(self, features: Features) -> None:
        check_one("next_frame_rollout", features)

    def read(self, record: Record, pair: NextFrame) -> Rolled:
        return read_windows(record, pair, self.steps or pair.horizon, self.queries, self.candidates)

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where no test video can be read."""
        videos: list[Rolled] = features.read()
        if not videos:
            tests = len(features.data.records("test"))
            raise ValueError(
                f"next_frame_rollout: none of the {tests} test videos can be read with this pair."
            )
        untrained = features.once("untrained", lambda: embed(features, "random_init", videos))
        trained = embed(features, "model", videos)
        rows = {"model": trained, "random_init": untrained, **by_rule(videos, trained)}
        for row, steps in rows.items():
            yield from named(row, score(videos, steps))
        for k, of in enumerate(zip(*(query for v in videos for query in v.candidates)), 1):
            yield f"chance/r1_{k}", float(np.mean([1 / len(numbers) for numbers in of]))


def check_one(probe: str, features: Features) -> None:
    """Raises ValueError for a model with several predictions of one target."""
    if features.latents > 1:
        raise ValueError(
            f"evaluate.probes: {probe} feeds one prediction back, and this model gives {features.latents}"
            " (predictor.latents). Leave it out, or use latents: 1."
        )


def read_windows(record: Record, pair: NextFrame, steps: int, queries: int, candidates: int = 0) -> Rolled:
    """At most so many windows of a video, evenly spread. Raises VideoError where the video cannot be read or
    is too short for so many steps."""
    with opened(record) as path, pair.open(path) as video:
        possible = pair.possible_windows(video.info, path, steps)
        windows = [possible[int(at)] for at in evenly(len(possible), queries)]
        others = [
            [
                around(t, w.context[-1], w.target - w.context[-1], video.info.frames, candidates)
                for t in w.targets
            ]
            for w in windows
        ]
        several = [number for of in others for numbers in of for number in numbers]
        wanted = sorted({*several, *(n for w in windows for n in [*w.context, *w.targets])})
        frames = pair.frames_of(video, wanted)
        conditions = pair.along(record, windows, video.info) if pair.conditions else None
    place = {n: i for i, n in enumerate(wanted)}
    return Rolled(
        frames,
        wanted,
        [[place[n] for n in w.context] for w in windows],
        [[place[n] for n in w.targets] for w in windows],
        [[[place[n] for n in numbers] for numbers in of] for of in others],
        [(w.target - w.context[-1]) / (w.context[-1] - w.context[-2]) for w in windows],
        conditions,
    )


def embed(features: Features, row: str, videos: list[Rolled]) -> list[Steps]:
    """All videos through both branches of a row."""
    z_b = of_frames(features, row, [v.frames for v in videos])
    clips = [v.frames[context] for v in videos for context in v.contexts]
    y_a, told = of_clips(features, row, clips, [v.conditions for v in videos])
    z_a = features.rollout(row, y_a, len(videos[0].targets[0]), told).cpu()
    return [Steps(*of) for of in zip(z_a.split([len(v.contexts) for v in videos]), z_b)]


def by_rule(videos: list[Rolled], trained: list[Steps]) -> dict[str, list[Steps]]:
    """The rows that need no predictor, in the trained space."""
    copied, moved = [], []
    for video, of in zip(videos, trained):
        last, before = (of.frames[[context[at] for context in video.contexts]] for at in (-1, -2))
        ahead = torch.arange(1, len(video.targets[0]) + 1)[None, :, None]
        change = torch.tensor(video.reach)[:, None] * (last - before)
        copied.append(Steps(last[:, None].expand_as(of.predicted), of.frames))
        moved.append(Steps(last[:, None] + ahead * change[:, None], of.frames))
    return {"copy_last": copied, "extrapolation": moved}


def score(videos: list[Rolled], steps: list[Steps]) -> dict[str, float]:
    """All metrics of one row, with the intervals of other test videos."""
    truth = [of.frames[torch.tensor(video.targets)].double() for video, of in zip(videos, steps)]
    mean = torch.cat(truth).flatten(0, 1).mean(0)
    errors, spreads, right = [], [], []
    for video, of, targets in zip(videos, steps, truth):
        errors.append((of.predicted.double() - targets).square().sum(-1))
        spreads.append((targets - mean).square().sum(-1))
        right += [
            [
                middle_rank(squared_distances(z, of.frames[numbers]), numbers.index(target)) <= 1
                for z, numbers, target in zip(*query)
            ]
            for query in zip(of.predicted, video.candidates, video.targets)
        ]
    error, spread = torch.cat(errors).numpy(), torch.cat(spreads).numpy()  # [Q, H]
    found = np.array(right)

    def of_queries(n: np.ndarray) -> dict[str, float]:
        by_step = error[n].sum(0) / np.maximum(spread[n].sum(0), 1e-12), found[n].mean(0)
        names = [(f"error_{k}", f"r1_{k}") for k in range(1, error.shape[1] + 1)]
        return {name: float(x) for two, of in zip(names, zip(*by_step)) for name, x in zip(two, of)}

    return with_intervals(of_queries, [i for i, video in enumerate(videos) for _ in video.contexts])
