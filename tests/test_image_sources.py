"""Folders of images: layouts, splits, labels, the cached index; and what a user reads when something is
wrong."""

import os
import pickle
import time

import pytest
from wrong import refused

from vicjoint.files import images
from vicjoint.files.folder import Walk
from vicjoint.samples import world
from vicjoint.samples.images import SampleImages
from vicjoint.sources import folder
from vicjoint.sources.base import SourceError
from vicjoint.sources.image_folder import FileRecords, ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return str(root)


def pairs(records):
    return [(r["id"], r["label"]) for r in records]


def test_splits_and_classes_of_imagenets_layout(tmp_path):
    root = touch(
        tmp_path / "in",
        "train/n01/a.JPEG",
        "train/n02/deep/er/b.png",
        "val/n01/c.jpg",
        "val/loose.jpg",
        "extra/d.jpg",
        "train/n01/.x.jpg",
        "t.txt",
    )
    source = ImageFolder(root)
    assert pairs(source.train) == [("train/n01/a.JPEG", "n01"), ("train/n02/deep/er/b.png", "n02")]
    assert pairs(source.test) == [("val/loose.jpg", None), ("val/n01/c.jpg", "n01")]
    assert source.train[-1]["path"] == os.path.join(root, "train/n02/deep/er/b.png")
    assert (
        source.describe()
        == f"image_folder {root}: 2 train, 2 test images of 2 classes (1 outside the split folders left out);"
        " passed over: 1 .txt, 1 hidden"
    )


def test_one_tree_of_classes_is_split_by_hash_and_a_flat_folder_has_no_labels(tmp_path):
    tree = ImageFolder(touch(tmp_path / "tree", *(f"{c}/{i}.webp" for c in "ab" for i in range(10))))
    assert (len(tree.train), len(tree.test)) == (17, 3) and {r["label"] for r in tree.train} == {"a", "b"}
    flat = ImageFolder(touch(tmp_path / "flat", *(f"{i}.jpg" for i in range(10))), test_fraction=0.2)
    assert (len(flat.train), len(flat.test)) == (8, 2) and all(r["label"] is None for r in flat.train)
    assert flat.describe().endswith(": 8 train, 2 test images, no classes")


def test_the_index_is_used_until_a_folder_changes(tmp_path, monkeypatch):
    root = touch(tmp_path / "in", *(f"{c}/{i}.jpg" for c in "abc" for i in range(4)))
    first = ImageFolder(root)
    walks = []
    monkeypatch.setattr(folder, "Walk", lambda *a: walks.append(1) or Walk(*a))
    assert pairs(ImageFolder(root).train) == pairs(first.train) and not walks
    time.sleep(0.01)
    touch(tmp_path / "in", "b/new.jpg")
    changed = ImageFolder(root)
    assert len(walks) == 1 and len(changed.train) + len(changed.test) == 13
    (tmp_path / "in/c/0.jpg").unlink()
    assert len(ImageFolder(root).train) + len(ImageFolder(root).test) == 12 and len(walks) == 2
    for index in (tmp_path / "cache" / "index").iterdir():
        index.write_bytes(b"broken")
    assert len(ImageFolder(root).train) + len(ImageFolder(root).test) == 12 and len(walks) == 3


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "file"))
    assert len(ImageFolder(touch(tmp_path / "in", "a.jpg", "b.jpg")).train) == 1


def test_records_are_compact_and_pickle():
    ids = [f"train/n{i % 1000:08d}/image_{i}.JPEG" for i in range(50_000)] + ["train/é\udcff.jpg"]
    records = FileRecords("/data", ids, [i.split("/")[1] for i in ids[:-1]] + [None])
    again = pickle.loads(pickle.dumps(records))
    assert len(pickle.dumps(records)) < 50_000 * 60
    assert [again[i]["id"] for i in (0, 7, 49_999, -1)] == [ids[i] for i in (0, 7, 49_999, -1)]
    assert (
        again[7] == {"id": ids[7], "path": "/data/" + ids[7], "label": "n00000007"}
        and again[-1]["label"] is None
    )
    with pytest.raises(IndexError):
        records[50_001]


def test_links_are_followed_but_not_into_both_splits(tmp_path):
    elsewhere = tmp_path / "disk"
    touch(elsewhere, "n01/a.jpg", "n01/b.jpg")
    touch(tmp_path / "in", "train/n02/c.jpg", "val/n02/d.jpg")
    (tmp_path / "in/train/n01").symlink_to(elsewhere / "n01")
    root = str(tmp_path / "in")
    assert len(ImageFolder(root).train) == 3
    (tmp_path / "in/val/n02/e.jpg").symlink_to(tmp_path / "in/train/n02/c.jpg")
    for _ in range(2):  # also from the index
        with pytest.raises(
            SourceError, match="train/n02/c.jpg in train and val/n02/e.jpg in test are the same file"
        ):
            ImageFolder(root)
    (tmp_path / "in/val/n02/e.jpg").unlink()
    (tmp_path / "in/val/again").symlink_to(elsewhere / "n01")
    with pytest.raises(
        SourceError, match="train/n01/a.jpg in train and val/again/a.jpg in test are the same file"
    ):
        ImageFolder(root)
    (tmp_path / "in/val/again").unlink()
    (tmp_path / "in/val/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/val/self").symlink_to(tmp_path / "in/val/self")
    source = ImageFolder(root)
    assert (len(source.train), len(source.test)) == (3, 1)
    assert source.describe().endswith(
        "passed over: 1 without ending, 1 link to a folder that is listed (val/loop)"
    )


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["a.txt", "b.mp4"],
            r"no image below .*Passed over: 1 .txt, 1 .mp4. Expected files ending in .bmp .gif",
        ),
        (["train/a/1.jpg", "val/x.txt", "b.jpg"], "has split folders, but no image in its test part"),
        (["one.jpg"], r"only one file \(one.jpg\)"),
    ],
)
def test_wrong_folders(tmp_path, names, message):
    with pytest.raises(SourceError, match=message):
        ImageFolder(touch(tmp_path / "in", *names))


def test_wrong_roots(tmp_path):
    touch(tmp_path, "f.jpg")
    with pytest.raises(SourceError, match="absent does not exist"):
        ImageFolder(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="f.jpg is a file, expected a folder"):
        ImageFolder(str(tmp_path / "f.jpg"))
    refused("source", "image_folder", {"root": str(tmp_path), "test_fraction": 2})


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    root = touch(tmp_path / "in", "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def guarded(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(SourceError, match="only one file .a.jpg."):
        ImageFolder(root)

    def shut(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(SourceError, match="cannot list .*in: Permission denied. Allow reading it"):
        ImageFolder(root)


def test_sample_images():
    source = SampleImages(train=24, test=12, size=32)
    assert len(source.train) == 24 and len(source.test) == 12
    for shape in world.SHAPES:
        assert sum(r["label"] == shape for r in source.train) == 4
    record = source.train[5]
    assert record["label"] == record["sprites"][0]["shape"] and record["id"].startswith(
        f"train/{record['label']}/"
    )
    assert images.read(record["path"]).shape == (3, 32, 32)
    assert SampleImages(train=24, test=12, size=32).root == source.root
    assert {r["id"] for r in source.train}.isdisjoint(r["id"] for r in source.test)
    refused("source", "sample_images", {"size": 8})
