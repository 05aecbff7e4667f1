"""How unforeseen each frame of a film is: the error of its prediction against what errors were before it.

scores_N = surprise(errors_N)            # of one film, in order of time
"""

# N frames of a film

import numpy as np

BEFORE = 16  # errors that the running mean is over
LEAST = 4  # of them, without which a score says nothing


def surprise(errors: np.ndarray) -> np.ndarray:
    """Of each error [N] its ratio to the mean of the BEFORE errors before it; NaN for the first LEAST, which
    have too few before them, and where all before it are 0."""
    sums = np.concatenate([[0.0], np.cumsum(errors, dtype=np.float64)])
    ends = np.arange(len(errors))
    starts = np.maximum(ends - BEFORE, 0)
    mean = (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1)
    known = (ends >= LEAST) & (mean > 0)
    return np.where(known, errors / np.where(known, mean, 1.0), np.nan)
