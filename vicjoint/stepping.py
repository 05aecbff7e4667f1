"""A predictor of one step of time, made to be fed its own predictions.

pair: {name: next_frame, horizon: 8}
predictor: {name: residual, hidden: 512}
"""

# B batch, E embedding, C numbers of a condition

import torch
from torch import Tensor, nn

from vicjoint.options import Count
from vicjoint.parts import Predictor
from vicjoint.registry import register


@register("predictor", "residual")
class Residual(Predictor):
    """z_a [B, E] plus a change, [B, E]: `layers` linear layers of width `hidden` between, with ReLU, of z_a
    behind a layer norm; the last begins at zero, so that the first prediction is a copy. A condition [B, C]
    is joined to z_a behind the norm.

    There is no batch norm in it: over several steps its running statistics would be those of no step.
    """

    takes_condition = True

    def __init__(self, dim: int, width: int = 0, /, hidden: Count = 512, layers: Count = 2):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        sizes = [dim + width, *[hidden] * (layers - 1), dim]
        rows = [nn.Linear(*of) for of in zip(sizes, sizes[1:])]
        nn.init.zeros_(rows[-1].weight)
        nn.init.zeros_(rows[-1].bias)
        self.change = nn.Sequential(*[x for row in rows[:-1] for x in (row, nn.ReLU())], rows[-1])

    def forward(self, z_a: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.norm(z_a)
        x = x if condition is None else torch.cat([x, condition.to(x.dtype)], 1)
        return z_a + self.change(x)
