"""Batches: views of every form are joined, moved and cut; what cannot be joined is named."""

import pytest
import torch

from vicjoint.batch import Batch, Crops, batch_size, concatenate, to_device


def tokens(*ids):
    return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)


class Graphs:
    """An object as a modality may hand it over: a list of node counts."""

    def __init__(self, nodes, device="cpu"):
        self.nodes, self.device = nodes, device

    def __len__(self):
        return len(self.nodes)

    def __getitem__(self, part):
        return Graphs(self.nodes[part], self.device)

    def to(self, device, non_blocking=False):
        return Graphs(self.nodes, device)

    @staticmethod
    def concatenate(views):
        return Graphs([n for v in views for n in v.nodes])


def test_ids_and_masks_of_different_lengths_are_padded():
    ids, mask = concatenate([tokens(5, 6, 7), tokens(8), tokens(9, 9)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 9, 0]] and ids.dtype == torch.int64
    assert (
        mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]] and mask.dtype == torch.bool
    )
    # features beside them, too
    more = concatenate([(torch.ones(1, n, 4), *tokens(*range(n))) for n in (2, 5)])
    assert more[0].shape == (2, 5, 4) and more[0][0, 2:].abs().sum() == 0 and isinstance(more, tuple)


def test_tensors_must_have_one_shape():
    assert concatenate([torch.zeros(2, 3), torch.ones(1, 3)]).shape == (3, 3)
    with pytest.raises(ValueError, match=r"views of shapes \[1, 7\] and \[1, 9\] cannot be in one batch"):
        concatenate([torch.zeros(1, 1, 9), torch.zeros(1, 1, 7)])
    # without a mask, zeros would look like data
    with pytest.raises(ValueError, match="cannot be in one batch"):
        concatenate([(torch.zeros(1, 3), torch.zeros(1, 3)), (torch.zeros(1, 4), torch.zeros(1, 4))])


def test_objects():
    joined = concatenate([Graphs([3]), Graphs([5]), Graphs([1]), Graphs([2])])
    pair = Batch(
        joined, concatenate([tokens(1), tokens(1, 2), tokens(3), tokens(4)]), torch.arange(4), list("wxyz")
    )
    moved = pair.to("meta")
    assert moved.a.device == "meta" and moved.b[1].device.type == "meta"
    first, second = pair.split(2)
    assert (
        (first.a.nodes, second.a.nodes) == ([3, 5], [1, 2])
        and second.b[0].tolist() == [[3, 0], [4, 0]]
        and second.samples == ["y", "z"]
    )
    assert batch_size(pair.a) == batch_size(pair.b) == len(pair) == 4


def test_crops_stay_crops():
    crops = concatenate([Crops([torch.zeros(1, 3), torch.zeros(1, 2)]) for _ in range(5)])
    assert (
        isinstance(crops, Crops)
        and [c.shape[0] for c in crops] == [5, 5]
        and isinstance(to_device(crops, "cpu"), Crops)
    )
