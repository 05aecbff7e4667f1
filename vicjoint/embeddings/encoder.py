"""A trained branch that reads for itself: items -> raw views, as evaluations read them -> y or z.

encoder = vicjoint.load_encoder("runs/image_text/1", branch="a")
y_ND = encoder.embed(["a.png", "b.png"])
z_NE, bad = encoder.embed(paths, space="embedding", errors="skip")      # bad: [(index, cause), ...]
tokens = encoder.embed(["a.png", "b.png"], level="tokens")              # [[T, D], [T, D]]
"""

# N items, B batch, D representation, E embedding

import contextlib
import hashlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, cast, get_args, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vicjoint.batch import to_device
from vicjoint.data import Readers
from vicjoint.embeddings.reading import AT_ONCE, Bad, Chunk, ItemReader, Origin, Place, ReadItems, collate
from vicjoint.files.guard import printable
from vicjoint.model import Branch, Model
from vicjoint.parts import Raw, Space
from vicjoint.tokens import Tokens, each_step, steps_of, tokens_of

AHEAD = 2  # batches that have been read and wait for the encoder
SPACES: tuple[str, ...] = get_args(Space)
Level = Literal["pooled", "tokens", "map"]
LEVELS: tuple[str, ...] = get_args(Level)
SHOWN = 60  # characters of an item in a message


def hash_of(model: nn.Module) -> str:
    """12 hexadecimal digits that differ where weights differ."""
    return hash_of_state(model.state_dict())


def hash_of_state(state: Mapping[str, Tensor]) -> str:
    """The same of tensors by name."""
    found = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


class Beside:
    """Encodes in a thread beside the process that reads. `seconds`: for how long it has been at work."""

    def __init__(self, encode: Callable[[Raw], Any]):
        self._encode, self.seconds = encode, 0.0

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Chunks in order, and of each its B features; None where nothing of it could be read."""
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

    def _timed(self, raw: Raw) -> Any:
        began = time.perf_counter()
        try:
            return self._encode(raw)
        finally:
            self.seconds += time.perf_counter() - began

    @staticmethod
    def _done(chunk: Chunk, future: Future | None) -> tuple[Chunk, Any]:
        chunk.raw = None  # it is not needed any more
        return chunk, None if future is None else future.result()


def finite(chunk: Chunk, x: Any) -> Any:
    """The features [B, D], or the Tokens of B views, without those that are no numbers, which become bad ones
    of the chunk."""
    whole = [bool(torch.isfinite(one if isinstance(one, Tensor) else one.x).all()) for one in x]
    if all(whole):
        return x
    kept = []
    for row, good in zip(chunk.rows, whole):
        if good:
            kept.append(row)
        else:
            chunk.bad.append(Bad(*row, "the encoder gives values that are not finite (NaN or infinite)"))
    chunk.rows = kept
    return x[torch.tensor(whole)] if isinstance(x, Tensor) else list(itertools.compress(x, whole))


class Head(nn.Module):
    """y [B, D], or where it `looks_back` y of each step [B, T, D] -> z [B, E]: the expander and, of branch a
    with a predictor, its prediction of b's z."""

    def __init__(self, model: Model, origin: Origin):
        super().__init__()
        self.expander = cast(Branch, model.branches[origin.branch]).expander
        self.width: int = origin.recipe.branches[origin.branch].expander[-1]
        self.guess = None
        self.conditional = origin.side == "a" and model.conditioning is not None
        self.looks_back = origin.side == "a" and model.looks_back
        if origin.side == "a" and model.predictor is not None:
            self.guess = Model({}, [], predictor=model.predictor, prior=model.prior)
            self.guess.choice = model.choice

    def forward(self, y: Tensor) -> Tensor:
        z = each_step(self.expander, y)
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
        self._other = (cast(Branch, model.branches[origin.task.b]),)
        self._reader: ItemReader | None = None

    def forward(self, view):
        return self.encoder(self.modality(view))

    def tokens(self, view) -> Tokens:
        """y before it is pooled, on the device: x [B, T, D] float32, its mask and, where the encoder knows
        it, the grid that the tokens lie on. Raises ValueError where the encoder gives none."""
        return tokens_of(self.encoder, self.modality(view))

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
        """Of a row of features. Raises ValueError where files alone do not give any."""
        if space == "embedding" and self._head[0].conditional:
            raise ValueError(
                f"space: embedding: branch '{self.origin.branch}' predicts with a condition"
                " (pair.condition), which an item alone does not have. Use space representation, which knows"
                " nothing of it, or branch b."
            )
        return cast(int, self.dim) if space == "representation" else self._head[0].width

    @torch.no_grad()
    def encode(self, raw: Raw, space: Space = "representation") -> Tensor:
        """Features float32 [B, width(space)] of raw views, on the CPU."""
        head, raw = self._head[0].to(self.device), to_device(raw, self.device)
        if space == "representation":
            return self(raw).float().cpu()
        y = steps_of(self.encoder, self.modality(raw)) if head.looks_back else self(raw)
        return head(y).float().cpu()

    @torch.no_grad()
    def encode_followed(self, raw: tuple[Raw, Raw], space: Space = "representation") -> Tensor:
        """Of (views of branch a, views of b that follow them) the features of a, and as a last column the
        squared error of the prediction: float32 [B, width(space) + 1], on the CPU."""
        view, target = to_device(raw, self.device)
        error = (
            self.encode(view, "embedding") - self._other[0].to(self.device)(target).float().cpu()
        ).square()
        return torch.cat([self.encode(view, space), error.sum(1, keepdim=True)], 1)

    @torch.no_grad()
    def encode_tokens(self, raw: Raw) -> list[Tokens]:
        """Of each raw view its tokens, x [T, D] float32 on the CPU. Raises ValueError where the encoder gives
        none."""
        x, mask, grid = self.tokens(to_device(raw, self.device))
        kept = (one[of] for one, of in zip(x.cpu(), cast(Tensor, mask).cpu()))
        return [Tokens(one, grid=grid) for one in kept]

    def _map(self, tokens: Tokens) -> Tensor:
        """Of one view, [H', W', D]. Raises ValueError where the tokens lie on no grid."""
        if tokens.grid is None:
            raise ValueError(
                f"level: map: the tokens of encoder {type(self.encoder).__name__} lie on no grid that it"
                " knows of. Use level: tokens."
            )
        return tokens.x[len(tokens.x) - math.prod(tokens.grid) :].unflatten(0, tokens.grid)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In evaluation mode while entered."""
        before = self.training
        self._head[0].eval()
        self._other[0].eval()
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
        level: Literal["pooled"] = ...,
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
        level: Literal["pooled"] = ...,
    ) -> tuple[Tensor, list[tuple[int, str]]]: ...

    @overload
    def embed(
        self,
        items: Sequence[Any],
        space: Space = ...,
        errors: Literal["raise"] = ...,
        batch_size: int = ...,
        workers: int = ...,
        *,
        level: Literal["tokens", "map"],
    ) -> list[Tensor]: ...

    @overload
    def embed(
        self,
        items: Sequence[Any],
        space: Space = ...,
        *,
        errors: Literal["skip"],
        batch_size: int = ...,
        workers: int = ...,
        level: Literal["tokens", "map"],
    ) -> tuple[list[Tensor], list[tuple[int, str]]]: ...

    def embed(
        self,
        items: Sequence[Any],
        space: Space = "representation",
        errors: Literal["raise", "skip"] = "raise",
        batch_size: int = AT_ONCE,
        workers: int = 0,
        level: Level = "pooled",
    ) -> Any:
        """Features float32 [N, dim] on the CPU of what the cells of the branch's column may hold (paths,
        texts, SMILES, sequences), read as an evaluation reads them, on the device that the encoder is on.

        space: "representation", y; or "embedding", z behind the expander, which is what can be compared
        between branches; of branch a with a predictor, its prediction. errors: "raise": ValueError with the
        name and the cause of the first item that cannot be read; "skip": (features of the others, [(index,
        cause), ...]). batch_size: of a forward pass. workers: processes that read; 0: this one. level:
        "pooled": one vector an item; "tokens": y before it is pooled, a list of [T, D]; "map": the tokens
        that lie on a grid, a list of [H', W', D], [T', H', W', D] or [T', D]; ValueError where the encoder
        gives none."""
        paths = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in checked(items)]
        known = ("space", space, SPACES), ("errors", errors, ("raise", "skip")), ("level", level, LEVELS)
        for name, value, expected in known:
            if value not in expected:
                *first, last = expected
                raise ValueError(f"{name}: '{value}' is unknown. Expected {', '.join(first)} or {last}.")
        if level != "pooled" and space != "representation":
            raise ValueError(
                f"space: {space} is made of y, and with level: {level} y is not pooled yet. Leave out one of"
                " the two."
            )
        width = self.width(space)
        places = [Place(number, value) for number, value in enumerate(paths)]
        batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        pooled = level == "pooled"
        encode = Beside(lambda raw: self.encode(raw, space) if pooled else self.encode_tokens(raw))
        found, bad = [], []
        bar = tqdm(total=len(paths), unit="item", desc="embed", leave=False, delay=1, dynamic_ncols=True)
        with self.evaluating(), bar, Readers(ReadItems(self.reader), batches, collate, workers) as readers:
            for chunk, x in encode(readers):
                found += [] if x is None else [finite(chunk, x)]
                bad += [(number, cause) for number, _, cause in sorted(chunk.bad)]
                if bad and errors == "raise":
                    number, cause = bad[0]
                    raise ValueError(f"item {number}: {named(paths[number], cause)}")
                bar.update(len(chunk.rows) + len(chunk.bad))
        if pooled:
            found = torch.cat([torch.zeros(0, width), *found])
        else:
            every = itertools.chain.from_iterable(found)
            found = [one.x if level == "tokens" else self._map(one) for one in every]
        return found if errors == "raise" else (found, bad)


def checked(items: Sequence[Any]) -> Sequence[Any]:
    """Raises ValueError for a single item."""
    if isinstance(items, (str, bytes, os.PathLike)):
        raise ValueError(f"items: expected a list of items, got one: {items!r:.{SHOWN}}. Put it into a list.")
    return items


def named(value: Any, cause: str) -> str:
    """A cause with the item before it, where it does not begin with that itself."""
    name = str(value)
    return printable(cause if cause.startswith(name) else f"{printable(name, SHOWN)}: {cause}")
