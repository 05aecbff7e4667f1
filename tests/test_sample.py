"""The sample world: scenes by rule, pictures that follow their factors, files that are whole or not there."""

import json
import os
import threading

import av
import numpy as np
import pytest
from wrong import refused

from vicjoint.files.cache import cache_root
from vicjoint.samples import videos, world
from vicjoint.samples.world import Background, Scene, Sprite
from vicjoint.video.write import RATE_FPS

SMALL = {"train": 3, "test": 2, "frames": 8, "size": 32, "seed": 0}
PLAIN = Background("stripes", (0, 0, 0), (0, 0, 0), period=10.0, angle=0.0, vx=0.0, vy=0.0)


def one_sprite(**factors) -> Scene:
    values = {
        "shape": "circle",
        "colour": "white",
        "texture": "plain",
        "size": 12.0,
        "x": 20.0,
        "y": 30.0,
        "vx": 2.5,
        "vy": -1.5,
        "angle": 0.3,
        "spin": 0.0,
        **factors,
    }
    return Scene("train", 0, PLAIN, (Sprite(**values),))


def mass_centre(frame_HWC: np.ndarray) -> tuple[float, float]:
    weight = frame_HWC.astype(float).sum(-1)
    axis = np.arange(len(weight)) + 0.5
    return (weight.sum(0) * axis).sum() / weight.sum(), (weight.sum(1) * axis).sum() / weight.sum()


def make(folder, **changes):
    videos.make_videos(folder, **{**SMALL, **changes}, progress=False)


def test_scene_and_picture_are_pure():
    first, again = (world.scene(7, "train", 11) for _ in range(2))
    assert first == again
    assert world.render(first, 6, 64).tobytes() == world.render(again, 6, 64).tobytes()


def test_scenes_differ_by_seed_split_and_index():
    places = [(seed, split, index) for seed in (0, 1) for split in world.SPLITS for index in range(20)]
    pictures = {world.render(world.scene(*place), 1, 32).tobytes() for place in places}
    assert len(pictures) == len(places)


def test_factors_stay_in_their_ranges():
    for index in range(200):
        sprites = world.scene(0, "test", index).sprites
        assert len(sprites) in (2, 3) and len({s.colour for s in sprites}) == len(sprites)
        for s in sprites:
            assert 10 <= s.size <= 22 and 1.499 < np.hypot(s.vx, s.vy) < 4.001
            for place in s.centre(np.arange(200)):
                assert place.min() >= s.size / 2 - 1e-9 and place.max() <= 64 - s.size / 2 + 1e-9


@pytest.mark.parametrize("shape", world.SHAPES)
def test_sprite_is_drawn_where_its_velocity_brings_it(shape):
    """At the start, in mid-flight, and after a bounce at the top (y 30 - 1.5 t turns at 6)."""
    video = world.render(one_sprite(shape=shape, vx=1.25, spin=0.1), 25, 64)
    for frame, expected in ((0, (20, 30)), (10, (32.5, 15)), (24, (50, 2 * 6 - (30 - 36)))):
        assert mass_centre(video[frame]) == pytest.approx(expected, abs=0.25)


def test_size_scales_the_picture():
    video = world.render(one_sprite(), 2, 128)
    assert video.shape == (2, 128, 128, 3) and video.dtype == np.uint8
    assert mass_centre(video[1]) == pytest.approx((2 * 22.5, 2 * 28.5), abs=0.3)
    assert (video[0] > 127).all(-1).sum() == pytest.approx(np.pi * 12**2, rel=0.03)


def test_colour_texture_spin_and_order_are_visible():
    red = world.render(one_sprite(colour="red"), 1, 64)[0, 29, 20]
    assert red.tolist() == list(world.COLOURS["red"])
    pictures = {world.render(one_sprite(texture=t), 1, 64).tobytes() for t in world.TEXTURES}
    assert len(pictures) == len(world.TEXTURES)
    still, turned = (
        world.render(one_sprite(shape="square", vx=0.0, vy=0.0, spin=s), 6, 64)[5] for s in (0.0, 0.12)
    )
    assert np.abs(still.astype(int) - turned).sum() > 1000
    front = one_sprite(colour="red").sprites + one_sprite(colour="blue").sprites
    assert world.render(Scene("train", 0, PLAIN, front), 1, 64)[0, 29, 20].tolist() == list(
        world.COLOURS["blue"]
    )


@pytest.mark.parametrize("pattern", world.PATTERNS)
def test_background_has_texture_and_drifts_only_when_told(pattern):
    def paint(vx):
        b = Background(pattern, (10, 10, 10), (200, 200, 200), period=12.0, angle=0.4, vx=vx, vy=0.0)
        return world.render(Scene("train", 0, b, ()), 9, 64).astype(int)

    assert paint(0.0)[0].std() > 20
    assert (paint(0.0)[8] == paint(0.0)[0]).all()
    moved = paint(0.25)  # 2 pixels after 8 frames
    assert np.abs(moved[8][:, 2:] - moved[0][:, :-2]).max() <= 1 and np.abs(moved[8] - moved[0]).max() > 20


def test_labels_say_what_moves_and_how():
    still = {"shape": "circle", "colour": "red", "texture": "plain", "angle": 0.0, "spin": 0.0}
    sprite = lambda **where: Sprite(**still | {"x": 32.0, "y": 32.0, "size": 10.0, "vx": 0.0} | where)
    found = videos.labels([sprite(vx=1.0, vy=0.5), sprite(size=20.0, vx=-0.3, vy=0.4, shape="cross")], 32)
    assert found["number"] == 2 and found["shape"] == "cross" and found["direction"] == "down"
    assert found["speed"] == pytest.approx((1.25**0.5 + 0.5) / 2)
    # one that starts to the right and bounces off the edge before the middle
    assert videos.labels([sprite(x=50.0, vx=1.0, vy=0.1)], 32)["direction"] == "left"
    assert videos.labels([sprite(x=50.0, vx=1.0, vy=0.1)], 8)["direction"] == "right"


def test_files_hold_the_rendered_frames(tmp_path):
    folder = tmp_path / "videos"
    make(folder, size=64, frames=20)
    records = world.read_factors(folder)
    assert [r["id"] for r in records] == [f"train/{i:05d}.mp4" for i in range(3)] + [
        f"test/{i:05d}.mp4" for i in range(2)
    ]
    for record in records:
        with av.open(record["path"]) as container:
            stream = container.streams.video[0]
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
            assert stream.average_rate == RATE_FPS and stream.codec_context.name == "h264"
        rendered = world.render(world.scene(0, record["split"], record["index"]), 20, 64)
        assert frames.shape == rendered.shape
        same = np.abs(frames.astype(int) - rendered).mean()
        shifted = np.abs(frames[1:].astype(int) - rendered[:-1]).mean()
        assert same < 8 and same < 0.7 * shifted  # a lossy copy, but of the right frame


def test_factors_rebuild_the_scene(tmp_path):
    make(tmp_path / "videos")
    record = world.read_factors(tmp_path / "videos")[4]
    expected = world.scene(0, "test", 1)
    assert tuple(Sprite(**s) for s in record["sprites"]) == expected.sprites
    background = Background(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in record["background"].items()}
    )
    assert background == expected.background


def test_complete_cache_is_reused(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    folder = videos.cached_videos(**SMALL)
    monkeypatch.setattr(videos, "write_mp4", lambda *a: pytest.fail("made again"))
    assert videos.cached_videos(**SMALL) == folder
    monkeypatch.undo()
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    assert videos.cached_videos(**{**SMALL, "seed": 1}) != folder
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_root_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("VICJOINT_CACHE")
    assert cache_root() == tmp_path / "xdg" / "vicjoint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "vicjoint"


def test_interrupted_build_leaves_nothing_to_use(tmp_path, monkeypatch):
    write, written = videos.write_mp4, []

    def interrupted(path, video):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, video)

    monkeypatch.setattr(videos, "write_mp4", interrupted)
    monkeypatch.setattr(world, "MAX_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "videos")
    assert len(written) == 3 and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    make(tmp_path / "videos")
    assert len(world.read_factors(tmp_path / "videos")) == 5


def test_killed_builds_are_cleared_after_a_day_and_not_before(tmp_path):
    for name, age_seconds in (("old", 2 * 86400), ("young", 60)):
        left = tmp_path / f"videos.building-{name}"
        left.mkdir()
        then = left.stat().st_mtime - age_seconds
        os.utime(left, (then, then))
    make(tmp_path / "videos")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["videos", "videos.building-young"]


def test_two_builds_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    both = threading.Barrier(2)
    give_name = world._give_name
    monkeypatch.setattr(world, "_give_name", lambda *a: (both.wait(timeout=30), give_name(*a)))
    errors = []

    def build():
        try:
            make(tmp_path / "videos")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["videos"]
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 5


@pytest.mark.parametrize("damage", ["no marker", "other numbers", "video gone", "broken marker"])
def test_damaged_folder_is_named_not_used(tmp_path, damage):
    folder = tmp_path / "videos"
    make(folder)
    marker = folder / world.MARKER
    if damage == "no marker":
        marker.unlink()
    elif damage == "other numbers":
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "seed": 5}))
    elif damage == "video gone":
        (folder / "test" / "00001.mp4").unlink()
    else:
        marker.write_text("{")
    with pytest.raises(world.SampleError, match=f"{folder} is not the complete set .* Delete it"):
        make(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": 0}, "train is 0, expected 1 or more"),
        ({"test": 0}, "test is 0"),
        ({"frames": 1}, "frames is 1, expected 2"),
        ({"size": 8}, "size is 8, expected 16"),
        ({"size": 33}, "size is 33, expected an even number"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_numbers(change, message):
    refused("source", "sample_videos", change, message)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        world.SampleError, match="cannot make the sample videos in .*file.*Set VICJOINT_CACHE"
    ):
        videos.cached_videos(**SMALL)


def test_progress_goes_to_stderr(tmp_path, capsys):
    videos.make_videos(tmp_path / "videos", **SMALL)
    shown = capsys.readouterr()
    assert "making sample videos" in shown.err and "5/5" in shown.err and shown.out == ""
