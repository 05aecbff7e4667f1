"""What a trained branch reads: items -> raw views, as evaluations read them."""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vicjoint.batch import concatenate
from vicjoint.data import READ_ERRORS, Reads, TimeLimit, cause_of
from vicjoint.data.reading import build_readers
from vicjoint.files.cells import CellError, as_path
from vicjoint.parts import Modality, Pair, Raw, Side
from vicjoint.recipe import Recipe, RecipeError, TaskSpec
from vicjoint.registry import build
from vicjoint.sliding import Sliding, Span

AT_ONCE = 64  # views in one forward pass


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from. folder: as given. step: of a run's checkpoint; None: of an export. model:
    a short hash of all of the model's weights."""

    folder: Path
    recipe: Recipe
    branch: str
    step: int | None
    model: str

    @property
    def task(self) -> TaskSpec:
        """The first one that trains the branch: its pair says how the branch is read."""
        return next(task for task in self.recipe.tasks if self.branch in (task.a, task.b))

    @property
    def side(self) -> Side:
        return "a" if self.task.a == self.branch else "b"


class ItemReader:
    """Reads what the cells of a branch's column may hold, as evaluation does. It travels to processes that
    read. Raises RecipeError where the branch reads no files of its own."""

    def __init__(self, origin: Origin):
        recipe, task = origin.recipe, origin.task
        self.side: Side = origin.side
        readers = build_readers(recipe)
        self.pair: Pair = build("pair", task.pair)
        two, data = (readers[task.a], readers[task.b]), recipe.data
        self.pair.read_by(two, data.video_backend, data.frame_rate)
        self.modality: Modality = readers[origin.branch]
        self.timeout, self.followed = recipe.data.timeout, False
        self._check(task)

    def _check(self, task: TaskSpec) -> None:
        by_modality = type(self.modality).read is not Modality.read
        if not (by_modality if self.pair.uses_readers else "path" in self.pair.reads):
            what = f"modality {type(self.modality).__name__}" if self.pair.uses_readers else "pair"
            raise RecipeError(
                f"{what} '{task.pair['name']}' does not read files or texts by itself, so none can be"
                " embedded. Call the encoder on raw views: encoder(view)."
            )

    @property
    def reads(self) -> Literal["file", "text", "numbers"]:
        return self.modality.reads if self.pair.uses_readers else "file"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the files that it reads; (): any."""
        return self.modality.suffixes if self.pair.uses_readers else self.pair.suffixes

    @property
    def timed(self) -> bool:
        """Whether a window can slide over an item."""
        return self.modality.timed if self.pair.uses_readers else "spread" in self.pair.gives

    def read(self, value: Any) -> Raw:
        """The raw view of one item, with a leading dimension of 1. Raises ValueError or OSError."""
        if self.reads == "text" or ".tar" in self.suffixes:
            return self.pair.read_item(value, self.side)
        with as_path(value) as path:
            return self.pair.read_item(path, self.side)

    def with_targets(self) -> "ItemReader":
        """One whose windows come with the view of branch b that follows. Raises RecipeError where there is
        none."""
        if self.side == "b" or "windows" not in self.pair.gives:
            raise RecipeError(
                "--surprise: asks how well a frame is foreseen from the clip before it, which is the work of"
                " branch a with the pair next_frame. Leave it out."
            )
        found = copy.copy(self)
        found.followed = True
        return found

    def slide(self, value: Any, every: float) -> Sliding:
        if not isinstance(value, str):
            raise CellError("no window slides over what lies in a cell or a tar file: write it to a file")
        if self.followed:
            return self.pair.slide_followed(value, every)
        return self.pair.slide(value, self.side, every)


class Place(NamedTuple):
    """An item: its number and value; and of a file over which a window slides, the windows from number
    `first` up to `last`, without it."""

    number: int
    value: Any
    first: int = 0
    last: int = 1


class Row(NamedTuple):
    """What a row of features is of: the number of an item and, of a window, its seconds."""

    number: int
    span: Span | None


class Bad(NamedTuple):
    number: int
    span: Span | None
    cause: str


@dataclass
class Chunk:
    """What was read of some places: raw views, or None where there are none, the row of each, and what could
    not be read."""

    raw: Raw | None
    rows: list[Row]
    bad: list[Bad]


class ReadItems(Reads):
    """Place -> (views, their rows, bad ones). `every`: seconds from one window to the next; None: no window
    slides. The file of the last place stays open."""

    def __init__(self, reader: ItemReader, every: float | None = None, at_once: int = AT_ONCE):
        self.reader, self.every = reader, every
        # one place may be as many windows
        seconds = reader.timeout if every is None or reader.timeout is None else reader.timeout * at_once
        self.limit = TimeLimit(seconds)
        self._open: tuple[int, Sliding] | None = None

    def name(self, number: int, index: int) -> str:
        return str(index)

    def __getitem__(self, place: Place) -> tuple[list[Raw], list[Row], list[Bad]]:
        views: list[Raw] = []
        rows: list[Row] = []
        bad: list[Bad] = []
        try:
            with self.limit.reading(0, place.number, str(place.number)):
                if isinstance(place.value, Exception):  # an empty cell
                    raise place.value
                if self.every is None:
                    views.append(self.reader.read(place.value))
                    rows.append(Row(place.number, None))
                else:
                    self._windows(place, views, rows, bad)
        except READ_ERRORS as error:
            bad.append(Bad(place.number, None, cause_of(error)))
        return views, rows, bad

    def _windows(self, place: Place, views: list[Raw], rows: list[Row], bad: list[Bad]) -> None:
        sliding = self.opened(place.number, place.value)
        if not 0 < place.last <= len(sliding.spans):
            raise ValueError(
                "the file is not as it was when its windows were counted. Begin with another --to"
            )
        at = place.first
        while at < place.last:
            try:
                for view in sliding.read(at, place.last):
                    views.append(view)
                    rows.append(Row(place.number, sliding.spans[at]))
                    at += 1
            except READ_ERRORS as error:
                bad.append(Bad(place.number, sliding.spans[at], cause_of(error)))
                at += 1

    def opened(self, number: int, value: Any) -> Sliding:
        """The windows of an item. Raises as the modality does."""
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self.close()
        self._open = number, self.reader.slide(value, self.every or 0.0)
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def collate(read: list[tuple[list[Raw], list[Row], list[Bad]]]) -> Chunk:
    views, rows, bad = (list(itertools.chain.from_iterable(part)) for part in zip(*read))
    return Chunk(concatenate(views) if views else None, rows, bad)
