"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name and rename: the file is whole or absent."""
    with replaced(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replaced(path: Path):
    """A binary file, open for writing, that takes `path`'s place when it is whole and on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1))
