"""Batches that hold several records of each of their groups, alone and with distinct values, on any number of
workers and processes; what never comes is said."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
import two_texts
from PIL import Image

from vicjoint import data
from vicjoint.data.grouped import Grouped
from vicjoint.objectives import VICReg
from vicjoint.orders import ShardOrder
from vicjoint.parts import Pair
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import build, load_built_in
from vicjoint.training.build import build_parts

load_built_in()


class Numbers(Pair):
    """The view is the number of the record."""

    def __init__(self, per_group, distinct=None, broken=()):
        self.group, self.per_group, self.distinct, self.broken = "group", per_group, distinct, broken

    def group_of(self, record, number):
        if record["group"] is None:
            raise ValueError("column 'group' is empty")
        return 1000 + record["group"]

    def sample(self, record, rng):
        if record["number"] in self.broken:
            raise ValueError("broken on purpose")
        number = torch.tensor([[float(record["number"])]])
        return number, number


def records(groups, values=None):
    values = values if values is not None else range(len(groups))
    return [
        {"id": f"r{i}", "number": i, "group": g, "value": str(v)}
        for i, (g, v) in enumerate(zip(groups, values))
    ]


def stream(groups, per_group, values=None, seed=5, **options):
    distinct = "value" if values is not None else None
    return data.Stream(records(groups, values), Numbers(per_group, distinct, **options), seed)


def epochs(s, per_batch, count):
    """Numbers of the records, [batches, per_batch] for each epoch."""
    s.set_batch(per_batch)
    length = s.epoch_length
    order = np.array([s.locate(p)[1] for p in range(length * count)])
    return order.reshape(count, -1, per_batch)


def test_a_batch_is_runs_of_one_group():
    groups = np.random.default_rng(0).integers(0, 9, 200)
    found = epochs(stream(groups.tolist(), 4), 16, 6)
    runs = groups[found].reshape(-1, 4)
    assert (runs == runs[:, :1]).all()
    whole = sum(count // 4 for count in Counter(groups.tolist()).values())
    assert found.shape == (6, whole // 4, 16)  # as many whole batches as there are
    for epoch in found:
        assert len(set(epoch.ravel())) == epoch.size
    assert len(set(found.ravel())) == 200  # what is left over comes in another epoch
    together = [{tuple(sorted(run)) for run in epoch.reshape(-1, 4)} for epoch in found]
    assert not together[0] & together[1]  # runs are drawn anew


def test_known_answers():
    """Two groups of four and one of three: three runs of two that are whole batches of two runs."""
    s = stream([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2], 2)
    found = epochs(s, 4, 30)
    assert found.shape == (30, 1 * 2, 4)
    left = [set(range(11)) - set(epoch.ravel().tolist()) for epoch in found]
    assert all(len(some) == 3 for some in left) and set.union(*left) == set(range(11))
    assert s.describe() is None


def test_distinct_values_whole_groups_and_no_record_left_behind():
    """The same 96 molecules stand on four plates; a batch has 8 of each of its plates, all different."""
    plates, molecules = np.repeat(np.arange(4), 96), np.tile(np.arange(96), 4)
    s = stream(plates.tolist(), 8, molecules.tolist())
    found = epochs(s, 32, 5)
    assert found.shape[1] >= 10  # of 12, if all could be placed
    for batch in found.reshape(-1, 32):
        assert len(set(molecules[batch])) == 32
        assert (plates[batch].reshape(-1, 8) == plates[batch][::8, None]).all()
    for epoch in found:
        assert len(set(epoch.ravel())) == epoch.size
    assert len(set(found.ravel())) == 384
    assert len({tuple(sorted(plates[batch][::8])) for batch in found.reshape(-1, 32)}) >= 1


def test_distinct_values_that_are_unequal_are_dealt_to_the_most_batches():
    """A group with three films of 10, 5 and 5 clips: ten runs of two, each with a clip of the first film."""
    films = [0] * 10 + [1] * 5 + [2] * 5
    found = epochs(stream([0] * 20, 2, films), 2, 3)
    assert found.shape == (3, 10, 2)
    assert all(sorted(np.array(films)[batch])[0] == 0 for batch in found.reshape(-1, 2))


def test_an_epoch_has_the_same_length_where_a_draw_finds_fewer_batches(monkeypatch):
    values = np.random.default_rng(1).integers(0, 30, 120)
    s = stream((np.arange(120) % 3).tolist(), 4, values.tolist())
    s.set_batch(12)
    length, known = s.epoch_length, s.arranged._known
    monkeypatch.setattr(Grouped, "_deal", lambda self, order, rng: known[: len(known) - 1])
    order = [s.locate(p)[1] for p in range(length)]
    assert sorted(order) == sorted(sum(known, []))


def test_what_never_comes_is_said():
    s = stream([0] * 5 + [1] * 3 + [None] * 2 + [2] * 8, 4)
    assert s.describe() == (
        "records that never come (pair.per_group): 3 of groups with fewer than 4: 1 (3); 2 without a group"
    )
    found = epochs(s, 4, 3)
    assert set(found.ravel()) == {*range(5), *range(10, 18)}
    many = stream([*range(8), 9, 9], 2)
    assert many.describe().endswith(
        "8 of groups with fewer than 2: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1) and 3 more"
    )
    alike = stream([0] * 6 + [1] * 6, 3, [7] * 5 + [8] + list(range(10, 16)))
    assert alike.describe().endswith("6 of groups with fewer than 3 with different 'value': 0 (6)")


def test_a_replacement_is_of_the_same_group():
    groups = (np.arange(60) % 3).tolist()
    s = stream(groups, 4, broken=range(0, 60, 7))
    met = 0
    for batch, bad in data.batches([s], [12], 0, 0, 40):
        numbers = batch.a[:, 0].long()
        of = torch.tensor(groups)[numbers].reshape(-1, 4)
        assert (of == of[:, :1]).all() and len(set(numbers.tolist())) == 12
        assert torch.equal(batch.group, 1000 + of.ravel())
        met += len(bad)
    assert met > 20
    # of a group of five the fifth replaces a bad one; where that is bad, too, one of another group
    for broken, ids in (([0], {1000}), ([0, 1], {1000, 1001})):
        small, found = stream([0] * 5 + [1] * 8, 4, broken=broken), set()
        for batch, bad in data.batches([small], [4], 0, 0, 40):
            assert batch.a.unique().numel() == 4 or len(bad) > 1
            found |= set(batch.group.tolist()) if bad else set()
        assert found == ids


def test_the_order_is_a_function_of_seed_and_place():
    groups = np.random.default_rng(2).integers(0, 5, 90).tolist()
    values = np.random.default_rng(3).integers(0, 40, 90).tolist()
    for v in (None, values):
        new = lambda seed=5: stream(groups, 2, v, seed)
        read = lambda s, start, workers=0: [b.samples for b, _ in data.batches([s], [8], workers, start, 24)]
        whole = read(new(), 0)
        assert read(new(), 13) == whole[13:] and read(new(), 0, workers=2) == whole
        assert read(new(6), 0) != whole


def test_mistakes():
    with pytest.raises(
        ValueError, match="pair.per_group: of which groups a batch holds 4 records is not said"
    ):
        build("pair", {"name": "cross_modal", "a": "x", "b": "y", "per_group": 4})
    with pytest.raises(
        ValueError,
        match=r"pair.per_group: a batch of 16 records needs 4 times 4 records of one group \('group'\), and"
        " the training split has too few. Lower train.batch_size or pair.per_group.",
    ):
        stream([0] * 15, 4).set_batch(16)
    with pytest.raises(ValueError, match="of one group .'group'., all with different 'value', and"):
        stream([0] * 16 + [1] * 16, 4, list(range(4)) * 8).set_batch(8)
    with pytest.raises(
        ValueError, match="pair.per_group: arranges an epoch out of all records, and this sou"
    ):
        data.Stream(records([0] * 8), Numbers(2), 0, order=ShardOrder(np.zeros(8, int), 1, 1))


# ---- whole recipes ----


@pytest.fixture
def speakers(tmp_path, monkeypatch):
    """Rows of five speakers; one of them has two rows for training."""
    monkeypatch.chdir(tmp_path)
    rows = [(i, "rare" if i in (50, 51) else f"s{i % 4}", "train" if i < 52 else "test") for i in range(64)]
    lines = [f"r{i},a {i},b {i},{speaker},{split}" for i, speaker, split in rows]
    (tmp_path / "t.csv").write_text("\n".join(["id,x,y,speaker,split", *lines]))

    def recipe(*overrides, **pair):
        pair = {"name": "cross_modal", "a": "x", "b": "y", "group": "speaker", "per_group": 4} | pair
        objective = {"name": "vicreg", "statistics": "within"}
        made = two_texts.recipe(4, pair=pair, objective=objective)
        return load_recipe(made, ["train.batch_size=16", *overrides])

    return recipe


def test_a_run(speakers, capsys):
    parts = build_parts(speakers("train.epochs=2", "train.steps=null"))
    assert "never come (pair.per_group): 2 of groups with fewer than 4: rare (2)\n" in capsys.readouterr().out
    assert parts.steps == 6 and parts.steps_per_epoch == 3  # 50 records of 4 speakers are 12 runs
    objective = VICReg(statistics="within")
    for batch, _ in parts.batches(0, 0, 4):
        assert batch.group.unique().numel() <= 4 and (batch.group.reshape(-1, 4).diff() == 0).all()
        assert torch.isfinite(objective(torch.randn(16, 4), torch.randn(16, 4), batch.group)[0])


def test_a_batch_that_runs_cannot_make(speakers):
    with pytest.raises(
        RecipeError,
        match=re.escape(
            "train.batch_size: 18 samples cannot be made of runs of 4 records of a group (pair.per_group)."
            " Expected a multiple of 4."
        ),
    ):
        build_parts(speakers("train.batch_size=18"))
    with pytest.raises(RecipeError, match="pair.per_group: a batch of 64 records needs 16 times 4 records"):
        build_parts(speakers("train.batch_size=64"))
    with pytest.raises(RecipeError, match="pair.group: column 'speeker' .* Did you mean 'speaker'"):
        build_parts(speakers(group="speeker"))


def test_any_pair_has_groups(tmp_path):
    for split in ("train", "test"):
        for i in range(12):
            folder = tmp_path / split / "abc"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
    recipe = {
        "name": "pictures",
        "source": {"name": "image_folder", "root": str(tmp_path)},
        "pair": {"name": "augment", "size": 8, "group": "label", "per_group": 2},
        "a": {"modality": "image", "encoder": {"name": "conv", "width": 4}, "expander": [4]},
        "b": {"weights": "same"},
        "objective": {"name": "vicreg", "statistics": "both"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 2, "batch_size": 4},
        "data": {"workers": 0},
    }
    parts = build_parts(load_recipe(recipe))
    for batch, _ in parts.batches(0, 0, 6):
        labels = [name.split("/")[1] for name in batch.samples]
        assert labels[::2] == labels[1::2] and (batch.group[::2] == batch.group[1::2]).all()
    frames = build("pair", {"name": "next_frame", "group": "look", "distinct": "path", "per_group": 3})
    events = [{"id": str(i), "look": "ab"[i // 2]} for i in range(4)]
    of = [frames.group_of(record, i) for i, record in enumerate(events)]
    assert of[0] == of[1] != of[2] == of[3] and (frames.per_group, frames.distinct) == (3, "path")
