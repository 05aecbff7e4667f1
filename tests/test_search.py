"""Search: exact neighbours, indexes that are read or refused, spaces that can be compared, what the command
prints and writes."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

import indexes

from vicjoint import search as command
from vicjoint.embeddings import neighbours as near
from vicjoint.embeddings.found import Hit, Side, write_found
from vicjoint.embeddings.neighbours import neighbours
from vicjoint.embeddings.rows import rows_of
from vicjoint.embeddings.spaces import SpaceError, check_space
from vicjoint.embeddings.store import read_index
from vicjoint.search import Searcher, main, search

NASTY = "<script>alert(1)</script>\x1b[31m.png"


def reference(queries, matrix):
    """Similarities [Q, N] in float64, one by one."""
    mean = matrix[np.isfinite(matrix).all(1)].astype(np.float64).mean(0)
    unit = lambda x: (x - mean) / np.linalg.norm(x - mean)
    return np.array([[unit(q) @ unit(row) for row in matrix] for q in queries.astype(np.float64)])


# ---- neighbours ----


@pytest.mark.parametrize("at_once", [2**24, 64], ids=["one block", "blocks"])
def test_neighbours_are_the_most_similar_seen_from_the_mean(monkeypatch, at_once):
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(100, 12)).astype(np.float32) + 3  # far from the origin
    queries = rng.normal(size=(7, 12)).astype(np.float32) + 3
    similarity, numbers = neighbours(queries, matrix, 5)
    expected = reference(queries, matrix)
    assert np.array_equal(numbers, np.argsort(-expected, 1)[:, :5])
    assert np.allclose(similarity, -np.sort(-expected, 1)[:, :5], atol=1e-5)


def test_what_is_not_finite_is_near_to_nothing():
    matrix = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    matrix[2, 1], matrix[4] = np.nan, np.inf
    queries = matrix[[0, 2]]
    similarity, numbers = neighbours(queries, matrix, 8)
    assert sorted(numbers[0]) == [-1, -1, -1, -1, 0, 1, 3, 5] and numbers[0, 0] == 0
    assert np.isclose(similarity[0, 0], 1) and np.isneginf(similarity[0, 4:]).all()
    assert (numbers[1] == -1).all()


def test_faiss_finds_the_same(monkeypatch):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    matrix, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (300, 20))
    matrix[5] = np.nan
    expected = neighbours(queries, matrix, 10)
    monkeypatch.setattr(near, "FAISS_FROM", 0)
    monkeypatch.setattr(near, "torch_nearest", None)
    found = neighbours(queries, matrix, 10)
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], atol=1e-6)


# ---- indexes ----


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_index_gives_vectors_and_rows(tmp_path, dtype):
    vectors, columns = np.arange(12).reshape(3, 4), {"class": ["dog", None, "cat"]}
    path = indexes.write_index(tmp_path / "i.parquet", "abc", vectors, columns, [(0.0, 1.5)] * 3, dtype)
    index = read_index(path)
    assert index.matrix.dtype == np.float32 and np.array_equal(index.matrix, vectors)
    assert index.metadata["branch"] == "a" and len(index) == 3
    first, second = rows_of(index, [2, 1])
    assert first == {"item": "c", "start_seconds": 0.0, "end_seconds": 1.5, "class": "cat"}
    assert second["item"] == "b" and second["class"] is None


def test_what_is_no_index_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    text, table = tmp_path / "text.parquet", tmp_path / "table.parquet"
    text.write_text("item,embedding\n")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), table)
    for path in (tmp_path / "none", text, table):
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*written by python -m vicjoint.embed"):
            read_index(path)


def test_only_one_space_is_compared():
    index = indexes.FACTS | {"dim": 8}
    check_space(index, index, "query")
    check_space(index, index | {"branch": "b"}, "query")
    of_y = index | {"space": "representation"}
    check_space(of_y, of_y, "query")
    for here, other, said in (
        (
            index,
            index | {"model": "ffff", "run": "runs/2", "step": None},
            "those of runs/tiny/1 at step 8 (model",
        ),
        (index, of_y, "holds the space 'embedding', and here is 'representation'. Embed both"),
        (of_y, of_y | {"branch": "b"}, "Embed with --space embedding, where branches meet"),
        (index, index | {"dim": 9}, "of width 9, the index has width 8"),
    ):
        with pytest.raises(SpaceError) as error:
            check_space(here, other, "query")
        assert str(error.value).startswith("query: ") and said in str(error.value)


# ---- search ----


class Fake:
    """An encoder of texts "x y": the two numbers."""

    def __init__(self, run, branch, step, model="abc123"):
        spec = SimpleNamespace(modality={"name": "text"})
        recipe = SimpleNamespace(branches={branch: spec})
        self.origin = SimpleNamespace(folder=run, step=step, model=model, branch=branch, recipe=recipe)
        self.reader = SimpleNamespace(reads="text")

    def width(self, space):
        return 2

    def embed(self, items, space):
        try:
            return torch.tensor([[float(x) for x in item.split()] for item in items])
        except ValueError as error:
            raise ValueError(f"item 0: {items[0]}: {error}") from None


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Four pictures around their mean (10, 10); and encoders that load."""
    monkeypatch.setattr(command, "load_encoder", lambda run, branch, step, imports: Fake(run, branch, step))
    items = [indexes.png(tmp_path / f"{name}.png") for name in ("east", "north", "west", "south")]
    vectors = [[12, 10], [10, 11], [8, 10], [10, 9]]
    columns = {"way": ["east", NASTY, "west", None], "number": [1.5, float("nan"), 3.0, None]}
    facts = {"modality": "image", "reads": "file"}
    return indexes.write_index(tmp_path / "i.parquet", items, vectors, columns, **facts)


def test_the_nearest_come_first(index):
    hits = search("run", index, "11 10.2", branch="b", k=2)
    assert [hit.item.rsplit("/")[-1] for hit in hits] == ["east.png", "north.png"]
    assert [hit.rank for hit in hits] == [1, 2] and hits[0].columns["way"] == "east"
    assert hits[0].similarity == pytest.approx(1 / np.hypot(1, 0.2), abs=1e-5)
    # seen from the mean: from the origin, all four would be alike
    assert search("run", index, "9 10")[3].similarity == pytest.approx(-1)
    assert len(search("run", index, "9 10", k=99)) == 4


def test_the_query_comes_from_the_branch_of_the_index_unless_another_is_named(index):
    assert Searcher("run", index).encoder.origin.branch == "a"
    assert Searcher("run", index, branch="b").encoder.origin.branch == "b"


def test_the_command_prints_a_table_and_writes_files(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    found, page = tmp_path / "found.json", tmp_path / "found.html"
    asked = ["run", "--index", str(index), "--query", "10 12", "--k", "3", "--json", str(found)]
    assert main([*asked, "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "item", "way", "number"]
    assert lines[1].startswith("1     1.000") and "north.png" in lines[1] and "\x1b" not in lines[1]
    assert len(lines) == 6
    read = json.loads(found.read_text())
    assert read["query"] == "10 12" and [hit["rank"] for hit in read["hits"]] == [1, 2, 3]
    assert read["hits"][0]["columns"] == {"way": NASTY, "number": None}
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 3
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html and "\x1b" not in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)


def test_a_page_of_texts_has_no_markup_of_theirs(tmp_path):
    hit = Hit(1, 0.5, NASTY, 1.0, 2.5, {NASTY: NASTY})
    write_found(tmp_path / "found.html", NASTY, Side("text", "text"), [hit], Side("text", "text"))
    html = (tmp_path / "found.html").read_text()
    assert "<script" not in html and "\x1b" not in html and html.count("&lt;script&gt;alert(1)") == 5
    assert "1-2.5 s" in html


def test_columns_without_room_are_named(index, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["run", "--index", str(index), "--query", "10 12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "item"] and lines[-1] == "(no room for way, number)"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--query", "north"], "item 0: north: could not convert string to float"),
        (["--k", "0"], "k: 0, expected at least one item."),
        (["--index", "nowhere"], "nowhere: no such file"),
    ],
)
def test_what_cannot_be_searched_is_said(index, changed, said, capsys):
    assert main(["run", "--index", str(index), "--query", "1 2", *changed]) == 2
    assert said in capsys.readouterr().err


def test_other_weights_are_refused(index, monkeypatch, capsys):
    other = lambda run, branch, step, imports: Fake(run, branch, step, model="ffff")
    monkeypatch.setattr(command, "load_encoder", other)
    assert main(["runs/2", "--index", str(index), "--query", "1 2", "--step", "4"]) == 2
    said = capsys.readouterr().err
    assert "query: the index was made with other weights: those of runs/tiny/1 at step 8" in said
    assert "runs/2 at step 4 (model ffff)" in said and "--step" in said
