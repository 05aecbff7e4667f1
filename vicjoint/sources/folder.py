"""What sources of files below a folder share: the list, kept in the cache folder, and the splits.

files = list_files("image_folder", "image", root, (".png",))
by_folder, side = split_folders("image_folder", "image", root, files, 0.15, classes=True)
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vicjoint.files.cache import cache_root
from vicjoint.files.folder import Walk, not_used
from vicjoint.sources.base import (
    SPLIT_NAMES,
    SPLITS,
    SourceError,
    check_apart,
    names_below,
    split_by_hash,
    split_of,
)

INDEX_VERSION = 2


@dataclass(frozen=True)
class Files:
    """names: relative posix paths, sorted; links: those of them that lie behind a link; passed: what was
    passed over, by kind."""

    names: list[str]
    links: set[str]
    passed: Counter[str]


def list_files(source: str, what: str, root: Path, suffixes: tuple[str, ...]) -> Files:
    """The files below `root`, from the cached index where no folder has changed since. Raises SourceError
    where there are none."""
    index = _index(root, suffixes)
    if (known := _read_index(index, root)) is not None:
        return known
    walk = Walk(root, suffixes)
    names = names_below(source, walk)
    if not names:
        found = f"Passed over: {walk.passed_over()}." if walk.passed else "It has no files."
        raise SourceError(
            f"{source}: no {what} below {root}. {found} Expected files ending in {' '.join(suffixes)}."
        )
    files = Files(names, walk.links, walk.passed)
    _write_index(index, files, walk.folders)
    return files


def split_folders(
    source: str, what: str, root: Path, files: Files, test_fraction: float, classes: bool = False
) -> tuple[bool, dict[str, str | None]]:
    """(whether folders at the root are the splits, or a hash; name -> train or test, None for what lies
    beside split folders). classes: the first folder, below that of a split, is a class. Raises SourceError
    where a folder that is named as a split would not be one, and where a file is in both."""
    same = _same_files(root, files)
    tops = {split_of(path.name) for path in root.iterdir() if path.is_dir()}
    apart = {"train", "test"} <= tops
    _check_names(source, root, files.names, apart, classes)
    if not apart:
        by_hash = split_by_hash(list(dict.fromkeys(same.values())), test_fraction, f"{source} {root}")
        return False, {name: by_hash[first] for name, first in same.items()}
    side = {name: split_of(name.split("/")[0]) if "/" in name else None for name in files.names}
    for split in SPLITS:
        if split not in side.values():
            raise SourceError(
                f"{source}: {root} has split folders, but no {what} in its {split} part. "
                "Put some there, or rename the folders to split by hash."
            )
    check_apart(source, zip(side, side.values(), same.values()))
    return True, side


def _check_names(source: str, root: Path, names: list[str], apart: bool, classes: bool) -> None:
    """Raises SourceError where a class is named as a split, or splits lie deeper than they are looked for."""
    found: dict[str, str] = {}  # split -> the first folder that is named so
    for folder in sorted({name.rpartition("/")[0] for name in names} - {""}):
        parts = folder.split("/")
        if apart and split_of(parts[0]) is None:
            continue  # beside the splits
        depth = int(apart)
        if classes and len(parts) > depth and split_of(parts[depth]):
            place = "/".join(parts[: depth + 1])
            raise SourceError(
                f"{source}: {place} below {root} would be a class, but is named as a split. Expected folders"
                f" for both training and testing at the root ({SPLIT_NAMES}), classes below them. Give"
                f" root={root / place} to split what is in it by hash, or rename it if it is a class."
            )
        for end, part in enumerate(parts, 1):
            if (split := split_of(part)) and not apart:
                found.setdefault(split, "/".join(parts[:end]))
    if len(found) == 2:
        raise SourceError(
            f"{source}: {found['train']} and {found['test']} below {root} are named as splits, but do not lie"
            " at the root together. Give the folder that holds both, rename them, or list the files in a"
            " table with a column split."
        )


def _same_files(root: Path, files: Files) -> dict[str, str]:
    """Name -> the first name that is the same file; only links need the file system."""
    if not files.links:
        return {name: name for name in files.names}
    first: dict[str, str] = {}
    real = os.path.realpath(root)
    paths = (os.path.realpath(f"{root}/{n}") if n in files.links else f"{real}/{n}" for n in files.names)
    return {name: first.setdefault(path, name) for name, path in zip(files.names, paths)}


def described(files: Files, beside: int) -> str:
    """What of a folder is not used; nothing: an empty text."""
    left_out = f" ({beside:,} outside the split folders left out)" if beside else ""
    return left_out + not_used(files.passed)


# ---- the index ----


def _index(root: Path, suffixes: tuple[str, ...]) -> Path:
    name = hashlib.sha256(os.fsencode(f"{root}\0{' '.join(suffixes)}")).hexdigest()[:24]
    return cache_root() / "index" / f"{name}-v{INDEX_VERSION}.npz"


def _read_index(index: Path, root: Path) -> Files | None:
    """The files of an index whose folders are all as they were; None where there is none, or a folder has
    changed."""
    try:
        with np.load(index, allow_pickle=False) as saved:
            for folder, changed in json.loads(saved["folders"].tobytes()).items():
                if os.stat(os.path.join(root, folder)).st_mtime_ns != changed:
                    return None
            names, links = (
                [name for name in saved[key].tobytes().decode("utf-8", "surrogateescape").split("\0") if name]
                for key in ("names", "links")
            )
            return Files(names, set(links), Counter(json.loads(saved["passed"].tobytes())))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_index(index: Path, files: Files, folders: dict[str, int]) -> None:
    """Keep the index; a cache that cannot be written costs time, not the run."""
    blocks = {
        "names": "\0".join(files.names),
        "links": "\0".join(sorted(files.links)),
        "folders": json.dumps(folders),
        "passed": json.dumps(files.passed),
    }
    arrays = {
        key: np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8) for key, text in blocks.items()
    }
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        temporary = index.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(temporary, **arrays)
        os.replace(temporary, index)
    except OSError:
        return
