"""Packed and read again: the same views, labels and splits, the same bytes after a stop; what is said of bad
files, of other content, and of shards that are not whole."""

import csv
import hashlib
import io
import json
import os
import shutil
import tarfile
from fractions import Fraction

import numpy as np
import pytest
import torch
import yaml
from indexes import mp4, png, wav
from torchvision.transforms.v2.functional import resize

from vicjoint import pack
from vicjoint.data.reading import build_reading
from vicjoint.files import inside
from vicjoint.files.cells import CellError, bytes_of, cell
from vicjoint.files.sound import Sound
from vicjoint.packing import films
from vicjoint.packing import folder as packing_folder
from vicjoint.packing.films import Films, NotTheSame, longest_group, remade
from vicjoint.packing.folder import Tar
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Reading
from vicjoint.recipe import load_recipe
from vicjoint.registry import build, load_built_in
from vicjoint.sources.shards import WebDataset
from vicjoint.sources.table import Table
from vicjoint.video import Video

pytest.importorskip("pyarrow")
load_built_in()
CONV = {"name": "conv", "width": 4, "dim": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))


def write_csv(path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictures(folder, number: int = 8, **columns):
    """Rows of a table with a picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(number):
        png(folder / f"{i}.png", colour=(20 * i, 30, 90))
        rows.append({"picture": f"{i}.png", "caption": f"number {i}", "kind": "ab"[i % 2]} | columns)
        rows[-1]["split"] = "test" if i % 4 == 3 else "train"
    return rows


def packed(capsys, *arguments, code: int = 0) -> str:
    """What the command printed."""
    assert pack.main([*map(str, arguments)]) == code
    said = capsys.readouterr()
    return said.out + said.err


def source_of(said: str) -> WebDataset:
    """The source of the line that is printed for a recipe."""
    (line,) = [line for line in said.splitlines() if line.startswith("source: ")]
    return build("source", yaml.safe_load(line)["source"])


def pair_of(source, a, b, readers, **options) -> CrossModal:
    pair = CrossModal(a, b, **options)
    pair.bind(Reading(readers, source))
    return pair


def raws(pair, record) -> list:
    """All views as in evaluation, and those of a training sample."""
    found = [view.raw for side in "ab" for view in pair.views(record, side)]
    return [*found, *pair.sample(record, np.random.default_rng(3))]


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return (
        equal(tuple(vars(one).values()), tuple(vars(other).values()))
        if hasattr(one, "__dict__")
        else one == other
    )


def assert_same(of_files, of_shards, a, b, modalities: tuple, **options) -> None:
    """Every record of both splits gives the same views, and has the same cells."""
    pairs = [
        pair_of(source, a, b, tuple(build("modality", m) for m in modalities), **options)
        for source in (of_files, of_shards)
    ]
    for split in ("train", "test"):
        shards = {cell(r, "json_id"): r for r in of_shards.records(split)}
        assert [r["id"] for r in of_files.records(split)] != list(shards) or len(shards) < 3
        assert {r["id"] for r in of_files.records(split)} == set(shards)
        for record in of_files.records(split):
            two = [raws(pair, r) for pair, r in zip(pairs, (record, shards[record["id"]]))]
            assert len(two[0]) == len(two[1]) and all(map(equal, *two))


# ---- the same views ----


def test_pictures_and_texts(tmp_path, capsys):
    table = write_csv(tmp_path / "in" / "birds.csv", pictures(tmp_path / "in"))
    said = packed(capsys, table, "--to", tmp_path / "out")
    source = source_of(said)
    assert said.splitlines()[-1] == f"pack: {tmp_path / 'out'}"
    image, text = {"name": "image", "size": 16}, {"name": "text"}
    assert_same(Table(str(table)), source, "picture", "caption", (image, text))
    record = source.train[0]
    assert cell(record, "kind") in ("a", "b") and cell(record, "split") == "train"
    assert record["id"].startswith("birds-000000.tar/row ") or record["id"].startswith("train/birds-")


@pytest.mark.parametrize("most", [1 << 23, 100])
def test_films_and_sounds(tmp_path, capsys, monkeypatch, most):
    """Inside of shards they are opened in place: read at once, or, where they are large, in parts."""
    pytest.importorskip("soundfile")
    monkeypatch.setattr(inside, "IN_MEMORY", most)
    rows = []
    for i in range(6):
        mp4(tmp_path / f"{i}.mp4", 0.5 + i / 10), wav(tmp_path / f"{i}.wav", 0.5 + i / 10)
        rows.append({"Film": f"{i}.mp4", "the sound": str(tmp_path / f"{i}.wav"), "words": f"film {i}.mp4"})
    table = write_csv(
        tmp_path / "t.csv", [r | {"split": "dev" if i > 3 else "train"} for i, r in enumerate(rows)]
    )
    source = source_of(packed(capsys, table, "--to", tmp_path / "out"))
    assert (len(source.train), len(source.test)) == (4, 2)
    clip, sound = {"name": "clip", "frames": 3, "size": 16, "cache_mb": 8}, {"name": "audio", "rate_hz": 8000}
    assert_same(Table(str(table)), source, "Film", "the sound", (clip, sound), seconds=0.25)
    assert cell(source.train[0], "words").startswith("film ")  # a text that names a file is none of these


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_films_of_a_folder_are_records_with_a_file(tmp_path, capsys, backend):
    pytest.importorskip("decord")
    for i in range(6):
        (tmp_path / "in" / ("train", "val")[i % 2]).mkdir(parents=True, exist_ok=True)
        mp4(tmp_path / "in" / ("train", "val")[i % 2] / f"a.{i}.mp4", 0.5 + i / 10)
    recipe = {
        "name": "films",
        "source": {"name": "video_folder", "root": str(tmp_path / "in")},
        "pair": {"name": "next_frame", "frames": 3, "stride": 1, "size": 16, "windows": 2},
        "a": {"modality": "clip", "encoder": {"name": "conv_gru", "width": 4, "dim": 8}, "expander": [6]},
        "b": {"modality": "next_frame", "encoder": CONV, "expander": [6], "weights": "own"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
        "data": {"video_backend": backend},
    }
    (tmp_path / "films.yaml").write_text(yaml.safe_dump(recipe))
    said = packed(capsys, tmp_path / "films.yaml", "--to", tmp_path / "out")
    line = next(line for line in said.splitlines() if line.startswith("source: "))
    assert "column" not in line
    again = load_recipe(recipe | yaml.safe_load(line))
    (one,), _ = build_reading(load_recipe(recipe))
    (two,), _ = build_reading(again)
    shards = {record["id"].partition("/")[2].split("/")[-1]: record for record in two.source.train}
    for record in one.source.train:
        other = shards[os.path.basename(record["id"]).removesuffix(".mp4").replace(".", "_")]
        views = [t.pair.sample(r, np.random.default_rng(1)) for t, r in ((one, record), (two, other))]
        assert all(map(equal, *views))
        assert equal(one.pair.views(record, "a")[0].raw, two.pair.views(other, "a")[0].raw)


def test_classes_of_a_folder_are_standard_shards(tmp_path, capsys):
    for i in range(8):
        folder = tmp_path / "in" / ("train", "test")[i % 2] / ("cat", "dog")[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        png(folder / f"{i}.png", colour=(25 * i, 0, 0))
    recipe = {
        "name": "photos",
        "source": {"name": "image_folder", "root": str(tmp_path / "in")},
        "pair": {"name": "augment", "size": 16},
        "a": {"modality": "image", "encoder": CONV, "expander": [6]},
        "b": {"weights": "same"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(recipe))
    source = source_of(packed(capsys, tmp_path / "photos.yaml", "--to", tmp_path / "out"))
    (one,), _ = build_reading(load_recipe(recipe))
    with tarfile.open(tmp_path / "out" / "train" / "photos-000000.tar") as tar:
        assert sorted(tar.getnames())[:2] == ["train/cat/0.cls", "train/cat/0.png"]
    names = {r["id"].split(".tar/")[1]: r for r in [*source.train, *source.test]}
    assert len(names) == 8
    for record in [*one.source.train, *one.source.test]:
        other = names[record["id"].removesuffix(".png")]
        assert other["label"] == record["label"]
        views = [one.pair.sample(r, np.random.default_rng(5)) for r in (record, other)]
        assert all(map(equal, *views))


def test_molecules_and_proteins(tmp_path, capsys):
    pytest.importorskip("rdkit")
    smiles = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "C1CCCCC1", "CCCl"]
    rows = [
        {"smiles": s, "protein": "MKV" * (i + 1), "solubility": i / 7, "split": "test" if i > 3 else "train"}
        for i, s in enumerate(smiles)
    ]
    table = write_jsonl(tmp_path / "m.jsonl", rows)
    source = source_of(packed(capsys, table, "--to", tmp_path / "out"))
    modalities = {"name": "molecule"}, {"name": "protein"}
    assert_same(Table(str(table)), source, "smiles", "protein", modalities)
    assert_same(
        Table(str(table)), source, "smiles", "smiles", ({"name": "drawing", "size": 16}, {"name": "text"})
    )
    assert sorted(cell(r, "solubility") for r in source.train) == [i / 7 for i in range(4)]


def test_tiffs_of_many_channels(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    rng, rows = np.random.default_rng(0), []
    for i in range(5):
        tifffile.imwrite(tmp_path / f"{i}.ome.tiff", rng.integers(0, 4000, (5, 12, 14), dtype=np.uint16))
        rows.append({"cells": f"{i}.ome.tiff", "dose": f"{i} mg", "split": "test" if i > 2 else "train"})
    table = write_csv(tmp_path / "t.csv", rows)
    source = source_of(packed(capsys, table, "--to", tmp_path / "out"))
    assert_same(
        Table(str(table)), source, "cells", "dose", ({"name": "microscope", "size": 8}, {"name": "text"})
    )


def test_channels_in_files_of_their_own(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    rng, rows = np.random.default_rng(0), []
    for i in range(5):
        for channel in ("DNA", "ER.2") if i != 4 else ("DNA",):
            (tmp_path / channel).mkdir(exist_ok=True)
            tifffile.imwrite(
                tmp_path / channel / f"{i}_{channel}.tif", rng.integers(0, 4000, (9, 9), dtype=np.uint16)
            )
        rows.append({"cells": f"{{channel}}/{i}_{{channel}}.tif", "dose": f"{i} mg", "split": "train"})
    rows[-2]["split"] = "test"
    table = write_csv(tmp_path / "t.csv", rows)
    said = packed(capsys, table, "--to", tmp_path / "out")
    microscope = {"name": "microscope", "size": 8, "channels": ["DNA", "ER.2"]}
    source, modalities = source_of(said), (build("modality", microscope), build("modality", {"name": "text"}))
    (lacking,) = [record for record in source.train if cell(record, "dose") == "4 mg"]
    with pytest.raises(CellError, match=r"row 5.cells.\{channel\}.tif: ER.2.tif: no such file"):
        pair_of(source, "cells", "dose", modalities).views(lacking, "a")
    write_csv(table, rows[:-1])
    source = source_of(packed(capsys, table, "--to", tmp_path / "two"))
    assert_same(Table(str(table)), source, "cells", "dose", (microscope, {"name": "text"}))
    write_csv(table, [r | {"cells": "no/{channel}.tif"} for r in rows])
    said = packed(capsys, table, "--to", tmp_path / "three", code=1)
    assert "no/{channel}.tif: no such file, whatever the channel" in said


def test_several_values_in_a_cell(tmp_path, capsys):
    rows = pictures(tmp_path, 6)
    for i, row in enumerate(rows):
        row |= {
            "picture": [f"{i}.png", f"{(i + 1) % 6}.png"][: 1 + i % 2],
            "caption": [f"one {i}", f"eins {i}"],
        }
    table = write_jsonl(tmp_path / "t.jsonl", rows)
    image, text = {"name": "image", "size": 16}, {"name": "text"}
    source = source_of(packed(capsys, table, "--to", tmp_path / "out"))
    assert_same(Table(str(table)), source, "picture", "caption", (image, text))
    # as parts of a csv's cells, which only a recipe knows of
    rows = [r | {"picture": "|".join(r["picture"]), "caption": "; ".join(r["caption"])} for r in rows]
    table = write_csv(tmp_path / "t.csv", rows)
    recipe = {
        "name": "several",
        "source": {"name": "table", "root": str(table)},
        "pair": {
            "name": "cross_modal",
            "a": "picture",
            "b": "caption",
            "choose": ["picture"],
            "separator": "|",
        },
        "a": {"modality": image, "encoder": CONV, "expander": [6]},
        "b": {"modality": text, "encoder": {"name": "words", "dim": 8}, "expander": [6]},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
    }
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(recipe))
    source = source_of(packed(capsys, tmp_path / "several.yaml", "--to", tmp_path / "two"))
    options = {"choose": ["picture"], "separator": "|"}
    assert_same(Table(str(table)), source, "picture", "caption", (image, text), **options)


def test_files_in_cells_and_a_column_that_is_called_path(tmp_path, capsys):
    import pyarrow
    from pyarrow import parquet

    rows = pictures(tmp_path, 6)
    held = [
        {"path": r["picture"], "other": (tmp_path / r["picture"]).read_bytes(), "split": r["split"]}
        for r in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(held), tmp_path / "t.parquet")
    source = source_of(packed(capsys, tmp_path / "t.parquet", "--to", tmp_path / "out"))
    image = {"name": "image", "size": 16}
    assert_same(Table(str(tmp_path / "t.parquet")), source, "path", "other", (image, image))


def test_shards_are_packed_anew(tmp_path, capsys):
    table = write_csv(tmp_path / "in" / "birds.csv", pictures(tmp_path / "in", second=""))
    packed(capsys, table, "--to", tmp_path / "one")
    recipe = {
        "name": "again",
        "source": {"name": "webdataset", "root": str(tmp_path / "one"), "column": "picture"},
        "pair": {"name": "cross_modal", "a": "picture", "b": "caption"},
        "a": {"modality": {"name": "image", "size": 16}, "encoder": CONV, "expander": [6]},
        "b": {"modality": "text", "encoder": {"name": "words", "dim": 8}, "expander": [6]},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
    }
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    source = source_of(packed(capsys, tmp_path / "again.yaml", "--to", tmp_path / "two"))
    image = {"name": "image", "size": 16}
    before = {cell(r, "caption"): r for r in source_of_folder(tmp_path / "one").train}
    for record in source.train:
        pair = pair_of(
            source, "picture", "caption", (build("modality", image), build("modality", {"name": "text"}))
        )
        assert all(map(equal, raws(pair, record), raws(pair, before[cell(record, "caption")])))


def source_of_folder(folder, column="picture") -> WebDataset:
    return WebDataset(str(folder), column=column)


# ---- the folder ----


def test_the_index_and_the_manifest_say_what_is_there(tmp_path, capsys):
    from pyarrow import parquet

    rows = pictures(tmp_path / "in")
    for i, row in enumerate(rows):
        row |= {"label": f"kind {i % 3}", "size": f"{i} cm", "drawing": row["picture"] if i % 2 else ""}
    table = write_csv(tmp_path / "in" / "birds.csv", rows)
    said = packed(capsys, table, "--to", tmp_path / "out", "--size", "10.3KB")
    assert "column size is now json_size" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest) == {"format", "shards", "samples", "splits", "json_keys", "made_from"}
    assert manifest["json_keys"] == ["id", "caption", "kind", "split", "size"]
    assert (manifest["format"], manifest["samples"]) == (1, 8) and "birds.csv: 6 train" in manifest[
        "made_from"
    ]
    assert [s["name"] for s in manifest["shards"]] == manifest["splits"]["train"] + manifest["splits"]["test"]
    assert len(manifest["splits"]["train"]) > 1
    index = parquet.read_table(tmp_path / "out" / "index.parquet")
    assert index.schema.names == ["shard", "key", "suffix", "offset", "size", "text"]
    assert [str(t) for t in index.schema.types] == ["int32", "string", "string", "int64", "int64", "string"]
    found = index.to_pylist()
    for number, shard in enumerate(manifest["shards"]):
        content = (tmp_path / "out" / shard["name"]).read_bytes()
        assert len(content) == shard["bytes"] <= 10240 and len(content) % 10240 == 0
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = [(m.name, m.offset_data, m.size) for m in tar]
            assert all((m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in tar)
        own = [row for row in found if row["shard"] == number]
        assert members == [(f"{r['key']}.{r['suffix']}", r["offset"], r["size"]) for r in own]
        assert len({r["key"] for r in own}) == shard["samples"]
        for row in own:
            inside = content[row["offset"] : row["offset"] + row["size"]].decode(errors="replace")
            assert row["text"] == (inside if row["suffix"] == "cls" else None)
    with_index = source_of(said)
    shutil.move(tmp_path / "out" / "index.parquet", tmp_path / "index.parquet")
    (tmp_path / "out" / "manifest.json").unlink()
    without = source_of(said)
    for split in ("train", "test"):
        assert list(with_index.records(split)) == list(without.records(split))
    labels = {cell(r, "caption"): r["label"] for r in [*without.train, *without.test]}
    assert labels == {row["caption"]: row["label"] for row in rows}
    assert sum(r["drawing"] is None for r in [*without.train, *without.test]) == 4


def content_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_stopped_pack_goes_on_to_the_same_bytes(tmp_path, capsys, monkeypatch):
    table = write_csv(tmp_path / "in" / "birds.csv", pictures(tmp_path / "in", 16))
    command = table, "--size", "10.3KB", "--to"
    packed(capsys, *command, tmp_path / "whole", "--workers", "0")
    packed(capsys, *command, tmp_path / "threads", "--workers", "3")
    times, add = [], Tar.add

    def stopping(self, *given):
        times.append(given)
        if len(times) in (9, 26):  # in the second shard, and in the fourth
            raise KeyboardInterrupt
        return add(self, *given)

    monkeypatch.setattr(Tar, "add", stopping)
    assert "goes on after the last whole shard" in packed(capsys, *command, tmp_path / "out", code=75)
    whole = sorted(p.name for p in (tmp_path / "out" / "train").iterdir())
    assert whole and not any(name.endswith(".tmp") for name in whole)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "out" / "train" / f"birds-{len(whole):06d}.tar.tmp").write_bytes(b"of a killed process")
    packed(capsys, *command, tmp_path / "out", code=75)
    before = len(times)
    said = packed(capsys, *command, tmp_path / "out")
    assert "goes on after 3 whole shards" in said and len(times) - before == 2 * 4
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole") == content_of(tmp_path / "threads")
    assert "all shards are there: nothing to do" in packed(capsys, *command, tmp_path / "out")


def test_another_content_is_refused(tmp_path, capsys):
    table = write_csv(tmp_path / "in" / "birds.csv", pictures(tmp_path / "in"))
    packed(capsys, table, "--to", tmp_path / "out")
    said = packed(capsys, table, "--to", tmp_path / "out", "--size", "1MB", code=2)
    assert "holds the shards of another command: it differs in --size. Give another --to" in said
    png(tmp_path / "in" / "3.png", size=(50, 50))
    assert "it differs in files" in packed(capsys, table, "--to", tmp_path / "out", code=2)
    said = packed(capsys, table, "--to", tmp_path / "in", code=2)
    assert "in holds something else (0.png, 1.png, 2.png). Give a new or an empty folder" in said
    assert "birds.csv is a file, expected a folder" in packed(capsys, table, "--to", table, code=2)


# ---- what is bad ----


def test_bad_files_are_named_and_left_out(tmp_path, capsys):
    table = write_csv(tmp_path / "birds.csv", pictures(tmp_path))
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").unlink()
    said = packed(capsys, table, "--to", tmp_path / "out", code=1)
    assert "2 of 8 records cannot be read; data.max_bad_fraction=0.01 allows 1" in said
    assert "2.png: no such file" in said and "1.png: the file is empty (0 bytes)" in said
    said = packed(capsys, table, "data.max_bad_fraction=0.5", "--to", tmp_path / "out")
    assert "2 records cannot be read and are left out" in said
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(line["sample"] for line in bad) == ["row 2", "row 3"]
    assert all(line["cause"].startswith("column 'picture': ") for line in bad)
    assert len(source_of(said).train) == 4


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "needs RECIPE_OR_TABLE and --to FOLDER, or --verify FOLDER"),
        (["TABLE", "--to", "OUT", "--size", "12XB"], "--size: expected a size such as 50GB, got '12XB'"),
        (["TABLE", "--to", "OUT", "--size", "0GB"], "--size: 0. Expected a number from 1 on"),
        (["TABLE", "--to", "OUT", "--short-side", "3"], "--short-side: 3. Expected a number from 16 on"),
        (["TABLE", "--to", "OUT", "--crf", "20"], "no video is made anew. Give --short-side or --keyframes"),
        (["TABLE", "--to", "OUT", "--keyframes", "9", "--crf", "70"], "--crf: 70. Expected a number from 0"),
        (["TABLE", "--to", "OUT", "--workers", "-1"], "--workers: -1. Expected a number from 0 on"),
        (
            ["TABLE", "train.steps=3", "--to", "OUT"],
            "train: no recipe is given. Of a table, source.OPTION=value",
        ),
        (["TABLE", "source.colum=x", "--to", "OUT"], "colum"),
        (["TABLE", "data.max_bad_fraction=3", "--to", "OUT"], "data: "),
        (["TABLE", "--verify", "OUT"], "--verify: takes no RECIPE_OR_TABLE and no --to"),
        (["--verify", "OUT"], "manifest.json cannot be read"),
        (["no_such_recipe", "--to", "OUT"], "no_such_recipe"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, said):
    table = write_csv(tmp_path / "t.csv", pictures(tmp_path))
    names = {"TABLE": table, "OUT": tmp_path / "out"}
    assert said in packed(capsys, *(names.get(a, a) for a in arguments), code=2)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_packed(tmp_path, capsys, monkeypatch):
    rows = pictures(tmp_path)
    slash = [{"a/b": r.pop("picture"), **r} for r in map(dict, rows)]
    said = packed(capsys, write_csv(tmp_path / "s.csv", slash), "--to", tmp_path / "out", code=2)
    assert "column 'a/b' holds files, and a member of a tar file cannot be called so. Rename it" in said
    table = write_csv(tmp_path / "t.csv", rows)
    said = packed(capsys, "image_text", f"source.root={table}", f"source.second={table}", "pair.a=picture",
                  "pair.b=caption", "pair.key=kind", "source.split_by=kind", "source.split=null",
                  "--to", tmp_path / "out", code=2)  # fmt: skip
    assert "source.second: shards hold one table" in said
    monkeypatch.setattr(
        packing_folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 5000)
    )
    said = packed(capsys, table, "--to", tmp_path / "out", code=2)
    assert "out needs about 16 KB, 5 KB are free. Make room, or give another --to." in said
    assert not (tmp_path / "out").exists()


def test_verify_names_what_differs(tmp_path, capsys):
    table = write_csv(tmp_path / "in" / "t.csv", pictures(tmp_path / "in", 16))
    packed(capsys, table, "--to", tmp_path / "out", "--size", "10.3KB")
    shards = tmp_path / "out"
    assert f"verify: {shards}: all shards are whole" in packed(capsys, "--verify", shards)
    names = sorted((shards / "train").iterdir())
    content = bytearray(names[0].read_bytes())
    content[700] ^= 1
    names[0].write_bytes(content)
    names[1].write_bytes(names[1].read_bytes()[:-1])
    names[2].unlink()
    (shards / "x.tar").write_bytes(b"")
    said = packed(capsys, "--verify", shards, code=1)
    assert "train/t-000000.tar: has the right size, and other content than when it was written" in said
    assert f"train/t-000001.tar: has {len(content) - 1:,} bytes, expected {len(content):,}" in said
    assert "train/t-000002.tar: No such file" in said and "x.tar: is not in the manifest" in said
    assert "4 differ" in said


# ---- videos made anew ----


def film(
    path, seconds: float = 1.5, height: int = 96, width: int = 64, gap: int = 40, sound: str | None = "aac"
):
    """Moving bars, a key frame every `gap` frames with B-frames between, frames of uneven length, a tone."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 600)
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gap, 2
        voice = None if sound is None else container.add_stream(sound, rate=16000, layout="mono")
        for n in range(round(24 * seconds)):
            x = np.arange(width) + 3 * n
            image = np.broadcast_to((127 + 100 * np.sin(x / 9))[None, :, None], (height, width, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.astype(np.uint8)), format="rgb24")
            frame.pts, frame.time_base = 25 * n + 7 * (n % 3), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            wave = np.sin(np.arange(round(16000 * seconds)) / 7).astype(np.float32)[None] / 2
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            resampler = av.AudioResampler(format=voice.codec_context.format, layout="mono", rate=16000)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(voice.encode(part))
            container.mux(voice.encode())
    return path


def test_videos_are_made_anew_where_they_are_larger_or_have_few_key_frames(tmp_path, capsys):
    film(tmp_path / "large.mkv"), film(tmp_path / "small.mp4", height=32, width=48, gap=6)
    film(tmp_path / "few.mp4", height=32, width=48)
    film(tmp_path / "mulaw.mov", sound="pcm_mulaw"), film(tmp_path / "mute.mp4", sound=None)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "few.mp4").read_bytes()[:9000])
    names = ["large.mkv", "small.mp4", "few.mp4", "mulaw.mov", "mute.mp4", "broken.mp4"]
    rows = [{"film": n, "split": "test" if n == "few.mp4" else "train"} for n in names]
    table = write_csv(tmp_path / "t.csv", rows)
    wanted = "--short-side", "32", "--keyframes", "8", "--workers"
    said = packed(capsys, table, "--to", tmp_path / "out", *wanted, "0")
    source = source_of(said)
    records = {cell(r, "json_id"): r for r in [*source.train, *source.test]}
    assert "3 videos were made anew, which " in said
    assert "2 videos stay as they were:" in said
    assert "row 4: cannot be written as mp4" in said and "row 6: " in said
    for i, name in enumerate(names):
        part = records[f"row {i + 1}"]["film"]
        content, old = bytes_of(part), (tmp_path / name).read_bytes()
        assert (content == old) == (name in ("small.mp4", "mulaw.mov", "broken.mp4"))
        if content == old:
            continue
        assert part["id"].endswith(".film.mp4")
        (tmp_path / "new.mp4").write_bytes(content)
        with Video(tmp_path / name, "pyav") as before, Video(tmp_path / "new.mp4", "pyav") as after:
            shown = [v.info.timestamps_seconds - v.info.start_seconds for v in (before, after)]
            assert np.abs(shown[0] - shown[1]).max() < 1e-3
            assert (after.info.height, after.info.width) == ((32, 48) if name == "few.mp4" else (48, 32))
            two = [torch.from_numpy(v.read([0, 20, 35])).permute(0, 3, 1, 2) for v in (before, after)]
            small = resize(two[0], list(two[1].shape[2:]), antialias=True)
            assert (small.float() - two[1].float()).abs().mean() < 4
        assert longest_group(str(tmp_path / "new.mp4")) <= 8 < longest_group(str(tmp_path / name))
        if name != "mute.mp4":
            with Sound(tmp_path / name) as one, Sound(tmp_path / "new.mp4") as other:
                assert abs(one.seconds - other.seconds) < 0.1
                waves = [s.read(0.2, 0.8, 16000) for s in (one, other)]
                assert float((waves[0] - waves[1]).abs().max()) < 0.01 < float(waves[0].abs().max())
    packed(capsys, table, "--to", tmp_path / "two", *wanted, "2")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "two")


def test_a_film_that_would_not_be_the_same_stays(tmp_path, monkeypatch):
    """What was made is compared: frames, times, sound."""
    path, to = str(film(tmp_path / "a.mp4")), tmp_path / "b.mp4"
    encode = films.encode
    for other, said in (
        ({"seconds": 1.0}, "24 frames were written of 36"),
        ({"sound": None}, "its sound can be read only before or only after"),
    ):
        monkeypatch.setattr(films, "encode", lambda video, to, wanted: film(to, **other))
        with pytest.raises(NotTheSame, match=said):
            remade(path, to, Films(32))
    late = film(tmp_path / "late.mp4")
    monkeypatch.setattr(films, "sound_of", lambda path: (np.ones(9, np.float32) * (path == str(to)), 16000))
    monkeypatch.setattr(films, "encode", lambda video, to, wanted: shutil.copy(late, to))
    with pytest.raises(NotTheSame, match="its sound would be another one, or at another time"):
        remade(path, to, Films(32))
    monkeypatch.setattr(films, "encode", encode)
    assert not remade(path, to, Films(96)) and not remade(path, to, Films(None, 40))
