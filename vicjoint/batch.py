"""What flows from the data to the model: a Batch of views and what belongs to them.

A view is what one branch sees; its form is the modality's contract:

    image, next_frame   [B, C, H, W] float, normalised clip                [B, C, T, H, W] float, normalised
    audio               [B, T] float in [-1, 1], mono text, protein       (ids [B, L] int64, mask [B, L] bool)
    features            (x [B, T, D] float, standardised, mask [B, T] bool)
    molecule            torch_geometric.data.Batch: x [N, 8], edge_index [2, E], edge_attr [E, 4], batch [N],
    all
                        int64; x and edge_attr are category numbers (vicjoint.facts.graphs)

Raw views, which come before the modality, are tensors, tuples of tensors, or objects with `len`,
`to(device)`, `view[start:end]` and a static `concatenate(views)`; those with `pin_memory()` are copied to a
GPU without a wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory


@dataclass
class Batch:
    """A batch of B related views. `group` [B] int64 says which samples share a source (a video, a speaker);
    it stays on the processor, where it can be read without waiting for a GPU. `samples` names each one as
    'record@epoch' so that a failure can be reproduced."""

    a: Any
    b: Any
    group: Tensor
    samples: list[str]

    def __post_init__(self):
        if self.group.ndim != 1 or len(self.group) != len(self.samples):
            raise ValueError(
                f"a batch of {len(self.samples)} samples needs group of shape [{len(self.samples)}], got"
                f" {list(self.group.shape)}"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device) -> "Batch":
        return Batch(to_device(self.a, device), to_device(self.b, device), self.group, self.samples)

    def pin_memory(self) -> "Batch":
        """Views in memory from which a GPU copies by itself, while the processor goes on; DataLoader asks for
        it."""
        return Batch(pin_memory(self.a), pin_memory(self.b), self.group, self.samples)

    def row_groups(self) -> Tensor:
        """The group of each row of embeddings that an objective compares: several a sample where b has
        several targets."""
        return self.group.repeat_interleave(self.b.targets) if isinstance(self.b, Following) else self.group

    def split(self, parts: int) -> list["Batch"]:
        """Cut into `parts` micro-batches of equal size, for gradient accumulation. The caller sees to it that
        no group is cut."""
        if parts == 1:
            return [self]
        bounds = [round(i * len(self) / parts) for i in range(parts + 1)]
        return [
            Batch(_slice(self.a, i, j), _slice(self.b, i, j), self.group[i:j], self.samples[i:j])
            for i, j in zip(bounds, bounds[1:])
        ]


class Crops(tuple):
    """Several views of the same B samples for one branch, e.g. a large and some small crops; the branch
    embeds each."""


Kind = TypeVar("Kind", bound="OfSamples")


class OfSamples:
    """A raw view that is a dataclass: each of its fields is a view or tensor of the same B samples, or a
    number that counts for all of them."""

    def _each(self: Kind, change: Callable[[Any], Any]) -> Kind:
        return type(self)(*(of if isinstance(of, int) else change(of) for of in vars(self).values()))

    def __len__(self) -> int:
        return batch_size(next(iter(vars(self).values())))

    def __getitem__(self: Kind, part: slice) -> Kind:
        return self._each(lambda of: _slice(of, part.start, part.stop))

    def to(self: Kind, device, non_blocking: bool = False) -> Kind:
        return self._each(lambda of: to_device(of, device, non_blocking))

    def pin_memory(self: Kind) -> Kind:
        return self._each(pin_memory)

    @staticmethod
    def concatenate(views: list[Kind]) -> Kind:
        columns = zip(*(vars(view).values() for view in views))
        return type(views[0])(*(of[0] if isinstance(of[0], int) else concatenate(list(of)) for of in columns))


@dataclass
class Conditioned(OfSamples):
    """A view [B, ...] of branch a with what the predictor is told beside it: condition [B, C] float32, such
    as the actions between a clip and the frame that follows; [B, H, C] where it predicts H steps, each of
    which has its own."""

    view: Any
    condition: Tensor


@dataclass
class Following(OfSamples):
    """Several targets of each sample for branch b, one after the other in time, as a clip of them: view [B,
    C, K, ...], the last K of `horizon` steps."""

    view: Tensor
    horizon: int

    @property
    def targets(self) -> int:
        """Of each sample."""
        return self.view.shape[2]

    def rows(self) -> Tensor:
        """Each target as a view of its own, sample by sample: [B K, ...]."""
        return self.view.transpose(1, 2).flatten(0, 1)


def unconditioned(view):
    """What an encoder is given of it."""
    return view.view if isinstance(view, Conditioned) else view


@dataclass
class Encoded(OfSamples):
    """In place of a view, what the encoder gives of it: y [B, D] float."""

    y: Tensor


@dataclass
class Boxed(OfSamples):
    """A view, and where in a picture it looks: boxes [B, 4] float, (left, top, right, bottom) in the pixels
    of the picture as it was read, left above right where it is mirrored."""

    view: Any
    boxes: Tensor

    def places(self, grid: tuple[int, int]) -> Tensor:
        """The middles of a map's cells in the picture, row by row: (x, y) in its pixels, [B, H' W', 2]."""
        left, top, right, bottom = self.boxes.unbind(1)
        down, across = ((torch.arange(n, device=left.device) + 0.5) / n for n in grid)
        x = left[:, None] + (right - left)[:, None] * across
        y = top[:, None] + (bottom - top)[:, None] * down
        each = x[:, None, :].expand(-1, len(down), -1), y[:, :, None].expand(-1, -1, len(across))
        return torch.stack(each, 3).flatten(1, 2)


class WithCells(NamedTuple):
    """What a branch gives of `Boxed` views: the embeddings z [B, E]; those of the cells of the encoder's map,
    [B, T, L]; and where in the picture these are, [B, T, 2] in its pixels."""

    z: Tensor
    cells: Tensor
    places: Tensor


class Futures(NamedTuple):
    """What a model predicts of a batch where each of K predictions [B, K, E] learns by a weight [B, K], which
    sum to 1 and have no gradient: their mean z [B, E], and scores [B, K], the logarithms of their
    probabilities up to a constant, where the model knows these (else all 0)."""

    z: Tensor
    predictions: Tensor
    weights: Tensor
    scores: Tensor


def z_of(embedding: Tensor | WithCells | Futures) -> Tensor:
    """z [B, E] alone."""
    return embedding if isinstance(embedding, Tensor) else embedding.z


def to_device(view, device, non_blocking: bool = True):
    if isinstance(view, (tuple, list)):
        return type(view)(to_device(v, device, non_blocking) for v in view)
    return view.to(device, non_blocking=non_blocking)


def batch_size(view) -> int:
    """Samples of a view."""
    return batch_size(view[0]) if isinstance(view, (tuple, list)) else len(view)


def _slice(view, start: int, end: int):
    """Samples start..end-1; an object gives them by `view[start:end]`."""
    if isinstance(view, (tuple, list)):
        return type(view)(_slice(v, start, end) for v in view)
    return view[start:end]


def concatenate(views: list):
    """Join per-record views along the batch dimension: tensors, tuples of them, and objects with a static
    `concatenate(views)`.

    (ids [B, L], ..., mask [B, L] bool) of different lengths are padded with 0 and False to the longest; other
    tensors must have one shape. Raises ValueError where they have not.
    """
    if isinstance(views[0], (tuple, list)):
        if all(map(_is_masked, views)):
            views = pad(views)
        return type(views[0])(concatenate(list(v)) for v in zip(*views))
    if not isinstance(views[0], Tensor):
        return views[0].concatenate(views)
    if len(shapes := {tuple(v.shape[1:]) for v in views}) > 1:
        some = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise ValueError(
            f"views of shapes {some} cannot be in one batch. A modality gives one shape to all samples, or"
            " (ids, mask) of any length."
        )
    return torch.cat(views)


def _is_masked(view) -> bool:
    return (
        isinstance(view, tuple)
        and len(view) > 1
        and isinstance(view[-1], Tensor)
        and view[-1].dtype == torch.bool
        and view[-1].ndim == 2
    )


def pad(views: list[tuple]) -> list[tuple]:
    """Every tensor [B, L, ...] of every view with zeros at its end, up to the longest L."""
    longest = max(view[-1].shape[1] for view in views)
    return [tuple(_longer(part, longest) for part in view) for view in views]


def _longer(x: Tensor, length: int) -> Tensor:
    return (
        x
        if x.shape[1] == length
        else torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], 1)
    )
