"""What sources share: the error, the names of splits, names of records, and the checks of a split.

Where nothing says which samples are for testing, the relative paths do: they are ordered by their sha256, and
the first round(n * test_fraction) are the test split (at least one on each side). A file may be missing or
damaged without harm here: it becomes a bad sample when it is read.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.files.cells import is_empty
from vicjoint.files.folder import Walk
from vicjoint.files.paths import user_path
from vicjoint.parts import Source, Split

TestFraction = Annotated[float, Field(gt=0, lt=1)]

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
SPLIT_NAMES = ", ".join(SPLIT_OF)
# keys of a record, which no column of another meaning may have
OWN = ("id", "path", "bytes", "offset", "size", "remote", "label", "folder", "second")


class SourceError(ValueError):
    """A source that cannot be listed; the message says what was found and what to do."""


def lacking(source: Source, split: Split, keys: Sequence[str]) -> np.ndarray | None:
    """bool [N]: which records of a split have no value under any of some keys, where that is known without
    reading them; None: it is not."""
    records, found = source.records(split), []
    for key in keys:
        of_key = source.lacks(split, key)
        if of_key is None and isinstance(records, list):
            of_key = np.array([is_empty(record.get(key)) for record in records])
        if of_key is None:
            return None
        found.append(of_key)
    return np.all(found, 0)


def split_of(name) -> str | None:
    """'train' or 'test' for what a folder, a column or a header calls a split; None for any other name."""
    return SPLIT_OF.get(str(name).strip().lower())


def split_by_hash(ids: list[str], test_fraction: float, what: str, unit: str = "file") -> dict[str, str]:
    """id -> 'train' or 'test', by the order of the ids' sha256; `what` names the source in the error, `unit`
    what an id stands for."""
    tests = tests_by_hash(ids, test_fraction, what, unit)
    return {i: "test" if test else "train" for i, test in zip(ids, tests.tolist())}


def tests_by_hash(ids: Sequence[str], test_fraction: float, what: str, unit: str = "file") -> np.ndarray:
    """The same for very many different ids: bool [N], whether each is for testing."""
    if len(ids) < 2:
        raise SourceError(
            f"{what}: only one {unit} ({ids[0]}), expected two or more: one to train on and one to test on."
        )
    digests = b"".join(hashlib.sha256(i.encode("utf-8", "surrogateescape")).digest() for i in ids)
    words = np.frombuffer(digests, ">u8").reshape(len(ids), 4)
    order = np.lexsort(words.T[::-1])
    found = np.zeros(len(ids), dtype=bool)
    found[order[: min(max(round(len(ids) * test_fraction), 1), len(ids) - 1)]] = True
    return found


def same_files(paths: dict[str, str]) -> dict[str, str]:
    """id -> the first id whose path leads to the same file; paths may be links."""
    first: dict[str, str] = {}
    folders: dict[str, str] = {}
    return {i: first.setdefault(real_path(path, folders), i) for i, path in paths.items()}


def real_path(path: str, folders: dict[str, str]) -> str:
    """Where a path leads that has no `..`. folders: where theirs do, as far as that is known."""
    folder, name = os.path.split(path)
    try:
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        there = os.path.join(folders[folder], name)
        return os.path.realpath(there) if os.path.islink(there) else there
    except ValueError:  # a NUL character: no file, which is said when it is read
        return path


def check_apart(source: str, rows: Iterable[tuple[str, str | None, str]]) -> None:
    """No file in both splits: a test on training data proves nothing. rows: (id, split, the first id of the
    same file)."""
    first: dict[str, tuple[str, str]] = {}
    for name, side, same in rows:
        if side is None:
            continue
        other, its = first.setdefault(same, (name, side))
        if its != side:
            train, test = (other, name) if its == "train" else (name, other)
            raise SourceError(
                f"{source}: {train} in train and {test} in test are the same file. "
                "Keep it on one side, or the test is on training data."
            )


def numbered(ids: Iterable[str]) -> list[str]:
    """The same, with a number after those that stood before: every record of a source has a name of its
    own."""
    times: Counter[str] = Counter()
    taken: set[str] = set()
    found = []
    for name in ids:
        new = name
        while new in taken:
            times[name] += 1
            new = f"{name} ({times[name] + 1})"
        taken.add(new)
        found.append(new)
    return found


def repeated(ids: list[str], what: str) -> str:
    """The end of a sentence: how many ids came again; none: an empty text."""
    again = len(ids) - len(set(ids))
    return f"; ids that came again have a number after them: {again:,} {what}" if again else ""


def names_below(source: str, walk: Walk) -> list[str]:
    """What a walk finds, sorted. Raises SourceError where its root cannot be read."""
    try:
        return sorted(walk)
    except OSError as error:
        raise SourceError(
            f"{source}: cannot list {walk.root}: {error.strerror}. Allow reading it, or choose another root."
        ) from None


def root_of(source: str, root: str, what: str) -> Path:
    """The absolute path of a root that is a folder. Raises SourceError."""
    path = user_path(root).absolute()
    if not path.exists():
        raise SourceError(
            f"{source}: root {path} does not exist. Expected a folder with {what}s: check the path."
        )
    if not path.is_dir():
        raise SourceError(
            f"{source}: root {path} is a file, expected a folder. Give its folder {path.parent}, "
            "or source: {name: table} for a csv of paths."
        )
    return path
