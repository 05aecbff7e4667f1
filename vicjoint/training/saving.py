"""What a checkpoint of a run holds, and when it is written: at once, or beside the training.

    with saver_of(parts, folder, begin) as saver:
        saver.save(step)

Model, optimizer and objectives are states that training changes. The rest of a run is a function of the step:
the order of the samples and their random numbers, those of the training step, the learning rate. So nothing
else needs saving, but how far the run's files had got.
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vicjoint import distributed
from vicjoint.training import checkpoint, shards
from vicjoint.training.build import Parts
from vicjoint.training.checkpoint import CheckpointError, Taken
from vicjoint.training.folder import best_step
from vicjoint.training.parallel import is_sharded
from vicjoint.training.stopping import Stopped

APPENDED = ("bad_samples.jsonl",)  # with no step in their lines: their length is saved


class Saver:
    """Writes the checkpoints of a run on the first process, which has all of the model, while it waits.
    `failed`: whether one that is written beside the training could not be; `wait` then raises that."""

    failed = False

    def __init__(self, parts: Parts, folder: Path):
        self.parts, self.folder = parts, folder

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, *_) -> None:
        """What was asked for is on the disk, or this raises CheckpointError."""
        if kind is None or issubclass(kind, Stopped):
            self.wait()

    def save(self, step: int) -> None:
        """The checkpoint after `step` steps, on all processes at once. Raises CheckpointError where it, or
        one before it, cannot be written."""
        if distributed.rank() == 0:
            options = self.parts.recipe.checkpoint
            state = state_of(self.parts, self.folder, step)
            best = self.best()
            checkpoint.save(self.folder / "checkpoints", step, state, options.keep, best)

    def save_now(self, step: int) -> None:
        """`save`, and wait until it is on the disk."""
        self.save(step)
        self.wait()

    def before_evaluation(self, step: int) -> None:
        """Make sure that the first process alone can `save` until the step is over."""

    def wait(self) -> None:
        """Until what was saved is on the disk."""

    def best(self) -> int | None:
        wanted = self.parts.recipe.checkpoint.best
        return best_step(self.folder, wanted) if wanted else None


class ShardedSaver(Saver):
    """Each process writes its shares while the training goes on, one checkpoint at a time. What an evaluation
    finds is saved before it: no process could save alone while the others evaluate."""

    def __init__(self, parts: Parts, folder: Path, begin: int):
        super().__init__(parts, folder)
        self.newest = begin or None  # the step that was saved last, or is being written
        self.group = distributed.group_apart()
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future | None = None

    @property
    def failed(self) -> bool:
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def __exit__(self, kind, *given) -> None:
        try:
            super().__exit__(kind, *given)
        finally:
            self.thread.shutdown(wait=False)

    def save(self, step: int) -> None:
        if step != self.newest:
            self.wait()
            self.newest, self.writing = step, self.start(step)

    def before_evaluation(self, step: int) -> None:
        self.save(step)

    def wait(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def start(self, step: int) -> Future:
        """Copy what is to be written."""
        path = checkpoint.path_of(self.folder / "checkpoints", step)
        temporary = checkpoint.temporary_of(path)
        taken = checkpoint.taken_apart(state_of(self.parts, self.folder, step))

        def begin() -> int | None:
            try:
                checkpoint.begin(temporary)
            except OSError as error:
                raise CheckpointError(checkpoint.unwritable(path, taken.bytes, error)) from error
            return self.best()

        best = distributed.from_first(begin)
        writing = shards.write(temporary / shards.FOLDER, taken.shares, self.group)
        return self.thread.submit(self.finish, step, taken.copied_rest(), taken.bytes, writing, best)

    def finish(self, step: int, rest: Taken, size: int, writing: Future, best: int | None) -> None:
        """On a thread of every process: wait for the shares, then give the checkpoint its name. Raises
        CheckpointError on all processes, where one of them could not write."""
        folder = self.folder / "checkpoints"
        path = checkpoint.path_of(folder, step)
        temporary = checkpoint.temporary_of(path)
        found, error = {}, None
        try:
            shards.finished(writing)
            found = shards.own_files(temporary / shards.FOLDER)
        except OSError as caught:
            error = str(caught)
        found, errors = zip(*distributed.gather_objects((found, error), group=self.group))
        error = next((said for said in errors if said), None)
        if distributed.rank() == 0:
            try:
                if error is None:
                    every = {name: entry for files in found for name, entry in files.items()}
                    checkpoint.write(temporary, step, rest, every)
                    checkpoint.put_in_place(temporary, path)
                    checkpoint.forget(folder, self.parts.recipe.checkpoint.keep, best)
            except OSError as caught:
                error = str(caught)
            shutil.rmtree(temporary, ignore_errors=True)
        if error := distributed.gather_objects(error, group=self.group)[0]:
            raise CheckpointError(checkpoint.unwritable(path, size, error))


def saver_of(parts: Parts, folder: Path, begin: int) -> Saver:
    """For a run that goes on from step `begin`."""
    return ShardedSaver(parts, folder, begin) if is_sharded(parts.model) else Saver(parts, folder)


def state_of(parts: Parts, folder: Path, step: int) -> dict:
    """What the checkpoint after `step` steps holds; on other processes than the first, what they share."""
    first, *further = (t.objective.state_dict() for t in parts.tasks)
    state = {
        "step": step,
        "model": parts.model.state_dict(),
        "objective": first,
        "further_objectives": further,
        "optimizer": parts.optimizer.state_dict(),
    }
    if distributed.rank() > 0:
        return state
    # what the checkpoint relies on is on the disk before it
    for name in ("metrics.jsonl", "evaluation.jsonl", *APPENDED):
        if (folder / name).exists():
            checkpoint.synchronise(folder / name)
    return state | {
        "recipe": parts.recipe.dump(),
        "data": parts.fingerprints,
        "weights_from": {name: begin.hash for name, begin in parts.begins.items()},
        "bytes": {
            name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in APPENDED
        },
    }
