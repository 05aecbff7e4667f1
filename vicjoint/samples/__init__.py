"""The sample world: sources that need no data, made by rule from known factors, so that every recipe runs on
a fresh machine."""

from vicjoint.samples import (
    cells,
    digits,
    futures,
    images,
    molecules,
    proteins,
    pushed,
    surprises,
    table,
    videos,
)
