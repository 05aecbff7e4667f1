"""Ridge regression in closed form, float64: what probes and baselines fit on frozen features.

fit = Ridge(x_ND[~held], y_NT[~held])
# the lowest error on samples held out of training
penalty = fit.choose(x_ND[held], lambda predicted: ...)
predicted_MT = Ridge(x_ND, y_NT).predict(x_MD, penalty)
"""

# N samples, D features, T targets

from collections.abc import Callable

import torch
from torch import Tensor

PENALTIES = tuple(10.0**e for e in range(-6, 4))  # in units of the features' mean sum of squares
ROWS_AT_ONCE = 8192
CONSTANT = 1e-6  # a float32 feature that varies by less than this share of its mean varies by rounding alone


class Ridge:
    """argmin over W, b of ||X W + b - Y||^2 + penalty s ||W||^2, s the mean over features of their sum of
    squares around the mean; so a penalty means the same whatever the scale and the number of samples.
    `standardize`: features are divided by their standard deviation first. One eigendecomposition, of D x D or
    N x N numbers, whichever is smaller, serves every penalty."""

    def __init__(self, x: Tensor, y: Tensor, standardize: bool = True):
        y = y.double()
        self.mean, self.offset = (
            sum(part.double().sum(0) for part in x.split(ROWS_AT_ONCE)) / len(x),
            y.mean(0),
        )
        self.scale = torch.ones_like(self.mean)
        if standardize:
            spread = (
                sum((part.double() - self.mean).square().sum(0) for part in x.split(ROWS_AT_ONCE)) / len(x)
            ).sqrt()
            # a constant feature says nothing: 0
            self.scale = torch.where(spread > CONSTANT * self.mean.abs(), spread, torch.inf)
        y = y - self.offset
        if x.shape[1] <= len(x):
            gram = sum(part.T @ part for part in self._parts(x))
            against = sum(part.T @ t for part, t in zip(self._parts(x), y.split(ROWS_AT_ONCE)))
            self.back = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        else:
            whole = torch.cat(list(self._parts(x)))
            gram, against, self.back = whole @ whole.T, y, whole.T
        self.values, self.vectors = torch.linalg.eigh(gram)
        self.values = self.values.clamp_min(0)
        self.unit = self.values.sum() / x.shape[1]
        self.projected = self.vectors.T @ against

    def _parts(self, x: Tensor):
        return ((part.double() - self.mean) / self.scale for part in x.split(ROWS_AT_ONCE))

    def predict(self, x: Tensor, penalty: float) -> Tensor:
        """[M, T] float64 of features x [M, D]."""
        strength = (self.values + (penalty * self.unit).clamp_min(torch.finfo(torch.float64).tiny))[:, None]
        weight = self.back @ (self.vectors @ (self.projected / strength))
        return torch.cat([part @ weight for part in self._parts(x)]) + self.offset

    def choose(self, x: Tensor, error: Callable[[Tensor], float | tuple[float, ...]]) -> float:
        """The penalty whose predictions [M, T] for held-out features x [M, D] have the lowest error; the
        larger of two that are equal."""
        return min(reversed(PENALTIES), key=lambda penalty: error(self.predict(x, penalty)))


def fit_chosen(
    x: Tensor,
    y: Tensor,
    held: Tensor,
    error: Callable[[Tensor], float | tuple[float, ...]],
    standardize: bool = True,
) -> tuple[Ridge, float]:
    """(ridge of all N training samples, penalty chosen on those of them that `held` bool [N] marks). `error`
    takes predictions [H, T] for these."""
    penalty = Ridge(x[~held], y[~held], standardize).choose(x[held], error)
    return Ridge(x, y, standardize), penalty
