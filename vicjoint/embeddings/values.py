"""Cells of an index's columns as JSON has them, and as a page may show them."""

import json
import math
from typing import Any

import numpy as np

from vicjoint.files.guard import printable_lines

TEXT = 2000  # characters of a text that a page shows
WHOLE = 2**53  # up to here JavaScript has every whole number


def plain(value: Any) -> str | int | float | None:
    """A number, a text, or None where a cell is empty or not finite; of anything else its text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str) or (type(value) is int and abs(value) < WHOLE):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def shown(value: Any) -> str | int | float | None:
    """The same, of texts what is printable, lines kept, and long ones cut."""
    value = plain(value)
    if not isinstance(value, str):
        return value
    return printable_lines(value if len(value) <= TEXT else f"{value[:TEXT]}... ({len(value):,} characters)")
