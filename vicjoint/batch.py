"""What flows from the data to the model: a Pair of views and what belongs to them.

A view is what one branch sees; its form is the modality's contract:

    image, next_frame   [B, C, H, W] float, normalised
    clip                [B, C, T, H, W] float, normalised
    audio               [B, T] float in [-1, 1], mono
    text, protein       (ids [B, L] int64, mask [B, L] bool)
    molecule            torch_geometric.data.Batch: x [N, 8] int64, edge_index [2, E] int64, edge_attr [E, 4] int64, batch [N] int64;
                        x and edge_attr are category numbers, a column for each of ATOM_CATEGORIES and BOND_CATEGORIES
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What the columns of a molecule's atoms and bonds are, and how many categories each has; the last category of a column: masked
ATOM_CATEGORIES = {"atomic_number": 120, "degree": 12, "charge": 12, "hydrogens": 10, "aromatic": 3, "in_ring": 3, "chirality": 4, "hybridisation": 8}
BOND_CATEGORIES = {"kind": 6, "conjugated": 3, "in_ring": 3, "stereo": 4}


@dataclass
class Pair:
    """A batch of B related views. `group` [B] int64 says which samples share a source (a video, a speaker);
    `samples` names each one as 'record@epoch' so that a failure can be reproduced."""

    a: Any
    b: Any
    group: Tensor
    samples: list[str]

    def __post_init__(self):
        if self.group.ndim != 1 or len(self.group) != len(self.samples):
            raise ValueError(f"a pair of {len(self.samples)} samples needs group of shape [{len(self.samples)}], got {list(self.group.shape)}")

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device) -> "Pair":
        return Pair(to_device(self.a, device), to_device(self.b, device), self.group.to(device, non_blocking=True), self.samples)

    def split(self, parts: int) -> list["Pair"]:
        """Cut into `parts` micro-batches of equal size, for gradient accumulation. The caller sees to it that no group is cut."""
        if parts == 1:
            return [self]
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        return [Pair(_slice(self.a, i, j), _slice(self.b, i, j), self.group[i:j], self.samples[i:j])
                for i, j in zip(bounds, bounds[1:])]


class Crops(tuple):
    """Several views of the same B samples for one branch, e.g. a large and some small crops; the branch embeds each."""


def to_device(view, device):
    if isinstance(view, (tuple, list)):
        return type(view)(to_device(v, device) for v in view)
    return view.to(device, non_blocking=True)


def _slice(view, start: int, end: int):
    if isinstance(view, (tuple, list)):
        return type(view)(_slice(v, start, end) for v in view)
    return view[start:end]


def concatenate(views: list):
    """Join per-record views along the batch dimension."""
    if isinstance(views[0], (tuple, list)):
        return type(views[0])(concatenate(list(v)) for v in zip(*views))
    if hasattr(views[0], "concatenate"):
        return views[0].concatenate(views)
    return torch.cat(views)
