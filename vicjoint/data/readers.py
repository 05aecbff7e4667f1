"""One road for all that is read, in training, in evaluation and by `check`: places -> items, batch by batch.

A place is whatever its `Reads` understands, and an item is a function of its place. So the processes that
read can be watched: a dead one is replaced, one that hangs is killed, and the batches stay what they are,
since all are started again at the first batch that has not been delivered.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from vicjoint import registry
from vicjoint.data.time_limit import TimeLimit

# that ask to save and stop: of schedulers, of a terminal that is closed; Windows has some of them
STOP_SIGNALS = [
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__
]
# On Linux readers are forked from a process that has loaded the libraries and nothing else: they share that
# memory, some 300 MB each, and start in a moment. Elsewhere each loads them by itself.
START = "forkserver" if sys.platform == "linux" else "spawn"
LOADED = ["vicjoint.data.stream", "vicjoint.modalities"]
READER = "vicjoint reader"  # how the names of processes that read begin
NO_GUARD = 71  # its exit code where it was to train, too


class Reads(Dataset):
    """What is read: `reads[place]` -> item. It travels to the processes that read. Inside, every record is
    read within `limit.reading(number, index, name)`; `name(number, index)` says again which sample that was.
    """

    limit: TimeLimit

    def __getitem__(self, place):
        raise NotImplementedError

    def name(self, number: int, index: int) -> str:
        """The sample that a process was reading, by the numbers that it gave to `limit.reading`."""
        raise NotImplementedError


class ReaderError(RuntimeError):
    """The processes that read data keep ending; the message says how."""


class _Restart(Exception):
    """Start all readers again; the message says why."""


class _From(Sequence):
    """The batches from one of them on: what a DataLoader samples."""

    def __init__(self, batches: Sequence, first: int):
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __getitem__(self, i: int):
        return self.batches[self.first + i]

    def __iter__(self) -> Iterator:
        return (self.batches[i] for i in range(self.first, len(self.batches)))


class Readers:
    """Iterating yields `collate([reads[place], ...])` of each batch of places, read by `workers` processes
    (0: by this one). Raises ReaderError where readers die `DEATHS` times in a row without a batch between.
    `begin`: the number of the first batch, in messages. Close it after use.
    """

    DEATHS = 3
    POLL_SECONDS = 1.0  # how often a late batch makes it look after the readers

    def __init__(
        self, reads: Reads, batches: Sequence[list], collate: Callable, workers: int = 0, begin: int = 0
    ):
        self.reads, self.batches, self.collate, self.workers = reads, batches, collate, workers
        self.done, self.begin, self.limit = 0, begin, reads.limit
        self.deaths = 0
        self._items, self._processes, self._before = None, [], None

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def __iter__(self) -> "Readers":
        return self

    def __len__(self) -> int:
        return len(self.batches)

    def __next__(self):
        while self.done < len(self.batches):
            try:
                if self._items is None:
                    self._open()
                batch = self._take()
            except _Restart as why:
                reason = str(why)  # the exception itself would keep the readers' iterator alive
            else:
                self.done, self.deaths = self.done + 1, 0
                return batch
            print(f"{reason} Reading goes on, with new processes, from step {self._step}.", file=sys.stderr)
            self._close()
        self._close()
        raise StopIteration

    @property
    def _step(self) -> int:
        """The batch that is waited for, from 1."""
        return self.begin + self.done + 1

    def _open(self) -> None:
        """Workers start clean, without this process's decoders, threads and GPU."""
        if self.workers:
            refuse_in_a_reader()
            multiprocessing.set_forkserver_preload(LOADED)
            self.limit.watch(self.workers)
        loader = DataLoader(
            self.reads,
            batch_sampler=_From(self.batches, self.done),
            num_workers=self.workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=Reading() if self.workers else None,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_start_worker if self.workers else None,
            timeout=self.POLL_SECONDS if self.workers else 0,
            generator=torch.Generator(),  # its own: torch's would be moved by how often reading is started
        )
        others = set(multiprocessing.active_children())
        in_main = threading.current_thread() is threading.main_thread()
        if self.workers and in_main and hasattr(signal, "SIGCHLD"):  # not on Windows
            self._before = signal.getsignal(signal.SIGCHLD)
        with starting():
            self._items = iter(loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in others]
        if self._before is not None:
            # DataLoader's handler would raise in the middle of a training step when a worker dies
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _take(self):
        """The next batch. Raises _Restart, or ReaderError."""
        while True:
            try:
                return next(self._items)
            except (RuntimeError, OSError, EOFError) as error:
                if not self.workers:
                    raise
                timed_out = str(error).startswith("DataLoader timed out")
                self._check_dead(wait=not timed_out)
                self._check_late()
                if not timed_out:
                    raise  # a fault in the reader's code, passed on by a living process

    def _check_dead(self, wait: bool) -> None:
        # a connection breaks a moment before its process is gone
        patience = time.monotonic() + (0.5 if wait else 0)
        while all(process.is_alive() for process in self._processes):
            if time.monotonic() >= patience:
                return
            time.sleep(0.02)
        ends = [f"process {p.pid} ({describe(p.exitcode)})" for p in self._processes if not p.is_alive()]
        if any(p.exitcode == NO_GUARD for p in self._processes):
            raise ReaderError(
                f"the processes that read data run {sys.argv[0]} from its top again, since parts of the"
                " recipe are defined in it, and met the call of vicjoint. Put it below a guard, as"
                " the script's last part: if __name__ == '__main__': vicjoint.train(...)"
            )
        self.deaths += 1
        said = (
            f"{', '.join(ends)}, which reads data, ended unexpectedly before the batch of step {self._step}."
        )
        if self.deaths >= self.DEATHS:
            raise ReaderError(
                f"{said} That was {self.deaths} times in a row. Where memory is short, lower data.workers or"
                " train.batch_size; data.workers=0 shows a fault in the reader's own code. The same command"
                " with out=FOLDER goes on."
            )
        raise _Restart(said)

    def _check_late(self) -> None:
        late = self.limit.overdue()
        if not late:
            return
        for process in self._processes:
            if process.pid in {int(row[0]) for row in late}:
                process.kill()
                process.join(5)
        # it may have gone on just before it was killed
        still = [row for row in late if row in self.limit.rows.tolist()]
        for _, _, number, index in still:
            self.limit.late.add((int(number), self.reads.name(int(number), int(index))))
        raise _Restart(
            f"{len(still)} sample{'s were' if len(still) != 1 else ' was'} {self.limit.cause}; the process"
            " that hung was killed."
        )

    def _close(self) -> None:
        # killed, not asked: they hold nothing, and one that another's death left waiting for a lock would not
        # answer
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(5)
        self._items, self._processes = None, []
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._before)
            self._before = None


Base = multiprocessing.get_context(START)


class Reader(Base.Process):
    """A process that reads; its name is known before the user's script runs in it."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.name = f"{READER} {self.name}"


class Reading(type(Base)):
    """How processes that read are started."""

    Process = Reader


@contextlib.contextmanager
def starting():
    """Around the start of processes that read. Such a process runs the user's script again, all that no
    main guard holds back: here only where it needs the parts that the script defines."""
    main = sys.modules["__main__"].__dict__
    is_script = main.get("__spec__") is None and main.get("__file__") is not None
    kept = main["__file__"] if is_script and not registry.any_of_main() else None
    if kept:
        main["__file__"] = None
    try:
        yield
    finally:
        if kept:
            main["__file__"] = kept


def refuse_in_a_reader() -> None:
    """End a process that reads, where it comes to train or to read by others, as its script would have it."""
    if multiprocessing.current_process().name.startswith(READER):
        os._exit(NO_GUARD)  # sys.exit's code would be lost by the process that forks


def describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    hint = {
        "SIGKILL": ": often the system, when memory is short",
        "SIGBUS": ": often too little shared memory, /dev/shm",
    }
    return f"{name}{hint.get(name, '')}"


def stop_signals() -> list[signal.Signals]:
    """STOP_SIGNALS without a SIGHUP that is ignored, as under nohup."""
    ignored = lambda number: number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not ignored(number)]


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _start_worker(worker: int) -> None:
    # a forked reader is no child of the process that it reads for, and would live on where that is killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # workers decode side by side; the main process trains
    for number in STOP_SIGNALS:
        # they reach the whole group: the main process saves, then ends its workers
        signal.signal(number, signal.SIG_IGN)
    limit = torch.utils.data.get_worker_info().dataset.limit
    if limit.rows is not None:
        limit.enter(worker)
