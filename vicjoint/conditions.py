"""What a predictor is told beside an embedding: numbers, standardised by training records.

conditioning = Conditioning([True, True, False])   # two numbers, and one of a one-hot that stays what it is
conditioning.fit(rows_NC)
x_BC = conditioning(condition_BC)
"""

# N training rows, B batch, C numbers of a condition

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Conditioning(nn.Module):
    """(condition - shift) * factor. Buffers, so that checkpoints have them; until `fit`, nothing changes.

    standardised: of each number, whether `fit` looks at it."""

    def __init__(self, standardised: Sequence[bool]):
        super().__init__()
        self.standardised = tuple(standardised)
        self.register_buffer("shift", torch.zeros(len(self.standardised)))
        self.register_buffer("factor", torch.ones(len(self.standardised)))

    @property
    def fits(self) -> bool:
        """Whether there is anything to learn from training records."""
        return any(self.standardised)

    def fit(self, rows_NC: Tensor) -> str:
        """Learn mean and standard deviation; returns a line about them. Raises ValueError where no number
        differs from row to row, so that the condition says nothing."""
        chosen = torch.tensor(self.standardised)
        if not len(rows_NC) or bool((rows_NC == rows_NC[0]).all()):
            raise ValueError(
                f"condition: {len(rows_NC):,} training rows, and all have the same condition, so it says"
                " nothing. Leave it out, or correct its column."
            )
        x_NC = rows_NC.double()
        mean_C, std_C = x_NC.mean(0), x_NC.std(0, correction=0)
        varies = std_C > 1e-7 * mean_C.abs()  # what is left is the rounding of float32
        factor_C = torch.where(varies, 1 / std_C.where(varies, torch.ones_like(std_C)), 0.0)
        self.shift.copy_(torch.where(chosen, mean_C, 0.0))
        self.factor.copy_(torch.where(chosen, factor_C, 1.0))
        same = (chosen & ~varies).nonzero()[:, 0].tolist()
        without = f"; the same in all of them, and left out: number {', '.join(map(str, same))}"
        return f"standardised by {len(rows_NC):,} training rows" + (without if same else "")

    def forward(self, condition_BC: Tensor) -> Tensor:
        """Raises ValueError for another width."""
        if condition_BC.ndim != 2 or condition_BC.shape[1] != len(self.standardised):
            raise ValueError(
                f"the condition has shape {list(condition_BC.shape)}, expected [B, {len(self.standardised)}]."
            )
        return (condition_BC - self.shift) * self.factor
