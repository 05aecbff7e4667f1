"""Sources: which files are listed, in which split, and what a user reads when a root or a table is wrong."""

import hashlib
import os
from pathlib import Path

import pytest
from wrong import refused

from vicjoint.samples.videos import SampleVideos
from vicjoint.sources.base import SourceError
from vicjoint.sources.table import Table
from vicjoint.sources.video_folder import VideoFolder

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def table(folder: Path, text: str, *files: str) -> str:
    touch(folder, *files)
    (folder / "index.csv").write_text(text, encoding="utf-8")
    return str(folder / "index.csv")


def ids(records: list[dict]) -> list[str]:
    return [r["id"] for r in records]


# ---- sample videos ----


def test_sample_videos(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    source = SampleVideos(train=3, test=2, frames=4, size=32, seed=0)
    assert ids(source.train) == [f"train/{i:05d}.mp4" for i in range(3)] and len(source.test) == 2
    assert all(Path(r["path"]).is_file() and os.path.isabs(r["path"]) for r in source.train + source.test)
    assert {"shape", "colour", "vx"} <= set(source.test[0]["sprites"][0]) and "pattern" in source.test[0][
        "background"
    ]
    assert source.describe() == f"sample_videos {source.root}: 3 train, 2 test videos"


def test_sample_videos_with_wrong_numbers():
    refused("source", "sample_videos", {"size": 33})


# ---- video folder ----


def test_lists_every_kind_of_video_and_skips_hidden(tmp_path):
    videos = ["a.MP4", "b.mkv", "c/d.webm", "c/e.avi", "c/f/g.mpg", "h.mpeg", "i.Mov", "j.m4v"]
    touch(tmp_path, *videos, ".hidden.mp4", ".cache/x.mp4", "notes.txt", "k.mp4.part")
    source = VideoFolder(str(tmp_path))
    assert sorted(ids(source.train) + ids(source.test)) == sorted(videos)
    assert all(r["path"] == str(tmp_path / r["id"]) for r in source.train + source.test)
    passed = "passed over: 2 hidden, 1 .part, 1 .txt"
    assert source.describe() == f"video_folder {tmp_path}: 7 train, 1 test videos; {passed}"


@pytest.mark.parametrize("other", ["test", "val", "Validation", "valid", "dev", "EVAL", "testing"])
def test_split_folders(tmp_path, other):
    touch(tmp_path, "Train/a.mp4", "Train/x/b.mp4", f"{other}/c.mp4", "extra/d.mp4", "e.mp4")
    source = VideoFolder(str(tmp_path))
    assert (ids(source.train), ids(source.test)) == (["Train/a.mp4", "Train/x/b.mp4"], [f"{other}/c.mp4"])
    assert source.describe().endswith(": 2 train, 1 test videos (2 outside the split folders left out)")


def test_train_folder_alone_is_no_split(tmp_path):
    touch(tmp_path, *(f"train/{i}.mp4" for i in range(10)), *(f"more/{i}.mp4" for i in range(10)))
    source = VideoFolder(str(tmp_path))
    assert (len(source.train), len(source.test)) == (17, 3)


def test_hash_split_is_exact_stable_and_by_relative_path(tmp_path):
    names = [f"{i}.mp4" for i in range(40)]
    source, moved = (
        VideoFolder(str(touch(tmp_path / place, *names)), test_fraction=0.25) for place in ("here", "there")
    )
    expected = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())[:10]
    assert ids(source.test) == ids(moved.test) == sorted(expected)
    assert ids(source.train) == sorted(set(names) - set(expected))


@pytest.mark.parametrize(
    "n, fraction, tests", [(2, 0.01, 1), (2, 0.99, 1), (3, 0.9, 2), (20, 0.15, 3), (100, 0.15, 15)]
)
def test_each_side_gets_at_least_one(tmp_path, n, fraction, tests):
    source = VideoFolder(str(touch(tmp_path, *(f"{i}.mp4" for i in range(n)))), test_fraction=fraction)
    assert (len(source.train), len(source.test)) == (n - tests, tests)


def test_one_video_is_not_enough(tmp_path):
    with pytest.raises(SourceError, match=r"only one file \(a.mp4\), expected two or more"):
        VideoFolder(str(touch(tmp_path, "a.mp4")))


def test_wrong_roots(tmp_path):
    touch(tmp_path, "file.mp4")
    with pytest.raises(SourceError, match="root .*absent does not exist"):
        VideoFolder(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="file.mp4 is a file, expected a folder. Give its folder"):
        VideoFolder(str(tmp_path / "file.mp4"))


def test_no_videos_says_what_is_there(tmp_path):
    touch(tmp_path / "some", "a.jpg", "b.JPG", "c.txt", "README")
    (tmp_path / "some" / "link").symlink_to(tmp_path)
    expected = (
        "Passed over: 2 .jpg, 1 without ending, 1 .txt, 1 link to a folder that is listed .link/some."
        ".*Expected files ending in"
    )
    with pytest.raises(SourceError, match=expected):
        VideoFolder(str(tmp_path / "some"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no video below .*empty. It has no files"):
        VideoFolder(str(tmp_path / "empty"))


def test_empty_split_folder(tmp_path):
    touch(tmp_path, "train/a.mp4", "test/notes.txt", "b.mp4")
    with pytest.raises(SourceError, match="has split folders, but no video in its test part"):
        VideoFolder(str(tmp_path))


def test_linked_file_in_both_splits(tmp_path):
    touch(tmp_path, "train/a.mp4", "test/b.mp4")
    (tmp_path / "test" / "c.mp4").symlink_to(tmp_path / "train" / "a.mp4")
    with pytest.raises(SourceError, match="train/a.mp4 in train and test/c.mp4 in test are the same file"):
        VideoFolder(str(tmp_path))


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "locked/b.mp4")
    scandir = os.scandir

    def guarded(folder):  # a mode of 0 would not stop a test that runs as root
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    touch(tmp_path, "c.mp4")
    said = "1 train, 1 test videos; passed over: 1 folder that cannot be read (locked: Permission denied)"
    for _ in range(2):  # also from the index
        assert VideoFolder(str(tmp_path)).describe().endswith(said)
    monkeypatch.undo()
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / ".cache"))
    assert VideoFolder(str(tmp_path)).describe().endswith(": 2 train, 1 test videos")


@pytest.mark.parametrize("source", [VideoFolder, Table])
@pytest.mark.parametrize("fraction", [0, 1, -0.1, 15])
def test_wrong_fraction(tmp_path, source, fraction):
    name = {VideoFolder: "video_folder", Table: "table"}[source]
    refused("source", name, {"root": str(tmp_path), "test_fraction": fraction})


# ---- table ----


def test_table_with_splits(tmp_path):
    text = 'name,path,split\nx,v/a.mp4,train\ny,v/b.mp4,Val\nz,v/c.mp4,test\n"w, w",absent.mp4,validation\n'
    source = Table(table(tmp_path, text, "v/a.mp4", "v/b.mp4", "v/c.mp4"))
    assert source.train == [
        {
            "id": "v/a.mp4",
            "path": str(tmp_path / "v/a.mp4"),
            "folder": str(tmp_path),
            "name": "x",
            "split": "train",
        }
    ]
    assert [(r["id"], r["name"]) for r in source.test] == [
        ("v/b.mp4", "y"),
        ("v/c.mp4", "z"),
        ("absent.mp4", "w, w"),
    ]
    assert source.describe() == f"table {tmp_path}/index.csv: 1 train, 3 test records"


def test_table_paths(tmp_path):
    """Absolute, out of the folder, and odd spellings of one file, whose rows are on one side."""
    touch(tmp_path, "far.mp4")
    text = f"id,video,path\n1,../far.mp4,p\n2,{tmp_path}/t/a.mp4,q\n3,./x/../a.mp4,r\n"
    source = Table(table(tmp_path / "t", text, "a.mp4"), column="video", test_fraction=0.5)
    records = sorted(source.train + source.test, key=lambda r: r["table_id"])
    assert ids(records) == ["../far.mp4", "a.mp4", "a.mp4 (2)"]
    assert [r["path"] for r in records] == [str(tmp_path / "far.mp4")] + [str(tmp_path / "t" / "a.mp4")] * 2
    assert [(r["table_id"], r["table_path"]) for r in records] == [("1", "p"), ("2", "q"), ("3", "r")]
    assert {len(source.train), len(source.test)} == {1, 2}  # the rows of a.mp4 are on one side


def test_table_without_splits_splits_as_the_folder_does(tmp_path):
    names = [f"{i}.mp4" for i in range(20)]
    source = Table(table(tmp_path, "\n".join(["path", *names]), *names))
    folder = VideoFolder(str(tmp_path))
    assert len(source.test) == 3 and sorted(ids(source.test)) == ids(folder.test)


def test_table_with_byte_order_mark(tmp_path):
    touch(tmp_path, "é.mp4", "b.mp4")
    (tmp_path / "index.csv").write_text("path\né.mp4\nb.mp4\n", encoding="utf-8-sig")
    source = Table(str(tmp_path / "index.csv"))
    assert sorted(ids(source.train) + ids(source.test)) == ["b.mp4", "é.mp4"]


@pytest.mark.parametrize(
    "text, options, message",
    [
        (
            "path,label\na.mp4,1\nb.mp4,2\n",
            {"column": "paht"},
            "no column 'paht' .option column.. Did you mean 'path'\\? Columns: path, label",
        ),
        (
            "path,fold\na.mp4,1\nb.mp4,2\n",
            {"split": "folds"},
            "no column 'folds' .option split.. Did you mean 'fold'",
        ),
        (
            "path,split\na.mp4,train\nb.mp4,holdout\n",
            {},
            "line 3: split is 'holdout', expected one of train, training, test, testing, val, valid,",
        ),
        ("path,split\na.mp4,train\nb.mp4,train\n", {}, "no row of column 'split' says test"),
        ("path,split\na.mp4,val\nb.mp4,test\n", {}, "no row of column 'split' says train"),
        ("path,split\na.mp4,train\n./a.mp4,test\n", {}, "a.mp4 in train and a.mp4 in test are the same file"),
        ("path,label\n ,1\nnan,2\n", {}, "none of the first 2 files exists, the first is an empty cell"),
        ("path,label\na.mp4,1\nb.mp4\n", {}, "line 3: 1 fields, the header has 2"),
        ("path,label\na.mp4,1,2\nb.mp4,1\n", {}, "line 2: 3 fields, the header has 2"),
        ("path,path\na.mp4,1\n", {}, "two columns named 'path'"),
        ("path\na.mp4\n", {}, "only one file .a.mp4., expected two or more"),
        ("path\na.mp4\n./a.mp4\n", {}, "only one file .a.mp4., expected two or more"),
        (
            "path\nx.mp4\ny.mp4\n",
            {},
            "none of the first 2 files exists, the first is /.*/x.mp4. Paths are relative",
        ),
        ("path,label\n", {}, "is empty, expected a header line"),
        ("", {}, "is empty, expected a header line"),
    ],
)
def test_wrong_tables(tmp_path, text, options, message):
    with pytest.raises(SourceError, match=message):
        Table(table(tmp_path, text, "a.mp4", "b.mp4"), **options)


def test_one_present_file_in_a_hundred_is_enough(tmp_path):
    names = [f"{i}.mp4" for i in range(150)]
    assert len(Table(table(tmp_path, "\n".join(["path", *names]), "99.mp4")).train) == 128
    (tmp_path / "99.mp4").rename(tmp_path / "100.mp4")
    with pytest.raises(SourceError, match="none of the first 100 files exists"):
        Table(str(tmp_path / "index.csv"))


def test_wrong_table_files(tmp_path):
    with pytest.raises(SourceError, match="absent.csv does not exist"):
        Table(str(tmp_path / "absent.csv"))
    touch(tmp_path, "one.csv")
    with pytest.raises(
        SourceError, match="is a folder, expected a csv, tsv, json, jsonl or parquet .*. Found there: one.csv"
    ):
        Table(str(tmp_path))
    (tmp_path / "one.csv").write_bytes("path\né.mp4\n".encode("latin-1"))
    with pytest.raises(SourceError, match="is not UTF-8: .* at byte 5. Save it as UTF-8"):
        Table(str(tmp_path / "one.csv"))


def test_real_table():
    index = SHARED / "grid_av" / "index.csv"
    if not index.exists():
        pytest.skip("no shared data")
    source = Table(str(index), column="video")
    assert (len(source.train), len(source.test)) == (498, 102)
    assert source.train[0]["text"] == "bin blue at f three soon" and Path(source.train[0]["path"]).is_file()
