"""Parquet files elsewhere, by URL: which they are, and how many rows each has.

files = find_files("s3://bucket/data/*.parquet", None, 50 << 30)
files.names, files.begins, files.features
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from vicjoint import distributed
from vicjoint.files.cells import Part
from vicjoint.files.paths import user_path
from vicjoint.files.remote import DamagedFile, Remote, is_url, look_up
from vicjoint.files.rows import as_arrow, bytes_kept, footer
from vicjoint.registry import need
from vicjoint.sources.base import OWN, SourceError
from vicjoint.sources.columns import Shared
from vicjoint.sources.places import RANGE, SHOWN, THREADS, split_of_shard, urls_of

USER = "source 'hf'"
ENDING = ".parquet"


@dataclass
class Files:
    """remotes, names, sides ('train', 'test' or None) and sizes (in bytes, as they are kept) of files.
    begins: of each the number of its first row, and the number of all rows. damaged: (name, cause) of those
    that were passed over; unnamed: how many were, whose name is no split's."""

    remotes: list[Remote]
    names: list[str]
    sides: list[str | None]
    sizes: list[int]
    begins: np.ndarray
    features: Any
    damaged: list[tuple[str, str]]
    unnamed: int

    @property
    def of_rows(self) -> np.ndarray:
        """int: the number of each row's file."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.begins))

    def said(self) -> str:
        passed = f"; passed over: {self.unnamed} files whose name is no split's" if self.unnamed else ""
        if not self.damaged:
            return passed
        first = "; ".join(f"{name} {cause}" for name, cause in self.damaged[:3])
        more = f" and {len(self.damaged) - 3} more" if len(self.damaged) > 3 else ""
        return f"{passed}; damaged, so that their rows are lost: {first}{more}"


def classes_of(features) -> dict[str, list[str]]:
    """The names of the classes of each column that has some."""
    found = {column: getattr(feature, "names", None) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def named(column: str, label: str | None) -> str:
    """The key of a column in a record."""
    return f"table_{column}" if column in OWN and column != label else column


class FileRecords(Sequence):
    """Rows of parquet files elsewhere, with all columns; a file is brought when a cell of it is read. rows:
    which of all, int [N]; image, label: columns of the record's own file and class, where they are there."""

    def __init__(self, files: Files, rows: np.ndarray, image: str, label: str | None):
        self.remotes, self.names, self._begins, self._rows = (
            files.remotes,
            files.names,
            files.begins,
            Shared(rows),
        )
        self.classes: dict[str, list[str] | None] = {
            **dict.fromkeys(files.features),
            **classes_of(files.features),
        }
        self.image = image if image in self.classes else None
        self.label = label if label in self.classes else None

    @property
    def file(self) -> np.ndarray:
        """int [N]: the number of each record's file."""
        return np.searchsorted(self._begins, self._rows.array, side="right") - 1

    def __len__(self) -> int:
        return len(self._rows.array)

    def _place(self, i: int) -> tuple[int, int]:
        """(file, row in it)"""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        row = int(self._rows.array[i])
        file = int(np.searchsorted(self._begins, row, side="right")) - 1
        return file, row - int(self._begins[file])

    def id(self, i: int) -> str:
        file, row = self._place(i)
        return f"{self.names[file]}/{row}"

    def __getitem__(self, i: int) -> dict:
        file, row = self._place(i)
        name, of = f"{self.names[file]}/{row}", self.remotes[file]
        cells = {
            column: Part(id=name, path=of.url, remote=of, row=row, key=column, names=classes)
            for column, classes in self.classes.items()
        }
        own: dict = {"id": name, "label": cells[self.label] if self.label else None}
        if self.image:
            own["bytes"] = cells[self.image]
        return {named(column, self.label): cell for column, cell in cells.items()} | own


def is_pattern(root: str) -> bool:
    """Whether a local root means several parquet files."""
    return "*" in root or RANGE.search(root) is not None


def find_files(root: str, test: str | None, room: int) -> Files:
    """Raises SourceError where there are none, or they do not fit together."""
    (datasets, _) = need(["datasets", "pyarrow"], USER, "hf")
    try:
        urls = located(root)
        tests = located(test) if test else []
        if both := set(urls) & set(tests):
            raise SourceError(
                f"hf: {min(both)} is in root and in test. Keep it on one side, or the test is on training"
                " data."
            )
        sides = [split_of_shard(url, root) for url in urls]
        sides = ["train"] * len(urls) + ["test"] * len(tests) if tests else sides
        remotes = look_up([*urls, *tests], room, USER, as_arrow)
        footers = footers_of(remotes)
    except OSError as error:
        raise SourceError(
            f"hf: {error}. Expected the URL of a .parquet file, of a folder, or a pattern such as"
            " s3://bucket/x-{000..146}.parquet."
        ) from None
    both_there, unnamed = {"train", "test"} <= set(sides), 0
    if both_there:
        unnamed = sides.count(None)
    names, damaged, kept = names_of([of.url for of in remotes]), [], []
    for i, found in enumerate(footers):
        if isinstance(found, DamagedFile):
            damaged.append((names[i], str(found).removeprefix(f"{remotes[i].url}: ")))
        elif found.num_rows and not (both_there and sides[i] is None):
            kept.append(i)
    if not kept:
        cause = f": {damaged[0][0]} {damaged[0][1]}" if damaged else ""
        raise SourceError(f"hf: {root} has no parquet file with rows{cause}. Expected two rows or more.")
    schema = footers[kept[0]].schema.to_arrow_schema()
    for i in kept:
        if set(footers[i].schema.to_arrow_schema().names) != set(schema.names):
            raise SourceError(
                f"hf: {names[i]} has the columns {', '.join(footers[i].schema.to_arrow_schema().names)}, and"
                f" {names[kept[0]]} has {', '.join(schema.names)}. Give files of the same columns."
            )
    begins = np.cumsum([0, *(footers[i].num_rows for i in kept)])
    return Files(
        [remotes[i] for i in kept],
        [names[i] for i in kept],
        [sides[i] for i in kept],
        [bytes_kept(footers[i]) for i in kept],
        begins,
        datasets.Features.from_arrow_schema(schema),
        damaged,
        unnamed,
    )


def located(pattern: str) -> list[str]:
    url = pattern if is_url(pattern) else f"file://{user_path(pattern).absolute()}"
    return urls_of("hf", url, ENDING)


def names_of(urls: list[str]) -> list[str]:
    """The last parts of URLs, as many as it takes to tell them apart."""
    parts = [url.split("/") for url in urls]
    depth = 1
    while len({tuple(p[-depth:]) for p in parts}) < len(urls):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def footers_of(remotes: list[Remote]) -> list:
    """Of each file its footer, or the DamagedFile that says why it has none. Raises OSError for one that
    cannot be had."""

    def ask(of: Remote):
        try:
            return footer(of, USER)
        except DamagedFile as error:
            return error

    quiet = len(remotes) < SHOWN or not distributed.is_first()
    with ThreadPoolExecutor(THREADS) as threads:
        asked = tqdm(threads.map(ask, remotes), "listing files", len(remotes), leave=False, disable=quiet)
        return list(asked)
