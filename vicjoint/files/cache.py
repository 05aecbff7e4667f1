"""The cache folder: what can be made again, such as the sample world and lists of files."""

import os
import tempfile
from pathlib import Path

from vicjoint.files.paths import user_path


def cache_root() -> Path:
    """$VICJOINT_CACHE, else $XDG_CACHE_HOME/vicjoint, else ~/.cache/vicjoint; where there is no home folder,
    as for a user number that the system does not know, one below the system's folder for temporary files."""
    if own := os.environ.get("VICJOINT_CACHE"):
        return user_path(own).absolute()
    try:
        return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "vicjoint"
    except ValueError:
        return Path(tempfile.gettempdir()) / f"vicjoint-{os.getuid() if os.name == 'posix' else 'cache'}"
