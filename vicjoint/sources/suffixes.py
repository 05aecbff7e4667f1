"""Columns of shards: what a member's suffix says.

column_of("video.mp4").name         # "video"
column_of("picture.1.png")          # Column("picture", many=True): one of several values
column_of("cells.{DNA}.tif")        # Column("cells", channel="DNA")
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from vicjoint.registry import nearest
from vicjoint.sources.base import SourceError

MOST_COLUMNS = 100  # by the beginnings of suffixes: where there are more, they are parts of names with dots


class Column(NamedTuple):
    """What a suffix says. channel: of an image whose channels are files of their own; many: whether the
    member is one of several values."""

    name: str
    channel: str | None = None
    many: bool = False


def column_of(suffix: str) -> Column:
    """Of COLUMN.ENDING, COLUMN.NUMBER.ENDING or COLUMN.{CHANNEL}.ENDING; of a suffix without an ending of its
    own, the suffix."""
    name = suffix.rpartition(".")[0] or suffix
    if found := re.fullmatch(r"(.+?)\.\{(.+)\}", name):
        return Column(found[1], channel=found[2])
    column, _, number = name.rpartition(".")
    return Column(column, many=True) if column and number.isdecimal() else Column(name)


def columns_of(suffixes: Iterable[str], taken: set[str]) -> dict[str, Column]:
    """{suffix: its column} where the column has a name that is not taken; none, where there are too many."""
    of = {suffix: column for suffix in suffixes if (column := column_of(suffix)).name not in taken}
    return of if len({column.name for column in of.values()}) <= MOST_COLUMNS else {}


def suffixes_of(column: str, suffixes: Iterable[str]) -> set[str]:
    """Those of a column's members. Raises SourceError where there are none."""
    of = {suffix: column_of(suffix).name for suffix in suffixes}
    if found := {suffix for suffix, its in of.items() if column in (suffix, its)}:
        return found
    names = sorted({*of.values()})[:MOST_COLUMNS]
    raise SourceError(
        f"webdataset: no member is column '{column}' (option column).{nearest(column, names)} Columns of"
        f" members: {', '.join(names)}."
    )
