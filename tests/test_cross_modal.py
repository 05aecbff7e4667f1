"""The pair cross_modal: which cells meet, what is read of them, and what a user reads when a column, a cell
or an option is wrong."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from wrong import refused

from vicjoint import data
from vicjoint.modalities.image import Clip, Image, Pixels
from vicjoint.pairs import cross_modal
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Modality, Reading
from vicjoint.sources.table import Table
from vicjoint.sources.video_folder import VideoFolder
from vicjoint.video.write import write_mp4


class Number(Modality):
    """A number written as text; a random part is added in training."""

    reads = "text"

    def read(self, value, rng=None, window=None):
        return torch.tensor([[float(value), 0.0 if rng is None else rng.random()]])


class Tape(Modality):
    """A timed file that holds its length in seconds; the view is the window."""

    timed = True

    def read(self, value, rng=None, window=None):
        Path(value).read_text()
        return torch.tensor([[-1.0, -1.0] if window is None else window], dtype=torch.float64)

    def seconds(self, value):
        return float(Path(value).read_text())


def source_of(folder, rows, **options) -> Table:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Table(str(folder / "t.jsonl"), **options)


def build(source, *modalities, **options) -> CrossModal:
    pair = CrossModal(**options)
    pair.bind(Reading(modalities, source))
    return pair


def first(pair, record, side="a"):
    """The first view of a record, as in evaluation."""
    return pair.views(record, side)[0].raw


def every(pair, record, side):
    return [view.raw for view in pair.views(record, side)]


def contents(pair, record, side):
    """Without opening a file."""
    views = pair.views(record, side, read=False)
    assert all(view.raw is None for view in views)
    return [view.content for view in views]


def key(pair, record):
    return pair.views(record, "a", read=False)[0].key


def rng(seed=0):
    return np.random.default_rng(seed)


def numbers(count, **more):
    return [
        {
            "x": i,
            "y": 100 + i,
            **{k: f(i) for k, f in more.items()},
            "split": "test" if i % 5 == 0 else "train",
        }
        for i in range(count)
    ]


def test_cells_of_one_row_and_a_sample_follows_its_generator(tmp_path):
    source = source_of(tmp_path, numbers(20))
    pair = build(source, Number(), Number(), a="x", b="y")
    for record in source.train:
        a, b = pair.sample(record, rng(1))
        assert b[0, 0] - a[0, 0] == 100 and a.shape == (1, 2)
        again = pair.sample(record, rng(1))
        assert (
            torch.equal(again[0], a)
            and torch.equal(again[1], b)
            and not torch.equal(pair.sample(record, rng(2))[0], a)
        )
    assert first(pair, source.test[1]).tolist() == [[5.0, 0.0]] and first(
        pair, source.test[1], "b"
    ).tolist() == [[105.0, 0.0]]
    assert key(pair, source.test[0]) is None and pair.samples_per_record == 1


def test_one_of_several_values(tmp_path):
    rows = [
        {"x": i, "captions": [str(10 * i + k) for k in range(3)], "joined": f"{10 * i}; {10 * i + 1}"}
        for i in range(1, 9)
    ]
    source = source_of(tmp_path, rows)
    pair = build(source, Number(), Number(), a="x", b="captions")
    record = source.train[0]
    drawn = Counter(pair.sample(record, rng(seed))[1][0, 0].item() % 10 for seed in range(300))
    assert set(drawn) == {0, 1, 2} and min(drawn.values()) > 70
    assert [v[0, 0].item() % 10 for v in every(pair, record, "b")] == [0, 1, 2]
    assert first(pair, record, "b")[0, 0].item() % 10 == 0 and len(every(pair, record, "a")) == 1
    joined = build(source, Number(), Number(), a="x", b="joined", choose=["joined"], separator=";")
    assert [v[0, 0].item() % 10 for v in every(joined, record, "b")] == [0, 1]


def test_equal_contents_have_equal_names(tmp_path):
    """Files by their absolute path, values as text, and the common window of timed files: what tells views of
    evaluation apart."""
    for name, length in {"v": 8.0, "s": 8.0, "short": 4.0}.items():
        (tmp_path / name).write_text(str(length))
    rows = [
        {"v": v, "s": s, "y": y, "split": "train"}
        for v, s, y in (("v", "s", [1, 2]), ("./v ", "s", [1, 2]), ("v", "short", 2), ("v", "s", ["1", "2"]))
    ]
    source = source_of(tmp_path, [*rows, {**rows[0], "split": "test"}])
    pair = build(source, Tape(), Number(), a="v", b="y")
    assert [contents(pair, r, "a") for r in source.train] == [[str(tmp_path / "v")]] * 4
    assert [contents(pair, r, "b") for r in source.train] == [["[1, 2]"], ["[1, 2]"], ["2"], ["1", "2"]]
    timed = build(source, Tape(), Tape(), a="v", b="s", seconds=2.0)
    names = [contents(timed, r, "a")[0] for r in source.train]
    assert (
        names[0] == names[1] == names[3] == f"{tmp_path / 'v'} from 3.0 s"
        and names[2] == f"{tmp_path / 'v'} from 1.0 s"
    )
    assert all(
        view[0, 0].item() == float(name.split()[-2])
        for r, name in zip(source.train, names)
        for view in every(timed, r, "a")
    )


# ---- by a key ----


def test_key_pairs_rows_of_the_same_split(tmp_path):
    source = source_of(tmp_path, numbers(60, digit=lambda i: i % 7))
    pair = build(source, Number(), Number(), a="x", b="y", key="digit")
    met = {"train": set(), "test": set()}
    for split in met:
        for record in getattr(source, split):
            for seed in range(30):
                a, b = (int(v[0, 0]) for v in pair.sample(record, rng(seed)))
                assert a % 7 == (b - 100) % 7 and ((b - 100) % 5 == 0) == (split == "test")
                met[split].add((a, b - 100))
    # every partner is met
    assert len({b for a, b in met["train"] if a == 1}) == sum(i % 5 != 0 and i % 7 == 1 for i in range(60))
    # evaluation: its own cell
    assert key(pair, source.train[0]) == "1" and first(pair, source.train[0], "b")[0, 0] == 101


def test_key_with_a_second_table(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "t.csv").write_text(
        "value,digit,split\n" + "".join(f"{i},{i % 10},{'test' if i < 40 else 'train'}\n" for i in range(100))
    )
    rows = [{"x": i, "digit": i % 10, "split": "test" if i < 20 else "train"} for i in range(60)]
    source = source_of(tmp_path, rows, second=str(tmp_path / "w" / "t.csv"))
    pair = build(source, Number(), Number(), a="x", b="value", key="digit")
    for split, low, high in (("train", 40, 100), ("test", 0, 40)):
        partners = set()
        for record in getattr(source, split):
            b = int(pair.sample(record, rng(3))[1][0, 0])
            assert low <= b < high and b % 10 == record["digit"]
            fixed = int(first(pair, record, "b")[0, 0])
            assert (
                low <= fixed < high
                and fixed % 10 == record["digit"]
                and fixed == every(pair, record, "b")[0][0, 0]
            )
            partners.add(fixed)
        assert len(partners) > 10
    row = source.second["test"][7]
    assert first(pair, row, "b")[0, 0] == 7 and pair.views(row, "b")[0].key == "7"
    stream = data.Stream(source.train, pickle.loads(pickle.dumps(pair)), seed=0)  # as a worker gets it
    assert torch.equal(stream[5][1], data.Stream(source.train, pair, seed=0)[5][1])


def test_rows_without_a_partner_are_bad_samples_and_none_at_all_is_an_error(tmp_path):
    source = source_of(tmp_path, numbers(20, digit=lambda i: i))
    source.train[0]["y"] = None
    pair = build(source, Number(), Number(), a="x", b="y", key="digit")
    with pytest.raises(ValueError, match="no row with digit '1' for column b in the train split"):
        pair.sample(source.train[0], rng())
    for record in source.test:
        record["y"] = ""
    with pytest.raises(
        ValueError,
        match=(
            "pair.key: no row of the test split has a partner with an equal 'digit'. Found for column a '0',"
            " '10', '15', for column b '0'"
        ),
    ):
        build(source, Number(), Number(), a="x", b="y", key="digit")


# ---- a common window ----


@pytest.fixture
def tapes(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.long").write_text(str(3.0 + i))
        (tmp_path / f"{i}.short").write_text("2.5")
    return source_of(tmp_path, [{"a": f"{i}.long", "b": f"{i}.short", "n": i} for i in range(6)])


def test_both_see_the_same_seconds(tapes):
    pair = build(tapes, Tape(), Tape(), a="a", b="b", seconds=1.0)
    starts = []
    for seed in range(200):
        a, b = pair.sample(tapes.train[0], rng(seed))
        assert torch.equal(a, b) and a[0, 1] == 1.0
        starts.append(a[0, 0].item())
    assert 0 <= min(starts) < 0.05 and 1.45 < max(starts) <= 1.5
    assert (
        first(pair, tapes.train[0], "a").tolist()
        == first(pair, tapes.train[0], "b").tolist()
        == [[0.75, 1.0]]
    )
    apart = build(tapes, Tape(), Tape(), a="a", b="b")
    assert apart.sample(tapes.train[0], rng())[0].tolist() == [[-1.0, -1.0]]
    one = build(tapes, Tape(), Number(), a="a", b="n", seconds=2.0)  # the other half has no time axis
    assert first(one, tapes.train[0])[0, 1] == 2.0


def test_too_short_for_the_window(tapes):
    pair = build(tapes, Tape(), Tape(), a="a", b="b", seconds=2.75)
    with pytest.raises(ValueError, match=r"column 'b': is 2.50 s long, 2.75 s are needed \(pair.seconds\)"):
        pair.sample(tapes.train[0], rng())
    Path(tapes.train[0]["folder"], tapes.train[0]["b"]).unlink()
    with pytest.raises(ValueError, match="column 'b': .*No such file"):
        pair.sample(tapes.train[0], rng())


# ---- real files ----


def test_picture_and_clip_from_files(tmp_path):
    for i in range(4):
        video = np.full((24, 32, 48, 3), 60 * i, np.uint8)
        (tmp_path / "v").mkdir(exist_ok=True)
        write_mp4(tmp_path / "v" / f"{i}.mp4", video)
        Picture.fromarray(np.full((20, 30), 60 * i, np.uint8)).save(tmp_path / "v" / f"{i}.png")
    source = source_of(
        tmp_path, [{"still": f"v/{i}.png", "film": str(tmp_path / "v" / f"{i}.mp4")} for i in range(4)]
    )
    pair = build(source, Image(size=16), Clip(size=16, frames=4), a="still", b="film")
    stream = data.Stream(source.train, pair, seed=1)
    batch, bad = next(data.batches([stream], [3], 0, 0, 1))
    assert (
        batch.a.shape == (3, 3, 16, 16)
        and batch.b.shape == (3, 3, 4, 16, 16)
        and batch.b.dtype == torch.uint8
        and not bad
    )
    assert (batch.a.float().mean((1, 2, 3)) - batch.b.float().mean((1, 2, 3, 4))).abs().max() < 4


def test_bad_cells_become_bad_samples(tmp_path):
    Picture.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    rows = [
        {"id": i, "im": im, "n": n}
        for i, im, n in (
            ("e", "", 1),
            ("m", "none.png", 1),
            ("c", "cut.png", 1),
            ("t", "good.png", "seven"),
            ("n", "good.png", None),
        )
    ]
    source = source_of(tmp_path, rows * 2 + [{"id": f"g{i}", "im": "good.png", "n": 5} for i in range(30)])
    pair = build(source, Image(size=8), Number(), a="im", b="n")
    causes = {}
    for record in source.train + source.test:
        try:
            pair.sample(record, rng())
        except ValueError as error:
            causes[record["id"]] = str(error)
    expected = {
        "e": "column 'im' is empty",
        "n": "column 'n' is empty",
        "m": "column 'im': .*none.png: no such file",
        "c": "column 'im': .*cut.png: cannot be decoded",
        "t": "column 'n': could not convert",
    }
    assert set(causes) == {name + again for name in expected for again in ("", " (2)")}
    for name, cause in causes.items():
        assert re.match(expected[name[0]], cause), cause


def test_files_in_both_splits_are_said(tmp_path, capsys):
    rows = [{"im": f"{i % 3}.png", "n": i, "split": "test" if i < 3 else "train"} for i in range(9)]
    build(source_of(tmp_path, rows), Image(), Number(), a="im", b="n")
    assert "note: 3 files of column 'im' are in train and in test" in capsys.readouterr().out
    build(
        source_of(
            tmp_path / "x", [{k: v for k, v in r.items() if k != "split"} for r in rows], split_by="im"
        ),
        Image(),
        Number(),
        a="im",
        b="n",
    )
    assert capsys.readouterr().out == ""


# ---- groups ----


def test_groups_by_a_column(tmp_path):
    source = source_of(tmp_path, numbers(40, speaker=lambda i: f"s{i % 4}"))
    pair = build(source, Number(), Number(), a="x", b="y", group="speaker")
    batch, _ = next(data.batches([data.Stream(source.train, pair, 0)], [32], 0, 0, 1))
    speakers = batch.a[:, 0].long() % 4
    assert (
        torch.equal(batch.group[:, None] == batch.group, speakers[:, None] == speakers)
        and batch.group.dtype == torch.int64
    )
    plain = build(source, Number(), Number(), a="x", b="y")
    assert (
        next(data.batches([data.Stream(source.train, plain, 0)], [32], 0, 0, 1))[0].group.unique().numel()
        == 32
    )


# ---- wrong options ----


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seconds": 0.0}, "pair.seconds: 0.0 is not a length of time"),
        ({"seconds": 1.0, "key": "digit"}, "pair.seconds: a common time window needs both cells"),
        ({"separator": "|"}, r"pair.separator: '\|' needs the columns that it splits. Set pair.choose=\[y\]"),
        ({"choose": ["digit"]}, "pair.choose: digit is neither column a .x. nor column b .y."),
        ({"a": "z"}, "pair.a: column 'z' is not in the table; columns: x, y, digit, split, folder, id"),
        ({"b": "yy"}, "pair.b: column 'yy' is not in the table; columns: .* Did you mean 'y'"),
        ({"key": "digits"}, "pair.key: column 'digits' is not in the table; .* Did you mean 'digit'"),
        ({"distinct": "dig"}, "pair.distinct: column 'dig' .* Did you mean 'digit'"),
        ({"group": "dig"}, "pair.group: column 'dig' .* Did you mean 'digit'"),
        ({"seconds": 1.0}, "pair.seconds: neither Number nor Number has a time axis"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    source = source_of(tmp_path, numbers(20, digit=lambda i: i % 3))
    if "seconds" in options and options["seconds"] == 0:
        refused("pair", "cross_modal", {"a": "x", "b": "y", **options})
        return
    with pytest.raises(ValueError, match=message):
        build(source, Number(), Number(), **{"a": "x", "b": "y", **options})


def test_wrong_companions(tmp_path):
    source = source_of(tmp_path, numbers(20))
    with pytest.raises(
        ValueError,
        match=(
            "b.modality Pixels does not read the cells of a table. Expected a modality with a method `read`"
        ),
    ):
        build(source, Number(), Pixels(), a="x", b="y")
    second = source_of(tmp_path, numbers(20), second=str(tmp_path / "t.jsonl"))
    with pytest.raises(
        ValueError, match="source.second: rows of two tables are put together by a key. Set pair.key"
    ):
        build(second, Number(), Number(), a="x", b="y")
    with pytest.raises(
        ValueError, match="pair.key, in the table of column b: column 'digit' is not in the table"
    ):
        (tmp_path / "w.jsonl").write_text('{"y": 1}\n{"y": 2}\n')
        build(
            source_of(tmp_path, numbers(20, digit=lambda i: i % 3), second=str(tmp_path / "w.jsonl")),
            Number(),
            Number(),
            a="x",
            b="y",
            key="digit",
        )
    for i in range(2):
        (tmp_path / f"{i}.mp4").touch()
    with pytest.raises(ValueError, match="pair.a: column 'picture' is not in the table; columns: id, path"):
        build(VideoFolder(str(tmp_path)), Number(), Number(), a="picture", b="path")


def test_only_the_first_process_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cross_modal, "distributed", SimpleNamespace(rank=lambda: 1))
    build(
        source_of(tmp_path, [{"im": "a.png", "n": i, "split": "test" if i else "train"} for i in range(2)]),
        Image(),
        Number(),
        a="im",
        b="n",
    )
    assert capsys.readouterr().out == ""


def test_the_benchmark_of_reading_counts_what_is_kept(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("torchaudio")
    from benchmarks import reading

    rows = []
    for i in range(5):
        write_mp4(
            tmp_path / f"{i}.mp4", np.random.default_rng(i).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        )
        soundfile.write(tmp_path / f"{i}.wav", np.full(4000, 0.1), 8000)
        rows.append({"video": f"{i}.mp4", "audio": f"{i}.wav", "split": "test" if i == 4 else "train"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": "r",
        "source": {"name": "table", "root": str(tmp_path / "t.jsonl"), "column": "video"},
        "pair": {"name": "cross_modal", "a": "video", "b": "audio", "seconds": 0.25},
        "a": {
            "modality": {"name": "clip", "frames": 2, "size": 16, "cache_mb": 1},
            "encoder": {"name": "conv_time", "width": 4},
            "expander": [8],
        },
        "b": {
            "modality": {"name": "audio", "rate_hz": 8000, "cache_mb": 1},
            "encoder": {"name": "conv_mel", "width": 4},
            "expander": [8],
        },
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
        "train": {"steps": 1, "batch_size": 2},
        "data": {"workers": 0, "video_backend": "pyav"},
        "evaluate": {"probes": []},
    }
    without, kept = (reading.read(recipe, [], keep) for keep in (False, True))
    squares, sounds = 4 * 12 * 3 * 32 * 32, 4 * 4 * (4000 + 2 * 4096)
    assert without["kept_mb"] == 0 and kept["kept_mb"] == (squares + sounds) / 2**20
    assert all(
        len(found[clock]) == 2 and min(found[clock]) > 0
        for found in (without, kept)
        for clock in ("cpu_ms", "wall_ms")
    )
