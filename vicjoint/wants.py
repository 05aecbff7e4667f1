"""What a probe asks of an evaluation (branch, split, records, form), and gets."""

# N records, n of them

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

Split = Literal["train", "test"]
Side = Literal["a", "b"]
Space = Literal["representation", "embedding"]
"""y, what an encoder gives; or z, what the objective sees, after the predictor where branch a has one."""


@dataclass(frozen=True)
class Spread:
    """Several views along the time of a record, made into one row of features. windows: how many. slots: of
    so many equal parts of them the average, side by side, which keeps what was when. between: columns of the
    record with the seconds of its start and end; None: all of it."""

    windows: int
    slots: int
    between: tuple[str, str] | None = None


@dataclass(frozen=True)
class Want:
    """What a probe will ask of one branch in one split. It is said before anything is read, so that each view
    is read once and encoded once per row whatever the number of probes, and the cost is known."""

    side: Side
    split: Split
    places: np.ndarray | None = None
    """Numbers of the records [n], ascending; None: all."""
    rows: tuple[str, ...] = ("model", "random_init", "simple")
    space: Space = "representation"
    every: bool = False
    """Every view of a record, where it has several; else the first."""
    epochs: int = 0
    """Above 0: random crops, drawn anew in each epoch, instead of the evaluation views."""
    spread: Spread | None = None
    """Views along time instead of the evaluation views; features then have one item a record."""
    tokens: bool = False
    """Tokens instead of a representation, by `Features.tokens`; of rows that have an encoder."""


@dataclass(frozen=True)
class Items:
    """Views of one branch through the encoders of some rows: rows {row: [N, D] float32}, and of each item the
    number of its record, its number among the views of that record, and what the view says of itself."""

    rows: dict[str, Tensor]
    places: Tensor
    numbers: Tensor
    contents: list[str]
    keys: list[str | None]
    titles: list[str]
    items: list[str]
    seconds: list[tuple[float, float] | None]

    def only(self, kept: Tensor) -> "Items":
        """Those that `kept` bool [N] marks."""
        rows = {row: x[kept.to(x.device)] for row, x in self.rows.items()}
        of = lambda texts: [text for text, yes in zip(texts, kept.tolist()) if yes]
        texts = of(self.contents), of(self.keys), of(self.titles), of(self.items), of(self.seconds)
        return Items(rows, self.places[kept], self.numbers[kept], *texts)
