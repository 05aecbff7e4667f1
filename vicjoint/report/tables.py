"""Numbers of evaluations: tables with the names of their columns, as aligned text for the terminal; several
evaluations together."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

DIRECTIONS = {"a_to_b_": "{0} to {1}", "b_to_a_": "{1} to {0}"}


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
    one direction at a time."""
    found: dict[str, dict[str, str]] = {}
    for metric in dict.fromkeys(metric for row in rows.values() for metric in row):
        title, name = of_direction(metric, branches)
        found.setdefault(title, {})[metric] = name
    return found


def table(rows: Mapping[str, Mapping[str, float | str]], branches: tuple[str, str] = ("a", "b")) -> str:
    """{row: {metric: number, or text}} as aligned text, retrieval in one block for each direction between the
    `branches`."""
    blocks = directions(rows, branches)
    width = max(map(len, (*rows, *blocks))) + 2
    lines = []
    for title, columns in blocks.items():
        found = [[title, *columns.values()]]
        found += [[row, *(shown(values.get(c, "-")) for c in columns)] for row, values in rows.items()]
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


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


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


def cell(of: dict) -> str:
    """A mean with its spread, which a baseline that is the same for every seed does not have."""
    return number(of["mean"]) + (f" ±{number(of['spread'])}" if of["spread"] else "")
