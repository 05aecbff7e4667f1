"""Predictors: of one embedding, with several predictions where it has a latent; and those that look back,
from the embeddings of a clip's frames to that of the frame after them.

a: {modality: clip, encoder: {name: each_frame, image: {name: conv}}, expander: [512, 256]}
b: {weights: same}
predictor: {name: extrapolate, context: 6}     # one step, or several at once
predictor: {name: residual, context: 4}        # many steps, each from the one before: pair.horizon
"""

# B batch, T frames of a clip, E embedding, C numbers of a condition

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vicjoint.model import make_expander
from vicjoint.options import Count, Natural, NotNegative
from vicjoint.parts import Predictor
from vicjoint.registry import register


@register("predictor", "mlp")
class MLP(Predictor):
    """z_a [B, E] -> [B, E]: `layers` linear layers of width `hidden` between, each with batch norm and ReLU.
    A condition [B, C] is joined to z_a.

    latents above 1: z_a [B, E] -> [B, latents, E]. Each value of the latent has a learned vector, which is
    joined to z_a: it is added behind the first linear layer, which is the same as a longer input. choice:
    which of the predictions learns from a target: nearest, that one alone; annealed, at first all and bit by
    bit the near ones, which did worse than nearest in all runs measured (docs/time.md). prior: learn the
    probability of each prediction from z_a. With one latent both mean nothing.
    """

    takes_condition = True

    def __init__(
        self,
        dim: int,
        width: int = 0,
        /,
        hidden: Count = 512,
        layers: Count = 2,
        latents: Count = 1,
        choice: Literal["nearest", "annealed"] = "nearest",
        prior: bool = False,
    ):
        super().__init__()
        self.choice, self.prior = choice, prior
        self.net = make_expander(dim + width, [hidden] * (layers - 1) + [dim])
        self.latents = latents
        if latents > 1:
            self.values = nn.Parameter(torch.randn(latents, self.net[0].out_features))

    def forward(self, z_a: Tensor, condition: Tensor | None = None) -> Tensor:
        x = z_a if condition is None else torch.cat([z_a, condition.to(z_a.dtype)], 1)
        if self.latents == 1:
            return self.net(x)
        joined = self.net[0](x)[:, None] + self.values
        return self.net[1:](joined.flatten(0, 1)).unflatten(0, (len(z_a), self.latents))


@register("predictor", "extrapolate")
class Extrapolate(Predictor):
    """z_t + reach (z_t - z_(t-1)) + a rest that is learnt: embeddings move straight on, and bend by an MLP of
    z_t and of the changes between the last `context` of them, [B, T, E] -> [B, H, E]. The MLP sees each of
    these numbers at a standard deviation of 1 (changes are small beside what an embedding is), has one hidden
    layer of width `hidden`, and its last layer begins at zero. hidden 0: no rest, straight on.

    With a horizon all its steps are predicted at once, step k by k reach changes and a rest of its own.
    reach: how far the first target is after the last frame, in steps of the clip: pair.gap / pair.stride.
    """

    looks_back = True
    at_once = True  # fed back, the running statistics of its batch norm would be those of no step

    def __init__(
        self,
        dim: int,
        horizon: int,
        /,
        context: Annotated[int, Field(ge=2)] = 6,
        hidden: Natural = 512,
        reach: NotNegative = 1.0,
    ):
        super().__init__()
        self.context, self.rest = context, None
        self.register_buffer("ahead", reach * torch.arange(1, horizon + 1)[:, None], persistent=False)
        if hidden:
            seen, said = context * dim, horizon * dim
            self.rest = nn.Sequential(
                nn.BatchNorm1d(seen, affine=False), *make_expander(seen, [hidden, said])
            )
            nn.init.zeros_(self.rest[-1].weight)

    def forward(self, z_a: Tensor) -> Tensor:
        """Raises ValueError where a clip has too few frames."""
        recent = latest(z_a, self.context, "extrapolate")
        last, changes = recent[:, -1], recent.diff(dim=1)
        straight = last[:, None] + self.ahead * changes[:, -1:]
        if self.rest is None:
            return straight
        return straight + self.rest(torch.cat([changes.flatten(1), last], 1)).view_as(straight)


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
        recent = latest(z_a, self.context, "residual")
        x = self.norm(recent).flatten(1)
        x = x if condition is None else torch.cat([x, condition.to(x.dtype)], 1)
        return ((self.straight + self.bend) * recent).sum(1) + self.change(x)


def latest(z_a: Tensor, context: int, predictor: str) -> Tensor:
    """The last `context` embeddings of clips [B, T, E]. Raises ValueError where they have fewer."""
    if z_a.shape[1] < context:
        raise ValueError(
            f"predictor '{predictor}' looks at the last {context} frames of a clip, and this one has"
            f" {z_a.shape[1]}. Set predictor.context to pair.frames or less."
        )
    return z_a[:, -context:]
