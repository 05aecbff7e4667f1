"""What stands between a run and its data: which paths are opened, what C libraries may print, how text from
data is shown.

cause = no_file("/data/pipe.png", "image")         # "a named pipe, not an image file": None where the file
can be opened with quiet(): decode(content)                      # warnings that a C library writes past
Python are dropped printable("a\\x1b[31mb\\u202e.png")                  # 'a\\\\x1b[31mb\\\\u202e.png': cannot
steer a terminal or a page
"""

import contextlib
import os
import stat
import threading

from vicjoint.files.inside import Inside, head_of

MOST_BYTES = 1 << 30  # of a file that is read whole: above any image within the limit of pixels
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# texts that FFmpeg takes for media and that name other files or addresses, which it would open
PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list of files (ffconcat)",
    b"<?xml": "an XML text",
    b"<MPD": "a DASH manifest",
    b"v=0": "a session description (SDP)",
    b"[playlist]": "a playlist",
}
_lock = threading.RLock()


def no_file(path: str, what: str, most_bytes: int | None = None) -> str | None:
    """Why the file at `path` must not be opened as a `what` (image, video, sound), or None. Opening a named
    pipe waits for ever, a device may never end, and a NUL character ends a path early in C."""
    if isinstance(path, Inside):
        size = path.part["size"]
        return None if size else "the file is empty (0 bytes)"
    if not can_be_named(path):
        return "the path has a NUL character or half a surrogate, so it names no file"
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return error.strerror or str(error)
    for is_kind, words in KINDS:
        if is_kind(state.st_mode):
            return f"{words}, not {'an' if what[0] in 'aeiou' else 'a'} {what} file"
    if state.st_size == 0:
        return "the file is empty (0 bytes)"
    if most_bytes is not None and state.st_size > most_bytes:
        return f"the file has {state.st_size:,} bytes, more than the {most_bytes:,} that are read"
    return None


def can_be_named(path: str) -> bool:
    """Whether the system takes `path` for a path at all."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def no_media(path: str) -> str | None:
    """Why FFmpeg must not open an existing file: it is a text that would send it to other files; None where
    it may."""
    head = head_of(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n")
    return next(
        (
            f"{words}, not a media file: it names other files"
            for begin, words in PLAYLISTS.items()
            if head.startswith(begin)
        ),
        None,
    )


@contextlib.contextmanager
def quiet():
    """While entered, what C libraries write to the process's standard error is dropped: libjpeg and mpg123
    print a line for each flaw of a file, from every worker, and the cause of a real failure comes as an error
    anyway."""
    with _lock:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def printable(text, most: int | None = None) -> str:
    """Text from data with everything that is not printable (control characters, ANSI escapes, bidirectional
    controls, halves of surrogates) as an escape such as \\x1b; `most`: longer ones are cut to so many
    characters."""
    text = str(text)
    if most is not None and len(text) > most:
        text = f"{text[:most]}... ({len(text):,} characters)"
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def printable_lines(text) -> str:
    """The same, line by line: a message of several lines keeps them."""
    return "\n".join(map(printable, str(text).split("\n")))
