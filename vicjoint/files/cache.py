"""The cache folder: what can be made again, such as the sample world and lists of files."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$VICJOINT_CACHE, else $XDG_CACHE_HOME/vicjoint, else ~/.cache/vicjoint."""
    if own := os.environ.get("VICJOINT_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "vicjoint"
