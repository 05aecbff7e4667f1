"""Images and clips as modalities: right pixels of real files, right seconds by timestamps, and simple
features."""

import copy
import pickle
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from wrong import refused

from vicjoint.files.kept import Kept
from vicjoint.modalities.image import Clip, Image, Pixels, duration
from vicjoint.transforms import squares
from vicjoint.video import VideoError, VideoInfo
from vicjoint.video.write import write_mp4


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def counting(tmp_path):
    """48 frames at 24 a second whose brightness is 5 times their number."""
    path = tmp_path / "counting.mp4"
    write_mp4(
        path, np.broadcast_to((5 * np.arange(48, dtype=np.uint8))[:, None, None, None], (48, 32, 48, 3))
    )
    return str(path)


def frame_numbers(view) -> list[int]:
    return (view.float().mean((0, 1, 3, 4)) / 5).round().int().tolist()


def test_image_with_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[5:15, 5:15] = (255, 0, 0, 255)
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    view = Image(size=20).read(str(tmp_path / "a.png"))
    assert view.shape == (1, 3, 20, 20) and view.dtype == torch.uint8
    assert view[0, :, 10, 10].tolist() == [255, 0, 0] and view[0, :, 1, 1].tolist() == [255, 255, 255]


def test_image_training_and_evaluation_views(tmp_path):
    Picture.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    path = str(tmp_path / "a.png")
    whole, middle, none = Image(size=16), Image(size=16, centre=0.5), Image(size=16, transforms=[])
    assert torch.equal(whole.read(path), whole.read(path)) and not torch.equal(
        middle.read(path), whole.read(path)
    )
    assert torch.equal(whole.read(path, rng(1)), whole.read(path, rng(1))) and not torch.equal(
        whole.read(path, rng(1)), whole.read(path, rng(2))
    )
    assert torch.equal(none.read(path, rng(1)), none.read(path))
    grey = Image(size=16, transforms=[{"name": "random_resized_crop"}, {"name": "greyscale", "p": 1.0}]).read(
        path, rng()
    )
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert whole(whole.read(path)).dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 4}, "size is 4, expected 8 or more"),
        ({"centre": 0.0}, "centre is 0.0, expected a share"),
        (
            {"transforms": [{"name": "greyscal"}]},
            "modality.transforms.0.name: no transform 'greyscal'. Did you mean 'greyscale'",
        ),
        ({"transforms": [{"name": "greyscale"}]}, "modality.transforms: no random_resized_crop"),
    ],
)
def test_wrong_image_options(options, message):
    refused("modality", "image", options, message)


def test_common_window_of_a_clip(counting):
    """At 24 frames a second, frame 15 is on display from 0.625 s on, the middle of the first quarter of [0.5,
    1.5] s."""
    clip = Clip(frames=4, size=16)
    assert clip.seconds(counting) == pytest.approx(2.0)
    for start in (0.5, 0.51, 0.53):
        assert frame_numbers(clip.read(counting, None, (start, 1.0))) == [15, 21, 27, 33]
    # evaluation: the middle
    assert frame_numbers(Clip(frames=4, size=16, window=1.0).read(counting)) == [15, 21, 27, 33]
    assert frame_numbers(Clip(frames=24, size=16).read(counting, None, (0.0, 1.0))) == list(range(24))
    # more than there are
    assert frame_numbers(Clip(frames=6, size=16).read(counting, None, (0.0, 3 / 24))) == [0, 0, 1, 1, 2, 2]


def test_clip_by_stride(counting):
    clip = Clip(frames=4, stride=5, size=16)
    assert frame_numbers(clip.read(counting)) == [16, 21, 26, 31]
    starts = {frame_numbers(clip.read(counting, rng(seed)))[0] for seed in range(60)}
    assert min(starts) <= 3 and max(starts) >= 29 and max(starts) <= 32
    with pytest.raises(VideoError, match="has 48 frames, 51 are needed"):
        Clip(frames=11, stride=5).read(counting)
    with pytest.raises(VideoError, match="is 2.00 s long, 2.5 s are needed .the modality's window"):
        Clip(window=2.5).read(counting)


def test_window_counts_from_the_start_of_the_file_and_by_timestamps():
    """A file whose pictures begin 0.2 s after its sound, with uneven steps: time 0 is the file's start, and a
    frame stays until the next."""
    times = 10.0 + np.array([0.2, 0.3, 0.35, 0.8, 0.9, 1.2])
    info = VideoInfo(6, 5.0, 8, 8, times, start_seconds=10.0)
    assert duration(info) == pytest.approx(1.4)
    # its middle, 10.85: the frame from 10.8 on
    assert Clip(frames=1)._numbers(info, None, (0.65, 0.4), "x") == [3]
    late = VideoInfo(6, 5.0, 8, 8, times, start_seconds=9.5)
    assert Clip(frames=1)._numbers(late, None, (0.65, 0.4), "x") == [2]


def test_start_of_a_file_whose_sound_comes_first(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        audio.sample_rate, audio.pts = 8000, 0
        container.mux(sound.encode(audio))
        for n in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * n, np.uint8), format="rgb24")
            frame.pts = n + 5  # 0.2 s
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
    assert Clip().seconds(str(path)) == pytest.approx(1.0, abs=0.02)
    numbers = Clip(frames=2, size=16).read(str(path), None, (0.2, 0.08))
    assert (numbers.float().mean((0, 1, 3, 4)) / 10).round().int().tolist() == [0, 1]


def test_one_crop_for_all_frames_of_a_clip(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    write_mp4(tmp_path / "still.mp4", np.repeat(picture, 12, 0))
    clip = Clip(frames=4, stride=1, size=16, area=(0.3, 0.5), flip=0.5)
    for seed in range(4):
        view = clip.read(str(tmp_path / "still.mp4"), rng(seed)).float()
        assert (view - view[:, :, :1]).abs().mean() < 12
    assert (
        clip.read(str(tmp_path / "still.mp4"), rng(0)).float()
        - clip.read(str(tmp_path / "still.mp4"), rng(1)).float()
    ).abs().mean() > 20


def test_the_square_of_a_clip_lies_where_it_is_asked_for(tmp_path):
    picture = np.zeros((1, 32, 48, 3), dtype=np.uint8)
    picture[:, 20:28, 8:16] = 255  # its middle at a quarter of the width and three quarters of the height
    write_mp4(tmp_path / "still.mp4", np.repeat(picture, 12, 0))
    read = lambda seed, **where: (
        Clip(frames=2, stride=1, size=8, centre=0.25, **where).read(str(tmp_path / "still.mp4"), seed).float()
    )
    assert (
        read(None, at=(0.25, 0.75)).mean() > 240
        and read(rng(0), at=(0.25, 0.75), area=(0.5, 1.0)).mean() > 240
    )
    assert read(None).mean() < 15 and read(None, at=(0.75, 0.25)).mean() < 15
    assert read(None, at=(0.0, 1.0)).shape == (1, 3, 2, 8, 8)  # as near to the corner as the frame allows


def test_transforms_of_a_clip_are_drawn_once_for_all_frames(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3), dtype=np.uint8)
    write_mp4(tmp_path / "still.mp4", np.repeat(picture, 12, 0))
    own = [
        {"name": "random_resized_crop", "area": [0.3, 0.6]},
        {"name": "colour_jitter", "hue": 0.5, "p": 1.0},
    ]
    options = {"frames": 4, "stride": 2, "size": 16, "area": (1.0, 1.0)}
    clip, plain = Clip(**options, transforms=own), Clip(**options)
    path = str(tmp_path / "still.mp4")
    one, other = (clip.read(path, rng(seed)).float() for seed in (1, 2))
    assert (one - one[:, :, :1]).abs().max() < 12 and (one - other).abs().mean() > 20  # the codec's noise
    assert torch.equal(clip.read(path), plain.read(path)) and not torch.equal(
        one.byte(), plain.read(path, rng(1))
    )


def test_a_clip_is_decoded_by_the_backend_of_the_recipe(counting, monkeypatch):
    asked, video = [], squares.Video
    monkeypatch.setattr(squares, "Video", lambda path, *how: asked.append(how) or video(path, *how))
    clip = Clip(frames=2, size=16)
    clip.video_backend, clip.frame_rate = "pyav", 12.5
    clip.read(counting)
    assert asked == [("pyav", 12.5)]


@pytest.mark.parametrize(
    "options",
    [{"window": 0.5}, {"stride": 3}, {"window": 0.5, "reduce": 20}, {"stride": 2, "reduce": 16}],
    ids=str,
)
def test_kept_squares_give_the_same_views_without_decoding(counting, tmp_path, monkeypatch, options):
    options = {
        "frames": 4,
        "size": 16,
        "centre": 0.8,
        "at": (0.4, 0.6),
        "area": (0.3, 0.8),
        "flip": 0.5,
        **options,
    }
    plain, keeping = Clip(**options), Clip(**options, cache_mb=1)
    second = str(tmp_path / "second.mp4")
    shutil.copy(counting, second)
    windows = (None, None, None) if "window" in options else (None, (0.1, 0.7), (0.33, 0.2))
    seeds = [
        (value, seed, window)
        for seed, (value, window) in enumerate(zip((counting, counting, second), windows))
    ]
    for value, seed, window in seeds:
        assert torch.equal(plain.read(value, rng(seed), window), keeping.read(value, rng(seed), window))
    expected = [plain.read(value, rng(seed + 9), window) for value, seed, window in seeds]
    monkeypatch.setattr(squares, "Video", lambda *_: pytest.fail("decoded again"))
    for (value, seed, window), view in zip(seeds, expected):
        assert torch.equal(view, keeping.read(value, rng(seed + 9), window))
    assert not torch.equal(keeping.read(counting, rng(3)), keeping.read(counting, rng(4)))
    monkeypatch.undo()
    of_one = keeping.squares.kept.get(counting)[1]
    assert (
        of_one.untyped_storage().nbytes() == of_one.nbytes
        and 2**20 - keeping.squares.kept.room == 2 * of_one.nbytes
    )
    assert "reduce" not in options or of_one.shape[-1] == options["reduce"]
    keeping.squares.kept = Kept(1)
    keeping.squares.kept.room = of_one.nbytes  # for one
    for value in (counting, second):
        assert torch.equal(plain.read(value, rng(5)), keeping.read(value, rng(5)))
    assert keeping.squares.kept.get(second) is None and keeping.squares.kept.room == 0


def test_what_does_not_fit_or_is_damaged_is_read_frame_by_frame(counting, tmp_path, monkeypatch):
    options = {"frames": 2, "stride": 1, "size": 16}
    expected = Clip(**options).read(counting)
    asked, read = [], squares.Video.read
    monkeypatch.setattr(
        squares.Video,
        "read",
        lambda self, numbers, part: asked.append(list(numbers)) or read(self, numbers, part),
    )
    clip = Clip(**options, cache_mb=1)
    clip.squares.kept.room = 3 * 48 * 32 * 32 - 1
    assert torch.equal(clip.read(counting), expected) and asked == [[23, 24]] and len(clip.squares.kept) == 0
    clip.squares.kept.room += 1
    monkeypatch.setattr(squares, "MOST_DECODED", 3 * 48 * 32 * 32 - 1)
    assert torch.equal(clip.read(counting), expected) and asked == [[23, 24]] * 2
    monkeypatch.setattr(squares, "MOST_DECODED", 3 * 48 * 32 * 32)
    assert (
        torch.equal(clip.read(counting), expected)
        and asked[2:] == [list(range(48))]
        and clip.squares.kept.room == 0
    )

    def damaged(self, numbers, part):
        if 40 in numbers:
            raise VideoError("frame 40 is damaged")
        return read(self, numbers, part)

    clip = Clip(**options, cache_mb=1)
    monkeypatch.setattr(squares.Video, "read", damaged)
    assert torch.equal(clip.read(counting), expected) and len(clip.squares.kept) == 0


def test_copies_share_what_is_kept_and_other_processes_begin_with_nothing(counting):
    clip = Clip(frames=2, size=16, cache_mb=1)
    copied = copy.deepcopy(clip)
    copied.read(counting)
    assert clip.squares.kept is copied.squares.kept and len(clip.squares.kept) == 1
    one, other = pickle.loads(pickle.dumps((clip, copied)))
    assert (
        one.squares.kept is other.squares.kept
        and len(one.squares.kept) == 0
        and one.squares.kept.room == 2**20
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 0}, "frames is 0, expected 1 or more"),
        ({"window": 0.0}, "window is 0.0, expected a number of seconds"),
        ({"area": (0.5, 0.2)}, r"area is \[0.5, 0.2\], expected"),
        ({"size": 2}, "size is 2"),
        ({"reduce": 20, "size": 24}, r"reduce is 20, expected the view's size \(24\) or more, or null"),
        ({"cache_mb": -1}, "cache_mb is -1, expected a number of megabytes"),
        ({"at": (0.5, 1.5)}, r"at is \[0.5, 1.5\], expected \[x, y\], shares of the width"),
    ],
)
def test_wrong_clip_options(options, message):
    refused("modality", "clip", options, message)


def test_simple_features_are_coarse_pixels():
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = x.double().reshape(2, 3, 32, 2, 32, 2).mean((3, 5)).flatten(1) / 255
    assert torch.allclose(Pixels().simple_features(x).double(), expected, atol=1e-6)
    assert Pixels().simple_features(x[..., :20, :20]).shape == (2, 3 * 20 * 20)
    assert Clip().simple_features(x[:, :, None].expand(2, 3, 16, 64, 64)).shape == (2, 3 * 8 * 16 * 16)
    assert Pixels.baseline == "pixels"
