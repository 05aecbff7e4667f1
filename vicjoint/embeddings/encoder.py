"""A trained branch that reads for itself: items -> raw views, as evaluations read them -> y or z.

encoder = vicjoint.load_encoder("runs/image_text/1", branch="a")
y_ND = encoder.embed(["a.png", "b.png"])
z_NE, bad = encoder.embed(paths, space="embedding", errors="skip")      # bad: [(index, cause), ...]
"""

# N items, B batch, D representation, E embedding

import contextlib
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vicjoint.batch import concatenate, to_device
from vicjoint.data import READ_ERRORS, Readers, Reads, TimeLimit, cause_of
from vicjoint.data.reading import build_readers
from vicjoint.files.cells import CellError, as_path
from vicjoint.files.guard import printable
from vicjoint.model import Branch, Model
from vicjoint.parts import Modality, Pair, Raw, Side, Space
from vicjoint.recipe import Recipe, RecipeError, TaskSpec
from vicjoint.registry import build
from vicjoint.sliding import Sliding, Span

AT_ONCE = 64  # views in one forward pass
AHEAD = 2  # batches that have been read and wait for the encoder
SPACES: tuple[str, ...] = get_args(Space)
SHOWN = 60  # characters of an item in a message


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


def hash_of(model: nn.Module) -> str:
    """12 hexadecimal digits that differ where weights differ."""
    found = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- reading ----


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
        self.timeout = recipe.data.timeout
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

    def slide(self, value: Any, every: float) -> Sliding:
        if not isinstance(value, str):
            raise CellError("no window slides over what lies in a cell or a tar file: write it to a file")
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


# ---- encoding ----


class Beside:
    """Encodes in a thread beside the process that reads. `seconds`: for how long it has been at work."""

    def __init__(self, encode: Callable[[Raw], Tensor]):
        self._encode, self.seconds = encode, 0.0

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Tensor | None]]:
        """Chunks in order, and of each its features [B, D]; None where nothing of it could be read."""
        waiting: deque[tuple[Chunk, Future | None]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                for chunk in chunks:
                    waiting.append((chunk, pool.submit(self._timed, chunk.raw) if chunk.rows else None))
                    if len(waiting) > AHEAD:
                        yield self._done(*waiting.popleft())
                while waiting:
                    yield self._done(*waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _timed(self, raw: Raw) -> Tensor:
        began = time.perf_counter()
        try:
            return self._encode(raw)
        finally:
            self.seconds += time.perf_counter() - began

    @staticmethod
    def _done(chunk: Chunk, future: Future | None) -> tuple[Chunk, Tensor | None]:
        chunk.raw = None  # it is not needed any more
        return chunk, None if future is None else future.result()


def finite(chunk: Chunk, x: Tensor) -> Tensor:
    """The features [B, D] without those that are no numbers, which become bad ones of the chunk."""
    whole = torch.isfinite(x).all(1)
    if whole.all():
        return x
    kept = []
    for row, good in zip(chunk.rows, whole.tolist()):
        if good:
            kept.append(row)
        else:
            chunk.bad.append(Bad(*row, "the encoder gives values that are not finite (NaN or infinite)"))
    chunk.rows = kept
    return x[whole]


class Head(nn.Module):
    """y [B, D] -> z [B, E]: the expander and, of branch a with a predictor, its prediction of b's z."""

    def __init__(self, model: Model, origin: Origin):
        super().__init__()
        self.expander = cast(Branch, model.branches[origin.branch]).expander
        self.width: int = origin.recipe.branches[origin.branch].expander[-1]
        self.guess = None
        if origin.side == "a" and model.predictor is not None:
            self.guess = Model({}, [], predictor=model.predictor)
            self.guess.choice = model.choice

    def forward(self, y: Tensor) -> Tensor:
        z = self.expander(y)
        return z if self.guess is None else self.guess.predict(z)


class RepresentationModel(nn.Module):
    """Raw view (uint8 pixels, ...) -> representation y [B, dim]: the modality's normalisation and the
    encoder. `embed` reads files and texts. origin: the run or export that it comes from."""

    def __init__(self, model: Model, origin: Origin):
        super().__init__()
        branch = cast(Branch, model.branches[origin.branch])
        self.modality, self.encoder, self.dim = branch.modality, branch.encoder, branch.encoder.dim
        self.origin = origin
        self._head = (Head(model, origin),)  # in a tuple: this module's tensors are those that give y
        self._reader: ItemReader | None = None

    def forward(self, view):
        return self.encoder(self.modality(view))

    @property
    def reader(self) -> ItemReader:
        """What reads its items. Raises RecipeError where nothing does."""
        if self._reader is None:
            self._reader = ItemReader(self.origin)
        return self._reader

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers(), [torch.zeros(0)])).device

    def width(self, space: Space) -> int:
        """Of a row of features."""
        return cast(int, self.dim) if space == "representation" else self._head[0].width

    @torch.no_grad()
    def encode(self, raw: Raw, space: Space = "representation") -> Tensor:
        """Features float32 [B, width(space)] of raw views, on the CPU."""
        y = self(to_device(raw, self.device))
        return (y if space == "representation" else self._head[0].to(self.device)(y)).float().cpu()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In evaluation mode while entered."""
        before = self.training
        self._head[0].eval()
        self.eval()
        try:
            yield
        finally:
            self.train(before)

    @overload
    def embed(
        self,
        items: Sequence[Any],
        space: Space = ...,
        errors: Literal["raise"] = ...,
        batch_size: int = ...,
        workers: int = ...,
    ) -> Tensor: ...

    @overload
    def embed(
        self,
        items: Sequence[Any],
        space: Space = ...,
        *,
        errors: Literal["skip"],
        batch_size: int = ...,
        workers: int = ...,
    ) -> tuple[Tensor, list[tuple[int, str]]]: ...

    def embed(
        self,
        items: Sequence[Any],
        space: Space = "representation",
        errors: Literal["raise", "skip"] = "raise",
        batch_size: int = AT_ONCE,
        workers: int = 0,
    ) -> Tensor | tuple[Tensor, list[tuple[int, str]]]:
        """Features float32 [N, dim] on the CPU of what the cells of the branch's column may hold (paths,
        texts, SMILES, sequences), read as an evaluation reads them, on the device that the encoder is on.

        space: "representation", y; or "embedding", z behind the expander, which is what can be compared
        between branches; of branch a with a predictor, its prediction. errors: "raise": ValueError with the
        name and the cause of the first item that cannot be read; "skip": (features of the others, [(index,
        cause), ...]). batch_size: of a forward pass. workers: processes that read; 0: this one."""
        paths = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in checked(items)]
        for name, value, known in (("space", space, SPACES), ("errors", errors, ("raise", "skip"))):
            if value not in known:
                raise ValueError(f"{name}: '{value}' is unknown. Expected {' or '.join(known)}.")
        places = [Place(number, value) for number, value in enumerate(paths)]
        batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        encode = Beside(lambda raw: self.encode(raw, space))
        found, bad = [torch.zeros(0, self.width(space))], []
        bar = tqdm(total=len(paths), unit="item", desc="embed", leave=False, delay=1, dynamic_ncols=True)
        with self.evaluating(), bar, Readers(ReadItems(self.reader), batches, collate, workers) as readers:
            for chunk, x in encode(readers):
                found += [] if x is None else [finite(chunk, x)]
                bad += [(number, cause) for number, _, cause in sorted(chunk.bad)]
                if bad and errors == "raise":
                    number, cause = bad[0]
                    raise ValueError(f"item {number}: {named(paths[number], cause)}")
                bar.update(len(chunk.rows) + len(chunk.bad))
        return torch.cat(found) if errors == "raise" else (torch.cat(found), bad)


def checked(items: Sequence[Any]) -> Sequence[Any]:
    """Raises ValueError for a single item."""
    if isinstance(items, (str, bytes, os.PathLike)):
        raise ValueError(f"items: expected a list of items, got one: {items!r:.{SHOWN}}. Put it into a list.")
    return items


def named(value: Any, cause: str) -> str:
    """A cause with the item before it, where it does not begin with that itself."""
    name = str(value)
    return printable(cause if cause.startswith(name) else f"{printable(name, SHOWN)}: {cause}")
