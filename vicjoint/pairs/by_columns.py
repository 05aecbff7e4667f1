"""What pairs have in common that say by columns of the records what a batch holds.

class Mine(ByColumns):
    def __init__(self, distinct: str | None = None, group: str | None = None, per_group: Count = 1):
        super().__init__(distinct, group, per_group)
"""

import hashlib

from vicjoint.files.cells import as_text, cell, check_column
from vicjoint.parts import Pair, Reading, Record


class ByColumns(Pair):
    """distinct: a column whose value occurs at most once in a batch. group: a column whose equal values make
    a group for the objective. per_group: records of each of its groups that a batch holds, or a multiple of
    them; 1: as many as come. Raises ValueError for `per_group` without `group`, and CellError, once bound,
    for a column that is not there."""

    def __init__(self, distinct: str | None, group: str | None, per_group: int):
        if per_group > 1 and group is None:
            raise ValueError(
                f"pair.per_group: of which groups a batch holds {per_group} records is not said. Set"
                " pair.group to a column, such as label."
            )
        self.distinct, self.group, self.per_group = distinct, group, per_group

    def bind(self, reading: Reading) -> None:
        super().bind(reading)
        for option, column in (("distinct", self.distinct), ("group", self.group)):
            if column is not None:
                check_column(column, list(reading.source.train[0]), f"pair.{option}")

    def group_of(self, record: Record, number: int) -> int:
        """Equal for equal cells of the column `group`. Raises CellError where that is empty."""
        return number if self.group is None else hashed(as_text(record, self.group))

    def distinct_of(self, record: Record) -> str | None:
        return None if cell(record, self.distinct) is None else as_text(record, self.distinct)


def hashed(text: str) -> int:
    """A number of 56 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
