"""Small files in the cache folder, each whole or absent: what was learnt of a file and costs less to read
than to learn again.

    files = SmallFiles("video_index", most=1 << 18)
    files.put("a name of any length", content)
    files.get("a name of any length")                # None where it is not here

All processes of a machine share them. Nothing is locked: a file is written under a name of its own and then
renamed, and one that is damaged or gone is learnt anew.
"""

import contextlib
import hashlib
import os
import tempfile
import zlib
from pathlib import Path

from vicjoint.files.cache import cache_root

FOLDERS = 256


class SmallFiles:
    """most: files that stay, about; the oldest quarter of a full folder goes."""

    def __init__(self, name: str, most: int):
        self.name, self._most = name, max(most // FOLDERS, 1)

    def _place(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return cache_root() / self.name / digest[:2] / digest[2:]

    def get(self, name: str) -> bytes | None:
        try:
            return zlib.decompress(self._place(name).read_bytes())
        except (OSError, zlib.error):
            return None

    def put(self, name: str, content: bytes) -> None:
        """Where it can be written: without a place on the disk it is learnt again, which costs only time."""
        with contextlib.suppress(OSError):
            place = self._place(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(zlib.compress(content, 1))
                os.replace(temporary, place)
            except OSError:
                os.unlink(temporary)
                raise
            self._prune(place.parent)

    def _prune(self, folder: Path) -> None:
        if len(os.listdir(folder)) <= self._most:
            return
        ages = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # another process prunes, too
                ages.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(ages)[: self._most // 4 + 1]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
