"""The files below a folder: one walk, which counts what it passes over.

walk = Walk("/data/clips", (".mp4", ".mkv"))
names = sorted(walk)            # "a/x.mp4", ...
walk.passed_over()              # "3 .txt, 1 hidden, 1 folder that cannot be read (lost+found)"
"""

import os
from collections import Counter, deque
from collections.abc import Iterator

from vicjoint.files.films import FRAME_SUFFIXES, TIFF_SUFFIXES, are_film, pages

KINDS = 8  # that are said


class Walk:
    """Relative posix names of the files below `root` that end in one of `suffixes` (in lower case; none:
    all): each folder's in order, then those of its folders; those of links to folders come last. Iterating
    begins anew.

    "/" among the suffixes: a folder of pictures (vicjoint.files.films) is listed as one name, and its
    pictures are not; tiffs are listed where they have several pages.

    Links are followed; below one folder of the root every folder is listed once, and the root never again, so
    that circles end. Hidden names and folders that cannot be read are passed over. Raises OSError where the
    root cannot be read.

    After a walk: links, the names that lie behind a link; folders {name: time of its last change in ns};
    passed, what was passed over by kind."""

    def __init__(self, root: str | os.PathLike, suffixes: tuple[str, ...] = ()):
        self.root, self.suffixes = os.fspath(root), suffixes
        self.links: set[str] = set()
        self.folders: dict[str, int] = {}
        self.passed: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        self.links, self.folders, self.passed = set(), {}, Counter()
        reached: set[tuple[str, int, int]] = set()  # (folder of the root, device, inode)
        waiting = deque([("", False)])
        while waiting:
            folder, linked = waiting.pop()
            top = folder.partition("/")[0]
            try:
                state = os.stat(os.path.join(self.root, folder))
                place = (state.st_dev, state.st_ino)
                if (top, *place) in reached or (folder and ("", *place) in reached):
                    self.passed[f"link to a folder that is listed ({folder})"] += 1
                    continue
                reached.add((top, *place))
                with os.scandir(os.path.join(self.root, folder)) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                if not folder:
                    raise
                self.passed[f"folder that cannot be read ({folder}: {error.strerror})"] += 1
                self.folders[folder] = -1  # it may be read later, which changes no time
                continue
            self.folders[folder] = state.st_mtime_ns
            inner = []
            film = bool(folder) and self._is_film(entries)
            if film:
                if linked:
                    self.links.add(folder)
                yield folder
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    self.passed["hidden"] += 1
                elif _is_folder(entry):
                    waiting.appendleft((name, True)) if entry.is_symlink() else inner.append((name, linked))
                elif film and entry.name.lower().endswith(FRAME_SUFFIXES):
                    continue
                elif self._is_wanted(entry):
                    if linked or entry.is_symlink():
                        self.links.add(name)
                    yield name
                else:
                    self.passed[os.path.splitext(name)[1].lower() or "without ending"] += 1
            waiting.extend(reversed(inner))

    def _is_film(self, entries: list[os.DirEntry]) -> bool:
        try:
            return "/" in self.suffixes and are_film(entries, self.suffixes)
        except OSError:  # a link that leads to itself
            return False

    def _is_wanted(self, entry: os.DirEntry) -> bool:
        name = entry.name.lower()
        if "/" in self.suffixes and name.endswith(TIFF_SUFFIXES):
            return pages(entry.path) > 1
        return not self.suffixes or name.endswith(self.suffixes)

    def passed_over(self) -> str:
        """What was, the commonest first; nothing: an empty text."""
        return counted(self.passed)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def not_used(passed: Counter[str]) -> str:
    """The end of a sentence: what was passed over; nothing: an empty text."""
    return f"; passed over: {found}" if (found := counted(passed)) else ""


def counted(kinds: Counter[str]) -> str:
    """The kinds with their numbers, the commonest first; nothing: an empty text."""
    kinds = +kinds  # without zeros
    said = [f"{number:,} {kind}" for kind, number in kinds.most_common(KINDS)]
    others = kinds.total() - sum(number for _, number in kinds.most_common(KINDS))
    return ", ".join(said + ([f"{others:,} others"] if others else []))
