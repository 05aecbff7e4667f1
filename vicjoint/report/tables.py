"""Numbers of evaluations: tables with the names of their columns, as aligned text for the terminal; several
evaluations together."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

FEW = 4  # columns of numbers that have room for their intervals on a terminal
INTERVALS = (
    "In brackets: 95 % interval over other test samples (bootstrap, percentiles of 1,000 draws, seed 0),"
    " which says nothing of other training seeds."
)
ENDS = ("low", "high")  # NAME_low and NAME_high are the ends of the interval of NAME
DIRECTIONS = {"a_to_b_": "{0} to {1}", "b_to_a_": "{1} to {0}", "a_": "{0}", "b_": "{1}"}


def told_apart(a: str, b: str) -> tuple[str, str]:
    """The names of a pair's two branches, of a branch with itself too."""
    return (a, b) if a != b else (f"{a} (a)", f"{b} (b)")


def of_direction(metric: str, branches: tuple[str, str]) -> tuple[str, str]:
    """(direction of retrieval between two branches of these names, or nothing; the metric's name in it)."""
    prefix = next((prefix for prefix in DIRECTIONS if metric.startswith(prefix)), "")
    return DIRECTIONS.get(prefix, "").format(*branches), metric.removeprefix(prefix)


def directions(
    rows: Mapping[str, Mapping], branches: tuple[str, str] = ("a", "b")
) -> dict[str, dict[str, str]]:
    """{title: {metric: its name below that title}} of a probe's rows: retrieval has many metrics and is read
    one direction at a time. The ends of an interval stand in their metric's cells."""
    found: dict[str, dict[str, str]] = {}
    for metric in without_ends(dict.fromkeys(metric for row in rows.values() for metric in row)):
        title, name = of_direction(metric, branches)
        found.setdefault(title, {})[metric] = name
    return found


def without_ends(names: Iterable[str]) -> list[str]:
    """Names of metrics, without the ends of their intervals."""
    names = list(names)
    ends = {f"{name}_{end}" for name in names for end in ENDS}
    return [name for name in names if name not in ends]


def table(rows: Mapping[str, Mapping[str, float | str]], branches: tuple[str, str] = ("a", "b")) -> str:
    """{row: {metric: number, or text}} as aligned text, retrieval in one block for each direction between the
    `branches`. Intervals stand beside few columns; the report has all of them."""
    blocks = directions(rows, branches)
    width = max(map(len, (*rows, *blocks))) + 2
    narrow = max(map(len, blocks.values())) <= FEW
    lines = []
    for title, columns in blocks.items():
        found = [[title, *columns.values()]]
        for row, values in rows.items():
            texts = [[cell(values.get(c, "-")), interval(values, c) if narrow else ""] for c in columns]
            found.append([row, *(" ".join(filter(None, both)) for both in texts)])
        widths = [max(9, *(len(cell) + 2 for cell in column)) for column in zip(*found)]
        lines += [
            f"{head:<{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths[1:]))
            for head, *cells in found
        ]
    return "\n".join(lines)


def aligned(rows: list[list[str]]) -> str:
    """Cells of text in columns, each from its left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def cell(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def interval(row: Mapping, metric: str) -> str:
    """The interval of a row's metric, such as "[0.421, 0.563]"; "" where it has none, or a point."""
    low, high = (row.get(f"{metric}_{end}") for end in ENDS)
    if not (isinstance(low, float) and isinstance(high, float)) or low == high:
        return ""
    return f"[{number(low)}, {number(high)}]"


def number(value: float) -> str:
    """Three decimals, or for a small setting such as a penalty its power of ten."""
    return f"{value:.0e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def together(found: list) -> dict[str, Any]:
    """{probe: {row: {metric: {mean, spread, values}}}} of several evaluations, of what all of them have. The
    spread is the standard deviation (n - 1); of values that are not all finite both are nan and 0."""
    first, *others = found
    if isinstance(first, dict):
        return {
            key: together([each[key] for each in found]) for key in first if all(key in o for o in others)
        }
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in found):
        return {"mean": math.nan, "spread": 0.0, "values": found}
    spread = statistics.stdev(found) if others else 0.0
    return {"mean": statistics.fmean(found), "spread": spread, "values": found}


def with_spread(of: dict) -> str:
    """A mean with its spread, which a baseline that is the same for every seed does not have."""
    return number(of["mean"]) + (f" ±{number(of['spread'])}" if of["spread"] else "")


def printed(value) -> str:
    """A number, or of several seeds what `together` gives; – where there is none."""
    if isinstance(value, dict):
        return with_spread(value)
    return number(value) if isinstance(value, (int, float)) else "–" if value is None else str(value)
