"""A predictor of one step of time, made to be fed its own predictions.

pair: {name: next_frame, stride: 1, gap: 1, horizon: 8}
a: {modality: clip, encoder: {name: each_frame, image: {name: conv}}, expander: [256, 128]}
b: {weights: same}
predictor: {name: residual, context: 4}
"""

# B batch, T frames of a clip, E embedding, C numbers of a condition

import torch
from torch import Tensor, nn

from vicjoint.options import Count
from vicjoint.parts import Predictor
from vicjoint.registry import register


@register("predictor", "residual")
class Residual(Predictor):
    """z_t + (z_t - z_(t-1)) and a rest that is learnt, [B, T, E] -> [B, E]: of the last `context` embeddings
    a sum with a weight for each dimension, and an MLP behind a layer norm, with `layers` linear layers of
    width `hidden` between. The rest begins at zero. A condition [B, C] is joined before the MLP.

    There is no batch norm in it: fed its own predictions, its running statistics would be those of no step.
    """

    looks_back = True
    takes_condition = True

    def __init__(
        self, dim: int, width: int = 0, /, context: Count = 4, hidden: Count = 512, layers: Count = 2
    ):
        super().__init__()
        self.context, self.norm = context, nn.LayerNorm(dim)
        straight = torch.zeros(context, dim)
        straight[-2:] = torch.tensor([-1.0, 2.0])[:, None] if context > 1 else 1.0
        self.register_buffer("straight", straight, persistent=False)
        self.bend = nn.Parameter(torch.zeros(context, dim))
        sizes = [context * dim + width, *[hidden] * (layers - 1), dim]
        rows = [nn.Linear(*of) for of in zip(sizes, sizes[1:])]
        nn.init.zeros_(rows[-1].weight)
        nn.init.zeros_(rows[-1].bias)
        self.change = nn.Sequential(*[x for row in rows[:-1] for x in (row, nn.ReLU())], rows[-1])

    def forward(self, z_a: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raises ValueError where a clip has too few frames."""
        if z_a.shape[1] < self.context:
            raise ValueError(
                f"predictor 'residual' looks at the last {self.context} frames of a clip, and this one has"
                f" {z_a.shape[1]}. Set predictor.context to pair.frames or less."
            )
        recent = z_a[:, -self.context :]
        x = self.norm(recent).flatten(1)
        x = x if condition is None else torch.cat([x, condition.to(x.dtype)], 1)
        return ((self.straight + self.bend) * recent).sum(1) + self.change(x)
