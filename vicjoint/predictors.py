"""Predictors that look back: from the embeddings of a clip's frames to that of the frame after them.

a: {modality: clip, encoder: {name: each_frame, image: {name: conv}}, expander: [512, 256]}
b: {weights: same}
predictor: {name: extrapolate, context: 6}
"""

# B batch, T frames of a clip, E embedding

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from vicjoint.model import make_expander
from vicjoint.options import NotNegative
from vicjoint.parts import Predictor
from vicjoint.registry import register


@register("predictor", "extrapolate")
class Extrapolate(Predictor):
    """z_t + reach (z_t - z_(t-1)) + a rest that is learnt: embeddings move straight on, and bend by an MLP of
    the last `context` of them, [B, T, E] -> [B, E]. It has one hidden layer of width `hidden`, and its last
    layer begins at zero. hidden 0: no rest, straight on.

    reach: how far the target is after the last frame, in steps of the clip: pair.gap / pair.stride.
    """

    looks_back = True

    def __init__(
        self,
        dim: int,
        /,
        context: Annotated[int, Field(ge=2)] = 6,
        hidden: Annotated[int, Field(ge=0)] = 512,
        reach: NotNegative = 1.0,
    ):
        super().__init__()
        self.context, self.reach = context, reach
        self.rest = make_expander(context * dim, [hidden, dim]) if hidden else None
        if self.rest is not None:
            nn.init.zeros_(self.rest[-1].weight)

    def forward(self, z_a: Tensor) -> Tensor:
        """Raises ValueError where a clip has too few frames."""
        if z_a.shape[1] < self.context:
            raise ValueError(
                f"predictor 'extrapolate' looks at the last {self.context} frames of a clip, and this one has"
                f" {z_a.shape[1]}. Set predictor.context to pair.frames or less."
            )
        last = z_a[:, -1]
        straight = last + self.reach * (last - z_a[:, -2])
        return straight if self.rest is None else straight + self.rest(z_a[:, -self.context :].flatten(1))
