"""What a search has found, for people: aligned text, and one self-contained page with pictures."""

import base64
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from vicjoint.embeddings.previews import Preview, Previews
from vicjoint.embeddings.rows import plain
from vicjoint.files.guard import printable
from vicjoint.files.write import write_text
from vicjoint.video import FRAME_RATE

CELL = 40  # characters of a cell on the terminal
PAGE = Path(__file__).parent
TEMPLATES = jinja2.Environment(
    # the page, and the report's style
    loader=jinja2.FileSystemLoader([PAGE / "page", PAGE.parent / "report"]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["printable"] = printable
TYPES = {".jpg": "image/jpeg", ".mp4": "video/mp4", ".wav": "audio/wav"}


class Hit(NamedTuple):
    """One item that was found. rank: from 1. similarity: cosine, in [-1, 1]. start_seconds, end_seconds:
    where the item is a window of a file. columns: what else the index has of it."""

    rank: int
    similarity: float
    item: str
    start_seconds: float | None
    end_seconds: float | None
    columns: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The same, of values that JSON has."""
        return self._asdict() | {"columns": {name: plain(value) for name, value in self.columns.items()}}

    @property
    def seconds(self) -> str:
        """Of a window, "1.5-2.0"; else nothing."""
        return "" if self.start_seconds is None else f"{self.start_seconds:g}-{self.end_seconds:g}"


class Side(NamedTuple):
    """What the queries or the items are: modality, whether they are files or texts, and the rate of folders
    of pictures."""

    modality: str
    reads: str
    frame_rate: float = FRAME_RATE


def text_table(hits: Sequence[Hit], width: int) -> str:
    """One line for each hit, and one for the names of the columns; long cells are cut, and the last columns
    left out where a line would have more than `width` characters, which a last line says."""
    timed = any(hit.seconds for hit in hits)
    names = list(hits[0].columns) if hits else []
    rows = [["rank", "similarity", "item", *(["seconds"] if timed else []), *names]]
    for hit in hits:
        cells = [hit.rank, f"{hit.similarity:.3f}", hit.item, *([hit.seconds] if timed else [])]
        rows.append([*cells, *("" if hit.columns[name] is None else hit.columns[name] for name in names)])
    texts = [[cut(printable(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    fits = [end <= width for end in itertools.accumulate(w + 2 for w in widths)]
    kept = max(len(widths) - len(names), sum(fits))
    lines = ["  ".join(f"{text:<{w}}" for text, w in zip(row, widths[:kept])).rstrip() for row in texts]
    left_out = [cut(printable(name)) for name in rows[0][kept:]]
    return "\n".join([*lines, *([f"(no room for {', '.join(left_out)})"] if left_out else [])])


def cut(text: str) -> str:
    """Its end, where it is too long: paths differ there; of a sentence one sees that it is one."""
    return (
        text if len(text) <= CELL else f"...{text[3 - CELL :]}" if "/" in text else f"{text[: CELL - 3]}..."
    )


def write_found(path: Path, query: str, asks: Side, hits: Sequence[Hit], items: Side) -> None:
    """Write a page of a query and its hits, which needs no other file: pictures, clips and sounds are in
    it."""
    with tempfile.TemporaryDirectory() as folder:
        with Previews(folder, *asks) as previews:
            asked = inside(previews.write("query", {"item": query}), Path(folder))
        with Previews(folder, *items) as previews:
            shown = [
                (hit, inside(previews.write(str(hit.rank), hit._asdict()), Path(folder))) for hit in hits
            ]
    html = TEMPLATES.get_template("found.html").render(
        query=query, asks=asks, asked=asked, items=items, hits=shown
    )
    write_text(path, html)


def inside(preview: Preview, folder: Path) -> Preview:
    """The same with data URIs for names."""

    def uri(name: str | None) -> str | None:
        if name is None:
            return None
        content = base64.b64encode((folder / name).read_bytes()).decode()
        return f"data:{TYPES[Path(name).suffix]};base64,{content}"

    return Preview(uri(preview.picture), uri(preview.clip), uri(preview.sound), preview.cause)
