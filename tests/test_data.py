"""The stream of samples: pure, complete, independent of workers and processes; bad samples replaced, counted, named."""

import json

import numpy as np
import pytest
import torch

from vicjoint import data, distributed


class NumberPair:
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
    return [(b.a, b.b, b.group, b.samples, bad) for b, bad in data.batches(stream, per_batch, workers, start, end)]


def same(x, y):
    return all(torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) and torch.equal(p[2], q[2]) and p[3:] == q[3:] for p, q in zip(x, y)) and len(x) == len(y)


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
    with pytest.raises(data.BadDataError, match="20 samples in a row cannot be read; the last: r.: broken on purpose"):
        read(0, 0, 1, NumberPair(broken=range(10)))


def test_quarantine_counts_once_names_and_stops(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    quarantine = data.Quarantine(path, "video_folder", 100, 0.02)
    quarantine.add([("a.mp4", "empty"), ("a.mp4", "empty"), ("b\x1b[2J.mp4", "no moov")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"source": "video_folder", "sample": "a.mp4", "cause": "empty"},
                     {"source": "video_folder", "sample": "b\x1b[2J.mp4", "cause": "no moov"}]
    again = data.Quarantine(path, "video_folder", 100, 0.02)  # a resumed run remembers
    with pytest.raises(data.BadDataError) as stopped:
        again.add([("c.mp4", "truncated")])
    assert "3 of 100 samples cannot be read; data.max_bad_fraction=0.02 allows 2" in str(stopped.value)
    assert "c.mp4: truncated" in str(stopped.value) and "\x1b" not in str(stopped.value)


def test_samples_name_their_record_and_epoch():
    names = [n for batch in read(0, 0, 5, NumberPair(broken=())) for n in batch[3]]
    assert len(names) == 40 and len(set(names)) == 20 and all(n.endswith(("@0", "@1")) for n in names)
    assert np.unique([n.split("@")[0] for n in names[:20]]).size == 10
