"""The pair `next_frame`: windows of a video, each a clip and the frame that follows it.

pair: {name: next_frame, frames: 8, stride: 2, gap: 1, size: 64, windows: 8}
"""

# W windows, T context frames, F frames of a video

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint.batch import Conditioned, Following
from vicjoint.files.cells import opened, path_of
from vicjoint.options import Ascending, ComponentOf, Count, Natural, Positive, PositiveShare, Share
from vicjoint.pairs.by_columns import ByColumns
from vicjoint.pairs.condition import Condition
from vicjoint.parts import Modality, Raw, Reading, Record, Side, View
from vicjoint.registry import register
from vicjoint.sliding import Sliding
from vicjoint.transforms.compose import Resized, TransformList, Where, as_clips
from vicjoint.transforms.images import cut, square_frames
from vicjoint.transforms.squares import (
    Cache,
    Choice,
    SlidingVideo,
    Squares,
    ends,
    every_start,
    of_clip,
    on_display,
)
from vicjoint.video import FILM_SUFFIXES, Video, VideoError, VideoInfo


@dataclass(frozen=True)
class Window:
    """Frame numbers of one window: the context, strictly increasing in time, the target after it, and those
    of further steps, where the pair has a horizon."""

    context: list[int]
    target: int
    later: tuple[int, ...] = ()

    @property
    def targets(self) -> list[int]:
        """Of all steps."""
        return [self.target, *self.later]


class Windows(Sequence[Window]):
    """The windows with these starts [W], each made when it is asked for."""

    def __init__(self, starts: Sequence[int], make: Callable[[int], Window]):
        self.starts, self.make = starts, make

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, at):
        chosen = self.starts[at]
        return Windows(chosen, self.make) if isinstance(at, slice) else self.make(int(chosen))


@register("pair", "next_frame")
class NextFrame(ByColumns):
    """A clip of `frames` context frames and the frame that follows.

    frames: context frames. stride: frames from one context frame to the next; or seconds: the same as a time,
    chosen by timestamps (for mixed or variable frame rates; stride is then not used). gap: the target's
    distance after the last context frame, in frames, or with `seconds` in multiples of it. size: side of the
    square views in pixels. windows: windows of one video in a batch; they make a group, which lets the
    objective ask for change over time. stretch: the windows of a group start within so many successive
    frames, somewhere in the video; null: anywhere in it. A short one makes a group of near neighbours in
    time, which have to differ by what moves: over a whole video, a slow change of light or the noise that a
    codec keeps from one key frame to the next is enough to tell windows apart, and is easy to predict.

    centre: side of the square of each frame that training and evaluation look at, as a share of the frame's
    shorter side (1: the largest square); at: where its middle is, as shares of the frame's width and height.
    area, flip: a crop (share of that square: [least, most]; 1 is the whole square) and a horizontal flip with
    this probability, drawn once per video for every frame of both views.
    a, b: transforms of the clip and of the frame, as in the pair augment, random_resized_crop first; null:
    none. Each view draws its own once per window, the same for all frames of a clip; b: same draws once for
    clip and frame together. Where both see one transform, the place of things in the picture is the easiest
    to predict, and a representation learns little else (docs/results.md). colour: where colours are changed,
    as in the pair augment.
    horizon: steps that are predicted, `gap` apart, each from the prediction of the one before or, by a
    predictor such as extrapolate, all at once; above 1 it needs a predictor. train_on: the targets of which
    step are compared: of all, or of the last.
    condition: what the predictor is told beside the clip, such as {column: actions, width: 2}: a table with a
    row of 2 numbers for each frame, of which it gets the rows from the last context frame to the one before
    the target (with `seconds` their mean), and for each further step those after it; null: nothing
    (docs/conditions.md).
    cache_mb: room for the squares of videos decoded once; 0: none. cache: memory, of each process that reads,
    or disk, the cache folder, for all processes and later runs.
    distinct, group, per_group: columns that say what a batch holds, as in the pair cross_modal. With `group`,
    the windows of all videos with an equal value make one group: several events that share one look.
    """

    gives = frozenset({"views", "both", "rows", "windows", "spread"})
    reads = ("path", "bytes")
    suffixes = FILM_SUFFIXES
    in_time = True

    def __init__(
        self,
        frames: Count = 8,
        stride: Count = 2,
        seconds: Positive | None = None,
        gap: Natural = 1,
        size: Count = 64,
        windows: Count = 8,
        stretch: int | None = None,
        centre: PositiveShare = 1.0,
        area: Annotated[tuple[PositiveShare, PositiveShare], Ascending] = (1.0, 1.0),
        flip: Share = 0.5,
        at: tuple[Share, Share] = (0.5, 0.5),
        a: list[Annotated[dict, ComponentOf("transform")]] | None = None,
        b: list[Annotated[dict, ComponentOf("transform")]] | Literal["same"] | None = None,
        colour: Where = "worker",
        cache_mb: Natural = 0,
        cache: Cache = "memory",
        distinct: str | None = None,
        group: str | None = None,
        per_group: Count = 1,
        condition: dict[str, Any] | list[dict[str, Any]] | None = None,
        horizon: Count = 1,
        train_on: Literal["all", "last"] = "all",
    ):
        super().__init__(distinct, group, per_group)
        if condition is not None and not gap:
            raise ValueError(
                "pair.condition: with gap 0 the target is the last context frame, and nothing lies between."
                " Set pair.gap to 1 or more, or leave out the condition."
            )
        if horizon > 1 and not gap:
            raise ValueError(
                f"pair.horizon: with gap 0 all {horizon} targets are the last context frame. Set pair.gap to"
                " 1 or more, or leave out the horizon."
            )
        if stretch is not None and stretch < windows:
            raise ValueError(
                f"pair.stretch: {stretch} frames cannot hold the starts of {windows} different windows"
                f" (pair.windows). Expected {windows} or more, or null for the whole video."
            )
        self.frames, self.stride, self.seconds, self.gap = frames, stride, seconds, gap
        self.size, self.area, self.flip = size, area, flip
        self.squares = Squares(centre, at, cache_mb=cache_mb, cache=cache)
        self.plain = not a and b in (None, "same", [])
        self.a = TransformList("pair.a", a, size, colour) if a else Resized(size)
        if b == "same":
            self.b = self.a
        else:
            self.b = TransformList("pair.b", b, size, colour) if b else Resized(size)
        self.windows, self.stretch = windows, stretch
        self.samples_per_record = windows
        self.evenly = gap == (stride if seconds is None else 1)
        self.horizon, self.targets = horizon, horizon if train_on == "all" else 1
        self.single = frames == 1, horizon == 1  # whether a view is pictures and no clips
        self.condition = Condition(condition, frames=True, rows=gap if seconds is None else None)
        self.conditions = self.condition.standardised

    def bind(self, reading: Reading) -> None:
        """Raises CellError for a column of the condition that records do not have."""
        super().bind(reading)
        if self.conditions:
            self.condition.check(list(reading.source.train[0]))

    def sample(
        self, record: Record, rng: np.random.Generator
    ) -> tuple[Tensor | Conditioned, Tensor | Following]:
        """(clips uint8 [W, 3, T, size, size], with their conditions where there are such, targets uint8 [W,
        3, size, size], with a horizon [W, K, 3, size, size]) of windows drawn without replacement where the
        video has enough. Raises VideoError where the video cannot be read or is too short, and CellError
        where its condition cannot."""
        windows, wanted, conditions = [], [], []
        compared = lambda w: w.targets[-self.targets :]

        def choose(info: VideoInfo) -> list[int]:
            windows.extend(self.draw(info, rng, path))
            if self.conditions:
                told = self.between if self.horizon == 1 else self.along
                conditions.append(told(record, windows, info))
            wanted.extend(sorted({n for w in windows for n in [*w.context, *compared(w)]}))
            return wanted

        with opened(record) as path:
            squares = self.squares.read(path, self.video_backend, self.frame_rate, choose)
        frames = cut(squares, rng, self.area, self.flip)
        place = {n: i for i, n in enumerate(wanted)}
        contexts = [[place[n] for n in w.context] for w in windows]
        followed = [[place[n] for n in compared(w)] for w in windows]
        if self.plain:  # each frame is resized once, not once a window
            frames = square_frames(frames, self.size)
            clip, targets = (clips_of(frames, numbers) for numbers in (contexts, followed))
            clip, targets = (x[:, :, 0] if one else x for x, one in zip((clip, targets), self.single))
        else:
            clip, targets = self.own_views([(frames[c], frames[t]) for c, t in zip(contexts, followed)], rng)
        a = Conditioned(clip, conditions[0]) if conditions else clip
        return a, targets if self.horizon == 1 else Following(targets, self.horizon)

    def between(self, record: Record, windows: Sequence[Window], info: VideoInfo) -> Tensor:
        """Conditions [W, C] of windows of a video, up to the first target. Raises CellError."""
        return self.condition.of(record, [(w.context[-1], w.target) for w in windows], info.frames)

    def along(self, record: Record, windows: Sequence[Window], info: VideoInfo) -> Tensor:
        """Conditions [W, H, C], one for each step of windows of a video. Raises CellError."""
        steps = [step for w in windows for step in zip([w.context[-1], *w.targets], w.targets)]
        return self.condition.of(record, steps, info.frames).unflatten(0, (len(windows), -1))

    def conditions_of(self, record: Record) -> Tensor:
        return self.condition.some(record)

    def own_views(self, windows: list[tuple[Tensor, Tensor]], rng: np.random.Generator) -> list[Raw]:
        """Clips and targets, of the frames [T, 3, S, S] and [K, 3, S, S] of each window."""
        drawn = []
        for frames in windows:
            if self.b is self.a:
                both, numbers = self.a.crop(torch.cat(frames), rng), self.a.draw(rng)
                drawn.append([(pixels, numbers) for pixels in both.split([len(of) for of in frames])])
            else:
                drawn.append(
                    [(own.crop(of, rng), own.draw(rng)) for own, of in zip((self.a, self.b), frames)]
                )
        views = []
        for own, one, of_side in zip((self.a, self.b), self.single, zip(*drawn)):
            pixels, numbers = zip(*of_side)
            pixels = torch.cat(pixels) if one else torch.stack(pixels)
            views.append(own.coloured(pixels, np.concatenate(numbers)))
        return views

    def views(
        self, record: Record, side: Side, rng: np.random.Generator | None = None, read: bool = True
    ) -> list[View]:
        """The window in the middle of the video: its clip for a, the frame after it for b."""
        return self.spread(record, side, 1) if read else [self._view(record, None, "in the middle")]

    def spread(
        self, record: Record, side: Side, number: int, between: tuple[float, float] | None = None
    ) -> list[View]:
        """Clips for a, the frames after them for b; windows are repeated where the video has fewer. Raises
        VideoError, too, where none lies `between` the seconds."""
        with opened(record) as path, self.open(path) as video:
            possible = self.possible_windows(video.info, path)
            if between is not None:
                times = video.info.timestamps_seconds - video.info.start_seconds
                first = bisect_left(possible, between[0], key=lambda w: times[w.context[0]])
                last = bisect_left(possible, between[1], key=lambda w: times[w.context[-1]])
                possible = possible[first:last]
            if not possible:
                raise VideoError(
                    f"{path}: no clip lies between {between[0]:g} and {between[1]:g} s"
                    " (pair.frames, stride or seconds)"
                )
            chosen = [possible[int((i + 0.5) * len(possible) / number)] for i in range(number)]
            shown = [w.context if side == "a" else [w.target] for w in chosen]
            wanted = sorted({n for numbers in shown for n in numbers})
            told = [None] * number
            if self.conditions and side == "a":
                told = list(self.between(record, chosen, video.info).split(1))
            frames, seen = self.frames_of(video, wanted), [seconds_of(video.info, n) for n in shown]
        place = {n: i for i, n in enumerate(wanted)}
        return [
            self._view(
                record,
                as_view(frames[[place[n] for n in numbers]]),
                f"frames {numbers[0]}-{numbers[-1]}",
                _file(record) if side == "a" else "",  # of a frame its picture says more than the film
                seconds if side == "a" else None,
                condition,
            )
            for numbers, seconds, condition in zip(shown, seen, told)
        ]

    def _view(
        self,
        record: Record,
        raw: Tensor | None,
        what: str,
        item: str = "",
        seconds: tuple[float, float] | None = None,
        condition: Tensor | None = None,
    ) -> View:
        content = f"{_file(record) or record['id']} {what}"
        return View(raw, content, None, record["id"], item, seconds, condition)

    def open(self, path: str) -> Video:
        """A video, by the recipe's backend and frame rate. Raises VideoError."""
        return Video(path, self.video_backend, self.frame_rate)

    def draw(self, info: VideoInfo, rng: np.random.Generator, path: str) -> list[Window]:
        """`windows` random windows, spread over the video or a random stretch of it: one from each of as many
        equal parts of the possible starts."""
        possible = self.possible_windows(info, path, self.horizon)
        if self.stretch is not None:
            first = int(rng.integers(max(1, len(possible) - self.stretch + 1)))
            possible = possible[first : first + self.stretch]
        edges = np.linspace(0, len(possible), self.windows + 1).astype(int)
        return [possible[rng.integers(low, max(high, low + 1))] for low, high in zip(edges, edges[1:])]

    def possible_windows(self, info: VideoInfo, path: str, horizon: int = 1) -> Windows:
        """Every window of a video, with the targets of so many steps, in order of its start. Raises
        VideoError where there is none."""
        starts, ahead = self._starts(info, horizon), self.gap * horizon
        if not len(starts):
            has, need = f"{info.frames} frames", f"{(self.frames - 1) * self.stride + ahead + 1}"
            if self.seconds is not None:
                has, need = (
                    f"{info.timestamps_seconds[-1] - info.timestamps_seconds[0]:.2f} s",
                    f"{(self.frames - 1 + ahead) * self.seconds:.2f} s",
                )
            raise VideoError(
                f"{path}: too short for one window: it has {has}, {need} are needed (pair.frames, stride or"
                f" seconds, gap{', horizon' if horizon > 1 else ''})"
            )
        return Windows(starts, lambda start: self._window(info, start, horizon))

    def _steps(self, horizon: int) -> list[int]:
        """Of a window's frames, in multiples of `seconds`."""
        ahead = range(self.gap, self.gap * horizon + 1, self.gap) if self.gap else [0]
        return [*range(self.frames), *(self.frames - 1 + far for far in ahead)]

    def _starts(self, info: VideoInfo, horizon: int) -> Sequence[int]:
        """The first frames of all windows."""
        ahead = self.gap * horizon
        times, after = info.timestamps_seconds, self.frames - 1 + ahead
        if self.seconds is None:
            return range(max(0, info.frames - (self.frames - 1) * self.stride - ahead))
        starts = np.flatnonzero(times + after * self.seconds <= times[-1] + self.seconds / 2)
        apart = np.diff(times) / self.seconds
        if apart.max(initial=0) < 1 or np.abs(apart - 1).max() < 0.25 / (after + 1):
            return starts
        # frames further apart than `seconds`: the same one would be used twice
        steps = self._steps(horizon) if self.gap else range(self.frames)
        numbers = [nearest_frames(times, times[starts] + step * self.seconds) for step in steps]
        return starts[(np.diff(numbers, axis=0) > 0).all(0)]

    def _window(self, info: VideoInfo, start: int, horizon: int) -> Window:
        if self.seconds is None:
            context = list(range(start, start + self.frames * self.stride, self.stride))
            target, *later = (context[-1] + step * self.gap for step in range(1, horizon + 1))
        else:
            times, asked = info.timestamps_seconds, np.array(self._steps(horizon)) * self.seconds
            numbers = nearest_frames(times, times[start] + asked).tolist()
            context, (target, *later) = numbers[: self.frames], numbers[self.frames :]
        return Window(context, target, tuple(later))

    def context(self, info: VideoInfo, start: int) -> list[int] | None:
        """The clip whose first frame is `start`, whether or not a target follows; None where the video ends
        before."""
        if self.seconds is None:
            last = start + (self.frames - 1) * self.stride
            return list(range(start, last + 1, self.stride)) if last < info.frames else None
        times = info.timestamps_seconds
        asked = times[start] + np.arange(self.frames) * self.seconds
        numbers = nearest_frames(times, asked)
        late = asked[-1] > times[-1] + self.seconds / 2
        return None if late or np.any(np.diff(numbers) < 1) else numbers.tolist()

    def slide(self, value: str, side: Side, every: float) -> Sliding:
        """Clips for a, whether or not a frame follows; single frames for b. Raises VideoError."""
        choose = lambda info: self._along(info, side, every, value)
        how = self.video_backend, self.frame_rate
        return SlidingVideo(value, *how, self.squares, self.size, choose, as_view)

    def _along(self, info: VideoInfo, side: Side, every: float, path: str) -> list[Choice]:
        found = []
        for start in every_start(info, every):
            first = on_display(info, start)
            numbers = self.context(info, first) if side == "a" else [first]
            if numbers is not None:
                found.append(((start, ends(info, numbers[-1])), numbers))
        if not found:
            raise VideoError(
                f"{path}: {info.frames} frames are too few for one clip (pair.frames, stride or seconds)"
            )
        return found

    def slide_followed(self, value: str, every: float) -> Sliding:
        """(clip, the frame after it). Raises VideoError."""
        choose = lambda info: self._followed(info, every, value)
        view = lambda frames: (as_view(frames[:-1]), frames[-1:])
        how = self.video_backend, self.frame_rate
        return SlidingVideo(value, *how, self.squares, self.size, choose, view)

    def _followed(self, info: VideoInfo, every: float, path: str) -> list[Choice]:
        possible, found = self.possible_windows(info, path), []
        there, times = set(possible.starts), info.timestamps_seconds - info.start_seconds
        for start in every_start(info, every) if every else times.tolist():
            if (first := on_display(info, start)) in there:
                window = possible.make(first)
                found.append(((start, ends(info, window.context[-1])), [*window.context, window.target]))
        return found

    def preprocessing(self, side: Side, modality: Modality) -> dict[str, Any]:
        frames = self.frames if side == "a" else 1
        many, apart = frames > 1, self.seconds is None
        found = modality.preprocessing() | of_clip(
            frames, self.stride if many and apart else None, None, self.size, self.squares
        )
        if not many:
            found["shape"] = [3, self.size, self.size]
        return found | {"seconds_between": self.seconds if many else None}

    def frames_of(self, video: Video, numbers: Sequence[int]) -> Tensor:
        """uint8 [F, 3, size, size] of frames of an open video, as in evaluation. Raises VideoError."""
        return square_frames(self.squares.frames(video, numbers), self.size)


def _file(record: Record) -> str:
    """The path of a record's own file; "" where it lies in a cell or a tar file."""
    return "" if {"bytes", "offset"} & set(record) else path_of(record)


def as_view(frames: Tensor) -> Tensor:
    """[T, 3, S, S] -> a clip [1, 3, T, S, S], or of one frame a picture [1, 3, S, S]."""
    return as_clips(frames if len(frames) == 1 else frames[None])


def clips_of(frames: Tensor, numbers: list[list[int]]) -> Tensor:
    """Clips [W, 3, T, S, S] of these frames of [F, 3, S, S]; windows share frames, whose colours are put
    apart once."""
    if len(numbers[0]) == 1:
        return as_clips(torch.stack([frames[own] for own in numbers]))
    frames_CFSS = frames.transpose(0, 1).contiguous()
    clips = frames.new_empty(len(numbers), 3, len(numbers[0]), *frames.shape[2:])
    for clip, own in zip(clips, numbers):
        torch.index_select(frames_CFSS, 1, torch.tensor(own), out=clip)
    return clips


def seconds_of(info: VideoInfo, numbers: list[int]) -> tuple[float, float]:
    """When the first of some frames begins and the last one ends, from the start of the file."""
    return float(info.timestamps_seconds[numbers[0]] - info.start_seconds), ends(info, numbers[-1])


def nearest_frames(times: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Numbers of the frames whose timestamps [F] (increasing, seconds) are nearest to those asked for."""
    right = np.searchsorted(times, asked).clip(min(1, len(times) - 1), len(times) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(asked - times[left] <= times[right] - asked, left, right)
