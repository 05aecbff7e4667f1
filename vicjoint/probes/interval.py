"""How far a metric would move with other test samples: 95 % intervals by the bootstrap.

with_intervals(lambda n: {"accuracy": right[n].mean()}, len(right))
# {"accuracy": 0.52, "accuracy_low": 0.42, "accuracy_high": 0.61}
"""

# N items (answers, queries), R test records

from collections.abc import Callable, Sequence

import numpy as np

DRAWS, SEED, LOW_HIGH = 1000, 0, (2.5, 97.5)
INTERVALS = (
    f"In brackets: 95 % interval over other test samples (bootstrap, percentiles of {DRAWS:,} draws, seed"
    f" {SEED}). It knows nothing of other training seeds."
)


def with_intervals(
    metrics: Callable[[np.ndarray], dict[str, float]], items: int | Sequence[int] | np.ndarray
) -> dict[str, float]:
    """`metrics` of all items, and of each metric NAME its NAME_low and NAME_high, the ends of its 95 %
    interval (Efron 1979). `metrics` takes numbers of items, some more than once. `items`: how many there are,
    each its own sample; or of each [N] its record: records are drawn with all of their items, since the
    queries of a video or the captions of a picture are no samples of their own. Values that are not numbers
    are left out."""
    record = np.arange(items) if isinstance(items, int) else np.unique(items, return_inverse=True)[1]
    places, records = np.arange(len(record)), int(record.max()) + 1
    rng = np.random.default_rng(SEED)
    found = {name: float(value) for name, value in metrics(places).items()}
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(records, size=records), minlength=records)
        for name, value in metrics(np.repeat(places, times[record])).items():
            drawn[name].append(value)
    for name, values in drawn.items():
        found[f"{name}_low"], found[f"{name}_high"] = map(float, np.nanpercentile(values, LOW_HIGH))
    return found
