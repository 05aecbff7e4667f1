"""The stream of samples: pure, complete, independent of workers and processes; bad samples replaced, counted,
named."""

import json

import numpy as np
import pytest
import torch

from vicjoint import data, distributed
from vicjoint.parts import Pair


class NumberPair(Pair):
    """A pair of its record's number and a random one; record 3 is broken."""

    samples_per_record = 2

    def __init__(self, broken=(3,)):
        self.broken = broken

    def sample(self, record, rng):
        if record["number"] in self.broken:
            raise ValueError("broken on purpose")
        a = torch.full((2, 1), record["number"])
        return a, torch.from_numpy(rng.integers(0, 1000, (2, 1)))


RECORDS = [{"id": f"r{i}", "number": i} for i in range(10)]


def read(workers, start, end, pair=None, per_batch=4):
    stream = data.Stream(RECORDS, pair or NumberPair(), seed=5)
    return [
        (b.a, b.b, b.group, b.samples, bad)
        for b, bad in data.batches([stream], [per_batch], workers, start, end)
    ]


def same(x, y):
    return all(
        torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) and torch.equal(p[2], q[2]) and p[3:] == q[3:]
        for p, q in zip(x, y)
    ) and len(x) == len(y)


def test_each_epoch_has_every_record_once():
    stream = data.Stream(RECORDS, NumberPair(), seed=1)
    for epoch in range(3):
        assert sorted(stream.locate(p)[1] for p in range(epoch * 10, epoch * 10 + 10)) == list(range(10))
    assert [stream.locate(p)[1] for p in range(10)] != [stream.locate(p)[1] for p in range(10, 20)]


def test_workers_change_nothing_and_a_run_goes_on_in_the_middle():
    alone = read(0, 0, 6)
    assert same(alone, read(2, 0, 6))
    assert same(alone[3:], read(0, 3, 6))


def test_processes_share_the_global_batch(monkeypatch):
    whole = read(0, 0, 3)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        parts.append(read(0, 0, 3))
    for one, left, right in zip(whole, *parts):
        assert torch.equal(one[1], torch.cat([left[1], right[1]]))


def test_a_bad_sample_is_replaced_by_the_same_other_one_each_time():
    first, second = read(0, 0, 5), read(0, 0, 5)
    assert same(first, second)
    bad = [b for batch in first for b in batch[4]]
    assert bad and set(bad) == {("r3", "broken on purpose")}
    assert not any((batch[0] == 3).any() for batch in first)


def test_all_bad_ends_with_the_cause():
    with pytest.raises(
        data.BadDataError,
        match=(
            r"(?s)20 samples in a row cannot be read, so nothing stands in for r.. .*The first ten:\n  r.:"
            r" broken on purpose"
        ),
    ):
        read(0, 0, 1, NumberPair(broken=range(10)))


def test_quarantine_counts_once_names_and_stops(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    quarantine = data.Quarantine(path, "video_folder", 100, 0.02)
    quarantine.add([("a.mp4", "empty"), ("a.mp4", "empty"), ("b\x1b[2J.mp4", "no moov")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"source": "video_folder", "sample": "a.mp4", "cause": "empty"},
        {"source": "video_folder", "sample": "b\x1b[2J.mp4", "cause": "no moov"},
    ]
    again = data.Quarantine(path, "video_folder", 100, 0.02)  # a resumed run remembers
    with pytest.raises(data.BadDataError) as stopped:
        again.add([("c.mp4", "truncated")])
    assert "3 of 100 samples cannot be read; data.max_bad_fraction=0.02 allows 2" in str(stopped.value)
    assert "c.mp4: truncated" in str(stopped.value) and "\x1b" not in str(stopped.value)


def test_samples_name_their_record_and_epoch():
    names = [n for batch in read(0, 0, 5, NumberPair(broken=())) for n in batch[3]]
    assert len(names) == 40 and len(set(names)) == 20 and all(n.endswith(("@0", "@1")) for n in names)
    assert np.unique([n.split("@")[0] for n in names[:20]]).size == 10


# ---- batches without two equal values ----


class DistinctPair(NumberPair):
    samples_per_record, distinct = 1, "value"

    def distinct_of(self, record):
        return record["value"]

    def sample(self, record, rng):
        a, b = super().sample(record, rng)
        return a[:1], b[:1]


def distinct_stream(values, broken=(), seed=5):
    records = [{"id": f"r{i}", "number": i, "value": v} for i, v in enumerate(values)]
    return data.Stream(records, DistinctPair(broken), seed)


def values_of(stream, per_batch, start, end, workers=0):
    return [
        [stream.records[int(n)]["value"] for n in b.a[:, 0]]
        for b, _ in data.batches([stream], [per_batch], workers, start, end)
    ]


@pytest.mark.parametrize(
    "values, per_batch, batches",
    [
        ([i // 4 for i in range(80)], 16, 5),  # 20 values, 4 each: all placed
        (["often"] * 50 + list(range(50)), 10, 5),  # 5 batches: one of "often" each, 45 others
        (list(range(23)), 5, 4),  # no value twice: only what does not fill a batch is left over
        ([None] * 3 + [1] * 20, 4, 1),
        (["a", "b", "c"], 3, 1),
        ([i % 8 for i in range(64)], 8, 8),
    ],
)
def test_no_value_twice_in_a_batch_and_as_many_batches_as_there_can_be(values, per_batch, batches):
    stream = distinct_stream(values)
    seen = set()
    for epoch in range(6):
        for batch in values_of(stream, per_batch, epoch * batches, (epoch + 1) * batches):
            given = [v for v in batch if v is not None]
            assert len(given) == len(set(given)) and len(batch) == per_batch
        placed = [
            stream.locate(p) for p in range(epoch * batches * per_batch, (epoch + 1) * batches * per_batch)
        ]
        # no record twice in an epoch
        assert all(e == epoch for e, _ in placed) and len({n for _, n in placed}) == len(placed)
        seen |= {n for _, n in placed}
    assert stream.epoch_length == batches * per_batch
    counts = [values.count(v) if v is not None else 1 for v in set(values)] + [1] * max(
        0, values.count(None) - 1
    )
    assert sum(min(c, batches + 1) for c in counts) < (batches + 1) * per_batch  # one more would not do
    if len(values) < 100:
        # the left-over records change
        assert len(seen) > stream.epoch_length or len(values) == stream.epoch_length


def test_distinct_epochs_are_shuffled_and_pure():
    values = [i // 3 for i in range(300)]
    first, again = (values_of(distinct_stream(values), 20, 0, 30) for _ in range(2))
    assert first == again == values_of(distinct_stream(values), 20, 0, 30, workers=2)
    assert first[15:] == values_of(distinct_stream(values), 20, 15, 30)  # a run goes on in the second epoch
    assert first[:15] != first[15:] and first != values_of(distinct_stream(values, seed=6), 20, 0, 30)
    together = [sum(v in batch and v + 1 in batch for batch in first) for v in range(0, 99, 2)]
    assert max(together) < 10  # neighbours in the table are not neighbours in batches


def test_replacements_keep_values_distinct():
    values = [i // 2 for i in range(60)]
    stream = distinct_stream(values, broken=range(0, 60, 5))
    met = 0
    for batch, bad in data.batches([stream], [10], 0, 0, 60):
        drawn = [values[int(n)] for n in batch.a[:, 0]]
        assert len(set(drawn)) == 10
        met += len(bad)
    assert met > 50
    # nothing else to put there: a value comes twice rather than none
    full = distinct_stream(list(range(10)), broken=[3])
    batch, bad = next(data.batches([full], [10], 0, 0, 1))
    assert len(batch) == 10 and bad[0] == ("r3", "broken on purpose")


def test_too_few_values_for_a_batch():
    with pytest.raises(
        ValueError,
        match=(
            "pair.distinct: a batch of 4 records needs as many different values of column 'value', and the"
            " training split has 3. Lower train.batch_size"
        ),
    ):
        data.batches([distinct_stream([1, 2, 3] * 5)], [4], 0, 0, 1)


def test_the_pair_says_the_group():
    class Grouped(NumberPair):
        def group_of(self, record, number):
            return record["number"] % 2 + 10 * (number == record["number"])

    for batch in read(0, 0, 2, Grouped(broken=())):
        assert torch.equal(batch[2], batch[0][:, 0] % 2 + 10)
