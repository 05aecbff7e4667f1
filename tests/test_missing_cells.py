"""A row without one of the modalities is used for the pairs it has; pairs take turns by their shares."""

import io
import json
import tarfile
from collections import Counter
from fractions import Fraction

import pytest
import two_texts

import vicjoint
from vicjoint.data.complete import lacks
from vicjoint.data.reading import build_reading, sources_of
from vicjoint.data.shares import Shares
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import build, load_built_in
from vicjoint.sources import columns, table
from vicjoint.training.build import build_parts

load_built_in()
BRANCH = two_texts.BRANCH


def pair_of(a, b, **options):
    return {"a": a, "b": b, "pair": {"name": "cross_modal", "a": a, "b": b}, **options}


@pytest.fixture
def gaps(tmp_path, monkeypatch):
    """60 training rows, of which x and y have 40, x and z 20, y and z 10; 15 for testing, alike."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(75):
        has = {"x": i % 6 != 5, "y": i % 6 < 4 or i % 6 == 5, "z": i % 6 in (3, 4, 5)}
        has["z"] = has["z"] and not (i % 6 == 5 and i % 12 == 5)
        cells = {c: f"{c} {i}" if there else [None, "", "nan"][i % 3] for c, there in has.items()}
        rows.append({"id": f"r{i}", **cells, "split": "test" if i >= 60 else "train"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(*overrides, pairs=None, **changes):
        made = two_texts.recipe(6, source={"name": "table", "root": "t.jsonl"}, **changes)
        if pairs is not None:
            for key in ("pair", "a", "b"):
                del made[key]
            made |= {"branches": {name: BRANCH for name in "xyz"}, "pairs": pairs}
        return load_recipe(made, list(overrides))

    recipe.rows = [row for row in rows if row["split"] == "train"]
    return recipe


def test_each_pair_has_its_rows(gaps, capsys):
    parts = build_parts(gaps(pairs=[pair_of("x", "y"), pair_of("x", "z")]))
    said = capsys.readouterr().out
    assert "x-y: 40 of 60 train and 11 of 15 test records have what the pair reads" in said
    assert "x-z: 20 of 60 train and 4 of 15 test records have what the pair reads" in said
    seen = {"x-y": Counter(), "x-z": Counter()}
    with parts.batches(0, 0, 20) as batches:
        for step, (batch, bad) in enumerate(batches):
            assert not bad
            seen[parts.turn(step)[0].name].update(name.split("@")[0] for name in batch.samples)
    full = lambda *needed: {r["id"] for r in gaps.rows if all(r[c] not in (None, "", "nan") for c in needed)}
    assert set(seen["x-y"]) == full("x", "y") and set(seen["x-z"]) == full("x", "z")
    assert set(seen["x-y"].values()) == {1} and set(seen["x-z"].values()) == {2}
    assert full("x", "z") - full("x", "y")  # rows without y, which are used
    with parts.batches(0, 11, 20) as again, parts.batches(0, 0, 20) as whole:
        assert [b.samples for b, _ in again] == [b.samples for b, _ in whole][11:]


def test_a_run_and_its_evaluation(gaps, tmp_path):
    """Also of two branches that are not trained together."""
    folder = vicjoint.train(gaps(f"out={tmp_path / 'run'}", pairs=[pair_of("x", "y"), pair_of("x", "z")]))
    assert not (folder / "bad_samples.jsonl").exists()
    found = json.loads((folder / "evaluation.json").read_text())
    assert set(found) == {"retrieval x-y", "retrieval x-z", "retrieval y-z"}
    chance = {name: rows["chance"]["a_to_b_r1"] for name, rows in found.items()}
    tests = {"retrieval x-y": 11, "retrieval x-z": 4, "retrieval y-z": 3}
    assert chance == pytest.approx({name: 1 / count for name, count in tests.items()})


def test_one_pair(gaps, capsys):
    parts = build_parts(gaps("train.epochs=3", "train.steps=null"))
    assert "a-b: 40 of 60 train and 11 of 15 test records" in capsys.readouterr().out
    assert parts.steps == 30 and not any(bad for _, bad in parts.batches(0, 0, 30))


def test_a_key_needs_only_the_cell_of_a(gaps):
    """b comes from another row, and an evaluation looks at all rows."""
    pair = {"name": "cross_modal", "a": "x", "b": "z", "key": "split"}
    (task,), _ = build_reading(gaps(pair=pair))
    assert len(task.source.train) == 50 and task.evaluated is task.whole and len(task.whole.train) == 60


def test_no_row_has_both(gaps, tmp_path):
    rows = [{"x": "x 1", "y": None, "split": s} for s in ("train", "test")] * 3
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RecipeError) as error:
        build_parts(gaps())
    assert str(error.value) == (
        "pair: none of the 3 train records has a value in x and y, which the pair reads. Name other columns,"
        " or fill these."
    )


def test_a_table_kept_by_columns_has_the_same_rows(gaps, monkeypatch):
    read = lambda: build_reading(gaps(pairs=[pair_of("x", "y"), pair_of("y", "z")]))[0]
    small = read()
    monkeypatch.setattr(columns, "MANY", 1)
    for one, other in zip(small, read()):
        assert isinstance(other.whole.train, columns.ColumnRecords)
        assert [r["id"] for r in one.source.train] == [r["id"] for r in other.source.train]
        assert list(one.source.ids("test")) == list(other.source.ids("test"))
        assert sources_of([one]) == sources_of([other])


def test_files_of_records(tmp_path):
    """The pairs that read the file of a record do without the rows that have none."""
    rows = [f"{'' if i % 3 == 1 else f'{i}.png'},{'test' if i > 5 else 'train'}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,split", *rows]))
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    source = table.Table(str(tmp_path / "t.csv"))
    assert lacks(source, "train", build("pair", {"name": "augment", "size": 8})).tolist() == [
        i % 3 == 1 for i in range(6)
    ]


def test_shards_and_several_sources(tmp_path):
    """Keys without a member for a column are left out; the sources keep their shares of what is left."""
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for i in range(8):
                for name in ("x.txt", "y.txt") if i % 2 else ("x.txt",):
                    member = tarfile.TarInfo(f"{i}.{name}")
                    member.size = 3
                    tar.addfile(member, io.BytesIO(b"abc"))
    (tmp_path / "t.csv").write_text(
        "id,x,y,split\n"
        + "".join(f"t{i},a,{'' if i == 2 else 'b'},{'test' if i > 5 else 'train'}\n" for i in range(9))
    )
    shards = {"name": "webdataset", "root": str(tmp_path)}
    pair = build("pair", {"name": "cross_modal", "a": "x", "b": "y"})
    assert lacks(build("source", shards), "train", pair).tolist() == [True, False] * 4
    mixed = {"name": "mixed", "sources": [shards, {"name": "table", "root": str(tmp_path / "t.csv")}]}
    (task,), _ = build_reading(load_recipe(two_texts.recipe(3, source=mixed)))
    assert [r["id"] for r in task.source.train] == [
        *(f"0/train-0.tar/{i}" for i in (1, 3, 5, 7)),
        *(f"1/t{i}" for i in (0, 1, 3, 4, 5)),
    ]
    order = task.source.order("train")
    assert [count for count, _ in order.parts] == [4, 5] and order.weights is None
    parts = build_parts(load_recipe(two_texts.recipe(3, source=mixed)))
    samples = [
        name.split("@")[0] for batch, bad in parts.batches(0, 0, 9) for name in batch.samples if not bad
    ]
    assert Counter(samples) == Counter({r["id"]: 4 for r in task.source.train})


# ---- shares ----


def test_equal_shares_are_taken_in_turn():
    for pairs in range(1, 6):
        shares = Shares([1] * pairs)
        assert [shares.turn(step) for step in range(40)] == [(s % pairs, s // pairs) for s in range(40)]


@pytest.mark.parametrize("weights", [[3, 1], [1, 5, 2], [0.3, 0.1, 2.5, 1], [Fraction(7, 3), Fraction(1, 3)]])
def test_turns_are_known_from_the_step(weights):
    shares, counts = Shares(weights), [0] * len(weights)
    for step in range(300):
        pair, batch = shares.turn(step)
        assert batch == counts[pair]
        counts[pair] += 1
        assert counts == [shares.count(i, step + 1) for i in range(len(weights))]
        for count, weight in zip(counts, weights):
            assert abs(count - (step + 1) * weight / sum(weights)) < 2


def test_shares_of_a_recipe(gaps, tmp_path):
    pairs = lambda *shares: [pair_of(*names, share=s) for names, s in zip(("xy", "xz"), shares)]
    turns = lambda parts: [parts.turn(step)[0].name for step in range(9)]
    parts = build_parts(
        gaps("train.epochs=2", "train.steps=null", pairs=pairs("proportional", "proportional"))
    )
    assert turns(parts) == ["x-y", "x-y", "x-z"] * 3  # 10 and 5 batches an epoch
    assert parts.steps == 30 and parts.steps_per_epoch == 15
    parts = build_parts(gaps(pairs=pairs("equal", 2)))
    assert Counter(turns(parts)) == {"x-z": 6, "x-y": 3} and parts.steps_per_epoch == 30
    equal = build_parts(gaps("train.epochs=2", "train.steps=null", pairs=pairs("equal", "equal")))
    assert turns(equal) == ["x-y", "x-z"] * 4 + ["x-y"] and equal.steps == 40
    folder = vicjoint.train(gaps(f"out={tmp_path / 'run'}", pairs=pairs(3, 1)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["pair"] for line in lines if "pair" in line][:6] == ["x-y"] * 3 + ["x-z"] + ["x-y"] * 2


def test_mistakes_in_shares(gaps):
    pairs = lambda *shares: [pair_of(*names, share=s) for names, s in zip(("xy", "xz"), shares)]
    for shares, said in (
        (
            ("proportional", 2),
            "pairs: share: proportional stands beside share: 2, and they have no common me",
        ),
        (("proportional", "equal"), "pairs: share: proportional stands beside share: 'equal', and"),
        (("many", 1), "pairs.0.share: expected one of 'equal' or 'proportional', got 'many'"),
        ((0, 1), "pairs.0.share: expected a number above 0, got 0"),
    ):
        with pytest.raises(RecipeError) as error:
            gaps(pairs=pairs(*shares))
        assert said in str(error.value), error.value
