"""The pair of a clip and the frame that follows: right frames, increasing times, one transform, no
leakage."""

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint.pairs import next_frame
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Modality, Reading, Source
from vicjoint.transforms import squares
from vicjoint.video import VideoError, VideoInfo
from vicjoint.video.write import write_mp4


def info(times, height=8, width=8) -> VideoInfo:
    times = np.asarray(times, dtype=float)
    return VideoInfo(frames=len(times), fps=25.0, height=height, width=width, timestamps_seconds=times)


class Memory:
    """Stands in for a video file: an array of frames."""

    frames_THWC = None

    def __init__(self, path, backend="auto", frame_rate=25.0):
        self.info = info(np.arange(len(self.frames_THWC)) / 25, *self.frames_THWC.shape[1:3])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, frames, part):
        return part.of(self.frames_THWC[list(frames)])


def bound(backend="auto", **options) -> NextFrame:
    """A pair as a run has it."""
    pair = NextFrame(**options)
    pair.bind(Reading((Modality(), Modality()), Source(), backend))
    return pair


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(next_frame, "Video", Memory)
    monkeypatch.setattr(squares, "Video", Memory)
    Memory.frames_THWC = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    return Memory


def numbered(frames: int) -> np.ndarray:
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 12, 12, 3)).copy()


@pytest.mark.parametrize("frames, stride, gap", [(8, 2, 1), (4, 1, 3), (2, 5, 2)])
def test_context_and_target_are_the_asked_frames(memory, frames, stride, gap):
    memory.frames_THWC = numbered(40)
    pair = bound(frames=frames, stride=stride, gap=gap, size=12, windows=6)
    a, b = pair.sample({"path": "x"}, np.random.default_rng(1))
    assert (
        a.shape == (6, 3, frames, 12, 12) and b.shape == (6, 3, 12, 12) and a.dtype == b.dtype == torch.uint8
    )
    context, target = a[:, 0, :, 0, 0].int(), b[:, 0, 0, 0].int()
    assert (context.diff(dim=1) == stride).all()
    assert (target - context[:, -1] == gap).all()
    assert len(set(context[:, 0].tolist())) == 6  # windows differ where the video has enough


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_windows_that_share_frames_are_what_each_is_alone(frames, flip):
    film = torch.randint(256, (20, 6, 6, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    film = film.flip(-1) if flip else film
    numbers = [[2 * t + start for t in range(frames)] for start in (0, 2, 9, 2)]
    found = next_frame.clips_of(film, numbers)
    alone = torch.stack([film[own].transpose(0, 1) for own in numbers])
    assert torch.equal(found, alone) and found.dtype == torch.uint8


def test_windows_of_a_stretch_start_close_together(memory):
    memory.frames_THWC = numbered(40)
    pair = bound(frames=3, stride=2, size=12, windows=4, stretch=8)
    first, apart = set(), set()
    for seed in range(200):
        starts = pair.sample({"path": "x"}, np.random.default_rng(seed))[0][:, 0, 0, 0, 0].int()
        assert starts[-1] - starts[0] < 8 and (starts.diff() > 0).all()
        first.add(int(starts[0]))
        apart.add(int(starts[-1] - starts[0]))
    # 35 starts are possible, so 28 stretches; the first window is one of the first two
    assert first == set(range(29)) and 7 in apart
    starts = (
        bound(frames=3, size=12, windows=4, stretch=4)
        .sample({"path": "x"}, np.random.default_rng(0))[0][:, 0, 0, 0, 0]
        .int()
    )
    assert starts.diff().tolist() == [1, 1, 1]
    whole = bound(frames=3, size=12, windows=4, stretch=400).sample({"path": "x"}, np.random.default_rng(0))[
        0
    ]
    # a video shorter than the stretch is used whole
    assert whole[:, 0, 0, 0, 0].int().tolist() == sorted(whole[:, 0, 0, 0, 0].int().tolist())


def test_windows_by_time_on_a_variable_frame_rate():
    times = np.cumsum([0, 0.04, 0.04, 0.12, 0.04, 0.08, 0.04, 0.04, 0.04, 0.2, 0.04, 0.04, 0.04, 0.08])
    pair = bound(frames=3, seconds=0.1, gap=2, windows=1)
    found = pair.possible_windows(info(times), "x")
    for w in found:
        numbers = [*w.context, w.target]
        assert numbers == sorted(set(numbers))
        asked = times[w.context[0]] + np.array([0, 1, 2, 4]) * 0.1
        best = np.abs(times[None] - asked[:, None]).min(1)
        assert np.abs(times[numbers] - asked) == pytest.approx(best)
    assert found


def test_a_short_video_is_named_with_what_is_needed():
    with pytest.raises(
        VideoError, match=r"clip.mp4: too short for one window: it has 15 frames, 16 are needed"
    ):
        NextFrame().possible_windows(info(np.arange(15) / 25), "clip.mp4")
    assert len(NextFrame().possible_windows(info(np.arange(16) / 25), "clip.mp4")) == 1
    with pytest.raises(VideoError, match=r"it has 0.56 s, 1.60 s are needed"):
        bound(seconds=0.2).possible_windows(info(np.arange(15) / 25), "clip.mp4")


def test_both_views_get_one_transform(memory):
    memory.frames_THWC = np.broadcast_to(
        memory.frames_THWC[:1], memory.frames_THWC.shape
    ).copy()  # a still: every frame the same
    pair = bound(size=6, area=(0.3, 0.9))
    seen = set()
    for seed in range(8):
        a, b = pair.sample({"path": "x"}, np.random.default_rng(seed))
        assert (a == b[:, :, None]).all()
        seen.add(b[0].numpy().tobytes())
    assert len(seen) > 5  # and it does change from draw to draw


OWN = [
    {"name": "random_resized_crop", "area": [0.5, 0.9]},
    {"name": "colour_jitter", "brightness": 0.5, "contrast": 0.5, "hue": 0.1, "p": 1.0},
]


@pytest.mark.parametrize("b", [OWN, None, "same"])
def test_views_of_their_own_are_drawn_once_for_a_window(memory, b):
    """On a still video: the frames of a clip are alike, and the frame after it is as `b` says."""
    memory.frames_THWC = np.broadcast_to(memory.frames_THWC[:1], memory.frames_THWC.shape).copy()
    pair = bound(size=12, windows=3, flip=0.0, a=OWN, b=b)
    clips, frames = pair.sample({"path": "x"}, np.random.default_rng(0))
    assert (clips == clips[:, :, :1]).all(), "one transform for all frames of a clip"
    assert len({clip.numpy().tobytes() for clip in clips}) == 3, "each window draws anew"
    alike = [bool(torch.equal(clip[:, 0], frame)) for clip, frame in zip(clips, frames)]
    assert alike == [b == "same"] * 3
    plain = pair.frames_of(memory("x"), [0])
    assert all(torch.equal(frame, plain[0]) for frame in frames) == (b is None)


def test_a_flip_is_common_to_views_of_their_own(memory):
    memory.frames_THWC = np.zeros_like(memory.frames_THWC)
    memory.frames_THWC[:, :, memory.frames_THWC.shape[2] // 2 :] = 255  # the right half is white
    own = [{"name": "random_resized_crop", "area": [0.9, 1.0]}]
    pair = bound(size=12, windows=2, flip=0.5, a=own, b=own)
    sides = set()
    for seed in range(12):
        clips, frames = pair.sample({"path": "x"}, np.random.default_rng(seed))
        seen = {bool(view[..., -1].float().mean() > 128) for view in (*clips, *frames)}
        assert len(seen) == 1
        sides |= seen
    assert sides == {True, False}


@pytest.mark.parametrize("frames, gap", [(1, 0), (1, 2)])
def test_a_clip_of_one_frame_is_a_picture(memory, frames, gap):
    memory.frames_THWC = numbered(40)
    a, b = bound(frames=frames, gap=gap, size=12, windows=3).sample({"path": "x"}, np.random.default_rng(0))
    assert a.shape == b.shape == (3, 3, 12, 12) and (b.int() - a.int() == gap).all()
    assert len(bound(frames=2, gap=0, seconds=0.1).possible_windows(info(np.arange(9) / 25), "x")) == 7


def test_views_spread_over_a_video_and_over_seconds_of_it(memory):
    memory.frames_THWC = numbered(40)  # at 25 frames a second
    pair = bound(frames=3, stride=1, gap=2, size=12)
    record = {"id": "x", "path": "x"}
    firsts = lambda views: [int(view.raw[0, 0].flatten()[0]) for view in views]
    clips = pair.spread(record, "a", 4)
    assert [view.raw.shape for view in clips] == [(1, 3, 3, 12, 12)] * 4
    assert firsts(clips) == [4, 13, 22, 31]  # the middles of four parts of 36 windows
    assert firsts(pair.spread(record, "b", 4)) == [8, 17, 26, 35] and clips[0].content == "x frames 4-6"
    assert firsts(pair.views(record, "a")) == [18] and firsts(pair.views(record, "b")) == [22]
    # whole clips within the frames 10 to 14: three of them
    assert firsts(pair.spread(record, "a", 3, (0.4, 0.6))) == [10, 11, 12]
    assert firsts(pair.spread(record, "a", 6, (0.4, 0.6))) == [10, 10, 11, 11, 12, 12]
    with pytest.raises(VideoError, match="x: no clip lies between 0.4 and 0.45 s"):
        pair.spread(record, "a", 3, (0.4, 0.45))


def test_centre_is_what_training_and_evaluation_look_at(memory):
    def seen(pair, frames):
        memory.frames_THWC = frames
        return pair.frames_of(memory("x"), [0])

    frames = np.zeros((1, 40, 60, 3), np.uint8)
    frames[:, 10:30, 20:40] = 255  # the square of half the shorter side, in the middle
    half = bound(size=20, centre=0.5)
    assert (seen(half, frames) == 255).all()
    corner = np.roll(frames, (-10, -20), (1, 2))
    assert (seen(bound(size=20, centre=0.5, at=(0.0, 0.0)), corner) == 255).all()
    frames[:, 10] = 0  # and not less than that square
    assert (seen(half, frames)[..., 0, :] == 0).all() and (seen(half, frames)[..., 1:, :] == 255).all()


def test_no_frame_after_the_context_reaches_the_clip(memory):
    """Changing every later frame leaves the clip, and so its embedding, bit-identical."""
    from vicjoint.modalities.image import Pixels

    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        Pixels(), torch.nn.Conv3d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    )
    pair = bound(frames=4, stride=2, gap=1, size=12, windows=1)
    a, b = pair.sample({"path": "x"}, np.random.default_rng(3))
    window = pair.draw(info(np.arange(40) / 25), np.random.default_rng(3), "x")[0]
    z = encoder(a)
    changed = memory.frames_THWC.copy()
    changed[window.context[-1] + 1 :] = 255 - changed[window.context[-1] + 1 :]
    memory.frames_THWC = changed
    a_after, b_after = pair.sample({"path": "x"}, np.random.default_rng(3))
    assert torch.equal(encoder(a_after), z) and not torch.equal(b_after, b)
    memory.frames_THWC = 255 - changed  # and the test can fail: changing the context does change it
    assert not torch.equal(encoder(pair.sample({"path": "x"}, np.random.default_rng(3))[0]), z)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_a_real_mp4_gives_its_frames(tmp_path, backend):
    frames = np.zeros((30, 48, 64, 3), np.uint8)
    for t in range(30):
        frames[t, :, :, :] = 8 * t
    write_mp4(tmp_path / "grey.mp4", frames)
    pair = bound(backend, frames=4, stride=3, gap=2, size=32, windows=3)
    a, b = pair.sample({"path": str(tmp_path / "grey.mp4")}, np.random.default_rng(0))
    shown = torch.cat([a.float().mean((1, 3, 4)), b.float().mean((1, 2, 3))[:, None]], 1) / 8
    steps = shown.round().diff(dim=1)
    assert steps.tolist() == [[3, 3, 3, 2]] * 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 0}, "pair.frames: 0 is too small"),
        ({"seconds": 0.0}, "pair.seconds: 0.0 is not a time"),
        (
            {"windows": 8, "stretch": 7},
            "pair.stretch: 7 frames cannot hold the starts of 8 different windows",
        ),
        ({"centre": 1.5}, "pair.centre: 1.5 is not a share of the frame's shorter side"),
        ({"area": (0.5, 0.2)}, r"pair.area: \[0.5, 0.2\] is not a range"),
    ],
)
def test_wrong_options_are_named(options, message):
    refused("pair", "next_frame", options, message)
