"""Columns of shards: what a member's suffix says.

column_of("video.mp4")              # ("video", False)
column_of("picture.1.png")          # ("picture", True): one of several values
columns_of(["mp4", "video.mp4"], taken={"id"})      # {"video.mp4": ("video", False)}
"""

from collections.abc import Iterable

from vicjoint.registry import nearest
from vicjoint.sources.base import SourceError

MOST_COLUMNS = 100  # by the beginnings of suffixes: where there are more, they are parts of names with dots


def column_of(suffix: str) -> tuple[str, bool]:
    """(the column of a member COLUMN.ENDING or COLUMN.NUMBER.ENDING, whether it is one of several values);
    the suffix, where it has no ending of its own."""
    column, _, number = suffix.rpartition(".")[0].rpartition(".")
    if column and number.isdecimal():
        return column, True
    return suffix.rpartition(".")[0] or suffix, False


def columns_of(suffixes: Iterable[str], taken: set[str]) -> dict[str, tuple[str, bool]]:
    """{suffix: what `column_of` says} of the suffixes whose column has a name that is not taken; none, where
    there are too many."""
    of = {suffix: column_of(suffix) for suffix in suffixes}
    of = {suffix: (column, many) for suffix, (column, many) in of.items() if column not in taken}
    return of if len({column for column, _ in of.values()}) <= MOST_COLUMNS else {}


def suffixes_of(column: str, suffixes: Iterable[str]) -> set[str]:
    """Those of a column's members. Raises SourceError where there are none."""
    of = {suffix: column_of(suffix)[0] for suffix in suffixes}
    if found := {suffix for suffix, its in of.items() if column in (suffix, its)}:
        return found
    names = sorted({*of.values()})[:MOST_COLUMNS]
    raise SourceError(
        f"webdataset: no member is column '{column}' (option column).{nearest(column, names)} Columns of"
        f" members: {', '.join(names)}."
    )
