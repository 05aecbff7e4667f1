"""Large arrays in the cache folder, each whole or absent, read in place: what was decoded once, for all
processes of a machine and for later runs.

    arrays = Mapped("squares", megabytes=5000)
    arrays.add("a name of any length", facts, array)      # False where there is no room
    arrays.get("a name of any length")                    # (facts, array), or None where it is not here

Nothing is locked: a file is written under a name of its own and then renamed.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.files.cache import cache_root

UNUSED_SECONDS = 30 * 24 * 3600  # after which one makes room
AGAIN = 16  # arrays that are added before the folder is measured again: others add, too


class Mapped:
    """megabytes: of all arrays of this folder, about; the first that fit stay as long as they are used."""

    def __init__(self, name: str, megabytes: int):
        self.name, self._most = name, megabytes * 2**20
        self._room, self._until = 0, 0  # bytes, and the arrays for which they are believed

    def _place(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return cache_root() / self.name / digest

    def get(self, name: str) -> tuple[Any, np.ndarray] | None:
        place = self._place(name)
        try:
            with open(place, "rb") as file:
                facts, shape = json.loads(file.readline())
                found = np.memmap(file, np.uint8, "r", file.tell(), tuple(shape))
            os.utime(place)
            return facts, found
        except (OSError, ValueError, TypeError):  # not here, or not whole
            return None

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes."""
        if not self._until:
            self._measure()
        return size <= self._room

    def add(self, name: str, facts: Any, array: np.ndarray) -> bool:
        """Keep uint8 of any shape with facts, plain values; False where that cannot be written."""
        place = self._place(name)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(json.dumps([facts, array.shape]).encode() + b"\n")
                    file.write(np.ascontiguousarray(array).data)
                os.replace(temporary, place)
            except OSError:
                os.unlink(temporary)
                raise
            self._until -= 1
            self._room -= array.nbytes
            return True
        self._room, self._until = 0, AGAIN  # no more, or each film would be decoded whole, for nothing
        return False

    def _measure(self) -> None:
        """See how much room there is, and take away what nobody used for long."""
        self._room, self._until = self._most, AGAIN
        with contextlib.suppress(OSError):
            for entry in os.scandir(cache_root() / self.name):
                with contextlib.suppress(FileNotFoundError):  # another process takes it away, too
                    state = entry.stat()
                    if time.time() - state.st_mtime > UNUSED_SECONDS:
                        os.unlink(entry.path)
                    else:
                        self._room -= state.st_size
