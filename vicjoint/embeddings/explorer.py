"""A folder with a page to look around in embeddings: a map, what each item is, and what is nearest to it.

write_explorer("explorer", [cloud_of(read_index("photos.parquet"))])          # explorer/index.html
# from arrays: what an evaluation has in memory
cloud = Cloud("test", [{"item": "a.png", "class": "dog"}, ...], z_ND, pictures=[...])
write_explorer("explorer", [cloud], right="class")

The page opens offline, from the file system: data are a script beside it, nothing is fetched. What items hold
is text to it, whatever is written there. Pictures, clips and sounds are small copies
(vicjoint.embeddings.previews).
"""

# N items, D width, K neighbours

import json
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vicjoint.embeddings.maps import maps
from vicjoint.embeddings.neighbours import neighbours
from vicjoint.embeddings.previews import Preview, Previews
from vicjoint.embeddings.rows import OWN, rows_of, shown
from vicjoint.embeddings.store import Index
from vicjoint.files.cells import check_column
from vicjoint.files.guard import printable_lines
from vicjoint.files.write import write_text
from vicjoint.video import FRAME_RATE

MOST = 5000  # items of an index that are shown
NEAREST = 9  # neighbours of an item in each index
AT_ONCE = 16  # items that a thread is given: windows of one film come one after the other
PAGE = Path(__file__).parent / "page"
STYLE = Path(__file__).parents[1] / "report" / "report.css"
DATA = "const DATA = "  # how the data begin; by it a folder is known as an explorer


class ExplorerError(ValueError):
    """A page that cannot be made; the message says why."""


@dataclass(frozen=True)
class Cloud:
    """One set of items, as a page shows it.

    rows: of each item `item` (a path or the text itself), `start_seconds` and `end_seconds` where it is a
    window of a file, and any columns. vectors: float [N, D]. modality, reads, branch: as in an index's
    metadata. total: of how many items these are a sample; None: all. pictures: uint8 [H, W, 3] for each item
    or None, shown instead of what the item names; None: items are read. frame_rate: of folders of
    pictures.
    """

    name: str
    rows: list[dict[str, Any]]
    vectors: np.ndarray
    modality: str = ""
    reads: str = "text"
    branch: str = ""
    total: int | None = None
    pictures: Sequence[np.ndarray | None] | None = None
    frame_rate: float = FRAME_RATE


def cloud_of(index: Index, most: int = MOST) -> Cloud:
    """The items of an index; of more than `most` a random sample, the same each time, and of indexes of one
    length the same rows. Raises ExplorerError where `most` is below 1."""
    if most < 1:
        raise ExplorerError(f"most: {most}, expected at least one item.")
    numbers = np.arange(len(index))
    if len(index) > most:
        numbers = np.sort(np.random.default_rng(0).choice(len(index), most, replace=False))
    of = index.metadata
    return Cloud(
        name=index.path.stem,
        rows=rows_of(index, numbers),
        vectors=index.matrix[numbers],
        modality=of["modality"],
        reads=of["reads"],
        branch=of["branch"],
        total=len(index),
        frame_rate=of.get("frame_rate", FRAME_RATE),
    )


def write_explorer(
    folder: str | Path,
    clouds: Sequence[Cloud],
    right: str | None = None,
    partners: Sequence[Sequence[int]] | None = None,
    quick: bool = False,
) -> Path:
    """Write the page of some clouds in one space, and return its path. right: a column by which neighbours
    are marked: right where it holds the same, else wrong. partners: instead of it, for each item the numbers
    of those that are right; items of all clouds are numbered together. quick: no map that takes long. Raises
    ExplorerError where `folder` holds anything else, where nothing can be shown, and where no item has the
    column."""
    folder = Path(folder)
    check_clouds(clouds, right)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    empty(folder)
    previews = [
        write_previews(cloud, folder / "media" / str(number), f"media/{number}")
        for number, cloud in enumerate(clouds)
    ]
    data = page_data(clouds, [preview for made in previews for preview in made], right, partners, quick)
    write_text(folder / "data.js", f"{DATA}{json.dumps(data, separators=(',', ':'), allow_nan=False)};\n")
    shutil.copyfile(STYLE, folder / "report.css")
    for name in ("explorer.css", "map.js", "explorer.js", "index.html"):
        shutil.copyfile(PAGE / name, folder / name)
    return folder / "index.html"


def check_clouds(clouds: Sequence[Cloud], right: str | None) -> None:
    if not any(len(cloud.rows) for cloud in clouds):
        raise ExplorerError("explorer: there are no items. Expected an index with at least one.")
    for cloud in clouds:
        shapes = len(cloud.rows), clouds[0].vectors.shape[1]
        if cloud.vectors.shape != shapes:
            raise ExplorerError(
                f"explorer: {cloud.name}: embeddings of shape {list(cloud.vectors.shape)}, expected"
                f" {list(shapes)}: one for each item, and of one width in all clouds."
            )
    if right is not None:
        check_column(right, columns_of(clouds), "right")


def check_folder(folder: Path) -> None:
    """Raises ExplorerError where the folder holds anything but an earlier explorer."""
    if folder.exists() and not folder.is_dir():
        raise ExplorerError(f"to: {folder} is a file. Expected a folder for the page.")
    others = [path for path in folder.glob("*") if path.name != "data.js.tmp"]  # of a killed process
    if others and not is_explorer(folder):
        raise ExplorerError(
            f"to: {folder} holds other files. Expected a new folder, an empty one, or an earlier page."
        )


def is_explorer(folder: Path) -> bool:
    data = folder / "data.js"
    with open(data if data.is_file() else os.devnull, "rb") as file:
        return file.read(len(DATA)) == DATA.encode()


def empty(folder: Path) -> None:
    """Take away what an earlier page shows: what is there later is whole, since the page comes last."""
    (folder / "index.html").unlink(missing_ok=True)
    write_text(folder / "data.js", DATA + "null;\n")
    shutil.rmtree(folder / "media", ignore_errors=True)


# ---- pictures, clips and sounds ----


def write_previews(cloud: Cloud, folder: Path, address: str) -> list[Preview]:
    """The previews of all items, written into `folder`; their names begin with `address`, as the page sees
    them."""
    folder.mkdir(parents=True)
    order = sorted(range(len(cloud.rows)), key=lambda i: place_of(cloud.rows[i]))
    parts = [order[first : first + AT_ONCE] for first in range(0, len(order), AT_ONCE)]
    spent = [0]

    def write(part: list[int]) -> list[Preview]:
        with Previews(folder, cloud.modality, cloud.reads, cloud.frame_rate, spent) as previews:
            return [
                previews.write(str(i), cloud.rows[i], None if cloud.pictures is None else cloud.pictures[i])
                for i in part
            ]

    made: dict[int, Preview] = {}
    bar = tqdm(total=len(order), desc=f"pictures of {printable_lines(cloud.name)}", unit="item", delay=1)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for part, written in zip(parts, pool.map(write, parts)):
            made |= zip(part, written)
            bar.update(len(part))
    if failed := [i for i in sorted(made) if made[i].cause]:
        item, cause = cloud.rows[failed[0]]["item"], made[failed[0]].cause
        tqdm.write(
            printable_lines(
                f"{cloud.name}: {len(failed):,} of {len(made):,} items are not shown, or not whole."
                f" The first, {item}: {cause}"
            )
        )
    return [made[i].at(address) for i in range(len(cloud.rows))]


def place_of(row: dict[str, Any]) -> tuple[str, float]:
    return str(row["item"]), row.get("start_seconds") or 0.0


# ---- data ----


def page_data(
    clouds: Sequence[Cloud],
    previews: Sequence[Preview],
    right: str | None,
    partners: Sequence[Sequence[int]] | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """What the page knows. Items of all clouds are numbered together, cloud after cloud; lists have one entry
    for each. `near`: {similarity, numbers}: of each item, for each cloud, its neighbours there."""
    rows = [row for cloud in clouds for row in cloud.rows]
    known = columns_of(clouds)
    return {
        "clouds": [
            {
                "name": printable_lines(cloud.name),
                "modality": printable_lines(cloud.modality),
                "branch": printable_lines(cloud.branch),
                "reads": cloud.reads,
                "count": len(cloud.rows),
                "total": cloud.total or len(cloud.rows),
            }
            for cloud in clouds
        ],
        "items": [shown(row["item"]) for row in rows],
        "seconds": [seconds_of(row) for row in rows],
        "columns": [
            {"name": printable_lines(name), "values": [shown(row.get(name)) for row in rows]}
            for name in known
        ],
        "right": None if right is None else known.index(right),
        "partners": partners,
        "maps": [
            {"name": found.name, "note": found.note, "places": [of_axis(axis) for axis in found.places.T]}
            for found in maps(joined(clouds), quick)
        ],
        "near": [all_near(clouds, number) for number in range(len(clouds))],
        **{
            kind: [vars(preview)[kind] for preview in previews]
            for kind in ("picture", "clip", "sound", "cause")
        },
    }


def columns_of(clouds: Sequence[Cloud]) -> list[str]:
    """The columns of all clouds, in order, each once."""
    return list(
        dict.fromkeys(name for cloud in clouds for row in cloud.rows for name in row if name not in OWN)
    )


def joined(clouds: Sequence[Cloud]) -> np.ndarray:
    return np.concatenate([cloud.vectors.astype(np.float32, copy=False) for cloud in clouds])


def seconds_of(row: dict[str, Any]) -> list[float] | None:
    if row.get("start_seconds") is None or row.get("end_seconds") is None:
        return None
    return [round(row["start_seconds"], 3), round(row["end_seconds"], 3)]


def of_axis(places: np.ndarray) -> list[float | None]:
    return [round(float(place), 5) if math.isfinite(place) else None for place in places]


def all_near(clouds: Sequence[Cloud], number: int) -> dict[str, list]:
    """Neighbours in the cloud of this number: of each item of all clouds up to NEAREST, without itself."""
    first = sum(len(cloud.rows) for cloud in clouds[:number])
    matrix = clouds[number].vectors.astype(np.float32, copy=False)
    similarity, places = neighbours(joined(clouds), matrix, min(NEAREST + 1, len(matrix)))
    found: dict[str, list] = {"similarity": [], "numbers": []}
    for item, (near, values) in enumerate(zip(places, similarity)):
        kept = [k for k in range(len(near)) if near[k] >= 0 and first + near[k] != item][:NEAREST]
        found["numbers"].append([first + int(near[k]) for k in kept])
        found["similarity"].append([round(float(values[k]), 3) for k in kept])
    return found
