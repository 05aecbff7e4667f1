"""What a modality is: how one sample is read from a table's cell, and how a batch of them becomes the view of
an encoder.

@register("modality", "temperature")
class Temperature(Modality):
    reads = "text"

    def read(self, value, rng=None, window=None):
        return torch.tensor([[float(value)]])
"""

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn


class Modality(nn.Module):
    """`read` runs in the workers, on one sample; `forward` on the training device, on a batch. Options are
    the constructor's.

    reads: what a cell of a table is: `file` (a path, which the pair resolves against the table's folder) or
    `text` (the value). timed: whether samples have a time axis, so that `window` cuts the same seconds out of
    both halves of a pair. baseline: name of the row that `simple_features` gives in evaluations.
    shared: options that an encoder with an option of the same name has to agree on: it gets the modality's
    value, and another one is an error. reading: the options that `read` uses; they are wrong in a recipe
    whose pair reads for itself (augment, next_frame).
    """

    reads: ClassVar[Literal["file", "text"]] = "file"
    timed: ClassVar[bool] = False
    baseline: ClassVar[str] = "simple"
    shared: ClassVar[tuple[str, ...]] = ()
    reading: ClassVar[tuple[str, ...]] = ()

    def read(
        self, value: str, rng: np.random.Generator | None = None, window: tuple[float, float] | None = None
    ):
        """The raw view of one sample, with a leading dimension of 1: a tensor, a tuple of tensors, or an
        object with `len`, `to(device)` and a static `concatenate(views)`. All randomness comes from `rng`;
        None: as in evaluation, without augmentation. `window`: (start, length) in seconds, for timed
        modalities; None: the modality's own choice. Raises ValueError or OSError with the cause.
        """
        raise NotImplementedError(f"modality '{type(self).__name__}' does not read files")

    def seconds(self, value: str) -> float:
        """Length of a sample in seconds, for timed modalities. Raises as `read` does."""
        raise NotImplementedError(f"modality '{type(self).__name__}' has no time axis")

    def forward(self, raw):
        """The view that encoders of this modality expect, of a raw batch on their device."""
        return raw

    def simple_features(self, raw) -> Tensor | None:
        """Features [B, K] float of a raw batch that need no training, for the baseline row; None: there are
        none."""
        return None


def check_cache(modality: str, cache_mb: int) -> None:
    if cache_mb < 0:
        raise ValueError(
            f"modality '{modality}': cache_mb is {cache_mb}, expected a number of megabytes, or 0 to keep"
            " nothing."
        )
