"""Pictures that are a video: folders, numbered patterns and tiffs, wherever a video file may stand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import vicjoint.video
from vicjoint.check import main as check
from vicjoint.embed import main as embed
from vicjoint.embeddings.previews import Previews
from vicjoint.explore import main as explore
from vicjoint.files.films import pictures
from vicjoint.modalities.image import Clip
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.registry import build
from vicjoint.run import main as run
from vicjoint.sources.base import SourceError
from vicjoint.video import Video, VideoError
from vicjoint.video.write import write_mp4

HEIGHT, WIDTH = 24, 32


def frames(count: int = 12, seed: int = 0) -> np.ndarray:
    """uint8 [count, H, W, 3]; the mean of each tells its number."""
    base = np.random.default_rng(seed).integers(0, 20, (1, HEIGHT, WIDTH, 3))
    return (base + 10 * np.arange(count)[:, None, None, None]).astype(np.uint8)


def write_folder(path, count: int = 12, name: str = "frame_{}.png", seed: int = 0):
    """Pictures numbered from 1."""
    path.mkdir(parents=True)
    for number, frame in enumerate(frames(count, seed), 1):
        Image.fromarray(frame).save(path / name.format(number))
    return path


def write_tiff(path, count: int = 12, seed: int = 0):
    first, *others = map(Image.fromarray, frames(count, seed))
    first.save(path, save_all=True, append_images=others)
    return path


# ---- reading ----


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    folder = write_folder(tmp_path / "f")
    (folder / "times.txt").write_text("0")
    (folder / ".DS_Store").write_text("x")
    with Video(folder, frame_rate=10.0) as video:
        assert (video.info.frames, video.info.fps, video.info.height, video.info.width) == (12, 10.0, 24, 32)
        assert np.allclose(video.info.timestamps_seconds, np.arange(12) / 10)
        assert np.array_equal(video.read([11, 0, 2, 2]), frames()[[11, 0, 2, 2]])
        assert np.array_equal(list(video.each([1, 5])), frames()[[1, 5]])
        with pytest.raises(VideoError, match="there is no frame 12; 12 frames exist"):
            video.read([12])


def test_numbered_patterns_and_tiffs(tmp_path):
    folder = write_folder(tmp_path / "f", name="left_{:03d}.png")
    write_folder(tmp_path / "g", name="right_{:03d}.png", seed=1)
    for other in (tmp_path / "g").iterdir():
        shutil.move(other, folder)
    for path in (folder / "left_%03d.png", folder / "left_%d.png", write_tiff(tmp_path / "s.TIFF")):
        assert np.array_equal(vicjoint.video.read(path, range(12), "decord"), frames()), path
    with pytest.raises(VideoError, match=r"names of several kinds \(left_001.png, right_001.png\)"):
        Video(folder)


def test_grey_pictures_become_rgb(tmp_path):
    folder = tmp_path / "radar"
    folder.mkdir()
    for number in range(3):
        grey = np.full((8, 8), 40 * number, np.uint8)
        Image.fromarray(grey).save(folder / f"20160928{1455 + number * 5}.png")
    assert vicjoint.video.read(folder, [0, 2])[:, 0, 0].tolist() == [[0, 0, 0], [80, 80, 80]]


@pytest.mark.parametrize(
    "numbers, message",
    [
        ([1, 2, 3, 5, 8], r"3 of its pictures are missing, the first after 3.png \(the next is 5.png\)"),
        ([1, 2, 4], r"1 of its pictures are missing"),
        ([5, 10, 15, 20], None),
        ([1455, 1500, 1505], None),  # times
    ],
)
def test_gaps(numbers, message, tmp_path):
    for number in numbers:
        (tmp_path / f"{number}.png").touch()
    if message is None:
        assert pictures(str(tmp_path)) == [f"{number}.png" for number in numbers]
        return
    with pytest.raises(ValueError, match=message):
        pictures(str(tmp_path))


def break_frame(folder):
    path = folder / "frame_7.png"
    path.write_bytes(path.read_bytes()[:60])


def shrink_frame(folder):
    Image.new("RGB", (16, 8)).save(folder / "frame_7.png")


@pytest.mark.parametrize(
    "change, message",
    [
        (break_frame, r"f: frame 6 \(frame_7.png\): cannot be decoded"),
        (shrink_frame, r"f: frame 6 \(frame_7.png\) is 16x8, the first frame 32x24"),
        (lambda f: (f / "frame_7.png").write_bytes(b""), r"f: frame 6 \(frame_7.png\): .*empty"),
        (
            lambda f: shutil.copy(f / "frame_7.png", f / "frame_07.png"),
            "frame_07.png and frame_7.png have one",
        ),
        (
            lambda f: Image.new("L", (4, 4)).save(f / "cover.jpg"),
            r"names of several kinds \(cover.jpg, frame_1.png",
        ),
        (
            lambda f: [p.unlink() for p in f.glob("frame_*")],
            "f: a folder, not a video file, and no film: no pict",
        ),
        (lambda f: [p.unlink() for p in f.glob("frame_*") if "_1." not in p.name], "film: 1 picture in it"),
    ],
)
def test_bad_frames_are_named(change, message, tmp_path):
    folder = write_folder(tmp_path / "f")
    change(folder)
    with pytest.raises(VideoError, match=message):
        vicjoint.video.read(folder, range(12))


def test_bad_patterns_and_tiffs(tmp_path):
    write_folder(tmp_path / "f")
    Image.new("RGB", (4, 4)).save(tmp_path / "one.tif")
    (tmp_path / "cut.tif").write_bytes(write_tiff(tmp_path / "whole.tif").read_bytes()[:3000])
    (tmp_path / "no.tif").write_text("text")
    for path, message in {
        "f/picture_%d.png": r"picture_%d.png: no pictures of this pattern, expected two or more",
        "g/%d.png": "g/%d.png: No such file",
        "one.tif": "one.tif: the tiff has one page; expected a video",
        "no.tif": "no.tif: not a readable tiff",
        "gone.tif": "gone.tif: no such file",
        "cut.tif": "cut.tif: ",
    }.items():
        with pytest.raises(VideoError, match=message):
            vicjoint.video.read(tmp_path / path, [0, 11])


def test_a_changed_folder_is_listed_again(tmp_path):
    folder = write_folder(tmp_path / "f", 4)
    assert len(vicjoint.video.read(folder, range(4))) == 4
    Image.fromarray(frames()[4]).save(folder / "frame_5.png")
    assert len(vicjoint.video.read(folder, range(5))) == 5


# ---- what reads videos ----


def test_clips_and_pairs_read_them_as_files(tmp_path):
    """The same frames, written as an mp4 without loss of time, give clips of the same moments."""
    folder, tiff = write_folder(tmp_path / "f"), write_tiff(tmp_path / "s.tif")
    clip = Clip(frames=3, stride=2, size=16)
    assert torch.equal(clip.read(str(folder)), clip.read(str(tiff)))
    clip.frame_rate = 12.0
    assert clip.seconds(str(folder)) == 1.0
    starts = [span for span, _ in clip.slide(str(folder), 0.25).spans]
    assert starts == [0.0, 0.25, 0.5] and clip.read(str(folder), None, (0.5, 0.25)).shape == (1, 3, 3, 16, 16)
    pair = NextFrame(frames=3, stride=1, size=16, windows=2, cache_mb=1)
    for path in (folder, tiff):
        a, b = pair.sample({"id": "x", "path": str(path)}, np.random.default_rng(0))
        assert a.shape == (2, 3, 3, 16, 16) and b.shape == (2, 3, 16, 16)
        means = torch.cat([a.float().mean((1, 3, 4)), b.float().mean((1, 2, 3))[:, None]], 1)
        assert torch.allclose(means.diff(dim=1), torch.tensor(10.0), atol=0.5)


def test_video_folder_lists_them(tmp_path):
    root = tmp_path / "root"
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            write_folder(root / part / f"clip{number}", 3)
    write_tiff(root / "train" / "stack.tif")
    Image.new("RGB", (4, 4)).save(root / "train" / "poster.tif")
    (root / "train" / "clip0" / "notes.txt").write_text("x")
    (root / "train" / "film").mkdir()
    write_mp4(root / "train" / "film" / "a.mp4", frames())
    for number in range(2):
        Image.new("RGB", (4, 4)).save(root / "train" / "film" / f"thumbnail{number}.png")
    (root / "train" / "stacks").mkdir()
    for number in range(2):
        write_tiff(root / "train" / "stacks" / f"{number}.tif", seed=number)
    source = build("source", {"name": "video_folder", "root": str(root)})
    assert [r["id"] for r in source.train] == [
        *("train/clip0", "train/clip1", "train/clip2", "train/film/a.mp4", "train/stack.tif"),
        *("train/stacks/0.tif", "train/stacks/1.tif"),
    ]
    assert [r["id"] for r in source.test] == ["test/clip0", "test/clip1"]
    assert source.describe().endswith("; passed over: 2 .png, 1 .tif, 1 .txt")
    write_folder(root / "test" / "clip2", 3)
    assert len(build("source", {"name": "video_folder", "root": str(root)}).test) == 3
    with pytest.raises(SourceError, match="clip1 is a folder of pictures, which are one video"):
        build("source", {"name": "video_folder", "root": str(root / "train" / "clip1")})


def recipe(folder, **changes):
    found = {
        "name": "f",
        "source": {"name": "video_folder", "root": "clips"},
        "pair": {"name": "next_frame", "frames": 2, "stride": 1, "size": 16, "windows": 2},
        "a": {"modality": "clip", "encoder": {"name": "conv_gru", "width": 4}, "expander": [8]},
        "b": {"modality": "next_frame", "encoder": {"name": "conv", "width": 4}, "expander": [8]},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
        "data": {"workers": 0, "frame_rate": 10, "max_bad_fraction": 0.5},
        "evaluate": {"probes": [{"name": "next_frame_retrieval", "candidates": 4}]},
        **changes,
    }
    (folder / "f.yaml").write_text(json.dumps(found))


def test_a_run_and_what_follows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_folder(tmp_path / "clips" / f"c{number}", 10, seed=number)
    (tmp_path / "clips" / "c5" / "frame_4.png").unlink()
    recipe(tmp_path)
    assert check(["f.yaml"]) == 1
    assert "1 of its pictures are missing, the first after frame_3.png" in capsys.readouterr().out
    assert run(["f.yaml", "out=r"]) == 0
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())

    shutil.rmtree(tmp_path / "clips" / "c5")
    (tmp_path / "t.csv").write_text("path\nclips/c1\nclips/c2/frame_%d.png\n")
    for data, to, rows in (("clips", "all", 25), ("clips/c1", "one", 5), ("t.csv", "table", 10)):
        assert embed(["r", data, "--to", f"{to}.parquet", "--every", "0.2"]) == 0, data
        table = parquet.read_table(f"{to}.parquet")
        assert table.num_rows == rows and table["start_seconds"][1].as_py() == pytest.approx(0.2)
    assert explore(["table.parquet", "--to", "map"]) == 0
    assert len(list((tmp_path / "map").rglob("*.mp4"))) == 10

    with Previews(tmp_path, "clip", "file", 10.0) as previews:
        row = {"item": str(tmp_path / "clips" / "c1"), "start_seconds": 0.5, "end_seconds": 0.9}
        assert previews.write("x", row).clip == "x.mp4"
    with Video(tmp_path / "x.mp4") as video:
        assert video.read([0]).mean() == pytest.approx(frames(10, 1)[5].mean(), abs=4)
