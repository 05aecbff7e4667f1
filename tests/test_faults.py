"""Fault injection: broken samples of every modality are replaced, the same in every run, counted, and named
with their cause."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import FAULTS, GOOD, table

from vicjoint import data, distributed
from vicjoint.modalities.audio import Audio
from vicjoint.modalities.image import Clip, Image
from vicjoint.modalities.microscope import Microscope
from vicjoint.modalities.molecule import Molecule
from vicjoint.modalities.protein import Protein
from vicjoint.modalities.text import Text
from vicjoint.pairs.augment import Augment
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.pairs.next_frame import NextFrame

ROOT = Path(__file__).resolve().parents[1]
READERS = {
    "image": Image(size=16),
    "video": Clip(frames=4, size=16),
    "audio": Audio(seconds=0.25),
    "text": Text(),
    "molecule": Molecule(),
    "protein": Protein(unknown="error"),
    "microscope": Microscope(channels=2, size=16),
    "table cell": Image(size=16),
}
EVERY = [(modality, name) for modality, faults in FAULTS.items() for name in faults]
NOBODY = 65534


@contextlib.contextmanager
def without_root():
    """Root may read everything: as another user, a file without permission is one."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def world():
    """{modality: records}, good and broken ones, in a folder that another user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    folder.chmod(0o755)
    records = {}
    for modality, faults in FAULTS.items():
        place = folder / modality.replace(" ", "_")
        place.mkdir()
        cells = {f"good {i}": GOOD[modality](place, i) for i in range(len(faults) + 4)} | {
            name: fault.make(place) for name, fault in faults.items()
        }
        records[modality] = [
            {"id": name, "folder": str(place), "cell": cell, "path": cell, "word": f"word {name}"}
            for name, cell in cells.items()
        ]
        # what a reader imports late, it has to import before the user changes
        sample(pair_of(modality), records[modality][0])
    yield records
    shutil.rmtree(folder)


def pair_of(modality: str) -> CrossModal:
    pair = CrossModal("cell", "word")
    pair.readers = READERS[modality], Text()
    return pair


def sample(pair, record):
    return pair.sample(record, np.random.default_rng(0))


def record_of(world, modality, name):
    return next(r for r in world[modality] if r["id"] == name)


def test_every_modality_has_at_least_eight_kinds():
    assert all(len([f for f in faults.values() if f.cause]) >= 8 for faults in FAULTS.values())


@pytest.mark.parametrize("modality, name", EVERY)
def test_a_broken_sample_has_a_cause_and_nothing_else_happens(world, modality, name, capfd):
    # processor time: on a busy machine ten seconds of the clock may pass while this process does not run at
    # all
    fault, record, began = FAULTS[modality][name], record_of(world, modality, name), time.process_time()
    said = []
    with without_root():
        for _ in range(2):
            try:
                a, _ = sample(pair_of(modality), record)
                said.append(None)
            except data.READ_ERRORS as error:
                said.append(data.cause_of(error))
    assert time.process_time() - began < 10
    assert said[0] == said[1]  # no address, no time in it: the same in every run
    if fault.cause:
        assert said[0] and re.search(fault.cause, said[0]), said[0]
        assert len(said[0]) < 700 and "\n" not in said[0]
    else:
        assert said[0] is None and all(
            torch.isfinite(x.float()).all()
            for x in ([a] if isinstance(a, torch.Tensor) else a if isinstance(a, tuple) else [])
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "modality, pair", [("video", NextFrame(frames=4, size=16, windows=2)), ("image", Augment(size=16))]
)
def test_pairs_that_read_for_themselves(world, modality, pair, capfd):
    with without_root():
        for name, fault in FAULTS[modality].items():
            with pytest.raises(data.READ_ERRORS) if fault.cause else contextlib.nullcontext():
                sample(pair, record_of(world, modality, name))
    assert capfd.readouterr() == ("", "")


# ---- replaced, the same in every run ----


def streams(world) -> list[data.Stream]:
    return [
        data.Stream(world[modality], pair_of(modality), seed=3, number=i) for i, modality in enumerate(FAULTS)
    ]


def epoch(world, workers: int) -> list:
    """Every record of every modality once: (samples, views, bad) of each batch."""
    longest = max(len(records) for records in world.values())
    loader = data.batches(streams(world), [6] * len(world), workers, 0, len(world) * (longest // 6 + 1))
    return [(pair.samples, pair.a, pair.b, bad) for pair, bad in loader]


def equal(x, y) -> bool:
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(equal, x, y))
    return equal(list(vars(x).values()), list(vars(y).values())) if hasattr(x, "__dict__") else x == y


def test_an_epoch_is_the_same_on_two_processes_and_names_every_fault(world, monkeypatch, tmp_path, capfd):
    with without_root():
        alone, halves = epoch(world, 0), []
        for rank in range(2):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "world_size", lambda: 2)
            halves.append(epoch(world, 0))
    assert [one[0] for one in alone] == [left[0] + right[0] for left, right in zip(*halves)]
    assert [one[3] for one in alone] == [left[3] + right[3] for left, right in zip(*halves)]
    monkeypatch.undo()

    for number, (modality, faults) in enumerate(FAULTS.items()):
        quarantine = data.Quarantine(tmp_path / "bad.jsonl", modality, len(world[modality]), 1.0)
        batches = alone[number :: len(FAULTS)]
        for batch in batches:
            quarantine.add(batch[3])
        # each named, and no good one lost
        assert set(quarantine.causes) == {name for name, fault in faults.items() if fault.cause}
        assert all(re.search(faults[name].cause, cause) for name, cause in quarantine.causes.items())
        assert all(len(batch[0]) == 6 for batch in batches)  # every place is filled
        in_first = [s.rsplit("@", 1)[0] for batch in batches for s in batch[0] if s.endswith("@0")]
        assert not set(in_first) & set(quarantine.causes) and {
            r["id"] for r in world[modality] if r["id"].startswith("good")
        } <= set(in_first)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert len(lines) == sum(1 for faults in FAULTS.values() for f in faults.values() if f.cause)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more of them than there are cores
@pytest.mark.slow  # three processes that import everything
def test_an_epoch_is_the_same_with_workers(world, capfd):
    alone = epoch(world, 0)  # as root, whom no permission keeps out: workers cannot start as another user
    assert equal(alone, epoch(world, 0)) and equal(alone, epoch(world, 3))
    assert capfd.readouterr() == ("", "")


def test_a_file_that_vanishes_during_the_run_is_a_bad_sample_from_then_on(tmp_path):
    records = [{"id": f"{i}", "path": GOOD["image"](tmp_path, i)} for i in range(8)]
    stream = data.Stream(records, Augment(size=16), seed=0)
    first = [stream[p] for p in range(8)]
    assert not any(bad for *_, bad in first)
    Path(records[3]["path"]).unlink()
    second = [stream[p] for p in range(8, 16)]
    assert [bad for *_, bad in second if bad] == [[("3", f"{records[3]['path']}: no such file")]]
    assert not any(name.startswith("3@") for *_, name, _ in second)


def test_the_table_of_the_docs_is_that_of_the_tests():
    assert table() in (ROOT / "docs" / "reliability.md").read_text()
