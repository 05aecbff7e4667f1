"""The contracts of learning: objective and predictor."""

# N samples, B batch, T steps of time, E embedding, K latents

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from vicjoint.parts.reading import Pair


class Objective(nn.Module):
    """The loss of two embeddings: `loss, terms = objective(z_a, z_b, group)`.

    z_a, z_b: [N, E]; group: [N] int64 on the processor, or None. `terms` {name: weighted, detached value} sum
    to the loss. Statistics are those of the global batch, whatever the number of processes."""

    terms: tuple[str, ...] = ()
    has_memory: bool = False
    """Whether it keeps embeddings of earlier batches: b then has to change slowly, and views are single."""

    @classmethod
    def needs_slow_branch(cls, options: Mapping[str, Any]) -> str | None:
        """Before it is built, of the options in a recipe: the one that will give it a memory, or None."""
        return None

    @classmethod
    def local_expander(cls, options: Mapping[str, Any]) -> list[int] | None:
        """Before it is built, of the options in a recipe: the widths of a second expander, for the cells of
        an encoder's map, where it compares these too: the pair then has to `give_boxes`, and z_a and z_b are
        `vicjoint.batch.WithCells`. None: it compares z alone."""
        return None

    def pull(self, dim: int) -> float | None:
        """How strongly it pulls a row of z_a to its z_b, by its squared distance for embeddings of this
        width; None: it has no such term, and predictions of which several count cannot learn by it."""
        return None

    def bind(self, pair: "Pair") -> None:
        """Take what it has to know of the pair whose samples it sees, once, before the first step. Raises
        ValueError where the pair does not give what it needs."""

    def describe(self, dim: int) -> str | None:
        """One line about its weights for embeddings of this width, or None where there is nothing to say."""
        return None


class Predictor(nn.Module):
    """z_a [B, E] -> the prediction of z_b [B, E]; with `latents` above 1, [B, latents, E]: one for each value
    of a discrete latent, among which the model chooses.

    It is built with E, and options. One that `takes_condition` is built with E and C, the width of the
    condition (0: there is none), and called with z_a and, where C is not 0, the condition [B, C].

    Where the pair has a horizon H above 1, its prediction is fed back: it is called with it as z_a for the
    next step. One that predicts all steps `at_once` is not: it is built with H behind E (and C), is called
    with the conditions [B, H, C] and gives [B, H, E], also where H is 1.

    looks_back: whether z_a is [B, T, E], embeddings of all steps of branch a's clip in order of time, by an
    encoder that gives y of each of them (`vicjoint.tokens.steps_of`). Where b is the same branch, its frame
    is encoded together with the clip.

    With a latent: choice: which prediction learns from a target (vicjoint/latents.py); prior: whether the
    model learns beside it how probable each is."""

    latents: int = 1
    choice: Literal["nearest", "annealed"] = "nearest"
    prior: bool = False
    looks_back: ClassVar[bool] = False
    at_once: ClassVar[bool] = False
    takes_condition: ClassVar[bool] = False
