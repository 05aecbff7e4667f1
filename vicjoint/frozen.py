"""What probes on frozen representations share: labelled splits, their views read batch by batch, and the features of those.

    train, test, classes = splits(source, "label", workers=2)
    with Evaluating(model, untrained):
        rows, places = represent({"model": model.a, "random_init": untrained.a, "pixels": None}, test, pair, device)
"""

# N samples, B batch, D representation

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vicjoint.batch import to_device
from vicjoint.data import READ_ERRORS, printable

AT_ONCE = 256  # views in one forward pass
KEPT_BYTES = 2**29  # views that are read once and kept for the next evaluation
WORTH_WORKERS = 20_000  # images from which starting worker processes pays
PIXEL_SIDE = 32


@dataclass
class Split:
    """One split's records and class numbers [N] (-1: no label, or one that training does not have)."""

    records: object
    labels: Tensor
    workers: int
    kept: list | None = None


class Views(Dataset):
    """Place in the list -> (view, place), or (cause, place) where it cannot be read; `epoch` None: without augmentation."""

    def __init__(self, records, pair, places: list[int], epoch: int | None):
        self.records, self.pair, self.places, self.epoch = records, pair, places, epoch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int):
        place = self.places[i]
        record = self.records[place]
        try:
            if self.epoch is None:
                return self.pair.plain(record), place
            return self.pair.cropped(record, np.random.default_rng([self.epoch, place, 2])), place
        except READ_ERRORS as error:
            return f"{record['id']}: {error}", place


def collate(items: list) -> tuple[Tensor | None, list[int], list[str]]:
    """(views [B, ...], their places, causes of the bad ones)."""
    good = [(view, place) for view, place in items if not isinstance(view, str)]
    bad = [view for view, _ in items if isinstance(view, str)]
    return torch.stack([v for v, _ in good]) if good else None, [p for _, p in good], bad


def read(split: Split, pair, epoch: int | None = None, order: np.ndarray | None = None, at_once: int = AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
    """(views, places) batch by batch, of the labelled records; bad ones are named and left out. `order`: places to read."""
    places = (np.flatnonzero(split.labels.numpy() >= 0) if order is None else order).tolist()
    if epoch is None and split.kept is not None:
        yield from split.kept
        return
    workers = split.workers if len(places) > WORTH_WORKERS else 0
    loader = DataLoader(Views(split.records, pair, places, epoch), at_once, num_workers=workers, collate_fn=collate,
                        multiprocessing_context="spawn" if workers else None)
    kept, size = [], 0
    for views, good, bad in loader:
        for cause in bad if epoch is None else ():
            print(f"evaluation leaves out {printable(cause)}")
        if views is None:
            continue
        if kept is not None and epoch is None:
            size += views.numel() * views.element_size()
            kept = kept + [(views, torch.tensor(good))] if size <= KEPT_BYTES else None
        yield views, torch.tensor(good)
    if epoch is None and kept is not None:
        split.kept = kept


@functools.lru_cache(maxsize=2)  # the probes of one run share what they read
def splits(source, label: str, workers: int) -> tuple[Split, Split, list[str]]:
    """(training split, test split, class names)."""
    train, test = ([r.get(label) for r in records] for records in (source.train, source.test))
    classes = sorted({name for name in train if name is not None}, key=str)
    number = {name: i for i, name in enumerate(classes)}
    parts = (torch.tensor([number.get(name, -1) for name in names]) for names in (train, test))
    return *(Split(records, labels, workers) for records, labels in zip((source.train, source.test), parts)), classes


def features(encoders: dict, views: Tensor, device) -> dict[str, Tensor]:
    """{row: features [B, D] float32 on the device} of raw views by each encoder (a branch, or None for the pixels)."""
    views = views.to(device)
    return {row: pixels(views) if branch is None else branch.represent(views).float() for row, branch in encoders.items()}


def pixels(views: Tensor) -> Tensor:
    x = views.float() / 255
    if x.ndim == 4 and max(x.shape[-2:]) > PIXEL_SIDE:
        x = nn.functional.adaptive_avg_pool2d(x, PIXEL_SIDE)
    return x.flatten(1)


@torch.no_grad()
def represent(encoders: dict, split: Split, pair, device) -> tuple[dict[str, Tensor], Tensor]:
    """({row: features [N, D]}, places [N]) of the views without augmentation."""
    rows, places = {row: [] for row in encoders}, []
    for views, where in read(split, pair):
        for row, y in features(encoders, views, device).items():
            rows[row].append(y)
        places.append(where)
    if not places:
        raise ValueError("evaluation: none of the labelled samples can be read.")
    return {row: torch.cat(parts) for row, parts in rows.items()}, torch.cat(places)


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


def as_picture(view) -> np.ndarray:
    """The first image of a raw view, uint8 [H, W, 3]."""
    view = to_device(view[0] if isinstance(view, tuple) else view, "cpu")[0]
    view = view if view.dtype == torch.uint8 else (view * 255).round().clamp(0, 255).to(torch.uint8)
    return view.movedim(0, -1).numpy()
