"""The pair `cross_modal`: two columns of a table, each read by the modality of its branch.

# one of several captions
pair: {name: cross_modal, a: picture, b: caption, choose: [caption], separator: "|"}
pair: {name: cross_modal, a: video, b: sound, seconds: 1.0}  # the same second of both
pair: {name: cross_modal, a: path, b: path, key: digit}  # spoken seven, any written seven
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from vicjoint import distributed
from vicjoint.batch import Conditioned
from vicjoint.files.cells import (
    CellError,
    Part,
    as_path,
    as_read,
    as_text,
    cell,
    check_column,
    compared,
    held,
    is_empty,
    values,
)
from vicjoint.files.guard import printable
from vicjoint.files.inside import Inside
from vicjoint.options import Count, Positive
from vicjoint.pairs.by_columns import ByColumns, hashed
from vicjoint.pairs.condition import Condition
from vicjoint.parts import Modality, Raw, Reading, Record, Side, Source, View
from vicjoint.registry import register
from vicjoint.sliding import Sliding


@register("pair", "cross_modal")
class CrossModal(ByColumns):
    """Column a to branch a, column b to branch b.

    a, b: columns of the source's table. key: null: both cells of one row; or a column: a row's `a` goes with
    the `b` of a random row of the same split whose key is equal; with a table that has a `second`, that is a
    row of the second. seconds: a time window of this length, common to both cells, drawn once per sample
    within the shorter of them; evaluation takes the middle; null: each modality its own. choose: columns
    whose text cells hold several values, as a JSON list or between `separator` (lists in jsonl and parquet
    need no mention): training draws one, evaluation can use all. distinct: a column whose value occurs at
    most once in a batch; epochs leave out what they cannot place (see vicjoint.data). group: a column whose
    equal values make a group for the objective; null: every record is its own. per_group: records of each of
    its groups that a batch holds, or a multiple of them (see vicjoint.data); 1: as many as come. condition:
    columns of the row of `a` that the predictor is told, such as {column: dose} or {column: camera, values:
    [left, right]}, or a list of such; null: none (docs/conditions.md).

    A row whose cell of a, b or key is empty is no record of the pair; with a key, b's may be.
    """

    uses_readers = True

    def __init__(
        self,
        a: str,
        b: str,
        key: str | None = None,
        seconds: Positive | None = None,
        choose: list[str] = (),
        separator: str | None = None,
        distinct: str | None = None,
        group: str | None = None,
        per_group: Count = 1,
        condition: dict[str, Any] | list[dict[str, Any]] | None = None,
    ):
        super().__init__(distinct, group, per_group)
        if seconds is not None and key is not None:
            raise ValueError(
                "pair.seconds: a common time window needs both cells of one row, and pair.key takes them from"
                " two. Leave out one."
            )
        if separator is not None and (not choose or not separator):
            raise ValueError(
                f"pair.separator: {separator!r} needs the columns that it splits. Set pair.choose=[{b}], and"
                " a separator that is not empty."
            )
        self.a, self.b, self.key, self.seconds = a, b, key, seconds
        self.choose, self.separator = tuple(choose), separator
        self.gives = frozenset({"views", "both"} if key else {"views", "both", "rows"})
        self.condition = Condition(condition)
        self.conditions = self.condition.standardised
        self._rows_of: dict[str, dict[str, list[Record]]] = {}  # split -> key -> the rows that b comes from
        self._split_of: dict[str, str] = {}  # id of a record -> its split
        self._two_tables = False

    def bind(self, reading: Reading) -> None:
        """Check readers and columns and, with a key, list the rows of every key. Raises ValueError naming the
        option, and CellError."""
        super().bind(reading)
        self._check_readers()
        source = reading.source
        self._two_tables = source.second is not None
        if self._two_tables and not self.key:
            raise ValueError(
                "source.second: rows of two tables are put together by a key. Set pair.key to a column that"
                " both have."
            )
        self._check_columns(list(source.train[0]), list(source.second["train"][0]) if source.second else None)
        for split in ("train", "test") if self.key else ():
            records, of_b = source.records(split), source.records(split, "b")
            self._split_of |= {record["id"]: split for record in records}
            self._rows_of[split] = self._by_key(of_b)
            if not any(self._key(record) in self._rows_of[split] for record in records):
                raise ValueError(
                    f"pair.key: no row of the {split} split has a partner with an equal '{self.key}'."
                    f" Found for column a {self._some_keys(records)}, for column b {self._some_keys(of_b)}."
                )
        self._warn_of_shared_files(source)

    def _check_readers(self) -> None:
        """Raises ValueError for a modality that cannot read cells, or a time window that neither has."""
        for side, reader in zip("ab", self.readers):
            if type(reader).read is Modality.read:
                raise ValueError(
                    f"pair cross_modal: {side}.modality {type(reader).__name__} does not read the cells"
                    " of a table. Expected a modality with a method `read`, such as image, clip or text."
                )
        if self.seconds is not None and not any(reader.timed for reader in self.readers):
            a, b = (type(reader).__name__ for reader in self.readers)
            raise ValueError(f"pair.seconds: neither {a} nor {b} has a time axis. Leave it out.")

    def _warn_of_shared_files(self, source: Source) -> None:
        """A file in both splits makes a test on training data; tables may be made so on purpose, so this is a
        line and no error."""
        for side, reader in zip("ab", self.readers) if distributed.rank() == 0 else ():
            column = self._column(side)
            if reader.reads != "file" or not isinstance(held(source.records("train", side)[0], column), str):
                continue
            train, test = (
                {compared(r[column]) for r in source.records(split, side) if not is_empty(r[column])}
                for split in ("train", "test")
            )
            if both := train & test:
                print(
                    f"note: {len(both)} files of column '{column}' are in train and in test, so the test is"
                    f" on training data for them; source.split_by={column} keeps them apart. One is"
                    f" {printable(min(both))}"
                )

    def _column(self, side: Side) -> str:
        return self.a if side == "a" else self.b

    def _check_columns(self, columns: list[str], second: list[str] | None) -> None:
        of_b = columns if second is None else second
        check_column(self.a, columns, "pair.a")
        check_column(self.b, of_b, "pair.b")
        if self.key:
            check_column(self.key, columns, "pair.key")
            check_column(self.key, of_b, "pair.key, in the table of column b")
        self.condition.check(columns)
        for column in self.choose:
            if column not in (self.a, self.b):
                raise ValueError(
                    f"pair.choose: {column} is neither column a ({self.a}) nor column b ({self.b}). Name one"
                    " of them."
                )

    def _key(self, record: dict) -> str | None:
        return None if cell(record, self.key) is None else as_text(record, self.key)

    def _by_key(self, records: list[dict]) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for record in records:
            if (key := self._key(record)) is not None and not is_empty(record.get(self.b)):
                found.setdefault(key, []).append(record)
        return found

    def _some_keys(self, records: list[dict]) -> str:
        return ", ".join(f"'{key}'" for key in sorted({self._key(r) for r in records} - {None})[:3]) or "none"

    def preprocessing(self, side: Side, modality: Modality) -> dict[str, Any]:
        return modality.preprocessing(self.seconds)

    # ---- training ----

    def sample(self, record: Record, rng: np.random.Generator) -> tuple[Raw, Raw]:
        """Raw views of both branches, with a leading dimension of 1; a's with its condition, where there is
        one. Raises ValueError or OSError, naming the column, where a cell is empty or its file cannot be
        read."""
        return self.sample_several(record, [rng])[0]

    def sample_several(self, record: Record, rngs: Sequence[np.random.Generator]) -> list[tuple[Raw, Raw]]:
        drawn = [self._draw(record, rng) for rng in rngs]
        windows = [window for _, window in drawn]
        views_a, views_b = (
            self._read_several(side, [cells[i] for cells, _ in drawn], rngs, windows)
            for i, side in enumerate("ab")
        )
        if self.conditions:
            views_a = [Conditioned(view, self.condition.of(record)) for view in views_a]
        return list(zip(views_a, views_b))

    def _draw(
        self, record: Record, rng: np.random.Generator
    ) -> tuple[list[tuple[Record, Any]], tuple[float, float] | None]:
        """(row and value of a and b, their common window)."""
        row_b = record
        if self.key:
            rows = self._partners(record)
            row_b = rows[rng.integers(len(rows))]
        cells = []
        for side, row in (("a", record), ("b", row_b)):
            found = self._values_of(row, side)
            cells.append((row, found[rng.integers(len(found))] if len(found) > 1 else found[0]))
        return cells, self._window(cells, rng)

    def conditions_of(self, record: Record) -> Tensor:
        return self.condition.of(record)

    def _partners(self, record: Record) -> list[Record]:
        split, key = self._split_of.get(record["id"], "train"), as_text(record, self.key)
        if key not in self._rows_of[split]:
            raise CellError(f"no row with {self.key} '{key}' for column b in the {split} split")
        return self._rows_of[split][key]

    def _values_of(self, record: Record, side: Side) -> list:
        """The values of the cell of one branch. Raises CellError."""
        column = self._column(side)
        return values(record, column, column in self.choose, self.separator)

    def _reader(self, side: Side) -> Modality:
        return self.readers["ab".index(side)]

    def _read_several(self, side: Side, cells: list[tuple[Record, Any]], rngs, windows) -> list[Raw]:
        reader = self._reader(side)
        if len(cells) > 1 and reader.several and all(cell == cells[0] for cell in cells):
            with self._reading(side, *cells[0]) as named:
                return reader.read_several(named, rngs, windows)
        return [self._read(side, *cell, *draws) for cell, *draws in zip(cells, rngs, windows)]

    def _read(self, side: Side, record: Record, value, rng, window) -> Raw:
        reader = self._reader(side)
        with self._reading(side, record, value) as named:
            return reader.read(named, rng, window if reader.timed else None)

    @contextmanager
    def _reading(self, side: Side, record: Record, value):
        """The value as its reader takes it, and the column in what it raises."""
        try:
            with self._opened(side, self._named(side, record, value)) as named:
                yield named
        except (ValueError, OSError) as error:
            raise CellError(f"column '{self._column(side)}': {error}") from error

    def _named(self, side: Side, record: Record, value):
        """A value as the reader takes it: a file, numbers, or the value itself."""
        return as_read(record, value, self._reader(side).reads)

    def _opened(self, side: Side, named) -> AbstractContextManager:
        """The same for a reader that takes only paths of files."""
        reader = self._reader(side)
        if isinstance(named, Part) and reader.opens_inside and "channels" not in named:
            return nullcontext(Inside(named))
        takes_all = reader.reads == "text" or ".tar" in reader.suffixes
        return nullcontext(named) if takes_all else as_path(named)

    def _window(
        self, cells: list[tuple[Record, str]], rng: np.random.Generator | None
    ) -> tuple[float, float] | None:
        """(start, length) in seconds of the common window of both cells; without rng the middle."""
        if self.seconds is None:
            return None
        lengths = {}
        for side, (record, value) in zip("ab", cells):
            if self._reader(side).timed:
                try:
                    with self._opened(side, self._named(side, record, value)) as named:
                        lengths[side] = self._reader(side).seconds(named)
                except (ValueError, OSError) as error:
                    raise CellError(f"column '{self._column(side)}': {error}") from error
        shortest = min(lengths, key=lengths.get)
        spare = lengths[shortest] - self.seconds
        if spare < 0:
            raise CellError(
                f"column '{self._column(shortest)}': is {lengths[shortest]:.2f} s long, {self.seconds} s are"
                " needed (pair.seconds)"
            )
        return spare * (0.5 if rng is None else rng.random()), self.seconds

    # ---- what the stream of samples asks ----

    def required(self) -> list[tuple[str, ...]]:
        """With a key, the cell of b is another row's."""
        return [(self.a,), (self.key or self.b,)]

    # ---- evaluation ----

    def views(
        self, record: Record, side: Side, rng: np.random.Generator | None = None, read: bool = True
    ) -> list[View]:
        """Every value of the cell of one branch. For column b of a second table, a record of the first gives
        a partner, always the same one. Raises ValueError or OSError."""
        row, found = self._own_row(record, side), []
        for value in self._values_of(row, side):
            window = self._view_window(row, side, value)
            named, seconds = self._named(side, row, value), None
            content, item = compared(named), named if isinstance(named, str) else ""
            if window is not None and self._reader(side).timed:
                content, seconds = f"{content} from {window[0]} s", (window[0], sum(window))
            raw = self._read(side, row, value, rng, window) if read else None
            title = str(row["id"])
            if isinstance(value, str) and value != title:
                title += f": {value}"
            told = self.condition.of(row) if read and self.conditions and side == "a" else None
            key = self._key(row) if self.key else None
            found.append(View(raw, content, key, title, item, seconds, told))
        return found

    def _view_window(self, record: Record, side: Side, value) -> tuple[float, float] | None:
        """The common window of a value and the first value of the other branch, in the middle."""
        if self.seconds is None:
            return None
        return self._window(
            [(record, value if s == side else self._values_of(record, s)[0]) for s in "ab"], None
        )

    def read_item(self, value, side: Side) -> Raw:
        """With `seconds`, the middle window of the file. Raises ValueError or OSError."""
        reader = self._reader(side)
        if self.seconds is None or not reader.timed:
            return reader.read(value)
        spare = reader.seconds(value) - self.seconds
        if spare < 0:
            raise ValueError(
                f"{value}: is {spare + self.seconds:.2f} s long, {self.seconds} s are needed (pair.seconds)"
            )
        return reader.read(value, None, (spare * 0.5, self.seconds))

    def slide(self, value, side: Side, every: float) -> Sliding:
        """Windows of `seconds`, where the pair has them."""
        return self._reader(side).slide(value, every, self.seconds)

    def _own_row(self, record: Record, side: Side) -> Record:
        """The row that holds the cell: the record, or where column b is a second table's, a partner chosen by
        the record's id."""
        if side == "a" or not self._two_tables or record.get("second"):
            return record
        rows = self._partners(record)
        return rows[hashed(record["id"]) % len(rows)]
