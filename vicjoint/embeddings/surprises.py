"""Errors of predictions, window by window -> how surprising what follows each window is.

tables = map(Surprises(), tables_with_errors)       # of films one after the other, each in order of time
"""

from typing import Any

import numpy as np

from vicjoint.surprise import BEFORE, surprise

ERROR, SURPRISE = "prediction_error", "surprise"  # columns


class Surprises:
    """A pyarrow table with the columns item, start_seconds and ERROR -> the same with SURPRISE in the place
    of ERROR; null where a film has too little before it. A film may go on in the next table."""

    def __init__(self):
        self.item: str | None = None
        self.start = 0.0  # of its last row
        self.before = np.zeros(0)  # its last errors

    def __call__(self, table: Any) -> Any:
        import pyarrow

        items, errors = table["item"].to_pylist(), table[ERROR].to_numpy()
        starts, found = table["start_seconds"].to_numpy(), [np.zeros(0)]
        fresh = [
            at for at in range(1, len(items)) if items[at] != items[at - 1] or starts[at] < starts[at - 1]
        ]
        for first, last in zip([0, *fresh], [*fresh, len(items)]):
            if items[first:last] and (first or items[0] != self.item or starts[0] <= self.start):
                self.before = np.zeros(0)
            every = np.concatenate([self.before, errors[first:last]])
            found.append(surprise(every)[len(self.before) :])
            self.before = every[-BEFORE:]
        if items:
            self.item, self.start = items[-1], starts[-1]
        scores = pyarrow.array(np.concatenate(found), from_pandas=True)  # NaN is null
        return table.set_column(table.column_names.index(ERROR), SURPRISE, scores)
