"""Shards elsewhere: brought over http from a server of this test to a bounded folder, read in lanes, resumed
to the sample; shards that are cut off, missing, or another than their index tells of."""

import gc
import http.server
import io
import json
import pickle
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from vicjoint.data import TimeLimit
from vicjoint.data.lanes import Lanes
from vicjoint.data.stream import Stream, batches
from vicjoint.files import remote
from vicjoint.files.cells import bytes_of
from vicjoint.orders import ShardOrder
from vicjoint.parts import Pair
from vicjoint.recipe import load_recipe
from vicjoint.registry import ComponentError
from vicjoint.sources import columns, members
from vicjoint.sources.base import SourceError
from vicjoint.sources.shards import WebDataset

pytest.importorskip("aiohttp")
TEXTS, SHARDS = 12, 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "TRIES", 2)
    monkeypatch.setattr(remote, "_failed", {})
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    """(URL, the paths that were asked for) of a folder."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path / "web"))

        def log_message(self, *_):
            if self.command == "GET":
                asked.append(self.path)

    (tmp_path / "web").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def shards(folder, number=SHARDS, size=TEXTS) -> list[str]:
    """Names of tar files of texts with a class and a fact in JSON each."""
    folder.mkdir(exist_ok=True)
    names = [f"x-{s:03d}.tar" for s in range(number)]
    for s, name in enumerate(names):
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as out:
            for i in range(size):
                facts = json.dumps({"number": i}).encode()
                for suffix, content in (("txt", b"text %d %d" % (s, i)), ("cls", b"%d" % s), ("json", facts)):
                    info = tarfile.TarInfo(f"{s}{i:03d}.{suffix}")
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))
    return names


def pack(folder, names) -> None:
    """index.parquet and manifest.json beside shards, as vicjoint.pack writes them."""
    tables = []
    for number, name in enumerate(names):
        with open(folder / name, "rb") as file:
            table = members.list_shard(file, "cls").table
        tables.append(table.append_column("shard", pa.array([number] * len(table), pa.int32())))
    parquet.write_table(pa.concat_tables(tables), folder / "index.parquet")
    found = [{"name": n, "bytes": (folder / n).stat().st_size, "sha256": "", "samples": TEXTS} for n in names]
    splits = {"train": names[:-1], "test": names[-1:]}
    rest = {"samples": TEXTS * len(names), "splits": splits, "json_keys": ["number"]}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "shards": found, **rest}))


def cut(path) -> None:
    """Within the text of its seventh sample."""
    path.write_bytes(path.read_bytes()[: 18 * 1024 + 512 + 4])


def text_of(record) -> str:
    return bytes_of(record["txt"]).decode()


class Texts(Pair):
    """Of a record its text alone."""

    def sample(self, record, rng):
        view = torch.tensor([[float(part) for part in text_of(record).split()[1:]]])
        return view, view


def ids_of(source, per_batch, start, end, workers=0, seed=3) -> list[list[str]]:
    stream = Stream(source.train, Texts(), seed, order=source.order("train"))
    with batches([stream], [per_batch], workers, start, end) as read:
        return [batch.samples for batch, _ in read]


def test_shards_over_http_are_those_of_a_folder(tmp_path, server, cache):
    names = shards(tmp_path / "web")
    pattern = "x-{000..004}.tar"
    here = WebDataset(str(tmp_path / "web" / pattern), test_fraction=0.2)
    url, asked = server
    there = WebDataset(f"{url}/{pattern}", test_fraction=0.2)
    assert (len(there.train), len(there.test)) == (4 * TEXTS, TEXTS)  # whole shards
    found = {r["id"]: (text_of(r), r["label"]) for s in (here.train, here.test) for r in s}
    assert {r["id"]: (text_of(r), r["label"]) for s in (there.train, there.test) for r in s} == found
    assert list(there.ids("train")) == [r["id"] for r in there.train] and "number" in there.train[0]
    assert sorted(path for path in asked if path.endswith(".tar")) == [f"/{n}" for n in names]  # once each
    assert len(list((cache / "remote").glob("*.*[0-9]"))) == SHARDS
    asked.clear()
    WebDataset(f"{url}/{pattern}", test_fraction=0.2)
    assert not [path for path in asked if path.endswith(".tar")]  # the index is kept, too


def test_a_pack_is_known_by_its_index(tmp_path, server):
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    url, asked = server
    for root in (url, f"{url}/", f"{url}/x-{{000..004}}.tar"):
        source = WebDataset(root)
        assert source.describe() == f"webdataset {root}: 48 train, 12 test samples in 5 shards"
        assert source.test[0]["id"] == "x-004.tar/4000" and source.test[0]["label"] == "4"
    assert not [path for path in asked if path.endswith(".tar")] and "number" in source.test[0]
    assert text_of(source.train[13]) == "text 1 1" and sum(p.endswith(".tar") for p in asked) == 1
    local = WebDataset(str(tmp_path / "web"))
    assert list(local.ids("train")) == list(source.ids("train")) and local.order("train") is None
    (tmp_path / "web" / names[1]).write_bytes((tmp_path / "web" / names[1]).read_bytes() + b"\0" * 512)
    with pytest.raises(SourceError, match="x-001.tar has .* its manifest.json says .* Pack it again"):
        WebDataset(url)
    (tmp_path / "web" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="manifest.json and index.parquet of http.* cannot be read"):
        WebDataset(url)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("over", ["file", "http"])
def test_a_shard_that_is_cut_off_is_named_and_used(tmp_path, server, over, packed):
    names = shards(tmp_path / "web")
    if packed:
        pack(tmp_path / "web", names)
    cut(tmp_path / "web" / names[1])
    root = server[0] if over == "http" else str(tmp_path / "web")
    source = WebDataset(root if packed else f"{root}/x-{{000..004}}.tar", test_fraction=0.2)
    assert "; cut off, so that what follows is lost: x-001.tar " in source.describe()
    read, bad = [], []
    for record in [*source.train, *source.test]:
        try:
            read.append(text_of(record))
        except OSError as error:
            bad.append(str(error))
    assert len(set(read)) == len(read) == 4 * TEXTS + 6
    assert all("x-001.tar (10" in cause and "too early" in cause for cause in bad)
    assert len(bad) == (6 if packed else 1)  # without an index what follows is not known
    stream = Stream(source.train, Texts(), 0, order=source.order("train"))
    with batches([stream], [6], 0, 0, 8) as going:
        assert len([batch for batch, _ in going]) == 8


@pytest.mark.parametrize("over", ["file", "http"])
def test_a_run_goes_on_at_the_very_sample(tmp_path, server, over):
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    source = WebDataset(server[0] if over == "http" else str(tmp_path / "web"), lanes=3, window=1)
    whole = ids_of(source, 5, 0, 24)
    again = WebDataset(source.root, lanes=3, window=1)
    assert ids_of(again, 5, 7, 24) == whole[7:]  # from the middle of the first epoch on
    for epoch in range(2):
        ids = sum(whole, [])[epoch * 48 : (epoch + 1) * 48]
        assert sorted(ids) == sorted(f"{i}@{epoch}" for i in source.ids("train"))
    assert whole[:9] != ids_of(source, 5, 0, 9, seed=4)


def test_readers_share_what_was_brought(tmp_path, server, monkeypatch):
    """Four at a time; records travel to them, large arrays as files that they map."""
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    monkeypatch.setattr(columns, "LARGE", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = WebDataset(server[0], lanes=2)
    sent = [pickle.loads(pickle.dumps(source.train)) for _ in range(4)]
    assert list(map(dict, sent[0])) == list(map(dict, source.train))
    files = list(tmp_path.glob("vicjoint-*.npy"))
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda records: [text_of(r) for r in records], sent))
    assert read == [[text_of(r) for r in source.train]] * 4
    assert sorted(p for p in server[1] if p.endswith(".tar")) == [f"/{n}" for n in names[:-1]]
    del source, sent
    gc.collect()
    assert files and not any(file.exists() for file in files)


def test_a_process_needs_the_shards_of_its_lanes_alone():
    """Any number of processes: no loss, no repeat, and of 40 shards each process of 4 opens about 10."""
    shard = np.repeat(np.arange(40), np.random.default_rng(0).integers(20, 60, 40))
    for per_batch in (1, 24, 64):
        lanes = Lanes(ShardOrder(shard, 8, 4))
        lanes.set_batch(per_batch)
        rows = np.arange(3 * len(shard)).reshape(3, -1) % per_batch
        orders = [lanes.arrange(rows[epoch], np.random.default_rng(epoch)) for epoch in range(3)]
        for record, window in orders:
            assert sorted(record) == list(range(len(shard)))
            assert all(len(set(shard[record[window == w]])) <= 4 for w in set(window))
        assert not np.array_equal(orders[0][0], orders[1][0])
    record, position = orders[2][0], np.arange(2 * len(shard), 3 * len(shard))
    for process in range(4):
        own = record[position % 64 // 16 == process]
        assert len(set(shard[own])) <= 13
        together = [len(set(shard[own[i : i + 64]])) for i in range(0, len(own) - 64, 64)]
        assert max(together) <= 2 * 2 * 4  # two lanes, two windows of four shards where one ends


def test_the_folder_stays_within_its_bound(tmp_path, server, cache):
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    size = (tmp_path / "web" / names[0]).stat().st_size
    source = WebDataset(server[0], cache=f"{2 * size / 1000}kB", lanes=1, window=2)
    for i in (0, 12, 24, 36, 0, 36):
        assert text_of(source.train[i]).startswith(f"text {i // 12} ")
        time.sleep(0.02)
        assert sum(p.stat().st_size for p in (cache / "remote").iterdir()) <= 2 * size
    assert [p[-5] for p in server[1] if p.endswith(".tar")] == list("01230")
    of = [record["txt"]["remote"] for record in source.train]
    with remote.opened(of[36]), remote.opened(of[0]) as held:
        bringing = threading.Thread(target=remote.bring, args=[of[12]])
        bringing.start()
        bringing.join(0.3)
        assert bringing.is_alive() and held.read(3)  # neither that is read goes
    bringing.join(10)
    assert text_of(source.train[12]) == "text 1 0"
    with pytest.raises(SourceError, match="5 shards of up to .* Raise it to 1GB, or lower source.lanes"):
        WebDataset(server[0], cache=f"{2 * size / 1000}kB")


def test_a_shard_that_cannot_be_brought_is_bad_samples(tmp_path, server, monkeypatch):
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    source = WebDataset(server[0], lanes=1)
    (tmp_path / "web" / names[2]).unlink()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    stream = Stream(source.train, Texts(), 0, order=source.order("train"))
    with batches([stream], [6], 0, 0, 8) as read:
        found = [(batch.samples, bad) for batch, bad in read]
    bad = dict(b for _, several in found for b in several)
    assert sorted(bad) == sorted(i for i in source.ids("train") if i.startswith("x-002"))
    assert set(bad.values()) == {f"cannot be brought: {server[0]}/x-002.tar: does not exist"}
    assert all(not s.startswith("x-002") for samples, _ in found for s in samples)
    assert sum(p.endswith("x-002.tar") for p in server[1]) <= 2  # not asked for again and again


def test_time_for_bringing_is_not_the_samples(tmp_path, server, monkeypatch):
    pack(tmp_path / "web", shards(tmp_path / "web"))
    source, fetch = WebDataset(server[0]), remote._fetch
    monkeypatch.setattr(remote, "_fetch", lambda *given: (time.sleep(0.4), fetch(*given)))
    stream = Stream(source.train, Texts(), 0, limit=TimeLimit(0.2), order=source.order("train"))
    assert stream[0][4] == []
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_what_is_said_of_urls(tmp_path, server, monkeypatch):
    url, _ = server
    shards(tmp_path / "web")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SourceError, match="x-005.tar: does not exist. Expected the URL of a .tar file"):
        WebDataset(f"{url}/x-{{000..007}}.tar")
    with pytest.raises(SourceError, match="cannot be listed over http, and has no index of vicjoint.pack"):
        WebDataset(url)
    with pytest.raises(ValueError, match="no protocol 'nowhere' is known. Expected one such as s3"):
        WebDataset("nowhere://x/a.tar")
    with pytest.raises(SourceError, match="one is a URL, the other is not"):
        WebDataset(f"{url}/x-000.tar", test=str(tmp_path / "web" / "x-001.tar"))
    import fsspec

    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ComponentError, match=r"for s3:// .Install s3fs to .*: pip install 'vicjoint\[r"):
        WebDataset("s3://bucket/a.tar")
    recipe = {"source": "{name: webdataset, root: /x, cache: many}"}
    with pytest.raises(ValueError, match="source.cache: expected a size such as 50GB, got 'many'"):
        load_recipe("image_text", [f"{k}={v}" for k, v in recipe.items()])


def test_distinct_needs_all_records(tmp_path, server):
    pack(tmp_path / "web", shards(tmp_path / "web"))
    source, pair = WebDataset(server[0]), Texts()
    pair.distinct = "number"
    with pytest.raises(ValueError, match="pair.distinct: arranges an epoch out of all records"):
        Stream(source.train, pair, 0, order=source.order("train"))


def test_a_folder_elsewhere_is_listed(tmp_path):
    """By a protocol that can list: fsspec's own for files."""
    shards(tmp_path / "web")
    (tmp_path / "web" / "val").mkdir()
    shutil.move(tmp_path / "web" / "x-004.tar", tmp_path / "web" / "val" / "x-004.tar")
    (tmp_path / "web" / "x-000.tar").rename(tmp_path / "web" / "train-0.tar")
    source = WebDataset(f"file://{tmp_path}/web")
    assert (len(source.train), len(source.test)) == (12, 12) and source.order("test") is not None
    assert source.describe().endswith("passed over: 3 shards whose name is no split's")
    assert text_of(source.test[0]) == "text 4 0"


@pytest.mark.parametrize("cache_of", [2, 1])
def test_the_next_windows_shards_are_brought_ahead(tmp_path, server, cache, cache_of):
    """While one shard of one lane is read, the next one; with room for one alone, none."""
    names = shards(tmp_path / "web")
    pack(tmp_path / "web", names)
    size = (tmp_path / "web" / names[0]).stat().st_size
    source = WebDataset(server[0], lanes=1, window=1, cache=f"{cache_of * size / 1000}kB")
    order = source.order("train")
    assert (order.files is not None) == (cache_of == 2)
    stream, plain = (Stream(source.train, Texts(), 0, order=of) for of in (order, order._replace(files=None)))
    stream.set_batch(4)
    plain.set_batch(4)
    asked = lambda: [path for path in server[1] if path.endswith(".tar")]
    first = [source.train[plain.locate(p)[1]]["id"].split("/")[0] for p in range(0, 48, TEXTS)]
    for turn in range(4):
        stream[turn * TEXTS]
        expected = min(turn + cache_of, 4)
        patience = time.monotonic() + 10
        while len(asked()) < expected and time.monotonic() < patience:
            time.sleep(0.02)
        time.sleep(0.05)
        assert sorted(asked()) == sorted(f"/{name}" for name in first[:expected])
        assert sum(p.stat().st_size for p in (cache / "remote").iterdir()) <= cache_of * size
