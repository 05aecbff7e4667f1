"""Parquet files elsewhere as the source `hf`: brought over http and by file://, read row by row, in lanes;
damaged ones named."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from test_streaming import cache, server  # noqa: F401

from vicjoint import pack
from vicjoint.data.stream import Stream, batches
from vicjoint.files import images, remote, rows
from vicjoint.files.cells import CellError, cell, values
from vicjoint.modalities.text import Text
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Reading
from vicjoint.recipe import load_recipe
from vicjoint.registry import build
from vicjoint.sources.base import SourceError
from vicjoint.sources.hugging_face import HuggingFace

datasets = pytest.importorskip("datasets")
pytest.importorskip("aiohttp")
ROWS, FILES = 12, 5
COLUMNS = {
    "image": datasets.Image(),
    "caption": datasets.Value("string"),
    "kind": datasets.ClassLabel(names=["cat", "dog"]),
    "numbers": datasets.Sequence(datasets.Value("float32")),
}


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


def files(folder, number=FILES, ending="") -> list[str]:
    """Names of parquet files of pictures, texts, classes and numbers; the last row has no picture."""
    folder.mkdir(exist_ok=True)
    names = [f"x-{n:03d}{ending}.parquet" for n in range(number)]
    for n, name in enumerate(names):
        rows = {
            "image": [{"bytes": png(20 * n + i), "path": f"{i}.png"} for i in range(ROWS - 1)] + [None],
            "caption": [f"text {n} {i}" for i in range(ROWS)],
            "kind": [i % 2 for i in range(ROWS - 1)] + [-1],
            "numbers": [[n, i] for i in range(ROWS)],
        }
        data = datasets.Dataset.from_dict(rows, features=datasets.Features(COLUMNS))
        parquet.write_table(data.data.table, folder / name, row_group_size=5)
    return names


def texts(tmp_path, source) -> CrossModal:
    pair = CrossModal("caption", "caption")
    pair.bind(Reading((Text(length=16), Text(length=16)), source))
    return pair


@pytest.mark.parametrize("over", ["http", "file", "path"])
def test_rows_are_those_of_the_files(tmp_path, server, over):  # noqa: F811
    files(tmp_path / "web")
    root = {"http": f"{server[0]}/x-{{000..004}}.parquet", "file": f"file://{tmp_path}/web"}.get(over)
    source = HuggingFace(root or str(tmp_path / "web" / "*.parquet"), label="kind", test_fraction=0.2)
    assert (len(source.train), len(source.test)) == (4 * ROWS, ROWS)  # whole files
    assert source.describe().endswith("48 train, 12 test samples in 5 files")
    found = {}
    for record in [*pickle.loads(pickle.dumps(source.train)), *source.test]:
        caption, kind = values(record, "caption")[0], cell(record, "label")
        n, i = map(int, caption.split()[1:])
        assert record["id"] == f"x-{n:03d}.parquet/{i}" and values(record, "numbers") == [[n, i]]
        if i == ROWS - 1:
            assert kind is None
            with pytest.raises(CellError, match="column 'image' is empty"):
                images.read_record(record)
            continue
        assert kind == cell(record, "kind") == ("cat", "dog")[i % 2]
        assert int(images.read_record(record)[0, 0, 0]) == 20 * n + i
        found[record["id"]] = record
    assert len(found) == FILES * (ROWS - 1)
    assert list(source.ids("train")) == [r["id"] for r in source.train]
    pair = CrossModal("image", "caption")
    pair.bind(Reading((build("modality", {"name": "image", "size": 8}), Text(length=16)), source))
    assert int(pair.views(found["x-002.parquet/3"], "a")[0].raw[0, 0, 0, 0]) == 43
    gets = [path for path in server[1] if path.endswith(".parquet")]
    assert over != "http" or len(gets) <= 2 * FILES


def test_footers_are_kept_and_files_brought_when_they_are_read(tmp_path, cache, monkeypatch):  # noqa: F811
    """Where a server gives parts of files, their ends alone are read at first."""
    files(tmp_path / "web")
    root = f"file://{tmp_path}/web/x-*.parquet"
    HuggingFace(root)
    assert not (cache / "remote").exists()
    monkeypatch.setattr(remote, "in_place", None)
    source = HuggingFace(root)
    assert values(source.train[0], "caption") and len(list((cache / "remote").glob("*.*[0-9]"))) == 1


def test_a_run_goes_on_at_the_very_sample(tmp_path, server):  # noqa: F811
    files(tmp_path / "web")
    make = lambda: HuggingFace(f"{server[0]}/x-{{000..004}}.parquet", test_fraction=0.2, lanes=3, window=1)
    source, again = make(), make()
    stream = lambda of: Stream(of.train, texts(tmp_path, of), 3, order=of.order("train"))

    def read(of, start):
        with batches([stream(of)], [5], 0, start, 20) as found:
            return [batch.samples for batch, _ in found]

    whole = read(source, 0)
    assert read(again, 7) == whole[7:]
    assert sorted(sum(whole, [])[:48]) == sorted(f"{i}@0" for i in source.ids("train"))


def test_the_folder_stays_within_its_bound(tmp_path, cache, monkeypatch):  # noqa: F811
    """What is kept is larger than what came, and counts."""
    folder = tmp_path / "web"
    folder.mkdir()
    for n in range(6):
        table = pa.table({"caption": [f"the same {n}" * 500] * 400})
        parquet.write_table(table, folder / f"x-{n:03d}.parquet")
    came = (folder / "x-000.parquet").stat().st_size
    source = HuggingFace(f"file://{folder}", cache="20MB", lanes=1, window=1, test_fraction=0.2)
    kept = 400 * 500 * 10
    assert came < kept / 10
    monkeypatch.setattr(rows, "OPEN", 2)
    for of in source.train.remotes:
        object.__setattr__(of, "room", 3 * kept)
    for i in range(0, len(source.train), 50):
        assert len(values(source.train[i], "caption")[0]) == 5000
        assert sum(p.stat().st_size for p in (cache / "remote").iterdir()) <= 3 * kept
    assert len(list((cache / "remote").glob("*.*[0-9]"))) == 2 and len(rows._open) <= 2


def test_a_damaged_file_is_named_and_the_run_goes_on(tmp_path, server):  # noqa: F811
    names = files(tmp_path / "web")
    path = tmp_path / "web" / names[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-400])  # without its end nothing of it can be read
    for root in (f"{server[0]}/x-{{000..004}}.parquet", f"file://{tmp_path}/web"):
        said = HuggingFace(root, test_fraction=0.2).describe()
        assert "in 4 files; damaged, so that their rows are lost: x-001.parquet is no whole parquet" in said
    damaged = bytearray(whole)
    damaged[4:600] = b"\xff" * 596
    path.write_bytes(damaged)
    source = HuggingFace(f"file://{tmp_path}/web", test_fraction=0.2)
    stream = Stream(source.train, texts(tmp_path, source), 0, order=source.order("train"))
    with batches([stream], [6], 0, 0, 8) as read:
        bad = [of for _, bads in read for of in bads]
    assert bad and all(i.startswith("x-001.parquet/") and "is no whole parquet file" in c for i, c in bad)


def test_splits_by_name_and_by_pattern(tmp_path):
    folder = tmp_path / "web"
    for split in ("train", "validation", "other"):
        files(folder, 2, f"-{split}")
    source = HuggingFace(f"file://{folder}")
    assert (len(source.train), len(source.test)) == (24, 24)
    assert source.describe().endswith("in 4 files; passed over: 2 files whose name is no split's")
    source = HuggingFace(f"{folder}/*train.parquet", test=f"{folder}/*other.parquet")
    assert {i.split("/")[0] for i in source.ids("test")} == {f"x-{n:03d}-other.parquet" for n in (0, 1)}
    one = HuggingFace(f"{folder}/x-000-o*.parquet", test_fraction=0.25)
    assert (len(one.train), len(one.test)) == (9, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"root": "file://{}/web/no-*.parquet"}, "hf: no file like file://.*/no-.* Give the folder"),
        ({"root": "file://{}/none"}, "hf: .*none"),
        ({"root": "http://127.0.0.1:9/data"}, "hf: http.*: a folder cannot be listed over http. Give a"),
        ({"root": "file://{}/web/x-{{000..009}}.parquet"}, "x-005.parquet: does not exist. Expected the URL"),
        ({"root": "file://{}/web", "take": 3}, "config, train and take are of data sets on the hub"),
        ({"root": "file://{}/web", "image": "img"}, "no image column 'img' .*Image columns: image"),
        ({"root": "file://{}/web", "cache": "1kB"}, "hf: cache: 5 shards of up to .* Raise it to"),
        ({"root": "file://{}/web", "test": "file://{}/web/x-001.parquet"}, "is in root and in test"),
    ],
)
def test_mistakes(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    files(tmp_path / "web")
    options = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(SourceError, match=message):
        HuggingFace(**options)
    parquet.write_table(pa.table({"caption": ["a"]}), tmp_path / "web" / "y.parquet")
    with pytest.raises(SourceError, match="y.parquet has the columns caption, and x-000.parquet has"):
        HuggingFace(f"file://{tmp_path}/web")


def test_they_are_packed_as_any_source(tmp_path):
    files(tmp_path / "web", 2)
    source = f"source={{name: hf, root: '{tmp_path}/web/*.parquet', label: kind, test_fraction: 0.5}}"
    pair = ["pair.a=image", "pair.b=caption", "data.max_bad_fraction=1"]
    assert pack.main(["image_text", source, *pair, "--to", str(tmp_path / "shards")]) == 0
    packed = build("source", {"name": "webdataset", "root": str(tmp_path / "shards"), "column": "image"})
    assert len(packed.train) == ROWS
    record = packed.train[0]
    n, i = map(int, values(record, "caption")[0].split()[1:])
    assert int(images.read_record(record)[0, 0, 0]) == 20 * n + i and record["label"] == ("cat", "dog")[i % 2]
    assert load_recipe("image_text", [source, *pair])
