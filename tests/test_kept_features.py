"""`cache: features`: in training, a branch whose encoder does not learn reads y from disk, not files."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image as Picture
from torchrun import torchrun

import vicjoint
from vicjoint.data import kept
from vicjoint.data.kept import Store, key_of, name_of
from vicjoint.files import images
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.training import keeping
from vicjoint.training.build import build_parts
from vicjoint.training.loop import TrainingError
from vicjoint.video.write import write_mp4

ROWS, PICTURES = 24, 12


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vicjoint.training.loop.write_report", lambda folder: folder / "report.html")


@pytest.fixture
def table(tmp_path) -> Path:
    """Pictures, some of them in two rows, each row with two captions."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(PICTURES):
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    rows = [
        {"picture": f"{i % PICTURES}.png", "caption": [f"thing {i}", f"a thing {i}"]} for i in range(ROWS)
    ]
    path = tmp_path / "data" / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def recipe(table: Path, a=(), **changes) -> dict:
    image = {"name": "image", "size": 16, "transforms": []}
    frozen = {"modality": image, "encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [16, 12]}
    frozen |= {"train": "expander", "cache": "features"}
    text = {"modality": "text", "encoder": {"name": "words", "width": 8, "dim": 8}, "expander": [16, 12]}
    return tiny.recipe(
        source={"name": "table", "root": str(table), "test_fraction": 0.2},
        pair={"name": "cross_modal", "a": "picture", "b": "caption"},
        a=frozen | dict(a),
        b=text,
        evaluate={"last": False, "explorer": 0},
        train={"steps": 6, "batch_size": 6},
        **changes,
    )


def reads(monkeypatch) -> list:
    """The pictures that are read from now on, and "encoded" for each forward pass of an image encoder."""
    found, read = [], images.read
    monkeypatch.setattr(images, "read", lambda path: found.append(str(path)) or read(path))
    whole = torch.nn.Conv2d.forward

    def forward(conv, x):
        found.append("encoded")
        return whole(conv, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    return found


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in tiny.metrics(folder) if "loss" in line]


def test_training_is_that_of_features_computed_each_time(table, tmp_path, capsys):
    with_cache = vicjoint.train(recipe(table), [f"out={tmp_path / 'kept'}"])
    said = capsys.readouterr().out
    assert "a.cache: features of" in said and "samples are computed once: about" in said
    without = vicjoint.train(recipe(table), ["a.cache=null", f"out={tmp_path / 'not'}"])
    assert losses(with_cache) == pytest.approx(losses(without), rel=1e-4) and len(losses(without)) == 6
    samples = [line.get("samples") for line in tiny.metrics(with_cache)]
    assert samples == [line.get("samples") for line in tiny.metrics(without)]


def test_a_step_neither_reads_a_file_nor_runs_the_encoder(table, monkeypatch):
    parts = build_parts(load_recipe(recipe(table)))
    found = reads(monkeypatch)
    keeping.keep_features(parts)
    first = [path for path in found if path != "encoded"]
    assert 0 < len(first) == len(set(first)) <= PICTURES  # each file once, whatever the number of rows
    found.clear()
    batch, bad = next(parts.batches_of(parts.tasks[0], 1))
    z, _ = parts.model.train()(batch.a, batch.b)
    assert not bad and not found and z.requires_grad
    pair = parts.tasks[0].pair
    for record in parts.tasks[0].source.train[:5]:
        raw = pair.views(record, "a")[0].raw
        y = parts.model.eval().branches["a"].represent(raw)
        a, _ = parts.pairs_of_kept[0].sample(record, np.random.default_rng(0))
        torch.testing.assert_close(a.y, y, rtol=1e-5, atol=1e-6)


def test_a_second_run_computes_only_what_is_new(table, tmp_path, monkeypatch, capsys):
    def computed() -> set[str]:
        parts = build_parts(load_recipe(recipe(table)))
        with monkeypatch.context() as patch:
            patch.setattr(keeping, "COMPARED", 0)
            found = reads(patch)
            keeping.keep_features(parts)
        return {Path(path).name for path in found if path != "encoded"}

    every = computed()
    assert computed() == set()
    changed = sorted(every)[0]
    Picture.new("RGB", (20, 20), "red").save(table.parent / changed)
    os.utime(table.parent / changed, (1, 1))
    assert computed() == {changed}


def test_other_weights_are_other_features(table):
    folders = {
        keeping.store_of(build_parts(load_recipe(recipe(table), overrides)), "a").folder
        for overrides in ([], ["train.seed=1"], ["a.modality.centre=0.5"], ["train.precision=bf16"], [])
    }
    assert len(folders) == 4


def test_features_that_the_encoder_does_not_give_are_refused(table, tmp_path):
    parts = build_parts(load_recipe(recipe(table)))
    keeping.keep_features(parts)
    folder = keeping.store_of(parts, "a").folder
    for file in folder.glob("*.npy"):
        if not file.name.endswith(".keys.npy"):
            np.save(file, np.load(file) + 1)
    with pytest.raises(RecipeError, match="a.cache: the features in .* are not what the encoder gives now"):
        keeping.keep_features(build_parts(load_recipe(recipe(table))))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(table, tmp_path, monkeypatch):
    from test_towers import stop_after

    written = recipe(table, checkpoint={"every": 2})
    vicjoint.train(written, [f"out={tmp_path / 'one'}"])
    stop_after(monkeypatch, 3, lambda: vicjoint.train(written, [f"out={tmp_path / 'other'}"]))
    vicjoint.train(written, [f"out={tmp_path / 'other'}"])
    tiny.same_end(tmp_path / "one", tmp_path / "other")


def test_what_was_computed_before_a_stop_is_kept(table, monkeypatch):
    monkeypatch.setattr(keeping, "AT_ONCE", 4)
    whole = keeping.Encoding.encoded

    def stopping(self, values):
        for number, found in enumerate(whole(self, values)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(keeping.Encoding, "encoded", stopping)
        with pytest.raises(KeyboardInterrupt):
            keeping.keep_features(build_parts(load_recipe(recipe(table))))
    parts, found = build_parts(load_recipe(recipe(table))), reads(monkeypatch)
    monkeypatch.setattr(keeping, "COMPARED", 0)
    keeping.keep_features(parts)
    assert len([path for path in found if path != "encoded"]) == PICTURES - 8


def test_a_file_that_cannot_be_read_is_a_bad_sample_with_its_cause(table, tmp_path):
    (table.parent / "3.png").write_bytes(b"no picture")
    (table.parent / "4.png").unlink()
    overrides = ["data.max_bad_fraction=1", "train.steps=12", f"out={tmp_path / 'run'}"]
    folder = vicjoint.train(recipe(table), overrides)
    bad = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    causes = " ".join(json.dumps(line) for line in bad)
    assert "3.png" in causes and "4.png" in causes and "features" not in causes


def test_texts_are_kept_by_their_content(table):
    written = recipe(table)
    written["a"] |= {"train": "full", "cache": None}
    written["b"] |= {"train": "frozen", "cache": "features"}
    parts = build_parts(load_recipe(written))
    keeping.keep_features(parts)
    records, source = parts.pairs_of_kept[0], parts.tasks[0].source
    y = {records.sample(source.train[0], np.random.default_rng(i))[1].y.numpy().tobytes() for i in range(8)}
    assert len(y) == 2  # a row of each of its captions


def test_two_processes_share_the_work_and_train_as_one(table, tmp_path):
    """One tower's encoder has no gradient, which DistributedDataParallel must not wait for."""
    one = vicjoint.train(recipe(table), [f"out={tmp_path / 'one'}"])
    cache = tmp_path / "cache" / "features"
    for file in cache.rglob("*.npy"):
        file.unlink()
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(table)))
    torchrun(tmp_path, 2, "-m", "vicjoint.run", "recipe.yaml", "out=two", path=[tiny.TESTS])
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-3)
    parts = [np.load(file) for file in cache.rglob("*.keys.npy")]
    assert sorted(map(len, parts)) == [PICTURES // 2] * 2


# ---- the store ----


def test_writers_beside_each_other_lose_nothing(tmp_path):
    def add(writer: int):
        for part in range(5):
            keys = [name_of(f"{writer // 2} {part} {i}") for i in range(4)]  # two writers write the same
            Store(tmp_path).write(keys, np.full((4, 3), writer // 2 * 10 + part, np.float32))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store, wanted = (
        Store(tmp_path),
        [name_of(f"{w} {p} {i}") for w in (0, 1) for p in range(5) for i in range(4)],
    )
    rows = store.find(wanted)
    found = [float(store.read(part, row)[0, 0]) for part, row in zip(*rows)]
    assert found == [w * 10.0 + p for w in (0, 1) for p in range(5) for _ in range(4)]
    assert not list(tmp_path.glob("*.tmp")) and store.find([name_of("other")]).part.tolist() == [-1]


def test_a_part_without_its_keys_is_none(tmp_path, monkeypatch):
    store, key = Store(tmp_path), name_of("x")
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(kept.os, "replace", lambda a, b: 1 / 0 if "keys" in str(b) else replace(a, b))
        with pytest.raises(ZeroDivisionError):
            store.write([key], np.zeros((1, 2), np.float32))
    assert store.find([key]).part.tolist() == [-1] and not list(tmp_path.glob("*.tmp"))
    store.write([key], np.ones((1, 2), np.float32))
    assert store.read(*(int(x[0]) for x in store.find([key]))).tolist() == [[1.0, 1.0]]


def test_a_key_is_of_the_content_or_of_the_file_as_it_is(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    before = key_of(str(file), True)
    assert key_of(str(file), True) == before != key_of(str(file), False)
    part = {"id": "x", "path": str(file), "offset": 0, "size": 1}
    assert key_of(part, True) != key_of(part | {"offset": 1}, True)
    file.write_bytes(b"12")
    assert key_of(str(file), True) != before
    assert key_of({"id": "x", "bytes": b"1"}, True) != key_of({"id": "x", "bytes": b"2"}, True)


# ---- messages ----


def test_views_that_are_drawn_at_random_are_refused(table):
    for overrides, modality in (
        (["a.modality={name: image, size: 16}"], "image"),
        (
            ["a={train: full}", "b.train=frozen", "b.cache=features", "b.modality={name: text, drop: 0.5}"],
            "text",
        ),
    ):
        written = recipe(table)
        if modality == "text":
            written["a"] |= {"train": "full", "cache": None}
            overrides = overrides[1:]
        with pytest.raises(RecipeError, match=f".cache: features are kept .*modality '{modality}' draws at"):
            build_parts(load_recipe(written, overrides))


def test_a_window_of_time_is_refused(table):
    frames = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    write_mp4(table.parent / "film.mp4", frames)
    rows = [{"film": "film.mp4", "caption": f"thing {i}"} for i in range(ROWS)]
    table.write_text("\n".join(map(json.dumps, rows)))
    for more in ({}, {"seconds": 0.5}):
        written = recipe(table)
        written["pair"] = {"name": "cross_modal", "a": "film", "b": "caption", **more}
        written["a"] |= {"modality": {"name": "clip", "size": 16}, "encoder": {"name": "conv_gru", "dim": 8}}
        with pytest.raises(RecipeError, match="modality 'clip' draws at random in training: a crop, a wind"):
            build_parts(load_recipe(written))


def test_a_full_disk_is_said(table, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(TrainingError, match="features cannot be written below .*cache: .*No space left .*VI"):
        vicjoint.train(recipe(table), [f"out={tmp_path / 'run'}"])


def test_a_pair_that_draws_views_itself_is_refused():
    written = tiny.recipe(a=tiny.branch(train="expander", cache="features"))
    with pytest.raises(
        RecipeError, match="a.cache: .* the pair reads and draws them itself. Leave out a.cache"
    ):
        build_parts(load_recipe(written))
