"""Probe `next_frame_retrieval`: which frame follows a clip, among the frames of its video and those of all
test videos.

evaluate: {probes: [{name: next_frame_retrieval}]}
"""

# Q queries (windows), C candidates, F frames, E embedding

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.files.cells import opened
from vicjoint.options import Count
from vicjoint.pairs.next_frame import NextFrame, Window
from vicjoint.parts import EvaluationData, Features, Metric, Probe, Record
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import around, named, of_others
from vicjoint.probes.windows import of_clips, of_frames, too_short
from vicjoint.registry import register

SAME = "the candidate frames of the same video, the last context frame included"


@dataclass
class Query:
    """One window of a test video. All numbers are places among the frames kept of that video."""

    context: list[int]
    candidates: list[int]
    target: int
    last: int  # the last context frame
    before: int  # the context frame before the last
    reach: float  # how far the target is after the last, in steps from `before` to it
    frames_apart: int  # true frame numbers from one candidate to the next
    answerable: bool  # whether the target differs from the last context frame


@dataclass
class TestVideo:
    id: str
    frames: Tensor  # uint8 [F, 3, size, size]
    queries: list[Query]
    conditions: Tensor | None = None  # [Q, step, C], where the pair gives such


@dataclass
class Embedded:
    """One video through both branches: predictions z_a [Q, E], or [K, Q, E] of a latent's K values, and
    frames z_b [F, E]."""

    predicted: Tensor
    frames: Tensor


@register("probe", "next_frame_retrieval")
class NextFrameRetrieval(Probe):
    """Does the model know which frame comes next? `queries` windows of every test video are embedded by
    branch a (and the predictor) and compared, by squared distance, with the embeddings by branch b of up to
    `candidates` frames of the same video, as far apart as the target is from the last context frame, which is
    among them. Ties get the middle rank.

    Metrics: r1, r5, mrr inside the video; answerable_r1: of the queries whose target differs from the last
    context frame; unseen_r1: without the frames of the context among the candidates; all_r1, all_r5, all_mrr
    among next frames of all test videos, one of each; open_r1 among all candidates of all test videos;
    offset: mean distance in frames between the frame retrieved in the video and the true one; copy_rate:
    share of queries that retrieve the last context frame; skill: 1 - squared error / squared error of copying
    the last context frame, on whitened embeddings.

    Rows: model; random_init: the same encoders before training; copy_last and extrapolation: the trained
    embedding of the last context frame, as it is, and moved on by the change since the context frame before
    it; mean: the mean of all candidates' trained embeddings; pixels and pixels_extrapolation: copy_last and
    extrapolation of the frames themselves; ceiling: the target, compared by pixels, which ties with frames
    that are equal to it; chance. Where the pair gives a condition, shuffled_condition: the same predictions
    with the condition of another query, drawn once for all: what the model does without knowing the right
    one.

    step: which step of a model with a horizon is asked for: the target is `step` gaps after the clip.

    With a latent of K values, `model` is one prediction that has not seen the target (the model's best
    guess), and best_of_K counts a query as right where any of the K predictions is: it looks at the target.
    Beside it stands what as many guesses reach without the latent: nearest_K, where the target is among the K
    candidates nearest to the one prediction. `guesses`: the K of that row; null: as many as the latent has
    values.
    """

    needs = frozenset({"windows"})
    reads = True
    refusal = (
        "evaluate.probes: 'next_frame_retrieval' looks at windows of videos, which this pair does not give."
        " Use pair: {name: next_frame}, or leave it out."
    )
    explains = {
        "r1": Metric(f"R@1: share of predictions whose true next frame ranks first among {SAME}"),
        "r5": Metric("R@5: the same for the first five"),
        "mrr": Metric("mean of 1 / rank of the true next frame, in the same list as r1"),
        "answerable_r1": Metric(
            "r1 of the queries whose true next frame differs from the last context frame"
        ),
        "unseen_r1": Metric(
            "r1 among those frames that are not in the context: what is most like the last of it is already a"
            " good answer here (copy_last, pixels)"
        ),
        "all_r1": Metric(
            "R@1 over all videos: share of queries whose true next frame ranks first among next frames of all"
            " test videos"
        ),
        "all_r5": Metric("R@5 over all videos"),
        "all_mrr": Metric("mean of 1 / rank over all videos"),
        "open_r1": Metric("R@1 among all candidate frames of all test videos together"),
        "offset": Metric("mean distance in frames between the retrieved and the true frame", "lower"),
        "copy_rate": Metric("share of predictions that land on the last context frame", "lower"),
        "skill": Metric(
            "1 - error / error of copying the last context frame, in whitened embeddings (0: no better than"
            " copying)"
        ),
    }

    def __init__(
        self,
        queries: Count = 4,
        candidates: Annotated[int, Field(ge=2)] = 24,
        pictures: int = 8,
        guesses: Count | None = None,
        step: Count = 1,
    ):
        self.queries, self.candidates, self.pictures, self.guesses = queries, candidates, pictures, guesses
        self.step = step

    def misses(self, data: EvaluationData) -> str | None:
        return too_short(data)

    def check(self, features: Features) -> None:
        if self.step > 1 and features.latents > 1:
            raise ValueError(
                f"evaluate.probes: next_frame_retrieval has step {self.step}, and this model predicts"
                f" {features.latents} futures of one step (predictor.latents). Use step: 1."
            )

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where no test video can be read."""
        videos = features.read()
        if not videos:
            raise ValueError(
                f"next_frame_retrieval: none of the {len(features.data.records('test'))} test videos can be"
                " read with this pair."
            )
        through = lambda row, videos=videos: embed(features, row, videos, self.step)
        untrained = features.once("untrained", lambda: through("random_init")[0])
        trained, every = through("model")
        every_row = rows(videos, trained, untrained)
        if features.data.pair.conditions:
            every_row["shuffled_condition"] = through("model", shuffled(videos))[0]
        with features.progress(len(every_row) * len(videos), "next_frame_retrieval: ranks") as done:
            for row, embedded in every_row.items():
                yield from named(row, score(videos, embedded))
                done(len(videos))
        yield from several_guesses(videos, trained, every, self.guesses or features.latents)
        yield from named("chance", chance(videos))
        if self.pictures:
            yield "pictures", self._pictures(videos, trained)

    def read(self, record: Record, pair: NextFrame) -> TestVideo:
        """Raises VideoError where the video cannot be read or is too short."""
        with opened(record) as path, pair.open(path) as video:
            possible = pair.possible_windows(video.info, path, self.step)
            picks = np.linspace(0, len(possible) - 1, min(self.queries, len(possible))).round().astype(int)
            windows = [possible[p] for p in picks]
            candidates = [self._candidate_frames(w, video.info.frames) for w in windows]
            wanted = sorted({n for w, c in zip(windows, candidates) for n in [*w.context, *c]})
            frames = pair.frames_of(video, wanted)
            conditions = pair.along(record, windows, video.info) if pair.conditions else None
        place = {n: i for i, n in enumerate(wanted)}
        queries = []
        for w, c in zip(windows, candidates):
            last, before, target = w.context[-1], w.context[-2], w.targets[-1]
            queries.append(
                Query(
                    context=[place[n] for n in w.context],
                    candidates=[place[n] for n in c],
                    target=place[target],
                    last=place[last],
                    before=place[before],
                    reach=(target - last) / (last - before),
                    frames_apart=target - last,
                    answerable=not torch.equal(frames[place[target]], frames[place[last]]),
                )
            )
        return TestVideo(record["id"], frames, queries, conditions)

    def _candidate_frames(self, window: Window, frames: int) -> list[int]:
        last, target = window.context[-1], window.targets[-1]
        return around(target, last, target - last, frames, self.candidates)

    def _pictures(self, videos: list[TestVideo], trained: list[Embedded]) -> dict[str, np.ndarray]:
        """Half the pictures from the best-ranked queries, half from the worst, spread over different
        videos."""
        found = []
        for video, embedded in zip(videos, trained):
            ranks, retrieved = ranks_inside(video, embedded)
            for at in (int(ranks.argmax()), int(ranks.argmin())):
                found.append((float(ranks[at]), video, video.queries[at], retrieved[at]))
        found.sort(key=lambda item: item[0])
        half = self.pictures // 2
        good = [item for item in found if item[0] == 1]
        good = good[:: max(1, len(good) // max(1, half))][:half]
        bad = [item for item in reversed(found) if item[0] > 1][:half]
        chosen = good + bad
        empty = videos[0].frames[:0].movedim(1, -1).numpy()

        def stack(places, none: np.ndarray) -> np.ndarray:
            shown = [v.frames[places(q, found)].movedim(-3, -1).numpy() for _, v, q, found in chosen]
            return np.stack(shown) if chosen else none

        return {
            "context": stack(lambda q, _: q.context, empty[:, None]),
            "retrieved": stack(lambda _, found: found, empty),
            "target": stack(lambda q, _: q.target, empty),
            "title": np.array(
                [f"{v.id}: rank {rank:g} of {len(q.candidates)}" for rank, v, q, _ in chosen], dtype=str
            ),
            "good": np.array([rank == 1 for rank, *_ in chosen], dtype=bool),
        }


def rows(
    videos: list[TestVideo], trained: list[Embedded], untrained: list[Embedded]
) -> dict[str, list[Embedded]]:
    mean = torch.cat([e.frames for e in trained]).mean(0)
    pixels = [v.frames.float().div(255).flatten(1) for v in videos]
    rows: dict[str, list[Embedded]] = {"model": trained, "random_init": untrained}
    for video, embedded, pixel in zip(videos, trained, pixels):
        z, last, target = embedded.frames, [q.last for q in video.queries], [q.target for q in video.queries]
        for row, guess, frames in (
            ("copy_last", z[last], z),
            ("extrapolation", moved_on(video, z), z),
            ("mean", mean.expand(len(last), -1), z),
            ("pixels", pixel[last], pixel),
            ("pixels_extrapolation", moved_on(video, pixel), pixel),
            ("ceiling", pixel[target], pixel),
        ):
            rows.setdefault(row, []).append(Embedded(guess, frames))
    return rows


def moved_on(video: TestVideo, x: Tensor) -> Tensor:
    """[Q, E]: the last context frames in x [F, E], moved on by the change since those before them."""
    last, before = x[[q.last for q in video.queries]], x[[q.before for q in video.queries]]
    return last + torch.tensor([q.reach for q in video.queries])[:, None] * (last - before)


def embed(
    features: Features, row: str, videos: list[TestVideo], step: int = 1
) -> tuple[list[Embedded], list[Embedded] | None]:
    """All test videos through both branches of a row: with one prediction a query, of that step, and with
    every prediction of a latent where there is one."""
    z_b = of_frames(features, row, [v.frames for v in videos])
    clips = [v.frames[q.context] for v in videos for q in v.queries]
    y_a, told = of_clips(features, row, clips, [v.conditions for v in videos])
    found = [features.rollout(row, y_a, step, told)[:, -1].cpu()]
    if features.latents > 1:
        told = [some[:, 0] for some in told]
        found.append(features.embed(row, "a", y_a, every=True, told=told).cpu().transpose(0, 1))
    queries = [len(v.queries) for v in videos]
    each = [[Embedded(a, b) for a, b in zip(z_a.split(queries, dim=-2), z_b)] for z_a in found]
    return each[0], each[1] if len(each) > 1 else None


def shuffled(videos: list[TestVideo]) -> list[TestVideo]:
    """The same with the condition of another query at each."""
    counts = [len(v.queries) for v in videos]
    told = torch.cat([v.conditions for v in videos if v.conditions is not None])
    return [replace(v, conditions=c) for v, c in zip(videos, told[of_others(len(told))].split(counts))]


def middle_rank(distances: Tensor, target: int) -> float:
    """Rank of the target (1 is nearest) among distances [C]; equal distances share the middle of their
    ranks."""
    closer = (distances < distances[target]).sum()
    equal = (distances == distances[target]).sum() - 1
    return float(1 + closer + equal / 2)


def squared_distances(z: Tensor, candidates: Tensor) -> Tensor:
    return (candidates - z).square().sum(-1)


def ranks_inside(video: TestVideo, embedded: Embedded, unseen: bool = False) -> tuple[np.ndarray, list[int]]:
    """Rank of each query's target among the video's candidates, and the place of the frame retrieved.
    unseen: without the frames of the context."""
    ranks, retrieved = [], []
    for query, z in zip(video.queries, embedded.predicted):
        candidates = [c for c in query.candidates if not (unseen and c in query.context)]
        distances = squared_distances(z, embedded.frames[candidates])
        ranks.append(middle_rank(distances, candidates.index(query.target)))
        retrieved.append(candidates[int(distances.argmin())])
    return np.array(ranks), retrieved


def score(videos: list[TestVideo], embedded: list[Embedded]) -> dict[str, float]:
    """All metrics of one row, with the intervals of other test videos."""
    ranks, unseen, offsets, copied = [], [], [], []
    for video, e in zip(videos, embedded):
        of_video, retrieved = ranks_inside(video, e)
        ranks.extend(of_video)
        unseen.extend(ranks_inside(video, e, unseen=True)[0] <= 1)
        for query, place in zip(video.queries, retrieved):
            distance = query.candidates.index(place) - query.candidates.index(query.target)
            offsets.append(abs(distance) * query.frames_apart)
            copied.append(place == query.last)
    inside, across = np.array(ranks), ranks_across(videos, embedded)
    means = {
        "unseen_r1": np.array(unseen),
        "open_r1": open_right(videos, embedded),
        "offset": np.array(offsets),
        "copy_rate": np.array(copied),
    }
    can = np.array([q.answerable for v in videos for q in v.queries])
    error, copying = errors(videos, embedded)

    def of_queries(n: np.ndarray) -> dict[str, float]:
        return {
            **retrieval_metrics(inside[n]),
            "answerable_r1": float((inside[n] <= 1)[can[n]].sum() / max(can[n].sum(), 1)),
            **{f"all_{name}": value for name, value in retrieval_metrics(across[n]).items()},
            **{name: float(values[n].mean()) for name, values in means.items()},
            "skill": 1 - float(error[n].sum()) / max(float(copying[n].sum()), 1e-12),
        }

    return with_intervals(of_queries, [i for i, v in enumerate(videos) for _ in v.queries])


def several_guesses(
    videos: list[TestVideo], guess: list[Embedded], every: list[Embedded] | None, guesses: int
):
    """(name, value) of the rows best_of_K, where there is a latent, and nearest_K: whether one of several
    guesses is right."""
    ranks = {
        "": lambda e: np.concatenate([ranks_inside(*both)[0] for both in zip(videos, e)]),
        "all_": lambda e: ranks_across(videos, e),
    }
    for prefix, of in ranks.items():
        if every:
            by_latent = zip(*([Embedded(z, e.frames) for z in e.predicted] for e in every))
            right = np.stack([of(list(e)) for e in by_latent]).min(0) <= 1
            yield f"best_of_{len(every[0].predicted)}/{prefix}r1", float(right.mean())
        if guesses > 1:
            yield f"nearest_{guesses}/{prefix}r1", float((of(guess) <= guesses).mean())


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    first, five = (float((ranks <= most).mean()) for most in (1, 5))
    return {"r1": first, "r5": five, "mrr": float((1 / ranks).mean())}


def ranks_across(videos: list[TestVideo], embedded: list[Embedded]) -> np.ndarray:
    """Rank of each query's target among the targets of the same window number in all videos."""
    ranks: list[list[float]] = [[] for _ in videos]
    for slot in range(max(len(v.queries) for v in videos)):
        there = [i for i, v in enumerate(videos) if slot < len(v.queries)]
        targets = torch.stack([embedded[i].frames[videos[i].queries[slot].target] for i in there])
        for place, i in enumerate(there):
            ranks[i].append(middle_rank(squared_distances(embedded[i].predicted[slot], targets), place))
    return np.concatenate(ranks)


def open_right(videos: list[TestVideo], embedded: list[Embedded]) -> np.ndarray:
    """Of each query, whether its target is nearer than every other candidate of every test video (for the
    query's own video: its own candidates; of other videos: all frames that are anybody's candidate)."""
    pools = [e.frames[sorted({c for q in v.queries for c in q.candidates})] for v, e in zip(videos, embedded)]
    queries = torch.cat([e.predicted for e in embedded])
    owner = torch.tensor([i for i, v in enumerate(videos) for _ in v.queries])
    elsewhere = torch.full((len(queries),), torch.inf)
    for i, pool in enumerate(pools):
        # found by a product, which rounds, and then measured by differences
        nearest = squared_distances(queries, pool[torch.cdist(queries, pool).argmin(1)])
        elsewhere = torch.minimum(elsewhere, torch.where(owner == i, torch.inf, nearest))
    right = []
    for video, e, other in zip(videos, embedded, elsewhere.split([len(v.queries) for v in videos])):
        ranks, _ = ranks_inside(video, e)
        target = squared_distances(e.predicted, e.frames[[q.target for q in video.queries]])
        right += ((torch.from_numpy(ranks) <= 1) & (target < other)).tolist()
    return np.array(right)


def errors(videos: list[TestVideo], embedded: list[Embedded]) -> tuple[np.ndarray, np.ndarray]:
    """Of each query, the squared error of the prediction and of copying the last frame, in the space where
    the frames' embeddings have unit covariance (directions with under a hundredth of the mean variance are
    not blown up)."""
    if len(embedded[0].frames[0]) > 2048:  # pixels: coarse ones, so that the covariance stays small
        embedded = [Embedded(coarse(e.predicted), coarse(e.frames)) for e in embedded]
    frames = torch.cat([e.frames for e in embedded]).double()
    values, vectors = torch.linalg.eigh(torch.cov(frames.T))
    whiten = vectors / (values.clamp_min(0) + 0.01 * values.mean() + 1e-12).sqrt()
    error, copying = [], []
    for video, e in zip(videos, embedded):
        target = e.frames[[q.target for q in video.queries]].double() @ whiten
        last = e.frames[[q.last for q in video.queries]].double() @ whiten
        error.append((e.predicted.double() @ whiten - target).square().sum(1))
        copying.append((last - target).square().sum(1))
    return torch.cat(error).numpy(), torch.cat(copying).numpy()


def coarse(pixels: Tensor) -> Tensor:
    """Flattened square RGB frames [N, 3 size size] -> [N, 3 16 16] by averaging."""
    size = round((pixels.shape[1] / 3) ** 0.5)
    return torch.nn.functional.adaptive_avg_pool2d(pixels.view(-1, 3, size, size), 16).flatten(1)


def chance(videos: list[TestVideo]) -> dict[str, float]:
    """Expected metrics of a uniformly random choice; skill is not defined for it."""
    queries = [q for v in videos for q in v.queries]
    at_random = lambda candidates: retrieval_metrics(np.arange(1, candidates + 1))
    inside = [at_random(len(q.candidates)) for q in queries]
    slots = [
        sum(slot < len(v.queries) for v in videos) for slot in range(max(len(v.queries) for v in videos))
    ]
    across = [at_random(count) for count in slots for _ in range(count)]
    offsets = [
        q.frames_apart * np.mean([abs(i - q.candidates.index(q.target)) for i in range(len(q.candidates))])
        for q in queries
    ]
    every = sum(len({c for q in v.queries for c in q.candidates}) for v in videos)
    own = [len({c for q in v.queries for c in q.candidates}) for v in videos for _ in v.queries]
    open_sizes = [every - o + len(q.candidates) for q, o in zip(queries, own)]
    mean = lambda rows, name: float(np.mean([row[name] for row in rows]))
    can = [q for q in queries if q.answerable]
    return {
        **{name: mean(inside, name) for name in inside[0]},
        "answerable_r1": sum(1 / len(q.candidates) for q in can) / max(len(can), 1),
        "unseen_r1": float(np.mean([1 / len(set(q.candidates) - set(q.context)) for q in queries])),
        **{f"all_{name}": mean(across, name) for name in across[0]},
        "open_r1": float(np.mean([1 / size for size in open_sizes])),
        "offset": float(np.mean(offsets)),
        "copy_rate": float(np.mean([1 / len(q.candidates) for q in queries])),
    }
