"""The processes that read data, watched: a dead one is replaced, one that hangs is killed, and the batches
stay what they are.

A batch is a function of its step, so after either all readers are started again at the first step that has
not been delivered.
"""

import multiprocessing
import signal
import sys
import threading
import time

from vicjoint import data
from vicjoint.time_limit import TimeLimit


class ReaderError(RuntimeError):
    """The processes that read data keep ending; the message says how."""


class _Restart(Exception):
    """Start all readers again; the message says why."""


class Readers:
    """Iterating yields (Pair, bad samples) of the steps start..end-1, read by `workers` processes (0: by this
    one). `streams` share one TimeLimit. Raises ReaderError where readers die `DEATHS` times in a row without
    a batch between. Close it after use.
    """

    DEATHS = 3
    POLL_SECONDS = 1.0  # how often a late batch makes it look after the readers

    def __init__(
        self, streams: list[data.Stream], records_per_batch: list[int], workers: int, start: int, end: int
    ):
        self.streams, self.records_per_batch, self.workers = streams, records_per_batch, workers
        self.step, self.end = start, end
        self.limit: TimeLimit = streams[0].limit
        self.deaths = 0
        self._batches, self._processes, self._before = None, [], None

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def __iter__(self) -> "Readers":
        return self

    def __next__(self):
        while self.step < self.end:
            try:
                if self._batches is None:
                    self._open()
                batch = self._take()
            except _Restart as why:
                reason = str(why)  # the exception itself would keep the readers' iterator alive
            else:
                self.step, self.deaths = self.step + 1, 0
                return batch
            print(
                f"{reason} Reading goes on, with new processes, from step {self.step + 1}.", file=sys.stderr
            )
            self._close()
        self._close()
        raise StopIteration

    def _open(self) -> None:
        if self.workers:
            self.limit.watch(self.workers)
        loader = data.in_turn(
            self.streams, self.records_per_batch, self.workers, self.step, self.end, self.POLL_SECONDS
        )
        others = set(multiprocessing.active_children())
        if self.workers and threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGCHLD)
        self._batches = iter(loader)
        self._processes = [process for process in multiprocessing.active_children() if process not in others]
        if self._before is not None:
            signal.signal(
                signal.SIGCHLD, signal.SIG_DFL
            )  # DataLoader's handler would raise in the middle of a training step when a worker dies

    def _take(self):
        """The next batch. Raises _Restart, or ReaderError."""
        while True:
            try:
                return next(self._batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not self.workers:
                    raise
                timed_out = str(error).startswith("DataLoader timed out")
                self._check_dead(wait=not timed_out)
                self._check_late()
                if not timed_out:
                    raise  # a fault in the reader's code, passed on by a living process

    def _check_dead(self, wait: bool) -> None:
        patience = time.monotonic() + (
            0.5 if wait else 0
        )  # a connection breaks a moment before its process is gone
        while all(process.is_alive() for process in self._processes):
            if time.monotonic() >= patience:
                return
            time.sleep(0.02)
        ends = [f"process {p.pid} ({describe(p.exitcode)})" for p in self._processes if not p.is_alive()]
        self.deaths += 1
        said = (
            f"{', '.join(ends)}, which reads data, ended unexpectedly before the batch of step"
            f" {self.step + 1}."
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
        still = [
            row for row in late if row in self.limit.rows.tolist()
        ]  # it may have gone on just before it was killed
        for _, _, pair, index in still:
            self.limit.late.add((int(pair), self.streams[int(pair)].records[int(index)]["id"]))
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
        self._batches, self._processes = None, []
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._before)
            self._before = None


def describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    hint = {
        signal.SIGKILL: ": often the system, when memory is short",
        signal.SIGBUS: ": often too little shared memory, /dev/shm",
    }
    return f"{name}{hint.get(-exit_code, '')}"
