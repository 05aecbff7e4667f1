"""The contract of modalities that learn from training records before the first step, such as a mean.

    class Mine(Fitted, Modality):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def fit(self, raws, count):
            self.mean.copy_(torch.cat(list(raws)).mean(0))
            return f"mean of {count} rows"

What they learn are buffers, so that checkpoints and exports have it; a run that goes on does not learn again.
"""

from collections.abc import Iterable
from typing import Any


class Fitted:
    """fits: whether `fit` is to be called."""

    fits: bool = True

    def fits_on(self, record: dict[str, Any]) -> bool:
        """Whether `fit` wants this record. Raises ValueError where the record cannot say so."""
        return True

    def fit(self, raws: Iterable[Any], count: int) -> str:
        """Learn from raw views of training records, read one after the other as in evaluation, `count` of
        them at most; returns a line that says what was found. Raises ValueError where they are too few."""
        raise NotImplementedError(f"modality '{type(self).__name__}' has no method fit(raws, count)")
