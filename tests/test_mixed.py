"""Several sources in one stream: shares, passes, columns, ids, resuming, and what is said of mistakes."""

from collections import Counter

import numpy as np
import pytest
import torch

from vicjoint.check import check, in_words
from vicjoint.data.fingerprint import fingerprint
from vicjoint.data.mixture import Mixture
from vicjoint.data.stream import Stream, batches
from vicjoint.orders import MixedOrder, ShardOrder
from vicjoint.parts import Pair
from vicjoint.recipe import RecipeError, json_schema, load_recipe
from vicjoint.registry import build
from vicjoint.sources.base import SourceError


def table(tmp_path, name, rows, extra="") -> dict:
    path = tmp_path / f"{name}.csv"
    head = "id,caption,note,split" + (f",{extra}" if extra else "")
    line = lambda i: f"r{i},{name} {i},n{i},{'test' if i >= rows else 'train'}" + (",e" if extra else "")
    path.write_text("\n".join([head, *map(line, range(rows + 2))]) + "\n")
    return {"name": "table", "root": str(path)}


def mixed(tmp_path, weights=None) -> dict:
    specs = [table(tmp_path, "large", 30), table(tmp_path, "small", 6, "kind")]
    return {"name": "mixed", "sources": specs, "weights": weights}


class Captions(Pair):
    bad = ()

    def sample(self, record, rng):
        if record["caption"] in self.bad:
            raise ValueError("broken on purpose")
        view = torch.tensor([[rng.random()]])
        return view, view


def stream(source, pair=None) -> Stream:
    return Stream(source.train, pair or Captions(), 3, order=source.order("train"))


def test_shares_passes_and_columns(tmp_path):
    source = build("source", mixed(tmp_path, [3, 1]))
    assert source.describe().startswith(
        "mixed 36 train, 4 test records: 0: 75.0% of each batch, 0.9 passes an epoch, table "
    )
    assert "; 1: 25.0% of each batch, 1.5 passes an epoch, table " in source.describe()
    assert source.train[0]["kind"] is None and source.train[0]["id"] == "0/r0"
    assert source.train[30]["kind"] == "e" and source.test[-1]["id"] == "1/r7"
    assert (
        list(source.ids("train")) == [r["id"] for r in source.train] and fingerprint(source)["test"][0] == 4
    )
    with batches([stream(source)], [8], 0, 0, 30) as read:
        found = [batch.samples for batch, _ in read]
    for samples in found:
        assert Counter(s[0] for s in samples) == {"0": 6, "1": 2}
    once = Counter(s for samples in found for s in samples)
    assert set(once.values()) == {1}  # a record comes once in a pass of its source
    passes = Counter(s.split("@")[1] for s in once if s[0] == "1")
    assert [passes[str(i)] for i in range(10)] == [6] * 10
    assert {s for s in once if s[0] == "0" and s.endswith("@0")} == {f"0/r{i}@0" for i in range(30)}


def test_a_run_goes_on_at_the_very_sample(tmp_path):
    source = build("source", mixed(tmp_path, [2, 1]))
    whole = [stream(source)[p] for p in range(60)]
    later = stream(build("source", mixed(tmp_path, [2, 1])))
    assert [later[p][3] for p in range(25, 60)] == [sample[3] for sample in whole[25:]]
    draws = [float(sample[0]) for sample in whole]
    assert len(set(draws)) == len(draws)  # another augmentation in each pass


def test_a_bad_sample_is_replaced_from_its_own_source(tmp_path):
    source, pair = build("source", mixed(tmp_path, [1, 1])), Captions()
    pair.bad = ("small 2", "large 3")
    found = [stream(source, pair)[p] for p in range(72)]
    for sample in found:
        assert all(name[0] == sample[3][0] for name, _ in sample[4])
    assert {name for sample in found for name, _ in sample[4]} == {"0/r3", "1/r2"}


@pytest.mark.parametrize("seed", range(12))
def test_any_number_of_sources_with_any_weights(seed):
    rng, number = np.random.default_rng(seed), 1 + seed % 4
    counts, weights = rng.integers(1, 40, number).tolist(), (rng.random(number) * 10 + 0.1).tolist()
    shards = [ShardOrder(rng.integers(0, 3, n), 2, 1) if i % 2 else None for i, n in enumerate(counts)]
    order = MixedOrder(list(zip(counts, shards)), weights)
    mixture = Mixture(order, lambda passes, number: np.random.default_rng([passes, number]))
    mixture.set_batch(7)
    found = [mixture.locate(position) for position in range(400)]
    assert len(set(found)) == len(found)
    sources = np.searchsorted(mixture.begins, [record for _, record in found], side="right") - 1
    share = np.bincount(sources, minlength=len(counts)) / len(found)
    np.testing.assert_allclose(share, np.array(weights) / sum(weights), atol=2 / len(found))
    for number, count in enumerate(counts):  # passes are whole before the next begins
        own = np.array(found)[sources == number, 0].tolist()
        assert own == sorted(own) and all(own.count(p) == count for p in range(max(own, default=0)))


def recipe(tmp_path, source, *more):
    text = "{name: text, length: 32}"
    branch = f"{{modality: {text}, encoder: {{name: bytes_cnn}}, expander: [8, 8]}}"
    pair = "pair={name: cross_modal, a: caption, b: note}"
    own = [f"source={source}", f"a={branch}", f"b={branch}", pair, "evaluate.probes=[]", "data.workers=0"]
    return load_recipe("image_text", [*own, *more])


def test_check_reads_all_of_it(tmp_path):
    found = check(recipe(tmp_path, mixed(tmp_path, [3, 1])))
    assert found["records"] == 40 and not found["bad"] and "all can be read" in in_words(found, 0.01)


def test_what_is_said(tmp_path):
    large = table(tmp_path, "large", 30)
    with pytest.raises(RecipeError) as error:
        recipe(
            tmp_path, {"name": "mixed", "sources": [{"name": "tabel", "root": "x"}, large | {"colum": "y"}]}
        )
    assert "source.sources.0.name: no source 'tabel'. Did you mean 'table'" in str(error.value)
    assert "source.sources.1.colum: source 'table' takes no option 'colum'. Did you mean" in str(error.value)
    with pytest.raises(SourceError, match="1 weights .option weights. for 2 sources. Give one for each"):
        build("source", mixed(tmp_path, [3]))
    with pytest.raises(ValueError, match="weights: expected a number above 0"):
        build("source", mixed(tmp_path, [3, 0]))
    with pytest.raises(SourceError, match="one of its sources is mixed, too"):
        build("source", {"name": "mixed", "sources": [mixed(tmp_path), large]})
    source, pair = build("source", mixed(tmp_path, [3, 1])), Captions()
    pair.distinct = "caption"
    with pytest.raises(ValueError, match="pair.distinct: .* has the records of several, each with epochs"):
        stream(source, pair)
    assert "mixed" in str(json_schema())


def test_without_weights_batches_may_be_distinct(tmp_path):
    """The sources are one epoch, from which as little is left out as there has to be; over a resume, too."""
    source, pair = build("source", mixed(tmp_path)), Captions()
    pair.distinct = "note"  # n0 to n5 are in both
    pair.distinct_of = lambda record: record["note"]
    note = {record["id"]: record["note"] for record in source.train}
    made = stream(source, pair)
    with batches([made], [9], 0, 0, 8) as read:
        found = [batch.samples for batch, _ in read]
    assert made.epoch_length == len(source.train) and len(found) == 8
    assert all(len({note[name.split("@")[0]] for name in samples}) == 9 for samples in found)
    assert sorted(sum(found[:4], [])) == sorted(f"{name}@0" for name in source.ids("train"))
    with batches([stream(source, pair)], [9], 0, 3, 8) as read:
        assert [batch.samples for batch, _ in read] == found[3:]
    order = source.order("train")
    assert order.is_one_epoch and not order._replace(weights=[3, 1]).is_one_epoch
    elsewhere = ShardOrder(np.zeros(30, int), 8, 4)
    assert not order._replace(parts=[(30, elsewhere), (6, None)]).is_one_epoch
