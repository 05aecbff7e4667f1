"""Sources: where samples are. A source lists them; reading is the modality's work.

    source = VideoFolder("/data/clips")
    source.train, source.test        # lists of {"id": relative path, "path": absolute path, ...other columns}
    source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"

Where nothing says which samples are for testing, the relative paths do: they are ordered by their sha256, and the first
round(n * test_fraction) are the test split (at least one on each side). A file may be missing or damaged without harm here:
it becomes a bad sample when it is read.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from pathlib import Path

from vicjoint import sample
from vicjoint.registry import nearest, register

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
SPLIT_OF = {"train": "train", "test": "test", "val": "test", "validation": "test"}
LOOKED_AT = 100  # a table whose first files are all missing has wrong paths, not bad samples


class SourceError(ValueError):
    """A source that cannot be listed; the message says what was found and what to do."""


@register("source", "sample_videos")
class SampleVideos:
    """The sample world as mp4 files in the cache folder; records carry the factors `background` and `sprites`."""

    def __init__(self, train: int = 512, test: int = 96, frames: int = 32, size: int = 64, seed: int = 0):
        try:
            self.root = sample.cached_videos(train, test, frames, size, seed)
        except sample.SampleError as error:
            raise SourceError(str(error)) from None
        records = sample.read_factors(self.root)
        self.train = [r for r in records if r["split"] == "train"]
        self.test = [r for r in records if r["split"] == "test"]

    def describe(self) -> str:
        return f"sample_videos {self.root}: {len(self.train)} train, {len(self.test)} test videos"


@register("source", "video_folder")
class VideoFolder:
    """Every video file below `root`. Hidden names are skipped; links to files are followed, links to folders are not.

    Where `root` has a folder train and one of test, val or validation, these are the splits, and videos elsewhere are
    left out (`describe` counts them). Otherwise the split is by hash.
    """

    def __init__(self, root: str, test_fraction: float = 0.15):
        check_fraction("video_folder", test_fraction)
        self.root = Path(root).expanduser().absolute()
        ids = _list_videos(self.root)
        side = {i: SPLIT_OF.get(i.split("/")[0].lower()) for i in ids if "/" in i}
        if has_split_folders(self.root):
            check_both_splits("video_folder", "video", self.root, side)
        else:
            side = split_by_hash(ids, test_fraction, f"video_folder {self.root}")
        self.train, self.test = (
            [{"id": i, "path": str(self.root / i)} for i in ids if side.get(i) == split] for split in ("train", "test")
        )
        self.left_out = len(ids) - len(self.train) - len(self.test)
        _check_apart("video_folder", self.train, self.test)

    def describe(self) -> str:
        left_out = f" ({self.left_out} outside the split folders left out)" if self.left_out else ""
        return f"video_folder {self.root}: {len(self.train)} train, {len(self.test)} test videos{left_out}"


@register("source", "table")
class Table:
    """A csv file (UTF-8, one header line) with a column of file paths; one record per row, in the table's order.

    root: the csv file. column: the one with paths, absolute or relative to the csv's folder; `..` may lead out of it.
    split: the column that says train, test, val or validation (the last two count as test); without such a column the
    split is by hash of the path, and rows of one file stay on one side. Records keep every column as text under its name;
    columns named id or path, unless paths come from them, become table_id and table_path.
    """

    def __init__(self, root: str, column: str = "path", split: str = "split", test_fraction: float = 0.15):
        check_fraction("table", test_fraction)
        self.root = Path(root).expanduser().absolute()
        header, rows = _read_csv(self.root)
        _check_column(self.root, "column", column, header)
        if split != "split":  # named by the user, so it has to be there
            _check_column(self.root, "split", split, header)
        records = [self._record(line, row, column) for line, row in rows]
        if split in header:
            sides = [self._side(line, row[split], split) for line, row in rows]
        else:
            by_hash = split_by_hash(list(dict.fromkeys(r["id"] for r in records)), test_fraction, f"table {self.root}")
            sides = [by_hash[r["id"]] for r in records]
        self.train, self.test = (
            [r for r, side in zip(records, sides) if side == wanted] for wanted in ("train", "test")
        )
        self._check(records, split)

    def _record(self, line: int, row: dict[str, str], column: str) -> dict:
        if not row[column].strip():
            raise SourceError(f"table: {self.root}, line {line}: column '{column}' is empty, expected a file path.")
        path = os.path.normpath(self.root.parent / row[column])
        others = {f"table_{k}" if k in ("id", "path") and k != column else k: v for k, v in row.items()}
        return {**others, "id": Path(os.path.relpath(path, self.root.parent)).as_posix(), "path": path}

    def _side(self, line: int, value: str, split: str) -> str:
        if value.strip().lower() not in SPLIT_OF:
            raise SourceError(f"table: {self.root}, line {line}: {split} is '{value}', expected one of {', '.join(SPLIT_OF)}.")
        return SPLIT_OF[value.strip().lower()]

    def _check(self, records: list[dict], split: str) -> None:
        for name, part in (("train", self.train), ("test", self.test)):
            if not part:
                raise SourceError(f"table: {self.root}: no row of column '{split}' says {name}. "
                                  "Mark some, or name another split column.")
        first = records[:LOOKED_AT]
        if not any(os.path.exists(r["path"]) for r in first):
            raise SourceError(
                f"table: {self.root}: none of the first {len(first)} files exists, the first is {first[0]['path']}. "
                f"Paths are relative to the csv's folder {self.root.parent}: correct them, or move the csv."
            )
        _check_apart("table", self.train, self.test)

    def describe(self) -> str:
        return f"table {self.root}: {len(self.train)} train, {len(self.test)} test records"


def split_by_hash(ids: list[str], test_fraction: float, what: str) -> dict[str, str]:
    """id -> 'train' or 'test', by the order of the ids' sha256; `what` names the source in the error."""
    if len(ids) < 2:
        raise SourceError(f"{what}: only one file ({ids[0]}), expected two or more: one to train on and one to test on.")
    ordered = sorted(ids, key=lambda i: hashlib.sha256(i.encode("utf-8", "surrogateescape")).digest())
    tests = min(max(round(len(ids) * test_fraction), 1), len(ids) - 1)
    return {i: "test" if k < tests else "train" for k, i in enumerate(ordered)}


def check_fraction(source: str, test_fraction: float) -> None:
    if not 0 < test_fraction < 1:
        raise SourceError(f"{source}: test_fraction is {test_fraction}, expected a number between 0 and 1, such as 0.15.")


def check_both_splits(source: str, what: str, root: Path, side: dict[str, str | None]) -> None:
    """Split folders are there; so are samples (`what`) in both of them."""
    for split in ("train", "test"):
        if split not in side.values():
            raise SourceError(f"{source}: {root} has split folders, but no {what} in its {split} part. "
                              "Put some there, or rename the folders to split by hash.")


def _check_apart(source: str, train: list[dict], test: list[dict]) -> None:
    """No file in both splits, links included: a test on training data proves nothing."""
    trained = {os.path.realpath(r["path"]): r["id"] for r in train}
    for record in test:
        if (same := trained.get(os.path.realpath(record["path"]))) is not None:
            raise SourceError(f"{source}: {same} in train and {record['id']} in test are the same file. "
                              "Keep it on one side, or the test is on training data.")


# ---- folders ----

def _list_videos(root: Path) -> list[str]:
    """Relative posix paths of the video files below `root`, sorted."""
    if not root.exists():
        raise SourceError(f"video_folder: root {root} does not exist. Expected a folder with videos: check the path.")
    if not root.is_dir():
        raise SourceError(f"video_folder: root {root} is a file, expected a folder. Give its folder {root.parent}, "
                          "or source: {name: table} for a csv of paths.")

    def refuse(error: OSError):
        raise SourceError(f"video_folder: cannot list {error.filename}: {error.strerror}. "
                          "Allow reading it, or choose another root.")

    found, links = [], 0
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        links += sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        found += [(Path(folder, f).relative_to(root)).as_posix() for f in files if not f.startswith(".")]
    videos = sorted(f for f in found if f.lower().endswith(VIDEO_SUFFIXES))
    if not videos:
        raise SourceError(f"video_folder: no video below {root}. {what_is_there(found, links)} "
                          f"Expected files ending in {' '.join(VIDEO_SUFFIXES)}.")
    return videos


def what_is_there(found: list[str], links: int) -> str:
    kinds = Counter(os.path.splitext(f)[1].lower() or "without extension" for f in found).most_common(5)
    text = f"Found {len(found)} other files: {', '.join(f'{n} {kind}' for kind, n in kinds)}." if found else "It has no files."
    return text + (f" {links} links to folders were not followed: give the folder they lead to." if links else "")


def has_split_folders(root: Path) -> bool:
    names = {SPLIT_OF.get(entry.name.lower()) for entry in os.scandir(root) if entry.is_dir()}
    return {"train", "test"} <= names


# ---- tables ----

def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and [(line number, row)] of a csv file; every row has every column."""
    if not path.exists():
        raise SourceError(f"table: root {path} does not exist. Expected a csv file: check the path.")
    if path.is_dir():
        tables = sorted(p.name for p in path.glob("*.csv"))
        raise SourceError(f"table: root {path} is a folder, expected a csv file. "
                          f"Found there: {', '.join(tables[:5]) or 'no csv file'}.")
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        numbered = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise SourceError(f"table: {path} is not UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8.") from None
    except (csv.Error, OSError) as error:
        raise SourceError(f"table: cannot read {path}: {error}. Expected a csv file in UTF-8.") from None
    if len(numbered) < 2:
        raise SourceError(f"table: {path} is empty, expected a header line and at least two rows.")
    header = numbered[0][1]
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise SourceError(f"table: {path} has two columns named '{twice[0]}'. Rename one.")
    for line, row in numbered[1:]:
        if len(row) != len(header):
            raise SourceError(f"table: {path}, line {line}: {len(row)} fields, the header has {len(header)}. "
                              "Put quotes around values with commas.")
    return header, [(line, dict(zip(header, row))) for line, row in numbered[1:]]


def _check_column(path: Path, option: str, name: str, header: list[str]) -> None:
    if name not in header:
        raise SourceError(f"table: {path} has no column '{name}' (option {option}).{nearest(name, header)} "
                          f"Columns: {', '.join(header)}.")
