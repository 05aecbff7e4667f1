"""Temporal straightening: another objective, and what a video's embeddings turn from one moment to the next.

objective: {name: straightened, weight: 0.1, of: {name: vicreg}}
"""

# N samples of the global batch, n of this process, R records, S samples of each in order of time, D embedding
# dimensions

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.options import ComponentOf, NotNegative
from vicjoint.parts import Objective, Pair
from vicjoint.registry import build, find, names, register


@register("objective", "straightened")
class Straightened(Objective):
    """The objective `of`, and a term for the turns of embeddings over time: a film bends in pixels and goes
    straighter in perception (Hénaff, Goris, Simoncelli 2019), where what comes next is easy to tell.

    - straightening: weight (1 - cos), of the angle between z_t - z_(t-1) and z_(t+1) - z_t: the mean over
      every three samples of a record that follow each other, and over both branches

    At weight 1 it is 0 where each record's samples lie on a line, in order, 1 where they go anywhere, and 2
    where they go back and forth. It needs three or more samples of a record in order of time: the pair
    next_frame with `windows: 3` or more, or with a horizon of 3 or more, whose targets these then are. Where
    two samples have one embedding there is no direction: such a turn counts as 1 and has no gradient.
    """

    def __init__(self, of: Annotated[dict, ComponentOf("objective")], weight: NotNegative = 0.1):
        super().__init__()
        self.objective: Objective = build("objective", of)
        if "straightening" in self.objective.terms:
            raise ValueError("objective.of: straightened straightens already. Expected another objective.")
        self.weight, self.samples = weight, 0
        self.terms, self.has_memory = (*self.objective.terms, "straightening"), self.objective.has_memory

    @classmethod
    def needs_slow_branch(cls, options: Mapping[str, Any]) -> str | None:
        of = options.get("of")
        known = isinstance(of, dict) and of.get("name") in names("objective")
        return "of" if known and find("objective", of["name"]).needs_slow_branch(of) else None

    def bind(self, pair: Pair) -> None:
        """Raises ValueError where the pair gives no three samples of a record in order of time."""
        self.objective.bind(pair)
        # of several targets, those of a window follow each other, and the windows may lie anywhere
        samples = pair.targets if pair.targets > 1 else pair.samples_per_record
        if not pair.in_time or samples < 3:
            has = f"{samples} in order of time" if pair.in_time else "none in order of time"
            raise ValueError(
                "objective: straightened needs three or more samples of a record in order of time, this pair"
                f" gives {has}. Use the pair next_frame with windows: 3 or more, or the objective"
                " in `of` without straightened around it."
            )
        self.samples = samples

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D], n = R S; group as `of` needs it. Rows of all processes count, those of a record
        are on one. Raises ValueError as `of` does, and where no pair is bound or n is no multiple of S."""
        loss, terms = self.objective(z_a, z_b, group)
        check_embeddings("straightened", z_a, z_b)
        if not self.samples or len(z_a) % self.samples:
            raise ValueError(
                f"straightened: {len(z_a)} rows are not made of records with {self.samples} samples each."
                " Bind it to the pair first."
            )
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            rows = sum(distributed.row_counts(len(z_a)))
            turns = rows // self.samples * (self.samples - 2)
            # DistributedDataParallel averages, the union batch's gradient is the sum
            slope = self.weight / (2 * turns)
            (bent_a, of_a), (bent_b, of_b) = (
                bent(wide(z).unflatten(0, (-1, self.samples)), slope * distributed.world_size())
                for z in (z_a, z_b)
            )
            term = distributed.total(bent_a + bent_b) * slope
        known = ((z, of.flatten(0, 1)) for z, of in ((z_a, of_a), (z_b, of_b)) if wants_gradient(z))
        return loss + attach(term, *known), terms | {"straightening": term}

    def describe(self, dim: int) -> str | None:
        return self.objective.describe(dim)


def bent(z: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """(sum of 1 - cos over all turns, its gradient times `slope`) of z [R, S, D]."""
    steps = z.diff(dim=1)
    length = torch.linalg.vector_norm(steps, dim=2, keepdim=True)
    over_length = torch.where(length > 0, 1 / length, 0)
    unit = steps * over_length
    cos = (unit[:, :-1] * unit[:, 1:]).sum(2, keepdim=True)
    of_steps = torch.zeros_like(steps)
    of_steps[:, :-1] += (unit[:, 1:] - cos * unit[:, :-1]) * over_length[:, :-1]
    of_steps[:, 1:] += (unit[:, :-1] - cos * unit[:, 1:]) * over_length[:, 1:]
    of_steps *= -slope
    gradient = torch.zeros_like(z)
    gradient[:, 1:] += of_steps
    gradient[:, :-1] -= of_steps
    return (1 - cos).sum(), gradient
