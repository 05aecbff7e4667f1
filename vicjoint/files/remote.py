"""Files elsewhere, by a URL that fsspec knows (s3, gs, http, ...), brought whole to a folder of bounded size
when they are first opened.

    remote = look_up(["s3://bucket/train-0000.tar"], room=50 << 30, user="source 'webdataset'")[0]
    with opened(remote) as file: ...            # brought before, where it is not there

The folder is one of the cache's, and all processes of all runs share it: each file has a lock, the least
recently used goes when there is no room, and never one that is read or brought at that moment.
"""

import contextlib
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vicjoint import distributed
from vicjoint.files.cache import cache_root
from vicjoint.registry import ComponentError, need

try:
    import fcntl
except ImportError:  # Windows: nothing stops two processes from bringing one file
    fcntl = None

TRIES = 4  # to bring a file, with 1, 2 and 4 seconds between them
AGAIN = 300.0  # seconds after which one that could not be brought is tried again
ANSWER_SECONDS = 60.0  # without a byte, over http
AT_ONCE = 32  # files whose size is asked for at a time
BLOCK = 1 << 18  # bytes that come at a time of a file that is read in place
TOUCHED = 1.0  # seconds: how exactly the last use of a file is known
# what different stores call the state of a file
VERSIONS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "updated", "mtime", "created")

# around waiting that is no sample's fault; the time limit of samples sets it
pause: Callable[[], AbstractContextManager] = contextlib.nullcontext
_failed: dict[str, tuple[float, OSError]] = {}  # URL -> when it could not be brought, and why
_wanted: "queue.SimpleQueue[Remote]" = queue.SimpleQueue()
_thread: threading.Thread | None = None


class DamagedFile(OSError):
    """A file that came as it is there, and is not what it should be."""


def is_url(text: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


@dataclass(frozen=True)
class Remote:
    """A file elsewhere: its size in bytes, what changes where the file does, and how many bytes the folder
    may have that it is brought to. made: writes what is kept in place of the file that came, to a path; it
    raises OSError."""

    url: str
    size: int
    version: str
    room: int
    made: "Callable[[Remote, Path, Path], None] | None" = None

    @property
    def place(self) -> Path:
        """Where it is kept; the name ends with the bytes that come."""
        digest = hashlib.sha256(f"{self.url}\0{self.size}\0{self.version}".encode()).hexdigest()[:24]
        return folder() / f"{digest}.{self.size}"


def folder() -> Path:
    return cache_root() / "remote"


def file_system(url: str, user: str):
    """fsspec's file system of a URL. Raises ComponentError where its library is not installed, ValueError
    where none is known."""
    (fsspec,) = need(["fsspec"], user, "remote")
    protocol = url.split("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
        options = {}
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            wait = ClientTimeout(total=None, sock_connect=ANSWER_SECONDS, sock_read=ANSWER_SECONDS)
            options["client_kwargs"] = {"timeout": wait}
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise ComponentError(
            f"{user} needs the library for {protocol}:// ({str(error).splitlines()[0]}): pip install"
            " 'vicjoint[remote]'"
        ) from None
    except ValueError:
        raise ValueError(
            f"{url}: no protocol '{protocol}' is known. Expected one such as s3, gs, http or https."
        ) from None


def look_up(urls: list[str], room: int, user: str, made: Callable | None = None) -> list[Remote]:
    """Sizes and states of files, asked for in parallel. Raises OSError that names one that is not there."""
    from tqdm import tqdm

    fs = file_system(urls[0], user)

    def ask(url: str) -> Remote:
        info = patiently(url, lambda: fs.info(url))
        if not isinstance(info.get("size"), int):
            raise OSError(f"{url}: the server does not say its size")
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        return Remote(url, info["size"], version, room, made)

    quiet = len(urls) < AT_ONCE or not distributed.is_first()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        asked = tqdm(threads.map(ask, urls), "shards", len(urls), leave=False, disable=quiet)
        return list(asked)


def below(url: str, ending: str, user: str) -> list[str]:
    """URLs of the files below a folder that end so, sorted. Raises OSError."""
    fs = file_system(url, user)
    found = patiently(url, lambda: fs.find(url))
    return sorted(fs.unstrip_protocol(path) for path in found if path.endswith(ending))


def matching(pattern: str, user: str) -> list[str]:
    """URLs of the files that a pattern with * means, sorted. Raises OSError."""
    fs = file_system(pattern, user)
    return sorted(fs.unstrip_protocol(path) for path in patiently(pattern, lambda: fs.glob(pattern)))


@contextlib.contextmanager
def in_place(remote: Remote, user: str) -> Iterator[BinaryIO | None]:
    """The file, of which comes what is read; None where its server gives whole files alone. Raises
    OSError."""
    fs = file_system(remote.url, user)
    with patiently(remote.url, lambda: fs.open(remote.url, block_size=BLOCK)) as file:
        try:
            file.seek(max(remote.size - 8, 0))
            file.read(8)
            ranges = True
        except ValueError:  # as fsspec says that it does not know ranges
            ranges = False
        yield file if ranges else None


def content(url: str, user: str) -> bytes | None:
    """A small file; None where it is not there. Raises OSError."""
    fs = file_system(url, user)
    try:
        return patiently(url, lambda: fs.cat_file(url))
    except FileNotFoundError:
        return None


def patiently(url: str, call: Callable):
    """What `call` gives, tried TRIES times. Raises OSError that names the URL."""
    for number in range(TRIES):
        if number:
            time.sleep(2 ** (number - 1))
        try:
            return call()
        except FileNotFoundError:
            raise FileNotFoundError(f"{url}: does not exist") from None
        except (KeyError, AttributeError, NameError):  # no network's fault
            raise
        except Exception as error:  # each protocol's library has errors of its own
            last = error
    words = str(last).splitlines()[0] if str(last) else type(last).__name__
    raise OSError(f"{url}: {words}") from None


# ---- the folder ----


@contextlib.contextmanager
def opened(remote: Remote) -> Iterator[BinaryIO]:
    """The file, open for reading; brought before, where it is not there. Raises OSError."""
    while True:
        with _locked(remote.place, shared=True):
            try:
                file = open(remote.place, "rb")
            except FileNotFoundError:
                file = None
            if file is not None:
                with file:
                    _touch(remote.place, file)
                    yield file
                return
        bring(remote)


def used(files: list[Remote]) -> None:
    """State that these are read from now on: of what is there they are the last that make room."""
    for of in files:
        with contextlib.suppress(OSError):
            os.utime(of.place)


def ahead(files: list[Remote]) -> None:
    """Have files brought in the background, one after the other; what fails is said where they are read."""
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_bring_wanted, daemon=True)
        _thread.start()
    for of in files:
        _wanted.put(of)


def _bring_wanted() -> None:
    while True:
        with contextlib.suppress(OSError):
            bring(_wanted.get(), wait=False)


def bring(remote: Remote, wait: bool = True) -> None:
    """Bring a file, where it is not there. wait: for another process that brings it. Raises OSError; for
    AGAIN seconds without another try."""
    when, why = _failed.get(remote.url, (float("-inf"), OSError()))
    if time.monotonic() < when + AGAIN:
        raise why
    place = remote.place
    with _paused(), _locked(place, wait=wait) as mine:
        if not mine or place.exists():
            return
        part = place.with_name(f"{place.name}.part")
        made = place.with_name(f"{place.name}.made")
        try:
            _make_room(remote, remote.size)
            patiently(remote.url, lambda: _fetch(remote, part))
            if remote.made is not None:
                remote.made(remote, part, made)
                os.replace(made, part)
                _make_room(remote, part.stat().st_size)  # it may be larger than what came
            os.replace(part, place)
        except OSError as error:
            part.unlink(missing_ok=True)
            made.unlink(missing_ok=True)
            why = error if isinstance(error, DamagedFile) else OSError(f"cannot be brought: {error}")
            _failed[remote.url] = time.monotonic(), why
            raise why from None


def _fetch(remote: Remote, part: Path) -> None:
    file_system(remote.url, "a file elsewhere").get_file(remote.url, str(part))
    if (came := part.stat().st_size) != remote.size:
        raise OSError(f"{came:,} bytes came of {remote.size:,}")


def _make_room(remote: Remote, needed: int) -> None:
    """Delete what was not used for longest until so many bytes have room, and keep that by an empty file."""
    if needed > remote.room:
        raise OSError(
            f"{remote.url}: has {needed:,} bytes, and source.cache allows {remote.room:,}. Raise it"
        )
    with _locked(folder() / "room"):
        while not _has_room(remote, needed):
            time.sleep(0.1)  # all that is there is read or brought just now
        remote.place.with_name(f"{remote.place.name}.part").touch()


def _has_room(remote: Remote, needed: int) -> bool:
    found = {}
    for entry in os.scandir(folder()):
        name, _, rest = entry.name.partition(".")
        size, _, kind = rest.partition(".")
        if size.isdigit() and kind in ("", "part", "made") and f"{name}.{size}" != remote.place.name:
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()  # of one that is coming its size is kept for it
                found[entry.path] = state.st_mtime, max(state.st_size, int(size) if kind == "part" else 0)
    free = remote.room - needed - sum(size for _, size in found.values())
    for path, (_, size) in sorted(found.items(), key=lambda item: item[1]):
        if free >= 0:
            break
        with _locked(Path(path.removesuffix(".part").removesuffix(".made")), wait=False) as mine:
            if mine:
                Path(path).unlink(missing_ok=True)
                free += size
    return free >= 0


@contextlib.contextmanager
def _locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a path; gives whether it does. wait: until others have let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        held = True
        if fcntl is not None:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                held = wait
                if wait:
                    with _paused():
                        fcntl.flock(file, kind)
        yield held


def _touch(place: Path, file: BinaryIO) -> None:
    if time.time() - os.fstat(file.fileno()).st_mtime > TOUCHED:
        with contextlib.suppress(OSError):
            os.utime(place)


def _paused() -> AbstractContextManager:
    in_main = threading.current_thread() is threading.main_thread()
    return pause() if in_main else contextlib.nullcontext()
