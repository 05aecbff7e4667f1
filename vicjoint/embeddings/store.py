"""An index: the embeddings of many items in one parquet file, with what is known of each.

index = read_index("photos.parquet")
index.matrix                 # float32 [N, dim], mapped from the file where it is stored so
index.metadata["branch"]     # who made it: run, name, branch, modality, reads, space, dim, step, model
index.rows([0, 7])           # [{"item": "a.png", "class": "dog", ...}, ...]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.registry import need

KEY = b"vicjoint"  # of the schema's metadata
OWN = ("item", "embedding", "start_seconds", "end_seconds")  # all other columns are the table's
FACTS = {"run", "name", "branch", "modality", "reads", "space", "dim", "step", "model"}


class IndexFileError(ValueError):
    """A file that is no index; the message names it and the cause."""


@dataclass(frozen=True)
class Index:
    """path: the file. metadata: who made it. matrix: float32 [N, dim]. table: all columns but `embedding`."""

    path: Path
    metadata: dict[str, Any]
    matrix: np.ndarray
    table: Any

    @property
    def columns(self) -> list[str]:
        """Names of the columns that came with the items."""
        return [name for name in self.table.column_names if name not in OWN]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """`item`, `start_seconds` and `end_seconds` where there are windows, and the columns of some rows."""
        return self.table.take(np.asarray(numbers, dtype=np.int64)).to_pylist()


def read_index(path: str | Path) -> Index:
    """The index in a file that `python -m vicjoint.embed` wrote. Raises IndexFileError."""
    pyarrow, parquet = need(["pyarrow", "pyarrow.parquet"], "an index", "parquet")
    path = Path(path)
    if not path.is_file():
        raise IndexFileError(
            f"index: {path} is not a file. Expected one that python -m vicjoint.embed wrote."
        )
    try:
        table = parquet.read_table(path, memory_map=True)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise IndexFileError(
            f"index: {path} is not a parquet file that can be read ({error}). Write it anew:"
            " python -m vicjoint.embed."
        ) from None
    try:
        metadata = json.loads((table.schema.metadata or {})[KEY])
        there = FACTS <= set(metadata) and {"item", "embedding"} <= set(table.column_names)
    except (KeyError, ValueError, TypeError):
        there = False
    if not there:
        raise IndexFileError(
            f"index: {path} is a parquet file without the notes and columns of an index. Expected one that"
            f" python -m vicjoint.embed wrote: its rows are {', '.join(table.column_names[:8]) or 'empty'}."
        )
    vectors = table.column("embedding").combine_chunks()
    flat = vectors.values.to_numpy(zero_copy_only=False)
    matrix = flat.astype(np.float32, copy=False).reshape(len(table), metadata["dim"])
    return Index(path, metadata, matrix, table.drop_columns(["embedding"]))
