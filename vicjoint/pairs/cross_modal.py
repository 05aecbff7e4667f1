"""The pair `cross_modal`: two columns of a table, each read by the modality of its branch.

    pair: {name: cross_modal, a: picture, b: caption, choose: [caption], separator: "|"}      # one of several
    captions pair: {name: cross_modal, a: video, b: sound, seconds: 1.0}                                # the
    same second of both pair: {name: cross_modal, a: path, b: path, key: digit}
    # spoken seven, any written seven

The loop sets `source`, `modalities` (those of branches a and b) and `backend`; then `sample` gives the raw
views of training, `plain` and `plain_all` those of evaluation.
"""

import hashlib
import json

import numpy as np

from vicjoint import distributed
from vicjoint.files.cells import CellError, as_text, check_column, file_path, is_empty, values
from vicjoint.guard import printable
from vicjoint.modalities.base import Modality
from vicjoint.registry import register


@register("pair", "cross_modal")
class CrossModal:
    """Column a to branch a, column b to branch b.

    a, b: columns of the source's table. key: null: both cells of one row; or a column: a row's `a` goes with
    the `b` of a random row of the same split whose key is equal; with a table that has a `second`, that is a
    row of the second. seconds: a time window of this length, common to both cells, drawn once per sample
    within the shorter of them; evaluation takes the middle; null: each modality its own. choose: columns
    whose text cells hold several values, as a JSON list or between `separator` (lists in jsonl and parquet
    need no mention): training draws one, evaluation can use all. distinct: a column whose value occurs at
    most once in a batch; epochs leave out what they cannot place (see vicjoint.data). group: a column whose
    equal values make a group for the objective; null: every record is its own.
    """

    samples_per_record = 1

    def __init__(
        self,
        a: str,
        b: str,
        key: str | None = None,
        seconds: float | None = None,
        choose: list[str] = (),
        separator: str | None = None,
        distinct: str | None = None,
        group: str | None = None,
    ):
        if seconds is not None and seconds <= 0:
            raise ValueError(
                f"pair.seconds: {seconds} is not a length of time. Expected a number above 0, or null for"
                " each modality's own window."
            )
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
        self.choose, self.separator, self.distinct, self.group = tuple(choose), separator, distinct, group
        self.backend = "auto"  # set from the recipe's data.video_backend
        self._modalities: tuple[Modality, Modality] | None = None
        self._source = None
        self._rows_of: dict[str, dict[str, list[dict]]] = {}  # split -> key -> the rows that b comes from
        self._split_of: dict[str, str] = {}  # id of a record -> its split

    # ---- what the loop sets ----

    @property
    def modalities(self) -> tuple[Modality, Modality] | None:
        """Those of branches a and b; None until the loop has set them."""
        return self._modalities

    @modalities.setter
    def modalities(self, both: tuple[Modality, Modality]) -> None:
        """Raises ValueError for a modality that cannot read cells, or a time window that neither has."""
        for branch, modality in zip("ab", both):
            if getattr(type(modality), "read", Modality.read) is Modality.read:
                raise ValueError(
                    f"pair cross_modal: {branch}.modality {type(modality).__name__} does not read the cells"
                    " of a table. Expected a modality with a method `read`, such as image, clip or text."
                )
        if self.seconds is not None and not any(m.timed for m in both):
            raise ValueError(
                f"pair.seconds: neither {type(both[0]).__name__} nor {type(both[1]).__name__} has a time"
                " axis. Leave it out."
            )
        self._modalities = tuple(both)
        self._warn_of_shared_files()

    @property
    def source(self):
        return self._source

    @source.setter
    def source(self, source) -> None:
        """Check the columns and, with a key, list the rows of every key. Raises ValueError naming the option,
        and CellError."""
        self._source = source
        second = getattr(source, "second", None)
        if second and not self.key:
            raise ValueError(
                "source.second: rows of two tables are put together by a key. Set pair.key to a column that"
                " both have."
            )
        self._check_columns(list(source.train[0]), list(second["train"][0]) if second else None)
        self._rows_of, self._split_of = {}, {}
        if self.key:
            parts = {"train": source.train, "test": source.test}
            for split, records in parts.items():
                self._split_of |= {record["id"]: split for record in records}
                self._rows_of[split] = self._by_key((second or parts)[split])
                if not any(self._key(record) in self._rows_of[split] for record in records):
                    raise ValueError(
                        f"pair.key: no row of the {split} split has a partner with an equal '{self.key}'."
                        f" Found for column a {self._some_keys(records)}, for column b"
                        f" {self._some_keys((second or parts)[split])}."
                    )

        self._warn_of_shared_files()

    def _warn_of_shared_files(self) -> None:
        """A file in both splits makes a test on training data; tables may be made so on purpose, so this is a
        line and no error."""
        if self._modalities is None or self._source is None:
            return
        for branch, modality in zip("ab", self._modalities):
            if modality.reads == "file":
                column = getattr(self, branch)
                parts = self._source if branch == "a" or not getattr(self._source, "second", None) else None
                train, test = (parts.train, parts.test) if parts else self._source.second.values()
                both = {str(r[column]) for r in train} & {str(r[column]) for r in test}
                if both and distributed.rank() == 0:
                    print(
                        f"note: {len(both)} files of column '{column}' are in train and in test, so the test"
                        f" is on training data for them; source.split_by={column} keeps them apart. One is"
                        f" {printable(min(both))}"
                    )

    def __getstate__(self) -> dict:
        """Workers get what `sample` needs; the source's records reach them by the stream."""
        return {key: value for key, value in self.__dict__.items() if key != "_source"}

    def _check_columns(self, columns: list[str], second: list[str] | None) -> None:
        of_b = columns if second is None else second
        check_column(self.a, columns, "pair.a")
        check_column(self.b, of_b, "pair.b")
        for option, wanted in {"key": self.key, "distinct": self.distinct, "group": self.group}.items():
            if wanted is not None:
                check_column(wanted, columns, f"pair.{option}")
        if self.key:
            check_column(self.key, of_b, "pair.key, in the table of column b")
        for column in self.choose:
            if column not in (self.a, self.b):
                raise ValueError(
                    f"pair.choose: {column} is neither column a ({self.a}) nor column b ({self.b}). Name one"
                    " of them."
                )

    def _key(self, record: dict) -> str | None:
        return None if is_empty(record.get(self.key)) else as_text(record, self.key)

    def _by_key(self, records: list[dict]) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for record in records:
            if (key := self._key(record)) is not None and not is_empty(record.get(self.b)):
                found.setdefault(key, []).append(record)
        return found

    def _some_keys(self, records: list[dict]) -> str:
        return ", ".join(f"'{key}'" for key in sorted({self._key(r) for r in records} - {None})[:3]) or "none"

    # ---- training ----

    def sample(self, record: dict, rng: np.random.Generator):
        """Raw views of both branches, with a leading dimension of 1. Raises ValueError or OSError, naming the
        column, where a cell is empty or its file cannot be read."""
        row_b = record
        if self.key:
            rows = self._partners(record)
            row_b = rows[rng.integers(len(rows))]
        cells = [
            (row, found[rng.integers(len(found))] if len(found) > 1 else found[0])
            for row, found in (
                (row, self.values_of(row, branch)) for branch, row in (("a", record), ("b", row_b))
            )
        ]
        window = self._window(cells, rng)
        return tuple(self._read(branch, *cell, rng, window) for branch, cell in zip("ab", cells))

    def _partners(self, record: dict) -> list[dict]:
        split, key = self._split_of.get(record["id"], "train"), as_text(record, self.key)
        if key not in self._rows_of[split]:
            raise CellError(f"no row with {self.key} '{key}' for column b in the {split} split")
        return self._rows_of[split][key]

    def values_of(self, record: dict, branch: str) -> list:
        """The values of the cell of one branch, in the order of `plain_all`. Raises CellError."""
        column = getattr(self, branch)
        return values(record, column, column in self.choose, self.separator)

    def _read(self, branch: str, record: dict, value, rng, window):
        modality = self._of(branch)
        try:
            return modality.read(
                file_path(record, value) if modality.reads == "file" else value,
                rng,
                window if modality.timed else None,
            )
        except (ValueError, OSError) as error:
            raise CellError(f"column '{getattr(self, branch)}': {error}") from error

    def _of(self, branch: str) -> Modality:
        if self.modalities is None:
            raise RuntimeError("pair.modalities is not set: the pair cannot read its columns")
        modality = self.modalities["ab".index(branch)]
        if getattr(modality, "backend", self.backend) != self.backend:
            modality.backend = self.backend
        return modality

    def _window(
        self, cells: list[tuple[dict, str]], rng: np.random.Generator | None
    ) -> tuple[float, float] | None:
        """(start, length) in seconds of the common window of both cells; without rng the middle."""
        if self.seconds is None:
            return None
        lengths = {}
        for branch, (record, value) in zip("ab", cells):
            modality = self._of(branch)
            if modality.timed:
                try:
                    lengths[branch] = modality.seconds(
                        file_path(record, value) if modality.reads == "file" else value
                    )
                except (ValueError, OSError) as error:
                    raise CellError(f"column '{getattr(self, branch)}': {error}") from error
        shortest = min(lengths, key=lengths.get)
        spare = lengths[shortest] - self.seconds
        if spare < 0:
            raise CellError(
                f"column '{getattr(self, shortest)}': is {lengths[shortest]:.2f} s long, {self.seconds} s are"
                " needed (pair.seconds)"
            )
        return spare * (0.5 if rng is None else rng.random()), self.seconds

    # ---- what the stream of samples asks ----

    def group_of(self, record: dict, number: int) -> int:
        """The objective's group id of the record with this number: equal for equal cells of the column
        `group`. Raises CellError."""
        return (
            number
            if self.group is None
            else int.from_bytes(hashlib.sha256(as_text(record, self.group).encode()).digest()[:7], "big")
        )

    def distinct_of(self, record: dict) -> str | None:
        """The value that may occur once in a batch; None for an empty cell, which equals no other."""
        return None if is_empty(record.get(self.distinct)) else as_text(record, self.distinct)

    # ---- for probes ----

    def key_of(self, record: dict) -> str | None:
        """The key as text; None without one."""
        return self._key(record) if self.key else None

    def plain(self, record: dict, branch: str = "a"):
        """The raw view of one column as in evaluation, with a leading dimension of 1; the first of several
        values. For column b of a second table, a record of the first gives the view of a partner: always the
        same one. Raises ValueError or OSError.
        """
        record = self._own_row(record, branch)
        return self._plain(record, branch, self.values_of(record, branch)[0])

    def plain_all(self, record: dict, branch: str = "a") -> list:
        """The raw views of all values of the cell, as `plain` gives the first."""
        record = self._own_row(record, branch)
        return [self._plain(record, branch, value) for value in self.values_of(record, branch)]

    def contents_of(self, record: dict, branch: str = "a") -> list[str]:
        """What each view of `plain_all` shows, as text that is equal for equal views: the value, or the
        absolute path of a file, and the common time window where there is one. Raises CellError."""
        found, modality = [], self._of(branch)
        for value in self.values_of(record, branch):
            text = (
                file_path(record, value)
                if modality.reads == "file"
                else value
                if isinstance(value, str)
                else json.dumps(value, sort_keys=True, default=str)
            )
            window = self._plain_window(record, branch, value) if modality.timed else None
            found.append(text if window is None else f"{text} from {window[0]} s")
        return found

    def _plain(self, record: dict, branch: str, value):
        return self._read(branch, record, value, None, self._plain_window(record, branch, value))

    def _plain_window(self, record: dict, branch: str, value) -> tuple[float, float] | None:
        return (
            self._window(
                [(record, value if side == branch else self.values_of(record, side)[0]) for side in "ab"],
                None,
            )
            if self.seconds
            else None
        )

    def _own_row(self, record: dict, branch: str) -> dict:
        """The row that holds the cell: the record, or where column b is a second table's, a partner chosen by
        the record's id."""
        if branch == "a" or not self.key or record.get("second") or not self._has_second():
            return record
        rows = self._partners(record)
        return rows[int.from_bytes(hashlib.sha256(record["id"].encode()).digest()[:7], "big") % len(rows)]

    def _has_second(self) -> bool:
        return bool(next(iter(self._rows_of["train"].values()))[0].get("second"))
