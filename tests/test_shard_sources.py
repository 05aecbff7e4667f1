"""Tar shards and Hugging Face data sets: places, labels, splits, reading, and what is said when something is
missing."""

import io
import json
import pickle
import sys
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vicjoint.files import images, inside
from vicjoint.files.cells import CellError, cell
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import EvaluationData, Reading
from vicjoint.probes.labels import labels_of
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import ComponentError, build, load_built_in
from vicjoint.sources.base import SourceError
from vicjoint.sources.hugging_face import HuggingFace
from vicjoint.sources.places import find_shards
from vicjoint.sources.shards import WebDataset
from vicjoint.video.write import write_mp4


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
    with pytest.raises(SourceError, match="pipe:curl is not on a file system"):
        WebDataset("pipe:curl")
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


def tree(folder: Path) -> None:
    """Six pictures of cats and dogs in each split, below folder/tree."""
    for split in ("train", "test"):
        for i in range(6):
            path = folder / "tree" / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i))


def test_hugging_face_streams_and_keeps(tmp_path):
    datasets = pytest.importorskip("datasets")
    tree(tmp_path)
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


# ---- shards as people have them ----


def tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def of_a_mac(first: int, split: str = "") -> dict[str, bytes]:
    members = {}
    for i in range(first, first + 6):
        facts = json.dumps({"caption": [f"one {i}", f"uno {i}"], "kind": "odd" if i % 2 else "NA", "id": i})
        own = {
            "png": png(9 * i),
            "cls": f"{i % 2}".encode(),
            "txt": f"picture {i}\n".encode(),
            "json": facts.encode(),
        }
        for suffix, content in own.items():
            members |= {f"./{split}._{i:03d}.{suffix}": b"junk", f"./{split}{i:03d}.{suffix}": content}
    return members | {f"__MACOSX/._{first}.png": b"junk", ".DS_Store": b"x"}


def test_hidden_members_are_no_samples(tmp_path):
    """A tar made on a Mac has a `._` member beside each."""
    for number in range(3):
        tar(tmp_path / f"{number}.tar", of_a_mac(6 * number))
    source = WebDataset(str(tmp_path), test_fraction=1 / 3)
    records = [*source.train, *source.test]
    assert (len(source.train), len(source.test)) == (12, 6) and len({r["id"] for r in records}) == 18
    assert sorted(int(images.read_record(r)[0, 0, 0]) for r in records) == [9 * i for i in range(18)]
    assert source.describe().endswith(": 12 train, 6 test samples in 3 shards; passed over: 78 hidden")


@pytest.mark.parametrize("column, texts", [("txt", ["picture 4"]), ("caption", ["one 4", "uno 4"])])
def test_members_of_a_key_are_columns(tmp_path, column, texts):
    """Pictures, texts and keys of JSON members, for any pair, and what probes and keys look at."""
    load_built_in()
    for split in ("train", "val"):
        tar(tmp_path / f"{split}-0.tar", of_a_mac(0))
    source = WebDataset(str(tmp_path))
    record = source.train[4]
    readers = build("modality", {"name": "image", "size": 8}), build("modality", {"name": "text"})
    pair = CrossModal("png", column, key="kind" if column == "txt" else None)
    pair.bind(Reading(readers, source))
    a, b = pair.views(record, "a"), pair.views(record, "b")
    assert int(a[0].raw[0, 0, 0, 0]) == 36 and [view.content for view in b] == texts
    assert len({pair.views(r, "a")[0].content for r in source.train}) == 6
    assert [cell(r, "kind") for r in source.train] == [None, "odd"] * 3 and cell(record, "json_id") == 4
    assert labels_of(EvaluationData(("a", "b"), source, pair), "kind", "a").train.tolist() == [-1, 0] * 3
    pair = CrossModal("png", "jsn")
    with pytest.raises(CellError, match="'jsn' is not in the table; columns: .* Did you mean 'json'"):
        pair.bind(Reading(readers, source))


def test_shards_without_pictures(tmp_path):
    """Sounds and texts by column; videos are files of the records, as pictures are."""
    load_built_in()
    level = lambda i: np.full((12, 32, 32, 3), 50 + i, np.uint8)
    films, sounds = {}, {}
    for i in range(4):
        write_mp4(tmp_path / "f.mp4", level(i))
        films |= {f"{i}.mp4": (tmp_path / "f.mp4").read_bytes(), f"{i}.txt": f"film {i}".encode()}
        with wave.open(str(tmp_path / "s.wav"), "wb") as out:
            out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
            out.writeframes(np.full(8000, 1000 + i, "<i2").tobytes())
        sounds |= {f"{i}.wav": (tmp_path / "s.wav").read_bytes(), f"{i}.txt": f"sound {i}".encode()}
    clips = WebDataset(str(tar(tmp_path / "films.tar", films)))
    clip, _ = NextFrame(frames=2, size=32).sample(clips.train[0], np.random.default_rng(0))
    assert abs(float(clip.float().mean()) - 50 - int(clips.train[0]["id"][-1])) < 3
    heard = WebDataset(str(tar(tmp_path / "sounds.tar", sounds)))
    pair = CrossModal("wav", "txt", seconds=0.5)
    audio = build("modality", {"name": "audio", "rate_hz": 8000})
    pair.bind(Reading((audio, build("modality", {"name": "text"})), heard))
    wave_of = pair.sample(heard.train[0], np.random.default_rng(0))[0]
    assert wave_of.shape == (1, 4000) and "path" not in heard.train[0]
    assert float(wave_of.mean()) == pytest.approx((1000 + int(heard.train[0]["id"][-1])) / 32768, abs=1e-5)


def test_every_sample_has_an_id_of_its_own(tmp_path):
    """Shards of one name in several folders, keys of several pictures, keys with dots in their names."""
    for folder in ("a", "b"):
        tar(
            tmp_path / folder / "0.tar",
            {f"{name}": png(3) for name in ("1.png", "1.mask.png", "x_0.5.png", "x_0.7.png")},
        )
    source = WebDataset(str(tmp_path))
    assert sorted(r["id"] for r in [*source.train, *source.test]) == sorted(
        f"{folder}/0.tar/{name}"
        for folder in "ab"
        for name in ("1.png", "1.mask.png", "x_0.5.png", "x_0.7.png")
    )
    names = lambda records: {
        r["id"].rsplit("/", 1)[0] + r["id"].rsplit("/", 1)[1].split(".")[0] for r in records
    }
    assert not names(source.train) & names(source.test)  # one key, one side


@pytest.mark.parametrize(
    "train, test", [("in-train-000", "in-val-000"), ("Training/0", "VALID/0"), ("a/train/x/0", "a/dev/x/0")]
)
def test_shards_are_split_by_their_names(tmp_path, train, test):
    shard(tmp_path / "in" / f"{train}.tar", ["a", "b"])
    shard(tmp_path / "in" / f"{test}.tar", ["c"])
    shard(tmp_path / "in" / "other.tar", ["d"])
    source = WebDataset(str(tmp_path / "in"))
    assert [r["id"][-1] for r in source.train] == ["a", "b"] and [r["id"][-1] for r in source.test] == ["c"]
    assert source.describe().endswith("; passed over: 1 shards whose name is no split's")
    shard(tmp_path / "train" / "x.tar", [f"k{i}" for i in range(10)])  # the root's own name says nothing
    assert len(WebDataset(str(tmp_path / "train")).test) == 2


def test_hugging_face_columns_are_for_every_pair(tmp_path):
    datasets = pytest.importorskip("datasets")
    load_built_in()
    features = {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["x", "y"]),
    }
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(6)],
        "caption": [f"number {i}" for i in range(6)],
        "kind": [i % 2 for i in range(5)] + [-1],
    }
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"Training": data, "dev": data, "extra": data}).save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(str(tmp_path / "d"))
    assert source.describe().endswith(": 6 train, 6 test samples; splits not used: extra")
    assert source.train[0]["id"] == "Training/0" and [r["kind"] for r in source.test] == [
        "x",
        "y",
        "x",
        "y",
        "x",
        None,
    ]
    pair = CrossModal("image", "caption")
    readers = build("modality", {"name": "image", "size": 8}), build("modality", {"name": "text"})
    pair.bind(Reading(readers, source))
    assert int(pair.views(source.train[3], "a")[0].raw[0, 0, 0, 0]) == 3
    assert pair.views(source.train[3], "b")[0].content == "number 3"
    texts = data.remove_columns("image")
    datasets.DatasetDict({"train": texts, "test": texts}).save_to_disk(str(tmp_path / "t"))
    assert HuggingFace(str(tmp_path / "t")).train[3]["caption"] == "number 3"


def test_a_kill_while_samples_are_kept_costs_only_time(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    tree(tmp_path)
    save = datasets.DatasetDict.save_to_disk

    class Killed(BaseException):
        pass

    def killed(self, folder):
        save(self, folder)
        for state in Path(folder).rglob("state.json"):
            state.unlink()
        raise Killed

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", killed)
    with pytest.raises(Killed):
        HuggingFace(str(tmp_path / "tree"), take=4)
    assert not list((tmp_path / "cache").glob("hf-*"))
    monkeypatch.undo()
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    assert len(HuggingFace(str(tmp_path / "tree"), take=4).train) == 4
    (kept,) = (tmp_path / "cache").glob("hf-*")
    for state in kept.rglob("state.json"):  # as an older version left it when it was killed
        state.unlink()
    assert len(HuggingFace(str(tmp_path / "tree"), take=4).train) == 4


def test_the_json_of_a_record_is_read_once_by_a_source(tmp_path, monkeypatch):
    """And again by another one, since the shard may be another."""
    opened = []
    monkeypatch.setattr(inside, "open_tar", lambda part: opened.append(1) or open(part["path"], "rb"))
    for number in (1, 2):
        for split in ("train", "val"):
            (tmp_path / split).mkdir(exist_ok=True)
            with tarfile.open(tmp_path / split / "s.tar", "w") as out:
                info = tarfile.TarInfo("a.json")
                info.size = len(content := b'{"number": %d}' % number)
                out.addfile(info, io.BytesIO(content))
        source = WebDataset(str(tmp_path))
        opened.clear()
        assert [cell(source.train[0], "number") for _ in range(3)] == [number] * 3 and len(opened) == 1
        again = pickle.loads(pickle.dumps(source.train))[0]  # of a process that reads: nothing is kept
        assert cell(again, "number") == number and len(opened) == 2
