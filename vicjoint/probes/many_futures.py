"""Probe `many_futures`: does a model with a discrete latent predict the futures that are possible, where they
are known?

source: {name: sample_futures, futures: 3}
evaluate: {probes: [{name: many_futures}]}
"""

# Q queries (one a test video), K predictions, M possible futures, F frames, E embedding

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.options import Natural
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record
from vicjoint.probes import forks
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import means
from vicjoint.registry import register

LEAST = 8  # queries to fit a decoder on
AT_ONCE = 256  # frames, or clips' frames, in one forward pass


@dataclass
class Forked:
    """A test video at the moment where its futures part. `frames` [F, 3, size, size]: first the M possible
    next frames, then the last context frame, then the others. Those first M + 1 stand among the candidates of
    other videos, too. Where the record knows them: `places` [F, 2] of what is seen, nan for turns that never
    happen, and the `chances` [M] of the futures. reach: from context to target, as a multiple of `moment`."""

    context: Tensor  # uint8 [T, 3, size, size]
    frames: Tensor
    possible: int
    places: Tensor | None
    chances: list[float]
    reach: float


@dataclass
class Embedded:
    """All queries through one model: every prediction [Q, K, E] with its probability [Q, K], its best guess
    [Q, 1, E], and the frames z_b [F, E] of each video."""

    predictions: Tensor
    probabilities: Tensor
    guess: Tensor
    frames: tuple[Tensor, ...]


@register("probe", "many_futures")
class ManyFutures(Probe):
    """For each test video the clip whose last frame is `moment` of its record, after which it goes on in one
    of M ways (`futures` of the record: paths of videos that show them). Each of the model's K predictions
    retrieves the nearest candidate. Candidates: the M possible next frames; the other frames of those videos,
    but for those nearer in time than half the distance from the context to the target; all later frames of
    videos that turn as none ever does (`impossible`); and the possible next frames and last context frames of
    all other test videos.

    Metrics: recall: share of the M possible futures that are retrieved by one of the predictions; precision:
    share of the predictions that retrieve one of them; found_all: share of the queries with a recall of 1;
    inside_*: the same without the candidates of other videos. Of equally near candidates the one that is not
    a possible future is retrieved.

    Rows: model: its K predictions. nearest_k: without the latent, the best guess of the model retrieves its
    `guesses` nearest candidates (null: as many as the model has latents; its precision cannot exceed M /
    guesses). random_init: as model, before training. chance: `guesses` candidates at random, all different.

    Records with `chances` and `future_positions` (sample_futures has them) are asked where the predictions
    see the object, too (vicjoint/probes/forks.py), in units of d, the distance of the nearest two futures.
    Rows: targets: the true ones, whose error is that of the decoder; mean: one prediction, the mean of the
    model's; noise: the mean and Gaussian noise with the covariance of the model's predictions around it;
    other_clips: predictions for another clip; copy_last: the last context frame; constant_velocity: straight
    on; foreign_latent: the latents that fit the targets of another clip, which may not know more of this
    one than the model's own probabilities do (compare `error`). Pictures: the places of all predictions.
    """

    reads = True
    explains = {
        "recall": Metric(
            "share of the possible futures that are the nearest candidate of one of the predictions"
        ),
        "precision": Metric("share of the predictions whose nearest candidate is a possible future"),
        "found_all": Metric("share of queries all of whose possible futures are found"),
        **{
            f"inside_{name}": Metric("the same among the candidates of the query's own video")
            for name in ("recall", "precision", "found_all")
        },
        "error": Metric("distance of one prediction, drawn by its probability, to the future, in d", "lower"),
        "best_of_k": Metric("distance of the nearest prediction to the future, in d", "lower"),
        "validity": Metric("distance of a prediction to the nearest possible future, in d", "lower"),
        "coverage": Metric("distance of a possible future to the nearest prediction, in d", "lower"),
        "energy": Metric("energy score: error, less half the distance of two predictions, in d", "lower"),
        "prior_error": Metric("|probability - chance| of a future, clip by clip", "lower"),
        "prior_bias": Metric("largest |mean probability - chance| of a future", "lower"),
        "nll": Metric("negative log likelihood of the future, in nats", "lower"),
        "perplexity": Metric("latents in use", None),
        "bits": Metric("what the latent that fits a target says about which future it is", "higher"),
    }

    def __init__(self, guesses: Annotated[int, Field(ge=1)] | None = None, pictures: Natural = 8):
        self.guesses, self.pictures = guesses, pictures

    def misses(self, data: EvaluationData) -> str | None:
        if "windows" not in data.pair.gives:
            return "it needs the pair next_frame"
        if data.pair.conditions:
            return "with a condition (pair.condition) the future is no longer open"
        if not any(record.get("futures") for record in data.records("test")):
            return "no test record of the source has `futures`, videos of what may come (sample_futures has)"
        return None

    def read(self, record: Record, pair: NextFrame) -> Forked | None:
        """None for a record without futures. Raises ValueError where the record does not say what it must, or
        no window ends at its moment."""
        if not record.get("futures"):
            return None
        if not isinstance(record["futures"], list) or not isinstance(record.get("moment"), int):
            raise ValueError(
                f"its futures are {record['futures']!r:.60} and its moment is {record.get('moment')!r:.60},"
                " expected a list of paths of videos and the number of the last frame that they share."
            )
        moment, possible, targets, others = record["moment"], len(record["futures"]), [], []
        places, of_targets, of_others, ahead = record.get("future_positions"), [], [], 0
        for number, path in enumerate([*record["futures"], *record.get("impossible", [])]):
            with pair.open(path) as video:
                window = next(
                    (w for w in pair.possible_windows(video.info, path) if w.context[-1] == moment), None
                )
                if window is None:
                    raise ValueError(
                        f"{path}: no window of this pair ends at frame {moment}, where the futures part, with"
                        " its target in the video."
                    )
                frames = pair.frames_of(video, range(video.info.frames))
            ahead = window.target - moment
            later = [
                t
                for t in range(moment + 1, len(frames))
                if number >= possible or abs(t - window.target) >= ahead / 2
            ]
            known = places is not None and number < possible
            seen = torch.tensor(places[number]) if known else torch.full((len(frames), 2), torch.nan)
            if number < possible:
                targets.append(frames[window.target][None])
                of_targets.append(seen[window.target][None])
            if number == 0:
                context, shared = frames[window.context], [moment, *range(moment)]
                others.append(frames[shared])
                of_others.append(seen[shared])
            others.append(frames[later])
            of_others.append(seen[later])
        every = None if places is None else torch.cat(of_targets + of_others)
        chances = record.get("chances", [1 / possible] * possible)
        return Forked(context, torch.cat(targets + others), possible, every, chances, ahead / moment)

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where no test video can be used."""
        videos = features.read()
        if not videos:
            tests = len(features.data.records("test"))
            raise ValueError(f"many_futures: none of the {tests} test videos can be read with this pair.")
        before = features.once("untrained", lambda: embed(features, "random_init", videos))
        trained, guesses = embed(features, "model", videos), self.guesses or features.latents
        rows = {
            "model": (trained.predictions, trained.frames, 1),
            f"nearest_{guesses}": (trained.guess, trained.frames, guesses),
            "random_init": (before.predictions, before.frames, 1),
        }
        for row, given in rows.items():
            for prefix, found in zip(("", "inside_"), retrieve(videos, *given)):
                yield from ((f"{row}/{prefix}{m}", value) for m, value in score(found).items())
        yield from self.decoded(videos, trained)
        for prefix, others in (("", sum(v.possible + 1 for v in videos)), ("inside_", 0)):
            yield from ((f"chance/{prefix}{m}", v) for m, v in chance(videos, guesses, others).items())

    def decoded(self, videos: list[Forked], trained: Embedded) -> Iterator[tuple[str, Any]]:
        """Metrics of decoded places, where all records know their futures' and as many futures."""
        if any(v.places is None or v.possible != videos[0].possible for v in videos) or len(videos) < LEAST:
            return
        fork = forks.Fork(
            np.stack([v.places[: v.possible].double().numpy() for v in videos]),
            np.array([v.chances for v in videos]),
            np.array([[v.reach] for v in videos]),
        )
        count = videos[0].possible
        decode = forks.Decoder(list(trained.frames), [v.places for v in videos])
        z = [torch.stack([of[part] for of in trained.frames]) for part in (slice(count), count, count + 1)]
        embedded = forks.Embedded(trained.predictions, trained.probabilities, *z)
        rows = forks.rows_of(embedded, decode, fork)
        for row, given in rows.items():
            yield from ((f"{row}/{metric}", value) for metric, value in forks.score(*given, fork).items())
        for metric, value in forks.use_of_codes(embedded, fork).items():
            yield f"model/{metric}", value
        if self.pictures:
            yield "pictures", drawn(videos, *rows["model"], fork, self.pictures)


def drawn(
    videos: list[Forked], places: np.ndarray, pi: np.ndarray, fork: forks.Fork, number: int
) -> dict[str, np.ndarray]:
    """What the report draws (vicjoint/report/plots.py): the best queries and the worst, by their energy
    score."""
    energy = forks.measured(places, pi, fork)["energy"]
    order = np.argsort(energy)
    chosen = np.concatenate([order[: (number + 1) // 2], order[len(order) - number // 2 :]])
    return {
        "title": np.array([f"energy score {energy[i]:.2f} d" for i in chosen]),
        "good": np.arange(len(chosen)) < (number + 1) // 2,
        "frame": np.stack([videos[i].context[-1].movedim(0, -1).numpy() for i in chosen]),
        "places": places[chosen],
        "probabilities": pi[chosen],
        "futures": fork.futures[chosen],
        "chances": fork.chances[chosen],
    }


def embed(features: Features, row: str, videos: list[Forked]) -> Embedded:
    """All test videos through both branches of a row."""
    frames = torch.cat([v.frames for v in videos]).split(AT_ONCE)
    z_b = features.embed(row, "b", features.represent(row, "b", frames)).cpu()
    clips = torch.stack([v.context for v in videos]).transpose(1, 2)
    y_a = features.represent(row, "a", clips.split(max(1, AT_ONCE // clips.shape[2])))
    every, guess = (features.embed(row, "a", y_a, every).cpu() for every in (True, False))
    probabilities = features.probabilities(row, y_a).cpu()
    return Embedded(every, probabilities, guess[:, None], z_b.split([len(v.frames) for v in videos]))


def retrieve(
    videos: list[Forked], predictions: Tensor, frames: tuple[Tensor, ...], nearest: int
) -> tuple[list, list]:
    """What `of_query` gives for each query among all candidates, and among those of its own video."""
    shared = [z[: v.possible + 1] for v, z in zip(videos, frames)]
    everywhere = [torch.cat([z, *shared[:i], *shared[i + 1 :]]) for i, z in enumerate(frames)]
    return tuple(
        [of_query(p, z, v.possible, nearest) for p, z, v in zip(predictions, candidates, videos)]
        for candidates in (everywhere, frames)
    )


def of_query(
    predictions: Tensor, candidates: Tensor, possible: int, nearest: int
) -> tuple[np.ndarray, float]:
    """predictions [K, E], each of which retrieves its `nearest` candidates [C, E], of which the first are
    possible: which of these are retrieved [M] and the share of all K nearest that is."""
    distances = torch.cdist(predictions, candidates, compute_mode="donot_use_mm_for_euclid_dist")
    futures, others = distances[:, :possible], distances[:, possible:]
    order = futures.argsort(dim=1, stable=True).argsort(dim=1)  # equal futures: the first before the second
    ranks = 1 + order + (others[:, None] <= futures[:, :, None]).sum(-1)
    hit = ranks <= nearest
    return hit.any(0).numpy(), float(hit.sum() / (len(predictions) * nearest))


def score(found: list[tuple[np.ndarray, float]]) -> dict[str, float]:
    values = {
        "recall": np.array([hit.mean() for hit, _ in found]),
        "precision": np.array([share for _, share in found]),
        "found_all": np.array([hit.all() for hit, _ in found]),
    }
    return with_intervals(means(values), len(found))


def chance(videos: list[Forked], guesses: int, shared: int) -> dict[str, float]:
    """Expected metrics of `guesses` different candidates, drawn uniformly from the video's own and the
    `shared` ones of all videos together."""
    found = []
    for v in videos:
        count = len(v.frames) + max(0, shared - (v.possible + 1))
        drawn = min(guesses, count)
        all_drawn = (
            np.prod([(drawn - i) / (count - i) for i in range(v.possible)]) if drawn >= v.possible else 0.0
        )
        found.append(
            {"recall": drawn / count, "precision": v.possible / count, "found_all": float(all_drawn)}
        )
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}
