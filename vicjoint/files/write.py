"""Files and folders that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import json
import os
import shutil
import tempfile
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


@contextlib.contextmanager
def whole_folder(path: Path):
    """A folder beside `path` to write into, which takes its place when it is left without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}."))
    try:
        yield building
        shutil.rmtree(path, ignore_errors=True)
        try:
            building.rename(path)
        except OSError:
            if not path.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
