"""Small index files, as python -m vicjoint.embed writes them, and files for their items."""

import json
import wave
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from vicjoint.video.write import write_mp4

FACTS = {
    "run": "runs/tiny/1",
    "name": "tiny",
    "branch": "a",
    "modality": "text",
    "reads": "text",
    "space": "embedding",
    "step": 8,
    "model": "abc123",
}


def write_index(path: Path, items, vectors, columns=None, seconds=None, dtype=np.float32, **facts) -> Path:
    """An index of vectors [N, D]; `seconds`: (start, end) of each item; facts: instead of FACTS."""
    vectors = np.asarray(vectors, dtype)
    flat = pyarrow.array(vectors.ravel())
    found = {
        "item": pyarrow.array([str(item) for item in items]),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    if seconds is not None:
        found["start_seconds"], found["end_seconds"] = (pyarrow.array(x) for x in zip(*seconds))
    found |= {name: pyarrow.array(values) for name, values in (columns or {}).items()}
    notes = json.dumps(FACTS | {"dim": vectors.shape[1]} | facts)
    table = pyarrow.table(found).replace_schema_metadata({"vicjoint": notes})
    pyarrow.parquet.write_table(table, path, compression="none")
    return path


def png(path: Path, colour=(200, 30, 30), size=(40, 30)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def mp4(path: Path, seconds: float = 1.0, height: int = 48, width: int = 64) -> Path:
    """Frames that become brighter with time."""
    count = round(24 * seconds)
    levels = np.linspace(10, 240, count).astype(np.uint8)
    write_mp4(path, np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy())
    return path


def wav(path: Path, seconds: float = 0.5, rate_hz: int = 8000) -> Path:
    sound = np.sin(np.arange(round(seconds * rate_hz)) * 2 * np.pi * 440 / rate_hz)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate_hz)
        file.writeframes((sound * 20000).astype("<i2").tobytes())
    return path
