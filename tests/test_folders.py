"""Folders as people have them: names of splits, links, blobs behind links, what cannot be read; alike for
every source of files."""

import hashlib
import os

import pytest

from vicjoint.embeddings.items import Folder
from vicjoint.files.folder import Walk, counted
from vicjoint.sources.base import SPLITS, SourceError, numbered, split_of
from vicjoint.sources.image_folder import ImageFolder
from vicjoint.sources.video_folder import VideoFolder

SOURCES = [(ImageFolder, ".png"), (VideoFolder, ".mp4")]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def ids(source):
    return [r["id"] for r in source.train], [r["id"] for r in source.test]


# ---- names of splits ----


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize(
    "test", ["test", "Testing", "val", "VALID", "validation", "dev", "eval", "evaluation"]
)
@pytest.mark.parametrize("source, ending", SOURCES)
def test_folders_that_are_splits(tmp_path, source, ending, train, test):
    names = [f"{split}/{c}/{i}{ending}" for split in (train, test) for c in ("cat", "dog") for i in range(2)]
    found = source(str(touch(tmp_path, *names)))
    assert ids(found) == (names[:4], names[4:])
    if source is ImageFolder:
        assert [r["label"] for r in found.train] == ["cat", "cat", "dog", "dog"]


def test_names_of_splits():
    assert [split_of(f" {name.upper()} ") for names in SPLITS.values() for name in names] == (
        ["train"] * 2 + ["test"] * 8
    )
    assert split_of("holdout") is None and split_of(None) is None


@pytest.mark.parametrize(
    "names, place",
    [
        (["train/cat/1", "train/dog/2"], "train"),
        (["Valid/1", "invalid/2"], "Valid"),
        (["cats/1", "test/2", "dogs/3"], "test"),
        (["train/train/cat/1", "test/dog/2"], "train/train"),
        (["train/cat/1", "val/dev/2"], "val/dev"),
    ],
)
def test_a_class_named_as_a_split_is_refused(tmp_path, names, place):
    root = touch(tmp_path, *(f"{name}.png" for name in names))
    with pytest.raises(SourceError, match=f"image_folder: {place} below .* would be a class, but is named"):
        ImageFolder(str(root))


@pytest.mark.parametrize("source, ending", SOURCES)
def test_splits_below_other_folders_are_refused(tmp_path, source, ending):
    root = touch(
        tmp_path, *(f"bottle/{name}{ending}" for name in ("train/good/1", "test/good/2", "test/bad/3"))
    )
    with pytest.raises(SourceError, match="bottle/train and bottle/test below .* are named as splits"):
        source(str(root))
    assert ids(source(str(root / "bottle")))[0] == [f"train/good/1{ending}"]


def test_a_folder_beside_the_splits_may_have_any_name_below(tmp_path):
    touch(tmp_path, "train/cat/1.png", "test/cat/2.png", "old/train/3.png")
    assert ImageFolder(str(tmp_path)).describe().endswith("(1 outside the split folders left out)")


# ---- links ----


@pytest.mark.parametrize("source, ending", SOURCES)
def test_links_to_folders_are_followed(tmp_path, source, ending):
    """Of a split, of a class, and of the root."""
    touch(tmp_path / "disk", f"pool/dog/1{ending}", f"held/cat/2{ending}")
    root = touch(tmp_path / "in", f"train/cat/3{ending}")
    (root / "val").symlink_to(tmp_path / "disk" / "held")
    (root / "train" / "dog").symlink_to(tmp_path / "disk" / "pool" / "dog")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        found = source(str(place))
        assert ids(found) == ([f"train/cat/3{ending}", f"train/dog/1{ending}"], [f"val/cat/2{ending}"])
        assert "passed over" not in found.describe()


def test_a_pool_beside_splits_of_links(tmp_path):
    touch(tmp_path, "all/cat/1.png", "all/dog/2.png", "all/dog/3.png")
    for split, kind in (("train", "cat"), ("test", "dog")):
        (tmp_path / split).mkdir()
        (tmp_path / split / kind).symlink_to(tmp_path / "all" / kind)
    assert ids(ImageFolder(str(tmp_path))) == (["train/cat/1.png"], ["test/dog/2.png", "test/dog/3.png"])


def test_circles_of_links_end(tmp_path):
    touch(tmp_path, *(f"{a}/{i}.png" for a in "abc" for i in range(2)))
    for a in "abc":
        for b in "abc":
            (tmp_path / a / f"to_{b}").symlink_to(tmp_path / b)
        (tmp_path / a / "up").symlink_to(tmp_path)
    walk = Walk(tmp_path, (".png",))
    names = list(walk)
    # below each of a, b and c all three of them once, and the root never
    assert len(names) == len(set(names)) == 3 * 3 * 2 and not any("up" in name for name in names)
    assert {n for n in names if n.startswith("a/to_b/")} == {"a/to_b/0.png", "a/to_b/1.png"}
    assert all(kind.startswith("link to a folder that is listed") for kind in walk.passed)
    source = ImageFolder(str(tmp_path))
    side = {r["id"]: split for split in SPLITS for r in source.records(split)}
    for name in names:  # a name of the same file is on the same side
        assert side[name] == side[os.path.relpath(os.path.realpath(tmp_path / name), tmp_path)]


@pytest.mark.parametrize("source, ending", SOURCES)
def test_names_of_one_blob_share_a_side(tmp_path, source, ending):
    """As in the caches of hubs and of DVC: names are links to files that are named by their content."""
    (tmp_path / "in").mkdir()
    for i in range(60):
        blob = touch(tmp_path / "blobs", f"{i % 20}") / str(i % 20)
        (tmp_path / "in" / f"{i:02d}{ending}").symlink_to(blob)
    found = source(str(tmp_path / "in"), test_fraction=0.25)
    train, test = ({int(i[:2]) % 20 for i in of} for of in ids(found))
    assert not train & test and len(test) == 5 and (len(found.train), len(found.test)) == (45, 15)
    # the first names are split as without links
    first = sorted((f"{i:02d}{ending}" for i in range(20)), key=lambda n: hashlib.sha256(n.encode()).digest())
    assert test == {int(name[:2]) for name in first[:5]}


def test_a_link_to_nothing_is_a_bad_sample(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone")
    assert sum(len(of) for of in ids(ImageFolder(str(tmp_path)))) == 3


# ---- what is passed over ----


def test_embed_walks_as_sources_do(tmp_path, monkeypatch):
    touch(tmp_path / "disk", "x/1.png")
    root = touch(tmp_path / "in", "b.png", "a/2.png", "a.txt", ".git/3.png", "lost+found/4.png")
    (root / "linked").symlink_to(tmp_path / "disk")
    scandir = os.scandir

    def guarded(folder):  # a mode of 0 would not stop a test that runs as root
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    part = Folder(str(root), (".png",), with_shards=False)
    assert [item.name for item in part] == [
        f"{root}/{name}" for name in ("b.png", "a/2.png", "linked/x/1.png")
    ]
    unreadable = "1 folder that cannot be read (lost+found: Permission denied)"
    assert part.note() == f"{root}: passed over: 1 hidden, 1 .txt, {unreadable}."
    source = ImageFolder(str(root))
    assert sorted(sum(ids(source), [])) == ["a/2.png", "b.png", "linked/x/1.png"]
    assert source.describe().endswith(f"; passed over: 1 hidden, 1 .txt, {unreadable}")


def test_many_kinds_are_counted_together():
    walk = Walk("/")
    walk.passed.update({f".{i}": 1 for i in range(12)} | {"none": 0})
    assert walk.passed_over().count("1 .") == 8 and walk.passed_over().endswith(", 4 others")
    assert counted(Walk("/").passed) == ""


def test_numbers_make_names_of_their_own():
    assert numbered(["a", "b", "a", "a", "a (2)"]) == ["a", "b", "a (2)", "a (3)", "a (2) (2)"]
