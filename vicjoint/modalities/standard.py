"""How vectors are standardised: y = (x - shift) * factor, and then y @ whitening.

found = STANDARDS["robust"](rows_ND)
found.shift, found.factor, found.whitening, found.words
"""

# N rows, D values

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

OF_A_NORMAL = 1.4826  # standard deviations in a median distance from the median
LEAST = 1e-6  # share of the largest variance below which a direction is noise
SHOWN = 5  # numbers of values that a line names


@dataclass(frozen=True)
class Standard:
    """shift, factor: float64 [D]. whitening: float64 [D, D], symmetric, or None. words: what there is to say
    of the rows, as the end of a sentence."""

    shift: np.ndarray
    factor: np.ndarray
    whitening: np.ndarray | None = None
    words: str = ""


def mean_std(rows_ND: np.ndarray) -> Standard:
    """By mean and standard deviation. Numbers that are not finite are left out, here and below."""
    known_ND = known(rows_ND)
    with of_nothing():
        shift, spread = (f(known_ND, 0, dtype=np.float64) for f in (np.nanmean, np.nanstd))
    return made(known_ND, shift, spread)


def robust(rows_ND: np.ndarray) -> Standard:
    """By the median and the median distance from it, in standard deviations of a normal distribution. Where
    that is 0, since more than half of the rows are equal, by the standard deviation."""
    known_ND = known(rows_ND)
    with of_nothing():
        shift = np.nanmedian(known_ND, 0).astype(np.float64)
        spread = OF_A_NORMAL * np.nanmedian(np.abs(known_ND - shift), 0)
        std = np.nanstd(known_ND, 0, dtype=np.float64)
    return made(known_ND, shift, np.where(spread > 0, spread, std), (spread == 0) & (std > 0))


def spherize(rows_ND: np.ndarray) -> Standard:
    """mean_std, then the inverse square root of the rows' correlations (ZCA-cor; Kessy et al. 2018). Where
    the rows do not reach, as where they are fewer than the values, everything becomes 0."""
    by = mean_std(rows_ND)
    n, x_ND = len(rows_ND), (known(rows_ND) - by.shift) * by.factor
    x_ND = np.where(np.isfinite(x_ND), x_ND, 0.0)
    x_ND -= x_ND.mean(0)
    variance_D, directions_DD = np.linalg.eigh(x_ND.T @ x_ND / (n - 1))
    kept = variance_D > LEAST * variance_D.max()
    inverse_D = np.where(kept, 1 / np.sqrt(np.where(kept, variance_D, 1)), 0)
    words = by.words
    if kept.sum() < len(kept) - (by.factor == 0).sum():
        words += f"; they vary in {kept.sum():,} of {len(kept):,} directions, the others are left out"
    return Standard(by.shift, by.factor, directions_DD * inverse_D @ directions_DD.T, words)


STANDARDS: dict[str, Callable[[np.ndarray], Standard]] = {
    "mean_std": mean_std,
    "robust": robust,
    "spherize": spherize,
}


def known(rows_ND: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(rows_ND), rows_ND, np.float32(np.nan))


@contextlib.contextmanager
def of_nothing() -> Iterator[None]:
    """Around statistics of columns, some of which may have no number at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def made(
    known_ND: np.ndarray, shift: np.ndarray, spread: np.ndarray, by_std: np.ndarray | None = None
) -> Standard:
    """With factor 0, and a word, for values that are the same in all rows, or in none."""
    varies = spread > 1e-7 * np.abs(shift)  # what is left is the rounding of float32; of NaN this is false
    factor = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    shift = np.where(np.isfinite(shift), shift, 0)
    missing_D = np.isnan(known_ND).sum(0)
    words = ""
    if total := int(missing_D.sum()):
        words += f"; {total:,} of {known_ND.size:,} numbers missing, in {numbers(missing_D > 0)}"
    if not varies.all():
        words += f"; without variation and left out: {numbers(~varies)}"
    if by_std is not None and by_std.any():
        words += f"; median distance 0, so by standard deviation: {numbers(by_std)}"
    return Standard(shift, factor, None, words)


def numbers(chosen_D: np.ndarray) -> str:
    """How many values are chosen, and the first of them."""
    places = np.flatnonzero(chosen_D)
    first = ", ".join(map(str, places[:SHOWN])) + (", ..." if len(places) > SHOWN else "")
    return f"{len(places):,} value{'s' if len(places) != 1 else ''} (number {first})"
