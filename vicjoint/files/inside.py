"""Files inside of tar files, opened in place: a name that our openers of films and sounds take for a path.

path = Inside({"id": "7.video.mp4", "path": "x-000.tar", "offset": 512, "size": 30000})
str(path)                           # "x-000.tar/7.video.mp4": nothing is there
open_binary(path), state_of(path)   # of any path: a binary file, (size, time of its last change in ns)
"""

import contextlib
import io
import os
from typing import BinaryIO

from vicjoint.files import remote

IN_MEMORY = 1 << 23  # bytes of a file that is read at once; of larger ones what is asked for


class Inside(str):
    """part: where it is: id, path, offset, size, and remote where the tar file is elsewhere."""

    part: dict

    def __new__(cls, part: dict):
        made = super().__new__(cls, f"{part['path']}/{part['id']}")
        made.part = part
        return made


def open_tar(part: dict) -> contextlib.AbstractContextManager[BinaryIO]:
    """The tar file of a part, which is brought before where it is elsewhere. Raises OSError."""
    return remote.opened(part["remote"]) if "remote" in part else open(part["path"], "rb", buffering=0)


def content_of(part: dict, most: int | None = None) -> bytes:
    """Of a part, or its first `most` bytes. Raises OSError, also where the tar file ends too early."""
    size = part["size"] if most is None else min(most, part["size"])
    with open_tar(part) as tar:
        tar.seek(part["offset"])
        content = tar.read(size)
        while len(content) < size and (more := tar.read(size - len(content))):
            content += more
    if len(content) < size:
        raise OSError(
            f"{part['path']} ({part['id']}): the shard ends {size - len(content):,} bytes too early."
            " Make it again"
        )
    return content


def open_binary(path: str) -> BinaryIO:
    """A file of any path, open for reading bytes. Raises OSError."""
    if not isinstance(path, Inside):
        return open(path, "rb")
    if path.part["size"] <= IN_MEMORY:
        return _Named(content_of(path.part), path)
    return io.BufferedReader(_Window(path))


def head_of(path: str, count: int) -> bytes:
    """The first bytes of a file of any path. Raises OSError."""
    if isinstance(path, Inside):
        return content_of(path.part, count)
    with open(path, "rb") as file:
        return file.read(count)


def state_of(path: str) -> tuple[int, int]:
    """(size, time of its last change in ns). Raises OSError."""
    if not isinstance(path, Inside):
        state = os.stat(path)
        return state.st_size, state.st_mtime_ns
    if "remote" in path.part:
        return path.part["size"], 0
    return path.part["size"], os.stat(path.part["path"]).st_mtime_ns


class _Named(io.BytesIO):
    """A file in memory. name: FFmpeg looks at its ending."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = str(name)


class _Window(io.RawIOBase):
    """The part of a tar file, which stays open as long as this is."""

    def __init__(self, path: Inside):
        self._held = contextlib.ExitStack()
        self._tar = self._held.enter_context(open_tar(path.part))
        self._first, self._size, self._at = path.part["offset"], path.part["size"], 0
        self.name = str(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(begin + offset, 0)
        return self._at

    def readinto(self, buffer) -> int:
        count = max(min(len(buffer), self._size - self._at), 0)
        self._tar.seek(self._first + self._at)
        content = self._tar.read(count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._held.close()
        super().close()
