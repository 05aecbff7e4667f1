"""Features: a vector, or a sequence of them, that another program has made -> standardised vectors.

a: {modality: {name: features, input_dim: 1280}, encoder: {name: mlp}}  # of CLIP, ESM, a run
a: {modality: {name: features, input_dim: 600, standardise: robust, clip: 20, missing: mean}, encoder: ...}
a: {modality: {name: features, input_dim: 600, standardise: spherize, controls: {role: negcon}}, encoder: ...}
"""

# B batch, T tokens, D values of a vector, N rows

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint.files import arrays
from vicjoint.files.cells import cell, check_column, compared
from vicjoint.fitted import Fitted
from vicjoint.modalities.standard import STANDARDS, Standard
from vicjoint.options import Count, Positive
from vicjoint.parts import Modality, Record
from vicjoint.registry import register

OF_A_SEQUENCE = 16  # tokens that statistics look at, evenly
MOST_NUMBERS = 2**26  # that statistics are made of: a quarter GiB


@register("modality", "features")
class Features(Fitted, Modality):
    """Raw view: (x [1, T, input_dim] float32, mask [1, T] bool, True on tokens); a vector is one token. In
    batches, shorter sequences are padded at the end. A raw batch x [B, input_dim] of vectors does as well.

    A cell is a list of numbers, [D] or [T, D], or a path: FILE.npy; FILE.npz#KEY or FILE.h5#KEY, an array in
    it; and with #ROW behind it, such as FILE.npy#12, one row of an array. input_dim: numbers of a vector.
    key: of the array in npz and HDF5 files, in place of #KEY; a file with one array needs none. length: most
    tokens of a view; training takes them anywhere in a longer sequence, evaluation in its middle.

    standardise: what is learnt from the rows of training, before the first step, and kept with the weights:
    `mean_std`; `robust`, the median and 1.4826 times the median distance from it; `spherize`, mean_std and
    then the rotation-free whitening (ZCA) after which the rows have the identity as their covariance; null:
    nothing. controls: {column: value}, the rows to learn from, such as untreated wells; null: all. clip:
    standardised values beyond it become it; null: none do. missing: numbers that are NaN or infinite make a
    bad sample (`error`), or count as the mean (`mean`; robust: the median).
    """

    reads = "numbers"
    baseline = "input_features"
    shared = ("input_dim",)
    reading = ("key", "length")
    suffixes = arrays.SUFFIXES

    def __init__(
        self,
        input_dim: Count,
        key: str | None = None,
        length: Count = 1024,
        standardise: Literal["mean_std", "robust", "spherize"] | None = "mean_std",
        controls: dict[str, Any] | None = None,
        clip: Positive | None = None,
        missing: Literal["error", "mean"] = "error",
    ):
        super().__init__()
        for option, value in {
            "controls": controls,
            "missing": None if missing == "error" else missing,
        }.items():
            if value is not None and standardise is None:
                raise ValueError(
                    f"modality.{option}: {value} needs what standardise learns. Set standardise, or leave out"
                    f" {option}."
                )
        self.input_dim, self.key, self.length = input_dim, key, length
        self.standardise, self.controls, self.clip, self.missing = standardise, controls or {}, clip, missing
        self.fits = standardise is not None
        if self.fits:
            self.register_buffer("shift", torch.zeros(input_dim))
            self.register_buffer("factor", torch.ones(input_dim))
        if standardise == "spherize":
            self.register_buffer("whitening", torch.eye(input_dim))

    # ---- reading ----

    def read(self, value: Any, rng: np.random.Generator | None = None, window=None) -> tuple[Tensor, Tensor]:
        """(x [1, T, input_dim], mask [1, T]). Raises ValueError or OSError."""
        array_TD = arrays.read(value, self.key)
        name = f"{value}: " if isinstance(value, str) else ""
        if array_TD.ndim not in (1, 2) or array_TD.shape[-1] != self.input_dim or not len(array_TD):
            raise ValueError(
                f"{name}an array of shape {list(array_TD.shape)}, expected [{self.input_dim}] or [T,"
                f" {self.input_dim}] (the modality's input_dim)."
            )
        array_TD = np.atleast_2d(array_TD)
        spare = len(array_TD) - self.length
        start = 0 if spare <= 0 else spare // 2 if rng is None else int(rng.integers(spare + 1))
        with np.errstate(over="ignore"):  # what no float32 holds is infinite, which is said below
            x_TD = np.array(array_TD[start : start + self.length], dtype=np.float32)
        if self.missing == "error":
            check_finite(x_TD, name, start)
        return torch.from_numpy(x_TD)[None], torch.ones(1, len(x_TD), dtype=torch.bool)

    # ---- what is learnt before the first step ----

    def fits_on(self, record: Record) -> bool:
        """Whether the record is one of the controls; upper and lower case are the same. Raises ValueError
        where it has no such column."""
        for column, value in self.controls.items():
            check_column(column, record, "modality.controls")
            found = compared(cell(record, column)).strip()
            if found.casefold() != compared(value).casefold():
                return False
        return True

    def fit(self, raws: Iterable[tuple[Tensor, Tensor]], count: int) -> str:
        """Learn to standardise from raw views of training records. Raises ValueError where they are too
        few."""
        chosen = evenly(count, max(2, MOST_NUMBERS // self.input_dim)).tolist()
        each = max(1, min(OF_A_SEQUENCE, MOST_NUMBERS // self.input_dim // max(1, len(chosen))))
        kept = set(chosen)
        tokens = [x_BTD[0, evenly(x_BTD.shape[1], each)] for i, (x_BTD, _) in enumerate(raws) if i in kept]
        rows_ND = torch.cat(tokens).numpy() if tokens else np.zeros((0, self.input_dim), np.float32)
        whose = " of " + ", ".join(f"{c} {v}" for c, v in self.controls.items()) if self.controls else ""
        if len(rows_ND) < 2:
            raise ValueError(
                f"modality.standardise: {len(rows_ND)} training rows{whose} can be read, at least 2 are"
                " needed. Correct modality.controls, or leave out standardise."
            )
        found: Standard = STANDARDS[self.standardise](rows_ND)
        self.shift.copy_(torch.from_numpy(found.shift))
        self.factor.copy_(torch.from_numpy(found.factor))
        if found.whitening is not None:
            self.whitening.copy_(torch.from_numpy(found.whitening))
        return f"standardised by {len(rows_ND):,} rows{whose} ({self.standardise}){found.words}"

    # ---- on the device ----

    def forward(self, raw: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(standardised x [B, T, input_dim], 0 where the mask is False, and the mask [B, T])."""
        if isinstance(raw, Tensor):
            raw = raw[:, None], torch.ones(raw.shape[0], 1, dtype=torch.bool, device=raw.device)
        x_BTD, mask_BT = raw
        x_BTD = x_BTD.float()
        if self.fits:
            x_BTD = (x_BTD - self.shift) * self.factor
        if self.missing == "mean":
            x_BTD = torch.where(x_BTD.isfinite(), x_BTD, 0.0)
        if self.standardise == "spherize":
            x_BTD = x_BTD @ self.whitening
        if self.clip is not None:
            x_BTD = x_BTD.clamp(-self.clip, self.clip)
        return x_BTD.masked_fill(~mask_BT[..., None], 0), mask_BT

    def simple_features(self, raw: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """[B, input_dim]: the standardised vector; of a sequence the mean of its tokens."""
        x_BTD, mask_BT = self(raw)
        return x_BTD.sum(1) / mask_BT.sum(1, keepdim=True)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        return {
            "shape": [self.input_dim],
            "dtype": "float32",
            "max_length": self.length,
            "standardise": self.standardise,
            "clip": self.clip,
            "missing": self.missing,
        }


def check_finite(x_TD: np.ndarray, name: str, start: int) -> None:
    """Raises ValueError, naming the first number that is none; `start`: the number of the first token."""
    wrong = np.argwhere(~np.isfinite(x_TD))
    if len(wrong):
        (token, value), several = wrong[0], f", {len(wrong):,} such numbers in all" if len(wrong) > 1 else ""
        of_token = f" of token {token + start}" if len(x_TD) > 1 else ""
        raise ValueError(
            f"{name}number {value}{of_token} is {x_TD[token, value]}{several}. Correct it, or set the"
            " modality's missing=mean."
        )


def evenly(count: int, most: int) -> Tensor:
    """Up to `most` places of 0 .. count - 1, evenly."""
    return torch.arange(min(count, most)) * count // max(1, min(count, most))
