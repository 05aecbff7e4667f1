"""Tables: three formats with one meaning, rows without files, splits by a column, two tables joined; messages
for wrong ones."""

import gzip
import json
import pickle
import tempfile
import wave
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from vicjoint.data import BadDataError, Quarantine, Stream
from vicjoint.data.reading import build_reading
from vicjoint.files import cells, images
from vicjoint.files.cells import CellError
from vicjoint.pairs.augment import Augment
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Reading
from vicjoint.recipe import load_recipe
from vicjoint.registry import build, load_built_in
from vicjoint.sources.base import SourceError
from vicjoint.sources.rows import rows_of
from vicjoint.sources.table import Table
from vicjoint.video.write import write_mp4

load_built_in()

ROWS = [
    {"smiles": s, "mass": m, "captions": [f"{s} one", f"{s} two"], "split": split}
    for s, m, split in (("CCO", 46.07, "train"), ("c1ccccc1", 78.11, "train"), ("O", 18.02, "test"))
]


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        quoted = lambda value: (
            '"' + (json.dumps(value) if isinstance(value, list) else str(value)).replace('"', '""') + '"'
        )
        path.write_text(
            "\n".join([",".join(rows[0]), *(",".join(map(quoted, r.values())) for r in rows)]),
            encoding="utf-8",
        )
    return str(path)


def ids(records) -> list[str]:
    return [r["id"] for r in records]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_formats_keep_types_and_rows_without_files_have_numbers(tmp_path, suffix):
    source = Table(write(tmp_path / f"t{suffix}", ROWS))
    assert source.train == [
        {**row, "id": f"row {i}", "folder": str(tmp_path)} for i, row in enumerate(ROWS[:2], 1)
    ]
    assert ids(source.test) == ["row 3"] and source.test[0]["captions"] == ["O one", "O two"]
    assert source.describe() == f"table {tmp_path}/t{suffix}: 2 train, 1 test records"


def test_csv_without_files_is_text(tmp_path):
    source = Table(write(tmp_path / "t.csv", ROWS))
    assert source.train[0] == {
        "smiles": "CCO",
        "mass": "46.07",
        "captions": '["CCO one", "CCO two"]',
        "split": "train",
        "id": "row 1",
        "folder": str(tmp_path),
    }
    assert cells.values(source.train[0], "captions") == ['["CCO one", "CCO two"]']
    assert cells.values(source.train[0], "captions", several=True) == ["CCO one", "CCO two"]


def test_id_columns(tmp_path):
    rows = [{"id": f"m{i}", "name": f"n{i}", "folder": "x", "path_of": "y"} for i in range(4)]
    records = lambda source: sorted(source.train + source.test, key=lambda r: r["name"])
    plain = records(Table(write(tmp_path / "t.jsonl", rows)))
    assert ids(plain) == ["m0", "m1", "m2", "m3"]
    # the table's, whatever its columns are called
    assert plain[0]["table_folder"] == "x" and plain[0]["folder"] == str(tmp_path)
    named = records(Table(str(tmp_path / "t.jsonl"), id="name"))
    assert ids(named) == ["n0", "n1", "n2", "n3"] and named[0]["table_id"] == "m0"


def test_a_line_that_lacks_a_key_has_an_empty_cell(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{"b": "x"}\n{"a": 2, "b": null}\n')
    source = Table(str(tmp_path / "t.jsonl"))
    rows = sorted(source.train + source.test, key=lambda r: r["id"])
    assert [(r["a"], r["b"]) for r in rows] == [(1, None), (None, "x"), (2, None)]
    with pytest.raises(CellError, match="column 'b' is empty"):
        cells.values(rows[0], "b")


# ---- splits ----


def test_equal_cells_are_on_one_side(tmp_path):
    rows = [{"smiles": f"C{i % 20}", "n": i} for i in range(200)]
    source = Table(write(tmp_path / "t.jsonl", rows), split_by="smiles", test_fraction=0.25)
    train, test = ({r["smiles"] for r in part} for part in (source.train, source.test))
    assert not train & test and len(test) == 5 and len(source.train) == 150
    by_row = Table(str(tmp_path / "t.jsonl"), test_fraction=0.25)
    # without split_by they are on both
    assert {r["smiles"] for r in by_row.train} & {r["smiles"] for r in by_row.test}


def test_split_null_divides_anew(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"n": i, "split": "train" if i else "test"} for i in range(40)])
    assert len(Table(path).test) == 1 and len(Table(path, split=None, test_fraction=0.25).test) == 10
    assert len(Table(path, split=None, split_by="n", test_fraction=0.5).test) == 20
    with pytest.raises(
        SourceError,
        match="has a column 'split', so split_by=n would not be used. Leave out split_by, or set split=null",
    ):
        Table(path, split_by="n")


# ---- two tables ----


def test_second_table(tmp_path):
    first = write(
        tmp_path / "spoken" / "index.jsonl",
        [{"path": f"{i}.wav", "digit": i % 10, "split": "test" if i < 10 else "train"} for i in range(30)],
    )
    second = write(
        tmp_path / "written" / "index.csv",
        [{"path": f"{i}.png", "digit": i % 10, "split": "test" if i < 20 else "train"} for i in range(50)],
    )
    for folder, suffix in (("spoken", "wav"), ("written", "png")):
        for i in range(10):
            (tmp_path / folder / f"{i}.{suffix}").write_bytes(b"x")
    source = Table(first, second=second)
    assert (len(source.train), len(source.test), len(source.second["train"]), len(source.second["test"])) == (
        20,
        10,
        30,
        20,
    )
    assert source.second["test"][3] == {
        "id": "3.png",
        "path": str(tmp_path / "written" / "3.png"),
        "folder": str(tmp_path / "written"),
        "digit": "3",
        "split": "test",
        "second": True,
    }
    assert source.describe().endswith(f"second table {second}: 30 train, 20 test records")


def test_rows_that_lack_a_needed_cell_are_left_out(tmp_path):
    rows = [
        {
            "one": f"{i}.png",
            "other": "" if i % 3 else f"o{i}.png",
            "note": "",
            "split": "test" if i % 2 else "train",
        }
        for i in range(12)
    ]
    first = write(tmp_path / "t.csv", rows)
    source = Table(first, needs=["one", "other"])
    assert ids(source.train + source.test) == ["row 1", "row 7", "row 4", "row 10"]  # rows keep their numbers
    assert (
        source.describe()
        == f"table {first}: 2 train, 2 test records (8 rows with an empty one or other are left out)"
    )
    assert len(Table(first).train) == 6 and Table(first, needs=["one"]).describe().endswith(
        "6 train, 6 test records"
    )
    # the split by hash and messages go by the file, whatever is left out
    by_hash, whole = (
        Table(first, split=None, test_fraction=0.5, needs=["other"]),
        Table(first, split=None, test_fraction=0.5),
    )
    assert (
        set(ids(by_hash.train)) | set(ids(by_hash.test)) == {"row 1", "row 4", "row 7", "row 10"}
        and len(whole.train) == 6
    )
    lacks_path = write(
        tmp_path / "p.csv",
        [
            {"path": "", "x": "1", "split": "train"},
            {"path": "p.csv", "x": "", "split": "train"},
            {"path": "p.csv", "x": "2", "split": "train"},
            {"path": "t.csv", "x": "3", "split": "test"},
        ],
    )
    assert ids(Table(lacks_path, needs=["path", "x"]).train) == ["p.csv"]
    second = write(
        tmp_path / "second.csv",
        [{"one": "1.png", "extra": x, "split": split} for x in ("", "y") for split in ("train", "test")],
    )
    both = Table(first, second=second, needs=["extra"])
    assert [r["extra"] for r in both.second["train"]] == ["y"] and len(both.train) == 6
    with pytest.raises(SourceError, match=r"has no column 'othr' \(option needs\). Did you mean 'other'"):
        Table(first, needs=["othr"])
    with pytest.raises(
        SourceError,
        match=r"every row has an empty cell in one of the columns note \(option needs\). Leave it out",
    ):
        Table(first, needs=["note"])


def test_split_by_holds_over_both_tables(tmp_path):
    first = write(tmp_path / "graphs.jsonl", [{"smiles": f"C{i}"} for i in range(40)])
    second = write(tmp_path / "wells.jsonl", [{"smiles": f"C{i % 30 + 20}", "well": i} for i in range(90)])
    source = Table(first, second=second, split_by="smiles")
    assert {r["smiles"] for r in source.train}.isdisjoint(r["smiles"] for r in source.second["test"])
    assert {r["smiles"] for r in source.test}.isdisjoint(r["smiles"] for r in source.second["train"])
    with pytest.raises(
        SourceError, match="wells.jsonl has no column 'smile' .option split_by.. Did you mean 'smiles'"
    ):
        write(tmp_path / "graphs.jsonl", [{"smile": f"C{i}"} for i in range(40)])
        Table(first, second=second, split_by="smile")


# ---- cells ----


def test_paths_of_cells(tmp_path):
    """Relative to the table's folder, absolute as they are, `..` leads out, spaces around do not count; `~`
    is a name like any other."""
    record = {"folder": "/data/table"}
    found = [
        cells.file_path(record, v)
        for v in ("a.png", "sub/../b.png", "../other/c.png", "/abs/./d.png", " e.png ", "~/f.png")
    ]
    assert found == [
        "/data/table/a.png",
        "/data/table/b.png",
        "/data/other/c.png",
        "/abs/d.png",
        "/data/table/e.png",
        "/data/table/~/f.png",
    ]
    with pytest.raises(CellError, match="expected the path of a file, got int 3"):
        cells.file_path(record, 3)


@pytest.mark.parametrize(
    "cell, several, separator, expected",
    [
        ("[Na+].[Cl-]", False, None, ["[Na+].[Cl-]"]),
        ("[Na+].[Cl-]", True, None, ["[Na+].[Cl-]"]),
        ('["a", "", "b"]', True, None, ["a", "b"]),
        ("a | b |", True, "|", ["a", "b"]),
        ("a | b", False, None, ["a | b"]),
        (["a", "b"], False, None, ["a", "b"]),
        (7, False, None, ["7"]),
        ([0.1, 0.2], False, None, [[0.1, 0.2]]),
        ({"x": 1}, False, None, [{"x": 1}]),
        (0, False, None, ["0"]),
    ],
)
def test_what_a_cell_holds(cell, several, separator, expected):
    assert cells.values({"c": cell}, "c", several, separator) == expected


@pytest.mark.parametrize("cell", ["", "  ", None, [], ["", " "]])
def test_empty_cells(cell):
    with pytest.raises(CellError, match="column 'c' is empty"):
        cells.values({"c": cell}, "c")


def test_pairs_of_files_name_what_the_table_lacks(tmp_path):
    record = Table(write(tmp_path / "t.jsonl", ROWS)).train[0]
    for pair in (NextFrame(), Augment(32)):
        with pytest.raises(
            ValueError, match="its table has no column 'path'. Name the column with the files: source.column="
        ):
            pair.sample(record, None)


# ---- wrong tables ----


@pytest.mark.parametrize(
    "name, text, options, message",
    [
        ("t.jsonl", '{"a": 1}\n{"a": \n', {}, "line 2: is not JSON: .* Expected an object such as"),
        ("t.jsonl", '{"a": 1}\n[1]\n', {}, "line 2: is list, expected an object such as"),
        ("t.jsonl", "", {}, "t.jsonl is empty, expected at least two rows"),
        ("t.jsonl", '{"a": 1}\n', {}, "only one row .row 1., expected two or more"),
        (
            "t.jsonl",
            '{"a": 1}\n{"a": null}\n{"a": 2}\n',
            {"split_by": "a"},
            "split_by: column 'a' is empty in some row",
        ),
        (
            "t.jsonl",
            '{"id": "x", "split": "train"}\n{"id": "x", "split": "test"}\n',
            {},
            "rows named 'x' are in train and in test. Name another id column",
        ),
        ("t.jsonl", '{"path": 3}\n{"path": 4}\n', {}, "none of the first 2 files exists, .* is .*/3. P"),
        ("t.json", '[{"a": 1}', {}, "t.json is not JSON: .* Expected a list of objects"),
        ("t.json", '[{"a": 1}, 2]', {}, "line 2: is int, expected an object such as"),
        (
            "t.csv.gz",
            "a,b\n1,2\n",
            {},
            "cannot read .*t.csv.gz: Not a gzipped file .* Expected a csv file in UTF-8",
        ),
        ("t.csv", 'a,b\n1,2\n3,"4\n5,6\n7,8\n', {}, "line 3: a quote begins there and does not end"),
        ("t.csv", "name\na\nb\n", {"id": "nam"}, "no column 'nam' .option id.. Did you mean 'name'"),
        (
            "t.csv",
            "name\na\nb\n",
            {"split_by": "nam"},
            "no column 'nam' .option split_by.. Did you mean 'name'",
        ),
        ("t.parquet", "no parquet", {}, "cannot read .*t.parquet: .* Expected a parquet file"),
        ("t.xls", "a\tb\n", {}, "ends in '.xls', expected one of .csv .tsv .tab .jsonl"),
    ],
)
def test_wrong_tables(tmp_path, name, text, options, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        Table(str(tmp_path / name), **options)


def test_real_tables(shared_data):
    grid = Table(str(shared_data / "grid_av" / "index.csv"), id="utterance")
    assert (len(grid.train), len(grid.test)) == (498, 102) and grid.test[0]["id"] == "bbaf2n"
    assert Path(cells.file_path(grid.test[0], grid.test[0]["audio"])).is_file()
    molecules = Table(str(shared_data / "molecules" / "esol.csv"), split=None, split_by="smiles")
    assert len(molecules.train) + len(molecules.test) == 1127 and molecules.train[0]["id"].startswith("esol_")
    proteins = Table(str(shared_data / "proteins" / "deeploc.csv"), id="uniprot")
    assert (len(proteins.train), len(proteins.test)) == (2319, 449)


# ---- row by row ----


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_come_one_by_one(tmp_path, suffix, monkeypatch):
    path = Path(write(tmp_path / f"t{suffix}", [{"n": i, "text": f"a, b\n{i}"} for i in range(5000)]))
    coming = rows_of(path)
    line, row = next(coming)
    assert str(row["n"]) == "0" and line == {".csv": 3, ".jsonl": 1, ".parquet": 1}[suffix]
    assert [str(row["n"]) for _, row in coming] == [str(i) for i in range(1, 5000)]


def test_a_mistake_in_the_middle_comes_when_it_is_met(tmp_path):
    lines = ["n,text", *(f"{i},caf" for i in range(300_000))]
    content = "\n".join(lines).encode()
    place = len(content) - 1
    (tmp_path / "t.csv").write_bytes(content[:-1] + b"\xe9\n")
    coming = rows_of(tmp_path / "t.csv")
    assert next(coming) == (2, {"n": "0", "text": "caf"})
    with pytest.raises(SourceError, match=f"is not UTF-8: .* at byte {place}. Save it as UTF-8"):
        list(coming)


# ---- dialects ----

MEANT = [
    {
        "path": f"{i}.png",
        "caption": f'a cat, number {i}; "seen"\nfrom\tthe side',
        "label": "cat dog".split()[i % 2],
    }
    for i in range(30)
]


def as_csv(separator: str, blank: str = "") -> str:
    quoted = lambda value: '"' + value.replace('"', '""') + '"'
    line = lambda values: f"{separator}{blank}".join(values)
    rows = [line([row["path"], quoted(row["caption"]), row["label"] + blank]) for row in MEANT]
    return "\r\n".join([line(MEANT[0]), *rows]) + "\r\n"


FORMS = {
    "comma.csv": as_csv(","),
    "semicolon.csv": as_csv(";"),
    "tab.csv": as_csv("\t"),
    "tab.tsv": as_csv("\t"),
    "upper.TSV": as_csv("\t"),
    "comma.tsv": as_csv(","),
    "tab.tab": as_csv("\t"),
    "blank.csv": as_csv(",", " "),
    "blanks.csv": as_csv(";", "   "),
    "bom.csv": "\ufeff" + as_csv(";"),
    "lines.jsonl": "\n".join(map(json.dumps, MEANT)),
    "lines.ndjson": "\n".join(map(json.dumps, MEANT)),
    "list.json": json.dumps(MEANT, indent=1),
    "bom.json": "\ufeff \n" + json.dumps(MEANT),
    "lines.json": "\n".join(map(json.dumps, MEANT)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_every_dialect_means_the_same(tmp_path, name, packed):
    (tmp_path / "0.png").write_bytes(b"x")
    path, content = tmp_path / f"{name}{'.gz' if packed else ''}", FORMS[name].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [row for _, row in rows_of(path)] == MEANT
    found = Table(str(path))
    assert len(found.train) + len(found.test) == 30 and found.train[0]["caption"].startswith("a cat, number")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\n1\n2\n", {"a": "1"}),  # one column
        ("a;b\n1,5;2,5\n3,5;4,5\n", {"a": "1,5", "b": "2,5"}),  # decimal commas
        ("path\tcaption\na.png\tred, green, blue\n", {"path": "a.png", "caption": "red, green, blue"}),
        (
            "x\tcaption, in English, short\n1\tone\n2\ttwo, or so\n",
            {"x": "1", "caption, in English, short": "one"},
        ),
        ("a,b,\n1,2,\n", {"a": "1", "b": "2", "": ""}),
        (' a , "b c" ,d\n 1 , "2, 3" ,\t4 \n', {"a": "1", "b c": "2, 3", "d": "4"}),
    ],
)
def test_the_separator_is_found(tmp_path, text, expected):
    (tmp_path / "t.csv").write_text(text)
    assert next(rows_of(tmp_path / "t.csv"))[1] == expected


def test_a_cell_may_hold_a_document(tmp_path):
    (tmp_path / "t.csv").write_text(f"a,b\n{'word ' * 100_000},2\n")
    assert [len(row["a"]) for _, row in rows_of(tmp_path / "t.csv")] == [499_999]


def test_damaged_tables_are_named(tmp_path):
    whole = gzip.compress(as_csv(",").encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "deep.jsonl").write_text('{"a":' * 100_000)
    latin = gzip.compress("path\né.png\n".encode("latin-1"))
    (tmp_path / "latin.csv.gz").write_bytes(latin)
    for name, message in {
        "cut.csv.gz": "cannot read .*cut.csv.gz: .*Expected a csv file",
        "deep.json": "deep.json is not JSON",
        "deep.jsonl": "line 1: is not JSON",
        "latin.csv.gz": "is not UTF-8: .* at byte 5",
    }.items():
        with pytest.raises(SourceError, match=message):
            list(rows_of(tmp_path / name))


# ---- bad rows ----


def test_a_bad_row_is_a_bad_sample(tmp_path):
    picture(tmp_path / "a.png", 7)
    paths = [
        "a.png",
        None,
        "",
        " ",
        "nan",
        3,
        [1],
        {"x": 1},
        "a\0b.png",
        "half \ud800.png",
        " a.png ",
        "gone.png",
    ]
    rows = [{"path": path, "split": "test" if i > 10 else "train"} for i, path in enumerate(paths)]
    found = Table(write(tmp_path / "t.jsonl", rows))
    assert (len(found.train), len(found.test)) == (11, 1)
    causes = {}
    for record in found.train:
        try:
            assert images.read_record(record).shape == (3, 4, 4)
        except ValueError as error:
            causes[record["id"]] = str(error)
    assert len(causes) == 9 and ids(found.train)[10] == "a.png (2)"
    empty = [cause for cause in causes.values() if cause == "the cell that names its file is empty"]
    assert len(empty) == 4 and all(name in causes for name in ("row 2", "row 3", "row 4", "row 5", "3"))
    with pytest.raises(ValueError, match="names its file is empty"):
        NextFrame().sample(found.train[1], np.random.default_rng(0))


def test_rows_without_an_id_have_their_number(tmp_path):
    found = Table(
        write(tmp_path / "t.jsonl", [{"id": i} for i in ("x", "", "x", None, 7)]), test_fraction=0.2
    )
    assert sorted(ids(found.train + found.test)) == ["7", "row 2", "row 4", "x", "x (2)"]
    assert found.describe().endswith("; ids that came again have a number after them: 1 rows")


def test_the_limit_of_bad_samples_counts_records(tmp_path):
    """Not files: two rows of one damaged file are two."""
    (tmp_path / "bad.png").write_bytes(b"x")
    picture(tmp_path / "good.png", 7), picture(tmp_path / "other.png", 7)
    names = ["bad.png"] * 4 + ["good.png"] * 5 + ["other.png"]
    rows = [{"path": name, "split": "test" if name == "other.png" else "train"} for name in names]
    found = Table(write(tmp_path / "t.jsonl", rows))
    stream = Stream(found.train, Augment(8), seed=0)
    bad = {pair for position in range(9) for pair in stream[position][-1]}
    assert {name for name, _ in bad} == {"bad.png", "bad.png (2)", "bad.png (3)", "bad.png (4)"}
    Quarantine(tmp_path / "q.jsonl", "t", 9, 4 / 9).add(sorted(bad))
    with pytest.raises(BadDataError, match="4 of 9 samples cannot be read; .* allows 3"):
        Quarantine(tmp_path / "r.jsonl", "t", 9, 3 / 9).add(sorted(bad))


# ---- files in cells ----


def picture(path: Path, level: int) -> bytes:
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(path)
    return path.read_bytes()


def sound(path: Path, level: float) -> bytes:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(np.full(8000, round(level * 500), "<i2").tobytes())
    return path.read_bytes()


def film(path: Path, level: int) -> bytes:
    write_mp4(path, np.full((12, 32, 32, 3), level, np.uint8))
    return path.read_bytes()


def micro(path: Path, level: int) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, np.arange(2 * 32 * 32, dtype=np.uint16).reshape(2, 32, 32) + level)
    return path.read_bytes()


READERS = {
    "image": (picture, ".png", {"size": 8}),
    "audio": (sound, ".wav", {"seconds": 0.5, "rate_hz": 8000}),
    "clip": (film, ".mp4", {"frames": 2, "size": 32}),
    "microscope": (micro, ".tif", {"channels": 2, "size": 32}),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("modality", READERS)
def test_a_cell_may_hold_the_file_itself(tmp_path, modality, named, monkeypatch):
    """As bytes, and as {bytes, path} as Hugging Face writes it: read as from its file."""
    make, ending, options = READERS[modality]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    rows = []
    for i in range(4):
        content = make(tmp_path / f"{i}{ending}", 20 + i)
        cell = {"bytes": content, "path": f"{i}{ending}"} if named else content
        rows.append({"cell": cell, "path": f"{i}{ending}", "text": f"number {i}"})
    found = Table(write(tmp_path / "t.parquet", rows))
    reader, text = build("modality", {"name": modality, **options}), build("modality", {"name": "text"})
    views = {}
    for column in ("cell", "path"):
        pair = CrossModal(column, "text")
        pair.bind(Reading((reader, text), found))
        views[column] = [pair.views(record, "a")[0] for record in found.train]
        assert pair.sample(found.train[0], np.random.default_rng(0))[0].shape == views[column][0].raw.shape
    for a, b in zip(views["cell"], views["path"]):
        assert torch.equal(a.raw, b.raw) and len(a.content) < 200
    assert len({view.content for view in views["cell"]}) == 3
    assert not list(scratch.iterdir())  # nothing is left behind


def test_a_damaged_file_in_a_cell_has_a_short_cause(tmp_path):
    rows = [{"cell": {"bytes": b"\x1b[31m" * 9, "path": "x.wav"}, "text": f"{i}"} for i in range(3)]
    found = Table(write(tmp_path / "t.parquet", rows))
    audio, text = build("modality", {"name": "audio"}), build("modality", {"name": "text"})
    pair = CrossModal("cell", "text")
    pair.bind(Reading((audio, text), found))
    with pytest.raises(CellError, match="column 'cell': x.wav") as caught:
        pair.sample(found.train[0], np.random.default_rng(0))
    assert len(str(caught.value)) < 200 and tempfile.gettempdir() not in str(caught.value)


def test_pairs_that_read_for_themselves_take_cells_with_files(tmp_path):
    rows = [{"film": film(tmp_path / f"{i}.mp4", 50 + i), "n": i} for i in range(4)]
    found = Table(write(tmp_path / "t.parquet", rows), column="film")
    assert (
        ids(found.train + found.test) and "film" in found.train[0] and found.train[0]["id"].startswith("row ")
    )
    source = f"source={{name: table, root: {tmp_path / 't.parquet'}, column: film}}"
    tasks, _ = build_reading(load_recipe("video_next_frame", [source]))
    assert tasks[0].source.train == found.train
    clip, target = NextFrame(frames=2, size=32).sample(found.train[0], np.random.default_rng(0))
    level = 50 + found.train[0]["n"]
    assert abs(float(clip.float().mean()) - level) < 3 and abs(float(target.float().mean()) - level) < 3
    rows = [{"picture": {"bytes": picture(tmp_path / "p.png", 9 * i), "path": None}} for i in range(4)]
    found = Table(write(tmp_path / "u.parquet", rows), column="picture")
    levels = [int(Augment(4).views(r, "a")[0].raw[0, 0, 0, 0]) for r in found.train + found.test]
    assert sorted(levels) == [0, 9, 18, 27]


PATHS = {  # cells, and the ids of their rows
    **{"a.png": "a.png", " b.png ": "b.png", "in/./c.png": "in/c.png", "in/../d.png": "d.png"},
    **{"in//e.png": "in/e.png", "../f.png": "../f.png", "..": "..", "../t": ".", "in/..": ". (2)"},
    **{"in\\g.png": "in/g.png", "in/NA": "in/NA", "": "row 12", "#N/A": "row 13", "in/": "in"},
}


def test_ids_and_paths_are_those_of_each_cell_alone(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.png").write_bytes(b"1")
    rows = [{"path": cell, "split": "test" if cell == "a.png" else "train"} for cell in PATHS]
    found = Table(write(tmp_path / "t" / "rows.csv", rows))
    records = {r["id"]: r["path"] for r in found.train + found.test}
    assert sorted(records) == sorted(PATHS.values())
    of = {"folder": str(tmp_path / "t")}
    for cell, name in PATHS.items():
        empty = name.startswith("row")
        assert records[name] == (None if empty else cells.file_path(of, cell)), cell


def test_links_are_found_among_the_files_of_a_listed_folder(tmp_path):
    """Where a folder has many more files than the table, only some of it is listed."""
    for folder, others in (("small", 0), ("large", 40)):
        (tmp_path / folder).mkdir()
        for name in ("a.png", *(f"{i}.txt" for i in range(others))):
            (tmp_path / folder / name).write_bytes(b"1")
        (tmp_path / folder / "z.png").symlink_to("a.png")
        rows = [{"path": f"{folder}/{name}.png", "split": s} for name, s in (("a", "train"), ("z", "test"))]
        path = write(tmp_path / f"{folder}.csv", rows)
        with pytest.raises(SourceError, match=rf"{folder}/a.png in train and {folder}/z.png in test are the"):
            Table(path)


def test_a_large_table_of_files_and_of_cells_that_hold_them(tmp_path, monkeypatch):
    from vicjoint.sources import columns

    content = picture(tmp_path / "p.png", 7)
    rows = [{"path": {"bytes": content if i % 2 else None, "path": f"{i}.png"}, "n": i} for i in range(20)]
    path = write(tmp_path / "t.parquet", rows)
    small = Table(path)
    monkeypatch.setattr(columns, "MANY", 10)
    large = Table(path)
    assert list(large.train) == small.train and list(large.ids("train")) == ids(small.train)
    assert {"bytes" in r for r in large.train} == {True, False}
    assert large.lacks("train", "bytes").tolist() == ["bytes" not in r for r in small.train]
    assert list(pickle.loads(pickle.dumps(large.train))) == small.train


def test_a_large_table_is_kept_by_columns(tmp_path, monkeypatch):
    """The same records, and less to send to each process that reads."""
    from vicjoint.sources import columns

    rows = [
        {
            "id": f"r{i}",
            "text": f"ä {i}",
            "n": i,
            "x": i / 3,
            "many": [f"{i}", "b"],
            "odd": None if i % 2 else i,
        }
        for i in range(200)
    ]
    rows[7] |= {"odd": 2**70}
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    small = Table(str(path))
    monkeypatch.setattr(columns, "MANY", 10)
    large = Table(str(path))
    assert isinstance(small.train, list) and not isinstance(large.train, list)
    assert list(large.train) == small.train and large.train[-1] == small.train[-1]
    assert large.describe() == small.describe() and list(large.ids("test")) == list(small.ids("test"))
    assert [type(v) for v in large.train[3].values()] == [type(v) for v in small.train[3].values()]
    monkeypatch.setattr(columns, "LARGE", 1)
    assert list(pickle.loads(pickle.dumps(large.train))) == small.train
