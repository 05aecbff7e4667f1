"""Tar shards and Hugging Face data sets: places, labels, splits, reading, and what is said when something is
missing."""

import io
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vicjoint.files import images
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import ComponentError
from vicjoint.sources.base import SourceError
from vicjoint.sources.shards import HuggingFace, WebDataset, find_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))


def png(level: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), level, np.uint8)).save(target, "PNG")
    return target.getvalue()


def shard(path, keys, labels=True, **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for i, key in enumerate(keys):
            members = {
                f"{key}.png": png(10 * i),
                **({f"{key}.cls": f"{i % 2}\n".encode()} if labels else {}),
                f"{key}.json": b"{}",
            }
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return path


def test_split_folders_of_shards(tmp_path):
    shard(tmp_path / "train" / "s-0.tar", ["a", "dir/b.seg"])
    shard(tmp_path / "train" / "s-1.tar", ["c"])
    shard(tmp_path / "val" / "v-0.tar", ["d"], labels=False)
    source = WebDataset(str(tmp_path))
    assert [(r["id"], r["label"]) for r in source.train] == [
        ("s-0.tar/a", "0"),
        ("s-0.tar/dir/b", None),
        ("s-1.tar/c", "0"),
    ]
    assert [int(images.read_record(r)[0, 0, 0]) for r in source.train] == [0, 10, 0]
    assert source.test[0]["label"] is None and source.describe().endswith(
        ": 3 train, 1 test samples in 3 shards"
    )


def test_patterns_and_hash_split(tmp_path):
    for i in range(3):
        shard(tmp_path / f"x-{i:02d}.tar", [f"k{i}{j}" for j in range(10)])
    assert [s[-6:] for s in find_shards(str(tmp_path / "x-{00..02}.tar"))] == ["00.tar", "01.tar", "02.tar"]
    hashed = WebDataset(str(tmp_path / "x-{00..01}.tar"), test_fraction=0.2)
    assert (len(hashed.train), len(hashed.test)) == (16, 4) and {r["label"] for r in hashed.train} == {
        "0",
        "1",
    }
    given = WebDataset(str(tmp_path / "x-{00..01}.tar"), test=str(tmp_path / "x-02.tar"))
    assert (len(given.train), len(given.test)) == (20, 10) and given.test[3]["label"] == "1"


def test_a_pattern_or_a_hub_id_passes_the_recipes_check_of_paths():
    for source in ("{name: webdataset, root: '/no/x-{0..3}.tar'}", "{name: hf, root: org/data}"):
        assert load_recipe("imagenet", [f"source={source}"]).tasks[0].source["root"]
    with pytest.raises(RecipeError, match="source.root: /no/x does not exist"):
        load_recipe("imagenet", ["source={name: image_folder, root: /no/x}"])


def test_wrong_shards(tmp_path):
    one = shard(tmp_path / "a.tar", ["k", "l"])
    with pytest.raises(
        SourceError, match="x-01.tar does not exist. Expected a .tar file, a folder, or a pattern"
    ):
        WebDataset(str(tmp_path / "x-{01..02}.tar"))
    with pytest.raises(SourceError, match="a.tar is in root and in test"):
        WebDataset(str(one), test=str(one))
    with pytest.raises(SourceError, match="https://x/a.tar is not on a file system"):
        WebDataset("https://x/a.tar")
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with pytest.raises(SourceError, match="b.tar cannot be listed: .*Expected an uncompressed tar file"):
        WebDataset(str(tmp_path / "b.tar"))
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no .tar file below"):
        WebDataset(str(tmp_path / "none"))
    with tarfile.open(tmp_path / "c.tar", "w"):
        pass
    with pytest.raises(SourceError, match="no sample in .*c.tar and .*Expected members ending in .bmp"):
        WebDataset(str(tmp_path / "c.tar"))


def saved(folder, splits=("train", "test"), column="image", n=10):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            column: datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "other": datasets.Value("int64"),
        }
    )

    def rows(n):
        return {
            column: [{"bytes": png(i), "path": None} for i in range(n)],
            "label": [i % 2 for i in range(n)],
            "other": list(range(n)),
        }

    data = datasets.DatasetDict({s: datasets.Dataset.from_dict(rows(n), features=features) for s in splits})
    (data if len(splits) > 1 else data[splits[0]]).save_to_disk(str(folder))
    return str(folder)


def test_hugging_face_from_disk(tmp_path):
    source = HuggingFace(saved(tmp_path / "both", ("train", "validation")))
    assert (len(source.train), len(source.test)) == (10, 10) and source.describe().endswith(
        ": 10 train, 10 test samples"
    )
    record = source.train[3]
    assert (record["id"], record["label"]) == ("train/3", "dog") and int(
        images.read_record(record)[0, 0, 0]
    ) == 3
    alone = HuggingFace(saved(tmp_path / "one", ("train",)), test_fraction=0.2, label=None)
    assert (len(alone.train), len(alone.test)) == (8, 2) and alone.train[0]["label"] is None
    levels = [int(images.read_record(r)[0, 0, 0]) for part in (alone.train, alone.test) for r in part]
    assert sorted(levels) == list(range(10))


def test_hugging_face_streams_and_keeps(tmp_path):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "test"):
        for i in range(6):
            path = tmp_path / "tree" / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i))
    source = HuggingFace(str(tmp_path / "tree"), take=4)
    assert (len(source.train), len(source.test)) == (4, 4) and source.train[0]["label"] in ("cat", "dog")
    assert isinstance(source.train.rows, datasets.Dataset)  # a map by number, not a stream
    for path in (tmp_path / "tree").rglob("*.png"):
        path.unlink()
    assert len(HuggingFace(str(tmp_path / "tree"), take=4).train) == 4  # kept in the cache


def test_wrong_hugging_face(tmp_path, monkeypatch):
    folder = saved(tmp_path / "both", column="img")
    with pytest.raises(
        SourceError,
        match=(
            "no image column 'image' .option image.. ?(Did you mean 'img'. )?Image columns: img. All columns:"
            " img, label, other"
        ),
    ):
        HuggingFace(folder)
    with pytest.raises(SourceError, match="no split 'trian' .option train.. Did you mean 'train'"):
        HuggingFace(folder, train="trian", image="img")
    with pytest.raises(SourceError, match="no split 'val' .option test.. Splits: train, test"):
        HuggingFace(folder, test="val", image="img")
    with pytest.raises(SourceError, match="no column 'othr' .option label.. Did you mean 'other'"):
        HuggingFace(folder, image="img", label="othr")
    with pytest.raises(
        SourceError, match="'no/such' cannot be loaded: .*without a network only folders work"
    ):
        HuggingFace("no/such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ComponentError, match=r"source 'hf' needs datasets .*: pip install 'vicjoint\[hf\]'"):
        HuggingFace(folder)
