"""The contracts of reading: source, modality and pair, from a record to raw views."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from vicjoint.orders import MixedOrder, ShardOrder
from vicjoint.sliding import Sliding, spans
from vicjoint.wants import Side, Split

Record = dict[str, Any]
"""One sample of a source: its `id`, where it is (`path`, `bytes` or the cells of a row), and labels."""

Raw = Any
"""A raw view, with a leading dimension of samples: a tensor, a tuple of tensors, or an object with `len`,
`to(device)`, `view[start:end]` and a static `concatenate(views)`."""


class Source:
    """Where samples are: records, listed and split. Reading what they name is the work of a pair.

    train, test: the records of each split; `id` names one in messages. second: where branch b's records stand
    in another table, those of its splits; None: both branches read one record."""

    train: Sequence[Record]
    test: Sequence[Record]
    second: Mapping[str, Sequence[Record]] | None = None

    root_is_a_path: ClassVar[bool] = True
    """Whether a recipe's `source.root` has to exist; False: it may be a pattern or the id of a hub."""

    def describe(self) -> str:
        """One line: what it is, where, how many records of each split, and what there is not used."""
        return f"{type(self).__name__}: {len(self.train)} train, {len(self.test)} test records"

    def records(self, split: Split, side: Side = "a") -> Sequence[Record]:
        """The records that a branch reads in a split: b's are the second table's, where there is one."""
        if side == "b" and self.second is not None:
            return self.second[split]
        return self.train if split == "train" else self.test

    def ids(self, split: Split, side: Side = "a") -> Iterable[str]:
        """The records' ids, in order; nothing is read for them."""
        return (record["id"] for record in self.records(split, side))

    def lacks(self, split: Split, key: str) -> np.ndarray | None:
        """bool [N]: which records of a split have no value under a key, where a source knows that without
        reading them; None: it does not. Of records in a list it is looked up."""
        return None

    def order(self, split: Split) -> ShardOrder | MixedOrder | None:
        """What the order of an epoch has to keep to; None: nothing, any record costs as much as another."""
        return None


class Modality(nn.Module):
    """How one sample is read, and how a batch of them becomes the view of an encoder.

    One class, two uses: a reader in the processes that read (`read`, `seconds`), and a module of the model on
    the training device (`forward`). Options are the constructor's."""

    reads: ClassVar[Literal["file", "text", "numbers"]] = "file"
    """What a cell of a table is: a path, which the pair resolves against the table's folder; the value; or a
    list of numbers, which comes as an array, and may also be a path."""

    timed: ClassVar[bool] = False
    """Whether samples have a time axis: `window` cuts the same seconds out of both halves of a pair."""

    accepts: ClassVar[tuple[str, ...]] = ()
    """Other modalities whose encoders also fit: a drawing is an image."""

    baseline: ClassVar[str] = "simple"
    """Name of the row that `simple_features` gives in evaluations."""

    shared: ClassVar[tuple[str, ...]] = ()
    """Options that an encoder with an option of the same name takes from its modality."""

    reading: ClassVar[tuple[str, ...]] = ()
    """Options that only `read` uses; a recipe whose pair reads for itself must not set them."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the files that it reads, in lower case; .tar: also those inside of tar files; /: folders of
    pictures; (): any."""

    opens_inside: ClassVar[bool] = False
    """Whether files are opened by `vicjoint.video` or `vicjoint.files.sound` alone, which open those inside
    of tar files in place; others get a copy in the system's temporary folder."""

    several: ClassVar[bool] = False
    """Whether `read_several` takes less than as many calls of `read`."""

    def __init_subclass__(cls, **options):
        """A class that replaces `read`, and inherits `read_several` or `slide`, gets those that call it."""
        super().__init_subclass__(**options)
        read, read_several, slide = (
            next(place for place, of in enumerate(cls.__mro__) if name in vars(of))
            for name in ("read", "read_several", "slide")
        )
        if read < read_several:
            cls.read_several, cls.several = Modality.read_several, False
        if read < slide:
            cls.slide = Modality.slide

    video_backend: str = "auto"
    frame_rate: float = 25.0
    """The recipe's `data.video_backend` and `data.frame_rate`, in a reader; for modalities that open
    videos."""

    def read(
        self, value: Any, rng: np.random.Generator | None = None, window: tuple[float, float] | None = None
    ) -> Raw:
        """The raw view of one sample, with a leading dimension of 1. All randomness comes from `rng`; None:
        as in evaluation, without augmentation. `window`: (start, length) in seconds, for timed modalities;
        None: the modality's own choice. Raises ValueError or OSError with the cause."""
        raise NotImplementedError(f"modality '{type(self).__name__}' does not read files")

    def read_several(
        self, value: Any, rngs: Sequence[np.random.Generator], windows: Sequence[tuple[float, float] | None]
    ) -> list[Raw]:
        """What `read` gives of one value for each of these, to the last bit."""
        return [self.read(value, rng, window) for rng, window in zip(rngs, windows)]

    def seconds(self, value: Any) -> float:
        """Length of a sample in seconds, for timed modalities. Raises as `read` does."""
        raise NotImplementedError(f"modality '{type(self).__name__}' has no time axis")

    def slide(self, value: Any, every: float, length: float | None = None) -> Sliding:
        """Windows from 0, every, 2 every, ... seconds on, for timed modalities. `length`: theirs in seconds;
        None: what the modality reads by itself. Raises as `read` does."""
        found = spans(str(value), self.seconds(value), length, every)
        return Sliding(found, lambda start: self.read(value, None, (start, length or 0.0)))

    def forward(self, raw: Raw) -> Any:
        """The view that encoders of this modality expect, of a raw batch on their device."""
        return raw

    def simple_features(self, raw: Raw) -> Tensor | None:
        """Features [B, K] float of a raw batch that need no training, for the baseline row, or None."""
        return None

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        """What other programs have to do to a sample, in plain values; `shape` and `dtype`: of a raw view's
        samples, where it is one tensor. seconds: of a pair's window; None: the modality's own."""
        return {}


@dataclass(frozen=True)
class Reading:
    """What a recipe knows and a pair does not: the readers of branches a and b, and the records' source."""

    readers: tuple[Modality, Modality]
    source: Source
    video_backend: str = "auto"
    frame_rate: float = 25.0


class View(NamedTuple):
    """What one branch sees of a record in evaluation. `content`: text, equal for equal views (the value of a
    cell, the path of a file and its time window); `key`: what views of the other branch that belong to it
    share, or None where they share a record; `title`: how a person calls it; `item`: the file's path, or the
    text, that shows it, or "" for the raw view alone; `seconds`: (start, end) of a window of that file;
    `condition` [1, C]: of branch a, where the pair gives one."""

    raw: Raw
    content: str = ""
    key: str | None = None
    title: str = ""
    item: str = ""
    seconds: tuple[float, float] | None = None
    condition: Tensor | None = None


Gives = Literal["views", "both", "rows", "crops", "windows", "spread"]


class Pair:
    """From a record to two raw views.

    samples_per_record: of every sample's leading dimension (several windows of one video). crops: views of a
    record for branch a, which come as `vicjoint.batch.Crops`. distinct: a column whose value occurs at most
    once in a batch, or None. group: the column that `group_of` goes by, or None. per_group: records of a
    group that a batch holds where it holds any, or a multiple of them; 1: as many as come."""

    samples_per_record: int = 1
    crops: int = 1
    distinct: str | None = None
    group: str | None = None
    per_group: int = 1
    in_time: ClassVar[bool] = False
    """Whether the samples of a record are in order of time."""

    horizon: int = 1
    """Steps that are predicted, each from the one before or all at once. A pair with a horizon above 1 has an
    option of this name, and gives branch b `vicjoint.batch.Following`."""

    evenly: bool = True
    """Whether a target is as far from what is before it as the steps of a clip from each other."""

    targets: int = 1
    """Of each sample for branch b: of all steps of the horizon, or of the last ones."""

    gives: frozenset[Gives] = frozenset()
    """What evaluations find here. views: `views` gives single views of a branch; both: those of a and b are
    different modalities that belong together; rows: and stand in one record; crops: `views` with rng draws
    random crops; windows: clips of videos and what follows them (`vicjoint.pairs.next_frame`); spread: views
    along the time of a record."""

    uses_readers: ClassVar[bool] = False
    """Whether it reads through the modalities of its branches, rather than by itself."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Keys of a record, one of which holds the file that the pair reads; (): it reads no file of its own."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of such files."""

    conditions: tuple[bool, ...] = ()
    """Of each number of the condition that comes with view a (`vicjoint.batch.Conditioned`), whether it is
    standardised by training records; (): there is none. A pair with conditions has an option `condition`,
    and says this of it when it is built."""

    readers: tuple[Modality, Modality]
    video_backend: str = "auto"
    frame_rate: float = 25.0

    def bind(self, reading: Reading) -> None:
        """Take what the recipe knows, once, before anything is read. Records are not kept: a pair travels to
        the processes that read. Raises ValueError where the parts do not fit."""
        self.read_by(reading.readers, reading.video_backend, reading.frame_rate)

    def read_by(
        self, readers: tuple[Modality, Modality], video_backend: str = "auto", frame_rate: float = 25.0
    ) -> None:
        """All that `read_item` and `slide` need: no source."""
        self.readers, self.video_backend, self.frame_rate = readers, video_backend, frame_rate

    def give_boxes(self) -> None:
        """From now on `sample` gives `vicjoint.batch.Boxed` views, which say where in one picture they look.
        Raises ValueError where it cannot."""
        raise ValueError(
            f"pair '{type(self).__name__}' gives no two views of one picture that say where they look, by"
            " which the objective matches their cells. Use the pair augment, or an objective of whole views,"
            " such as vicreg."
        )

    def read_item(self, value: Any, side: Side) -> Raw:
        """What `views` gives of a record with this path, or value of a cell; or the record of a file in a tar
        file. Raises as `sample` does."""
        if self.uses_readers:
            return self.readers["ab".index(side)].read(value)
        return self.views(value if isinstance(value, dict) else {"id": value, "path": value}, side)[0].raw

    def slide(self, value: Any, side: Side, every: float) -> Sliding:
        """Windows along the time of a file, as long as in training; see Modality."""
        if self.uses_readers:
            return self.readers["ab".index(side)].slide(value, every)
        raise NotImplementedError(f"pair '{type(self).__name__}' has no method slide(value, side, every)")

    def slide_followed(self, value: str, every: float) -> Sliding:
        """Windows of branch a along a file as `slide` gives them, those that a target follows, each a raw
        view (view of a, view of b). every 0: one that begins with each frame. Raises as `sample` does."""
        raise NotImplementedError(f"pair '{type(self).__name__}' has no method slide_followed(value, every)")

    def sample(self, record: Record, rng: np.random.Generator) -> tuple[Raw, Raw]:
        """Raw views of both branches, each of `samples_per_record` samples. All randomness comes from `rng`,
        so a sample is a function of (seed, epoch, index) alone. With `conditions`, a is a
        `vicjoint.batch.Conditioned`. Raises ValueError or OSError where it cannot be read."""
        raise NotImplementedError(f"pair '{type(self).__name__}' has no method sample(record, rng)")

    def sample_several(self, record: Record, rngs: Sequence[np.random.Generator]) -> list[tuple[Raw, Raw]]:
        """What `sample` gives with each of these, to the last bit."""
        return [self.sample(record, rng) for rng in rngs]

    def views(
        self, record: Record, side: Side, rng: np.random.Generator | None = None, read: bool = True
    ) -> list[View]:
        """Every view of one branch as in evaluation (several where a cell holds several values), with a
        leading dimension of 1; with `rng` one view, cropped at random. `read`: False says what there is to
        see and opens no file for it: `raw` is None. Raises as `sample` does."""
        raise NotImplementedError(
            f"pair '{type(self).__name__}' has no method views(record, side, rng, read)"
        )

    def spread(
        self, record: Record, side: Side, number: int, between: tuple[float, float] | None = None
    ) -> list[View]:
        """`number` views of one branch in order of time, as in evaluation: in the middles of as many equal
        parts of the record, or of the seconds `between` (start, end). Raises as `sample` does."""
        raise NotImplementedError(
            f"pair '{type(self).__name__}' has no method spread(record, side, number, between)"
        )

    def conditions_of(self, record: Record) -> Tensor:
        """Conditions [N, C] float32 of a record, as its samples may have them; no view is read for them.
        Raises as `sample` does."""
        raise NotImplementedError(f"pair '{type(self).__name__}' has no method conditions_of(record)")

    def preprocessing(self, side: Side, modality: Modality) -> dict[str, Any]:
        """The modality's, with what this pair, which need not be bound, does in its place."""
        return modality.preprocessing()

    def required(self) -> list[tuple[str, ...]]:
        """Of each tuple, one key has to have a value in a record: one that lacks it is no record of this
        pair."""
        return [self.reads] if self.reads else []

    def group_of(self, record: Record, number: int) -> int:
        """The objective's group id of the record with this number: samples of one group share a source.
        Raises ValueError for a record that has none."""
        return number

    def distinct_of(self, record: Record) -> str | None:
        """The value that may occur once in a batch; None for an empty one, which equals no other."""
        return None if self.distinct is None else record.get(self.distinct)
