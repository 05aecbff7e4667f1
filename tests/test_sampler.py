"""Properties of the sampler, for any data set, batch, number of processes, number of pairs, and place to go
on from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicjoint import data, distributed
from vicjoint.data.stream import Steps
from vicjoint.parts import Pair


class Values(Pair):
    def __init__(self, distinct: bool):
        self.distinct = "value" if distinct else None

    def distinct_of(self, record):
        return record["value"]


def stream(values: list, seed: int, number: int = 0, distinct: bool = False) -> data.Stream:
    return data.Stream(
        [{"id": str(i), "value": v} for i, v in enumerate(values)], Values(distinct), seed, number
    )


def become(patch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Process `rank` of `world`."""
    patch.setattr(distributed, "rank", lambda: rank)
    patch.setattr(distributed, "world_size", lambda: world)


def places(per_batch: list[int], start: int, end: int, world: int) -> list[list[tuple[int, int]]]:
    """The global batches: what all processes get, in their order."""
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            become(patch, rank, world)
            shares.append(list(Steps(per_batch, start, end)))
    return [[place for share in of_step for place in share] for of_step in zip(*shares)]


few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@few
@given(records=st.integers(1, 60), seed=seeds, epoch=st.integers(0, 1000), number=st.integers(0, 3))
def test_every_record_once_in_every_epoch(records, seed, epoch, number):
    s = stream(list(range(records)), seed, number)
    located = [s.locate(p) for p in range(epoch * records, (epoch + 1) * records)]
    assert [e for e, _ in located] == [epoch] * records and sorted(i for _, i in located) == list(
        range(records)
    )


@few
@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=2, max_size=50),
    per_batch=st.integers(1, 6),
    seed=seeds,
    epochs=st.integers(1, 3),
)
def test_distinct_batches_hold_no_value_twice_and_no_record_twice_in_an_epoch(
    values, per_batch, seed, epochs
):
    s = stream(values, seed, distinct=True)
    different = len({v for v in values if v is not None}) + values.count(None)
    if different < per_batch:
        with pytest.raises(ValueError, match="needs as many different values"):
            s.arranged.set_batch(per_batch)
        return
    s.arranged.set_batch(per_batch)
    length = s.epoch_length
    assert length % per_batch == 0 and length >= per_batch
    if different == len(values):  # nothing to keep apart: all but what does not fill a batch
        assert length == len(values) // per_batch * per_batch
    for epoch in range(epochs):
        order = [s.locate(p)[1] for p in range(epoch * length, (epoch + 1) * length)]
        assert len(set(order)) == length
        for first in range(0, length, per_batch):
            batch = [values[i] for i in order[first : first + per_batch] if values[i] is not None]
            assert len(set(batch)) == len(batch)


@few
@given(
    per_batch=st.lists(st.integers(4, 12), min_size=1, max_size=3),
    world=st.integers(1, 4),
    start=st.integers(0, 40),
    steps=st.integers(0, 25),
    more=st.integers(0, 25),
)
def test_the_global_batches_are_the_same_for_any_number_of_processes_and_any_start(
    per_batch, world, start, steps, more
):
    alone = places(per_batch, 0, start + steps + more, 1)
    assert places(per_batch, start, start + steps, world) == alone[start : start + steps]
    assert all(len(batch) == per_batch[step % len(per_batch)] for step, batch in enumerate(alone))
    for number, records in enumerate(per_batch):  # a pair's batches are its stream, without a gap
        own = alone[number :: len(per_batch)]
        assert [position for batch in own for _, position in batch] == list(range(records * len(own)))
        assert {n for batch in own for n, _ in batch} <= {number}


@few
@given(
    records=st.integers(2, 40),
    seed=seeds,
    position=st.integers(0, 500),
    others=st.lists(st.integers(0, 500), max_size=6),
)
def test_a_position_does_not_depend_on_what_was_read_before(records, seed, position, others):
    fresh, used = (stream(list(range(records)), seed) for _ in range(2))
    for other in others:
        used.locate(other)
    assert fresh.locate(position) == used.locate(position)
    draws = [s.generator(*s.locate(position), 1).integers(0, 2**62, 4) for s in (fresh, used)]
    assert np.array_equal(*draws)
