"""Rows of an index: what is known of some of its items, and their cells as JSON has them or a page shows
them.

    rows_of(index, [7])                # [{"item": "film.mp4", "start_seconds": 1.0, ..., "class": "dog"}]
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vicjoint.embeddings.store import Index
from vicjoint.files.guard import printable_lines

OWN = ("item", "start_seconds", "end_seconds")  # all other columns are the table's
TEXT = 2000  # characters of a text that a page shows
WHOLE = 2**53  # up to here JavaScript has every whole number


def rows_of(index: Index, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Of the rows of these numbers, in order, `item`, `start_seconds` and `end_seconds` where a window slid
    over long files, and the table's own columns."""
    return index.columns.take(np.asarray(numbers, dtype=np.int64)).to_pylist()


def plain(value: Any) -> str | int | float | None:
    """A number, a text, or None where a cell is empty or not finite; of anything else its text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str) or (type(value) is int and abs(value) < WHOLE):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def shown(value: Any) -> str | int | float | None:
    """The same, of texts what is printable, lines kept, long ones cut, empty ones as None."""
    value = plain(value)
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    return printable_lines(value if len(value) <= TEXT else f"{value[:TEXT]}... ({len(value):,} characters)")
