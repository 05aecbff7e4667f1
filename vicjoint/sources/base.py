"""What sources share: the error, the names of splits, and the checks of a split.

Where nothing says which samples are for testing, the relative paths do: they are ordered by their sha256, and
the first round(n * test_fraction) are the test split (at least one on each side). A file may be missing or
damaged without harm here: it becomes a bad sample when it is read.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field

TestFraction = Annotated[float, Field(gt=0, lt=1)]

SPLIT_OF = {"train": "train", "test": "test", "val": "test", "validation": "test"}


class SourceError(ValueError):
    """A source that cannot be listed; the message says what was found and what to do."""


def split_by_hash(ids: list[str], test_fraction: float, what: str, unit: str = "file") -> dict[str, str]:
    """id -> 'train' or 'test', by the order of the ids' sha256; `what` names the source in the error, `unit`
    what an id stands for."""
    if len(ids) < 2:
        raise SourceError(
            f"{what}: only one {unit} ({ids[0]}), expected two or more: one to train on and one to test on."
        )
    ordered = sorted(ids, key=lambda i: hashlib.sha256(i.encode("utf-8", "surrogateescape")).digest())
    tests = min(max(round(len(ids) * test_fraction), 1), len(ids) - 1)
    return {i: "test" if k < tests else "train" for k, i in enumerate(ordered)}


def check_both_splits(source: str, what: str, root: Path, side: dict[str, str | None]) -> None:
    """Split folders are there; so are samples (`what`) in both of them."""
    for split in ("train", "test"):
        if split not in side.values():
            raise SourceError(
                f"{source}: {root} has split folders, but no {what} in its {split} part. "
                "Put some there, or rename the folders to split by hash."
            )


def check_apart(source: str, train: list[dict], test: list[dict]) -> None:
    """No file in both splits, links included: a test on training data proves nothing."""
    trained = {os.path.realpath(r["path"]): r["id"] for r in train}
    for record in test:
        if (same := trained.get(os.path.realpath(record["path"]))) is not None:
            raise SourceError(
                f"{source}: {same} in train and {record['id']} in test are the same file. "
                "Keep it on one side, or the test is on training data."
            )


def what_is_there(found: list[str], links: int) -> str:
    kinds = Counter(os.path.splitext(f)[1].lower() or "without extension" for f in found).most_common(5)
    text = (
        f"Found {len(found)} other files: {', '.join(f'{n} {kind}' for kind, n in kinds)}."
        if found
        else "It has no files."
    )
    return text + (
        f" {links} links to folders were not followed: give the folder they lead to." if links else ""
    )


def has_split_folders(root: Path) -> bool:
    names = {SPLIT_OF.get(entry.name.lower()) for entry in os.scandir(root) if entry.is_dir()}
    return {"train", "test"} <= names
