"""The file of embeddings: a parquet file with what is known of each item.

index = read_index("out.parquet")
index.metadata["dim"], index.columns["item"]          # a pyarrow table of all columns but the embedding
index.matrix                                          # float32 [N, dim]
"""

# N rows, D width of an embedding

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vicjoint.registry import need

KEY = b"vicjoint"  # in the schema's metadata


class StoreError(ValueError):
    """A file of embeddings that cannot be used; the message says what to do."""


@dataclass
class Index:
    """A file of embeddings. metadata: {run, name, branch, modality, reads, space, dim, step, model}. columns:
    a pyarrow table of all columns but the embedding, [N]. matrix: float32 [N, D]."""

    path: Path
    metadata: dict[str, Any]
    columns: Any
    matrix: np.ndarray

    def __len__(self) -> int:
        return self.columns.num_rows


def read_index(path: str | Path) -> Index:
    """A file that `python -m vicjoint.embed` has written. Raises StoreError for what is none."""
    pyarrow, parquet = need(["pyarrow", "pyarrow.parquet"], "a file of embeddings", "parquet")
    path, wanted = Path(path), "Expected a file written by python -m vicjoint.embed."
    if not path.is_file():
        raise StoreError(f"{path}: no such file. {wanted}")
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path}: cannot be read as parquet ({error}). {wanted}") from None
    notes = table.schema.metadata or {}
    if KEY not in notes or "embedding" not in table.column_names:
        names = ", ".join(table.column_names)
        raise StoreError(f"{path}: has no embeddings of vicjoint, columns: {names}. {wanted}")
    metadata = json.loads(notes[KEY])
    flat = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = flat.astype(np.float32, copy=False).reshape(len(table), metadata["dim"])
    return Index(path, metadata, table.drop_columns(["embedding"]), matrix)
