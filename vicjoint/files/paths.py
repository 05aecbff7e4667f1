"""Paths as users write them: the one place where ~ is expanded."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike) -> Path:
    """The path, with a home folder in the place of its ~. Raises ValueError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: no home folder is known for its ~. Write the path out.") from None
