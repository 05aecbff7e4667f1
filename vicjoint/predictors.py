"""Predictors that look back: from the embeddings of a clip's frames to that of the frame after them.

a: {modality: clip, encoder: {name: each_frame, image: {name: conv}}, expander: [512, 256]}
b: {weights: same}
predictor: {name: extrapolate, context: 6}
"""

# B batch, T frames of a clip, E embedding

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vicjoint.model import make_expander
from vicjoint.options import Natural, NotNegative
from vicjoint.parts import Predictor
from vicjoint.registry import register


@register("predictor", "extrapolate")
class Extrapolate(Predictor):
    """z_t + reach (z_t - z_(t-1)) + a rest that is learnt: embeddings move straight on, and bend by an MLP of
    z_t and of the changes between the last `context` of them, [B, T, E] -> [B, E]. The MLP sees each of these
    numbers at a standard deviation of 1 (changes are small beside what an embedding is), has one hidden layer
    of width `hidden`, and its last layer begins at zero. hidden 0: no rest, straight on.

    reach: how far the target is after the last frame, in steps of the clip: pair.gap / pair.stride.
    """

    looks_back = True

    def __init__(
        self,
        dim: int,
        /,
        context: Annotated[int, Field(ge=2)] = 6,
        hidden: Natural = 512,
        reach: NotNegative = 1.0,
    ):
        super().__init__()
        self.context, self.reach, self.rest = context, reach, None
        if hidden:
            seen = context * dim
            self.rest = nn.Sequential(nn.BatchNorm1d(seen, affine=False), *make_expander(seen, [hidden, dim]))
            nn.init.zeros_(self.rest[-1].weight)

    def forward(self, z_a: Tensor) -> Tensor:
        """Raises ValueError where a clip has too few frames."""
        if z_a.shape[1] < self.context:
            raise ValueError(
                f"predictor 'extrapolate' looks at the last {self.context} frames of a clip, and this one has"
                f" {z_a.shape[1]}. Set predictor.context to pair.frames or less."
            )
        last, changes = z_a[:, -1], z_a[:, -self.context :].diff(dim=1)
        straight = last + self.reach * changes[:, -1]
        if self.rest is None:
            return straight
        return straight + self.rest(torch.cat([changes.flatten(1), last], 1))
