"""Probe `surprise`: does the model notice when something happens that could not be foreseen?

source: {name: sample_surprises}
evaluate: {probes: [{name: surprise}]}
"""

# N windows of a film, one for each frame that follows a clip, E embedding

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicjoint.files.cells import opened
from vicjoint.options import Count, Natural
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import named, zero_or_one
from vicjoint.probes.regression import auc
from vicjoint.probes.windows import EMBED_AT_ONCE, of_frames
from vicjoint.registry import register
from vicjoint.surprise import LEAST, surprise


@dataclass
class Watched:
    """A test film, frame by frame: frames uint8 [F, 3, size, size]; as places among them the context of each
    window [N, T] and its target [N]; whether it is changed, and the place of the window whose target is the
    first changed frame, where that is known. conditions [N, C], where the pair gives such."""

    id: str
    frames: Tensor
    contexts: list[list[int]]
    targets: list[int]
    changed: int
    moment: int | None
    conditions: Tensor | None = None


@register("probe", "surprise")
class Surprise(Probe):
    """Of each test film every frame is predicted from the clip before it, and the error of the prediction is
    divided by the mean of the errors just before (vicjoint/surprise.py). A film's score is its largest.
    `label`: the column of records that says whether something happens in the film, 0 or 1; records without it
    are left out. Of records with a `moment`, the number of the first frame that is changed, is asked whether
    the largest score is there. frames: the first so many windows of a film are looked at.

    Metrics: auc: area under the ROC curve of the films' scores; found: of changed films the share whose
    largest score is at the moment.

    Rows: model; random_init: before training; copy_last: the trained embedding of the last context frame in
    place of a prediction; pixels: the same with the frame itself; chance.
    """

    needs = frozenset({"windows"})
    reads = True
    refusal = (
        "evaluate.probes: 'surprise' looks at windows of videos, which this pair does not give. Use pair:"
        " {name: next_frame}, or leave it out."
    )
    explains = {
        "auc": Metric("area under the ROC curve of films in which something happens (0.5: chance)"),
        "found": Metric("share of such films whose most surprising frame is the one where it happens"),
    }

    def __init__(self, label: str = "changed", frames: Count = 512, pictures: Natural = 6):
        self.label, self.frames, self.pictures = label, frames, pictures

    def misses(self, data: EvaluationData) -> str | None:
        if not data.pair.gap:
            return "it needs a frame after the clip (pair.gap)"
        labels = {zero_or_one(record, self.label, "surprise") for record in data.records("test")}
        if not labels >= {0, 1}:
            return f"no test films with 0 and with 1 in '{self.label}' of the records (sample_surprises has)"
        return None

    def read(self, record: Record, pair: NextFrame) -> Watched | None:
        """None for a record without the label. Raises VideoError where the video cannot be read or is too
        short, and ValueError for a moment that is no number of a frame."""
        changed, moment = zero_or_one(record, self.label, "surprise"), record.get("moment")
        if changed is None:
            return None
        if moment is not None and (isinstance(moment, bool) or not isinstance(moment, int)):
            raise ValueError(f"its moment is {moment!r:.60}, expected the number of a frame.")
        with opened(record) as path, pair.open(path) as video:
            windows = list(pair.possible_windows(video.info, path)[: self.frames])
            wanted = sorted({n for w in windows for n in [*w.context, w.target]})
            frames = pair.frames_of(video, wanted)
            conditions = pair.between(record, windows, video.info) if pair.conditions else None
        place, targets = {n: i for i, n in enumerate(wanted)}, [w.target for w in windows]
        return Watched(
            record["id"],
            frames,
            [[place[n] for n in w.context] for w in windows],
            [place[n] for n in targets],
            changed,
            targets.index(moment) if moment in targets else None,
            conditions,
        )

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where no test film can be read, or all are of one kind."""
        films: list[Watched] = features.read()
        truth = np.array([film.changed for film in films])
        if len(set(truth.tolist())) < 2:
            raise ValueError(
                f"surprise: of {len(features.data.records('test'))} test films those that can be read do not"
                f" have both 0 and 1 in '{self.label}'."
            )
        untrained = features.once("untrained", lambda: scores_of(features, "random_init", films))
        scores = {"model": scores_of(features, "model", films), "random_init": untrained}
        z_b = of_frames(features, "model", [film.frames for film in films])
        scores["copy_last"] = [copied(film, z) for film, z in zip(films, z_b)]
        scores["pixels"] = [copied(film, film.frames.float().flatten(1)) for film in films]
        for row, of in scores.items():
            yield from named(row, score(films, of, truth))
        yield "chance/auc", 0.5
        windows = [len(film.targets) - LEAST for film in films if film.moment is not None]
        if windows:
            yield "chance/found", float(np.mean([1 / max(1, number) for number in windows]))
        if self.pictures:
            yield "pictures", self._pictures(films, scores["model"])

    def _pictures(self, films: list[Watched], scores: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Curves of some films, changed ones first: x and y [n, N], padded with NaN, and where it
        happens."""
        of_kind = [[i for i, film in enumerate(films) if film.changed == kind] for kind in (1, 0)]
        chosen = [i for some in of_kind for i in some[: -(-self.pictures // 2)]]
        longest = max(len(scores[i]) for i in chosen)
        padded = [np.pad(scores[i], (0, longest - len(scores[i])), constant_values=np.nan) for i in chosen]
        moments = [films[i].moment for i in chosen]
        return {
            "title": np.array(
                [f"{films[i].id}: {'changed' if films[i].changed else 'unchanged'}" for i in chosen],
                dtype=str,
            ),
            "curve": np.stack(padded),
            "mark": np.array([-1 if moment is None else moment for moment in moments]),
        }


def scores_of(features: Features, row: str, films: list[Watched]) -> list[np.ndarray]:
    """Of each film the surprise of each window [N]."""
    frames = of_frames(features, row, [film.frames for film in films])
    return [
        surprise((z - of[film.targets]).square().sum(1).double().numpy())
        for film, z, of in zip(films, predicted(features, row, films), frames)
    ]


def predicted(features: Features, row: str, films: list[Watched]) -> list[Tensor]:
    """[N, E] of each film."""
    found = []
    for film in films:
        at_once = max(1, EMBED_AT_ONCE // len(film.contexts[0]))
        clips = [film.frames[torch.tensor(some)].transpose(1, 2) for some in split(film.contexts, at_once)]
        told = () if film.conditions is None else film.conditions.split(at_once)
        found.append(features.embed(row, "a", features.represent(row, "a", clips), told=told).cpu())
    return found


def split(windows: list[list[int]], at_once: int) -> list[list[list[int]]]:
    return [windows[i : i + at_once] for i in range(0, len(windows), at_once)]


def copied(film: Watched, x: Tensor) -> np.ndarray:
    """The surprise of each window where the last context frame, x [F, E], is the prediction."""
    last = [context[-1] for context in film.contexts]
    return surprise((x[last] - x[film.targets]).square().sum(1).double().numpy())


def score(films: list[Watched], scores: list[np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """All metrics of one row, with the intervals of other test films."""
    largest = np.array([np.nanmax(of, initial=0.0) for of in scores])
    known = np.array([film.moment is not None for film in films])
    at = np.array(
        [
            film.moment is not None and of[film.moment] == most
            for film, of, most in zip(films, scores, largest)
        ]
    )

    def of_films(n: np.ndarray) -> dict[str, float]:
        found = float(at[n][known[n]].mean()) if known[n].any() else np.nan
        return {"auc": auc(largest[n], truth[n]), **({"found": found} if known.any() else {})}

    return with_intervals(of_films, len(films))
