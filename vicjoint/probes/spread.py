"""Views along the time of a record: what probes' options say of them, where in time they lie, and how their
features become one row."""

# N records, W windows, D representation

from typing import Literal

from torch import Tensor, nn

from vicjoint.files.cells import text_of
from vicjoint.options import Count, nearest
from vicjoint.parts import EvaluationData, Record, Side, Spread

Pool = Literal["slots", "mean"] | Count


def spread_of(probe: str, windows: int | None, pool: Pool, between: tuple[str, str] | None) -> Spread | None:
    """What a probe's options say of windows along time. Raises ValueError."""
    if windows is None and between is not None:
        raise ValueError(
            f"{probe}: between says where in time to look, which windows do. Set windows, such as 4."
        )
    if windows is None:
        return None
    slots = {"slots": windows, "mean": 1}.get(pool, pool)
    if slots > windows:
        raise ValueError(f"{probe}: pool is {pool}, expected at most as many slots as windows ({windows}).")
    return Spread(windows, slots, between and tuple(between))


def check_spread(probe: str, spread: Spread | None, data: EvaluationData, side: Side) -> None:
    """Raises ValueError for windows along a time that the pair does not have, and for unknown columns."""
    if spread is None:
        return
    if "spread" not in data.pair.gives:
        raise ValueError(
            f"evaluate.probes: '{probe}' has windows: {spread.windows}, but this pair has no windows along"
            " time. Leave windows out, or use pair: {name: next_frame}."
        )
    for column in spread.between or ():
        if column not in (columns := data.records("train", side)[0]):
            raise ValueError(
                f"evaluate.probes: {probe}: between names {column}, which records do not have."
                f"{nearest(column, columns)} They have {', '.join(map(str, columns))}."
            )


def seconds_of(record: Record, spread: Spread) -> tuple[float, float] | None:
    """The part of a record's time that its views are spread over. Raises ValueError."""
    if spread.between is None:
        return None
    found = [text_of(record.get(column)) for column in spread.between]
    try:
        start, end = map(float, found)
    except (TypeError, ValueError):
        start, end = 0.0, 0.0
    if not 0 <= start < end:
        raise ValueError(
            f"{' and '.join(spread.between)} are {found[0]!r:.40} and {found[1]!r:.40}, expected seconds, the"
            " start before the end."
        )
    return start, end


def pooled(x: Tensor, spread: Spread) -> Tensor:
    """Features [N W, D] of the windows of N records, in order -> [N, D slots]."""
    of_record = x.view(-1, spread.windows, x.shape[1]).transpose(1, 2)
    return nn.functional.adaptive_avg_pool1d(of_record, spread.slots).flatten(1)
