"""The contracts of evaluation: a probe, and what it is given."""

# N samples, B batch, D representation, E embedding, K latents

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vicjoint.parts.reading import Gives, Pair, Raw, Record, Source
from vicjoint.wants import Items, Side, Split, Want


class Metric(NamedTuple):
    """What a number means, in words, and which values are good: None where it is a setting."""

    words: str
    better: Literal["higher", "lower"] | None = "higher"


@dataclass(frozen=True)
class EvaluationData:
    """What a probe looks at: two branches, by name, and the source and bound pair that read both."""

    branches: tuple[str, str]
    source: Source
    pair: Pair

    def records(self, split: Split, side: Side = "a") -> Sequence[Record]:
        return self.source.records(split, side)


class Features(Protocol):
    """What an evaluation has read and encoded, as one probe asks for it (vicjoint/probes/features.py).

    Rows: `model`; `random_init`, the model as it was before its first step; `simple`, what the branch's
    modality calls simple features, which is called `baseline(side)` in tables. Features are float32, on
    `device`."""

    data: EvaluationData
    wants: list[Want]
    """What the probe said that it will ask for."""
    device: torch.device
    latents: int
    """Predictions for one z_a; 1: there is no latent."""

    def items(self, want: Want) -> Items:
        """What was wanted, without the records that cannot be read. Raises ValueError where none can."""
        ...

    def crops(
        self, want: Want, order: Callable[[int], np.ndarray], at_once: int
    ) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
        """(epoch, {row: [B, D]}, numbers of the records [B]) batch by batch; `order(epoch)`: the records of
        an epoch."""
        ...

    def tokens(self, want: Want) -> Iterator[tuple[dict[str, list[list[Tensor]]], Tensor]]:
        """({row: of B records the tokens [T, D] float32 of each of their views along time}, numbers of the
        records [B]), some at once, in order: nothing of it is kept, since tokens are large. Raises ValueError
        where the encoder has no tokens (vicjoint/tokens.py), or none of the records can be read."""
        ...

    def baseline(self, side: Side) -> str:
        """The name of the row of simple features of a branch."""
        ...

    def read(self, split: Split = "test") -> list[Any]:
        """What the probe's own `read` gives of each record that it asks for (`to_read`) and that can be read,
        in order, once per run."""
        ...

    def represent(self, row: str, side: Side, raw: Sequence[Raw]) -> list[Tensor]:
        """What `embed` takes of each of several raw batches: y [B, D]; of branch a, where the predictor looks
        back, y of each step of time [B, T, D]."""
        ...

    def embed(
        self, row: str, side: Side, y: Sequence[Tensor], every: bool = False, told: Sequence[Tensor] = ()
    ) -> Tensor:
        """z [N, E] of several y [B, D]; `every`: all predictions of a latent, [N, K, E]; told: of each y of
        branch a its conditions [B, C], where the pair gives such."""
        ...

    def probabilities(self, row: str, y_a: Sequence[Tensor]) -> Tensor:
        """Of each of a latent's predictions from several y_a [B, D], [N, K]."""
        ...

    def rollout(self, row: str, y: Sequence[Tensor], steps: int, told: Sequence[Tensor] = ()) -> Tensor:
        """Predictions z [N, steps, E] of several y [B, D] of branch a, each but the first from the one
        before; told: of each y the conditions [B, steps, C], where the pair gives such."""
        ...

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """`compute()`, remembered for the rest of the run: what training does not change. Ask for items
        before: if other records of them can be read than the last time, nothing is remembered."""
        ...

    def picture(self, side: Side, split: Split, place: int, number: int = 0) -> np.ndarray | None:
        """A view as uint8 [H, W, 3]: an image or the middle frame of a clip; None: it is neither."""
        ...

    def progress(self, total: int, what: str) -> AbstractContextManager[Callable[[int], Any]]:
        """A bar for work of the probe's own: call what it gives with the number of samples done."""
        ...


class Probe:
    """One kind of measurement of a trained model, with what a sceptic would try first beside it.

    branch: the branch it looks at, `a` or `b`, where it looks at one."""

    needs: ClassVar[frozenset[Gives]] = frozenset()
    """What the pair has to give."""

    scope: ClassVar[Literal["pair", "branch", "every_two"]] = "pair"
    """Where it is measured in a run of several pairs: on the first pair; on the first pair that has its
    branch; on every two branches."""

    refusal: ClassVar[str] = "evaluate.probes: this pair does not give what the probe needs. Leave it out."
    """What is said where the pair does not give what it needs."""

    explains: ClassVar[dict[str, Metric]] = {}
    """What its metrics mean; the report shows it."""

    def misses(self, data: EvaluationData) -> str | None:
        """Why there is nothing to measure here, or None. Raises ValueError for what cannot be asked."""
        return None

    def unused(self, data: EvaluationData) -> str | None:
        """In words, which records have no part in it, such as those without a label; None: all have one."""
        return None

    def wants(self, data: EvaluationData) -> list[Want]:
        """What `measure` will ask for."""
        return []

    def check(self, features: Features) -> None:
        """Called before training, with the models as they are: raises ValueError for what they cannot
        give."""

    reads: ClassVar[bool] = False
    """Whether it has a `read` of its own."""

    def to_read(self, data: EvaluationData, split: Split) -> Sequence[Record]:
        """The records of a split that `read` is asked for, where the probe has one of its own."""
        return data.records(split) if split == "test" else []

    def read(self, record: Record, pair: Pair) -> Any:
        """Of one record, what its evaluation views do not give, such as windows of a video; None leaves
        it out. Raises as a pair's `sample` does."""
        raise NotImplementedError(f"probe '{type(self).__name__}' has no method read(record, pair)")

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """(name, value): "row/metric" and a number, or "pictures" and the arrays that the report shows."""
        raise NotImplementedError(f"probe '{type(self).__name__}' has no method measure(features)")
