"""What probes on frozen representations share: labelled splits, raw views read batch by batch, and the
features of those.

    train, test, classes = splits(source, "label", workers=2)
    with Evaluating(model, untrained):
        rows, places = represent(row_encoders(model, untrained, "a"), test, Reading(pair, "a"), device)

A pair gives single raw views, with a leading dimension of 1, as `plain(record, branch)`; all values of a cell
that holds several as `plain_all(record, branch)`; and, where a linear classifier is trained on random crops,
`cropped(record, rng)`.
"""

# N samples, B batch, D representation

import functools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vicjoint.batch import concatenate, to_device
from vicjoint.data.errors import READ_ERRORS
from vicjoint.files.guard import printable

AT_ONCE = 64  # samples in one forward pass
KEPT_BYTES = 2**29  # views of one split that are read once and kept for the next evaluation
WORTH_WORKERS = 20_000  # samples from which starting worker processes pays


@dataclass
class Records:
    """One split's records, and the batches of raw views that were read of them."""

    records: list
    workers: int
    kept: dict[tuple, list] = field(default_factory=dict)
    kept_bytes: int = 0


@dataclass
class Split:
    """One split and its targets [N]: class numbers, or numbers; `known` says which records have one."""

    of: Records
    labels: Tensor
    known: np.ndarray

    @property
    def records(self) -> list:
        return self.of.records

    @property
    def places(self) -> np.ndarray:
        return np.flatnonzero(self.known)


@dataclass(frozen=True)
class Reading:
    """How a record becomes the raw views of one branch. `epoch` None: without augmentation; else a random
    crop of that epoch. `every`: all values of a cell that holds several."""

    pair: Any
    branch: str = "a"
    epoch: int | None = None
    every: bool = False

    def __call__(self, record: dict, place: int) -> list:
        rng = None if self.epoch is None else np.random.default_rng([self.epoch, place, 2])
        found = [view.raw for view in self.pair.views(record, self.branch, rng)]
        return found if self.every else found[:1]


class Views(Dataset):
    """Place in the list -> (raw views, place), or (cause, place) where the record cannot be read."""

    def __init__(self, records: list, reading: Reading, places: list[int]):
        self.records, self.reading, self.places = records, reading, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int):
        place = self.places[i]
        try:
            return self.reading(self.records[place], place), place
        except READ_ERRORS as error:
            return f"{self.records[place]['id']}: {error}", place


def collate(items: list) -> tuple[Any, Tensor, list[str]]:
    """(raw views of B samples, the place of the record of each, causes of the bad ones)."""
    bad = [views for views, _ in items if isinstance(views, str)]
    good = [(view, place) for views, place in items if not isinstance(views, str) for view in views]
    return concatenate([v for v, _ in good]) if good else None, torch.tensor([p for _, p in good]), bad


def read(
    of: Records, reading: Reading, places: np.ndarray, at_once: int = AT_ONCE
) -> Iterator[tuple[Any, Tensor]]:
    """(raw views, places) batch by batch; bad records are named and left out."""
    plain = reading.epoch is None
    key = (id(reading.pair), reading.branch, reading.every, places.tobytes())
    if plain and key in of.kept:
        yield from of.kept[key][1]
        return
    workers = of.workers if len(places) > WORTH_WORKERS else 0
    loader = DataLoader(
        Views(of.records, reading, places.tolist()),
        at_once,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="spawn" if workers else None,
    )
    kept, size = [] if plain else None, of.kept_bytes
    for views, where, bad in loader:
        for cause in bad if plain else ():
            print(f"evaluation leaves out {printable(cause)}")
        if views is None:
            continue
        if kept is not None:
            size += size_in_bytes(views)
            kept = [*kept, (views, where)] if size <= KEPT_BYTES else None
        yield views, where
    if kept is not None:
        of.kept[key], of.kept_bytes = (reading.pair, kept), size  # the pair, so that its id stays its own


def size_in_bytes(views) -> int:
    return views.numel() * views.element_size() if isinstance(views, Tensor) else len(pickle.dumps(views))


# ---- targets ----


@functools.lru_cache(maxsize=2)  # the probes of one run share what they read
def both_records(source, workers: int, branch: str) -> tuple[Records, Records]:
    """(training, test) records of a branch; those of b may come from a second table."""
    second = getattr(source, "second", None) if branch == "b" else None
    train, test = (source.train, source.test) if second is None else (second["train"], second["test"])
    return Records(train, workers), Records(test, workers)


@functools.lru_cache(maxsize=8)
def splits(source, label: str, workers: int, branch: str) -> tuple[Split, Split, list[str]]:
    """(training split, test split, class names); samples without a label, or of a class that training lacks,
    are not known."""
    both = both_records(source, workers, branch)
    train, test = ([r.get(label) for r in of.records] for of in both)
    classes = sorted({name for name in train if name is not None}, key=str)
    number = {name: i for i, name in enumerate(classes)}
    parts = (torch.tensor([number.get(name, -1) for name in names]) for names in (train, test))
    return *(Split(of, labels, (labels >= 0).numpy()) for of, labels in zip(both, parts)), classes


def zero_or_one(record: dict, column: str, probe: str) -> int | None:
    """The record's 0 or 1 (also as text, or False and True); None where it has none. Raises ValueError for
    anything else."""
    text = str("" if record.get(column) is None else record[column]).strip().lower()
    known = {"": None, "0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
    if text not in known:
        raise ValueError(
            f"evaluate.probes: {probe}: {column} of {record['id']} is {record[column]!r:.60}, expected 0"
            " or 1."
        )
    return known[text]


def evenly(total: int, limit: int | None) -> np.ndarray:
    """At most `limit` of the places 0..total-1, evenly spaced; None: all of them."""
    return np.unique(
        np.linspace(0, total - 1, total if limit is None else min(limit, total)).round().astype(int)
    )


# ---- features ----


def row_encoders(model, untrained, branch: str) -> dict[str, Callable]:
    """{row: raw views -> features [B, D]}: the model, the same before training, and what the branch's
    modality calls simple."""
    trained, before = getattr(model, branch), getattr(untrained, branch)
    return {
        "model": trained.represent,
        "random_init": before.represent,
        trained.modality.baseline: trained.modality.simple_features,
    }


def embed(model, branch: str):
    """Raw views -> embeddings z [B, E] of one branch, after the predictor where branch a has one."""
    return (lambda view: model.predict(model.a(view))) if branch == "a" else model.b


def features(encoders: dict[str, Callable], views, device) -> dict[str, Tensor]:
    """{row: features [B, D] float32 on the device} of raw views; without the rows that have none."""
    views = to_device(views, device)
    found = {row: encode(views) for row, encode in encoders.items()}
    return {row: y.float() for row, y in found.items() if y is not None}


@torch.no_grad()
def represent(
    encoders: dict[str, Callable], of: Records, reading: Reading, places: np.ndarray, device
) -> tuple[dict[str, Tensor], Tensor]:
    """({row: features [N, D]}, the places [N] they belong to) of the records at `places`. Raises ValueError
    where none can be read."""
    rows, found = {}, []
    for views, where in read(of, reading, places):
        for row, y in features(encoders, views, device).items():
            rows.setdefault(row, []).append(y)
        found.append(where)
    if not found:
        raise ValueError(f"evaluation: none of the {len(places)} samples can be read.")
    return {row: torch.cat(parts) for row, parts in rows.items()}, torch.cat(found)


class Evaluating:
    """Both models in evaluation mode while entered."""

    def __init__(self, *models: nn.Module):
        self.models, self.before = models, [m.training for m in models]

    def __enter__(self):
        for model in self.models:
            model.eval()

    def __exit__(self, *_):
        for model, training in zip(self.models, self.before):
            model.train(training)


def held_out(n: int, share: float) -> np.ndarray:
    """Which of n training samples only choose among settings: bool [n]; none with a share of 0, else at least
    one and not all of them."""
    held = np.random.default_rng(0).random(n) < share
    held[-1] = False
    held[0] |= share > 0 and n > 1 and not held.any()
    return held


def as_picture(view) -> np.ndarray | None:
    """The first sample of a raw view as uint8 [H, W, 3]: an image, or the middle frame of a clip. None: it is
    neither."""
    view = to_device(view[0] if isinstance(view, tuple) else view, "cpu")
    if not isinstance(view, Tensor) or view.ndim not in (4, 5) or view.shape[1] not in (1, 3):
        return None
    view = view[0] if view.ndim == 4 else view[0, :, view.shape[2] // 2]
    view = view if view.dtype == torch.uint8 else (view * 255).round().clamp(0, 255).to(torch.uint8)
    return view.expand(3, -1, -1).movedim(0, -1).numpy()
